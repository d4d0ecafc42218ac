//! A node gives its alerts to a collector that it calls.

use std::net::{SocketAddr, TcpListener};

use anyhow::{Result, ensure};
use tests::{
    alerts::text,
    collector::Store,
    daemon::Daemon,
    poll::{PATIENCE, until},
    require,
    served::{certificates, section},
    sleeper::Sleeper,
};

/// Alerts between two restarts.
const FILES: u32 = 20;

fn start(sleeper: &Sleeper, address: SocketAddr) -> Result<Daemon> {
    let trusted = sleeper.containerd.directory().join("trusted");
    sleeper.daemon(&section("collector", address, &trusted))
}

/// Waits until the daemon has raised so many alerts.
fn wait_raised(daemon: &Daemon, least: u32) -> Result<u64> {
    until("the alerts to be raised", PATIENCE, || {
        let newest = daemon.newest_cursor()?;
        ensure!(newest >= u64::from(least), "{newest} alerts only");
        Ok(newest)
    })
}

/// Waits until the collector has what the daemon has raised, at least so many.
fn wait_all(daemon: &Daemon, store: &Store, least: u32) -> Result<()> {
    until("the collector to have every alert", PATIENCE, || {
        let newest = wait_raised(daemon, least)?;
        let stored = store.look();
        let every: Vec<u64> = (1..=newest).collect();
        ensure!(stored.cursors == every, "{:?} of {newest}", stored.cursors);
        Ok(())
    })
}

/// Waits until the daemon says why it does not reach its collector.
fn wait_told(daemon: &Daemon, part: &str) -> Result<()> {
    until("the reason to be told", PATIENCE, || {
        let status = daemon.status()?;
        let error = text(&status, "/collector/error").unwrap_or_default();
        ensure!(error.contains(part), "{error}");
        Ok(())
    })
}

#[test]
fn a_collector_that_is_called_has_every_alert_once_and_in_order() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let sleeper = Sleeper::start()?;
    let (trusted, other) = ["trusted", "other"]
        .map(|name| sleeper.containerd.directory().join(name))
        .into();
    certificates(&trusted)?;
    certificates(&other)?;
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let store = Store::default();

    let running = start(&sleeper, address)?;
    wait_told(&running, "refused")?;
    sleeper.run_files("first", FILES)?;
    let stranger = store.serve(address, &other)?;
    wait_told(&running, "certificate")?;
    stranger.stop()?;
    ensure!(store.look().nodes.is_empty(), "{:?}", store.look());

    let collector = store.serve(address, &trusted)?;
    wait_all(&running, &store, FILES)?;
    let status = running.status()?;
    let connected = status.pointer("/collector/connected");
    ensure!(connected == Some(&true.into()), "{status:#}");
    sleeper.run_files("second", FILES)?;
    collector.stop()?;
    sleeper.run_files("third", FILES)?;
    wait_raised(&running, 3 * FILES)?;
    running.kill()?;
    let running = start(&sleeper, address)?;
    let collector = store.serve(address, &trusted)?;
    sleeper.run_files("fourth", FILES)?;
    wait_all(&running, &store, 4 * FILES)?;
    ensure!(running.stop()?.success(), "{}", running.log());
    collector.stop()?;
    let stored = store.look();
    let nodes: Vec<&str> = stored.nodes.iter().map(String::as_str).collect();
    ensure!(nodes == ["test-node"], "{nodes:?}");
    Ok(())
}
