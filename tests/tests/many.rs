//! Many containers in a short time: every one is attributed, none twice.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::Value;
use tests::{
    alerts::text,
    containerd::Run,
    image::{PROBE, PROBE_PATH},
    layer::sha256,
    require,
    world::{BASE, World},
};

const CONTAINERS: usize = 200;
const AT_ONCE: usize = 4;

#[test]
fn two_hundred_containers_give_two_hundred_alerts() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let world = World::start()?;
    let next = AtomicUsize::new(0);
    let worker = || -> Result<()> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= CONTAINERS {
                return Ok(());
            }
            let id = format!("many-{number}");
            let copy = [PROBE_PATH, "run-copy", "/tmp/x", &id, "sleep-ms", "0"];
            world
                .containerd
                .run_ok(&Run::new(BASE, &id).arguments(copy))?;
        }
    };
    thread::scope(|scope| -> Result<()> {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(worker)).collect();
        for worker in workers {
            worker.join().map_err(|_| anyhow!("a worker panicked"))??;
        }
        Ok(())
    })?;
    world.settle()?;

    let mut alerts: BTreeMap<String, u32> = (0..CONTAINERS)
        .map(|number| (format!("many-{number}"), 0))
        .collect();
    for alert in world.alerts.all() {
        let id = text(&alert, "/container/id").unwrap_or("none");
        if id.starts_with("marker-") {
            continue;
        }
        let once = alert.get("count").and_then(Value::as_u64) == Some(1);
        ensure!(
            text(&alert, "/kind") == Some("exec_added") && once,
            "{alert:#}"
        );
        *alerts.entry(id.to_owned()).or_insert(0) += 1;
    }
    alerts.retain(|id, count| *count != 1 || !id.starts_with("many-"));
    ensure!(
        alerts.is_empty(),
        "containers with another number of alerts than 1: {alerts:?}"
    );

    // Each container wrote other bytes, so a hash tells which file was read.
    for number in [0, CONTAINERS / 2, CONTAINERS - 1] {
        let id = format!("many-{number}");
        let alert = world.alerts.of(&id).pop().context("an alert")?;
        let bytes = [PROBE, id.as_bytes()].concat();
        match text(&alert, "/file/hash_state") {
            Some("done") => ensure!(
                text(&alert, "/file/seen_sha256") == Some(sha256(&bytes).as_str()),
                "{alert:#}"
            ),
            Some("gone") => ensure!(text(&alert, "/file/seen_sha256").is_none(), "{alert:#}"),
            _ => anyhow::bail!("neither done nor gone: {alert:#}"),
        }
    }
    Ok(())
}
