//! `monitord doctor` on this node.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::{alerts::text, containerd::Containerd, daemon::program, require};

/// What it said with `-o json`, and whether this node can be watched.
fn examine(containerd: &Path) -> Result<(Vec<Value>, bool)> {
    let output = Command::new(program("MONITORD", "monitord")?)
        .args(["doctor", "-o", "json", "--containerd"])
        .arg(containerd)
        .output()
        .context("starting monitord doctor")?;
    let lines = output.stdout.split(|byte| *byte == b'\n');
    let lines = lines.filter(|line| !line.is_empty());
    let lines = lines.map(|line| Ok(serde_json::from_slice(line)?));
    Ok((lines.collect::<Result<_>>()?, output.status.success()))
}

fn line<'a>(lines: &'a [Value], name: &str) -> Result<&'a Value> {
    let found = lines.iter().find(|line| text(line, "/name") == Some(name));
    found.with_context(|| format!("no line {name}: {lines:?}"))
}

fn length(line: &Value, pointer: &str) -> usize {
    let list = line.pointer(pointer).and_then(Value::as_array);
    list.map_or(0, Vec::len)
}

#[test]
fn a_node_without_the_v2_hierarchy_is_refused_with_the_reason() -> Result<()> {
    require!(Root, Containerd, Btf);
    let containerd = Containerd::start()?;
    let monitord = program("MONITORD", "monitord")?;
    let without_v2 = |line: &str| {
        let unmount = "mount --make-rprivate / && umount --all --lazy --types cgroup2 && exec";
        let mut command = Command::new("unshare");
        command.args([
            "--mount",
            "--pid",
            "--fork",
            "--mount-proc",
            "sh",
            "-c",
            &format!("{unmount} {line}"),
            "sh",
        ]);
        command.arg(&monitord).arg(containerd.address());
        command.output().context("starting monitord elsewhere")
    };
    let reasons = ["cgroup v1 only", "no cgroup v2 hierarchy is mounted"];
    for line in [
        r#""$1" doctor --containerd "$2""#,
        r#""$1" run --containerd "$2" --state /dev/null/none"#,
    ] {
        let output = without_v2(line)?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        ensure!(!output.status.success(), "{said}");
        ensure!(reasons.iter().any(|reason| said.contains(reason)), "{said}");
    }
    Ok(())
}

#[test]
fn every_kind_of_event_has_its_hook_and_what_it_does_not_see() -> Result<()> {
    require!(Root, Containerd, Btf);
    let containerd = Containerd::start()?;
    let (lines, can_watch) = examine(&containerd.address())?;
    ensure!(can_watch, "{lines:?}");
    for kind in ["exec", "code", "open", "source", "fork", "exit", "connect"] {
        let line = line(&lines, &format!("hook.{kind}"))?;
        let set = text(line, "/finding").unwrap_or_default();
        ensure!(["lsm", "fentry", "tracepoint"].contains(&set), "{line}");
        ensure!(
            length(line, "/reasons") > 0
                || set == "lsm"
                || kind == "fork"
                || kind == "exit"
                || kind == "source",
            "nothing says why there is nothing better: {line}"
        );
    }
    let open = line(&lines, "hook.open")?;
    ensure!(length(open, "/not_seen") > 0, "{open}");
    Ok(())
}

#[test]
fn a_node_without_containerd_cannot_be_watched() -> Result<()> {
    require!(Root, Btf);
    let (lines, can_watch) = examine(Path::new("/nonexistent/containerd.sock"))?;
    ensure!(!can_watch, "{lines:?}");
    let containerd = line(&lines, "containerd")?;
    ensure!(text(containerd, "/state") == Some("failed"), "{containerd}");
    let finding = text(containerd, "/finding").unwrap_or_default();
    ensure!(finding.contains("--containerd"), "{finding}");
    Ok(())
}
