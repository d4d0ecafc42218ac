//! Pods, made by containerd's CRI plugin as the kubelet makes them.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::{
    alerts::text,
    containerd::Containerd,
    cri::{Cri, NAMESPACE, Pod},
    daemon::Daemon,
    image::{self, Config, Image, PROBE_PATH},
    poll::{PATIENCE, until},
    require,
    world::BASE,
};

const PAUSE: &str = "example.invalid/pause:1";
const POD: &str = "cart-7d9f";
const POD_NAMESPACE: &str = "shop";
const UID: &str = "3f0a7c1e-0000-4000-8000-000000000001";

/// Who a container is, as alerts (at `/container`) and the inventory say it.
fn check_names(container: &Value, kind: &str, name: Option<&str>) -> Result<()> {
    let expect = [
        ("/runtime_namespace", Some(NAMESPACE)),
        ("/kind", Some(kind)),
        ("/name", name),
        ("/pod/name", Some(POD)),
        ("/pod/namespace", Some(POD_NAMESPACE)),
        ("/pod/uid", Some(UID)),
    ];
    check_texts(container, &expect)
}

fn check_texts(value: &Value, expect: &[(&str, Option<&str>)]) -> Result<()> {
    for (pointer, expect) in expect {
        let said = text(value, pointer);
        ensure!(said == *expect, "{pointer}: {said:?}: {value:#}");
    }
    Ok(())
}

fn check_pod(daemon: &Daemon, cri: &Cri, pod: &Pod, base: &Image) -> Result<()> {
    let container = cri.start_container(pod, "app", BASE, &["/bin/sleep", "600"])?;
    let alerts = daemon.follow()?;
    let show = |id: &str| -> Result<Value> {
        let mut shown = daemon.monitorctl(["container", "show", id])?;
        shown.pop().context("no container")
    };
    until("the pod to be known", PATIENCE, || {
        check_names(&show(&pod.sandbox)?, "sandbox", None)?;
        check_names(&show(&container)?, "container", Some("app"))
    })?;

    let copy = [
        PROBE_PATH,
        "run-copy",
        "/tmp/dropped",
        "salt",
        "sleep-ms",
        "0",
    ];
    ensure!(cri.exec(&container, &copy)? == 0);
    let alert = alerts.wait_for("of the dropped program", |alert| {
        text(alert, "/file/path") == Some("/tmp/dropped")
    })?;
    let container_of = alert.get("container").context("no container")?;
    check_names(container_of, "container", Some("app"))?;
    let expect = [
        ("/kind", Some("exec_added")),
        ("/container/id", Some(container.as_str())),
        ("/process/origin", Some("exec")),
        ("/image/identity", Some("proven")),
        ("/image/reference", Some(BASE)),
        (
            "/image/manifest_digest",
            Some(base.manifest_digest.as_str()),
        ),
    ];
    check_texts(&alert, &expect)?;
    // A file that the runtime put in is nobody's drift, and neither is the sandbox's program.
    let others = alerts.all();
    let others: Vec<_> = others
        .iter()
        .filter(|alert| text(alert, "/file/path") != Some("/tmp/dropped"))
        .collect();
    ensure!(others.is_empty(), "{others:#?}");
    Ok(())
}

#[test]
fn pods_of_the_cri_plugin_carry_their_names() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let containerd = Containerd::start_with_cri(PAUSE)?;
    let pause = Config {
        cmd: ["/bin/sleep", "600"].map(str::to_owned).to_vec(),
        ..image::base_config()
    };
    let (base, pause) = (
        image::base(BASE)?,
        Image::build(PAUSE, &[image::base_layer()?], &pause)?,
    );
    containerd.import_in(NAMESPACE, &base)?;
    containerd.import_in(NAMESPACE, &pause)?;
    let directory = containerd.directory().join("monitord");
    let daemon = Daemon::start(&containerd.address(), &directory)?;
    let cri = Cri::connect(&containerd.address())?;
    let cgroup = format!("/{}", containerd.namespace());
    let pod = until("containerd to know its images", PATIENCE, || {
        cri.start_pod(POD, POD_NAMESPACE, UID, &cgroup)
    })?;
    let checked = check_pod(&daemon, &cri, &pod, &base).with_context(|| daemon.log());
    cri.remove_pod(&pod)?;
    checked
}
