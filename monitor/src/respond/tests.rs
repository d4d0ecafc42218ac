#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::{
    ledger::{IN_FLIGHT_MAX, Ledger, ORDERS_MAX, PLAN_SECONDS_MAX, PLANS_MAX, Settings},
    order::{By, OnFailure, Planned, Request},
    plan::{Facts, Held, Plan, Pull, Signature, Supply, Times, plan},
    progress::State,
    record::{Record, Store},
};
use crate::{
    approval::{Approvals, Document, State as Said, Statement},
    containerd::{ContainerRecord, Stdio, TaskDetails, TaskState},
    containers::{ImageId, catalog::Image},
    digest::Digest,
    image::manifest::{self, Config, digest_of},
};

const REPOSITORY: &str = "example.org/web";

fn digest(name: &str) -> Digest {
    digest_of(name.as_bytes())
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn held(repository: &str, name: &str) -> Held {
    let config = Config {
        os: "linux".to_owned(),
        architecture: manifest::node_architecture().to_owned(),
        entrypoint: vec![format!("/{name}")],
        ..Config::default()
    };
    let id = ImageId {
        manifest: digest(name),
        config: digest(&format!("{name} config")),
        chain_id: digest(&format!("{name} chain")),
        index: None,
    };
    Held {
        reference: format!("{repository}:{name}"),
        target: digest(&format!("{name} index")),
        image: Arc::new(Image { id, config }),
    }
}

/// `+a` approves, `-a` revokes; each a second after the one before.
fn approvals(said: &str) -> Approvals {
    if said.is_empty() {
        return Approvals::default();
    }
    let mut document = Document::new(REPOSITORY);
    for (word, second) in said.split_whitespace().zip(1..) {
        let (sign, name) = word.split_at(1);
        let state = match sign {
            "+" => Said::Approved,
            _ => Said::Revoked,
        };
        document.statements.push(Statement {
            digest: digest(name),
            state,
            by: "alice".to_owned(),
            at: at(second),
            reason: String::new(),
            until: None,
        });
    }
    Approvals::new(&[document]).unwrap()
}

/// A container of image `c` that runs; `a`, `b` and `c` are there.
fn facts(said: &str) -> Facts {
    let images: Vec<Held> = ["a", "b", "c"].map(|name| held(REPOSITORY, name)).into();
    Facts {
        namespace: "default".to_owned(),
        record: ContainerRecord {
            id: "web".to_owned(),
            image: format!("{REPOSITORY}:c"),
            snapshotter: "overlayfs".to_owned(),
            snapshot_key: "web".to_owned(),
            spec: br#"{"process": {"args": ["/c"]}}"#.to_vec(),
            ..ContainerRecord::default()
        },
        task: Some((
            TaskDetails {
                pid: 7,
                state: TaskState::Running,
                exit_status: 0,
                stdio: Stdio {
                    stdout: "file:///log".to_owned(),
                    stderr: "/run/fifo".to_owned(),
                },
            },
            100,
        )),
        is_sandbox: false,
        running: vec![Arc::clone(&images.last().unwrap().image)],
        images,
        approvals: approvals(said),
        ran: vec![digest("a"), digest("c")],
        has_content_findings: false,
        signature: Signature::NotRequired,
        supply: Some(Supply::Unpacked),
        now: at(100),
    }
}

fn request(to: Option<&str>) -> Request {
    Request {
        target: "web".to_owned(),
        to: to.map(digest),
        on_failure: OnFailure::Hold,
        reason: "test".to_owned(),
        allow_stateful: false,
        container: None,
    }
}

const TIMES: Times = Times {
    grace_seconds: 10,
    watch_seconds: 2,
};

#[test]
fn the_target_is_named_or_the_last_approved_that_ran() {
    let check = |said: &str, to: Option<&str>, expect: Result<&str, &str>| {
        let found = plan(&request(to), &facts(said), TIMES);
        match (&found, expect) {
            (Ok(plan), Ok(name)) => assert_eq!(plan.to, digest(name), "{said} {to:?}"),
            (Err(refusal), Err(words)) => {
                let refusal = refusal.to_string();
                assert!(refusal.contains(words), "{said} {to:?}: {refusal}");
            }
            _ => assert_eq!(format!("{found:?}"), format!("{expect:?}"), "{said} {to:?}"),
        }
    };
    check("+a +b +c", Some("a"), Ok("a"));
    check("+a +b +c", Some("b"), Ok("b"));
    // By an index, approved by itself or as the manifest in it.
    check("+a", Some("a index"), Ok("a"));
    // `b` never ran here.
    check("+a +b +c", None, Ok("a"));
    check("+a +b", None, Ok("a"));
    check("+c +a", None, Err("name one with --to"));
    check("+a -a +c", None, Err("name one with --to"));
    check("", None, Err("name one with --to"));
    check("+a +c", Some("c"), Err("was created from"));
    check("+b", Some("a"), Err("is unapproved in example.org/web"));
    check("", Some("a"), Err("is unmanaged in example.org/web"));
    check("+a -a", Some("a"), Err("is revoked in example.org/web"));
    check("+x", Some("x"), Err("ctr -n default images pull"));
    check("+a", Some("x"), Err("is unapproved in example.org/web"));
}

#[test]
fn what_keeps_a_rollback_from_being_planned_is_said() {
    let check = |on_failure: OnFailure, change: &dyn Fn(&mut Facts), words: &str| {
        let mut facts = facts("+a +b +c");
        change(&mut facts);
        let request = Request {
            on_failure,
            ..request(Some("a"))
        };
        let said = match plan(&request, &facts, TIMES) {
            Ok(plan) => format!("planned {}", plan.to),
            Err(refusal) => refusal.to_string(),
        };
        assert!(said.contains(words), "{words}: {said}");
    };
    let (hold, undo) = (OnFailure::Hold, OnFailure::Undo);
    check(undo, &|_| {}, "planned");
    check(hold, &|it| it.supply = None, "is not unpacked");
    check(hold, &|it| it.is_sandbox = true, "belongs to a sandbox");
    let pause = |it: &mut Facts| {
        if let Some((task, _)) = &mut it.task {
            task.state = TaskState::Paused;
        }
    };
    check(hold, &pause, "is paused");
    check(hold, &|it| it.record.snapshot_key.clear(), "no snapshot");
    check(hold, &|it| it.record.image.clear(), "no repository");
    check(hold, &|it| it.record.spec.clear(), "no readable process");
    let refused = |it: &mut Facts| it.signature = Signature::Refused("wrong key".to_owned());
    check(hold, &refused, "wrong key");
    let elsewhere = |it: &mut Facts| {
        if let Some(first) = it.images.first_mut() {
            first.reference = "example.org/other:a".to_owned();
        }
    };
    check(hold, &elsewhere, "is an image of example.org/other");
    let foreign = |it: &mut Facts| {
        if let Some(first) = it.images.first_mut() {
            Arc::make_mut(&mut first.image).config.architecture = "s390x".to_owned();
        }
    };
    check(hold, &foreign, "is built for linux/s390x");
    let label = |it: &mut Facts| {
        let label = ("nerdctl/name".to_owned(), String::new());
        it.record.labels.extend([label]);
    };
    check(hold, &label, "nerdctl owns it");
    check(
        undo,
        &|it| it.has_content_findings = true,
        "files that are not",
    );
    check(hold, &|it| it.has_content_findings = true, "planned");
    let revoke = |it: &mut Facts| it.approvals = approvals("+a +c -c");
    check(undo, &revoke, "was revoked");
    check(hold, &revoke, "planned");
    // That somebody gave a command is all that is known then.
    check(hold, &|it| it.running.clear(), "planned");
}

#[test]
fn another_state_is_another_version() {
    let base = plan(&request(Some("a")), &facts("+a"), TIMES).unwrap();
    assert_eq!(base.stdio.stdout, "file:///log");
    assert_eq!(base.stdio.stderr, "");
    assert!(base.spec.contains("\"/a\""), "{}", base.spec);
    let check = |change: &dyn Fn(&mut Facts), is_same: bool| {
        let mut facts = facts("+a");
        change(&mut facts);
        let again = plan(&request(Some("a")), &facts, TIMES).unwrap();
        assert_eq!(again.version == base.version, is_same);
    };
    check(&|_| {}, true);
    check(&|it| it.now = at(101), true);
    check(&|it| it.record.updated_unix_ns += 1, false);
    check(&|it| it.record.created_unix_ns += 1, false);
    check(&|it| it.task = None, false);
    let restart = |it: &mut Facts| {
        if let Some((_, started)) = &mut it.task {
            *started += 1;
        }
    };
    check(&restart, false);
    check(&|it| it.running.clear(), false);
}

#[test]
fn the_old_container_is_kept_under_an_id_that_containerd_takes() {
    let check = |id: &str, expect: &str| {
        let mut plan = a_plan("web");
        plan.container = id.to_owned();
        let kept = plan.kept("01JDQ0000000000000000000AB");
        assert_eq!(kept, format!("{expect}-before-01jdq0000000000000000000ab"));
        assert!(kept.len() <= 76, "{kept}");
    };
    check("web", "web");
    check(&"x".repeat(76), &"x".repeat(40));
    check(
        &format!("{}-{}", "x".repeat(39), "y".repeat(9)),
        &"x".repeat(39),
    );
}

#[test]
fn what_is_missing_of_an_image_is_brought_first() {
    let check = |supply: Supply, first: &str, expect: &[&str]| {
        let mut facts = facts("+a");
        facts.supply = Some(supply);
        let plan = plan(&request(Some("a")), &facts, TIMES).unwrap();
        assert_eq!(plan.first_step().name(), first);
        let steps = plan.steps("01J");
        let names: Vec<&str> = steps.iter().map(|(step, _)| step.name()).collect();
        assert!(names.starts_with(expect), "{names:?}");
        steps.into_iter().next().unwrap().1
    };
    check(Supply::Unpacked, "prepare", &["prepare", "keep"]);
    let stored = check(Supply::Stored, "unpack", &["unpack", "prepare"]);
    assert_eq!(stored, "unpack its layers for overlayfs");
    let pull = Pull {
        target: digest("a index"),
        blobs: 3,
        bytes: 4711,
    };
    let remote = check(Supply::Remote(pull), "pull", &["pull", "unpack", "prepare"]);
    assert!(remote.ends_with("3 blobs of 4711 bytes"), "{remote}");
}

fn a_plan(container: &str) -> Plan {
    let mut facts = facts("+a");
    facts.record.id = container.to_owned();
    plan(&request(Some("a")), &facts, TIMES).unwrap()
}

fn by() -> By {
    By {
        name: "user 0".to_owned(),
        roles: Vec::new(),
        peer: String::new(),
    }
}

fn record(id: &str, container: &str, began: i64, ended: Option<i64>) -> Record {
    let mut record = Record::new(id.to_owned(), a_plan(container), by(), at(began));
    if let Some(ended) = ended {
        record.state = State::Done;
        record.ended_at = Some(at(ended));
    }
    record
}

#[test]
fn orders_are_bounded() {
    let settings = Settings {
        per_hour: 3,
        ..Settings::default()
    };
    let check = |records: Vec<Record>, now: i64, words: &str| {
        let ledger = Ledger::new(records);
        let said = match ledger.may_begin(&a_plan("web"), &settings.limits(), at(now)) {
            Ok(()) => "may begin".to_owned(),
            Err(refusal) => refusal.to_string(),
        };
        assert!(said.contains(words), "{words}: {said}");
    };
    check(Vec::new(), 100, "may begin");
    check(vec![record("1", "web", 99, None)], 100, "order 1");
    check(vec![record("1", "db", 99, None)], 100, "may begin");
    check(vec![record("1", "web", 60, Some(71))], 100, "in 1 s");
    check(vec![record("1", "web", 60, Some(70))], 100, "may begin");
    check(vec![record("1", "db", 60, Some(99))], 100, "may begin");
    let three = || {
        let each = ["1", "2", "3"].map(|id| record(id, "db", 10, Some(11)));
        Vec::from(each)
    };
    check(three(), 3609, "3 orders began");
    check(three(), 3610, "may begin");
    let many = (0..IN_FLIGHT_MAX).map(|number| {
        let id = number.to_string();
        record(&id, &format!("db{number}"), 10, None)
    });
    check(many.collect(), 9000, "orders are under way");
}

#[test]
fn plans_and_orders_that_are_kept_are_bounded() {
    let mut ledger: Ledger<Record> = Ledger::new(Vec::new());
    let planned = |second| Planned {
        plan: a_plan("web"),
        request: request(None),
        by: by(),
        at: at(second),
    };
    for number in 0..PLANS_MAX + 1 {
        ledger.add_plan(format!("{number:03}"), planned(0));
    }
    assert_eq!(ledger.plans(at(0)).count(), PLANS_MAX);
    assert!(ledger.plan("000", at(0)).is_none());
    assert!(ledger.plan("001", at(PLAN_SECONDS_MAX - 1)).is_some());
    assert!(ledger.plan("001", at(PLAN_SECONDS_MAX)).is_none());

    let mut ledger = Ledger::new(vec![record("000", "web", 0, None)]);
    let mut gone = Vec::new();
    for number in 1..=ORDERS_MAX + 1 {
        gone.extend(ledger.keep(record(&format!("{number:03}"), "db", 0, Some(1))));
    }
    // The one under way stays.
    assert_eq!(gone, ["001", "002"]);
    assert_eq!(ledger.orders().count(), ORDERS_MAX);
}

#[test]
fn orders_are_read_as_they_were_kept() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("orders");
    let (store, records) = Store::open(path.clone()).unwrap();
    assert_eq!(records, []);
    let kept = record("01J", "web", 7, Some(9));
    store.save(&kept).unwrap();
    std::fs::write(path.join("bad.json"), "{").unwrap();
    let (store, records) = Store::open(path.clone()).unwrap();
    assert_eq!(records, [kept]);
    store.forget("01J");
    let (_, records) = Store::open(path).unwrap();
    assert_eq!(records, []);
}

#[test]
fn settings_are_bounded() {
    let check = |change: &dyn Fn(&mut Settings), expect: Option<&str>| {
        let mut settings = Settings::default();
        change(&mut settings);
        let key = settings.out_of_range().map(|(key, _, _)| key);
        assert_eq!(key, expect);
    };
    check(&|_| {}, None);
    check(&|it| it.grace_seconds = 601, Some("respond.grace_seconds"));
    check(&|it| it.watch_seconds = 0, Some("respond.watch_seconds"));
    check(&|it| it.per_hour = 0, Some("respond.per_hour"));
    let day = SignedDuration::from_hours(24).as_secs();
    let day = u32::try_from(day).unwrap();
    check(&|it| it.cool_down_seconds = day, None);
    check(
        &|it| it.cool_down_seconds = day + 1,
        Some("respond.cool_down_seconds"),
    );
}
