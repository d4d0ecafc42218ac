//! What the sensor must say of files that interpreters open.
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
        let opens = opens_of(&events, path);
        let open = opens.first().context(format!("{path} was not seen"))?;
        equal!(opens.len(), 1);
        check_paths(&open.used.file, path, path)?;
        equal!(open.used.file.facts.flags, OVERLAY | UPPER);
        ensure!(!open.is_standard_input, "{path} is told as standard input");
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

pub fn other_programs_open_what_they_like(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    container.shell("cp /bin/busybox /tmp/busybox-not-known; echo data > /tmp/data")?;
    // By its inode it is another program than the shell's, though not by its name.
    let step = ["map", "mapped", "/tmp/data"];
    let events = run_in(&container, Entry::Isolated, &step)?;
    equal!(opens_of(&events, "/tmp/data").len(), 0);
    equal!(code_of(&events, "/tmp/data").len(), 1);
    Ok(())
}
