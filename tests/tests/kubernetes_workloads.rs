//! What the other tests take for granted of workloads, so that what stands in for a cluster's
//! controllers and kubelets and real ones are found to be the same in it.

#![expect(clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    sync::mpsc::{self, Receiver},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::{
    kubernetes::{
        cluster::Cluster,
        standin::{Behaviour, Event, Standin, What},
    },
    poll::{PATIENCE, until},
    skip,
};

/// Why a test has no use for real nodes.
const ABSENT: &str = "images that do not exist run on stand-in nodes only";
const NODES: [&str; 2] = ["monitord-node-a", "monitord-node-b"];

/// A cluster with workloads that run, and what its nodes see; `None` where the nodes are real, which is
/// said with `reason`.
fn start(reason: &str) -> Result<Option<(Cluster, Standin, Receiver<Event>)>> {
    let cluster = Cluster::start()?;
    let (sender, events) = mpsc::channel();
    let standin = Standin::start(&cluster, &NODES, move |event| {
        // The test may have ended.
        let _ = sender.send(event.clone());
    })?;
    if !standin.runs_pods() {
        skip::record(module_path!(), reason);
        return Ok(None);
    }
    Ok(Some((cluster, standin, events)))
}

fn workload(cluster: &Cluster, kind: &str, image: &str) -> Value {
    let mut object = json!({
        "apiVersion": "apps/v1", "kind": kind,
        "metadata": {"name": "web", "namespace": cluster.namespace()},
        "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "web", "image": image}]},
            },
        },
    });
    match kind {
        "DaemonSet" => {}
        "StatefulSet" => {
            object["spec"]["replicas"] = json!(2);
            object["spec"]["serviceName"] = json!("web");
        }
        _ => {
            object["spec"]["replicas"] = json!(2);
            object["spec"]["progressDeadlineSeconds"] = json!(2);
        }
    }
    object
}

fn number(object: &Value, pointer: &str) -> u64 {
    object
        .pointer(pointer)
        .and_then(Value::as_u64)
        .unwrap_or_default()
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// Waits until a workload runs as it is wanted, and nothing of how it was before.
fn rolled_out(cluster: &Cluster, kind: &str) -> Result<Value> {
    let (all, updated, ready) = match kind {
        "DaemonSet" => (
            "currentNumberScheduled",
            "updatedNumberScheduled",
            "numberReady",
        ),
        _ => ("replicas", "updatedReplicas", "readyReplicas"),
    };
    until("the rollout to end", PATIENCE, || {
        let object = cluster.get("apps/v1", kind, cluster.namespace(), "web")?;
        let generation = number(&object, "/metadata/generation");
        let is_seen = number(&object, "/status/observedGeneration") == generation;
        let is_whole = |field: &str| number(&object, &format!("/status/{field}")) == 2;
        ensure!(
            is_seen && is_whole(all) && is_whole(updated) && is_whole(ready),
            "{}",
            object["status"]
        );
        Ok(object)
    })
}

fn condition(object: &Value, kind: &str) -> (String, String) {
    let conditions = object
        .pointer("/status/conditions")
        .and_then(Value::as_array);
    let found = conditions
        .into_iter()
        .flatten()
        .find(|it| text(it, "/type") == kind);
    let of = |pointer| found.map_or("", |it| text(it, pointer)).to_owned();
    (of("/status"), of("/reason"))
}

/// The images of the next containers, in order: of those that started and those that ended.
fn take(events: &Receiver<Event>, count: usize) -> Result<(Vec<String>, Vec<String>)> {
    let (mut started, mut ended) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let event = events
            .recv_timeout(PATIENCE)
            .context("no further container")?;
        ensure!(event.id.len() == 64 && !event.node.is_empty(), "{event:?}");
        match event.what {
            What::Started => started.push(event.image),
            What::Ended => ended.push(event.image),
        }
    }
    Ok((started, ended))
}

fn images<const N: usize>(images: [&str; N]) -> Vec<String> {
    images.map(str::to_owned).to_vec()
}

const OLD: &str =
    "example.invalid/web@sha256:0101010101010101010101010101010101010101010101010101010101010101";
const NEW: &str =
    "example.invalid/web@sha256:0202020202020202020202020202020202020202020202020202020202020202";

#[test]
fn a_deployment_rolls_from_one_replica_set_to_the_next() -> Result<()> {
    let Some((cluster, _standin, events)) = start(ABSENT)? else {
        return Ok(());
    };
    let before = cluster.create(&workload(&cluster, "Deployment", OLD))?;
    let first = rolled_out(&cluster, "Deployment")?;
    assert_eq!(
        condition(&first, "Progressing"),
        ("True".to_owned(), "NewReplicaSetAvailable".to_owned())
    );
    assert_eq!(condition(&first, "Available").0, "True");
    assert_eq!(
        text(
            &first,
            "/metadata/annotations/deployment.kubernetes.io~1revision"
        ),
        "1"
    );
    assert_eq!(take(&events, 2)?, (images([OLD, OLD]), Vec::new()));

    // A pod's owner is a ReplicaSet, whose owner is the Deployment.
    let pods = cluster.list("v1", "Pod", cluster.namespace())?;
    let pod = pods.first().context("no pod")?;
    assert_eq!(text(pod, "/metadata/ownerReferences/0/kind"), "ReplicaSet");
    assert_eq!(text(pod, "/status/phase"), "Running");
    assert!(text(pod, "/status/containerStatuses/0/containerID").starts_with("containerd://"));
    let name = text(pod, "/metadata/ownerReferences/0/name");
    let set = cluster.get("apps/v1", "ReplicaSet", cluster.namespace(), name)?;
    assert_eq!(
        set.pointer("/metadata/ownerReferences/0/controller"),
        Some(&json!(true))
    );
    assert_eq!(
        set.pointer("/metadata/ownerReferences/0/uid"),
        before.pointer("/metadata/uid")
    );
    let hash = "/metadata/labels/pod-template-hash";
    assert!(!text(pod, hash).is_empty());
    assert_eq!(text(pod, hash), text(&set, hash));

    cluster.apply(&workload(&cluster, "Deployment", NEW))?;
    let second = rolled_out(&cluster, "Deployment")?;
    assert_eq!(
        text(
            &second,
            "/metadata/annotations/deployment.kubernetes.io~1revision"
        ),
        "2"
    );
    assert_eq!(take(&events, 4)?, (images([NEW, NEW]), images([OLD, OLD])));
    // Back: the first set is used again, as the third revision.
    cluster.apply(&workload(&cluster, "Deployment", OLD))?;
    let third = rolled_out(&cluster, "Deployment")?;
    assert_eq!(
        text(
            &third,
            "/metadata/annotations/deployment.kubernetes.io~1revision"
        ),
        "3"
    );
    assert_eq!(
        cluster
            .list("apps/v1", "ReplicaSet", cluster.namespace())?
            .len(),
        2
    );
    assert_eq!(take(&events, 4)?, (images([OLD, OLD]), images([NEW, NEW])));

    cluster.delete(&third)?;
    assert_eq!(take(&events, 2)?, (Vec::new(), images([OLD, OLD])));
    until("all to be gone", PATIENCE, || {
        ensure!(cluster.list("v1", "Pod", cluster.namespace())?.is_empty());
        ensure!(
            cluster
                .list("apps/v1", "ReplicaSet", cluster.namespace())?
                .is_empty()
        );
        Ok(())
    })
}

#[test]
fn a_deployment_whose_pods_are_never_ready_keeps_the_old_ones() -> Result<()> {
    let Some((cluster, standin, events)) = start("real nodes make no image fail on demand")? else {
        return Ok(());
    };
    standin.behave("sha256:0202", Behaviour::NeverReady);
    cluster.create(&workload(&cluster, "Deployment", OLD))?;
    rolled_out(&cluster, "Deployment")?;
    take(&events, 2)?;
    cluster.apply(&workload(&cluster, "Deployment", NEW))?;
    let stuck = until("the deadline to pass", PATIENCE, || {
        let object = cluster.get("apps/v1", "Deployment", cluster.namespace(), "web")?;
        let (holds, reason) = condition(&object, "Progressing");
        ensure!(holds == "False", "{holds} {reason}");
        assert_eq!(reason, "ProgressDeadlineExceeded");
        Ok(object)
    })?;
    assert!(
        number(&stuck, "/status/availableReplicas") >= 1,
        "{}",
        stuck["status"]
    );
    assert!(
        number(&stuck, "/status/updatedReplicas") >= 1,
        "{}",
        stuck["status"]
    );
    // A way back is open.
    cluster.apply(&workload(&cluster, "Deployment", OLD))?;
    rolled_out(&cluster, "Deployment")?;
    Ok(())
}

#[test]
fn a_slow_image_is_ready_after_a_while_and_an_absent_one_never_runs() -> Result<()> {
    let Some((cluster, standin, events)) = start("real nodes make no image slow on demand")? else {
        return Ok(());
    };
    standin.behave("sha256:0101", Behaviour::Slow(Duration::from_millis(300)));
    standin.behave("sha256:0202", Behaviour::Unpullable);
    cluster.create(&workload(&cluster, "Deployment", OLD))?;
    assert_eq!(take(&events, 2)?, (images([OLD, OLD]), Vec::new()));
    rolled_out(&cluster, "Deployment")?;
    cluster.apply(&workload(&cluster, "Deployment", NEW))?;
    until("a pod without its image", PATIENCE, || {
        let pods = cluster.list("v1", "Pod", cluster.namespace())?;
        let reason = "/status/containerStatuses/0/state/waiting/reason";
        ensure!(pods.iter().any(|pod| text(pod, reason) == "ErrImagePull"));
        Ok(())
    })
}

#[test]
fn a_daemon_set_has_one_pod_on_each_node_and_rolls() -> Result<()> {
    let Some((cluster, _standin, events)) = start(ABSENT)? else {
        return Ok(());
    };
    cluster.create(&workload(&cluster, "DaemonSet", OLD))?;
    rolled_out(&cluster, "DaemonSet")?;
    let pods = cluster.list("v1", "Pod", cluster.namespace())?;
    let nodes: BTreeSet<&str> = pods.iter().map(|pod| text(pod, "/spec/nodeName")).collect();
    assert_eq!(nodes, BTreeSet::from(NODES));
    assert_eq!(take(&events, 2)?, (images([OLD, OLD]), Vec::new()));
    cluster.apply(&workload(&cluster, "DaemonSet", NEW))?;
    rolled_out(&cluster, "DaemonSet")?;
    Ok(())
}

#[test]
fn a_stateful_set_replaces_its_pods_from_the_last_to_the_first() -> Result<()> {
    let Some((cluster, _standin, events)) = start(ABSENT)? else {
        return Ok(());
    };
    cluster.create(&workload(&cluster, "StatefulSet", OLD))?;
    rolled_out(&cluster, "StatefulSet")?;
    take(&events, 2)?;
    cluster.apply(&workload(&cluster, "StatefulSet", NEW))?;
    let after = rolled_out(&cluster, "StatefulSet")?;
    until("the revision to be the current one", PATIENCE, || {
        let object = cluster.get("apps/v1", "StatefulSet", cluster.namespace(), "web")?;
        let current = text(&object, "/status/currentRevision");
        ensure!(
            current == text(&after, "/status/updateRevision"),
            "{current}"
        );
        Ok(())
    })?;
    let started = (0..4)
        .map(|_| Ok(events.recv_timeout(PATIENCE)?))
        .collect::<Result<Vec<_>>>()?;
    let started = started.iter().filter(|event| event.what == What::Started);
    assert_eq!(
        started.map(|event| event.pod.as_str()).collect::<Vec<_>>(),
        ["web-1", "web-0"]
    );
    Ok(())
}
