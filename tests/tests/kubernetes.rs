//! What the other tests take for granted of an API server, so that the one which stands in for it
//! and a real one are found to be the same in it.

#![expect(clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use kube::{
    Api,
    api::{
        DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, WatchEvent,
        WatchParams,
    },
};
use serde_json::{Value, json};
use tests::{
    kubernetes::{cluster::Cluster, objects::refused},
    poll::{PATIENCE, until},
    skip,
};
use tokio_stream::StreamExt as _;

/// Suspended, so that no controller changes it while a test looks.
fn nightly(cluster: &Cluster, image: &str) -> Value {
    json!({
        "apiVersion": "batch/v1", "kind": "CronJob",
        "metadata": {"name": "nightly", "namespace": cluster.namespace()},
        "spec": {
            "schedule": "0 3 * * *", "suspend": true,
            "jobTemplate": {"spec": {"template": {"spec": {
                "restartPolicy": "Never",
                "containers": [
                    {"name": "job", "image": image, "env": [{"name": "A", "value": "1"}]},
                    {"name": "log", "image": "example.invalid/log:1"},
                ],
            }}}},
        },
    })
}

/// What someone applies who owns the image alone.
fn image(cluster: &Cluster, image: &str) -> Value {
    json!({
        "apiVersion": "batch/v1", "kind": "CronJob",
        "metadata": {"name": "nightly", "namespace": cluster.namespace()},
        "spec": {"jobTemplate": {"spec": {"template": {"spec": {"containers": [
            {"name": "job", "image": image},
        ]}}}}},
    })
}

fn cron_jobs(cluster: &Cluster) -> Api<DynamicObject> {
    cluster
        .objects()
        .api("batch/v1", "CronJob", cluster.namespace())
}

fn deployments(cluster: &Cluster) -> Api<DynamicObject> {
    cluster
        .objects()
        .api("apps/v1", "Deployment", cluster.namespace())
}

fn text<'a>(object: &'a Value, pointer: &str) -> Option<&'a str> {
    object.pointer(pointer).and_then(Value::as_str)
}

fn value(object: &DynamicObject) -> Result<Value> {
    Ok(serde_json::to_value(object)?)
}

const CONTAINERS: &str = "/spec/jobTemplate/spec/template/spec/containers";
const IMAGE: &str = "/spec/jobTemplate/spec/template/spec/containers/0/image";

#[test]
fn a_change_of_an_outdated_version_is_refused() -> Result<()> {
    let cluster = Cluster::start()?;
    let before = cluster.create(&nightly(&cluster, "example.invalid/job:1"))?;
    let name = json!({"metadata": {"labels": {"step": "2"}}});
    let api = cron_jobs(&cluster);
    let merge = PatchParams::default();
    let after = value(&cluster.run(api.patch("nightly", &merge, &Patch::Merge(&name)))?)?;
    ensure!(
        text(&before, "/metadata/resourceVersion") != text(&after, "/metadata/resourceVersion")
    );

    let outdated = serde_json::from_value(before.clone())?;
    let status = refused(cluster.run(api.replace("nightly", &PostParams::default(), &outdated)))?;
    assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));
    let version =
        json!({"metadata": {"resourceVersion": before.pointer("/metadata/resourceVersion")}});
    let status = refused(cluster.run(api.patch("nightly", &merge, &Patch::Merge(&version))))?;
    assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));

    // The latest version is taken, and the same again is no change.
    let latest = serde_json::from_value(after.clone())?;
    let same = value(&cluster.run(api.replace("nightly", &PostParams::default(), &latest))?)?;
    assert_eq!(
        text(&same, "/metadata/resourceVersion"),
        text(&after, "/metadata/resourceVersion")
    );
    Ok(())
}

#[test]
fn the_generation_counts_changes_of_what_is_wanted() -> Result<()> {
    let cluster = Cluster::start()?;
    let generation = |object: &Value| {
        object
            .pointer("/metadata/generation")
            .and_then(Value::as_u64)
    };
    let created = cluster.create(&nightly(&cluster, "example.invalid/job:1"))?;
    assert_eq!(generation(&created), Some(1));
    let mut patch = json!({
        "apiVersion": "batch/v1", "kind": "CronJob",
        "metadata": {"name": "nightly", "namespace": cluster.namespace(), "annotations": {"a": "b"}},
    });
    assert_eq!(generation(&cluster.merge(&patch)?), Some(1));
    patch["status"] = json!({"lastScheduleTime": "2026-11-28T03:00:00Z"});
    let changed = cluster.merge(&patch)?;
    assert_eq!(
        changed.pointer("/status/lastScheduleTime"),
        None,
        "by a path that is not the status's"
    );
    let changed = cluster.merge_status(&patch)?;
    assert_eq!(
        changed.pointer("/status/lastScheduleTime"),
        Some(&json!("2026-11-28T03:00:00Z"))
    );
    assert_eq!(generation(&changed), Some(1));
    patch["spec"] = json!({"schedule": "0 4 * * *"});
    let changed = cluster.merge(&patch)?;
    assert_eq!(generation(&changed), Some(2));
    assert_eq!(
        changed.pointer("/status/lastScheduleTime"),
        Some(&json!("2026-11-28T03:00:00Z"))
    );
    // Annotations of a Deployment count too, for they go on to its ReplicaSets.
    let mut workload = cluster.web("example.invalid/web:1");
    workload["spec"]["replicas"] = json!(0);
    cluster.create(&workload)?;
    workload["metadata"]["annotations"] = json!({"a": "b"});
    let changed = cluster.merge(&workload)?;
    assert!(generation(&changed) > Some(1), "{changed}");
    Ok(())
}

#[test]
fn who_applies_a_field_of_another_must_force_it() -> Result<()> {
    let cluster = Cluster::start()?;
    let api = cron_jobs(&cluster);
    let one = PatchParams::apply("one");
    let two = PatchParams::apply("two");
    let whole = nightly(&cluster, "example.invalid/job:1");
    cluster.run(api.patch("nightly", &one, &Patch::Apply(&whole)))?;

    let other = image(&cluster, "example.invalid/job:2");
    let status = refused(cluster.run(api.patch("nightly", &two, &Patch::Apply(&other))))?;
    assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));
    let causes = status.details.context("no details")?.causes;
    let cause = causes.first().context("no cause")?;
    assert_eq!(causes.len(), 1);
    assert_eq!(cause.reason, "FieldManagerConflict");
    assert_eq!(cause.message, "conflict with \"one\"");
    assert_eq!(
        cause.field,
        ".spec.jobTemplate.spec.template.spec.containers[name=\"job\"].image"
    );

    let forced =
        value(&cluster.run(api.patch("nightly", &two.clone().force(), &Patch::Apply(&other)))?)?;
    assert_eq!(text(&forced, IMAGE), Some("example.invalid/job:2"));
    assert_eq!(
        forced.pointer("/spec/jobTemplate/spec/template/spec/containers/1/name"),
        Some(&json!("log"))
    );
    // The same again is no change.
    let again = value(&cluster.run(api.patch("nightly", &two, &Patch::Apply(&other)))?)?;
    assert_eq!(
        text(&again, "/metadata/resourceVersion"),
        text(&forced, "/metadata/resourceVersion")
    );
    // Who alone owns what must be there cannot give it up.
    let mut nothing = image(&cluster, "");
    nothing["spec"] = json!({});
    let status = refused(cluster.run(api.patch("nightly", &two, &Patch::Apply(&nothing))))?;
    assert_eq!((status.code, status.reason.as_str()), (422, "Invalid"));
    assert!(
        status.message.contains("image: Required value"),
        "{}",
        status.message
    );
    // Now the first is the one that must force it.
    let status = refused(cluster.run(api.patch("nightly", &one, &Patch::Apply(&whole))))?;
    assert_eq!(status.code, 409);
    assert!(
        status.message.contains("conflict with \"two\""),
        "{}",
        status.message
    );

    let owner = |object: &Value, field: &str| -> Vec<String> {
        let entries = object
            .pointer("/metadata/managedFields")
            .and_then(Value::as_array);
        let own = entries.into_iter().flatten().filter(|it| {
            it.pointer("/fieldsV1/f:spec/f:jobTemplate/f:spec/f:template/f:spec/f:containers/k:{\"name\":\"job\"}")
                .is_some_and(|item| item.get(field).is_some())
        });
        own.filter_map(|it| text(it, "/manager").map(str::to_owned))
            .collect()
    };
    assert_eq!(owner(&again, "f:image"), ["two"]);
    assert_eq!(owner(&again, "f:env"), ["one"]);
    Ok(())
}

#[test]
fn what_is_left_out_is_given_up() -> Result<()> {
    let cluster = Cluster::start()?;
    let api = cron_jobs(&cluster);
    let one = PatchParams::apply("one");
    let mut object = nightly(&cluster, "example.invalid/job:1");
    object["metadata"]["annotations"] = json!({"kept": "1", "shared": "1", "dropped": "1"});
    cluster.run(api.patch("nightly", &one, &Patch::Apply(&object)))?;
    let mut shared = image(&cluster, "example.invalid/job:1");
    shared["metadata"]["annotations"] = json!({"shared": "1"});
    cluster.run(api.patch(
        "nightly",
        &PatchParams::apply("two"),
        &Patch::Apply(&shared),
    ))?;

    object["metadata"]["annotations"] = json!({"kept": "1"});
    if let Some(containers) = object.pointer_mut(CONTAINERS) {
        *containers = json!([{"name": "job", "image": "example.invalid/job:1"}]);
    }
    let after = value(&cluster.run(api.patch("nightly", &one, &Patch::Apply(&object)))?)?;
    let annotations = after.pointer("/metadata/annotations");
    assert_eq!(annotations, Some(&json!({"kept": "1", "shared": "1"})));
    let containers = after.pointer(CONTAINERS).and_then(Value::as_array);
    let containers = containers.context("no containers")?;
    assert_eq!(containers.len(), 1);
    assert_eq!(containers.first().and_then(|it| it.get("env")), None);

    // What the last of its owners leaves out goes, though it applies nothing else then.
    shared["metadata"]["annotations"] = json!({});
    let after = value(&cluster.run(api.patch(
        "nightly",
        &PatchParams::apply("two"),
        &Patch::Apply(&shared),
    ))?)?;
    assert_eq!(
        after.pointer("/metadata/annotations"),
        Some(&json!({"kept": "1"}))
    );
    Ok(())
}

#[test]
fn what_is_applied_may_name_the_version_that_it_is_meant_for() -> Result<()> {
    let cluster = Cluster::start()?;
    let api = cron_jobs(&cluster);
    let before = cluster.create(&nightly(&cluster, "example.invalid/job:1"))?;
    let version = text(&before, "/metadata/resourceVersion").context("no version")?;
    let mut applied = image(&cluster, "example.invalid/job:2");
    applied["metadata"]["resourceVersion"] = json!(version);
    let params = PatchParams::apply("two").force();
    let after = value(&cluster.run(api.patch("nightly", &params, &Patch::Apply(&applied)))?)?;
    assert_eq!(text(&after, IMAGE), Some("example.invalid/job:2"));

    applied["spec"] = image(&cluster, "example.invalid/job:3")["spec"].clone();
    let status = refused(cluster.run(api.patch("nightly", &params, &Patch::Apply(&applied))))?;
    assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));
    assert!(
        status.message.contains("the object has been modified"),
        "{}",
        status.message
    );
    assert_eq!(
        text(&value(&cluster.run(api.get("nightly"))?)?, IMAGE),
        Some("example.invalid/job:2")
    );

    // A version does not keep one from making it again when it has gone: only the role can.
    cluster.delete(&nightly(&cluster, ""))?;
    let mut whole = nightly(&cluster, "example.invalid/job:4");
    whole["metadata"]["resourceVersion"] = json!(version);
    let made = value(&cluster.run(api.patch("nightly", &params, &Patch::Apply(&whole)))?)?;
    assert!(text(&made, "/metadata/uid") != text(&before, "/metadata/uid"));
    Ok(())
}

/// Takes events until `enough` of them came.
fn watched(
    cluster: &Cluster,
    api: &Api<DynamicObject>,
    params: &WatchParams,
    version: &str,
    enough: usize,
) -> Result<Vec<WatchEvent<DynamicObject>>> {
    cluster.run(async {
        let mut stream = std::pin::pin!(api.watch(params, version).await?);
        let mut events = Vec::new();
        while events.len() < enough {
            let next = tokio::time::timeout(PATIENCE, stream.next()).await?;
            let Some(event) = next else {
                break;
            };
            match event? {
                WatchEvent::Bookmark(_) => {}
                event => events.push(event),
            }
        }
        Ok(events)
    })
}

fn named(event: &WatchEvent<DynamicObject>) -> String {
    let of = |what: &str, object: &DynamicObject| {
        format!(
            "{what} {}",
            object.metadata.name.as_deref().unwrap_or_default()
        )
    };
    match event {
        WatchEvent::Added(object) => of("added", object),
        WatchEvent::Modified(object) => of("modified", object),
        WatchEvent::Deleted(object) => of("deleted", object),
        WatchEvent::Bookmark(_) => "bookmark".to_owned(),
        WatchEvent::Error(status) => format!("error {}", status.code),
    }
}

#[test]
fn a_watch_goes_on_from_a_version() -> Result<()> {
    let cluster = Cluster::start()?;
    let api = cluster
        .objects()
        .api("v1", "ConfigMap", cluster.namespace());
    let map = |name: &str, label: &str| {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": cluster.namespace(), "labels": {"test": label}},
        })
    };
    cluster.create(&map("before", "a"))?;
    let listed = cluster.run(api.list(&ListParams::default()))?;
    let version = listed
        .metadata
        .resource_version
        .context("a list without a version")?;
    cluster.create(&map("one", "a"))?;
    cluster.create(&map("two", "b"))?;
    cluster.merge(&map("one", "b"))?;
    cluster.delete(&map("two", "b"))?;

    let check = |params: &WatchParams, expect: &[&str]| -> Result<()> {
        let events = watched(&cluster, &api, params, &version, expect.len())?;
        assert_eq!(events.iter().map(named).collect::<Vec<_>>(), expect);
        Ok(())
    };
    let all = WatchParams::default().timeout(30);
    check(
        &all,
        &["added one", "added two", "modified one", "deleted two"],
    )?;
    // One that the labels are no more or newly about has gone or come.
    check(&all.clone().labels("test=a"), &["added one", "deleted one"])?;
    check(
        &all.clone().labels("test in (b)"),
        &["added two", "added one", "deleted two"],
    )?;
    check(
        &all.fields("metadata.name=two"),
        &["added two", "deleted two"],
    )?;
    // It ends when its time is over.
    let ended = watched(
        &cluster,
        &api,
        &WatchParams::default().timeout(1),
        &version,
        usize::MAX,
    )?;
    assert_eq!(ended.len(), 4);
    Ok(())
}

#[test]
fn a_list_comes_in_pages() -> Result<()> {
    let cluster = Cluster::start()?;
    let api = cluster
        .objects()
        .api("v1", "ConfigMap", cluster.namespace());
    for name in ["a", "b", "c"] {
        cluster.create(&json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": cluster.namespace(), "labels": {"test": "pages"}},
        }))?;
    }
    let params = ListParams::default().labels("test=pages").limit(2);
    let first = cluster.run(api.list(&params))?;
    assert_eq!(first.items.len(), 2);
    let token = first.metadata.continue_.context("no next page")?;
    let second = cluster.run(api.list(&params.continue_token(&token)))?;
    assert_eq!(second.items.len(), 1);
    assert_eq!(second.metadata.continue_.unwrap_or_default(), "");
    Ok(())
}

#[test]
fn a_watch_from_a_forgotten_version_is_told_so() -> Result<()> {
    let cluster = Cluster::start()?;
    let Some(server) = cluster.server() else {
        skip::record(
            module_path!(),
            "a real cluster is not made to forget versions",
        );
        return Ok(());
    };
    let api = cluster
        .objects()
        .api("v1", "ConfigMap", cluster.namespace());
    let version = cluster
        .run(api.list(&ListParams::default()))?
        .metadata
        .resource_version;
    let version = version.context("a list without a version")?;
    server.expire_watches();
    let events = watched(
        &cluster,
        &api,
        &WatchParams::default(),
        &version,
        usize::MAX,
    )?;
    let [WatchEvent::Error(status)] = events.as_slice() else {
        bail!("{events:?}");
    };
    assert_eq!((status.code, status.reason.as_str()), (410, "Expired"));
    Ok(())
}

#[test]
fn what_is_not_there_is_not_found() -> Result<()> {
    let cluster = Cluster::start()?;
    let status = refused(cluster.run(deployments(&cluster).get("none")))?;
    assert_eq!((status.code, status.reason.as_str()), (404, "NotFound"));
    assert_eq!(status.message, "deployments.apps \"none\" not found");
    let unknown = cluster.objects().api("unheard.example/v1", "Thing", "");
    assert_eq!(
        refused(cluster.run(unknown.list(&ListParams::default())))?.code,
        404
    );
    let nowhere = cluster
        .objects()
        .api("v1", "ConfigMap", "monitord-test-nowhere");
    let map = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "one"},
    }))?;
    assert_eq!(
        refused(cluster.run(nowhere.create(&PostParams::default(), &map)))?.code,
        404
    );
    let map = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "one"},
    }))?;
    let here = cluster
        .objects()
        .api("v1", "ConfigMap", cluster.namespace());
    cluster.run(here.create(&PostParams::default(), &map))?;
    let status = refused(cluster.run(here.create(&PostParams::default(), &map)))?;
    assert_eq!(
        (status.code, status.reason.as_str()),
        (409, "AlreadyExists")
    );
    Ok(())
}

#[test]
fn a_watch_lasts_as_long_as_the_server_lets_it() -> Result<()> {
    let cluster = Cluster::start()?;
    let Some(server) = cluster.server() else {
        skip::record(
            module_path!(),
            "a real cluster's watches last as long as they do",
        );
        return Ok(());
    };
    server.set_watch_time(Duration::from_millis(100));
    let api = cluster
        .objects()
        .api("v1", "ConfigMap", cluster.namespace());
    let events = watched(&cluster, &api, &WatchParams::default(), "0", usize::MAX)?;
    assert_eq!(events.len(), 0);
    Ok(())
}

#[test]
fn what_has_finalizers_stays_until_the_last_is_taken_away() -> Result<()> {
    let cluster = Cluster::start()?;
    let mut map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "one", "namespace": cluster.namespace(),
            "finalizers": ["example.com/one"]},
    });
    cluster.create(&map)?;
    cluster.delete(&map)?;
    let going = cluster.get("v1", "ConfigMap", cluster.namespace(), "one")?;
    assert!(text(&going, "/metadata/deletionTimestamp").is_some());
    map["metadata"]["finalizers"] = Value::Null;
    cluster.merge(&map)?;
    let maps = cluster
        .objects()
        .api("v1", "ConfigMap", cluster.namespace());
    assert!(cluster.run(maps.get_opt("one"))?.is_none());
    Ok(())
}

#[test]
fn a_pod_on_a_node_ends_when_its_kubelet_says_so() -> Result<()> {
    let cluster = Cluster::start()?;
    let pods = cluster.objects().api("v1", "Pod", cluster.namespace());
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "one", "namespace": cluster.namespace()},
        "spec": {"nodeName": "nowhere", "containers": [{"name": "c", "image": "example.invalid/web:1"}]},
    });
    cluster.create(&pod)?;
    cluster.delete(&pod)?;
    let going = value(&cluster.run(pods.get("one"))?)?;
    assert!(text(&going, "/metadata/deletionTimestamp").is_some());
    let now = DeleteParams::default().grace_period(0);
    cluster.run(pods.delete("one", &now))?;
    until("the pod to be gone", PATIENCE, || {
        ensure!(cluster.run(pods.get_opt("one"))?.is_none());
        Ok(())
    })
}
