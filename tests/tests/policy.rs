//! Policies at the daemon, as their users have them: a folder of files, exceptions, recordings.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tests::{
    alerts::text,
    containerd::Run,
    poll::{PATIENCE, until},
    process::{finish, output},
    require,
    world::{BASE, World},
};

const POLICY: &str = r#"
apiVersion: monitor.v1
kind: Policy
name: test
rules:
  - name: watched
    on: open
    when: event.path == "/watched" && event.access == "read"
    severity: low
    message: the watched file was read
  - name: also-watched
    on: open
    when: event.name == "watched" && process.name != "nobody"
    severity: high
    message: another rule looks at it
  - name: port
    on: connect
    selector: {repository: "example.invalid/*"}
    when: event.port == 4242
    severity: high
    message: a port that is nobody's business
  - name: other-image
    on: connect
    selector: {repository: "example.invalid/other"}
    severity: critical
    message: of another image
  - name: send
    on: exec
    when: process.arguments.exists(word, word == "send-often")
    severity: medium
    message: something is sent often
  - name: known
    on: finding
    when: event.kind == "exec_added" && event.path == "/tmp/known"
    severity: info
"#;

const LINE: &str = "echo x > /watched; cat /watched; \
    probe send-often 1 192.0.2.1 4242; probe run-copy /tmp/known salt true";

/// What a finding is, in an alert or in a line of `policy test`: kind, severity, rule, and file or peer.
type Said = (String, String, String, String);

fn of_alert(alert: &Value) -> Said {
    let word = |pointer: &str| text(alert, pointer).unwrap_or_default().to_owned();
    let place = word("/file/path") + &word("/connection/address");
    (word("/kind"), word("/severity"), word("/rule/id"), place)
}

fn of_test(line: &Value) -> Said {
    let word = |pointer: &str| text(line, pointer).unwrap_or_default().to_owned();
    let place = word("/path") + &word("/address");
    (word("/kind"), word("/severity"), word("/rule"), place)
}

fn said(words: [&str; 4]) -> Said {
    let [kind, severity, rule, place] = words.map(str::to_owned);
    (kind, severity, rule, place)
}

fn raised(world: &World) -> Result<(String, BTreeSet<Said>)> {
    let id = world.unique("policy");
    let alerts = world.raised_by_run(&Run::new(BASE, &id).shell(LINE))?;
    Ok((id, alerts.iter().map(of_alert).collect()))
}

/// Has policies read anew, and waits for what the status then says of them.
fn hang_up(world: &World, is_refused: bool) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(world.daemon.pid()?)?);
    kill(pid, Signal::SIGHUP)?;
    until("policies to be read anew", PATIENCE, || {
        let status = world.daemon.status()?;
        let error = text(&status, "/policies/error");
        ensure!(error.is_some() == is_refused, "{error:?}");
        Ok(())
    })
}

/// `monitorctl record` into a file, once it has begun.
fn record(world: &World, path: &Path) -> Result<Child> {
    let mut command = world.daemon.monitorctl_command()?;
    let child = command
        .arg("record")
        .stdout(Stdio::from(File::create(path)?))
        .spawn()?;
    until("the recording to begin", PATIENCE, || {
        let records = world.daemon.monitorctl(["audit", "list"])?;
        let mut methods = records.iter().map(|record| text(record, "/method"));
        ensure!(methods.any(|it| it == Some("Record")), "{records:?}");
        Ok(())
    })?;
    Ok(child)
}

fn tested(world: &World, policy: &Path, events: &Path, container: &str) -> Result<BTreeSet<Said>> {
    let mut command: Command = world.daemon.monitorctl_command()?;
    command.args(["policy", "test"]).arg(policy);
    let printed = output(command.arg("--events").arg(events).args(["-o", "json"]))?;
    let lines = printed.lines().map(serde_json::from_str::<Value>);
    let lines = lines.collect::<Result<Vec<Value>, _>>()?;
    let own = lines
        .iter()
        .filter(|line| text(line, "/container") == Some(container));
    Ok(own.map(of_test).collect())
}

#[test]
fn policies_say_what_is_told_and_exceptions_what_is_not() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let directory = tempfile::tempdir()?;
    let folder = directory.path().join("policies");
    fs::create_dir(&folder)?;
    let policy = folder.join("test.yaml");
    fs::write(&policy, POLICY)?;
    let config = format!("policy.directory = {:?}\n", folder.display().to_string());
    let world = World::start_configured(&config, |_| Ok(()))?;

    // A recording holds what the daemon looked at.
    let events = directory.path().join("events.jsonl");
    let mut recording = record(&world, &events)?;
    let (id, first) = raised(&world)?;
    let added = ["exec_added", "info", "content.exec_added", "/tmp/known"];
    let expect: BTreeSet<Said> = [
        added,
        ["open_sensitive", "low", "policy.test.watched", "/watched"],
        [
            "open_sensitive",
            "high",
            "policy.test.also-watched",
            "/watched",
        ],
        ["connect_sensitive", "high", "policy.test.port", "192.0.2.1"],
    ]
    .map(said)
    .into();
    let is_exec = |it: &Said| it.2 == "policy.test.send";
    ensure!(first.iter().any(is_exec), "{first:#?}");
    let others: BTreeSet<Said> = first.iter().filter(|it| !is_exec(it)).cloned().collect();
    ensure!(others == expect, "{first:#?}");
    until("the recording to have it all", PATIENCE, || {
        let found = tested(&world, &policy, &events, &id)?;
        ensure!(found == first, "{found:#?}, not {first:#?}");
        Ok(())
    })?;
    kill(
        Pid::from_raw(i32::try_from(recording.id())?),
        Signal::SIGINT,
    )?;
    ensure!(recording.wait()?.success(), "the recording failed");

    // By hand, from outside.
    let id = world.unique("stays");
    let run = Run::new(BASE, &id).shell("while :; do sleep 1; done");
    world.containerd.start_container(&run)?;
    let line = "exec /bin/sh < /dev/null";
    (world.containerd).exec(&id, "by-hand", ["/bin/sh", "-c", line])?;
    world.settle()?;
    let rules: Vec<_> = world.alerts.of(&id).iter().map(of_alert).collect();
    let is_shell = |it: &Said| it.2 == "policy.default.shell" && it.1 == "low";
    ensure!(rules.len() == 1 && rules.iter().all(is_shell), "{rules:#?}");
    world.containerd.delete(&id)?;

    // An exception from an alert.
    let alerts = world.alerts.all();
    let alert = alerts.iter().rev().find(|it| of_alert(it) == said(added));
    let alert = alert.and_then(|it| text(it, "/id")).context("no alert")?;
    let until_time = "2126-01-01T00:00:00Z";
    let add = |until_time: &str| {
        let options = [
            "--from-alert",
            alert,
            "--until",
            until_time,
            "--reason",
            "known",
        ];
        (world.daemon).monitorctl(["exception", "add"].into_iter().chain(options))
    };
    ensure!(add(until_time).is_err(), "an exception for a hundred years");
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24);
    let made = add(&soon.to_string())?;
    let exception = made.first().and_then(|it| text(it, "/exception"));
    let exception = exception.context("no exception")?;
    let (_, second) = raised(&world)?;
    let mut expect = first.clone();
    expect.remove(&said(added));
    ensure!(second == expect, "{second:#?}");
    let listed = world.daemon.monitorctl(["exception", "list"])?;
    let held = listed.first().and_then(|it| it.get("held")?.as_u64());
    ensure!(held == Some(1), "{listed:#?}");
    world
        .daemon
        .monitorctl(["exception", "remove", exception])?;
    let (_, third) = raised(&world)?;
    ensure!(third == first, "{third:#?}");

    // A bad file changes nothing.
    fs::write(
        folder.join("z.yaml"),
        "apiVersion: monitor.v1\nkind: Policy\nnam: z\n",
    )?;
    hang_up(&world, true)?;
    let mut list = world.daemon.monitorctl_command()?;
    let listed = finish(list.args(["policy", "list"]))?;
    let why = String::from_utf8_lossy(&listed.stderr);
    ensure!(listed.status.code() == Some(1), "{listed:?}");
    ensure!(why.contains("z.yaml") && why.contains("line 3"), "{why}");
    let (_, fourth) = raised(&world)?;
    ensure!(fourth == first, "{fourth:#?}");

    // A good one does.
    fs::remove_file(folder.join("z.yaml"))?;
    fs::write(
        &policy,
        POLICY.replace("severity: info", "severity: medium"),
    )?;
    hang_up(&world, false)?;
    until("the new severity", PATIENCE, || {
        let (_, fifth) = raised(&world)?;
        let changed = said(["exec_added", "medium", "content.exec_added", "/tmp/known"]);
        ensure!(fifth.contains(&changed), "{fifth:#?}");
        Ok(())
    })?;
    world.daemon.check_alive()
}

const POSTURE: &str = r#"
apiVersion: monitor.v1
kind: Policy
name: posture
rules:
  - name: privileged
    on: container
    selector: {repository: "example.invalid/*"}
    when: posture.privileged && "/bin/sh" in posture.shells && "API_TOKEN" in posture.secrets
    severity: high
    message: a container may do all on the host
"#;

#[test]
fn how_a_container_is_started_is_told_as_policies_say() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    const SECRET: &str = "hunter2-hunter2";
    let folder = tempfile::tempdir()?;
    let config = format!(
        "policy.directory = {:?}\n",
        folder.path().display().to_string()
    );
    let world = World::start_configured(&config, |_| Ok(()))?;
    let start = |id: &str, flags: &[&str]| {
        let run = Run::new(BASE, id).flags(flags.iter().copied());
        let run = run.arguments(["/bin/sleep", "600"]);
        world.containerd.start_container(&run)
    };
    let variable = format!("API_TOKEN={SECRET}");
    let privileged = ["--privileged", "--env", &variable];
    let told_of = |id: &str| {
        let is_of = |alert: &Value| {
            text(alert, "/kind") == Some("posture") && text(alert, "/container/id") == Some(id)
        };
        world.alerts.wait_for(id, is_of)
    };
    // What runs already is looked at by rules that are new.
    start("before", &privileged)?;
    fs::write(folder.path().join("posture.yaml"), POSTURE)?;
    let alert = told_of("before")?;
    ensure!(
        of_alert(&alert) == said(["posture", "high", "policy.posture.privileged", ""]),
        "{alert:#}"
    );
    let reason = text(&alert, "/details/reason").unwrap_or_default();
    ensure!(
        reason.contains("privileged") && reason.contains("API_TOKEN"),
        "{reason}"
    );
    start("plain", &[])?;
    start("after", &privileged)?;
    told_of("after")?;
    world.settle()?;
    let told = world.alerts.of("plain");
    ensure!(told.is_empty(), "{told:#?}");
    // The value is kept nowhere.
    let alerts = format!("{:?}", world.alerts.all());
    let log = world.daemon.full_log();
    ensure!(
        !alerts.contains(SECRET) && !log.contains(SECRET),
        "the secret was told"
    );
    Ok(())
}
