//! What the sensor must say of files mapped executable.
use std::{
    fs::{self, File, Metadata},
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
};

use anyhow::{Context as _, Result, ensure};
use monitor::sensor::event::{Code, Event};
use monitor_common::{
    CgroupFacts, CgroupState, Hook,
    file::{FILE_OVERLAY as OVERLAY, FILE_REMEMBERED, FILE_UPPER as UPPER},
};

use super::{BUSYBOX, check_paths, check_real_inode, code_of, exec_of, run_in};
use crate::{container::Container, inside::Entry, observer::Observer};

fn not_seen(events: &[Event]) -> String {
    let codes: Vec<_> = events
        .iter()
        .filter(|event| matches!(event, Event::Code(_)))
        .collect();
    format!("the mapping was not seen, only {codes:?}")
}

/// Which hooks may see a mapping before it has its place.
fn has_place(code: &Code) -> bool {
    code.mapping.0 < code.mapping.1
}

fn held(held: Option<&OwnedFd>) -> Result<Metadata> {
    let held = held.context("the file is not held")?;
    Ok(File::from(held.try_clone()?).metadata()?)
}

pub fn a_mapped_file_is_code(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    let events = run_in(&container, Entry::Isolated, &["map", "mapped", BUSYBOX])?;
    let codes = code_of(&events, BUSYBOX);
    let code = codes.first().with_context(|| not_seen(&events))?;
    equal!(codes.len(), 1);
    check_paths(&code.used.file, BUSYBOX, BUSYBOX)?;
    let facts = &code.used.file.facts;
    equal!(facts.flags, OVERLAY);
    check_real_inode(facts, &fs::metadata(container.lower().join("bin/busybox"))?)?;
    equal!(facts.mount_namespace, code.used.process.mount_namespace);
    equal!(code.written, false);

    let line = "cp /bin/busybox /tmp/library; chmod 700 /bin/busybox";
    container.shell(line)?;
    for (path, real) in [("/tmp/library", "tmp/library"), (BUSYBOX, "bin/busybox")] {
        let events = run_in(&container, Entry::Isolated, &["map", "mapped", path])?;
        let codes = code_of(&events, path);
        let code = codes.first().with_context(|| not_seen(&events))?;
        equal!(codes.len(), 1);
        equal!(code.used.file.facts.flags, OVERLAY | UPPER);
        check_real_inode(
            &code.used.file.facts,
            &fs::metadata(container.upper().join(real))?,
        )?;
    }
    Ok(())
}

pub fn a_mapping_made_executable_is_code(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    container.shell("cp /bin/busybox /tmp/library")?;
    let events = run_in(
        &container,
        Entry::Isolated,
        &["map", "protected", "/tmp/library"],
    )?;
    let codes = code_of(&events, "/tmp/library");
    let code = codes.first().with_context(|| not_seen(&events))?;
    equal!(codes.len(), 1);
    ensure!(has_place(code), "it has no place: {:?}", code.mapping);
    equal!(code.used.file.facts.flags, OVERLAY | UPPER);
    equal!(code.written, false);
    Ok(())
}

pub fn a_mapping_that_was_written_is_told_as_such(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    let events = run_in(&container, Entry::Isolated, &["map", "written", BUSYBOX])?;
    let codes = code_of(&events, BUSYBOX);
    let code = codes.first().with_context(|| not_seen(&events))?;
    equal!(codes.len(), 1);
    ensure!(code.written, "it is not said to have been written");
    Ok(())
}

pub fn memory_mapped_executable_is_code(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    let events = run_in(&container, Entry::Isolated, &["map", "memory", BUSYBOX])?;
    let codes = code_of(&events, "/memfd:code");
    let code = codes.first().with_context(|| not_seen(&events))?;
    equal!(code.used.file.facts.link_count, 0);
    equal!(code.used.file.facts.mount_namespace, 0);
    Ok(())
}

pub fn a_mapped_file_is_held_after_its_removal(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    let line = "cp /bin/busybox /tmp/library; echo salt >> /tmp/library";
    container.shell(line)?;
    let size = fs::metadata(container.upper().join("tmp/library"))?.size();
    let step = ["map", "mapped", "/tmp/library"];
    let events = run_in(&container, Entry::Isolated, &step)?;
    container.shell("rm /tmp/library")?;
    let codes = code_of(&events, "/tmp/library");
    let code = codes.first().with_context(|| not_seen(&events))?;
    equal!(held(code.held.as_ref())?.size(), size);
    Ok(())
}

pub fn what_is_remembered_is_not_sent_again(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    let map = |entry| run_in(&container, entry, &["map", "mapped", BUSYBOX]);
    let remembered = || {
        let account = observer.sensor().account();
        account.hook(Hook::Code).counters.remembered
    };
    let events = map(Entry::Isolated)?;
    let codes = code_of(&events, BUSYBOX);
    let code = codes.first().with_context(|| not_seen(&events))?;
    let facts = code.used.file.facts;
    ensure!(observer.sensor().remember(&facts)?, "it is not remembered");

    // The cgroup is not known to be a container's with this root.
    equal!(code_of(&map(Entry::Isolated)?, BUSYBOX).len(), 1);
    for (root_device, expect) in [(facts.device + 1, 1), (facts.device, 0)] {
        let facts = CgroupFacts {
            state: CgroupState::Container as u32,
            root_device,
        };
        let before = remembered();
        observer.sensor().set_cgroup(container.cgroup_id(), facts)?;
        equal!(code_of(&map(Entry::Isolated)?, BUSYBOX).len(), expect);
        ensure!(
            expect == 1 || remembered() > before,
            "what is remembered is not counted"
        );
    }
    let events = run_in(&container, Entry::Isolated, &["run", BUSYBOX, "true", "x"])?;
    let exec = exec_of(&events, "x")?;
    ensure!(
        exec.used.file.facts.flags & FILE_REMEMBERED != 0,
        "an exec does not say that its program is remembered"
    );

    // Edited on the host: another version, whatever its size.
    let lower = container.lower().join("bin/busybox");
    fs::set_permissions(&lower, fs::metadata(&lower)?.permissions())?;
    equal!(code_of(&map(Entry::Isolated)?, BUSYBOX).len(), 1);
    observer.sensor().forget_cgroup(container.cgroup_id())?;
    Ok(())
}
