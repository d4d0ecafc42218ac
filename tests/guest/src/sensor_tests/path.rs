//! What the sensor must say of where a file lies.
use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};

use anyhow::{Result, ensure};
use monitor_common::{
    file::{FILE_OVERLAY as OVERLAY, FILE_UPPER as UPPER},
    path::{COMPONENT_BYTES_MAX, COMPONENTS_MAX, PATH_BYTES_MAX},
};

use super::{BUSYBOX, check_paths, exec_of, run_in, show};
use crate::{container::Container, inside::Entry, observer::Observer};

pub fn a_path_of_many_components_is_cut(observer: &Observer) -> Result<()> {
    check_deep_path(observer, 300, 1)
}

pub fn a_path_of_many_bytes_is_cut(observer: &Observer) -> Result<()> {
    check_deep_path(observer, 40, 200)
}

fn check_deep_path(observer: &Observer, count: usize, length: usize) -> Result<()> {
    let container = Container::new(observer)?;
    let (depth, width) = (count.to_string(), length.to_string());
    let step = ["deep", &depth, &width, BUSYBOX, "true", "deep"];
    let events = run_in(&container, Entry::Isolated, &step)?;
    let exec = exec_of(&events, "deep")?;
    ensure!(
        exec.used.file.path_truncated,
        "the path is not said to be cut"
    );
    let path = show(&exec.used.file.path);
    let whole = format!(
        "/tmp{}/program",
        format!("/{}", "d".repeat(length)).repeat(count)
    );
    ensure!(whole.ends_with(&path), "the path is {path}");
    let components = path.matches('/').count();
    let [components_max, bytes_max, component_max] =
        [COMPONENTS_MAX, PATH_BYTES_MAX, COMPONENT_BYTES_MAX].map(|bound| bound as usize);
    ensure!(
        components == components_max
            || (bytes_max..=bytes_max + component_max).contains(&path.len()),
        "the path has {components} components and {} bytes",
        path.len()
    );
    Ok(())
}

pub fn a_name_may_hold_any_bytes(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    let name = b"/tmp/busybox\nb \xff\xfe\x01";
    let line = [
        b"cp /bin/busybox '",
        &name[..],
        b"'; '",
        name,
        b"' true odd",
    ]
    .concat();
    let step = ["run", BUSYBOX, "sh", "-e", "-c"]
        .map(OsStr::new)
        .into_iter()
        .chain([OsStr::from_bytes(&line)]);
    let events = container.run(Entry::Isolated, &step.collect::<Vec<_>>())?;
    let exec = exec_of(&events, "odd")?;
    check_paths(&exec.used.file, &show(name), &show(name))
}

pub fn the_path_is_of_the_namespace_in_a_chroot(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    let events = container
        .shell("cp /bin/busybox /jail/busybox-copy; chroot /jail /busybox-copy true chrooted")?;
    let exec = exec_of(&events, "chrooted")?;
    equal!(
        show(exec.arguments.first().map_or(&[], Vec::as_slice)),
        "/busybox-copy"
    );
    check_paths(&exec.used.file, "/jail/busybox-copy", "/jail/busybox-copy")
}

pub fn a_bind_mount_changes_only_the_path_people_see(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    let events = container.shell(
        "mkdir /tmp/sub; cp /bin/busybox /tmp/sub/busybox-copy
         mount --bind /tmp /mount; /mount/sub/busybox-copy true directory
         mount --bind /tmp/sub/busybox-copy /bin/busybox; /bin/busybox true file",
    )?;
    let directory = exec_of(&events, "directory")?;
    check_paths(
        &directory.used.file,
        "/mount/sub/busybox-copy",
        "/tmp/sub/busybox-copy",
    )?;
    let file = exec_of(&events, "file")?;
    check_paths(&file.used.file, BUSYBOX, "/tmp/sub/busybox-copy")?;
    equal!(directory.used.file.facts, file.used.file.facts);
    Ok(())
}

pub fn an_overlay_of_a_user_namespace(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    let lower = ["user-overlay", "/mount/busybox", "true", "lower"];
    let events = run_in(&container, Entry::Isolated, &lower)?;
    let exec = exec_of(&events, "lower")?;
    check_paths(&exec.used.file, "/mount/busybox", "/busybox")?;
    equal!(exec.used.file.facts.flags, OVERLAY);

    let upper = ["user-overlay", "/mount/busybox-copy", "true", "upper"];
    let events = run_in(&container, Entry::Isolated, &upper)?;
    let exec = exec_of(&events, "upper")?;
    check_paths(&exec.used.file, "/mount/busybox-copy", "/busybox-copy")?;
    equal!(exec.used.file.facts.flags, OVERLAY | UPPER);
    ensure!(
        exec.used.file.facts.device != exec.used.process.root_device,
        "the inner overlay's device is the root's"
    );
    ensure!(
        exec.used.file.facts.real_device != exec.used.file.facts.device,
        "the real inode is on the inner overlay itself"
    );
    Ok(())
}
