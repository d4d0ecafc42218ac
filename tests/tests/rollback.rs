//! Rollback of real containers: to an approved image and proven, when the new one does not run, through
//! kills of the daemon at each step, and refused where it has to be.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use monitor_api::v1::{
    ApplyRollbackRequest, PlanRollbackRequest, rollbacks_client::RollbacksClient,
};
use serde_json::Value;
use tests::{
    alerts::text,
    authority::Authority,
    containerd::{Containerd, Run},
    daemon::{Daemon, program},
    image::{self, Config, Image},
    layer::{Attributes, Layer},
    orders::Orders,
    poll::{PATIENCE, until},
    process::finish,
    require,
    world::Alone,
};
use tokio::runtime;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

const REPOSITORY: &str = "example.invalid/web";
/// Ends by SIGTERM at once.
const SERVES: &str = "trap 'exit 0' TERM; echo serving $V; while :; do sleep 0.05; done";
/// The goal is 3 s beside the grace period; here it tells one that went through from one that hung.
const TIME_MAX: Duration = Duration::from_secs(10);

/// containerd with images and a daemon that may be killed.
struct Stage {
    daemon: Daemon,
    containerd: Containerd,
    good: Image,
    bad: Image,
    next: Image,
    broken: Image,
    stranger: Image,
    _alone: Alone,
}

fn build(reference: &str, word: &str, line: &str) -> Result<Image> {
    let own = Layer::new().file("tag", word.as_bytes(), Attributes::default());
    let config = Config {
        entrypoint: vec!["/bin/sh".to_owned(), "-c".to_owned()],
        cmd: vec![line.to_owned()],
        env: vec!["PATH=/bin".to_owned(), format!("V={word}")],
        ..Config::default()
    };
    Image::build(reference, &[image::base_layer()?, own], &config)
}

impl Stage {
    fn start(watch_seconds: u32) -> Result<Self> {
        let alone = Alone::wait()?;
        let containerd = Containerd::start()?;
        let tag = |tag: &str, line: &str| build(&format!("{REPOSITORY}:{tag}"), tag, line);
        let good = tag("good", SERVES)?;
        let bad = tag("bad", SERVES)?;
        let next = tag("next", SERVES)?;
        let broken = tag("broken", "exit 3")?;
        let stranger = build("example.invalid/other:1", "other", SERVES)?;
        for image in [&good, &bad, &next, &broken, &stranger] {
            containerd.import(image)?;
        }
        let directory = containerd.directory();
        let authority = Authority::new()?;
        authority.write(directory)?;
        for name in ["127.0.0.1", "soc.example"] {
            authority.issue(name, directory)?;
        }
        let shown = directory.display();
        let config = format!(
            r#"[tls]
certificate = "{shown}/127.0.0.1.crt"
key = "{shown}/127.0.0.1.key"
client_ca = "{shown}/ca.crt"
[roles]
observer = ["soc.example"]
[respond]
grace_seconds = 2
watch_seconds = {watch_seconds}
per_hour = 1000
cool_down_seconds = 0
"#
        );
        fs::write(directory.join("config.toml"), config)?;
        let stage = Self {
            daemon: Daemon::start_with_tcp(&containerd)?,
            containerd,
            good,
            bad,
            next,
            broken,
            stranger,
            _alone: alone,
        };
        for image in [&stage.good, &stage.broken, &stage.next] {
            let digest = &image.manifest_digest;
            let image = format!("{REPOSITORY}@{digest}");
            let words = ["approval", "approve", &image, "--reason", "release"];
            stage.daemon.monitorctl(words)?;
        }
        Ok(stage)
    }

    /// Starts a container of the bad image that has a mount and an environment of its own.
    fn run(&self, id: &str) -> Result<()> {
        let volume = self.containerd.directory().join("volume");
        fs::create_dir_all(&volume)?;
        let mount = format!(
            "type=bind,src={},dst=/volume,options=rbind:rw",
            volume.display()
        );
        let run = Run::new(&self.bad.reference, id).flags([
            "--mount",
            &mount,
            "--env",
            "GIVEN=1",
            "--label",
            "team=shop",
        ]);
        self.containerd.start_container(&run)?;
        self.orders().wait_known(id, &self.bad)
    }

    fn orders(&self) -> Orders<'_> {
        Orders {
            daemon: &self.daemon,
            containerd: &self.containerd,
        }
    }

    /// The audit log's records of rollbacks, as method, object, outcome and detail.
    fn audited(&self) -> Result<Vec<String>> {
        let records = self.daemon.monitorctl(["audit", "list"])?;
        let of = |record: &Value| {
            ["/caller", "/method", "/object", "/outcome", "/detail"]
                .map(|at| text(record, at).unwrap_or("-").to_owned())
                .join(" ")
        };
        let all = records.iter().map(of);
        Ok(all.filter(|line| line.contains("Rollback")).collect())
    }

    fn remove(&self, id: &str, kept: Option<&str>) -> Result<()> {
        // Without a task there is nothing to end.
        let _ = self.containerd.ctr(["tasks", "delete", "--force", id]);
        self.containerd.ctr(["containers", "delete", id])?;
        if let Some(kept) = kept {
            self.containerd.ctr(["containers", "delete", kept])?;
        }
        Ok(())
    }
}

fn seconds(order: &Value, from: &str, to: &str) -> Result<f64> {
    let at = |pointer: &str| -> Result<jiff::Timestamp> {
        Ok(text(order, pointer).context("no time")?.parse()?)
    };
    Ok(at(to)?.duration_since(at(from)?).as_secs_f64())
}

#[test]
fn a_container_is_rolled_back_to_what_was_approved() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let stage = Stage::start(2)?;
    let alerts = stage.daemon.follow()?;
    stage.run("web")?;
    let before = stage.orders().info("web")?;
    let good = &stage.good.manifest_digest;

    let (status, plan, said) = stage
        .orders()
        .rollback(&["web", "--to", good, "--dry-run"])?;
    ensure!(
        status == 0 && text(&plan, "/state") == Some("planned"),
        "{said}"
    );
    ensure!(
        plan.pointer("/containers") == Some(&Value::from(1)),
        "{plan:#}"
    );
    ensure!(text(&plan, "/from_digest") == Some(stage.bad.manifest_digest.as_str()));
    stage.orders().expect("web", &stage.bad, true)?;

    let begun = Instant::now();
    let (status, order, said) = stage
        .orders()
        .rollback(&["web", "--to", good, "--reason", "OPS-1"])?;
    let whole = begun.elapsed();
    ensure!(
        status == 0 && text(&order, "/state") == Some("done"),
        "{said} {order:#}"
    );
    stage.orders().expect("web", &stage.good, true)?;
    let after = stage.orders().info("web")?;
    for same in [
        "/Spec/mounts",
        "/Spec/linux/namespaces",
        "/Spec/linux/cgroupsPath",
    ] {
        ensure!(
            before.pointer(same) == after.pointer(same),
            "{same}: {after:#}"
        );
    }
    ensure!(text(&after, "/Labels/team") == Some("shop"), "{after:#}");
    let env = after
        .pointer("/Spec/process/env")
        .context("no env")?
        .to_string();
    ensure!(env.contains("GIVEN=1") && env.contains("V=good"), "{env}");
    ensure!(!env.contains("V=bad"), "{env}");
    until("its output", PATIENCE, || {
        let said = stage.containerd.said("web");
        ensure!(said.contains("serving good"), "{said}");
        Ok(())
    })?;
    let proven = begun.elapsed();
    stage.orders().wait_known("web", &stage.good)?;
    let took = seconds(&order, "/began_at", "/ended_at")?;
    println!(
        "rolled back in {took:.2} s, of which it was watched for 2 s; with monitorctl {whole:.2?} ({proven:.2?} until its output was read)"
    );
    ensure!(whole < TIME_MAX, "{whole:?}");

    // The old one is kept, and runs beside the new one if somebody starts it.
    let kept = text(&order, "/kept").context("none kept")?;
    stage.orders().expect(kept, &stage.bad, false)?;
    stage.containerd.ctr(["tasks", "start", "--detach", kept])?;
    stage.orders().expect(kept, &stage.bad, true)?;
    let alert = alerts.wait_for("of the rollback", |alert| {
        text(alert, "/kind") == Some("rollback") && text(alert, "/details/state") == Some("done")
    })?;
    ensure!(text(&alert, "/severity") == Some("info"), "{alert:#}");
    ensure!(
        alert.pointer("/revision") == Some(&Value::from(2)),
        "{alert:#}"
    );

    // To a newer one and, without being told where to, back to what ran before.
    let next = &stage.next.manifest_digest;
    let (status, _, said) = stage
        .orders()
        .rollback(&["web", "--to", next, "--reason", "OPS-2"])?;
    ensure!(status == 0, "{said}");
    stage.orders().wait_known("web", &stage.next)?;
    let (status, order, said) = stage.orders().rollback(&["web", "--reason", "OPS-3"])?;
    ensure!(
        status == 0 && text(&order, "/to_digest") == Some(good),
        "{said}"
    );
    stage.orders().expect("web", &stage.good, true)?;
    ensure!(stage.daemon.stop()?.success());
    Ok(())
}

#[test]
fn what_does_not_run_is_held_undone_or_stopped() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let stage = Stage::start(1)?;
    let check = |mode: &str, state: &str, image: &Image, is_up: bool, has_kept: bool| {
        stage.run(mode)?;
        let before = stage.orders().info(mode)?;
        let (to, begun) = (&stage.broken.manifest_digest, Instant::now());
        let words = [mode, "--to", to, "--on-failure", mode, "--reason", "test"];
        let (status, order, said) = stage.orders().rollback(&words)?;
        println!("{mode}: {state} after {:.2?}: {said}", begun.elapsed());
        ensure!(
            status == 1 && text(&order, "/state") == Some(state),
            "{order:#}"
        );
        ensure!(said.contains("exited with status 3"), "{said}");
        stage.orders().expect(mode, image, is_up)?;
        let kept = text(&order, "/kept").context("none kept")?;
        ensure!(stage.orders().info(kept).is_ok() == has_kept, "{kept}");
        if state == "undone" {
            let after = stage.orders().info(mode)?;
            for same in ["/Spec", "/SnapshotKey", "/Image"] {
                ensure!(before.pointer(same) == after.pointer(same), "{same}");
            }
        }
        stage.remove(mode, has_kept.then_some(kept))
    };
    check("hold", "held", &stage.broken, false, true)?;
    check("undo", "undone", &stage.bad, true, false)?;
    check("stop", "stopped", &stage.broken, false, true)?;
    ensure!(stage.daemon.stop()?.success());
    Ok(())
}

#[test]
fn an_order_is_finished_by_the_next_daemon() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let mut stage = Stage::start(1)?;
    let forward = [
        "prepare", "keep", "stop", "replace", "start", "verify", "watch",
    ];
    let back = ["put_back", "start_old"];
    for step in forward.into_iter().chain(back) {
        let id = format!("at-{}", step.replace('_', "-"));
        stage.run(&id)?;
        let is_back = back.contains(&step);
        let to = if is_back { &stage.broken } else { &stage.good };
        let (to, mode) = (
            to.manifest_digest.clone(),
            if is_back { "undo" } else { "hold" },
        );
        let plan =
            stage
                .orders()
                .plan(&[&id, "--to", &to, "--on-failure", mode, "--reason", "x"])?;
        let mut client = stage.orders().begin(&["apply", &plan])?;
        let hit = stage.orders().kill_at(&plan, step)?;
        client.wait()?;
        stage.daemon = Daemon::start_with_tcp(&stage.containerd)?;
        let expect = if is_back { "undone" } else { "done" };
        let order = stage.orders().wait_resumed(&plan, expect)?;
        println!(
            "killed at {hit}: {}",
            text(&order, "/message").unwrap_or("-")
        );
        let runs = if is_back { &stage.bad } else { &stage.good };
        stage.orders().expect(&id, runs, true)?;
        let log = stage.daemon.full_log();
        ensure!(log.contains("going on with a rollback"), "{log}");
        let kept = text(&order, "/kept").filter(|_| !is_back);
        stage.remove(&id, kept)?;
    }
    ensure!(stage.daemon.stop()?.success());
    Ok(())
}

/// The status of a call over the wire, which has to be refused.
fn status_of<T>(
    stage: &Stage,
    call: impl AsyncFnOnce(RollbacksClient<Channel>) -> Result<T, Status>,
) -> Result<Code> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let address = format!("unix://{}", stage.daemon.socket().display());
    runtime.block_on(async {
        let channel = Endpoint::new(address)?.connect().await?;
        match call(RollbacksClient::new(channel)).await {
            Ok(_) => bail!("it was not refused"),
            Err(status) => Ok(status.code()),
        }
    })
}

#[test]
fn what_must_not_be_is_refused_and_audited() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let stage = Stage::start(1)?;
    stage.run("web")?;
    let (good, bad) = (&stage.good.manifest_digest, &stage.bad.manifest_digest);
    let check = |words: &[&str], expect: &str| {
        let (status, printed, said) = stage.orders().rollback(words)?;
        ensure!(
            status == 4 && said.contains(expect),
            "{status} {said} {printed}"
        );
        ensure!(said.lines().count() == 1, "{said}");
        Ok(())
    };
    let plan_is = |target: &str, to: &str, expect: Code| {
        let request = PlanRollbackRequest {
            target: target.to_owned(),
            to: to.to_owned(),
            ..PlanRollbackRequest::default()
        };
        let call = async |mut client: RollbacksClient<Channel>| client.plan_rollback(request).await;
        let code = status_of(&stage, call)?;
        ensure!(code == expect, "{target} {to}: {code:?}");
        Ok(())
    };
    let apply_is = |id: &str, expect: Code| {
        let request = ApplyRollbackRequest { id: id.to_owned() };
        let call =
            async |mut client: RollbacksClient<Channel>| client.apply_rollback(request).await;
        let code = status_of(&stage, call)?;
        ensure!(code == expect, "{id}: {code:?}");
        Ok(())
    };
    plan_is("web", "", Code::FailedPrecondition)?;
    plan_is("web", bad, Code::FailedPrecondition)?;
    plan_is("web", "sha256:1", Code::InvalidArgument)?;
    plan_is("nobody", good, Code::NotFound)?;
    apply_is("01J", Code::NotFound)?;
    check(&["plan", "web"], "no approved image")?;
    check(&["plan", "web", "--to", bad], "is unapproved in")?;
    check(
        &["plan", "web", "--to", &stage.stranger.manifest_digest],
        "is an image of example.invalid/other",
    )?;
    check(&["plan", "nobody", "--to", good], "no container \"nobody\"")?;
    check(&["plan", "deployment/a/b"], "Kubernetes owns it")?;
    check(&["apply", "01J"], "no plan")?;
    let absent = format!("sha256:{}", "0".repeat(64));
    check(&["plan", "web", "--to", &absent], "is unapproved in")?;
    let pinned = format!("{REPOSITORY}@{absent}");
    let words = ["approval", "approve", &pinned, "--reason", "early"];
    stage.daemon.monitorctl(words)?;
    check(&["plan", "web", "--to", &absent], "images pull")?;

    let owned =
        Run::new(&stage.bad.reference, "pod").flags(["--label", "io.kubernetes.pod.name=p"]);
    stage.containerd.start_container(&owned)?;
    stage.orders().wait_known("pod", &stage.bad)?;
    check(&["plan", "pod", "--to", good], "kubectl set image")?;

    // Changed since: started anew.
    let plan = stage.orders().plan(&["web", "--to", good])?;
    stage
        .containerd
        .ctr(["tasks", "delete", "--force", "web"])?;
    stage
        .containerd
        .ctr(["tasks", "start", "--detach", "web"])?;
    apply_is(&plan, Code::Aborted)?;
    check(&["apply", &plan], "the plan is outdated")?;
    stage.orders().expect("web", &stage.bad, true)?;

    // Gone since.
    stage.run("goes")?;
    let plan = stage.orders().plan(&["goes", "--to", good])?;
    stage.remove("goes", None)?;
    check(&["apply", &plan], "no container \"goes\"")?;

    // Another one is under way, or it is too late to give it up.
    let stubborn = "trap '' TERM; while :; do sleep 0.05; done";
    let run = Run::new(&stage.bad.reference, "slow").shell(stubborn);
    stage.containerd.start_container(&run)?;
    stage.orders().wait_known("slow", &stage.bad)?;
    let plan = stage.orders().plan(&["slow", "--to", good])?;
    let second = stage.orders().plan(&["slow", "--to", good])?;
    let given_up = stage.orders().plan(&["slow", "--to", good])?;
    let (status, aborted, said) = stage.orders().rollback(&["abort", &given_up])?;
    ensure!(
        status == 0 && text(&aborted, "/state") == Some("aborted"),
        "{said}"
    );
    check(&["apply", &given_up], "no plan")?;
    let mut first = stage.orders().begin(&["apply", &plan])?;
    until("the old one to be asked to stop", PATIENCE, || {
        ensure!(text(&stage.orders().order(&plan)?, "/step") == Some("stop"));
        Ok(())
    })?;
    apply_is(&second, Code::Aborted)?;
    check(&["apply", &second], "is under way")?;
    check(&["abort", &plan], "it has begun to stop its container")?;
    ensure!(
        first.wait()?.success(),
        "{:#}",
        stage.orders().order(&plan)?
    );

    // An undo must not bring back what was revoked.
    let approve = format!("{REPOSITORY}@{bad}");
    stage
        .daemon
        .monitorctl(["approval", "approve", &approve, "--reason", "error"])?;
    stage
        .daemon
        .monitorctl(["approval", "revoke", bad, "--reason", "CVE"])?;
    let undo = ["plan", "web", "--to", good, "--on-failure", "undo"];
    check(&undo, "was revoked")?;

    // Without the role.
    let log = stage.daemon.full_log();
    let lines = log.lines().map(serde_json::from_str::<Value>);
    let address = lines.flatten().find_map(|line| {
        let address = text(&line, "/fields/address")?;
        address.starts_with("https://").then(|| address.to_owned())
    });
    let file = |name: &str| stage.containerd.directory().join(name);
    let mut without = Command::new(program("MONITORCTL", "monitorctl")?);
    without
        .args(["--address", &address.context("no address")?])
        .arg("--ca")
        .arg(file("ca.crt"))
        .arg("--cert")
        .arg(file("soc.example.crt"))
        .arg("--key")
        .arg(file("soc.example.key"))
        .args(["rollback", "plan", "web", "--to", good]);
    let done = finish(&mut without)?;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    ensure!(done.status.code() == Some(4), "{said}");
    ensure!(said.contains("it needs the role responder"), "{said}");

    let audited = stage.audited()?;
    for expect in [
        "soc.example PlanRollback - refused",
        &format!("user 0 PlanRollback container/web to {bad} refused {bad} is unapproved"),
        "PlanRollback container/nobody to",
        "the plan is outdated",
        r#"no container \"goes\" on this node"#,
        &format!("ApplyRollback order/{second} failed"),
        &format!("order {plan} of this container is under way"),
        &format!("AbortRollback order/{plan} failed"),
        &format!("user 0 Rollback order/{plan} done slow was rolled back"),
    ] {
        ensure!(
            audited.iter().any(|line| line.contains(expect)),
            "{expect} is not in {audited:#?}"
        );
    }
    ensure!(stage.daemon.stop()?.success());
    Ok(())
}
