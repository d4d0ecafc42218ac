#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::sync::Arc;

use monitor_api::json;
use serde_json::json;

use super::*;
use crate::{
    containers::Pod,
    detect::FileVerdict,
    digest::{Digest, Sha256 as Hash},
    sensor::event::Process,
};

fn digest(byte: u8) -> Digest {
    Digest(Hash([byte; 32]))
}

fn image(manifest: u8) -> Arc<ImageId> {
    Arc::new(ImageId {
        manifest: digest(manifest),
        config: digest(manifest + 1),
        chain_id: digest(0xcc),
        index: None,
    })
}

pub(in crate::alerts) fn finding() -> Finding {
    Finding {
        kind: Kind::ExecModified,
        severity: Severity::Critical,
        time_boot_ns: 1_500_000_000,
        container: Arc::new(Container {
            runtime_namespace: "k8s.io".to_owned(),
            id: "c1".to_owned(),
            name: "web".to_owned(),
            kind: ContainerKind::Container,
            pod: Some(Pod {
                namespace: "shop".to_owned(),
                name: "web-1".to_owned(),
                uid: "u1".to_owned(),
                labels: Arc::default(),
            }),
            image_problem: None,
            posture: None,
            created_unix_ns: 0,
            runtime: String::new(),
            image_reference: Some("web:1".to_owned()),
            snapshotter: "overlayfs".to_owned(),
            snapshot_key: "c1".to_owned(),
            identity: Identity::Proven(image(0xa0)),
            task: None,
        }),
        evidence: Some("verified"),
        message: "a sentence".to_owned(),
        process: Some(ProcessFinding {
            process: Process {
                pid: 42,
                start_boot_ns: 1_000_000_001,
                parent_pid: 41,
                parent_mount_namespace: 1,
                uid: 0,
                mount_namespace: 1,
                pid_namespace: 2,
                root_device: 3,
            },
            origin: Origin::Init,
            executable: b"/bin/x".to_vec(),
            arguments: vec![b"x".to_vec(), b"--token=abc".to_vec()],
            arguments_truncated: false,
            ancestors: vec![],
        }),
        file: Some(FileFinding {
            path: b"/bin/x".to_vec(),
            path_truncated: false,
            verdict: FileVerdict::Modified,
            layer: Some(digest(0x11)),
            expected: Some(Hash([0xee; 32])),
            seen: Some(Hash([0x5e; 32])),
            hash_state: HashState::Done,
            same_bytes_as: None,
        }),
        connection: None,
        details: Some("why".to_owned()),
        hook: Some("tracepoint"),
        rule: None,
    }
}

fn node() -> NodeFacts {
    NodeFacts {
        cluster: "prod".to_owned(),
        environment: String::new(),
        node: "node-7".to_owned(),
        boot_time: "2026-11-22T03:00:00Z".parse().unwrap(),
    }
}

fn built(finding: &Finding, node: &NodeFacts) -> serde_json::Value {
    let observed = "2026-11-22T03:00:02Z".parse().unwrap();
    json::alert(&build(finding, node, observed, Ulid::from_parts(1, 2)))
}

#[test]
fn an_alert_says_what_its_finding_says() {
    let alert = built(&finding(), &node());
    let hex = |byte: &str| byte.repeat(32);
    let check = |pointer: &str, expect: serde_json::Value| {
        assert_eq!(alert.pointer(pointer), Some(&expect), "{pointer}");
    };
    check("/schema", json!("monitor.v1/1"));
    check("/id", json!(Ulid::from_parts(1, 2).to_string()));
    check("/revision", json!(1));
    check("/count", json!(1));
    check("/time", json!("2026-11-22T03:00:01.500000000Z"));
    check("/observed_time", json!("2026-11-22T03:00:02.000000000Z"));
    check("/first_seen", json!("2026-11-22T03:00:01.500000000Z"));
    check("/cluster", json!("prod"));
    check("/environment", json!(null));
    check("/node", json!("node-7"));
    check("/kind", json!("exec_modified"));
    check("/severity", json!("critical"));
    check(
        "/rule",
        json!({"id": "content.exec_modified", "version": "1"}),
    );
    check("/attack", json!(["T1554", "T1574"]));
    check("/message", json!("a sentence"));
    check("/container/runtime_namespace", json!("k8s.io"));
    check("/container/kind", json!("container"));
    check(
        "/container/pod",
        json!({"namespace": "shop", "name": "web-1", "uid": "u1"}),
    );
    check("/container/workload", json!(null));
    check("/image/identity", json!("proven"));
    check(
        "/image/manifest_digest",
        json!(format!("sha256:{}", hex("a0"))),
    );
    check(
        "/image/config_digest",
        json!(format!("sha256:{}", hex("a1"))),
    );
    check("/image/index_digest", json!(null));
    check("/image/evidence", json!("verified"));
    check(
        "/process/start_time",
        json!("2026-11-22T03:00:01.000000001Z"),
    );
    check("/process/arguments", json!(["x", "--token=[redacted]"]));
    check("/process/exec_id", json!(null));
    check("/file/verdict", json!("modified"));
    check("/file/layer", json!(format!("sha256:{}", hex("11"))));
    check("/file/expected_sha256", json!(hex("ee")));
    check("/file/seen_sha256", json!(hex("5e")));
    check("/file/same_bytes_as", json!(null));
    check("/connection", json!(null));
    check("/details", json!({"reason": "why"}));
    check("/hook", json!("tracepoint"));
}

#[test]
fn a_peer_is_said_with_its_technique() {
    let of_peer = |sensitive, port| Finding {
        kind: Kind::ConnectSensitive,
        file: None,
        connection: Some(ConnectionFinding {
            protocol: "tcp",
            family: "ipv4",
            address: b"169.254.169.254".to_vec(),
            port,
            sensitive: Some(sensitive),
            outcome: (sensitive == Sensitive::Runtime).then_some(Outcome::Refused),
        }),
        ..finding()
    };
    let alert = built(&of_peer(Sensitive::Metadata, Some(80)), &node());
    assert_eq!(
        alert["connection"],
        json!({"protocol": "tcp", "family": "ipv4", "address": "169.254.169.254", "port": 80})
    );
    assert_eq!(alert["attack"], json!(["T1552.005"]));
    assert_eq!(alert["rule"]["id"], json!("sensitive.connect_sensitive"));
    assert_eq!(alert["file"], json!(null));
    let other = built(&of_peer(Sensitive::Runtime, None), &node());
    assert_eq!(other["connection"]["port"], json!(null));
    assert_ne!(alert["fingerprint"], other["fingerprint"]);
    assert_eq!(alert["details"]["result"], json!(null));
    assert_eq!(other["details"]["result"], json!("refused"));
}

#[test]
fn an_ambiguous_image_has_candidates_and_no_digest_of_its_own() {
    let mut finding = finding();
    let container = Arc::make_mut(&mut finding.container);
    container.identity = Identity::Ambiguous(vec![image(0xa0), image(0xb0)]);
    let image = &built(&finding, &node())["image"];
    assert_eq!(image["identity"], "ambiguous");
    assert_eq!(image["manifest_digest"], json!(null));
    assert_eq!(image["chain_id"], json!(digest(0xcc).to_string()));
    let manifests: Vec<_> = image["candidates"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["manifest_digest"])
        .collect();
    assert_eq!(
        manifests,
        [
            &json!(digest(0xa0).to_string()),
            &json!(digest(0xb0).to_string())
        ]
    );
}

#[test]
fn a_finding_without_process_and_file_has_null_for_them() {
    let mut finding = finding();
    (finding.process, finding.file, finding.hook) = (None, None, None);
    let alert = built(&finding, &node());
    assert_eq!(
        (&alert["process"], &alert["file"], &alert["hook"]),
        (&json!(null), &json!(null), &json!(null))
    );
}

#[test]
fn the_fingerprint_is_of_the_thing_and_not_of_the_place() {
    let expect = fingerprint(&finding());
    let check = |change: fn(&mut Finding), same: bool| {
        let mut finding = finding();
        change(&mut finding);
        assert_eq!(fingerprint(&finding) == expect, same, "{finding:?}");
    };
    check(|finding| finding.time_boot_ns += 1, true);
    check(
        |finding| finding.process.as_mut().unwrap().process.pid += 1,
        true,
    );
    check(
        |finding| Arc::make_mut(&mut finding.container).id.push('x'),
        true,
    );
    check(
        |finding| Arc::make_mut(&mut finding.container).image_reference = None,
        true,
    );
    check(|finding| finding.message.push('x'), true);
    check(|finding| finding.kind = Kind::ExecAdded, false);
    check(
        |finding| finding.file.as_mut().unwrap().path.push(b'x'),
        false,
    );
    check(|finding| finding.file.as_mut().unwrap().seen = None, false);
    check(|finding| finding.file = None, false);
    let identity = |finding: &mut Finding, identity| {
        Arc::make_mut(&mut finding.container).identity = identity;
    };
    let mut other = finding();
    identity(&mut other, Identity::Proven(image(0xb0)));
    assert_ne!(fingerprint(&other), expect);
    identity(&mut other, Identity::Claimed(image(0xa0)));
    assert_eq!(
        fingerprint(&other),
        expect,
        "how the image is known does not change which it is"
    );
}

#[test]
fn hostile_times_have_a_rendering() {
    let mut finding = finding();
    finding.time_boot_ns = u64::MAX;
    let alert = built(&finding, &node());
    assert!(
        alert["time"].as_str().unwrap().starts_with("2319-"),
        "{}",
        alert["time"]
    );
}

#[test]
fn boot_was_before_now() {
    assert!(boot_time().unwrap() < Timestamp::now());
}
