#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use monitor_api::v1::alert;
use proptest::prelude::*;
use serde_json::json;

use super::{recording::Recorded, *};
use crate::yaml::DocumentError;

fn document(body: &str) -> Result<Document, DocumentError> {
    Document::parse(&format!(
        "apiVersion: monitor.v1\nkind: Policy\nname: p\n{body}"
    ))
}

#[test]
fn a_document_is_taken_whole_or_refused_with_its_place() {
    let check = |body: &str, expect: Result<usize, &[&str]>| match (document(body), expect) {
        (Ok(document), Ok(rules)) => assert_eq!(document.rules.len(), rules, "{body}"),
        (Err(error), Err(parts)) => {
            let error = error.to_string();
            let has = parts.iter().all(|part| error.contains(part));
            assert!(has, "{body}: {error}");
        }
        (found, _) => panic!("{body}: {found:?}"),
    };
    let rule = |lines: &str| format!("rules:\n  - name: r\n{lines}");
    let whole = "    on: exec\n    severity: low\n    message: m\n";
    check("", Ok(0));
    check(&rule(whole), Ok(1));
    let responds = |word: &str| rule(&format!("{whole}    respond: {word}\n"));
    check(&responds("propose"), Ok(1));
    check(&responds("auto"), Ok(1));
    check(&responds("off"), Ok(1));
    check(&responds("kill"), Err(&["line 9", "propose"]));
    check(&responds("[auto]"), Err(&["line 9"]));
    check(
        &rule("    on: finding\n    severity: low\n    respond: auto\n"),
        Ok(1),
    );
    check("rule: []", Err(&["line 4", "rules", "exceptions"]));
    check(
        &rule(&whole.replace("low", "lower")),
        Err(&["line 7", "critical"]),
    );
    check(
        &rule(&whole.replace("exec", "code")),
        Err(&["line 6", "connect"]),
    );
    check(
        &rule(&format!("{whole}    if: x\n")),
        Err(&["line 9", "when"]),
    );
    check(
        &rule("    on: exec\n    severity: low\n"),
        Err(&["rules/r", "message"]),
    );
    check(
        &rule("    on: finding\n    severity: low\n    message: m\n"),
        Err(&["rules/r", "leave message out"]),
    );
    check(
        &rule(&whole.replace("m\n", "''\n")),
        Err(&["message has 1 to"]),
    );
    check(
        &rule(&format!("{whole}    selector: {{image: x}}\n")),
        Err(&["line 9", "podLabels"]),
    );
    check(
        &rule(whole).replace("name: r", "name: a b"),
        Err(&["\"a b\""]),
    );
    check(
        &format!("{}  - name: r\n{whole}", rule(whole)),
        Err(&["another"]),
    );
    let exception = "exceptions:\n  - name: e\n    when: 'true'\n    owner: o\n    reason: r\n";
    check(exception, Err(&["until"]));
    check(
        &format!("{exception}    until: tomorrow\n"),
        Err(&["line 9"]),
    );
    check(
        &format!("{exception}    until: 2027-01-01T00:00:00Z\n"),
        Ok(0),
    );
    check("name: q\n", Err(&["name"]));
    check("---\nname: q\n", Err(&[]));
    let error = Document::parse("apiVersion: v2\nkind: Policy\nname: p\n").unwrap_err();
    assert!(
        error.to_string().contains("apiVersion: monitor.v1"),
        "{error}"
    );
    let many = "  - {name: NAME, on: exec, severity: low, message: m}\n";
    let many: String = (0..257)
        .map(|n| many.replace("NAME", &n.to_string()))
        .collect();
    check(
        &format!("rules:\n{many}"),
        Err(&["257 rules", "at most 256"]),
    );
}

#[test]
fn a_rule_says_what_is_done_about_it() {
    let rules = ["a", "b\n    respond: propose", "c\n    respond: auto"];
    let rules = rules.map(|rule| format!("  - on: finding\n    severity: low\n    name: {rule}\n"));
    let document = document(&format!("rules:\n{}", rules.concat())).unwrap();
    let written = Document::parse(&document.to_yaml().unwrap());
    assert_eq!(written.as_ref(), Ok(&document));
    let policies = Policies::new(&[document]).unwrap();
    let check = |id: &str, expect: Automatic| assert_eq!(policies.respond(id), expect, "{id}");
    check("p.a", Automatic::Off);
    check("p.b", Automatic::Propose);
    check("p.c", Automatic::Auto);
    check("p.d", Automatic::Off);
    check("a", Automatic::Off);
}

#[test]
fn the_default_set_and_the_examples_of_the_manual_are_policies() {
    let default = Document::parse(DEFAULT).unwrap();
    assert_eq!(Policies::new(&[default]).unwrap().rules().len(), 3);
    let manual = include_str!("../../../docs/policy.md");
    let examples = manual.split("```yaml\n").skip(1);
    let examples: Vec<Document> = examples
        .map(|rest| Document::parse(rest.split("```").next().unwrap()).unwrap())
        .collect();
    assert!(!examples.is_empty());
    Policies::new(&examples).unwrap();
}

fn line(on: On, event: Value) -> Recorded {
    Recorded {
        time: Timestamp::from_second(1000).unwrap(),
        on,
        who: Who {
            repository: "docker.io/library/nginx".to_owned(),
            container: "web".to_owned(),
            ..Who::default()
        },
        facts: json!({
            "event": event,
            "container": {"id": "c1", "name": "web", "runtime_namespace": "default"},
            "image": {"reference": "docker.io/library/nginx:1"},
            "process": {"origin": "exec", "arguments": ["sh"], "executable": "/bin/sh"},
        }),
    }
}

fn outcome(body: &str, line: &Recorded) -> Vec<(String, String)> {
    let mut policies = Policies::new(&[document(body).unwrap()]).unwrap();
    let read = Recorded::parse(&line.to_line()).unwrap();
    assert_eq!(read, *line);
    let tested = policies.replay(&read).into_iter();
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    tested
        .map(|it| it.json(line.time))
        .map(|it| match &it["excepted_by"] {
            Value::Null => (word(&it["kind"]), word(&it["severity"])),
            by => (word(&it["kind"]), word(by)),
        })
        .collect()
}

#[test]
fn rules_add_findings_change_them_and_are_excepted_from() {
    let exec = line(
        On::Exec,
        json!({"kind": "exec", "name": "sh", "path": "/bin/sh"}),
    );
    let found = line(
        On::Finding,
        json!({"kind": "exec_added", "severity": "critical", "rule": "content.exec_added", "path": "/tmp/x"}),
    );
    let check = |body: &str, line: &Recorded, expect: &[(&str, &str)]| {
        let found = outcome(body, line);
        let found: Vec<_> = found
            .iter()
            .map(|(a, b)| (a.as_str(), b.as_str()))
            .collect();
        assert_eq!(found, expect, "{body}");
    };
    let shell =
        "rules: [{name: sh, on: exec, severity: low, message: m, when: 'event.name == \"sh\"'}]\n";
    check(shell, &exec, &[("exec_unexpected", "low")]);
    check(shell, &found, &[("exec_added", "critical")]);
    check(&shell.replace("\"sh\"", "\"ls\""), &exec, &[]);
    check(
        &shell.replace("on: exec", "on: exec, selector: {container: db}"),
        &exec,
        &[],
    );
    check(
        &shell.replace("on: exec", "on: exec, selector: {repository: '*/nginx'}"),
        &exec,
        &[("exec_unexpected", "low")],
    );
    // A condition that fails says nothing.
    check(
        &shell.replace("event.name", "event.name.no.such"),
        &exec,
        &[],
    );
    check(&shell.replace("event.name == ", ""), &exec, &[]);
    let lower = "rules: [{name: l, on: finding, severity: info, when: 'event.path.startsWith(\"/tmp/\")'}]\n";
    check(lower, &found, &[("exec_added", "info")]);
    check(
        &lower.replace("/tmp/", "/var/"),
        &found,
        &[("exec_added", "critical")],
    );
    let except = |until: i64| {
        let until = Timestamp::from_second(until).unwrap();
        format!(
            "exceptions: [{{name: e, owner: o, reason: r, until: {until}, when: 'event.kind != \"\"'}}]\n"
        )
    };
    check(&except(1001), &found, &[("exec_added", "p.e")]);
    check(&except(1000), &found, &[("exec_added", "critical")]);
    check(
        &format!("{lower}{}", except(1001)),
        &found,
        &[("exec_added", "p.e")],
    );
    check(
        &format!("{shell}{}", except(1001)),
        &exec,
        &[("exec_unexpected", "p.e")],
    );
    // What another policy had added when it was recorded is no finding of this one.
    let mut of_policy = found.clone();
    of_policy.facts["event"]["rule"] = json!("policy.q.r");
    check(lower, &of_policy, &[]);
}

#[test]
fn a_line_that_is_nothing_like_an_act_is_none() {
    let rule =
        "rules: [{name: r, on: exec, severity: low, message: m, when: 'event.name == \"x\"'}]\n";
    let always = "rules: [{name: r, on: exec, severity: low, message: m}]\n";
    for facts in [json!(null), json!("x"), json!([]), json!({"event": 7})] {
        for on in [On::Exec, On::Finding] {
            let mut odd = line(on, json!({}));
            odd.facts = facts.clone();
            assert_eq!(outcome(rule, &odd).len(), usize::from(on == On::Finding));
            assert_eq!(outcome(always, &odd).len(), 1);
        }
    }
}

#[test]
fn counts_go_on_under_the_same_name() {
    let body = "rules: [{name: r, on: exec, severity: low, message: m}]\n";
    let document = document(body).unwrap();
    let exec = line(On::Exec, json!({"name": "sh"}));
    let mut before = Policies::new(std::slice::from_ref(&document)).unwrap();
    before.replay(&exec);
    let mut after = Policies::new(std::slice::from_ref(&document)).unwrap();
    after.follow(&before);
    after.replay(&exec);
    assert_eq!(after.rules().first().unwrap().held, 2);
}

#[test]
fn the_default_set_is_about_what_comes_from_outside() {
    let document = Document::parse(DEFAULT).unwrap();
    let mut policies = Policies::new(std::slice::from_ref(&document)).unwrap();
    let mut check = |on: On, event: Value, origin: &str, arguments: Value, expect: &[&str]| {
        let mut line = line(on, event);
        line.facts["process"]["origin"] = json!(origin);
        line.facts["process"]["arguments"] = arguments;
        let tested = policies.replay(&line);
        let rules: Vec<_> = tested
            .iter()
            .map(|it| it.facts["event"]["rule"].clone())
            .collect();
        assert_eq!(rules, expect, "{line:?}");
    };
    let named = |name: &str| json!({"name": name});
    check(
        On::Exec,
        named("sh"),
        "exec",
        json!(["sh"]),
        &["policy.default.shell"],
    );
    // What probes and entrypoints run.
    check(
        On::Exec,
        named("sh"),
        "exec",
        json!(["sh", "-c", "true"]),
        &[],
    );
    check(On::Exec, named("sh"), "init", json!(["sh"]), &[]);
    check(
        On::Exec,
        named("apt"),
        "init",
        json!(["apt", "update"]),
        &[],
    );
    let manager = ["policy.default.package-manager"];
    check(
        On::Exec,
        named("apt"),
        "exec",
        json!(["apt", "update"]),
        &manager,
    );
    let asks = json!(["apt-get", "--version"]);
    check(On::Exec, named("apt-get"), "exec", asks, &[]);
    let search = json!(["dpkg", "-S", "/bin/bash"]);
    check(On::Exec, named("dpkg"), "exec", search, &[]);
    let pip = json!(["python3", "/usr/bin/pip3", "install", "x"]);
    check(On::Exec, named("python3"), "exec", pip, &manager);
    let script = json!(["python3", "/srv/install", "install"]);
    check(On::Exec, named("python3"), "exec", script, &[]);
    check(On::Exec, named("python3"), "exec", json!([]), &[]);
    let peer = |address: &str, port: u16| {
        let is_public = !address.starts_with("10.");
        json!({"protocol": "tcp", "address": address, "port": port, "isPublic": is_public})
    };
    check(
        On::Connect,
        peer("203.0.113.9", 3333),
        "init",
        json!([]),
        &["policy.default.miner"],
    );
    check(
        On::Connect,
        peer("203.0.113.9", 443),
        "init",
        json!([]),
        &[],
    );
    check(On::Connect, peer("10.0.0.1", 3333), "init", json!([]), &[]);
    let unix = json!({"protocol": "unix", "address": "/x", "port": null, "isPublic": false});
    check(On::Connect, unix, "init", json!([]), &[]);
}

fn an_alert(change: impl FnOnce(&mut Alert)) -> Alert {
    let mut alert = Alert {
        kind: "exec_added".to_owned(),
        process: Some(alert::Process {
            executable: b"/tmp/\"x\xff".to_vec(),
            ..alert::Process::default()
        }),
        file: Some(alert::File {
            path: b"/tmp/\"x\xff".to_vec(),
            seen_sha256: "ab".repeat(32),
            ..alert::File::default()
        }),
        ..Alert::default()
    };
    change(&mut alert);
    alert
}

#[test]
fn an_exception_of_an_alert_is_of_findings_like_it_and_of_no_other() {
    let second = |second| Timestamp::from_second(second).unwrap();
    let mut document = Document::new("exceptions");
    document.exceptions.push(Exception {
        name: "e".to_owned(),
        owner: "user 0".to_owned(),
        reason: "why: \"because\"\n- so".to_owned(),
        until: second(1000),
        selector: document::Selector {
            repository: Some("docker.io/library/nginx".to_owned()),
            ..document::Selector::default()
        },
        when: like(&an_alert(|_| {})),
    });
    let written = document.to_yaml().unwrap();
    assert_eq!(Document::parse(&written), Ok(document.clone()), "{written}");
    let mut policies = Policies::new(&[document]).unwrap();
    let mut check = |repository: &str, change: fn(&mut Alert), at: i64, expect: bool| {
        let asked = Asked::recorded(Who {
            repository: repository.to_owned(),
            ..Who::default()
        });
        let facts = facts::of(On::Finding, &an_alert(change), None);
        let fate = policies.fate(&asked, || facts.clone(), second(at));
        assert_eq!(matches!(fate, Fate::Excepted(_)), expect, "{at} {facts}");
    };
    let nginx = "docker.io/library/nginx";
    check(nginx, |_| {}, 0, true);
    check(nginx, |_| {}, 999, true);
    check(nginx, |_| {}, 1000, false);
    check("docker.io/library/redis", |_| {}, 0, false);
    check(nginx, |it| it.kind = "exec_modified".into(), 0, false);
    // Other bytes at the same path are another program.
    check(
        nginx,
        |it| it.file.as_mut().unwrap().seen_sha256 = "cd".into(),
        0,
        false,
    );
    check(
        nginx,
        |it| it.file.as_mut().unwrap().path = b"/tmp/y".into(),
        0,
        false,
    );
    check(
        nginx,
        |it| it.process.as_mut().unwrap().executable = b"/x".into(),
        0,
        false,
    );
    check(nginx, |it| it.process.as_mut().unwrap().pid = 7, 0, true);
    assert_eq!(policies.exceptions().first().unwrap().held, 3);
    assert!(policies.has_expired(second(999), second(1000)));
    assert!(!policies.has_expired(second(1000), second(1001)));
    assert!(!policies.has_expired(second(0), second(999)));
}

proptest! {
    #[test]
    fn whatever_is_written_is_read_or_refused(text in "\\PC{0,200}", cut in 0usize..400) {
        drop(Document::parse(&text));
        drop(Recorded::parse(&text));
        // Pieces of what is right.
        drop(Document::parse(DEFAULT.get(cut..).unwrap_or_default()));
    }
}
