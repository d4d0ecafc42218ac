//! The cost and the account of connects, by the daemon's own figures.
#![expect(clippy::indexing_slicing, reason = "a test fails by panicking")]

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::{
    alerts::text,
    containerd::Run,
    daemon::check_balance,
    require,
    world::{BASE, World},
};

/// What became of connects so far; fails if a run of the hook is missing in it.
fn account(world: &World) -> Result<[u64; 3]> {
    let hook = world.daemon.hook("connect")?;
    let count = |name: &str| {
        let count = hook.get(name).and_then(Value::as_u64);
        count.with_context(|| format!("{name}: {hook}"))
    };
    check_balance(&hook)?;
    Ok([
        count("remembered")?,
        count("submitted")?,
        count("ring_full")?,
    ])
}

#[test]
fn a_peer_is_told_a_few_times_and_then_remembered() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    const TIMES: u64 = 1_000_000;
    let world = World::start()?;
    let before = account(&world)?;
    let line = format!("probe send-often {TIMES} 192.0.2.1 9");
    ensure!(world.raised_by(BASE, &line)?.is_empty(), "an alert");
    let after = account(&world)?;
    let [remembered, submitted, full] = [0, 1, 2].map(|of| after[of] - before[of]);
    println!("{TIMES} sends: {remembered} remembered, {submitted} submitted, {full} lost");
    ensure!(remembered + submitted >= TIMES && full == 0, "{full} lost");
    // The containers of the test itself and others of the machine reach for peers as well.
    ensure!(submitted < 100, "{submitted} submitted");
    Ok(())
}

#[test]
fn a_flood_of_peers_costs_no_exec() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let world = World::start()?;
    let line =
        "probe send-ports 192.0.2.1; probe send-ports 192.0.2.2; probe run-copy /tmp/x salt true";
    let alerts = world.raised_by(BASE, line)?;
    let kinds: Vec<_> = alerts
        .iter()
        .filter_map(|alert| text(alert, "/kind"))
        .collect();
    // What was lost of the flood is told, in as many gaps as it took.
    let others: Vec<_> = kinds
        .iter()
        .filter(|kind| **kind != "coverage_gap")
        .collect();
    ensure!(others == [&"exec_added"], "{kinds:?}");
    let [remembered, submitted, full] = account(&world)?;
    println!("{remembered} remembered, {submitted} submitted, {full} lost");
    Ok(())
}

#[test]
fn what_came_of_a_connect_is_told() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    const METADATA: &str = "169.254.169.254";
    let world = World::start()?;
    let check = |line: &str, expect: &str| {
        let line =
            format!("busybox ip link set lo up; busybox ip addr add {METADATA}/32 dev lo; {line}");
        let run = Run::new(BASE, world.unique("connects"))
            .flags(["--cap-add", "CAP_NET_ADMIN"])
            .shell(&line);
        let alerts = world.raised_by_run(&run)?;
        let newest = alerts.last().context("no alert")?;
        let result = text(newest, "/details/result");
        ensure!(result == Some(expect), "{line}: {result:?}: {alerts:#?}");
        ensure!(
            text(newest, "/id") == text(&alerts[0], "/id"),
            "another alert: {alerts:#?}"
        );
        Ok(())
    };
    check(&format!("probe connect {METADATA} 80"), "refused")?;
    check(&format!("probe connect-itself {METADATA} 80"), "connected")
}
