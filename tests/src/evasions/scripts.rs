//! Scripts and their interpreters.

use std::fs;

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount};

use super::{
    ALL, Technique,
    image::PYTHON,
    shell,
    stage::{Mounted, NotHere, Stage},
    staged,
};

pub(super) const ROWS: &[Technique] = &[
    shell(
        "dropped script",
        "Writes a script and executes it.",
        "script /tmp/s; /tmp/s",
    )
    .raises(&["script_added /tmp/s"]),
    shell(
        "script with arguments for its interpreter",
        "Gives the interpreter an argument on the script's first line.",
        "script /tmp/s '/bin/busybox sh'; /tmp/s more arguments",
    )
    .raises(&["script_added /tmp/s"]),
    shell(
        "chain of interpreters",
        "Names a script as the interpreter of another.",
        "script /tmp/inner; script /tmp/outer /tmp/inner; /tmp/outer",
    )
    .raises(&["script_added /tmp/inner", "script_added /tmp/outer"]),
    shell(
        "script of the image changed",
        "Appends to a script of the image.",
        "echo : >> /opt/script; /opt/script",
    )
    .raises(&["script_modified /opt/script", "image_file_modified /opt/script"]),
    shell(
        "interpreter of a script replaced",
        "Changes the program that the first line of the image's script names.",
        "cp /opt/busybox /tmp/busybox; echo salt >> /tmp/busybox; mv /tmp/busybox /opt/busybox
         /opt/script",
    )
    .raises(&["exec_modified /opt/busybox", "image_file_modified /opt/busybox"]),
    shell(
        "interpreter dropped",
        "Writes a script and the program that interprets it.",
        "program /tmp/i; script /tmp/s '/tmp/i true'; /tmp/s",
    )
    .raises(&["exec_added /tmp/i", "script_added /tmp/s"]),
    staged(
        "binfmt_misc",
        "Executes a file that the kernel hands to a program of the image because of its first bytes.",
        binfmt_misc,
    )
    .raises(&["script_added /tmp/x"]),
    shell(
        "script as an argument",
        "Gives a script that is not executable to a shell.",
        "echo : > /tmp/x; sh /tmp/x",
    )
    .raises(&["script_added /tmp/x"]),
    shell(
        "script as standard input",
        "Has a shell read a script as its input.",
        "echo : > /tmp/x; sh < /tmp/x",
    )
    .raises(&["script_added /tmp/x"]),
    shell(
        "script by source",
        "Has a running shell read a script.",
        "echo : > /tmp/x; sh -c '. /tmp/x'",
    )
    .raises(&["script_added /tmp/x"]),
    shell(
        "script in /dev/shm as an argument",
        "Gives a script to a shell from a mount that forbids execution.",
        "echo : > /dev/shm/x; sh /dev/shm/x",
    )
    .raises(&["script_volume /dev/shm/x"]),
    shell(
        "script given to python3",
        "Gives a script to an interpreter that is not a shell.",
        "echo pass > /tmp/x; python3 -S /tmp/x",
    )
    .image(PYTHON)
    .raises(&["script_added /tmp/x"]),
    shell(
        "module that python3 imports",
        "Puts a module where a program of the image looks for modules.",
        "echo pass > /tmp/evil.py; PYTHONPATH=/tmp python3 -B -S -c 'import evil'",
    )
    .image(PYTHON)
    .raises(&["script_added /tmp/evil.py"]),
    shell(
        "script of the image",
        "Runs a script of the image in each of these ways.",
        "/opt/script; sh /opt/script; sh < /opt/script; . /opt/script",
    ),
    shell(
        "text through a pipe",
        "Has a shell read commands from another program.",
        "echo : > /tmp/x; cat /tmp/x | sh",
    )
    .raises(&["script_added /tmp/x"])
    .missed(&[(
        ALL,
        "the shell reads from a pipe, behind which the kernel knows no file, only a process that \
         wrote",
    )]),
    shell(
        "text as an argument",
        "Gives commands themselves to a shell.",
        "echo : > /tmp/x; sh -c \"$(cat /tmp/x)\"",
    )
    .raises(&["script_added /tmp/x"])
    .missed(&[(
        ALL,
        "no file takes part; the kernel shows an argument, as every use of a shell has",
    )]),
];

/// What the file begins with; it is an assignment to the shell that then reads it.
const MAGIC: &str = "MONITORTEST=1";

fn binfmt_misc(stage: &Stage<'_>) -> Result<()> {
    let place = stage.directory().join("binfmt");
    fs::create_dir(&place)?;
    let kind = Some("binfmt_misc");
    let none: Option<&str> = None;
    if let Err(error) = mount(kind, &place, kind, MsFlags::empty(), none) {
        return Err(NotHere(format!("mounting binfmt_misc: {error}")).into());
    }
    let place = Mounted(place);
    let entry = place.0.join("monitor-test");
    fs::write(
        place.0.join("register"),
        format!(":monitor-test:M::{MAGIC}::/bin/sh:"),
    )
    .context("cannot register a handler of binfmt_misc")?;
    let line = format!("echo {MAGIC} > /tmp/x; chmod +x /tmp/x; /tmp/x");
    let ran = stage.run(&stage.shell(&line));
    fs::write(entry, "-1").context("cannot remove a handler of binfmt_misc")?;
    ran
}
