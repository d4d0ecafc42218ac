//! A node of a cluster: it tells the controller what runs, and is told which images may.

use std::{fs, net::TcpListener};

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use monitor_api::v1::{Approval, Container};
use serde_json::Value;
use tests::{
    alerts::{Alerts, text},
    containerd::Run,
    daemon::{Daemon, NODE},
    image::{self, Image, PROBE_PATH},
    joined::Known,
    layer::{Attributes, Layer},
    poll::{PATIENCE, until},
    process::finish,
    require,
    served::{certificates, section},
    sleeper::Sleeper,
};

const REPOSITORY: &str = "example.invalid/cart";

fn build(tag: &str) -> Result<Image> {
    let own = Layer::new().file("tag", tag.as_bytes(), Attributes::default());
    let layers = [image::base_layer()?, own];
    let reference = format!("{REPOSITORY}:{tag}");
    Image::build(&reference, &layers, &image::base_config())
}

/// Starts a container with the labels that the kubelet has containerd give it.
fn start(sleeper: &Sleeper, image: &Image, id: &str, pod: &str) -> Result<()> {
    let labels = [
        ("io.cri-containerd.kind", "container"),
        ("io.kubernetes.container.name", "app"),
        ("io.kubernetes.pod.name", pod),
        ("io.kubernetes.pod.namespace", "shop"),
        ("io.kubernetes.pod.uid", "3f0a7c1e-1"),
    ];
    let labels = labels.map(|(key, value)| ["--label".to_owned(), format!("{key}={value}")]);
    let run = Run::new(&image.reference, id)
        .flags(labels.into_iter().flatten())
        .arguments(["/bin/sleep", "600"]);
    sleeper.containerd.start_container(&run)
}

fn approval(image: &Image) -> Approval {
    Approval {
        repository: REPOSITORY.to_owned(),
        digest: image.manifest_digest.clone(),
        state: "approved".to_owned(),
        by: "alice".to_owned(),
        at: Some(prost_types::Timestamp {
            seconds: Timestamp::now().as_second(),
            nanos: 0,
        }),
        reason: "release 42".to_owned(),
        ..Approval::default()
    }
}

/// Waits for a report of exactly these containers, by which image.
fn wait_reported(known: &Known, expect: &[(&str, &Image)]) -> Result<Vec<Container>> {
    until("the report of what runs", PATIENCE, || {
        let running = known.look().running.clone();
        let ids = running.iter().filter_map(|it| it.container.as_ref());
        let ids: Vec<&str> = ids.map(|it| it.id.as_str()).collect();
        let expected: Vec<&str> = expect.iter().map(|(id, _)| *id).collect();
        ensure!(ids == expected, "{ids:?}");
        for (container, (_, image)) in running.iter().zip(expect) {
            let found = container.image.as_ref().context("no image")?;
            ensure!(
                found.identity == "proven" && found.manifest_digest == image.manifest_digest,
                "{found:?}"
            );
        }
        Ok(running)
    })
}

fn wait_unapproved(alerts: &Alerts, container: &str) -> Result<Value> {
    alerts.wait_for("of what is not approved", |alert| {
        text(alert, "/kind") == Some("image_unapproved")
            && text(alert, "/container/id") == Some(container)
    })
}

/// Waits until the status says so at `/controller`.
fn wait_status(daemon: &Daemon, pointer: &str, expect: &Value) -> Result<()> {
    until("the status of the controller", PATIENCE, || {
        let status = daemon.status()?;
        let found = status.pointer(pointer);
        ensure!(
            found == Some(expect),
            "{found:?}: {:?}",
            status.get("controller")
        );
        Ok(())
    })
}

/// Approves and revokes on the node, which is refused.
fn check_owned(daemon: &Daemon, image: &Image) -> Result<()> {
    let by_name = format!("{REPOSITORY}@{}", image.manifest_digest);
    for words in [["approve", &by_name], ["revoke", &image.manifest_digest]] {
        let mut command = daemon.monitorctl_command()?;
        let said = command.arg("approval").args(words);
        let done = finish(said.args(["--reason", "by hand"]))?;
        let told = String::from_utf8_lossy(&done.stderr).into_owned();
        ensure!(
            done.status.code() == Some(4) && told.contains("monitorctl --address https://"),
            "{words:?}: {done:?}"
        );
    }
    let listed = daemon.monitorctl(["approval", "list"])?;
    let sources: Vec<_> = listed.iter().map(|it| text(it, "/source")).collect();
    ensure!(sources == [Some("cluster")], "{listed:#?}");
    Ok(())
}

#[test]
fn a_node_tells_what_runs_and_keeps_what_its_controller_approved() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let sleeper = Sleeper::start()?;
    let (first, second) = (build("1")?, build("2")?);
    sleeper.containerd.import(&first)?;
    sleeper.containerd.import(&second)?;
    let trusted = sleeper.containerd.directory().join("trusted");
    certificates(&trusted)?;
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let config = section("controller", address, &trusted);
    start(&sleeper, &first, "cart-1", "cart-7d9f")?;

    let known = Known::default();
    known.approve(&[approval(&first)])?;
    let served = known.serve(address, &trusted)?;
    let daemon = sleeper.daemon(&config)?;
    let alerts = daemon.follow()?;
    // Not the container without a pod that is there as well.
    let running = wait_reported(&known, &[("cart-1", &first)])?;
    let pod = running
        .first()
        .and_then(|it| it.container.as_ref()?.pod.as_ref());
    let pod = pod.context("no pod")?;
    ensure!(
        [&*pod.namespace, &*pod.name, &*pod.uid] == ["shop", "cart-7d9f", "3f0a7c1e-1"],
        "{pod:?}"
    );
    ensure!(known.look().nodes == [NODE], "{:?}", known.look().nodes);
    wait_status(&daemon, "/controller/connected", &true.into())?;

    start(&sleeper, &second, "cart-2", "cart-8e0a")?;
    wait_reported(&known, &[("cart-1", &first), ("cart-2", &second)])?;
    let alert = wait_unapproved(&alerts, "cart-2")?;
    ensure!(
        text(&alert, "/container/pod/name") == Some("cart-8e0a"),
        "{alert:#}"
    );
    check_owned(&daemon, &first)?;
    // A set that makes no sense changes nothing.
    let mut wrong = approval(&second);
    wrong.digest.truncate(20);
    known.approve(&[wrong])?;
    wait_status(&daemon, "/controller/approvals_refused", &1.into())?;
    check_owned(&daemon, &first)?;

    // The controller is gone; what it said holds, also for the next daemon.
    served.stop()?;
    wait_status(&daemon, "/controller/connected", &false.into())?;
    ensure!(daemon.stop()?.success(), "{}", daemon.log());
    let daemon = sleeper.daemon(&config)?;
    let alerts = daemon.follow()?;
    check_owned(&daemon, &first)?;
    start(&sleeper, &second, "cart-3", "cart-9f1b")?;
    wait_unapproved(&alerts, "cart-3")?;
    ensure!(alerts.of("cart-1").is_empty(), "{:#?}", alerts.of("cart-1"));

    // It comes back, and says otherwise.
    known.look().approvals = vec![approval(&second)];
    let served = known.serve(address, &trusted)?;
    wait_unapproved(&alerts, "cart-1")?;
    wait_reported(
        &known,
        &[("cart-1", &first), ("cart-2", &second), ("cart-3", &second)],
    )?;
    sleeper.containerd.delete("cart-2")?;
    wait_reported(&known, &[("cart-1", &first), ("cart-3", &second)])?;
    ensure!(daemon.stop()?.success(), "{}", daemon.log());
    served.stop()
}

#[test]
fn an_incident_of_a_pod_is_told_until_the_controller_has_taken_it() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let sleeper = Sleeper::start()?;
    let image = build("1")?;
    sleeper.containerd.import(&image)?;
    let trusted = sleeper.containerd.directory().join("trusted");
    certificates(&trusted)?;
    let policies = tempfile::tempdir()?;
    let policy = "apiVersion: monitor.v1\nkind: Policy\nname: shop\nrules:\n- name: drift\n  on: finding\n  \
                  when: event.kind == \"exec_added\"\n  severity: critical\n  respond: auto\n";
    fs::write(policies.path().join("shop.yaml"), policy)?;
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let config = format!(
        "{}[policy]\ndirectory = '{}'\n[respond]\nautomatic = 'propose'\n",
        section("controller", address, &trusted),
        policies.path().display()
    );
    let daemon = sleeper.daemon(&config)?;
    start(&sleeper, &image, "cart-1", "cart-7d9f")?;
    let copy = [PROBE_PATH, "run-copy", "/tmp/x", "salt", "sleep-ms", "0"];
    sleeper.containerd.exec("cart-1", "drift", copy)?;
    // The controller is not there yet, and then takes nothing.
    wait_status(&daemon, "/controller/incidents", &1.into())?;
    let known = Known::default();
    let told = |count: usize| {
        until("the incident to be told", PATIENCE, || {
            let incidents = known.look().incidents.clone();
            ensure!(incidents.len() == count, "{incidents:?}");
            Ok(incidents)
        })
    };
    let served = known.serve(address, &trusted)?;
    let incident = told(1)?.pop().context("none")?;
    let alert = incident.alert.as_ref().context("no alert")?;
    let container = alert.container.as_ref().context("no container")?;
    ensure!(
        [&*incident.respond, &*incident.rule] == ["propose", "shop.drift"]
            && alert.kind == "exec_added"
            && container.id == "cart-1",
        "{incident:?}"
    );
    served.stop()?;
    wait_status(&daemon, "/controller/connected", &false.into())?;
    known.look().takes = true;
    let served = known.serve(address, &trusted)?;
    let again = told(2)?.pop().context("none")?;
    ensure!(again == incident, "{again:?}");
    wait_status(&daemon, "/controller/incidents", &0.into())?;
    wait_status(&daemon, "/responses/told", &1.into())?;
    // The node itself does nothing.
    let rollbacks = daemon.monitorctl(["rollback", "status"])?;
    ensure!(rollbacks.is_empty(), "{rollbacks:#?}");
    ensure!(daemon.stop()?.success(), "{}", daemon.log());
    served.stop()
}
