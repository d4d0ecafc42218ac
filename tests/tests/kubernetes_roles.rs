//! Who may do what by the roles of `deploy/controller.yaml`, and what its definition of approvals lets
//! in: enough for the controller's work, and no more.

#![expect(clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use kube::{
    Api, Error,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tests::{
    kubernetes::{cluster::Cluster, http::Fault, objects::refused},
    skip,
};

/// The controller's account, roles, and the resource that it owns.
fn controller_yaml() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/controller.yaml")
}

fn text<'a>(object: &'a Value, pointer: &str) -> Option<&'a str> {
    object.pointer(pointer).and_then(Value::as_str)
}

fn value(object: &DynamicObject) -> Result<Value> {
    Ok(serde_json::to_value(object)?)
}

#[test]
fn the_controllers_roles_let_it_do_its_work_and_nothing_else() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.apply_file(&controller_yaml())?;
    let account = cluster.account_kubeconfig("monitord", "monitord-controller")?;
    let own = cluster.objects_of(&account)?;
    cluster.create(&cluster.web("example.invalid/web:1"))?;
    let namespace = cluster.namespace();

    let workloads = own.api("apps/v1", "Deployment", namespace);
    let params = PatchParams::apply("monitord").force();
    let applied = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": namespace},
        "spec": {"template": {"spec": {"containers": [
            {"name": "web", "image": "example.invalid/web:2"},
        ]}}},
    });
    let after = value(&cluster.run(workloads.patch("web", &params, &Patch::Apply(&applied)))?)?;
    let image = text(&after, "/spec/template/spec/containers/0/image");
    assert_eq!(image, Some("example.invalid/web:2"));
    let all = ListParams::default();
    for (api_version, kind) in [
        ("apps/v1", "Deployment"),
        ("apps/v1", "DaemonSet"),
        ("apps/v1", "StatefulSet"),
        ("batch/v1", "CronJob"),
        ("v1", "Pod"),
        ("monitord.io/v1", "ImageApproval"),
    ] {
        cluster
            .run(own.api(api_version, kind, "").list(&all))
            .with_context(|| kind.to_owned())?;
    }

    let forbidden = |what: &str, answer: Result<DynamicObject, Error>| -> Result<()> {
        let status = refused(answer).with_context(|| what.to_owned())?;
        assert_eq!(
            (status.code, status.reason.as_str()),
            (403, "Forbidden"),
            "{what}"
        );
        Ok(())
    };
    let deployment = serde_json::from_value(json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "new"},
    }))?;
    let post = PostParams::default();
    forbidden(
        "create a deployment",
        cluster.run(workloads.create(&post, &deployment)),
    )?;
    let absent = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "new"},
        "spec": cluster.web("example.invalid/web:1")["spec"].clone()});
    forbidden(
        "create by applying",
        cluster.run(workloads.patch("new", &params, &Patch::Apply(&absent))),
    )?;
    forbidden(
        "replace a deployment",
        cluster.run(workloads.replace("web", &post, &deployment)),
    )?;
    let status = json!({"status": {"replicas": 1}});
    let merge = PatchParams::default();
    forbidden(
        "say its status",
        cluster.run(workloads.patch_status("web", &merge, &Patch::Merge(&status))),
    )?;
    let pods = own.api("v1", "Pod", namespace);
    let pod = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "new"},
    }))?;
    forbidden("create a pod", cluster.run(pods.create(&post, &pod)))?;
    forbidden(
        "read a secret",
        cluster.run(own.api("v1", "Secret", namespace).get("any")),
    )?;
    let secrets = cluster.run(own.api("v1", "Secret", "monitord").list(&all));
    assert_eq!(refused(secrets)?.code, 403);
    let deleted = cluster.run(workloads.delete("web", &DeleteParams::default()));
    assert_eq!(refused(deleted)?.code, 403);
    let lease = |name: &str| {
        serde_json::from_value::<DynamicObject>(json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name},
        }))
    };
    let leases = own.api("coordination.k8s.io/v1", "Lease", "monitord");
    // It is there already where another test or the controller has been.
    match cluster.run(leases.create(&post, &lease("monitord-controller")?)) {
        Err(Error::Api(status)) if status.is_already_exists() => {}
        answer => drop(answer?),
    }
    cluster.run(leases.get("monitord-controller"))?;
    forbidden("read another lease", cluster.run(leases.get("other")))?;
    let elsewhere = own.api("coordination.k8s.io/v1", "Lease", namespace);
    forbidden(
        "create a lease elsewhere",
        cluster.run(elsewhere.create(&post, &lease("other")?)),
    )?;
    Ok(())
}

#[test]
fn an_approval_is_checked_by_its_definition() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.apply_file(&controller_yaml())?;
    let account = cluster.account_kubeconfig("monitord", "monitord-controller")?;
    let own = cluster.objects_of(&account)?;
    let approvals = own.api("monitord.io/v1", "ImageApproval", "");
    let name = cluster.namespace();
    let approval = |digest: &str, state: &str| {
        json!({
            "apiVersion": "monitord.io/v1", "kind": "ImageApproval", "metadata": {"name": name},
            "spec": {
                "repository": "registry.example/shop/web",
                "statements": [{"digest": digest, "state": state, "by": "alice",
                    "at": "2026-11-28T08:00:00Z", "reason": "scanned"}],
                "unheard": "of",
            },
            "status": {"ran": []},
        })
    };
    let create = |object: Value| -> Result<Result<DynamicObject, Error>> {
        let object = serde_json::from_value(object)?;
        Ok(cluster.run(approvals.create(&PostParams::default(), &object)))
    };
    let digest = format!("sha256:{}", "ab".repeat(32));
    for (digest, state) in [("sha256:ab", "approved"), (digest.as_str(), "maybe")] {
        let status = refused(create(approval(digest, state))?)?;
        assert_eq!(
            (status.code, status.reason.as_str()),
            (422, "Invalid"),
            "{}",
            status.message
        );
    }
    let made = value(&create(approval(&digest, "approved"))?.map_err(|error| anyhow!(error))?)?;
    assert_eq!(
        made.pointer("/spec/unheard"),
        None,
        "what the definition does not know is dropped"
    );
    assert_eq!(
        made.pointer("/status"),
        None,
        "the status has a path of its own"
    );
    assert_eq!(made.pointer("/metadata/generation"), Some(&json!(1)));
    // A replacement must say of which version.
    let blind = serde_json::from_value(approval(&digest, "revoked"))?;
    let post = PostParams::default();
    assert_eq!(
        refused(cluster.run(approvals.replace(name, &post, &blind)))?.code,
        422
    );
    let mut next = made.clone();
    next["spec"]["statements"][0]["state"] = json!("revoked");
    let next = serde_json::from_value(next)?;
    let next = value(&cluster.run(approvals.replace(name, &post, &next))?)?;
    assert_eq!(next.pointer("/metadata/generation"), Some(&json!(2)));
    let mut ran = next.clone();
    ran["status"] = json!({"ran": [{"workload": "deployment/shop/web", "digest": digest,
        "at": "2026-11-28T08:00:00Z"}]});
    let ran = serde_json::from_value(ran)?;
    let ran = value(&cluster.run(approvals.replace_status(name, &post, &ran))?)?;
    assert_eq!(ran.pointer("/status/ran/0/digest"), Some(&json!(digest)));
    assert_eq!(ran.pointer("/metadata/generation"), Some(&json!(2)));
    cluster.delete(&ran)
}

#[test]
fn who_has_no_valid_token_is_no_one() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.create(&json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": "someone", "namespace": cluster.namespace()},
    }))?;
    let path = cluster.account_kubeconfig(cluster.namespace(), "someone")?;
    let pods = |path: &Path| -> Result<Api<DynamicObject>> {
        Ok(cluster
            .objects_of(path)?
            .api("v1", "Pod", cluster.namespace()))
    };
    let status = refused(cluster.run(pods(&path)?.get("any")))?;
    assert_eq!(status.code, 403);
    let user = format!("system:serviceaccount:{}:someone", cluster.namespace());
    assert!(status.message.contains(&user), "{}", status.message);

    let mut config: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    config["users"][0]["user"]["token"] = json!("invented");
    std::fs::write(&path, config.to_string())?;
    let status = refused(cluster.run(pods(&path)?.get("any")))?;
    assert_eq!((status.code, status.reason.as_str()), (401, "Unauthorized"));
    Ok(())
}

#[test]
fn faults_are_answered_to_the_account_and_counted() -> Result<()> {
    let cluster = Cluster::start()?;
    let Some(server) = cluster.server() else {
        skip::record(module_path!(), "a real cluster has no faults on demand");
        return Ok(());
    };
    cluster.apply_file(&controller_yaml())?;
    let account = cluster.account_kubeconfig("monitord", "monitord-controller")?;
    let own = cluster.objects_of(&account)?;
    let own = own.api("apps/v1", "Deployment", cluster.namespace());
    server.inject(Fault {
        method: "GET",
        path: "/deployments".to_owned(),
        status: 429,
        retry_after: Some(7),
        times: 1,
    });
    let all = ListParams::default();
    cluster.list("apps/v1", "Deployment", cluster.namespace())?;
    let status = refused(cluster.run(own.list(&all)))?;
    assert_eq!(
        (status.code, status.reason.as_str()),
        (429, "TooManyRequests")
    );
    assert_eq!(
        status.details.map(|details| details.retry_after_seconds),
        Some(7)
    );
    cluster.run(own.list(&all))?;
    let user = "system:serviceaccount:monitord:monitord-controller";
    let made = server.made().into_iter().filter(|made| made.user == user);
    assert_eq!(made.map(|made| made.status).collect::<Vec<_>>(), [429, 200]);
    Ok(())
}
