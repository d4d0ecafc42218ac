//! containerd and the daemon come and go; containers and alerts stay.

use std::{fs, os::unix::fs::PermissionsExt as _};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::{
    alerts::text,
    containerd::{Containerd, Run},
    daemon::Daemon,
    image::{self, PROBE_PATH},
    poll::{PATIENCE, until},
    require,
    world::{Alone, BASE, World},
};

/// Runs a new file again and again, until it is told to stop; then says how many there were.
/// Bounded, so that it ends when nobody tells it.
const BUSY: &str = "i=0
while [ ! -e /volume/stop ] && [ $i -lt 2000 ]; do
    i=$((i+1)); cp /bin/probe /tmp/x; echo $i >> /tmp/x; mv /tmp/x /tmp/x$i; /tmp/x$i sleep-ms 50
    rm /tmp/x$i; echo $i > /volume/$ID.new; mv /volume/$ID.new /volume/$ID
done; touch /volume/$ID.done";

fn start_busy(containerd: &Containerd, id: &str) -> Result<()> {
    let volume = containerd.directory().join("volume");
    fs::create_dir_all(&volume)?;
    let mount = format!(
        "type=bind,src={},dst=/volume,options=rbind:rw",
        volume.display()
    );
    let name = format!("ID={id}");
    let run = Run::new(BASE, id)
        .flags(["--mount", &mount, "--env", &name])
        .shell(BUSY);
    containerd.start_container(&run)
}

/// How many files the container has run so far.
fn count(containerd: &Containerd, id: &str) -> Result<u32> {
    let file = containerd.directory().join("volume").join(id);
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    Ok(text.trim().parse()?)
}

fn wait_for_more(containerd: &Containerd, id: &str) -> Result<()> {
    let before = count(containerd, id).unwrap_or(0);
    until("a container to go on", PATIENCE, || {
        ensure!(count(containerd, id)? >= before + 5);
        Ok(())
    })
}

fn stop(containerd: &Containerd, ids: &[&str]) -> Result<()> {
    let volume = containerd.directory().join("volume");
    fs::write(volume.join("stop"), "")?;
    until("containers to stop", PATIENCE, || {
        ensure!(
            ids.iter()
                .all(|id| volume.join(format!("{id}.done")).exists())
        );
        Ok(())
    })
}

/// Fails unless all alerts are about added files of the base image's containers.
fn check_attributed(world: &World, alerts: &[Value]) -> Result<()> {
    for alert in alerts {
        let digest = text(alert, "/image/manifest_digest");
        ensure!(
            text(alert, "/kind") == Some("exec_added")
                && text(alert, "/image/identity") == Some("proven")
                && digest == Some(world.base.manifest_digest.as_str()),
            "{alert:#}"
        );
    }
    Ok(())
}

#[test]
fn a_container_started_before_the_daemon_is_attributed() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let world = World::start_after(|containerd| {
        start_busy(containerd, "early")?;
        wait_for_more(containerd, "early")
    })?;
    let containerd = &world.containerd;
    // Some of its files were run before the daemon was ready; those after it are all told.
    let before = count(containerd, "early")? + 1;
    wait_for_more(containerd, "early")?;
    stop(containerd, &["early"])?;
    world.settle()?;

    let alerts = world.alerts.of("early");
    let paths: Vec<_> = alerts
        .iter()
        .filter_map(|alert| text(alert, "/file/path"))
        .collect();
    let expect: Vec<String> = (before + 1..=count(containerd, "early")?)
        .map(|number| format!("/tmp/x{number}"))
        .collect();
    let last = paths.get(paths.len().saturating_sub(expect.len())..);
    ensure!(
        last.is_some_and(|last| last == expect),
        "{paths:?}, not {expect:?}"
    );
    check_attributed(&world, &alerts)
}

#[test]
fn what_ran_before_the_daemon_is_judged_as_if_it_had_just_started() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let world = World::start_after(|containerd| {
        let line = "cp /bin/probe /tmp/early; echo salt >> /tmp/early; /tmp/early sleep-ms 600000";
        containerd.start_container(&Run::new(BASE, "infected").shell(line))?;
        containerd.start_container(&Run::new(BASE, "clean").arguments(["/bin/sleep", "600"]))?;
        until("the added file to run", PATIENCE, || {
            let pid = containerd.task_pid("infected")?;
            // The shell executes its last command in its own place.
            let program = fs::read_link(format!("/proc/{pid}/exe"))?;
            ensure!(program.ends_with("tmp/early"), "{program:?}");
            Ok(())
        })
    })?;
    world.settle()?;
    let raised: Vec<_> = world.alerts.of("infected");
    let [alert] = raised.as_slice() else {
        anyhow::bail!("not one alert: {raised:?}");
    };
    ensure!(text(alert, "/kind") == Some("exec_added"), "{alert}");
    ensure!(text(alert, "/file/path") == Some("/tmp/early"), "{alert}");
    ensure!(text(alert, "/file/hash_state") == Some("done"), "{alert}");
    ensure!(world.alerts.of("clean").is_empty());
    check_attributed(&world, &raised)
}

#[test]
fn a_killed_containerd_loses_no_container_and_no_alert() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let world = World::start()?;
    let containerd = &world.containerd;
    start_busy(containerd, "one")?;
    wait_for_more(containerd, "one")?;
    // Killed while the daemon may not yet have heard of the second.
    start_busy(containerd, "two")?;
    containerd.kill()?;
    wait_for_more(containerd, "one")?;
    wait_for_more(containerd, "two")?;
    containerd.restart()?;
    // At once, while the daemon may not yet be connected again.
    start_busy(containerd, "three")?;
    for id in ["one", "two", "three"] {
        wait_for_more(containerd, id)?;
    }
    stop(containerd, &["one", "two", "three"])?;
    world.settle()?;

    for id in ["one", "two", "three"] {
        let alerts = world.alerts.of(id);
        // Alerts come in the order in which the bytes were read, not in that of the execs.
        let mut paths: Vec<_> = alerts
            .iter()
            .filter_map(|alert| text(alert, "/file/path").map(str::to_owned))
            .collect();
        paths.sort();
        let mut expect: Vec<String> = (1..=count(containerd, id)?)
            .map(|number| format!("/tmp/x{number}"))
            .collect();
        expect.sort();
        ensure!(
            paths == expect,
            "{id}: {} alerts of {} files",
            paths.len(),
            expect.len()
        );
        check_attributed(&world, &alerts)?;
    }
    let known = world.daemon.monitorctl(["container", "list"])?;
    for id in ["one", "two", "three"] {
        let quoted = format!("\"{id}\"");
        ensure!(
            known.iter().any(|line| line.to_string().contains(&quoted)),
            "{id}: {known:?}"
        );
    }
    world.daemon.check_alive()
}

#[test]
fn a_container_deleted_while_the_daemon_was_away_is_forgotten() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let world = World::start()?;
    for id in ["stays", "goes"] {
        let run = Run::new(BASE, id).arguments(["/bin/sleep", "600"]);
        world.containerd.start_container(&run)?;
    }
    let lists = |id: &str| -> Result<bool> {
        let quoted = format!("\"{id}\"");
        let known = world.daemon.monitorctl(["container", "list"])?;
        Ok(known.iter().any(|line| line.to_string().contains(&quoted)))
    };
    until("both to be known", PATIENCE, || {
        ensure!(lists("stays")? && lists("goes")?);
        Ok(())
    })?;
    world.containerd.kill()?;
    world.containerd.restart()?;
    world.containerd.delete("goes")?;
    until("one to be forgotten", PATIENCE, || {
        ensure!(!lists("goes")?, "still listed");
        Ok(())
    })?;
    ensure!(lists("stays")?);
    Ok(())
}

#[test]
fn the_daemon_ends_when_told_and_starts_again_after_being_killed() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let _alone = Alone::wait()?;
    let containerd = Containerd::start()?;
    let base = image::base(BASE)?;
    containerd.import(&base)?;
    let directory = containerd.directory().join("monitord");
    let run = Run::new(BASE, "sleeper").arguments(["/bin/sleep", "600"]);
    containerd.start_container(&run)?;

    // The first start has no socket before it, the second one of a killed daemon, the third none
    // or an unused one.
    for round in 0..3 {
        let daemon = Daemon::start(&containerd.address(), &directory)?;
        let mode = fs::metadata(daemon.socket())?.permissions().mode();
        ensure!(mode & 0o777 == 0o600, "the socket's mode is {mode:o}");
        ensure!(
            daemon.full_log().contains("ready"),
            "the log does not say ready: {}",
            daemon.log()
        );
        let alerts = daemon.follow()?;
        let path = format!("/tmp/x{round}");
        let copy = [PROBE_PATH, "run-copy", &path, "salt", "sleep-ms", "0"];
        containerd.exec("sleeper", &format!("exec-{round}"), copy)?;
        let alert = alerts
            .wait_for("of it", |alert| {
                text(alert, "/file/path") == Some(path.as_str())
            })
            .with_context(|| daemon.log())?;
        ensure!(
            text(&alert, "/image/manifest_digest") == Some(base.manifest_digest.as_str()),
            "{alert:#}"
        );
        if round == 0 {
            daemon.kill()?;
        } else {
            let status = daemon.stop()?;
            ensure!(
                status.success(),
                "SIGTERM ended it with {status}: {}",
                daemon.log()
            );
        }
    }
    Ok(())
}

#[test]
fn a_changed_file_of_an_image_is_told_once_over_a_restart() -> Result<()> {
    const ID: &str = "changes";
    require!(Root, Containerd, Busybox, Btf);
    let _alone = Alone::wait()?;
    let containerd = Containerd::start()?;
    containerd.import(&image::base(BASE)?)?;
    let directory = containerd.directory().join("monitord");
    let run = Run::new(BASE, ID).arguments(["/bin/sleep", "600"]);
    containerd.start_container(&run)?;
    let told = |daemon: &Daemon, expect: usize| {
        until("the changes to be told", PATIENCE, || {
            let kind = "kind == 'image_file_modified'";
            let told = daemon.monitorctl(["alerts", "--since", "0", "--filter", kind])?;
            ensure!(told.len() == expect, "{told:#?}");
            Ok(())
        })
    };
    let change = |round: &str| {
        let line = format!("echo {round} >> {PROBE_PATH}");
        containerd.exec(ID, round, ["/bin/sh", "-c", &line])
    };

    let daemon = Daemon::start(&containerd.address(), &directory)?;
    change("first")?;
    told(&daemon, 1)?;
    daemon.kill()?;

    let daemon = Daemon::start(&containerd.address(), &directory)?;
    until("the upper directory to be walked", PATIENCE, || {
        let status = daemon.status()?;
        let count = |pointer| status.pointer(pointer).and_then(Value::as_u64);
        let (noticed, waiting) = (count("/changes/noticed"), count("/changes/waiting"));
        ensure!(noticed >= Some(1) && waiting == Some(0), "{status:#}");
        Ok(())
    })?;
    told(&daemon, 1)?;
    // Other bytes of code are news.
    change("second")?;
    told(&daemon, 2)
}
