//! What rules of policies have done without a person: nothing by default, a plan, or a rollback.

use std::{fs, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::{
    alerts::{Alerts, text},
    containerd::Run,
    image::{self, Image, PROBE_PATH},
    layer::{Attributes, Layer},
    orders::Orders,
    poll::{PATIENCE, until},
    require,
    world::World,
};

const REPOSITORY: &str = "example.invalid/web";
/// The rule, as orders and the audit log name it.
const BY: &str = "policy shop.drift";

fn build(tag: &str) -> Result<Image> {
    let own = Layer::new().file("tag", tag.as_bytes(), Attributes::default());
    let layers = [image::base_layer()?, own];
    let reference = format!("{REPOSITORY}:{tag}");
    Image::build(&reference, &layers, &image::base_config())
}

/// A world whose policy asks for a response to foreign programs, and whose configuration allows so
/// much. In it `web` ran the approved image and now runs another one.
struct Stage {
    world: World,
    good: Image,
    bad: Image,
    _policies: tempfile::TempDir,
}

impl Stage {
    fn start(asked: &str, allowed: &str) -> Result<Self> {
        let policies = tempfile::tempdir()?;
        let policy = format!(
            "apiVersion: monitor.v1\nkind: Policy\nname: shop\nrules:\n- name: drift\n  on: finding\n  \
             when: event.rule == \"content.exec_added\"\n  severity: critical\n  respond: {asked}\n"
        );
        fs::write(policies.path().join("shop.yaml"), policy)?;
        let config = format!(
            "[policy]\ndirectory = '{}'\n[respond]\ngrace_seconds = 1\nwatch_seconds = 1\n{allowed}",
            policies.path().display()
        );
        let (good, bad) = (build("good")?, build("bad")?);
        let world = World::start_configured(&config, |containerd| {
            containerd.import(&good)?;
            containerd.import(&bad)
        })?;
        let stage = Self {
            world,
            good,
            bad,
            _policies: policies,
        };
        let approved = format!("{REPOSITORY}@{}", stage.good.manifest_digest);
        let words = ["approval", "approve", &approved, "--reason", "release"];
        stage.world.daemon.monitorctl(words)?;
        stage.run(&stage.good)?;
        stage.wait_ran()?;
        stage.world.containerd.delete("web")?;
        stage.run(&stage.bad)?;
        Ok(stage)
    }

    fn run(&self, image: &Image) -> Result<()> {
        let run = Run::new(&image.reference, "web").arguments(["/bin/sleep", "600"]);
        self.world.containerd.start_container(&run)?;
        self.orders().wait_known("web", image)
    }

    fn orders(&self) -> Orders<'_> {
        Orders {
            daemon: &self.world.daemon,
            containerd: &self.world.containerd,
        }
    }

    /// Waits until it is remembered that the container stayed up with its image.
    fn wait_ran(&self) -> Result<()> {
        let file = self
            .world
            .containerd
            .directory()
            .join("monitord/state/respond/ran.json");
        until("what ran to be remembered", 2 * PATIENCE, || {
            let kept = fs::read_to_string(&file)?;
            ensure!(kept.contains(&self.good.manifest_digest), "{kept}");
            Ok(())
        })
    }

    /// Runs a program that the image does not hold; the alert of it.
    fn drift(&self, name: &str) -> Result<Value> {
        let path = format!("/tmp/{name}");
        let copy = [PROBE_PATH, "run-copy", &path, name, "sleep-ms", "0"];
        self.world.containerd.exec("web", name, copy)?;
        let alert = self.world.alerts.wait_for("of the drift", |alert| {
            text(alert, "/file/path") == Some(path.as_str())
        })?;
        ensure!(text(&alert, "/details/severity_by").is_some(), "{alert:#}");
        Ok(alert)
    }

    fn wait_rollback(&self, state: &str) -> Result<Value> {
        wait_rollback(&self.world.alerts, state)
    }

    fn count(&self, outcome: &str) -> Result<u64> {
        let status = self.world.daemon.status()?;
        let count = status.pointer(&format!("/responses/{outcome}"));
        let count = count.and_then(Value::as_u64);
        count.with_context(|| format!("no {outcome} in {status}"))
    }

    /// What the audit log has of the rule, as method and outcome.
    fn audited(&self) -> Result<Vec<String>> {
        let records = self.world.daemon.monitorctl(["audit", "list"])?;
        let own = records.iter().filter(|it| text(it, "/caller") == Some(BY));
        let of = |record: &Value| {
            ["/method", "/outcome"]
                .map(|at| text(record, at).unwrap_or("-").to_owned())
                .join(" ")
        };
        Ok(own.map(of).collect())
    }
}

fn wait_rollback(alerts: &Alerts, state: &str) -> Result<Value> {
    let what = format!("of a rollback that is {state}");
    alerts.wait_for(&what, |alert| {
        text(alert, "/kind") == Some("rollback") && text(alert, "/details/state") == Some(state)
    })
}

#[test]
fn by_default_nothing_is_done() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let stage = Stage::start("auto", "")?;
    stage.drift("first")?;
    // There is nothing to wait for.
    thread::sleep(Duration::from_secs(2));
    stage.orders().expect("web", &stage.bad, true)?;
    let rollbacks = stage.world.daemon.monitorctl(["rollback", "status"])?;
    ensure!(rollbacks.is_empty(), "{rollbacks:#?}");
    let alerts = stage.world.alerts.all();
    let told = alerts
        .iter()
        .any(|it| text(it, "/kind") == Some("rollback"));
    ensure!(!told && stage.audited()?.is_empty(), "{alerts:#?}");
    ensure!(stage.count("proposed")? == 0 && stage.count("refused")? == 0);
    Ok(())
}

#[test]
fn a_proposal_is_a_plan_and_an_alert_and_changes_nothing() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    // The rule asks for more than is allowed.
    let stage = Stage::start("auto", "automatic = 'propose'\n")?;
    let cause = stage.drift("first")?;
    let alert = stage.wait_rollback("proposed")?;
    let plan = text(&alert, "/details/order").context("no plan")?;
    for (pointer, expect) in [
        ("/details/alert", text(&cause, "/id")),
        ("/details/rule", Some("shop.drift")),
        ("/details/respond", Some("propose")),
        ("/details/to", Some(stage.good.manifest_digest.as_str())),
        ("/container/id", Some("web")),
        ("/severity", Some("info")),
    ] {
        ensure!(text(&alert, pointer) == expect, "{pointer}: {alert:#}");
    }
    let planned = stage.orders().order(plan)?;
    ensure!(
        text(&planned, "/state") == Some("planned") && text(&planned, "/by") == Some(BY),
        "{planned:#}"
    );
    let reason = text(&planned, "/reason").unwrap_or_default();
    let id = text(&cause, "/id").context("no id")?;
    ensure!(reason == format!("{BY}, alert {id}"), "{reason}");
    stage.orders().expect("web", &stage.bad, true)?;

    // Within the cool-down the rule is only counted.
    stage.drift("second")?;
    until("the repeat to be counted", PATIENCE, || {
        let counts = [stage.count("repeated")?, stage.count("proposed")?];
        ensure!(counts == [1, 1], "{counts:?}");
        Ok(())
    })?;
    ensure!(
        stage.audited()? == ["Respond done"],
        "{:?}",
        stage.audited()
    );

    // A person takes it up.
    let (status, order, said) = stage.orders().rollback(&["apply", plan])?;
    ensure!(
        status == 0 && text(&order, "/state") == Some("done"),
        "{said} {order:#}"
    );
    stage.orders().expect("web", &stage.good, true)
}

#[test]
fn a_rule_that_may_has_its_container_rolled_back() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let stage = Stage::start("auto", "automatic = 'auto'\ncool_down_seconds = 0\n")?;
    let cause = stage.drift("first")?;
    let proposed = stage.wait_rollback("proposed")?;
    ensure!(text(&proposed, "/details/alert") == text(&cause, "/id"));
    let done = stage.wait_rollback("done")?;
    ensure!(
        text(&done, "/details/order") == text(&proposed, "/details/order")
            && text(&done, "/details/by") == Some(BY),
        "{done:#}"
    );
    stage.orders().expect("web", &stage.good, true)?;
    let expect = [
        "Respond done",
        "ApplyRollback begun",
        "ApplyRollback done",
        "Rollback done",
    ];
    until("the end to be audited", PATIENCE, || {
        let audited = stage.audited()?;
        ensure!(audited == expect, "{audited:?}");
        Ok(())
    })?;
    ensure!(stage.count("applied")? == 1);

    // There is nothing before the approved image that it could go back to.
    let cause = stage.drift("second")?;
    let refused = stage.wait_rollback("refused")?;
    ensure!(
        text(&refused, "/details/alert") == text(&cause, "/id")
            && text(&refused, "/details/failure").is_some_and(|it| it.contains("--to")),
        "{refused:#}"
    );
    stage.orders().expect("web", &stage.good, true)
}
