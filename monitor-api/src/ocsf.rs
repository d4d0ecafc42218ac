//! Alerts as OCSF Detection Findings, class 2004 of the Open Cybersecurity Schema Framework.
//!
//! What has an attribute there stands in it; the rest is in `unmapped`, under the names of the
//! contract's JSON. What does not apply is left out. Later minor versions of the schema only add.

use std::net::IpAddr;

use prost_types::Timestamp;
use serde_json::{Map, Value, json};

use crate::{
    bytes::escape,
    json::{self, Missing},
    v1::{
        Alert, Severity,
        alert::{Connection, Container, File, Image, Process},
    },
};

/// The version of the schema that findings are of.
pub const VERSION: &str = "1.5.0";

const CLASS: u32 = 2004;

/// A finding of an alert. `metadata.uid` is `JOURNAL/CURSOR`, by which copies are told, and
/// `finding_info.uid` the id that revisions share.
pub fn alert(alert: &Alert) -> Value {
    let activity = if alert.revision > 1 {
        Activity::Update
    } else {
        Activity::Create
    };
    let mut finding = finding(activity, alert.severity());
    let observed = time(alert.observed_time.as_ref());
    let rest = json!({
        "time": time(alert.time.as_ref()).or(observed).unwrap_or(0),
        "start_time": time(alert.first_seen.as_ref()),
        "end_time": time(alert.last_seen.as_ref()),
        "count": alert.count,
        "message": text(&alert.message),
        "is_alert": true,
        "metadata": {
            "version": VERSION,
            "product": product(),
            "uid": format!("{}/{}", alert.journal, alert.cursor),
            "sequence": alert.cursor,
            "event_code": text(&alert.kind),
            "correlation_uid": text(&alert.fingerprint),
            "logged_time": observed,
        },
        "finding_info": {
            "uid": alert.id,
            "title": text(&alert.message),
            "types": [text(&alert.kind)],
            "analytic": alert.rule.as_ref().and_then(|rule| text(&rule.id)).map(|id| json!({
                "uid": id,
                "version": alert.rule.as_ref().and_then(|rule| text(&rule.version)),
                "type_id": 1,
                "type": "Rule",
            })),
            "attacks": alert.attack.iter().map(|id| technique(id)).collect::<Vec<_>>(),
            "data_sources": [text(&alert.hook)],
            "created_time": time(alert.first_seen.as_ref()),
            "modified_time": observed,
            "first_seen_time": time(alert.first_seen.as_ref()),
            "last_seen_time": time(alert.last_seen.as_ref()),
        },
        "device": text(&alert.node).map(|node| json!({
            "hostname": node,
            "type_id": 0,
            "type": "Unknown",
            "os": {"name": "Linux", "type_id": 200, "type": "Linux"},
        })),
        "evidences": [evidence(alert)],
        "resources": resources(alert),
        "remediation": text(&alert.runbook).map(|runbook| json!({
            "desc": "What to do stands in the runbook.",
            "references": [runbook],
        })),
        "unmapped": unmapped(alert),
    });
    extend(&mut finding, rest);
    without_nothing(Value::Object(finding)).unwrap_or_default()
}

/// A finding of cursors that are missing in what precedes it.
pub fn missing(missing: &Missing<'_>) -> Value {
    let mut finding = finding(Activity::Create, Severity::Medium);
    let message = missing.message();
    let rest = json!({
        "time": time(Some(&missing.time)).unwrap_or(0),
        "message": message,
        "metadata": {
            "version": VERSION,
            "product": product(),
            "uid": format!("{}/{}/missing", missing.journal, missing.from),
            "event_code": "missing",
        },
        "finding_info": {
            "uid": format!("{}/{}/missing", missing.journal, missing.from),
            "title": message,
            "types": ["missing"],
        },
        "unmapped": {"missing": missing.json()},
    });
    extend(&mut finding, rest);
    without_nothing(Value::Object(finding)).unwrap_or_default()
}

/// What is done to a finding.
#[derive(Clone, Copy)]
enum Activity {
    Create = 1,
    Update = 2,
}

fn finding(activity: Activity, severity: Severity) -> Map<String, Value> {
    let name = match activity {
        Activity::Create => "Create",
        Activity::Update => "Update",
    };
    let (severity_id, severity) = match severity {
        Severity::Unspecified => (0, "Unknown"),
        Severity::Info => (1, "Informational"),
        Severity::Low => (2, "Low"),
        Severity::Medium => (3, "Medium"),
        Severity::High => (4, "High"),
        Severity::Critical => (5, "Critical"),
    };
    let mut finding = Map::new();
    let head = json!({
        "category_uid": CLASS / 1000,
        "category_name": "Findings",
        "class_uid": CLASS,
        "class_name": "Detection Finding",
        "activity_id": activity as u32,
        "activity_name": name,
        "type_uid": CLASS * 100 + activity as u32,
        "type_name": format!("Detection Finding: {name}"),
        "severity_id": severity_id,
        "severity": severity,
        "status_id": 1,
        "status": "New",
    });
    extend(&mut finding, head);
    finding
}

fn product() -> Value {
    json!({"name": "monitord"})
}

/// Of an ATT&CK id: `T1059`, or `T1059.004` for a technique's part.
fn technique(id: &str) -> Value {
    match id.split_once('.') {
        Some((whole, _)) => json!({"technique": {"uid": whole}, "sub_technique": {"uid": id}}),
        None => json!({"technique": {"uid": id}}),
    }
}

fn evidence(alert: &Alert) -> Value {
    let mut evidence = json!({
        "process": alert.process.as_ref().map(process),
        "file": alert.file.as_ref().and_then(file),
        "connection_info": alert.connection.as_ref().map(connection),
        "dst_endpoint": alert.connection.as_ref().and_then(endpoint),
    });
    // A container alone is no evidence by the schema; it is among the resources anyway.
    let is_some = without_nothing(evidence.clone()).is_some();
    if let Some(found) = alert.container.as_ref().filter(|_| is_some)
        && let Value::Object(evidence) = &mut evidence
    {
        let container = container(found, alert.image.as_ref());
        evidence.insert("container".to_owned(), container);
    }
    evidence
}

fn process(process: &Process) -> Value {
    let arguments: Vec<_> = process.arguments.iter().map(|word| escape(word)).collect();
    let ancestors = process.ancestors.iter();
    json!({
        "pid": process.pid,
        "name": name_of(&process.executable),
        "path": path(&process.executable),
        "cmd_line": text(&arguments.join(" ")),
        "created_time": time(process.start_time.as_ref()),
        "user": {"uid": process.uid.to_string()},
        "file": path(&process.executable).map(|path| json!({
            "name": name_of(&process.executable),
            "path": path,
            "type_id": 1,
            "type": "Regular File",
        })),
        "parent_process": {"pid": process.parent_pid},
        "ancestry": ancestors
            .map(|ancestor| json!({"name": name_of(ancestor), "path": path(ancestor)}))
            .collect::<Vec<_>>(),
    })
}

/// None without a path, since a file has a name by the schema.
fn file(file: &File) -> Option<Value> {
    let (type_id, kind) = if file.seen_sha256.is_empty() {
        (0, "Unknown")
    } else {
        (1, "Regular File")
    };
    Some(json!({
        "name": name_of(&file.path)?,
        "path": path(&file.path),
        "type_id": type_id,
        "type": kind,
        "hashes": text(&file.seen_sha256).map(|value| json!([
            {"algorithm_id": 3, "algorithm": "SHA-256", "value": value},
        ])),
    }))
}

fn connection(connection: &Connection) -> Value {
    let number = match connection.protocol.as_str() {
        "icmp" => Some(1),
        "tcp" => Some(6),
        "udp" => Some(17),
        "icmpv6" => Some(58),
        "sctp" => Some(132),
        _ => None,
    };
    let version = match connection.family.as_str() {
        "ipv4" => Some(4),
        "ipv6" => Some(6),
        _ => None,
    };
    json!({
        "direction_id": 2,
        "direction": "Outbound",
        "protocol_name": text(&connection.protocol),
        "protocol_num": number,
        "protocol_ver_id": version,
    })
}

fn endpoint(connection: &Connection) -> Option<Value> {
    let address = path(&connection.address)?;
    let port = connection.port.filter(|port| *port <= u16::MAX.into());
    let key = match address.parse::<IpAddr>() {
        Ok(_) => "ip",
        Err(_) => "name",
    };
    Some(json!({key: address, "port": port}))
}

fn container(container: &Container, image: Option<&Image>) -> Value {
    json!({
        "uid": container.id,
        "name": text(&container.name),
        "runtime": "containerd",
        "orchestrator": container.pod.as_ref().map(|_| "Kubernetes"),
        "pod_uuid": container.pod.as_ref().map(|pod| &pod.uid).filter(|uid| is_uuid(uid)),
        "image": image.and_then(|image| Some(json!({
            "uid": digest(image)?,
            "name": text(&image.reference),
        }))),
    })
}

fn resources(alert: &Alert) -> Vec<Value> {
    let container = alert.container.as_ref().map(|container| {
        json!({
            "type": "container",
            "uid": container.id,
            "name": text(&container.name),
            "namespace": container.pod.as_ref().and_then(|pod| text(&pod.namespace)),
        })
    });
    let image = alert.image.as_ref().and_then(|image| {
        Some(json!({
            "type": "image",
            "uid": digest(image)?,
            "name": text(&image.reference),
        }))
    });
    container.into_iter().chain(image).collect()
}

fn digest(image: &Image) -> Option<&str> {
    text(&image.manifest_digest).or(text(&image.config_digest))
}

/// What the schema has no attribute for.
fn unmapped(alert: &Alert) -> Value {
    let full = json::alert(alert);
    let part = |of: &str, keys: &[&str]| {
        let keys = keys.iter();
        keys.filter_map(|key| {
            let value = full.get(of)?.get(*key)?;
            Some(((*key).to_owned(), value.clone()))
        })
        .collect::<Map<_, _>>()
    };
    json!({
        "cluster": text(&alert.cluster),
        "environment": text(&alert.environment),
        "revision": alert.revision,
        "container": part("container", &["runtime_namespace", "kind", "pod", "workload", "created_at"]),
        "image": full.get("image"),
        "process": part("process", &["exec_id", "origin", "arguments_truncated"]),
        "file": part("file", &[
            "path_truncated", "verdict", "layer", "expected_sha256", "hash_state", "same_bytes_as",
        ]),
        "details": full.get("details"),
    })
}

/// `value` without nulls and what then holds nothing; none if that is all of it.
fn without_nothing(value: Value) -> Option<Value> {
    match value {
        Value::Null => None,
        Value::Array(values) => {
            let kept: Vec<_> = values.into_iter().filter_map(without_nothing).collect();
            (!kept.is_empty()).then_some(Value::Array(kept))
        }
        Value::Object(values) => {
            let values = values.into_iter();
            let kept: Map<_, _> = values
                .filter_map(|(key, value)| Some((key, without_nothing(value)?)))
                .collect();
            (!kept.is_empty()).then_some(Value::Object(kept))
        }
        value => Some(value),
    }
}

fn extend(map: &mut Map<String, Value>, value: Value) {
    if let Value::Object(values) = value {
        map.extend(values);
    }
}

/// Milliseconds since 1970.
fn time(time: Option<&Timestamp>) -> Option<i64> {
    let time = time?;
    let millis = i64::from(time.nanos.div_euclid(1_000_000));
    time.seconds.checked_mul(1000)?.checked_add(millis)
}

fn text(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

fn path(path: &[u8]) -> Option<String> {
    (!path.is_empty()).then(|| escape(path))
}

/// The last component, or all of what has none.
fn name_of(bytes: &[u8]) -> Option<String> {
    let last = bytes.rsplit(|byte| *byte == b'/').next();
    path(last.filter(|last| !last.is_empty()).unwrap_or(bytes))
}

/// Eight, four, four, four and twelve hex digits; those of static pods are none.
fn is_uuid(text: &str) -> bool {
    let parts: Vec<_> = text.split('-').collect();
    let is_hex = |part: &&str| part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let lengths = parts.iter().map(|part| part.len());
    lengths.eq([8, 4, 4, 4, 12]) && parts.iter().all(is_hex)
}

#[cfg(test)]
mod schema;
#[cfg(test)]
mod tests;
