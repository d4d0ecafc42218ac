//! Alerts are written to files and standard output beside the API, all of them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::{
    alerts::text,
    daemon::Daemon,
    poll::{PATIENCE, until},
    process::output,
    require,
    sleeper::Sleeper,
    small::Small,
};

const FILES: u32 = 40;

/// The outputs in a directory: name, kind, path.
fn outputs(directory: &Path) -> [(&str, &str, PathBuf); 5] {
    let path = |name: &str| directory.join(name);
    [
        ("plain", "jsonl", path("plain.jsonl")),
        ("siem", "ocsf", path("siem.ocsf")),
        ("full", "jsonl", path("full/alerts")),
        ("absent", "ocsf", path("absent/alerts")),
        ("stdout", "jsonl", PathBuf::from("-")),
    ]
}

fn start(sleeper: &Sleeper) -> Result<Daemon> {
    let directory = sleeper.directory();
    let config = outputs(&directory).map(|(name, kind, path)| {
        format!("[[output]]\nname = '{name}'\nkind = '{kind}'\npath = {path:?}\n")
    });
    sleeper.daemon(&config.concat())
}

/// What the daemon says of an output.
fn output_status(daemon: &Daemon, name: &str) -> Result<Value> {
    let status = daemon.status()?;
    let outputs = status.get("outputs").and_then(Value::as_array);
    let mut outputs = outputs.into_iter().flatten();
    let found = outputs.find(|output| text(output, "/name") == Some(name));
    found.cloned().with_context(|| format!("{status:#}"))
}

fn lines(text: &str) -> Result<Vec<Value>> {
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}")))
        .collect()
}

/// The lines of a file by their cursor; those that are there twice must be the same.
fn written(path: &Path, kind: &str) -> Result<BTreeMap<u64, Value>> {
    let mut found = BTreeMap::new();
    for line in lines(&fs::read_to_string(path)?)? {
        let cursor = if kind == "ocsf" {
            line.pointer("/metadata/sequence").and_then(Value::as_u64)
        } else {
            text(&line, "/cursor").and_then(|cursor| cursor.parse().ok())
        };
        let cursor = cursor.with_context(|| format!("no cursor: {line}"))?;
        if let Some(other) = found.insert(cursor, line.clone()) {
            ensure!(other == line, "{other} and {line}");
        }
    }
    Ok(found)
}

fn said(daemon: &Daemon, kind: &str) -> Result<Vec<Value>> {
    let format = if kind == "ocsf" { "ocsf" } else { "json" };
    let mut command = daemon.monitorctl_command()?;
    lines(&output(
        command.args(["alerts", "--since", "0", "-o", format]),
    )?)
}

#[test]
fn outputs_have_every_alert_after_a_kill_and_after_they_could_not_write() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let sleeper = Sleeper::start()?;
    let directory = sleeper.directory();
    let small = Small::mount(&directory.join("full"), 1 << 20)?;
    let filler = small.fill()?;

    // Killed in the middle of writing.
    let daemon = start(&sleeper)?;
    thread::scope(|scope| {
        let running = scope.spawn(|| sleeper.run_files("many", FILES));
        until("some alerts to be written", PATIENCE, || {
            let count = written(&directory.join("plain.jsonl"), "jsonl")?.len();
            ensure!(count > 10, "{count} are written");
            Ok(())
        })?;
        daemon.kill()?;
        running.join().map_err(|_| anyhow::anyhow!("a panic"))?
    })?;

    // Those that cannot write stop neither the others nor the judging.
    let daemon = start(&sleeper)?;
    sleeper.run_files("again", 10)?;
    for name in ["full", "absent"] {
        until("the failure to be told", PATIENCE, || {
            let status = output_status(&daemon, name)?;
            let error = text(&status, "/error").unwrap_or_default();
            ensure!(error.contains("cannot write"), "{status:#}");
            ensure!(text(&status, "/failing_since").is_some(), "{status:#}");
            Ok(())
        })?;
    }
    until("the last alert to be written", PATIENCE, || {
        let plain = written(&directory.join("plain.jsonl"), "jsonl")?;
        let last = |alert: &Value| text(alert, "/file/path") == Some("/tmp/again9");
        ensure!(plain.values().any(last), "{} are written", plain.len());
        Ok(())
    })?;

    fs::remove_file(filler)?;
    fs::create_dir(directory.join("absent"))?;
    for (name, kind, path) in outputs(&directory) {
        until("an output to be complete", PATIENCE, || {
            let status = output_status(&daemon, name)?;
            let newest = daemon.newest_cursor()?.to_string();
            ensure!(text(&status, "/cursor") == Some(&newest), "{status:#}");
            ensure!(status.get("missing") == Some(&0.into()), "{status:#}");
            ensure!(text(&status, "/error").is_none(), "{status:#}");
            if name == "stdout" {
                return Ok(());
            }
            let found: Vec<Value> = written(&path, kind)?.into_values().collect();
            let expect = said(&daemon, kind)?;
            ensure!(
                found == expect && found.len() > 20,
                "{name} has {} of {}: {found:#?} {expect:#?}",
                found.len(),
                expect.len()
            );
            Ok(())
        })?;
    }
    // Its log goes there as well.
    let log = daemon.full_log();
    let last = said(&daemon, "jsonl")?.pop().context("no alert")?;
    let is_last = |line: &str| serde_json::from_str(line).is_ok_and(|line: Value| line == last);
    ensure!(log.lines().any(is_last), "{log}");
    ensure!(daemon.stop()?.success(), "{}", daemon.log());
    Ok(())
}
