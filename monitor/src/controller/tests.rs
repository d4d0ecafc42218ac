use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    nodes::{Proof, judge},
    plan::{Facts, Known, Owner, Unowned, plan},
    record::{Expected, Record, Step},
    workload::{
        ANNOTATION, Change, Container, FIELD_MANAGER, Kind, Name, Rollout, Target, Workload,
    },
};
use crate::{
    approval::{Approvals, Document, State, Statement},
    digest::{Digest, Sha256},
    respond::{By, OnFailure, Request, Signature},
};

const REPOSITORY: &str = "registry.example/web";

fn digest(word: &str) -> Digest {
    Digest(Sha256::of(word.as_bytes()))
}

/// `+a -b`: approved and revoked, one second after the other.
fn approvals(said: &str) -> Arc<Approvals> {
    let statement = |(at, word): (usize, &str)| Statement {
        digest: digest(&word[1..]),
        state: if word.starts_with('+') {
            State::Approved
        } else {
            State::Revoked
        },
        by: "test".to_owned(),
        at: Timestamp::from_second(i64::try_from(at).unwrap()).unwrap(),
        reason: "test".to_owned(),
        until: None,
    };
    let statements = said.split_whitespace().enumerate().map(statement);
    let own = Document::of(REPOSITORY, statements.collect()).unwrap();
    let other = Statement {
        digest: digest("other"),
        ..statement((1, "+other"))
    };
    let other = Document::of("registry.example/db", vec![other]).unwrap();
    Arc::new(Approvals::new([&own, &other]).unwrap())
}

fn workload(kind: Kind, image: &str) -> Workload {
    let containers = json!({"containers": [{"name": "web", "image": image}]});
    let template = json!({"spec": containers});
    let spec = match kind {
        Kind::CronJob => json!({"jobTemplate": {"spec": {"template": template}}}),
        _ => json!({
            "replicas": 3, "template": template,
            "selector": {"matchLabels": {"app": "web"}},
        }),
    };
    Workload {
        name: Name {
            kind,
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
        },
        object: json!({
            "metadata": {
                "name": "web", "namespace": "shop", "uid": "u", "generation": 4, "resourceVersion": "7",
            },
            "spec": spec,
            "status": {"desiredNumberScheduled": 3},
        }),
    }
}

fn facts(said: &str) -> Facts {
    let image = format!("{REPOSITORY}@{}", digest("b"));
    Facts {
        owner: Owner::Workload(Box::new(workload(Kind::Deployment, &image))),
        own_namespace: "monitord".to_owned(),
        approvals: approvals(said),
        ran: vec![digest("a")],
        running: vec![vec![digest("b")]],
        has_findings: false,
        signature: Signature::NotRequired,
        image: Known::Unasked,
        now: Timestamp::from_second(100).unwrap(),
    }
}

fn request(to: Option<&str>) -> Request {
    Request {
        target: "deployment/shop/web".to_owned(),
        to: to.map(digest),
        on_failure: OnFailure::Hold,
        reason: "test".to_owned(),
        allow_stateful: false,
        container: None,
    }
}

fn change_object(facts: &mut Facts, pointer: &str, value: Value) {
    if let Owner::Workload(workload) = &mut facts.owner {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = workload.object.pointer_mut(parent).unwrap();
        parent[key] = value;
    }
}

#[test]
fn what_keeps_a_workload_from_being_rolled_back_is_said() {
    let check = |request: &Request, change: &dyn Fn(&mut Facts), words: &str| {
        let mut facts = facts("+a +b");
        change(&mut facts);
        let said = match plan(request, &facts) {
            Ok(plan) => format!("planned {} {:?}", plan.to_reference, plan.notes),
            Err(refusal) => refusal.to_string(),
        };
        assert!(said.contains(words), "{words}: {said}");
    };
    let kind = |kind: Kind| {
        move |facts: &mut Facts| {
            facts.owner = Owner::Workload(Box::new(workload(kind, "registry.example/web:1")));
        }
    };
    let to_a = request(Some("a"));
    let a = format!("{REPOSITORY}@{}", digest("a"));
    check(&to_a, &|_| {}, &format!("planned {a}"));
    check(&request(None), &|_| {}, &format!("planned {a}"));
    check(
        &request(None),
        &|facts| facts.ran.clear(),
        "name one with --to",
    );
    check(
        &request(None),
        &|facts| facts.approvals = approvals("+b +a"),
        "name one with --to",
    );
    check(&request(Some("c")), &|_| {}, "is unapproved");
    check(
        &to_a,
        &|facts| facts.approvals = approvals("+a +b -a"),
        "is revoked",
    );
    check(
        &request(Some("other")),
        &|_| {},
        "is an image of registry.example/db",
    );
    check(&request(Some("b")), &|_| {}, "already");
    let other_namespace = |name: &'static str| {
        move |facts: &mut Facts| {
            if let Owner::Workload(workload) = &mut facts.owner {
                workload.name.namespace = name.to_owned();
            }
        }
    };
    check(&to_a, &other_namespace("kube-system"), "is not touched");
    check(&to_a, &other_namespace("monitord"), "does not touch itself");
    check(
        &to_a,
        &|facts| {
            change_object(
                facts,
                "/metadata/labels",
                json!({"argocd.argoproj.io/instance": "shop"}),
            );
        },
        &format!(
            "Commit this to its repository: container web of deployment/shop/web with `image: {a}`"
        ),
    );
    check(
        &to_a,
        &|facts| change_object(facts, "/spec/paused", json!(true)),
        "paused",
    );
    let deleted = json!("2026-01-01T00:00:00Z");
    check(
        &to_a,
        &|facts| change_object(facts, "/metadata/deletionTimestamp", deleted.clone()),
        "being deleted",
    );
    let on_delete = json!({"type": "OnDelete"});
    check(
        &to_a,
        &|facts| {
            kind(Kind::DaemonSet)(facts);
            change_object(facts, "/spec/updateStrategy", on_delete.clone());
        },
        "OnDelete",
    );
    check(&to_a, &kind(Kind::DaemonSet), "planned");
    check(&to_a, &kind(Kind::CronJob), "jobs that run now go on");
    check(&to_a, &kind(Kind::StatefulSet), "--allow-stateful");
    let stateful = Request {
        allow_stateful: true,
        ..to_a.clone()
    };
    let with_volume = |facts: &mut Facts| {
        kind(Kind::StatefulSet)(facts);
        let claims = json!([{"metadata": {"name": "data"}}]);
        change_object(facts, "/spec/volumeClaimTemplates", claims);
    };
    check(&to_a, &with_volume, "keep their volumes (data)");
    check(&stateful, &with_volume, "keep their volumes: data");
    check(
        &stateful,
        &|facts| {
            with_volume(facts);
            let partition = json!({"rollingUpdate": {"partition": 2}});
            change_object(facts, "/spec/updateStrategy", partition);
        },
        "a partition",
    );
    let two = json!([{"name": "web", "image": "a/b:1"}, {"name": "proxy", "image": "c/d:1"}]);
    let with_two = |facts: &mut Facts| {
        change_object(facts, "/spec/template/spec/containers", two.clone());
    };
    check(&to_a, &with_two, "say which with --container: web, proxy");
    let of = |container: &str| Request {
        container: Some(container.to_owned()),
        ..to_a.clone()
    };
    check(&of("db"), &with_two, "no container \"db\", but web, proxy");
    check(&of("web"), &with_two, "the container is of docker.io/a/b");
    let unsigned = |facts: &mut Facts| {
        facts.signature = Signature::Refused("no signature".to_owned());
    };
    check(&to_a, &unsigned, "refused for its signature: no signature");
    let gone = |facts: &mut Facts| facts.image = Known::Unusable("404".to_owned());
    check(&to_a, &gone, "cannot be pulled: 404");
    let way = |on_failure| Request {
        on_failure,
        ..to_a.clone()
    };
    check(&way(OnFailure::Undo), &|_| {}, "planned");
    check(
        &way(OnFailure::Undo),
        &|facts| facts.approvals = approvals("+a +b -b"),
        "start again what was revoked",
    );
    check(
        &way(OnFailure::Undo),
        &|facts| facts.has_findings = true,
        "has findings",
    );
    let unknown = |facts: &mut Facts| {
        facts.running.clear();
        let containers = json!([{"name": "web", "image": "registry.example/web:1"}]);
        change_object(facts, "/spec/template/spec/containers", containers);
    };
    check(&way(OnFailure::Undo), &unknown, "what is not known");
    check(&way(OnFailure::Stop), &|_| {}, "planned");
    check(
        &way(OnFailure::Stop),
        &kind(Kind::DaemonSet),
        "cannot be stopped",
    );
    check(
        &way(OnFailure::Undo),
        &kind(Kind::CronJob),
        "can only be hold",
    );
    let bare = |facts: &mut Facts| {
        facts.owner = Owner::Nothing(Unowned {
            name: "pod/shop/web".to_owned(),
            namespace: "shop".to_owned(),
            containers: vec![Container {
                name: "web".to_owned(),
                image: "registry.example/web:1".to_owned(),
            }],
            reason: "nothing owns it that would make it anew",
            how: "Delete it, and create it again with".to_owned(),
        });
    };
    let by_hand = format!("create it again with container web with `image: {a}`");
    check(&to_a, &bare, &by_hand);
}

#[test]
fn a_target_is_read_whole_or_not_at_all() {
    let check = |text: &str, expect: Option<&str>| {
        let found = Target::parse(text).map(|target| match target {
            Target::Workload(name) => name.to_string(),
            Target::Pod { namespace, name } => format!("pod {namespace} {name}"),
        });
        assert_eq!(found.as_deref(), expect, "{text}");
    };
    check("deployment/shop/web", Some("deployment/shop/web"));
    check("cronjob/shop/web.v1", Some("cronjob/shop/web.v1"));
    check("pod/shop/web-1", Some("pod shop web-1"));
    check("job/shop/web", None);
    check("Deployment/shop/web", None);
    check("deployment/shop", None);
    check("deployment/shop/web/x", None);
    check("deployment/../web", None);
    check("deployment/shop/", None);
    check("deployment/shop/a?b", None);
    check(&format!("pod/a/{}", "x".repeat(254)), None);
    check("0123456789abcdef", None);
}

#[test]
fn what_is_applied_is_whole_and_no_more() {
    let change = Change {
        container: "web",
        image: "a@b",
        record: "{}",
        state: "running",
        is_stopped: false,
    };
    let check = |workload: Workload, is_stopped: bool, expect: Value| {
        let applied = workload.change(&Change {
            is_stopped,
            ..change
        });
        assert_eq!(applied["spec"], expect);
        assert_eq!(applied["metadata"]["resourceVersion"], "7");
        assert_eq!(applied["metadata"]["annotations"][ANNOTATION], "{}");
    };
    let pods = json!({"spec": {"containers": [{"name": "web", "image": "a@b"}]}});
    let deployment = || workload(Kind::Deployment, "c");
    check(deployment(), false, json!({"template": pods}));
    check(deployment(), true, json!({"template": pods, "replicas": 0}));
    let job = json!({"spec": {"template": pods}});
    let cron_job = || workload(Kind::CronJob, "c");
    check(cron_job(), false, json!({"jobTemplate": job}));
    let mut stopped = deployment();
    stopped.object["metadata"]["managedFields"] = json!([{
        "manager": FIELD_MANAGER, "operation": "Apply", "fieldsV1": {"f:spec": {"f:replicas": {}}},
    }]);
    stopped.object["spec"]["replicas"] = json!(0);
    check(stopped, false, json!({"template": pods, "replicas": 0}));
    // What an order about another container has applied stays as it is.
    let of_proxy =
        json!({"f:containers": {"k:{\"name\":\"proxy\"}": {"f:image": {}, "f:name": {}}}});
    let of_proxy = json!({"f:spec": {"f:template": {"f:spec": of_proxy}}});
    let containers = json!([
        {"name": "web", "image": "a/b:1"}, {"name": "proxy", "image": "c@d"},
        {"name": "log", "image": "e:1"},
    ]);
    let mut two = deployment();
    two.object["spec"]["template"]["spec"]["containers"] = containers;
    two.object["metadata"]["managedFields"] = json!([
        {"manager": FIELD_MANAGER, "operation": "Apply", "fieldsV1": of_proxy},
    ]);
    let both = json!([{"name": "web", "image": "a@b"}, {"name": "proxy", "image": "c@d"}]);
    let pods = json!({"spec": {"containers": both}});
    check(two, false, json!({"template": pods}));
}

#[test]
fn a_rollout_is_done_when_no_old_pod_is_left() {
    let check = |kind: Kind, status: Value, expect: Rollout| {
        let mut workload = workload(kind, "c");
        workload.object["status"] = status.clone();
        assert_eq!(workload.rollout(), expect, "{status}");
    };
    let under_way = |updated, available| Rollout::UnderWay {
        updated,
        available,
        wanted: 3,
    };
    let deployment = |observed: u64, all: u64, updated: u64, available: u64| {
        json!({
            "observedGeneration": observed, "replicas": all, "updatedReplicas": updated,
            "availableReplicas": available,
        })
    };
    check(Kind::Deployment, json!({}), Rollout::Unseen);
    check(Kind::Deployment, deployment(3, 3, 3, 3), Rollout::Unseen);
    check(Kind::Deployment, deployment(4, 4, 1, 3), under_way(1, 3));
    check(Kind::Deployment, deployment(4, 4, 3, 4), under_way(3, 4));
    check(Kind::Deployment, deployment(4, 3, 3, 2), under_way(3, 2));
    check(Kind::Deployment, deployment(4, 3, 3, 3), Rollout::Done);
    let mut stuck = deployment(4, 4, 1, 3);
    stuck["conditions"] = json!([{
        "type": "Progressing", "reason": "ProgressDeadlineExceeded", "message": "late",
        "lastUpdateTime": "2026-01-01T00:00:00Z",
    }]);
    let given_up = Rollout::Stuck {
        reason: "late".to_owned(),
        since: "2026-01-01T00:00:00Z".to_owned(),
    };
    check(Kind::Deployment, stuck, given_up);
    // Fewer are wanted than there are, of whatever template.
    check(Kind::Deployment, deployment(4, 4, 4, 4), under_way(4, 4));
    let daemon_set = |updated: u64, available: u64| {
        json!({
            "observedGeneration": 4, "desiredNumberScheduled": 3, "currentNumberScheduled": 3,
            "updatedNumberScheduled": updated, "numberAvailable": available,
        })
    };
    check(Kind::DaemonSet, daemon_set(2, 3), under_way(2, 3));
    check(Kind::DaemonSet, daemon_set(3, 3), Rollout::Done);
    let stateful_set = |update: &str, updated: u64, ready: u64| {
        json!({
            "observedGeneration": 4, "replicas": 3, "updatedReplicas": updated,
            "readyReplicas": ready, "currentRevision": "1", "updateRevision": update,
        })
    };
    check(Kind::StatefulSet, stateful_set("2", 2, 3), under_way(2, 3));
    check(Kind::StatefulSet, stateful_set("1", 3, 3), Rollout::Done);
    // On the way back to the revision that is still the current one.
    check(Kind::StatefulSet, stateful_set("1", 1, 3), under_way(1, 3));
    check(Kind::CronJob, json!({}), Rollout::Next);
}

#[test]
fn only_a_proven_image_is_a_proof() {
    use monitor_api::v1;
    let expected = Expected {
        manifests: [digest("index"), digest("a")].into(),
        chain_ids: [digest("chain")].into(),
    };
    let reported = |identity: &str, manifest: &str, index: &str, chain: &str| v1::Container {
        image: Some(v1::alert::Image {
            identity: identity.to_owned(),
            manifest_digest: digest(manifest).to_string(),
            index_digest: digest(index).to_string(),
            chain_id: digest(chain).to_string(),
            ..v1::alert::Image::default()
        }),
        ..v1::Container::default()
    };
    let check = |reported: Option<&[v1::Container]>, expect: &str| {
        let said = match judge(reported, &expected) {
            Proof::Given => "given".to_owned(),
            Proof::Missing(what) => format!("missing: {what}"),
            Proof::Against(what) => format!("against: {what}"),
        };
        assert!(said.starts_with(expect), "{said}");
    };
    check(None, "missing: its node does not report");
    check(Some(&[]), "missing: its node does not report it yet");
    check(
        Some(&[reported("", "a", "x", "chain")]),
        "missing: the identity of its image is pending",
    );
    check(
        Some(&[reported("claimed", "a", "x", "chain")]),
        "missing: the identity of its image is claimed",
    );
    check(Some(&[reported("proven", "a", "x", "chain")]), "given");
    check(Some(&[reported("proven", "x", "index", "chain")]), "given");
    check(Some(&[reported("proven", "a", "x", "other")]), "against");
    check(Some(&[reported("proven", "x", "x", "chain")]), "against");
    let started = |seconds, container: v1::Container| v1::Container {
        started_at: Some(prost_types::Timestamp { seconds, nanos: 0 }),
        ..container
    };
    let (old, new) = (
        started(1, reported("proven", "x", "x", "chain")),
        started(2, reported("proven", "a", "x", "chain")),
    );
    check(Some(&[new, old]), "given");
}

fn record(began_at: Timestamp) -> Record {
    let plan = plan(&request(Some("a")), &facts("+a +b")).unwrap();
    let by = By {
        name: "test".to_owned(),
        roles: Vec::new(),
        peer: String::new(),
    };
    Record::new("1".to_owned(), plan, by, began_at)
}

#[test]
fn an_order_is_read_back_from_its_workload_alone() {
    let record = record(Timestamp::from_second(9).unwrap());
    let check = |text: String, change: &dyn Fn(&mut Workload), expect: Result<bool, &str>| {
        let mut workload = workload(Kind::Deployment, "c");
        workload.object["metadata"]["annotations"] = json!({ANNOTATION: text});
        change(&mut workload);
        match (Record::of(&workload), expect) {
            (Ok(found), Ok(is_there)) => assert_eq!(found.is_some_and(|it| it == record), is_there),
            (Err(error), Err(words)) => assert!(error.contains(words), "{error}"),
            (found, _) => panic!("{found:?}"),
        }
    };
    check(record.written(), &|_| {}, Ok(true));
    let without = |workload: &mut Workload| workload.object["metadata"]["annotations"] = json!({});
    check(record.written(), &without, Ok(false));
    let copied = |workload: &mut Workload| workload.object["metadata"]["uid"] = json!("v");
    check(record.written(), &copied, Err("another workload"));
    check("{".to_owned(), &|_| {}, Err("EOF"));
    check("x".repeat(70_000), &|_| {}, Err("more than"));
}

#[test]
fn times_to_come_are_not_believed() {
    let at = |second| Timestamp::from_second(second).unwrap();
    let mut record = record(at(100));
    record.begin(Step::Rollout, at(200));
    record.ended_at = Some(at(300));
    record.not_after(at(150));
    assert_eq!(record.began_at, at(100));
    assert_eq!(record.since(), at(150));
    assert_eq!(record.ended_at, Some(at(150)));
}

#[test]
fn reports_are_bounded_each_and_together() {
    use monitor_api::v1;

    use super::nodes::{BYTES_MAX, Nodes, REPORT_BYTES_MAX, REPORT_MAX, ReportError};
    let nodes = Nodes::default();
    let report = |node: &str, count: usize, bytes: usize| {
        nodes.report(node, vec![v1::Container::default(); count], bytes)
    };
    let whole = BYTES_MAX / REPORT_BYTES_MAX;
    assert_eq!(report("a", REPORT_MAX + 1, 0), Err(ReportError::Containers));
    assert_eq!(
        report("a", 1, REPORT_BYTES_MAX + 1),
        Err(ReportError::Bytes)
    );
    for node in 0..whole {
        assert_eq!(report(&node.to_string(), 1, REPORT_BYTES_MAX), Ok(()));
    }
    assert_eq!(report("a", 1, 1), Err(ReportError::Bytes));
    // A report takes the place of the last.
    assert_eq!(report("0", 1, REPORT_BYTES_MAX - 1), Ok(()));
    assert_eq!(report("a", 1, 1), Ok(()));
}
