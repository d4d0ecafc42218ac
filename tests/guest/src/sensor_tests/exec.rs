//! What the sensor must say of an executed program.
use std::{
    fs::{self, File},
    io::Read as _,
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt as _, MetadataExt as _},
    },
};

use anyhow::{Context as _, Result, ensure};
use monitor_common::{
    exec::ARGUMENTS_BYTES_MAX,
    file::{FILE_OVERLAY as OVERLAY, FILE_UPPER as UPPER},
};
use nix::time::{ClockId, clock_gettime};

use super::{BUSYBOX, check_paths, check_real_inode, exec_of, execs, run_in, show};
use crate::{container::Container, inside::Entry, observer::Observer};

pub fn a_program_of_a_lower_layer(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    let before = boot_time_ns()?;
    let step = ["run", BUSYBOX, "true", "", "two words", "lower"];
    let events = run_in(&container, Entry::Isolated, &step)?;
    let exec = exec_of(&events, "lower")?;

    equal!(exec.used.cgroup.id, container.cgroup_id());
    equal!(show(&exec.used.cgroup.path), show(&container.cgroup_path()));
    check_paths(&exec.used.file, BUSYBOX, BUSYBOX)?;
    equal!(exec.script, None);
    let arguments: Vec<String> = exec.arguments.iter().map(|word| show(word)).collect();
    equal!(arguments, step.get(1..).unwrap_or_default());
    ensure!(
        !exec.arguments_truncated,
        "the arguments are said to be cut"
    );
    ensure!(!exec.used.file.unlinked, "the file is said to be removed");

    let facts = &exec.used.file.facts;
    equal!(facts.flags, OVERLAY);
    let overlay = fs::metadata(container.root().join("bin/busybox"))?;
    equal!(facts.inode, overlay.ino());
    equal!(facts.mode, overlay.mode());
    check_real_inode(facts, &fs::metadata(container.lower().join("bin/busybox"))?)?;
    equal!(facts.mount_namespace, exec.used.process.mount_namespace);

    let process = &exec.used.process;
    equal!(process.uid, 0);
    equal!(process.root_device, facts.device);
    let (start, exec_time) = (process.start_boot_ns, exec.used.time_boot_ns);
    ensure!(
        before <= start && start <= exec_time && exec_time <= boot_time_ns()?,
        "started at {start}, executed at {exec_time}, asked for at {before}"
    );
    Ok(())
}

fn boot_time_ns() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).context("reading the time since boot")?;
    let nanoseconds = now.tv_sec() * 1_000_000_000 + now.tv_nsec();
    u64::try_from(nanoseconds).context("a time before boot")
}

pub fn a_program_of_the_upper_layer(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    let events = container.shell(
        "cp /bin/busybox /tmp/busybox-copy; ln /tmp/busybox-copy /tmp/busybox-second; /tmp/busybox-copy true upper
         chmod 0700 /bin/busybox; /bin/busybox true changed",
    )?;

    let exec = exec_of(&events, "upper")?;
    check_paths(&exec.used.file, "/tmp/busybox-copy", "/tmp/busybox-copy")?;
    equal!(exec.used.file.facts.flags, OVERLAY | UPPER);
    let real = fs::metadata(container.upper().join("tmp/busybox-copy"))?;
    check_real_inode(&exec.used.file.facts, &real)?;
    equal!(exec.used.file.facts.link_count, 2);

    let exec = exec_of(&events, "changed")?;
    check_paths(&exec.used.file, BUSYBOX, BUSYBOX)?;
    equal!(exec.used.file.facts.flags, OVERLAY | UPPER);
    let real = fs::metadata(container.upper().join("bin/busybox"))?;
    check_real_inode(&exec.used.file.facts, &real)
}

pub fn a_program_of_a_volume(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    let events = container.shell(
        "mkdir /volume/sub; cp /bin/busybox /volume/sub/busybox-copy; /volume/sub/busybox-copy true volume",
    )?;
    let exec = exec_of(&events, "volume")?;
    check_paths(
        &exec.used.file,
        "/volume/sub/busybox-copy",
        "/sub/busybox-copy",
    )?;
    equal!(exec.used.file.facts.flags, 0);
    ensure!(
        exec.used.file.facts.device != exec.used.process.root_device,
        "the volume's device is the root's"
    );
    Ok(())
}

pub fn a_deleted_program(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    let step = ["deleted", BUSYBOX, "true", "deleted"];
    let events = run_in(&container, Entry::Isolated, &step)?;
    let exec = exec_of(&events, "deleted")?;
    check_paths(&exec.used.file, "/tmp/deleted", "/tmp/deleted")?;
    ensure!(
        exec.used.file.unlinked,
        "the file is not said to be removed"
    );
    equal!(exec.used.file.facts.flags, OVERLAY | UPPER);
    equal!(exec.used.file.facts.link_count, 0);
    Ok(())
}

pub fn a_program_in_memory(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    let step = ["memfd", BUSYBOX, "true", "memory"];
    let events = run_in(&container, Entry::Isolated, &step)?;
    let exec = exec_of(&events, "memory")?;
    check_paths(&exec.used.file, "/memfd:program", "/memfd:program")?;
    let facts = &exec.used.file.facts;
    equal!(facts.flags, 0);
    equal!(facts.link_count, 0);
    equal!(facts.mount_namespace, 0);
    equal!(facts.size, fs::metadata(BUSYBOX)?.size());
    Ok(())
}

pub fn a_script_and_its_interpreter(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    let events = container.shell(
        "printf '#!/bin/sh -e\\ntrue\\n' > /tmp/script; chmod +x /tmp/script; cd /tmp; ./script script",
    )?;
    let exec = exec_of(&events, "script")?;
    check_paths(&exec.used.file, BUSYBOX, BUSYBOX)?;
    equal!(
        exec.script.as_deref().map(show),
        Some("./script".to_owned())
    );
    let arguments: Vec<String> = exec.arguments.iter().map(|word| show(word)).collect();
    equal!(arguments, ["/bin/sh", "-e", "./script", "script"]);
    Ok(())
}

pub fn arguments_are_kept_up_to_their_bound(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    let long = "x".repeat(100_000);
    let step = ["run", BUSYBOX, "true", "first", &long];
    let events = run_in(&container, Entry::Isolated, &step)?;
    let exec = execs(&events)
        .find(|exec| exec.arguments.iter().any(|word| word == b"first"))
        .context("the exec was not seen")?;
    ensure!(
        exec.arguments_truncated,
        "the arguments are not said to be cut"
    );
    equal!(exec.arguments.len(), 4);
    let bytes: usize = exec.arguments.iter().map(Vec::len).sum();
    // Three NULs end the arguments before the one that is cut.
    equal!(bytes, usize::try_from(ARGUMENTS_BYTES_MAX)? - 3);
    ensure!(
        exec.arguments
            .last()
            .is_some_and(|last| long.as_bytes().starts_with(last)),
        "the long argument does not begin as it should"
    );
    Ok(())
}

pub fn the_bytes_are_held_after_exit_and_removal(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    let events = container.shell(
        "cp /bin/busybox /tmp/busybox-x; echo salt >> /tmp/busybox-x; printf '#!/tmp/busybox-x sh\\n:\\n' > /tmp/script
         chmod +x /tmp/script; /tmp/busybox-x true program; /tmp/script script
         rm /tmp/busybox-x /tmp/script",
    )?;
    ensure!(
        !container.root().join("tmp/busybox-x").exists(),
        "the program is still there"
    );
    let mut program = fs::read(BUSYBOX)?;
    program.extend_from_slice(b"salt\n");

    let exec = exec_of(&events, "program")?;
    equal!(exec.held.len(), 1);
    ensure!(
        contents(&exec.held, 0)? == program,
        "the held program is another"
    );
    let exec = exec_of(&events, "script")?;
    equal!(exec.held.len(), 2);
    equal!(
        show(&contents(&exec.held, 0)?),
        "#!/tmp/busybox-x sh\\n:\\n"
    );
    ensure!(
        contents(&exec.held, 1)? == program,
        "the held interpreter is another"
    );
    Ok(())
}

fn contents(held: &[OwnedFd], index: usize) -> Result<Vec<u8>> {
    let file = File::from(held.get(index).context("too few files")?.try_clone()?);
    let mut bytes = Vec::new();
    (&file)
        .read_to_end(&mut bytes)
        .context("reading a held file")?;
    // The descriptor is readable again from the start, as the daemon reads it.
    let mut first = [0];
    file.read_exact_at(&mut first, 0)?;
    equal!(bytes.first().copied(), Some(first[0]));
    Ok(bytes)
}
