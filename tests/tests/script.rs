//! What interpreters run in containers, against what their image holds.

use std::fs;

use anyhow::{Result, ensure};
use tests::{
    alerts::{summary, text},
    behaviours,
    containerd::Run,
    require,
    world::{BASE, shared},
};

behaviours! {
    a_script_given_as_an_argument_is_added:
        "echo true > /tmp/x; sh /tmp/x" => [("script_added", "/tmp/x")];
    a_relative_path_is_the_same_file:
        "echo true > /tmp/x; cd /tmp; sh ./x" => [("script_added", "/tmp/x")];
    a_script_given_as_standard_input_is_added:
        "echo true > /tmp/x; sh < /tmp/x" => [("script_added", "/tmp/x")];
    a_sourced_file_is_added:
        "echo true > /tmp/x; . /tmp/x" => [("script_added", "/tmp/x")];
    a_file_sourced_by_a_subshell_is_added:
        "echo true > /tmp/x; (. /tmp/x; true)" => [("script_added", "/tmp/x")];
    the_input_of_a_command_is_data: "echo true > /tmp/x; cat < /tmp/x" => [];
    the_input_of_a_builtin_is_data:
        "echo true > /tmp/x; while read -r line; do echo $line; done < /tmp/x" => [];
    what_commands_open_is_data: "echo true > /tmp/x; cat /tmp/x" => [];
    an_image_file_that_was_changed_is_modified:
        "echo true > /bin/probe; sh /bin/probe" => [("image_file_modified", "/bin/probe"), ("script_modified", "/bin/probe")];
}

#[test]
fn a_sourced_file_is_less_severe() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let world = shared()?;
    for (line, severity) in [
        ("echo true > /tmp/x; . /tmp/x", "medium"),
        ("echo true > /tmp/x; sh /tmp/x", "high"),
    ] {
        let alerts = world.raised_by(BASE, line)?;
        let [alert] = alerts.as_slice() else {
            anyhow::bail!("{:?}", alerts.iter().map(summary).collect::<Vec<_>>());
        };
        ensure!(text(alert, "/severity") == Some(severity), "{alert:#}");
        ensure!(
            text(alert, "/process/executable") == Some("/bin/busybox"),
            "{alert:#}"
        );
    }
    Ok(())
}

#[test]
fn a_script_on_a_volume_is_told_as_such() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let world = shared()?;
    let directory = world.containerd.directory().join("scripts");
    fs::create_dir_all(&directory)?;
    let mount = format!(
        "type=bind,src={},dst=/volume,options=rbind:rw",
        directory.display()
    );
    for line in [
        "echo true > /volume/x; sh /volume/x",
        "printf '#!/bin/sh\\ntrue\\n' > /volume/x; chmod +x /volume/x; /volume/x",
    ] {
        let run = Run::new(BASE, world.unique("volume"))
            .flags(["--mount", mount.as_str()])
            .shell(line);
        let alerts = world.raised_by_run(&run)?;
        let raised: Vec<_> = alerts
            .iter()
            .map(|alert| (text(alert, "/kind"), text(alert, "/severity")))
            .collect();
        ensure!(
            raised == [(Some("script_volume"), Some("info"))],
            "{line}: {raised:?}"
        );
    }
    Ok(())
}
