//! Hooks that outlive the daemon: what happens while it is away is told by the next.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::{
    alerts::{summary, text},
    bpffs::Bpffs,
    cgroup::Cgroup,
    containerd::{Containerd, Run},
    daemon::{Daemon, program},
    image::{self, PROBE, PROBE_PATH},
    poll::{PATIENCE, until},
    process::{Process, finish},
    require,
    world::{Alone, BASE},
};

/// Runs a new file again and again, each of its own name, which stays, until it is told to stop.
/// Bounded, so that it ends when nobody tells it.
const BUSY: &str = "i=0
while [ ! -e /volume/stop ] && [ $i -lt 4000 ]; do
    i=$((i+1)); cp /bin/probe /tmp/x$i; echo $i >> /tmp/x$i; /tmp/x$i sleep-ms 1
    echo $i > /volume/new; mv /volume/new /volume/count
done; touch /volume/done";
/// How often the daemon is ended; the last time as a service manager does.
const ROUNDS: usize = 4;
/// How long nobody watches, at least.
const DOWNTIME: Duration = Duration::from_secs(1);

/// A containerd, a container that waits, and a bpffs of their own.
struct Stage {
    _bpffs: Bpffs,
    containerd: Containerd,
    directory: PathBuf,
    pins: PathBuf,
    _alone: Alone,
}

impl Stage {
    fn start() -> Result<Self> {
        let alone = Alone::wait()?;
        let containerd = Containerd::start()?;
        containerd.import(&image::base(BASE)?)?;
        let bpffs = Bpffs::mount(containerd.directory().join("bpffs"))?;
        let run = Run::new(BASE, "sleeper").arguments(["/bin/sleep", "600"]);
        containerd.start_container(&run)?;
        Ok(Self {
            directory: containerd.directory().join("monitord"),
            pins: bpffs.path().join("monitord"),
            _bpffs: bpffs,
            containerd,
            _alone: alone,
        })
    }

    fn daemon(&self) -> Result<Daemon> {
        Daemon::start_pinned(&self.containerd.address(), &self.directory, &self.pins)
    }

    /// Executes a new file in the container.
    fn add(&self, path: &str) -> Result<()> {
        let copy = [PROBE_PATH, "run-copy", path, "salt", "sleep-ms", "0"];
        let task = format!("exec{}", path.replace('/', "-"));
        self.containerd.exec("sleeper", &task, copy).map(drop)
    }

    fn folders(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.pins)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        Ok(names)
    }
}

/// How often each path was told of a container, by all daemons that wrote the journal: alerts with
/// other ids, and repeats that were counted.
fn told(daemon: &Daemon, container: &str) -> Result<BTreeMap<String, u64>> {
    let mut last = BTreeMap::new();
    for alert in daemon.monitorctl(["alerts", "--since", "0"])? {
        if text(&alert, "/container/id") != Some(container) {
            continue;
        }
        // A fast machine makes a storm of so many, and loses opens when the ring is full: both are
        // told beside the execs, of which none may be lost.
        let kind = text(&alert, "/kind").unwrap_or("none");
        if matches!(kind, "alert_storm" | "coverage_gap") {
            eprintln!("beside the execs: {}", summary(&alert));
            continue;
        }
        let id = text(&alert, "/id").map(str::to_owned);
        let path = text(&alert, "/file/path").unwrap_or("-").to_owned();
        let count = alert.pointer("/count").and_then(Value::as_u64).unwrap_or(0);
        // A later revision replaces an earlier one.
        last.insert((path, id), count);
    }
    let mut told = BTreeMap::new();
    for ((path, _), count) in last {
        *told.entry(path).or_insert(0) += count;
    }
    Ok(told)
}

fn wait_told(daemon: &Daemon, container: &str, path: &str) -> Result<()> {
    until("the alert of the file", PATIENCE, || {
        let told = told(daemon, container)?;
        ensure!(told.contains_key(path), "{path}: {told:?}");
        Ok(())
    })
    .with_context(|| daemon.log())
}

fn count(volume: &Path) -> Result<u32> {
    Ok(fs::read_to_string(volume.join("count"))?.trim().parse()?)
}

#[test]
fn a_daemon_killed_under_load_misses_no_exec_and_tells_none_twice() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let stage = Stage::start()?;
    let volume = stage.containerd.directory().join("volume");
    fs::create_dir(&volume)?;
    let mount = format!(
        "type=bind,src={},dst=/volume,options=rbind:rw",
        volume.display()
    );
    let run = Run::new(BASE, "busy")
        .flags(["--mount", &mount])
        .shell(BUSY);
    let mut daemon = stage.daemon()?;
    stage.containerd.start_container(&run)?;
    let go_on = |least: Duration| {
        let (before, began) = (count(&volume).unwrap_or(0), Instant::now());
        until("the container to go on", PATIENCE, || {
            ensure!(count(&volume)? >= before + 20 && began.elapsed() >= least);
            Ok(())
        })
    };
    for round in 0..ROUNDS {
        // The second daemon is killed while it reads what the first has left.
        if round != 1 {
            go_on(Duration::ZERO)?;
        }
        let status = daemon.status()?;
        let waiting = status.pointer("/events/waiting").cloned();
        if round + 1 < ROUNDS {
            daemon.kill()?;
        } else {
            ensure!(daemon.stop()?.success(), "{}", daemon.log());
        }
        let (before, began) = (count(&volume)?, Instant::now());
        // While nobody watches.
        go_on(DOWNTIME)?;
        let (away, seconds) = (count(&volume)? - before, began.elapsed().as_secs_f64());
        daemon = stage.daemon()?;
        let log = daemon.full_log();
        let unread = log.lines().find(|line| line.contains("unread_bytes"));
        eprintln!(
            "{away} execs in {seconds:.1} s without a daemon; {waiting:?} waited: {unread:?}"
        );
        ensure!(unread.is_some(), "{log}");
    }
    go_on(Duration::ZERO)?;
    fs::write(volume.join("stop"), "")?;
    until("the container to stop", PATIENCE, || {
        ensure!(volume.join("done").exists());
        Ok(())
    })?;
    daemon.wait_all_judged()?;
    let execs = count(&volume)?;
    wait_told(&daemon, "busy", &format!("/tmp/x{execs}"))?;
    let told = told(&daemon, "busy")?;
    let expect: BTreeMap<String, u64> = (1..=execs)
        .map(|number| (format!("/tmp/x{number}"), 1))
        .collect();
    let wrong = |one: &BTreeMap<String, u64>, other: &BTreeMap<String, u64>| {
        let wrong = one
            .iter()
            .filter(|(path, count)| other.get(*path) != Some(count));
        wrong
            .map(|(path, count)| format!("{path} {count}"))
            .collect::<Vec<_>>()
    };
    let (missed, extra) = (wrong(&expect, &told), wrong(&told, &expect));
    eprintln!(
        "{execs} execs, {} missed, {} told otherwise",
        missed.len(),
        extra.len()
    );
    ensure!(
        missed.is_empty() && extra.is_empty(),
        "missed: {missed:?}, told: {extra:?}\n{}",
        daemon.log()
    );
    ensure!(daemon.stop()?.success(), "{}", daemon.log());
    Ok(())
}

/// Opens of credentials by a process of which nobody can say whose it is: more than can wait.
const UNPLACED_OPENS: u64 = 10_000;

/// Starts a process outside of the host's mount namespace that opens credentials, in a cgroup that
/// containerd has not told of.
fn open_unplaced(directory: &Path, cgroup: &Cgroup) -> Result<Process> {
    let probe = directory.join("probe");
    fs::write(&probe, PROBE)?;
    fs::set_permissions(&probe, fs::Permissions::from_mode(0o755))?;
    let line = r#"echo $$ > "$0/cgroup.procs" && exec "$@""#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", line]);
    command.arg(cgroup.path()).arg(&probe);
    let opens = ["open-credentials", &UNPLACED_OPENS.to_string(), "2000"].map(str::to_owned);
    command.args(opens).arg(directory.join("opened"));
    let process = Process::default();
    process.set(command.stdin(Stdio::null()).spawn()?);
    Ok(process)
}

/// How many events gaps tell of, of a kind (`hooks/exec`) or by a cause (`causes/ring_full`).
fn told_lost(daemon: &Daemon, what: &str) -> Result<u64> {
    let alerts = daemon.monitorctl(["alerts", "--since", "0"])?;
    let counts = alerts.iter().filter_map(|alert| {
        let count = alert.pointer(&format!("/details/{what}"))?.as_u64();
        count.filter(|_| text(alert, "/kind") == Some("coverage_gap"))
    });
    Ok(counts.sum())
}

#[test]
fn what_a_killed_daemon_had_taken_and_not_told_is_told_by_the_next() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf, Unshare);
    let stage = Stage::start()?;
    let daemon = stage.daemon()?;
    // From now on nobody tells whose a cgroup is.
    stage.containerd.kill()?;
    let cgroup = Cgroup::new(&format!("monitor-test-{}", daemon.pid()?))?;
    let opener = open_unplaced(stage.containerd.directory(), &cgroup)?;
    until("no open to be in the ring", PATIENCE, || {
        let status = daemon.status()?;
        let given_up = status.pointer("/events/given_up").and_then(Value::as_u64);
        let given_up = given_up.context("no number of those given up")?;
        let lost = daemon.lost("open")?;
        ensure!(given_up + lost >= UNPLACED_OPENS, "{given_up}, {lost} lost");
        Ok(())
    })?;
    ensure!(opener.wait()?.success());
    daemon.kill()?;

    stage.containerd.restart()?;
    let next = stage.daemon()?;
    until("all opens to be told", PATIENCE, || {
        let told = told_lost(&next, "hooks/open")?;
        ensure!(told >= UNPLACED_OPENS, "{told} of {UNPLACED_OPENS}");
        Ok(())
    })?;
    ensure!(next.stop()?.success());
    Ok(())
}

/// How many events the hooks lost because the ring was full.
fn ring_full(daemon: &Daemon) -> Result<u64> {
    let status = daemon.status()?;
    let hooks = status.pointer("/hooks").and_then(Value::as_array);
    let counts = hooks.into_iter().flatten();
    Ok(counts
        .filter_map(|hook| hook.get("ring_full")?.as_u64())
        .sum())
}

#[test]
fn what_the_hooks_lost_and_a_killed_daemon_told_is_not_told_again() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let stage = Stage::start()?;
    let daemon = stage.daemon()?;
    daemon.pause()?;
    let opens = ["open-credentials", "40000", "1000000", "/dev/shm"];
    let flood = [PROBE_PATH].into_iter().chain(opens);
    stage.containerd.exec("sleeper", "flood", flood)?;
    daemon.go_on()?;
    until("the loss to be told", PATIENCE, || {
        let (told, lost) = (told_lost(&daemon, "causes/ring_full")?, ring_full(&daemon)?);
        ensure!(lost > 0 && told >= lost, "{told} of {lost}");
        // Each has the daemon look at its losses.
        daemon
            .monitorctl(["container", "coverage", "sleeper"])
            .map(drop)
    })?;
    for _ in 0..3 {
        daemon.monitorctl(["container", "coverage", "sleeper"])?;
    }
    daemon.kill()?;
    let next = stage.daemon()?;
    next.monitorctl(["container", "coverage", "sleeper"])?;
    let (told, lost) = (told_lost(&next, "causes/ring_full")?, ring_full(&next)?);
    ensure!(told <= lost, "{lost} lost, {told} told");
    ensure!(next.stop()?.success());
    Ok(())
}

#[test]
fn repeats_that_a_killed_daemon_had_only_counted_are_told_by_the_next() -> Result<()> {
    const REPEATS: u64 = 4;
    require!(Root, Containerd, Busybox, Btf);
    let stage = Stage::start()?;
    let daemon = stage.daemon()?;
    for _ in 0..REPEATS {
        stage.add("/tmp/again")?;
    }
    wait_told(&daemon, "sleeper", "/tmp/again")?;
    daemon.wait_all_judged()?;
    daemon.kill()?;
    let next = stage.daemon()?;
    until("each to be told", PATIENCE, || {
        let told = told(&next, "sleeper")?;
        let counted = told.get("/tmp/again").copied().unwrap_or(0);
        let lost = told_lost(&next, "hooks/exec")?;
        ensure!(counted + lost >= REPEATS, "{counted} counted, {lost} lost");
        Ok(())
    })?;
    ensure!(next.stop()?.success());
    Ok(())
}

#[test]
fn a_stopped_daemon_leaves_what_happens_to_the_next_until_it_is_unpinned() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let stage = Stage::start()?;
    let daemon = stage.daemon()?;
    stage.add("/tmp/before")?;
    wait_told(&daemon, "sleeper", "/tmp/before")?;
    ensure!(daemon.stop()?.success(), "{}", daemon.log());
    stage.add("/tmp/away")?;

    let daemon = stage.daemon()?;
    wait_told(&daemon, "sleeper", "/tmp/away")?;
    daemon.wait_all_judged()?;
    let found = told(&daemon, "sleeper")?;
    let both = ["/tmp/away", "/tmp/before"].map(|path| (path.to_owned(), 1));
    ensure!(found == BTreeMap::from(both), "{found:?}");

    let unpin = || -> Result<_> {
        let mut command = Command::new(program("MONITORD", "monitord")?);
        command.arg("unpin").arg("--pin-directory").arg(&stage.pins);
        finish(command.stdin(Stdio::null()))
    };
    let refused = unpin()?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(
        !refused.status.success() && said.contains("in use"),
        "{said}"
    );
    ensure!(daemon.stop()?.success(), "{}", daemon.log());
    let removed = unpin()?;
    ensure!(removed.status.success(), "{removed:?}");
    ensure!(!stage.pins.exists());
    Ok(())
}

#[test]
fn hooks_of_another_version_are_read_to_their_end_and_removed() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let stage = Stage::start()?;
    let daemon = stage.daemon()?;
    ensure!(daemon.stop()?.success(), "{}", daemon.log());
    let folders = stage.folders()?;
    let [own] = folders.as_slice() else {
        anyhow::bail!("not one folder: {folders:?}");
    };
    // As if another build had made it.
    let (version, _) = own.split_once('-').context("the folder's name")?;
    let other = format!("{version}-0123456789abcdef");
    fs::rename(stage.pins.join(own), stage.pins.join(other))?;
    fs::create_dir(stage.pins.join("v1-0123456789abcdef"))?;
    fs::create_dir(stage.pins.join("of-somebody-else"))?;
    stage.add("/tmp/away")?;

    let daemon = stage.daemon()?;
    let log = daemon.full_log();
    for said in ["v1-0123456789abcdef", "another layout"] {
        ensure!(log.contains(said), "nothing of {said}:\n{log}");
    }
    stage.add("/tmp/after")?;
    for path in ["/tmp/away", "/tmp/after"] {
        wait_told(&daemon, "sleeper", path)?;
    }
    daemon.wait_all_judged()?;
    let found = told(&daemon, "sleeper")?;
    let both = ["/tmp/after", "/tmp/away"].map(|path| (path.to_owned(), 1));
    ensure!(found == BTreeMap::from(both), "{found:?}");
    let mut left = stage.folders()?;
    left.sort_unstable();
    ensure!(left == ["of-somebody-else", own], "{left:?}");
    Ok(())
}

#[test]
fn without_pins_nothing_is_left() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let stage = Stage::start()?;
    let mut command = Daemon::command(&stage.containerd.address(), &stage.directory)?;
    command.arg("--pin-directory").arg(&stage.pins);
    let daemon = Daemon::spawn(&mut command, &stage.directory)?;
    daemon.wait_ready()?;
    ensure!(!stage.pins.exists());
    ensure!(daemon.stop()?.success(), "{}", daemon.log());
    ensure!(!stage.pins.exists());
    Ok(())
}
