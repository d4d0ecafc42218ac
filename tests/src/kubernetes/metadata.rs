//! What the server itself writes of an object, and how a patch is merged.

use serde_json::{Value, json};

use super::{
    refused::Refused,
    resources::{DEFINITIONS, Resource},
    store::{Key, Write},
};

/// What the server says of a new object.
pub(super) fn begin(write: &Write<'_>, value: &mut Value) {
    value["apiVersion"] = json!(write.resource.api_version());
    value["kind"] = json!(write.resource.kind);
    set(value, "name", json!(write.key.name));
    if !write.key.namespace.is_empty() {
        set(value, "namespace", json!(write.key.namespace));
    }
    set(value, "uid", json!(uid()));
    if write.resource.has_generation() {
        set(value, "generation", json!(1));
    }
    let now = seconds_of(jiff::Timestamp::now());
    set(value, "creationTimestamp", json!(now));
    match write.key.resource.as_str() {
        "namespaces" => value["status"] = json!({"phase": "Active"}),
        "pods" => value["status"] = json!({"phase": "Pending"}),
        DEFINITIONS => {
            let condition = |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": now, "reason": kind, "message": ""});
            value["status"] = json!({
                "acceptedNames": value.pointer("/spec/names"),
                "conditions": [condition("NamesAccepted"), condition("Established")],
                "storedVersions": ["v1"],
            });
        }
        _ => {}
    }
}

/// A random UUID.
fn uid() -> String {
    let hex = random();
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
    format!(
        "{}-{}-4{}-8{}-{}",
        part(0, 8),
        part(8, 12),
        part(13, 16),
        part(17, 20),
        part(20, 32)
    )
}

/// 32 random hexadecimal digits.
pub(super) fn random() -> String {
    let mut bytes = [0; 16];
    // Without random bytes what is zero twice is refused as there already, which a test notices.
    let _ = getrandom::fill(&mut bytes);
    hex::encode(bytes)
}

pub(super) fn seconds_of(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A field of `metadata`.
pub(super) fn text<'a>(value: &'a Value, field: &str) -> Option<&'a str> {
    value.get("metadata")?.get(field)?.as_str()
}

pub(super) fn set(value: &mut Value, field: &str, new: Value) {
    if !value["metadata"].is_object() {
        value["metadata"] = json!({});
    }
    value["metadata"][field] = new;
}

/// Puts back what only the server changes, and drops what is empty.
pub(super) fn keep_fixed(before: &Value, mut after: Value) -> Value {
    if let Some(metadata) = after.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.retain(|field, value| {
            let is_empty = *value == json!({}) || *value == json!([]) || value.is_null();
            field == "managedFields" || !is_empty
        });
    }
    for field in ["apiVersion", "kind"] {
        after[field] = before.get(field).cloned().unwrap_or_default();
    }
    for field in [
        "uid",
        "creationTimestamp",
        "name",
        "namespace",
        "resourceVersion",
        "generation",
        "managedFields",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ] {
        match before.pointer(&format!("/metadata/{field}")) {
            Some(old) => set(&mut after, field, old.clone()),
            None => {
                if let Some(metadata) = after.get_mut("metadata").and_then(Value::as_object_mut) {
                    metadata.remove(field);
                }
            }
        }
    }
    after
}

/// A change of what is wanted is a new generation.
pub(super) fn next_generation(resource: &Resource, before: &Value, mut after: Value) -> Value {
    let wanted = |value: &Value| {
        let annotations = value.pointer("/metadata/annotations");
        let mut value = value.clone();
        if let Some(fields) = value.as_object_mut() {
            fields.retain(|field, _| field != "metadata" && field != "status");
        }
        // Of a Deployment annotations are copied to ReplicaSets, so they are something to be done.
        if resource.plural == "deployments" {
            value["annotations"] = annotations.cloned().unwrap_or_default();
        }
        value
    };
    if resource.has_generation() && wanted(before) != wanted(&after) {
        let generation = before
            .pointer("/metadata/generation")
            .and_then(Value::as_u64);
        set(
            &mut after,
            "generation",
            json!(generation.unwrap_or_default() + 1),
        );
    }
    after
}

pub(super) fn version_of(value: &Value) -> Option<&str> {
    text(value, "resourceVersion").filter(|version| !version.is_empty())
}

pub(super) fn refuse_outdated(key: &Key, before: &Value, asked: &Value) -> Result<(), Refused> {
    if text(asked, "uid").is_some_and(|uid| !uid.is_empty() && Some(uid) != text(before, "uid")) {
        return Err(Refused::Replaced(key.clone()));
    }
    match version_of(asked) {
        Some(version) if Some(version) != version_of(before) => Err(Refused::Outdated(key.clone())),
        _ => Ok(()),
    }
}

pub(super) fn merge(value: &mut Value, patch: &Value) {
    let Some(changes) = patch.as_object() else {
        *value = patch.clone();
        return;
    };
    if !value.is_object() {
        *value = json!({});
    }
    for (field, change) in changes {
        if change.is_null() {
            if let Some(fields) = value.as_object_mut() {
                fields.remove(field);
            }
        } else {
            merge(&mut value[field.as_str()], change);
        }
    }
}
