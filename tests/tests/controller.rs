//! `monitord controller` rolls workloads back: by digest, to the end, and proven by the nodes; or says
//! why not. It has the account and the rights of `deploy/controller.yaml` and no others.

#![expect(
    clippy::indexing_slicing,
    reason = "of JSON objects that are made here"
)]

#[path = "controller/stage.rs"]
mod stage;

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use monitor_api::v1;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::{
    alerts::text,
    controller::{Controller, Node},
    kubernetes::{http::Fault, standin::Behaviour},
    poll::{PATIENCE, until},
};

use self::stage::{NODES, Stage, digest};

#[test]
fn a_deployment_goes_back_to_what_ran_before_and_nodes_prove_it() -> Result<()> {
    let stage = Stage::start("")?;
    stage.approve(&["a"])?;
    stage.deploy("Deployment", "a")?;
    stage.wait_ran("a")?;
    stage.set_image("Deployment", "b")?;
    stage.wait_rolled_out("b")?;
    let before = stage.workload("Deployment")?;
    let words = ["rollback", &stage.target("deployment"), "--reason", "test"];
    // Without --to: the last approved one that ran ready here.
    let order = &stage.rolled_back(&words)?;
    let id = text(order, "/id").context("no id")?;
    ensure!(text(order, "/from_digest") == Some(&digest("b")), "{order}");
    ensure!(text(order, "/to_digest") == Some(&digest("a")), "{order}");
    let message = text(order, "/message").unwrap_or_default();
    ensure!(message.contains("prove of 2 pods by digest"), "{order}");
    let after = stage.workload("Deployment")?;
    let mut expected = before.pointer("/spec").cloned().context("no spec")?;
    expected["template"]["spec"]["containers"][0]["image"] = json!(stage.image("a"));
    ensure!(after.pointer("/spec") == Some(&expected), "{after}");
    let owned = after.pointer("/metadata/managedFields");
    let owned = owned.and_then(Value::as_array).into_iter().flatten();
    let own = owned.filter(|it| text(it, "/manager") == Some("monitord"));
    let own: Vec<&Value> = own.collect();
    let fields = own.first().and_then(|it| it.pointer("/fieldsV1/f:spec"));
    let container = json!({ "k:{\"name\":\"web\"}": { ".": {}, "f:name": {}, "f:image": {} } });
    let image = json!({ "f:template": { "f:spec": { "f:containers": container } } });
    ensure!(own.len() == 1 && fields == Some(&image), "{own:?}");
    let alerts = stage.alerts(id)?;
    let states: Vec<_> = alerts.iter().map(|it| text(it, "/details/state")).collect();
    ensure!(states == [Some("running"), Some("done")], "{alerts:?}");
    let audit = stage.controller.done(&["audit", "list"])?;
    let is_noted = |it: &&Value| text(it, "/method") == Some("Rollback");
    ensure!(audit.iter().any(|it| is_noted(&it)), "{audit:?}");
    // What was carried out is no plan any more, and another one must wait.
    stage
        .controller
        .refused(&["rollback", "apply", id], "outdated")?;
    stage.set_image("Deployment", "b")?;
    stage.controller.refused(&words, "cool_down_seconds")?;
    stage.end()
}

#[test]
fn a_rollout_that_fails_is_held_undone_or_stopped() -> Result<()> {
    let settings = "[rollback]\ncool_down_seconds = 0\nrollout_seconds = 10";
    let stage = Stage::start(settings)?;
    if !stage.plays_pods("a_rollout_that_fails_is_held_undone_or_stopped") {
        return Ok(());
    }
    stage.approve(&["bad"])?;
    stage.standin.behave(&digest("bad"), Behaviour::NeverReady);
    stage.deploy("Deployment", "b")?;
    stage.hasten()?;
    for (way, state, image, replicas) in [
        ("hold", "held", "bad", 2),
        ("undo", "undone", "b", 2),
        ("stop", "stopped", "bad", 0),
    ] {
        stage.set_image("Deployment", "b")?;
        stage.wait_rolled_out("b")?;
        let target = stage.target("deployment");
        let to = digest("bad");
        let words = [
            "rollback",
            &target,
            "--to",
            &to,
            "--on-failure",
            way,
            "--reason",
            "test",
        ];
        let (status, lines, said) = stage.controller.monitorctl(&words)?;
        let order = lines.last().context("no order")?;
        ensure!(
            status == 1 && text(order, "/state") == Some(state),
            "{way}: {status} {said} {lines:?}"
        );
        ensure!(said.contains("the rollout "), "{said}");
        let now = stage.workload("Deployment")?;
        let named = text(&now, "/spec/template/spec/containers/0/image");
        ensure!(named == Some(&stage.image(image)), "{way}: {now}");
        ensure!(
            now.pointer("/spec/replicas") == Some(&json!(replicas)),
            "{way}: {now}"
        );
        let label = now.pointer("/metadata/labels/monitord.io~1rollback");
        ensure!(label == Some(&json!(state)), "{way}: {now}");
    }
    // What was stopped stays so when the image alone is changed by the next order.
    stage.approve(&["a", "b"])?;
    let to = digest("a");
    let words = [
        "rollback",
        &stage.target("deployment"),
        "--to",
        &to,
        "--reason",
        "test",
    ];
    stage.controller.done(&words)?;
    let now = stage.workload("Deployment")?;
    ensure!(now.pointer("/spec/replicas") == Some(&json!(0)), "{now}");
    // Back to what ran before from a rollout that Kubernetes has given up: it says so of the new one
    // too, until a pod has come or gone.
    stage.set_image("Deployment", "b")?;
    stage.wait_rolled_out("b")?;
    stage.set_image("Deployment", "bad")?;
    stage.wait_stuck()?;
    let back = digest("b");
    let words = ["rollback", &stage.target("deployment"), "--to", &back];
    stage.rolled_back(&[&words[..], &["--reason", "test"]].concat())?;
    // An image that was revoked is not started again.
    stage
        .controller
        .done(&["approval", "revoke", &digest("b"), "--reason", "test"])?;
    let words = [
        "rollback",
        "plan",
        &stage.target("deployment"),
        "--to",
        &to,
        "--on-failure",
        "undo",
    ];
    stage
        .controller
        .refused(&words, "start again what was revoked")?;
    stage.end()
}

#[test]
fn what_is_not_proven_is_not_done() -> Result<()> {
    let stage = Stage::start("[rollback]\ncool_down_seconds = 0\nverify_seconds = 5")?;
    stage.approve(&["a", "c"])?;
    stage.deploy("Deployment", "b")?;
    let target = stage.target("deployment");
    let order = |to: &str| -> Result<Value> {
        let to = digest(to);
        let words = ["rollback", &target, "--to", &to, "--reason", "test"];
        let (status, mut lines, said) = stage.controller.monitorctl(&words)?;
        ensure!(
            status == 1 && said.contains("is held"),
            "{status} {said} {lines:?}"
        );
        lines.pop().context("no order")
    };
    // A node that has another image run under this reference.
    stage.fleet.lie(&digest("a"), &digest("evil"));
    let held = order("a")?;
    let said = text(&held, "/message").unwrap_or_default();
    ensure!(
        said.contains(&format!("proven to run {}", digest("evil"))),
        "{said}"
    );
    // Nodes that say nothing.
    stage.fleet.be_silent();
    let held = order("c")?;
    let said = text(&held, "/message").unwrap_or_default();
    ensure!(said.contains("not proven within 5 s"), "{said}");
    stage.end()
}

#[test]
fn what_ran_before_has_to_end() -> Result<()> {
    let stage = Stage::start("[rollback]\ncool_down_seconds = 0\nrollout_seconds = 10")?;
    if !stage.plays_pods("what_ran_before_has_to_end") {
        return Ok(());
    }
    stage.approve(&["a"])?;
    let to = digest("a");
    let target = stage.target("deployment");
    let words = ["rollback", &target, "--to", &to, "--on-failure", "undo"];
    let words = [&words[..], &["--reason", "test"]].concat();
    let slowly = |seconds| Behaviour::SlowToEnd(Duration::from_secs(seconds));
    stage.standin.behave(&digest("b"), slowly(4));
    stage.deploy("Deployment", "b")?;
    stage.rolled_back(&words)?;
    let images = stage.images()?;
    ensure!(images == [stage.image("a"), stage.image("a")], "{images:?}");

    // It is no reason to start more of what ran before.
    stage.standin.behave(&digest("c"), slowly(600));
    stage.set_image("Deployment", "c")?;
    stage.wait_rolled_out("c")?;
    let (status, _, said) = stage.controller.monitorctl(&words)?;
    ensure!(
        status == 1 && said.contains("is held") && said.contains("has not ended"),
        "{status} {said}"
    );
    ensure!(
        stage.named("Deployment")? == stage.image("a"),
        "changed back"
    );
    stage.standin.behave(&digest("c"), slowly(0));
    stage.end()
}

#[test]
fn each_container_of_a_workload_can_be_rolled_back() -> Result<()> {
    let stage = Stage::start("[rollback]\ncool_down_seconds = 0")?;
    stage.approve(&["a"])?;
    stage.deploy("Deployment", "b")?;
    stage.add_container("Deployment", "proxy", "c")?;
    let to = digest("a");
    let target = stage.target("deployment");
    for container in ["web", "proxy"] {
        let words = ["rollback", &target, "--to", &to, "--container", container];
        stage.rolled_back(&[&words[..], &["--reason", "test"]].concat())?;
    }
    let now = stage.workload("Deployment")?;
    let named = |at: usize| text(&now, &format!("/spec/template/spec/containers/{at}/image"));
    let wanted = stage.image("a");
    ensure!(
        named(0) == Some(&wanted) && named(1) == Some(&wanted),
        "{now}"
    );
    stage.end()
}

#[test]
fn a_node_speaks_for_itself_alone() -> Result<()> {
    let stage = Stage::start("")?;
    let (controller, authority) = (&stage.controller, &stage.authority);
    let refused = |name: &str, certificate: &str, words: &str| {
        let mut node = Node::join_as(controller, authority, name, certificate);
        let said = match &mut node {
            Ok(node) => node.hear().err().map(|error| format!("{error:#}")),
            Err(error) => Some(format!("{error:#}")),
        };
        let said = said.unwrap_or_default();
        ensure!(said.contains(words), "{name} {certificate}: {said}");
        Ok(())
    };
    refused(NODES[0], "node-other", "does not name node")?;
    refused("responder", "responder", "has no role here")?;
    // A node reads nothing that people read, and people do not order with a node's certificate.
    for words in [
        &["approval", "list"][..],
        &["rollback", "status"],
        &["alerts"],
    ] {
        let (status, _, said) = controller.monitorctl_as(NODES[0], words)?;
        ensure!(
            status == 4 && said.contains("has no role here"),
            "{words:?}: {status} {said}"
        );
    }
    for (name, status) in [("observer", 4), ("responder", 4)] {
        authority.issue(name, controller.directory())?;
        let target = stage.target("deployment");
        let words = ["rollback", "plan", &target, "--to", &digest("a")];
        let (found, _, said) = controller.monitorctl_as(name, &words)?;
        let expect = match name {
            "observer" => "needs the role responder",
            _ => "the cluster has no",
        };
        ensure!(
            found == status && said.contains(expect),
            "{name}: {found} {said}"
        );
    }
    let audit = controller.done(&["audit", "list"])?;
    let is_refused = |it: &&Value| text(it, "/outcome") == Some("refused");
    ensure!(audit.iter().filter(is_refused).count() >= 5, "{audit:?}");
    stage.end()
}

#[test]
fn what_must_not_be_changed_is_refused_with_the_change_to_make() -> Result<()> {
    let stage = Stage::start("")?;
    stage.approve(&["a"])?;
    let own = stage.namespace();
    let to = digest("a");
    let refused = |target: &str, more: &[&str], words: &str| {
        let plan = ["rollback", "plan", target, "--to", &to];
        stage.controller.refused(&[&plan[..], more].concat(), words)
    };
    let by_hand = format!("`image: {}`", stage.image("a"));
    refused(&format!("deployment/{own}/none"), &[], "the cluster has no")?;
    refused("web", &[], "give KIND/NAMESPACE/NAME")?;
    stage.deploy("Deployment", "b")?;
    let target = stage.target("deployment");
    stage.controller.refused(
        &["rollback", "plan", &target, "--to", &digest("x")],
        "is unapproved",
    )?;
    let elsewhere = format!("{}/other@{}", stage.registry(), digest("o"));
    stage
        .controller
        .done(&["approval", "approve", &elsewhere, "--reason", "test"])?;
    let words = ["rollback", "plan", &target, "--to", &digest("o")];
    stage.controller.refused(&words, "is an image of")?;
    stage
        .controller
        .refused(&["rollback", "plan", &target], "name one with --to")?;
    // A plan that the facts have left behind, and one that is carried out twice at once.
    let plan = stage.plan("deployment", "a")?;
    stage.set_image("Deployment", "c")?;
    stage
        .controller
        .refused(&["rollback", "apply", &plan], "the plan is outdated")?;
    stage
        .controller
        .refused(&["rollback", "apply", "none"], "no plan")?;
    stage.label("Deployment", "argocd.argoproj.io/instance", "shop")?;
    refused(&target, &[], "Argo CD (application shop) owns it")?;
    refused(&target, &[], &by_hand)?;
    stage.deploy("StatefulSet", "b")?;
    refused(&stage.target("statefulset"), &[], "--allow-stateful")?;
    stage.bare_pod("bare", "b")?;
    refused(
        &format!("pod/{own}/bare"),
        &[],
        "create it again with container web with",
    )?;
    refused(&format!("pod/{own}/bare"), &[], &by_hand)?;
    stage.job("b")?;
    refused(&format!("job/{own}/web"), &[], "give KIND/NAMESPACE/NAME")?;
    refused("deployment/kube-system/coredns", &[], "the cluster has no")?;
    stage.end()
}

#[test]
fn daemon_sets_stateful_sets_and_cron_jobs_are_rolled_back() -> Result<()> {
    let stage = Stage::start("[rollback]\ncool_down_seconds = 0")?;
    stage.approve(&["a"])?;
    let to = digest("a");
    for (kind, more, proven) in [
        ("DaemonSet", &[][..], "2 pods"),
        ("StatefulSet", &["--allow-stateful"], "2 pods"),
        ("CronJob", &[], "for what it runs from now on"),
    ] {
        stage.deploy(kind, "b")?;
        let target = stage.target(&kind.to_lowercase());
        let words = ["rollback", &target, "--to", &to, "--reason", "test"];
        let done = stage.controller.done(&[&words, more].concat())?;
        let order = done.last().context("no order")?;
        let message = text(order, "/message").unwrap_or_default();
        ensure!(message.contains(proven), "{kind}: {order}");
        ensure!(stage.named(kind)? == stage.image("a"), "{kind}");
        stage.remove(kind)?;
    }
    stage.end()
}

#[test]
fn the_next_leader_goes_on_with_what_was_under_way() -> Result<()> {
    let stage = Stage::start("")?;
    if !stage.plays_pods("the_next_leader_goes_on_with_what_was_under_way") {
        return Ok(());
    }
    stage.approve(&["slow"])?;
    stage
        .standin
        .behave(&digest("slow"), Behaviour::Slow(Duration::from_secs(12)));
    stage.deploy("Deployment", "b")?;
    let second = stage.another("second")?;
    // It passes on to the one that leads what comes to it.
    stage.authority.issue("responder", second.directory())?;
    let target = stage.target("deployment");
    let to = digest("slow");
    let words = ["rollback", "plan", &target, "--to", &to, "--reason", "test"];
    let plan = until("the second to know who leads", PATIENCE, || {
        let (status, lines, said) = second.monitorctl_as("responder", &words)?;
        ensure!(status == 0, "{status} {said}");
        lines.into_iter().next().context("no plan")
    })?;
    let id = text(&plan, "/id").context("no id")?;
    let begun = thread::scope(|scope| {
        let first = &stage.controller;
        // It ends with the controller.
        scope.spawn(|| first.monitorctl(&["rollback", "apply", id]));
        until("the order to begin its rollout", PATIENCE, || {
            let step = first.order(id)?;
            ensure!(text(&step, "/step") == Some("rollout"), "{step}");
            Ok(())
        })?;
        first.kill()
    });
    begun?;
    second.wait_leads()?;
    stage.fleet.join(&second, &stage.authority)?;
    let order = second.wait_ended(id, "done")?;
    ensure!(order.pointer("/resumed") == Some(&json!(1)), "{order}");
    ensure!(stage.named("Deployment")? == stage.image("slow"), "{order}");
    second.stop()?;
    stage.clean()
}

#[test]
fn a_leader_that_stood_still_acts_no_more() -> Result<()> {
    let stage = Stage::start("")?;
    let second = stage.another("second")?;
    stage.controller.signal(Signal::SIGSTOP)?;
    second.wait_leads()?;
    stage.controller.signal(Signal::SIGCONT)?;
    until("the first to end", PATIENCE, || {
        let log = stage.controller.log();
        ensure!(log.contains("this controller ends"), "{log}");
        Ok(())
    })?;
    second.stop()?;
    stage.clean()
}

#[test]
fn an_api_server_in_trouble_is_waited_for() -> Result<()> {
    let stage = Stage::start("")?;
    let Some(server) = stage.server("an_api_server_in_trouble_is_waited_for") else {
        return Ok(());
    };
    stage.approve(&["a"])?;
    stage.deploy("Deployment", "b")?;
    let plan = stage.plan("deployment", "a")?;
    server.set_watch_time(Duration::from_millis(200));
    server.expire_watches();
    let fault = |method, status, retry_after| Fault {
        method,
        path: format!("/namespaces/{}/deployments/web", stage.namespace()),
        status,
        retry_after,
        times: 2,
    };
    server.inject(fault("GET", 500, None));
    server.inject(fault("PATCH", 429, Some(1)));
    server.inject(fault("PATCH", 503, None));
    let done = stage.controller.done(&["rollback", "apply", &plan])?;
    let order = done.last().context("no order")?;
    ensure!(text(order, "/state") == Some("done"), "{order}");
    let mut made = server
        .made()
        .into_iter()
        .filter(|it| it.user.contains(":monitord-controller"));
    let forbidden = made.find(|it| it.status == 403);
    ensure!(forbidden.is_none(), "{forbidden:?}");
    stage.end()
}

#[test]
fn somebody_elses_change_is_left_alone() -> Result<()> {
    let stage = Stage::start("")?;
    if !stage.plays_pods("somebody_elses_change_is_left_alone") {
        return Ok(());
    }
    stage.approve(&["bad"])?;
    stage
        .standin
        .behave(&digest("bad"), Behaviour::Slow(Duration::from_secs(60)));
    stage.deploy("Deployment", "b")?;
    let plan = stage.plan("deployment", "bad")?;
    let (status, _, said) = thread::scope(|scope| {
        let ordered = scope.spawn(|| stage.controller.monitorctl(&["rollback", "apply", &plan]));
        until("the order to begin its rollout", PATIENCE, || {
            let order = stage.controller.order(&plan)?;
            ensure!(text(&order, "/step") == Some("rollout"), "{order}");
            Ok(())
        })?;
        stage.set_image("Deployment", "c")?;
        ordered.join().map_err(|_| anyhow::anyhow!("a panic"))?
    })?;
    ensure!(
        status == 1 && said.contains("somebody has had it name"),
        "{status} {said}"
    );
    ensure!(
        stage.named("Deployment")? == stage.image("c"),
        "changed back"
    );
    stage.end()
}

#[test]
fn nodes_are_told_what_is_approved() -> Result<()> {
    let stage = Stage::start("")?;
    let mut node = Node::join(&stage.controller, &stage.authority, "node-c")?;
    let own = format!("{}/web", stage.registry());
    let has = |state: &'static str| {
        let (own, digest) = (own.clone(), digest("a"));
        move |told: &[v1::Approval]| {
            let is_it = |it: &&v1::Approval| it.repository == own && it.digest == digest;
            told.iter().filter(is_it).any(|it| it.state == state)
        }
    };
    stage.approve(&["a"])?;
    node.wait_approvals(has("approved"))?;
    stage
        .controller
        .done(&["approval", "revoke", &digest("a"), "--reason", "test"])?;
    node.wait_approvals(has("revoked"))?;
    let words = ["approval", "revoke", &digest("none"), "--reason", "test"];
    stage
        .controller
        .refused(&words, "is approved nowhere")
        .or_else(|_| {
            let (status, _, said) = stage.controller.monitorctl(&words)?;
            ensure!(
                status == 1 && said.contains("is approved nowhere"),
                "{status} {said}"
            );
            Ok(())
        })?;
    // By kubectl, which the controller follows.
    stage.write_approval("b")?;
    let digest_b = digest("b");
    node.wait_approvals(move |told| told.iter().any(|it| it.digest == digest_b))?;
    stage.end()
}

#[test]
fn an_incident_leads_to_what_policy_and_configuration_agree_on() -> Result<()> {
    let incident = |stage: &Stage, respond: &str| -> Result<()> {
        let running = stage.fleet.running(&digest("b"));
        let (node, container) = running.first().context("nothing runs")?;
        let alert = v1::Alert {
            id: format!("alert-{respond}"),
            node: node.clone(),
            rule: Some(v1::alert::Rule {
                id: "shop.shell".to_owned(),
                version: "1".to_owned(),
            }),
            container: container.container.clone(),
            image: container.image.clone(),
            ..v1::Alert::default()
        };
        // Not the pod's node: refused.
        let other = NODES.iter().find(|it| **it != node).context("one node")?;
        stage.fleet.incident(other, &alert, respond)?;
        stage.fleet.incident(node, &alert, respond)
    };
    for (automatic, image) in [("propose", "b"), ("auto", "a")] {
        let stage = Stage::start(&format!("[rollback]\nautomatic = '{automatic}'"))?;
        stage.approve(&["a"])?;
        stage.deploy("Deployment", "a")?;
        stage.wait_ran("a")?;
        stage.set_image("Deployment", "b")?;
        stage.wait_rolled_out("b")?;
        stage.fleet.wait_running(&digest("b"), 2)?;
        incident(&stage, "auto")?;
        let proposed = stage.wait_alert(|it| text(it, "/details/state") == Some("proposed"))?;
        until("the other node's to be refused", PATIENCE, || {
            let audit = stage.controller.done(&["audit", "list"])?;
            let is_refused = |it: &Value| {
                text(it, "/method") == Some("Automatic") && text(it, "/outcome") == Some("refused")
            };
            ensure!(audit.iter().any(is_refused), "{audit:?}");
            Ok(())
        })?;
        let plan = text(&proposed, "/details/order").context("no plan")?;
        let order = if automatic == "auto" {
            stage.controller.wait_ended(plan, "done")?
        } else {
            stage.controller.order(plan)?
        };
        ensure!(text(&order, "/by") == Some("policy shop.drift"), "{order}");
        ensure!(
            stage.named("Deployment")? == stage.image(image),
            "{automatic}: {order}"
        );
        stage.end()?;
    }
    Ok(())
}

#[test]
fn without_an_api_server_it_does_not_begin() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let authority = tests::authority::Authority::new()?;
    let none = directory.path().join("none");
    let controller = Controller::start(&none, &directory.path().join("alone"), &authority, "")?;
    let said = controller.wait_leads().err().map(|it| format!("{it:#}"));
    let said = said.unwrap_or_default();
    ensure!(said.contains("cannot find the API server"), "{said}");
    Ok(())
}
