//! How long a new program of one container waits to be judged while another floods the daemon with
//! alerts.

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;

use super::figures::quantile;
use crate::{
    alerts::text,
    containerd::Run,
    poll::{PATIENCE, until},
    world::{BASE, World},
};

/// New programs that are executed.
const EXECS: usize = 50;
/// Opens of the flood, each an alert of its own, as fast as it can.
const OPENS: &str = "300000";
const UNBOUNDED: &str = "1000000000";

pub(super) fn run() -> Result<()> {
    let world = World::start()?;
    println!("milliseconds from the exec of a new program to its judging, {EXECS} execs");
    println!("                    p50     p99");
    for is_flooded in [false, true] {
        let mut waited = measure(&world, is_flooded)?;
        let [p50, p99] = [0.5, 0.99].map(|part| quantile(&mut waited, part));
        let name = if is_flooded { "a flood" } else { "nothing" };
        println!("  beside {name:7} {p50:7.1} {p99:7.1}");
    }
    Ok(())
}

fn measure(world: &World, is_flooded: bool) -> Result<Vec<f64>> {
    let flood = ["probe", "open-credentials", OPENS, UNBOUNDED, "/dev/shm"];
    let flood = Run::new(BASE, world.unique("flood")).arguments(flood);
    if is_flooded {
        world.containerd.start_container(&flood)?;
    }
    let other = world.unique("other");
    let line = format!(
        "i=0; while [ $i -lt {EXECS} ]; do probe run-copy /tmp/x$i $i true; i=$((i+1)); done"
    );
    world
        .containerd
        .run_ok(&Run::new(BASE, &other).shell(&line))?;
    let filter = format!("container.id == \"{other}\" && kind == \"exec_added\"");
    let alerts = until("the alerts of the other", PATIENCE, || {
        let asked = ["alerts", "--since", "0", "--filter", &filter];
        let alerts = world.daemon.monitorctl(asked)?;
        ensure!(alerts.len() == EXECS, "{} of {EXECS}", alerts.len());
        Ok(alerts)
    })?;
    if is_flooded {
        world.containerd.delete(&flood.id)?;
    }
    let waited = alerts.iter().map(|alert| {
        let time = |name| -> Result<Timestamp> {
            Ok(text(alert, name)
                .context("an alert without times")?
                .parse()?)
        };
        let wait = time("/observed_time")?.duration_since(time("/time")?);
        Ok(wait.as_secs_f64() * 1000.0)
    });
    waited.collect()
}
