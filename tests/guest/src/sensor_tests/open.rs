//! What the sensor must say of files that are opened.
use anyhow::{Context as _, Result, ensure};
use monitor_common::file::{FILE_OVERLAY as OVERLAY, FILE_UPPER as UPPER};

use super::{check_paths, code_of, opens_of, run_in};
use crate::{container::Container, inside::Entry, observer::Observer};

pub fn a_script_given_to_an_interpreter_is_opened(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    let events = container.shell(
        "echo : > /tmp/script; echo : > /tmp/sourced; echo data > /tmp/data
         /bin/sh /tmp/script; . /tmp/sourced; read x < /tmp/data",
    )?;
    for path in ["/tmp/script", "/tmp/sourced", "/tmp/data"] {
        let mut opens = opens_of(&events, path);
        opens.retain(|open| !open.access.write);
        let open = opens.first().context(format!("{path} was not seen"))?;
        equal!(opens.len(), 1);
        check_paths(&open.used.file, path, path)?;
        equal!(open.used.file.facts.flags, OVERLAY | UPPER);
        ensure!(
            open.is_interpreted,
            "{path} is not told as opened by an interpreter"
        );
        ensure!(!open.is_standard_input, "{path} is told as standard input");
    }
    Ok(())
}

pub fn an_open_for_writing_is_told_as_such(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    let events = container.shell("echo : > /tmp/new; echo : >> /tmp/new")?;
    let opens = opens_of(&events, "/tmp/new");
    // The second may be told before the first was judged.
    ensure!(!opens.is_empty(), "it was not seen");
    for open in opens {
        ensure!(open.access.write && !open.access.read, "{:?}", open.access);
        ensure!(
            !open.is_interpreted,
            "it is told as opened by an interpreter"
        );
    }
    Ok(())
}

pub fn standard_input_of_an_interpreter_is_told(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    let line = "echo : > /tmp/script; /bin/sh < /tmp/script";
    let events = container.shell(line)?;
    let opens = opens_of(&events, "/tmp/script");
    let told = opens.iter().filter(|open| open.is_standard_input).count();
    equal!(told, 1);
    Ok(())
}

pub fn what_other_programs_open_is_no_code(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    container.shell("cp /bin/busybox /tmp/busybox-not-known; echo data > /tmp/data")?;
    // By its inode it is another program than the shell's, though not by its name.
    let step = ["map", "mapped", "/tmp/data"];
    let events = run_in(&container, Entry::Isolated, &step)?;
    let opens = opens_of(&events, "/tmp/data");
    equal!(opens.len(), 1);
    let is_interpreted = opens.iter().any(|open| open.is_interpreted);
    ensure!(!is_interpreted, "it is told as opened by an interpreter");
    equal!(code_of(&events, "/tmp/data").len(), 1);
    Ok(())
}
