//! Alerts are published to NATS JetStream, each of them once.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::{
    alerts::text,
    daemon::Daemon,
    nats::{Nats, STREAM, Stored},
    poll::{PATIENCE, until},
    process::output,
    require,
    sleeper::Sleeper,
};

/// So long JetStream knows a message again by its id.
const WINDOW: Duration = Duration::from_millis(500);

/// Longer than that.
const PAUSE: Duration = Duration::from_millis(1500);

fn start(sleeper: &Sleeper, nats: &Nats, is_safe: bool) -> Result<Daemon> {
    let (scheme, directory) = (if is_safe { "tls" } else { "nats" }, nats.directory());
    let address = nats.address();
    let mut config = format!(
        "cluster = 'test.one'\n[[output]]\nname = 'fleet'\nkind = 'jsonl'\n[output.nats]\n\
         url = '{scheme}://{address}'\nstream = '{STREAM}'\n"
    );
    if is_safe {
        let (ca, credentials) = (directory.join("ca.crt"), directory.join("credentials"));
        config += &format!("ca = {ca:?}\ncredentials = {credentials:?}\n");
    }
    sleeper.daemon(&config)
}

fn status(daemon: &Daemon) -> Result<Value> {
    let status = daemon.status()?;
    let found = status.pointer("/outputs/0").cloned();
    found.with_context(|| format!("{status:#}"))
}

/// Waits until the stream has what the daemon has.
fn wait_all(daemon: &Daemon) -> Result<Value> {
    until("the stream to have all", PATIENCE, || {
        let status = status(daemon)?;
        let newest = daemon.newest_cursor()?.to_string();
        ensure!(text(&status, "/cursor") == Some(&newest), "{status:#}");
        ensure!(text(&status, "/error").is_none(), "{status:#}");
        Ok(status)
    })
}

fn wait_error(daemon: &Daemon, part: &str) -> Result<()> {
    until("the failure to be told", PATIENCE, || {
        let status = status(daemon)?;
        let error = text(&status, "/error").unwrap_or_default();
        ensure!(error.contains(part), "{status:#}");
        Ok(())
    })
}

fn journal(daemon: &Daemon) -> Result<Vec<Value>> {
    let mut command = daemon.monitorctl_command()?;
    let said = output(command.args(["alerts", "--since", "0", "-o", "json"]))?;
    said.lines()
        .map(|line| Ok(serde_json::from_str(line)?))
        .collect()
}

/// Waits until the stream has what the journal has, which alerts may still come to: what is in the stream
/// twice, not at all or in another order stays so. Gives both.
fn wait_same(daemon: &Daemon, nats: &Nats) -> Result<(Vec<Stored>, Vec<Value>)> {
    until("the stream to be as the journal", PATIENCE, || {
        let (stored, journal) = (nats.stored()?, journal(daemon)?);
        check_same(&stored, &journal)?;
        Ok((stored, journal))
    })
}

/// Each alert of the journal is in the stream once, in order.
fn check_same(stored: &[Stored], journal: &[Value]) -> Result<()> {
    let ids: Vec<&str> = stored.iter().map(|message| message.id.as_str()).collect();
    let expect: Vec<String> = journal
        .iter()
        .map(|alert| {
            Some(format!(
                "{}/{}",
                text(alert, "/journal")?,
                text(alert, "/cursor")?
            ))
        })
        .collect::<Option<_>>()
        .context("no cursor")?;
    ensure!(ids == expect, "{ids:#?}");
    for (message, alert) in stored.iter().zip(journal) {
        ensure!(message.payload == *alert, "{message:#?} {alert:#}");
        let node = text(alert, "/node").context("no node")?.replace('.', "%2E");
        let severity = text(alert, "/severity").context("no severity")?;
        let subject = format!("monitord.alerts.test%2Eone.{node}.{severity}");
        ensure!(message.subject == subject, "{} {subject}", message.subject);
    }
    Ok(())
}

#[test]
fn each_alert_is_in_the_stream_once() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf, NatsServer);
    let sleeper = Sleeper::start()?;
    let nats = Nats::start()?;

    let daemon = start(&sleeper, &nats, false)?;
    sleeper.run_files("first", 2)?;
    wait_error(
        &daemon,
        "stream ALERTS is not there; have one with subjects monitord.alerts.>",
    )?;
    nats.stream("CREATE", WINDOW, &json!({}))?;
    wait_all(&daemon)?;

    let (is_over, rounds) = (AtomicBool::new(false), AtomicU32::new(0));
    let daemon = thread::scope(|scope| {
        let load = scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let round = rounds.fetch_add(1, Ordering::Relaxed);
                sleeper.run_files(&format!("load{round}x"), 20)?;
            }
            anyhow::Ok(())
        });
        let ended = interrupt(&sleeper, &nats, daemon);
        is_over.store(true, Ordering::Relaxed);
        load.join().map_err(|_| anyhow::anyhow!("a panic"))??;
        ended
    })?;
    let (stored, alerts) = wait_same(&daemon, &nats)?;
    let end = status(&daemon)?;
    println!(
        "{} alerts; {} messages; {} failures of the last daemon; {} files run under load",
        alerts.len(),
        stored.len(),
        end.get("failures").unwrap_or(&Value::Null),
        rounds.load(Ordering::Relaxed) * 20
    );
    ensure!(alerts.len() > 40, "{} alerts", alerts.len());
    ensure!(daemon.stop()?.success(), "{}", daemon.log());

    // It has lost what it had acknowledged, and speaks TLS now.
    for message in nats.stored()?.iter().rev().take(5) {
        nats.delete(message.sequence)?;
    }
    nats.stop()?;
    nats.run(true)?;
    let daemon = start(&sleeper, &nats, true)?;
    sleeper.run_files("safe", 5)?;
    wait_all(&daemon)?;
    ensure!(daemon.stop()?.success(), "{}", daemon.log());
    nats.stop()?;
    nats.run(false)?;
    let daemon = start(&sleeper, &nats, false)?;
    let (_, alerts) = wait_same(&daemon, &nats)?;
    ensure!(daemon.stop()?.success(), "{}", daemon.log());
    let last = alerts.last().and_then(|alert| text(alert, "/cursor"));
    tells_what_it_cannot_have(&sleeper, &nats, last.context("no alert")?)
}

/// The server is killed and ended, for longer than the window, and the daemon is killed.
fn interrupt(sleeper: &Sleeper, nats: &Nats, daemon: Daemon) -> Result<Daemon> {
    let mut daemon = daemon;
    for round in 0..3 {
        let before = daemon.newest_cursor()?;
        until("some alerts under way", PATIENCE, || {
            let newest = daemon.newest_cursor()?;
            ensure!(newest > before + 10, "{newest}");
            Ok(())
        })?;
        match round {
            // The daemon alone, while it publishes.
            0 => {}
            1 => nats.stop()?,
            _ => nats.kill()?,
        }
        if round != 2 {
            daemon.kill()?;
        }
        // No state to wait for: the window has to pass.
        thread::sleep(PAUSE);
        if round != 2 {
            daemon = start(sleeper, nats, false)?;
        } else {
            wait_error(&daemon, "cannot write nats://")?;
        }
        if round > 0 {
            nats.run(false)?;
        }
    }
    Ok(daemon)
}

/// Alerts too long for the stream, and that another journal has begun.
fn tells_what_it_cannot_have(sleeper: &Sleeper, nats: &Nats, last: &str) -> Result<()> {
    fs::remove_dir_all(state(&sleeper.directory())?)?;
    let before = nats.stored()?;
    nats.stream("UPDATE", WINDOW, &json!({"max_msg_size": 800}))?;
    let daemon = start(sleeper, nats, false)?;
    sleeper.run_files("long", 3)?;
    let (stored, alerts) = until("all to be told as missing", PATIENCE, || {
        let status = wait_all(&daemon)?;
        let stored = nats.stored()?.split_off(before.len());
        let alerts = daemon.newest_cursor()?;
        ensure!(status.get("missing") == Some(&alerts.into()), "{status:#}");
        ensure!(
            stored.len() as u64 == alerts + 1 && alerts >= 3,
            "{stored:#?}"
        );
        Ok((stored, alerts))
    })?;
    let (told, long) = stored.split_first().context("nothing is stored")?;
    let journal = text(&told.payload, "/journal").context("no journal")?;
    let reason = |message: &Stored| text(&message.payload, "/missing/reason").map(str::to_owned);
    ensure!(
        reason(told).as_deref() == Some("journal_changed"),
        "{told:#?}"
    );
    ensure!(
        before
            .iter()
            .any(|message| message.id == format!("{journal}/{last}")),
        "{told:#?}"
    );
    ensure!(
        told.id.ends_with("/0") && told.subject.ends_with(".missing"),
        "{told:#?}"
    );
    ensure!(long.len() as u64 == alerts, "{long:#?}");
    ensure!(
        long.iter()
            .all(|message| reason(message).as_deref() == Some("too_long")),
        "{long:#?}"
    );
    ensure!(daemon.stop()?.success(), "{}", daemon.log());
    Ok(())
}

/// Where a daemon in `directory` keeps its journal.
fn state(directory: &Path) -> Result<std::path::PathBuf> {
    let state = directory.join("state/journal");
    ensure!(state.is_dir(), "no journal in {}", state.display());
    Ok(state)
}
