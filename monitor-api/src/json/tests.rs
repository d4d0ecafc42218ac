#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use proptest::prelude::*;

use super::*;
use crate::v1::alert::*;

/// The contract's example, with every field of it set.
pub(crate) fn full() -> v1::Alert {
    let time = |nanos| {
        Some(prost_types::Timestamp {
            seconds: 1_795_317_614,
            nanos,
        })
    };
    let text = |text: &str| text.to_owned();
    let digest = |digit: &str| format!("sha256:{}", digit.repeat(64));
    v1::Alert {
        schema: text("monitor.v1/1"),
        journal: text("01JD"),
        cursor: 184_467,
        id: text("01JE"),
        revision: 1,
        fingerprint: "f".repeat(64),
        time: time(364_054_824),
        observed_time: time(365_000_000),
        first_seen: time(364_054_824),
        last_seen: time(0),
        count: 1,
        cluster: text("prod-eu"),
        environment: text("production"),
        node: text("node-7"),
        kind: text("exec_added"),
        severity: v1::Severity::Critical.into(),
        rule: Some(Rule {
            id: text("content.exec_added"),
            version: text("1"),
        }),
        attack: vec![text("T1059")],
        message: text("message"),
        runbook: text("runbook"),
        container: Some(Container {
            id: text("c1"),
            name: text("web"),
            runtime_namespace: text("default"),
            kind: text("container"),
            pod: Some(Pod {
                namespace: text("ns"),
                name: text("pod"),
                uid: text("uid"),
            }),
            created_at: None,
            workload: Some(Workload {
                kind: text("Deployment"),
                name: text("web"),
            }),
        }),
        image: Some(Image {
            reference: text("docker.io/library/web:1"),
            identity: text("proven"),
            candidates: vec![],
            manifest_digest: digest("a"),
            index_digest: String::new(),
            config_digest: digest("b"),
            chain_id: digest("c"),
            evidence: text("verified"),
        }),
        process: Some(Process {
            pid: 4242,
            start_time: time(1),
            exec_id: text("exec-1"),
            parent_pid: 4200,
            uid: 0,
            origin: text("init"),
            executable: b"/tmp/x".to_vec(),
            arguments: vec![b"/tmp/x".to_vec(), b"\xff\\".to_vec()],
            arguments_truncated: false,
            ancestors: vec![b"/bin/sh".to_vec()],
        }),
        file: Some(File {
            path: b"/tmp/x".to_vec(),
            path_truncated: false,
            verdict: text("added"),
            layer: String::new(),
            expected_sha256: String::new(),
            seen_sha256: "d".repeat(64),
            hash_state: text("done"),
            same_bytes_as: b"/bin/busybox".to_vec(),
        }),
        connection: None,
        details: None,
        hook: text("tracepoint"),
    }
}

#[test]
fn an_alert_is_rendered_as_in_the_contract() {
    let hex = |digit: &str| digit.repeat(64);
    let expect = [
        r#"{"schema":"monitor.v1/1","journal":"01JD","cursor":"184467","id":"01JE","revision":1,"#,
        &format!(r#""fingerprint":"{}","#, hex("f")),
        r#""time":"2026-11-22T03:20:14.364054824Z","observed_time":"2026-11-22T03:20:14.365000000Z","#,
        r#""first_seen":"2026-11-22T03:20:14.364054824Z","last_seen":"2026-11-22T03:20:14.000000000Z","#,
        r#""count":1,"cluster":"prod-eu","environment":"production","node":"node-7","#,
        r#""kind":"exec_added","severity":"critical","#,
        r#""rule":{"id":"content.exec_added","version":"1"},"attack":["T1059"],"#,
        r#""message":"message","runbook":"runbook","#,
        r#""container":{"id":"c1","name":"web","runtime_namespace":"default","kind":"container","#,
        r#""pod":{"namespace":"ns","name":"pod","uid":"uid"},"#,
        r#""workload":{"kind":"Deployment","name":"web"},"created_at":null},"#,
        r#""image":{"reference":"docker.io/library/web:1","identity":"proven","candidates":[],"#,
        &format!(r#""manifest_digest":"sha256:{}","index_digest":null,"#, hex("a")),
        &format!(r#""config_digest":"sha256:{}","chain_id":"sha256:{}","#, hex("b"), hex("c")),
        r#""evidence":"verified"},"#,
        r#""process":{"pid":4242,"start_time":"2026-11-22T03:20:14.000000001Z","#,
        r#""exec_id":"exec-1","parent_pid":4200,"uid":0,"origin":"init","executable":"/tmp/x","#,
        r#""arguments":["/tmp/x","\\xff\\\\"],"arguments_truncated":false,"#,
        r#""ancestors":["/bin/sh"]},"#,
        r#""file":{"path":"/tmp/x","path_truncated":false,"verdict":"added","layer":null,"#,
        &format!(r#""expected_sha256":null,"seen_sha256":"{}","hash_state":"done","#, hex("d")),
        r#""same_bytes_as":"/bin/busybox"},"#,
        r#""connection":null,"details":null,"hook":"tracepoint"}"#,
    ]
    .concat();
    assert_eq!(line(&alert(&full())), expect);
}

#[test]
fn an_empty_alert_has_every_key_and_null_for_what_does_not_apply() {
    let keys = |value: &Value| {
        value
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect::<Vec<_>>()
    };
    let empty = alert(&v1::Alert::default());
    assert_eq!(keys(&empty), keys(&alert(&full())));
    for key in [
        "time",
        "cluster",
        "rule",
        "runbook",
        "container",
        "image",
        "process",
        "file",
    ] {
        assert_eq!(empty[key], Value::Null, "{key}");
    }
}

#[test]
fn a_peer_without_a_port_has_null() {
    let check = |port, expect: &str| {
        let connection = Some(Connection {
            protocol: "tcp".to_owned(),
            family: "ipv4".to_owned(),
            address: b"203.0.113.9".to_vec(),
            port,
        });
        let alert = alert(&v1::Alert {
            connection,
            ..v1::Alert::default()
        });
        assert_eq!(alert["connection"].to_string(), expect);
    };
    check(
        Some(4444),
        r#"{"protocol":"tcp","family":"ipv4","address":"203.0.113.9","port":4444}"#,
    );
    check(
        None,
        r#"{"protocol":"tcp","family":"ipv4","address":"203.0.113.9","port":null}"#,
    );
}

#[test]
fn details_keep_their_structure() {
    let value = |kind| prost_types::Value { kind: Some(kind) };
    let list = prost_types::ListValue {
        values: vec![value(Kind::NumberValue(2.0)), value(Kind::NumberValue(0.5))],
    };
    let fields = [
        ("list".to_owned(), value(Kind::ListValue(list))),
        (
            "reason".to_owned(),
            value(Kind::StringValue("why".to_owned())),
        ),
        ("sure".to_owned(), value(Kind::BoolValue(false))),
        ("wrong".to_owned(), value(Kind::NumberValue(f64::NAN))),
    ];
    let details = Some(prost_types::Struct {
        fields: fields.into_iter().collect(),
    });
    let alert = alert(&v1::Alert {
        details,
        ..v1::Alert::default()
    });
    assert_eq!(
        alert["details"].to_string(),
        r#"{"list":[2,0.5],"reason":"why","sure":false,"wrong":null}"#
    );
}

#[test]
fn what_a_terminal_acts_on_is_escaped() {
    let check = |text: &str, expect: &str| assert_eq!(line(&json!(text)), expect);
    check("a\nb\u{1b}[31m", r#""a\nb\u001b[31m""#);
    check("\u{9b}31m", r#""\u009b31m""#);
    check("\u{202e}gpj.exe", r#""\u202egpj.exe""#);
    check("\u{e0041}", r#""\udb40\udc41""#);
    check("ü", r#""ü""#);
}

proptest! {
    #[test]
    fn a_line_is_one_line_and_says_the_same(text: String) {
        let line = line(&json!(text));
        prop_assert!(!line.contains(is_unsafe));
        prop_assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), json!(text));
    }

    #[test]
    fn any_time_is_rendered_or_null(seconds: i64, nanos: i32) {
        let time = Some(prost_types::Timestamp { seconds, nanos });
        let alert = alert(&v1::Alert { time, ..v1::Alert::default() });
        prop_assert!(alert["time"].is_null() || alert["time"].is_string());
    }
}
