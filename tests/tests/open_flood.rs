//! Many opens: what repeats costs nothing, and what is lost is counted.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::{
    alerts::text,
    containerd::Run,
    daemon::check_balance,
    flood, require,
    world::{BASE, World},
};

fn number(account: &Value, name: &str) -> Result<u64> {
    account
        .get(name)
        .and_then(Value::as_u64)
        .with_context(|| format!("{name} of {account}"))
}

#[test]
fn a_million_opens_of_one_file_are_a_handful_of_events() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let world = World::start()?;
    world.settle()?;
    let before = world.daemon.hook("open")?;
    let id = world.unique("million");
    let line = ["probe", "open-repeat", "1000000", "/bin/busybox"];
    world
        .containerd
        .run_ok(&Run::new(BASE, &id).arguments(line))?;
    world.settle()?;
    let after = world.daemon.hook("open")?;
    let grown = |name: &str| -> Result<u64> { Ok(number(&after, name)? - number(&before, name)?) };
    ensure!(grown("remembered")? > 990_000, "{before} {after}");
    // The file itself, and what the container's start and the two markers open.
    ensure!(grown("submitted")? < 1_000, "{before} {after}");
    ensure!(
        grown("ring_full")? == 0 && grown("map_full")? == 0 && grown("unreadable")? == 0,
        "{before} {after}"
    );
    println!(
        "1,000,000 opens of one file: {} events of all containers",
        grown("submitted")?
    );
    Ok(())
}

#[test]
fn a_flood_of_opens_is_accounted_for_and_costs_no_exec() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let world = World::start()?;
    world.settle()?;
    let id = world.unique("flood");
    // More files than the kernel side remembers, so that each open is told.
    let line = "probe open-many 100000 10 /dev/shm & i=0
         while [ $i -lt 20 ]; do probe run-copy /tmp/x$i $i true; i=$((i+1)); done; wait";
    let raised = world.raised_by_run(&Run::new(BASE, &id).shell(line))?;
    let added = |alert: &&Value| text(alert, "/kind") == Some("exec_added");
    ensure!(raised.iter().filter(added).count() == 20, "{raised:#?}");
    let account = world.daemon.hook("open")?;
    check_balance(&account)?;
    println!(
        "1,100,000 opens of 100,000 files: {} told, {} lost and counted",
        number(&account, "submitted")?,
        number(&account, "ring_full")?
    );
    Ok(())
}

#[test]
fn a_flood_of_one_container_does_not_delay_the_alerts_of_another() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let figures = flood::run(20)?;
    println!("{figures}");
    // Seconds, before uses had their turn by container; a machine that is busy otherwise takes some.
    let [_, _, longest] = figures.flooded_ms;
    ensure!(longest < 1_000.0, "{figures}");
    ensure!(figures.alerts > 100, "no flood: {figures}");
    Ok(())
}
