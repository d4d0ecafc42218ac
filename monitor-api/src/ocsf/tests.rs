#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{schema::TABLE, *};
use crate::{
    json::tests::full,
    v1::alert::{Pod, Rule},
};

/// An object of the schema.
#[derive(Default)]
struct Object {
    /// One of these there must be, unless there are none.
    any_of: Vec<&'static str>,
    attributes: BTreeMap<&'static str, Attribute>,
}

struct Attribute {
    is_required: bool,
    kind: &'static str,
    is_list: bool,
    /// Values and their names.
    values: Vec<(i64, &'static str)>,
}

fn schema() -> BTreeMap<&'static str, Object> {
    let mut objects: BTreeMap<&str, Object> = BTreeMap::new();
    let mut current = "";
    for line in TABLE.lines() {
        let Some(line) = line.strip_prefix("  ") else {
            let (name, any_of) = line.split_once(" any of ").unwrap_or((line, ""));
            current = name;
            objects.entry(name).or_default().any_of = any_of.split_whitespace().collect();
            continue;
        };
        let mut words = line.splitn(3, ' ');
        let (name, kind) = (words.next().unwrap(), words.next().unwrap());
        let values = words.next().map_or(Vec::new(), |values| {
            let values = values
                .split('|')
                .map(|value| value.split_once('=').unwrap());
            values
                .map(|(value, name)| (value.parse().unwrap(), name))
                .collect()
        });
        let attribute = Attribute {
            is_required: name.ends_with('!'),
            kind: kind.trim_end_matches("[]"),
            is_list: kind.ends_with("[]"),
            values,
        };
        let attributes = &mut objects.get_mut(current).unwrap().attributes;
        attributes.insert(name.trim_end_matches('!'), attribute);
    }
    objects
}

/// Notes in `faults` all that is wrong with an object, with its place.
fn walk(
    schema: &BTreeMap<&'static str, Object>,
    object: &str,
    value: &Value,
    place: &str,
    faults: &mut Vec<String>,
) {
    let known = schema.get(object).unwrap_or_else(|| panic!("{object}"));
    let Some(map) = value.as_object() else {
        return faults.push(format!("{place} is no object"));
    };
    for (name, attribute) in &known.attributes {
        if attribute.is_required && !map.contains_key(*name) {
            faults.push(format!("{place} has no {name}"));
        }
    }
    let has = |name: &&str| map.contains_key(*name);
    if !known.any_of.is_empty() && !known.any_of.iter().any(has) {
        faults.push(format!("{place} has none of {:?}", known.any_of));
    }
    for (name, value) in map {
        let place = format!("{place}.{name}");
        let Some(attribute) = known.attributes.get(name.as_str()) else {
            faults.push(format!("{place} is not in the schema"));
            continue;
        };
        let one = std::slice::from_ref(value);
        let items = match value.as_array() {
            Some(items) if attribute.is_list => items,
            None if !attribute.is_list => one,
            _ => {
                faults.push(format!(
                    "{place} is a list where it should not be, or not one"
                ));
                continue;
            }
        };
        for item in items {
            if let Some(object) = attribute.kind.strip_prefix('@') {
                walk(schema, object, item, &place, faults);
            } else if !is_of(attribute.kind, item) {
                faults.push(format!("{place} = {item} is not {}", attribute.kind));
            }
        }
        let Some(number) = value.as_i64().filter(|_| !attribute.values.is_empty()) else {
            continue;
        };
        let values = attribute.values.iter();
        let found = values.clone().find(|(value, _)| *value == number);
        let name_key = match name.strip_suffix("_id") {
            Some("activity") => "activity_name".to_owned(),
            Some(stem) => stem.to_owned(),
            None => name.replace("_uid", "_name"),
        };
        match (found, map.get(&name_key)) {
            (None, _) => faults.push(format!("{place} = {number} is no value of it")),
            (Some((_, expect)), Some(said)) if said != expect => {
                faults.push(format!("{place} = {number} is {expect}, not {said}"));
            }
            _ => {}
        }
    }
}

fn is_of(kind: &str, value: &Value) -> bool {
    let text = value.as_str();
    match kind {
        "text" => text.is_some(),
        "integer" => value.is_i64() || value.is_u64(),
        "boolean" => value.is_boolean(),
        "port" => value.as_u64().is_some_and(|port| port <= 65535),
        "ip" => text.is_some_and(|text| text.len() <= 40 && text.parse::<IpAddr>().is_ok()),
        "uuid" => text.is_some_and(is_uuid),
        "hex" => text.is_some_and(|text| {
            !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit())
        }),
        "any" => !value.is_null(),
        other => panic!("{other}"),
    }
}

fn faults(value: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    walk(&schema(), "detection_finding", value, "", &mut faults);
    faults
}

/// The attributes that there are, by object.
fn used(object: &str, value: &Value, found: &mut BTreeSet<(String, String)>) {
    let schema = schema();
    for (name, value) in value.as_object().unwrap() {
        found.insert((object.to_owned(), name.clone()));
        let kind = schema.get(object).unwrap().attributes.get(name.as_str());
        if let Some(inner) = kind.unwrap().kind.strip_prefix('@') {
            let items = value.as_array().cloned().unwrap_or(vec![value.clone()]);
            for item in items {
                used(inner, &item, found);
            }
        }
    }
}

fn with_connection() -> Alert {
    let mut alert = full();
    alert.revision = 2;
    alert.attack.push("T1059.004".to_owned());
    alert.connection = Some(Connection {
        protocol: "tcp".to_owned(),
        family: "ipv6".to_owned(),
        address: b"2001:db8::1".to_vec(),
        port: Some(443),
    });
    let container = alert.container.as_mut().unwrap();
    container.pod.as_mut().unwrap().uid = "0a1b2c3d-0000-4000-8000-0123456789ab".to_owned();
    alert
}

#[test]
fn a_full_alert_is_a_finding_by_the_schema() {
    let finding = alert(&with_connection());
    assert_eq!(faults(&finding), Vec::<String>::new(), "{finding:#}");
    let check = |pointer: &str, expect: Value| {
        assert_eq!(finding.pointer(pointer), Some(&expect), "{pointer}");
    };
    check("/class_uid", json!(2004));
    check("/type_uid", json!(200_402));
    check("/time", json!(1_795_317_614_364_i64));
    check("/severity_id", json!(5));
    check("/metadata/uid", json!("01JD/184467"));
    check("/metadata/version", json!("1.5.0"));
    check("/finding_info/uid", json!("01JE"));
    check("/finding_info/attacks/0/technique/uid", json!("T1059"));
    check(
        "/finding_info/attacks/1/sub_technique/uid",
        json!("T1059.004"),
    );
    check("/evidences/0/process/cmd_line", json!("/tmp/x \\xff\\\\"));
    check("/evidences/0/file/name", json!("x"));
    check("/evidences/0/file/hashes/0/value", json!("d".repeat(64)));
    check("/evidences/0/dst_endpoint/ip", json!("2001:db8::1"));
    check("/evidences/0/connection_info/protocol_num", json!(6));
    check("/resources/0/uid", json!("c1"));
    check("/unmapped/file/verdict", json!("added"));
    check("/unmapped/image/identity", json!("proven"));
}

#[test]
fn every_object_of_the_table_is_used() {
    let mut found = BTreeSet::new();
    used("detection_finding", &alert(&with_connection()), &mut found);
    let objects: BTreeSet<_> = found.iter().map(|(object, _)| object.as_str()).collect();
    assert_eq!(objects, schema().into_keys().collect());
}

#[test]
fn the_walk_finds_what_is_wrong() {
    let check = |pointer: &str, value: Value, expect: &str| {
        let mut finding = alert(&with_connection());
        *finding.pointer_mut(pointer).unwrap() = value;
        let found = faults(&finding);
        assert!(
            found.iter().any(|fault| fault.contains(expect)),
            "{pointer}: {found:?}"
        );
    };
    check("/severity_id", json!(7), "is no value of it");
    check("/severity", json!("High"), "is Critical, not");
    check("/time", json!("now"), "is not integer");
    check(
        "/metadata",
        json!({"version": "1", "product": {"name": "x"}, "x": 1}),
        ".x is not in",
    );
    check("/finding_info", json!({}), "has no uid");
    check("/evidences", json!({}), "is a list");
    check(
        "/evidences/0/dst_endpoint",
        json!({"port": 1}),
        "has none of",
    );
    check(
        "/evidences/0/dst_endpoint/ip",
        json!("example.org"),
        "is not ip",
    );
}

#[test]
fn missing_alerts_are_a_finding_too() {
    let finding = missing(&Missing {
        journal: "01JD",
        from: 3,
        before: Some(9),
        reason: "expired",
        time: Timestamp::default(),
    });
    assert_eq!(faults(&finding), Vec::<String>::new());
    let message = json!("alerts 3 to 8 are missing: expired");
    assert_eq!(finding.get("message"), Some(&message));
}

fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        "[a-zA-Z0-9./@:-]{1,12}",
        any::<String>()
    ]
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(Vec::new()),
        Just(b"/".to_vec()),
        Just(b"203.0.113.9".to_vec()),
        prop::collection::vec(any::<u8>(), 1..20)
    ]
}

proptest! {
    /// Whatever an alert says or leaves out, it is a finding by the schema.
    #[test]
    fn any_alert_is_a_finding(
        severity in 0..6,
        texts in prop::collection::vec(word(), 8),
        paths in prop::collection::vec(bytes(), 5),
        port in any::<Option<u32>>(),
        parts in any::<[bool; 7]>(),
        times in any::<(i64, i32)>(),
        count in any::<u64>(),
    ) {
        let text = |index: usize| texts.get(index).cloned().unwrap_or_default();
        let path = |index: usize| paths.get(index).cloned().unwrap_or_default();
        let [time, rule, container, image, process, file, connection] = parts;
        let time = time.then_some(Timestamp { seconds: times.0, nanos: times.1 });
        let said = alert(&Alert {
            severity,
            time,
            first_seen: time,
            count,
            message: text(0),
            node: text(1),
            runbook: text(2),
            attack: vec![text(3)],
            rule: rule.then(|| Rule { id: text(4), version: text(5) }),
            container: container.then(|| Container {
                id: text(6),
                name: text(7),
                pod: Some(Pod { uid: text(1), ..Pod::default() }),
                ..Container::default()
            }),
            image: image.then(|| Image { manifest_digest: text(5), ..Image::default() }),
            process: process.then(|| Process {
                executable: path(0),
                ancestors: vec![path(1), path(2)],
                ..Process::default()
            }),
            file: file.then(|| File { path: path(3), ..File::default() }),
            connection: connection.then(|| Connection {
                protocol: text(2),
                family: text(3),
                address: path(4),
                port,
            }),
            ..Alert::default()
        });
        prop_assert_eq!(faults(&said), Vec::<String>::new(), "{:#}", said);
    }
}
