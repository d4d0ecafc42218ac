//! Alerts outlive the daemon and a full disk, in the real daemon.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::{
    alerts::text,
    containerd::{Containerd, Run},
    daemon::Daemon,
    image::{self, PROBE_PATH},
    poll::{PATIENCE, until},
    require,
    small::Small,
    world::{Alone, BASE},
};

/// A daemon with a container in which new files can be run.
struct Node {
    containerd: Containerd,
    directory: PathBuf,
    _alone: Alone,
}

impl Node {
    fn start() -> Result<Self> {
        let alone = Alone::wait()?;
        let containerd = Containerd::start()?;
        containerd.import(&image::base(BASE)?)?;
        let run = Run::new(BASE, "sleeper").arguments(["/bin/sleep", "600"]);
        containerd.start_container(&run)?;
        Ok(Self {
            directory: containerd.directory().join("monitord"),
            containerd,
            _alone: alone,
        })
    }

    fn daemon(&self) -> Result<Daemon> {
        Daemon::start(&self.containerd.address(), &self.directory)
    }

    /// Runs a file that no image holds, so often, and waits for its alert.
    fn raise(&self, daemon: &Daemon, name: &str, times: u32) -> Result<Value> {
        let path = format!("/tmp/{name}");
        for time in 0..times {
            let id = format!("{name}-{time}");
            let copy = [PROBE_PATH, "run-copy", &path, "salt", "sleep-ms", "20"];
            self.containerd.exec("sleeper", &id, copy)?;
        }
        until("the alert", PATIENCE, || last(daemon, name).map(drop))?;
        last(daemon, name)
    }
}

/// The last revision of the alert of a file.
fn last(daemon: &Daemon, name: &str) -> Result<Value> {
    let path = format!("/tmp/{name}");
    let mut alerts = all(daemon)?;
    alerts.retain(|alert| text(alert, "/file/path") == Some(path.as_str()));
    alerts.pop().with_context(|| format!("no alert of {path}"))
}

fn all(daemon: &Daemon) -> Result<Vec<Value>> {
    daemon.monitorctl(["alerts", "--since", "0"])
}

fn cursors(alerts: &[Value]) -> Vec<u64> {
    let cursors = alerts.iter().filter_map(|alert| text(alert, "/cursor"));
    cursors.filter_map(|cursor| cursor.parse().ok()).collect()
}

#[test]
fn alerts_and_cursors_go_on_after_the_daemon_was_killed_or_stopped() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let node = Node::start()?;
    let mut before: Vec<Value> = Vec::new();
    for round in 0..3 {
        let daemon = node.daemon()?;
        let kept = all(&daemon)?;
        ensure!(
            kept.get(..before.len()) == Some(before.as_slice()),
            "{kept:#?} does not go on from {before:#?}"
        );
        node.raise(&daemon, &format!("x{round}"), 1)?;
        before = all(&daemon)?;
        let expect: Vec<u64> = (1..).take(before.len()).collect();
        ensure!(cursors(&before) == expect, "{before:#?}");
        // With its journal a cursor is told from one of another.
        let journal = before.first().and_then(|alert| text(alert, "/journal"));
        let since = format!("{}/{}", journal.context("a journal")?, expect.len() - 1);
        let last = daemon.monitorctl(["alerts", "--since", &since])?;
        ensure!(
            last == before.get(before.len() - 1..).unwrap_or_default(),
            "{last:#?}"
        );
        let of_round = format!("file.path == '/tmp/x{round}'");
        let filtered = daemon.monitorctl(["alerts", "--since", "0", "--filter", &of_round])?;
        ensure!(filtered.len() == 1, "{filtered:#?}");
        if round == 0 {
            daemon.kill()?;
        } else {
            ensure!(daemon.stop()?.success(), "{}", daemon.log());
        }
    }
    Ok(())
}

#[test]
fn repeats_are_counted_in_one_alert_over_a_restart() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let node = Node::start()?;
    let daemon = node.daemon()?;
    let first = node.raise(&daemon, "again", 5)?;
    // A stop tells what was counted.
    ensure!(daemon.stop()?.success(), "{}", daemon.log());
    let daemon = node.daemon()?;
    let kept = node.raise(&daemon, "again", 1)?;
    ensure!(text(&kept, "/id") == text(&first, "/id"), "{kept:#}");
    ensure!(
        kept.get("count").and_then(Value::as_u64) == Some(5),
        "{kept:#}"
    );
    until("a revision with the sixth", PATIENCE, || {
        let last = last(&daemon, "again")?;
        ensure!(
            last.get("count").and_then(Value::as_u64) == Some(6),
            "{last:#}"
        );
        Ok(())
    })
}

#[test]
fn a_full_disk_stops_no_alert_and_is_told() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let node = Node::start()?;
    let state = node.directory.join("state");
    let small = Small::mount(&state, 8 << 20)?;
    let daemon = node.daemon()?;
    node.raise(&daemon, "before", 1)?;

    let filler = small.fill()?;
    let mut raised = 0;
    until("the journal to be full", PATIENCE, || {
        raised += 1;
        node.raise(&daemon, &format!("full{raised}"), 1)?;
        let status = daemon.status()?;
        ensure!(text(&status, "/alerts/memory_only").is_some(), "{status:#}");
        Ok(())
    })?;
    ensure!(
        daemon.full_log().contains("cannot write the journal"),
        "{}",
        daemon.log()
    );
    node.raise(&daemon, "in-memory", 1)?;

    fs::remove_file(&filler)?;
    until("the journal to be written again", PATIENCE, || {
        let status = daemon.status()?;
        let newest = text(&status, "/alerts/newest_cursor");
        ensure!(
            text(&status, "/alerts/memory_only").is_none()
                && text(&status, "/alerts/durable_cursor") == newest,
            "{status:#}"
        );
        Ok(())
    })?;
    let before = all(&daemon)?;
    daemon.kill()?;
    let daemon = node.daemon()?;
    let kept = all(&daemon)?;
    ensure!(
        kept.get(..before.len()) == Some(before.as_slice()),
        "{kept:#?} is not {before:#?}"
    );
    Ok(())
}
