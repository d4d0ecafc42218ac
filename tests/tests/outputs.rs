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
    containerd::{Containerd, Run, output},
    daemon::Daemon,
    image::{self, PROBE_PATH},
    poll::{PATIENCE, until},
    require,
    small::Small,
    world::{Alone, BASE},
};

const FILES: u32 = 40;

/// A daemon with outputs, and where they write to.
struct Node<'a> {
    containerd: &'a Containerd,
    directory: PathBuf,
}

impl Node<'_> {
    /// The outputs: name, kind, path.
    fn outputs(&self) -> [(&str, &str, PathBuf); 5] {
        let path = |name: &str| self.directory.join(name);
        [
            ("plain", "jsonl", path("plain.jsonl")),
            ("siem", "ocsf", path("siem.ocsf")),
            ("full", "jsonl", path("full/alerts")),
            ("absent", "ocsf", path("absent/alerts")),
            ("stdout", "jsonl", PathBuf::from("-")),
        ]
    }

    fn start(&self) -> Result<Daemon> {
        let config = self.directory.join("monitord.toml");
        let outputs = self.outputs().map(|(name, kind, path)| {
            format!("[[output]]\nname = '{name}'\nkind = '{kind}'\npath = {path:?}\n")
        });
        fs::create_dir_all(&self.directory)?;
        fs::write(&config, outputs.concat())?;
        let mut command = Daemon::command(&self.containerd.address(), &self.directory)?;
        command.arg("--config").arg(&config);
        let daemon = Daemon::spawn(&mut command, &self.directory)?;
        daemon.wait_ready()?;
        Ok(daemon)
    }

    /// Runs files that no image holds.
    fn run_files(&self, name: &str, count: u32) -> Result<()> {
        let line = format!(
            "i=0; while [ $i -lt {count} ]; do \
             {PROBE_PATH} run-copy /tmp/{name}$i salt$i sleep-ms 0; i=$((i+1)); done"
        );
        self.containerd
            .exec("sleeper", name, ["/bin/sh", "-c", &line])?;
        Ok(())
    }
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
    let _alone = Alone::wait();
    let containerd = Containerd::start()?;
    containerd.import(&image::base(BASE)?)?;
    let run = Run::new(BASE, "sleeper").arguments(["/bin/sleep", "600"]);
    containerd.start_container(&run)?;
    let node = Node {
        containerd: &containerd,
        directory: containerd.directory().join("monitord"),
    };
    let small = Small::mount(&node.directory.join("full"), 1 << 20)?;
    let filler = small.fill()?;

    // Killed in the middle of writing.
    let daemon = node.start()?;
    thread::scope(|scope| {
        let running = scope.spawn(|| node.run_files("many", FILES));
        until("some alerts to be written", PATIENCE, || {
            let count = written(&node.directory.join("plain.jsonl"), "jsonl")?.len();
            ensure!(count > 10, "{count} are written");
            Ok(())
        })?;
        daemon.kill()?;
        running.join().map_err(|_| anyhow::anyhow!("a panic"))?
    })?;

    // Those that cannot write stop neither the others nor the judging.
    let daemon = node.start()?;
    node.run_files("again", 10)?;
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
        let plain = written(&node.directory.join("plain.jsonl"), "jsonl")?;
        let last = |alert: &Value| text(alert, "/file/path") == Some("/tmp/again9");
        ensure!(plain.values().any(last), "{} are written", plain.len());
        Ok(())
    })?;

    fs::remove_file(filler)?;
    fs::create_dir(node.directory.join("absent"))?;
    for (name, kind, path) in node.outputs() {
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
