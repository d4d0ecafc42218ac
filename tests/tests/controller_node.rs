//! The whole way: an image that nobody approved runs in a cluster, the node's daemon says so, a responder
//! orders one rollback, and it is done when the daemon proves by chain ID what its containerd runs.

use std::{path::Path, sync::Arc, time::Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::{
    alerts::text,
    authority::Authority,
    containerd::Run,
    controller::Controller,
    daemon::NODE,
    image::{self, Image},
    kubernetes::{
        cluster::Cluster,
        standin::{Event, Standin, What},
    },
    layer::{Attributes, Layer},
    poll::{PATIENCE, until},
    registry::{PASSWORD, Registry, USER, credentials},
    require, skip,
    sleeper::Sleeper,
};

fn build(repository: &str, word: &str) -> Result<Image> {
    let own = Layer::new().file("word", word.as_bytes(), Attributes::default());
    let layers = [image::base_layer()?, own];
    Image::build(
        &format!("{repository}:{word}"),
        &layers,
        &image::base_config(),
    )
}

/// As the kubelet does: by the reference of the pod, with its labels.
fn run(sleeper: &Sleeper, event: &Event) -> Result<()> {
    if event.what == What::Ended {
        return sleeper.containerd.delete(&event.id);
    }
    let labels = [
        ("io.cri-containerd.kind", "container"),
        ("io.kubernetes.container.name", &event.container),
        ("io.kubernetes.pod.name", &event.pod),
        ("io.kubernetes.pod.namespace", &event.namespace),
        ("io.kubernetes.pod.uid", &event.uid),
    ];
    let labels = labels.map(|(key, value)| ["--label".to_owned(), format!("{key}={value}")]);
    let run = Run::new(&event.image, &event.id)
        .flags(labels.into_iter().flatten())
        .arguments(["/bin/sleep", "600"]);
    sleeper.containerd.start_container(&run)
}

#[test]
fn one_order_takes_a_workload_back_and_its_node_proves_it() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf, DockerRegistry);
    let sleeper = Arc::new(Sleeper::start()?);
    let registry = Registry::start()?;
    let repository = format!("{}/shop/web", registry.address());
    let (good, bad) = (build(&repository, "good")?, build(&repository, "bad")?);
    let (by_index, by_manifest) = (&good.index_digest, &bad.manifest_digest);
    for (image, digest) in [(&good, by_index), (&bad, by_manifest)] {
        registry.push_with_index(image, "shop/web")?;
        sleeper.containerd.import(image)?;
        let by_digest = format!("{repository}@{digest}");
        let tag = ["images", "tag", &image.reference, &by_digest];
        sleeper.containerd.ctr(tag)?;
    }
    let cluster = Cluster::start()?;
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/controller.yaml");
    cluster.apply_file(&manifest)?;
    let account = cluster.account_kubeconfig("monitord", "monitord-controller")?;
    let directory = tempfile::tempdir()?;
    let (authority, own) = (Authority::new()?, directory.path().join("controller"));
    std::fs::create_dir_all(&own)?;
    let file = own.join("credentials.json");
    std::fs::write(&file, credentials(registry.address(), USER, PASSWORD))?;
    let settings = format!(
        "[registry]\nenabled = true\ncredentials = '{}'\nca = '{}'\nplain_http = ['{}']\n",
        file.display(),
        own.join("ca.crt").display(),
        registry.address()
    );
    let controller = Controller::start(&account, &own, &authority, &settings)?;
    controller.wait_leads()?;
    authority.issue(NODE, &own)?;
    let (at, address) = (own.display(), &controller.address);
    let daemon = sleeper.daemon(&format!(
        "[controller]\naddress = '{address}'\nca = '{at}/ca.crt'\n\
         certificate = '{at}/{NODE}.crt'\nkey = '{at}/{NODE}.key'\n"
    ))?;
    let alerts = daemon.follow()?;
    let approved = format!("{repository}@{by_index}");
    controller.done(&["approval", "approve", &approved, "--reason", "release"])?;

    let kubelet = Arc::clone(&sleeper);
    let standin = Standin::start(&cluster, &[NODE], move |event| {
        if let Err(error) = run(&kubelet, event) {
            eprintln!("{error:#}");
        }
    })?;
    if !standin.runs_pods() {
        skip::record(module_path!(), "the cluster runs its pods itself");
        return Ok(());
    }
    let spec = |image: &str| {
        json!({
            "replicas": 2, "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "web", "image": image}]},
            },
        })
    };
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": cluster.namespace()},
        "spec": spec(&format!("{repository}@{by_manifest}")),
    });
    cluster.create(&deployment)?;
    let is_bad = |alert: &Value| {
        text(alert, "/kind") == Some("image_unapproved")
            && text(alert, "/image/manifest_digest") == Some(by_manifest)
    };
    alerts.wait_for("of what is not approved", is_bad)?;
    until("both pods to be reported", PATIENCE, || {
        let listed = controller.done(&["container", "list"])?;
        let bad = |it: &&Value| text(it, "/image/manifest_digest") == Some(by_manifest);
        ensure!(listed.iter().filter(bad).count() == 2, "{listed:?}");
        Ok(())
    })?;

    let begun = Instant::now();
    let target = format!("deployment/{}/web", cluster.namespace());
    let words = [
        "rollback",
        &target,
        "--to",
        by_index,
        "--reason",
        "unapproved",
    ];
    let done = controller.done(&words)?;
    let order = done.last().context("no order")?;
    let message = text(order, "/message").unwrap_or_default();
    ensure!(message.contains("prove of 2 pods by chain ID"), "{order}");
    ensure!(text(order, "/from_digest") == Some(by_manifest), "{order}");
    ensure!(text(order, "/chain_id") == Some(&good.chain_id), "{order}");
    println!(
        "rolled back and proven in {:.2} s",
        begun.elapsed().as_secs_f64()
    );
    drop(standin);
    ensure!(controller.stop()?.success(), "{}", controller.log());
    Ok(())
}
