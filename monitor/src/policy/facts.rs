//! What conditions look at: `event`, `container`, `image` and `process`, as alerts have them, and of a
//! container its `posture`.

use monitor_api::{json, v1::Alert};
use serde_json::{Value, json};

use super::{Added, On};
use crate::detect::Kind;

/// The names that a condition can look at.
pub const NAMES: [&str; 5] = ["event", "container", "image", "process", "posture"];

/// Whether there is such a name.
pub fn is_known(name: &str) -> bool {
    NAMES.contains(&name)
}

/// What a condition looks at of an alert that was raised, or that would be raised of what a container
/// did; `access` is `read`, `write` or `readwrite` of an open.
pub fn of(on: On, alert: &Alert, access: Option<&str>) -> Value {
    let mut alert = json::alert(alert);
    let mut part = |name: &str| alert.get_mut(name).map(Value::take).unwrap_or_default();
    let (file, connection, kind) = (part("file"), part("connection"), part("kind"));
    json!({
        "event": {
            "kind": match on {
                On::Exec => json!("exec"),
                On::Open => json!("open"),
                On::Connect => json!("connect"),
                On::Container => json!("container"),
                On::Finding => kind,
            },
            "severity": part("severity"),
            "rule": part("rule").get("id").cloned().unwrap_or_default(),
            "message": part("message"),
            "hook": part("hook"),
            "path": member(&file, "path"),
            "name": name(member(&file, "path")),
            "verdict": member(&file, "verdict"),
            "sha256": member(&file, "seen_sha256"),
            "access": access,
            "protocol": member(&connection, "protocol"),
            "address": member(&connection, "address"),
            "port": member(&connection, "port"),
            "isPublic": is_public(member(&connection, "address")),
        },
        "container": part("container"),
        "image": part("image"),
        "process": process(part("process")),
        "posture": null,
    })
}

/// What a condition looks at of a container and of how it was started.
pub fn of_container(alert: &Alert, posture: Value) -> Value {
    let mut facts = of(On::Container, alert, None);
    if let Some(facts) = facts.as_object_mut() {
        facts.insert("posture".to_owned(), posture);
    }
    facts
}

/// What conditions look at of the finding that a rule adds, from the facts of the act.
pub fn added(on: On, added: &Added, act: &Value) -> Value {
    let mut facts = act.clone();
    let event = facts.get_mut("event").and_then(Value::as_object_mut);
    if let Some(event) = event {
        for (name, value) in [
            ("kind", json!(on.adds().map(Kind::name))),
            ("severity", json!(added.severity.name())),
            ("rule", json!(format!("policy.{}", added.rule))),
            ("message", json!(added.message)),
            ("access", Value::Null),
        ] {
            event.insert(name.to_owned(), value);
        }
    }
    facts
}

/// A member of an object; null of what has none of that name.
pub fn member<'a>(value: &'a Value, name: &str) -> &'a Value {
    value.get(name).unwrap_or(&Value::Null)
}

/// A process, with the name of its program beside its path.
fn process(mut process: Value) -> Value {
    let name = name(member(&process, "executable"));
    if let Some(fields) = process.as_object_mut() {
        fields.insert("name".to_owned(), name);
    }
    process
}

/// The last part of a path.
fn name(path: &Value) -> Value {
    let path = path.as_str();
    path.and_then(|path| path.rsplit('/').next()).into()
}

/// Whether an address is one that the whole Internet shares.
fn is_public(address: &Value) -> bool {
    use std::net::IpAddr;
    let address = address.as_str().and_then(|text| text.parse().ok());
    match address {
        Some(IpAddr::V4(v4)) => {
            let is_shared = v4.octets()[0] == 100 && (v4.octets()[1] & 0xc0) == 64;
            !(v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.is_unspecified()
                || is_shared)
        }
        Some(IpAddr::V6(v6)) => {
            let first = v6.segments()[0];
            (first & 0xe000) == 0x2000
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_is_what_the_internet_shares() {
        let check = |address: &str, expect: bool| {
            assert_eq!(is_public(&json!(address)), expect, "{address}");
        };
        check("203.0.113.9", true);
        check("10.1.2.3", false);
        check("192.168.0.1", false);
        check("100.64.0.1", false);
        check("100.128.0.1", true);
        check("127.0.0.1", false);
        check("169.254.169.254", false);
        check("2001:db8::1", true);
        check("fd00::1", false);
        check("::1", false);
        check("/run/x.sock", false);
    }
}
