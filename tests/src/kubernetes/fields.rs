//! Which manager owns which fields of an object, and server-side apply.
//!
//! Semantics: <https://kubernetes.io/docs/reference/using-api/server-side-apply/>; the written form
//! is `FieldsV1` of `meta/v1`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::paths::{Path, Step, at, is_key, leaves, text};

/// Who owns fields.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Owner {
    pub manager: String,
    /// By server-side apply.
    pub is_apply: bool,
    /// `status`, of fields that were written there.
    pub subresource: String,
}

/// The fields that managers own.
pub(super) type Owners = BTreeMap<Owner, BTreeSet<Path>>;

/// A field that another manager owns with another value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Conflict {
    /// Who owns it, as it is shown.
    pub owner: String,
    /// Which.
    pub field: String,
}

fn put(value: &mut Value, path: &[Step], new: &Value) {
    let Some((step, rest)) = path.split_first() else {
        // An item's own entry only makes it be there.
        if !(value.is_object() && new.is_object()) {
            *value = new.clone();
        }
        return;
    };
    match step {
        Step::Field(name) => {
            if !value.is_object() {
                *value = Value::Object(Map::new());
            }
            if let Some(fields) = value.as_object_mut() {
                put(fields.entry(name.clone()).or_insert(Value::Null), rest, new);
            }
        }
        Step::Item(_) | Step::Member(_) => {
            if !value.is_array() {
                *value = json!([]);
            }
            let Some(items) = value.as_array_mut() else {
                return;
            };
            let place = items
                .iter()
                .position(|item| step.is(item))
                .unwrap_or_else(|| {
                    items.push(step.item());
                    items.len() - 1
                });
            if let Some(item) = items.get_mut(place) {
                put(item, rest, new);
            }
        }
    }
}

/// Removes what is at `path`, and what has nothing in it then.
fn remove(value: &mut Value, path: &[Step]) {
    let Some((step, rest)) = path.split_first() else {
        return;
    };
    match (value, step) {
        (Value::Object(fields), Step::Field(name)) => {
            let Some(inner) = fields.get_mut(name) else {
                return;
            };
            remove(inner, rest);
            let is_empty = |inner: &Value| match inner {
                Value::Object(fields) => fields.is_empty(),
                Value::Array(items) => items.is_empty(),
                _ => false,
            };
            if rest.is_empty() || is_empty(inner) {
                fields.remove(name);
            }
        }
        (Value::Array(items), Step::Item(_) | Step::Member(_)) => {
            if rest.is_empty() {
                items.retain(|item| !step.is(item));
            } else if let Some(item) = items.iter_mut().find(|item| step.is(item)) {
                remove(item, rest);
            }
        }
        _ => {}
    }
}

/// Applies `applied`, of which nothing is fixed by the server, to an object on behalf of `own`.
///
/// # Errors
///
/// Fields that others own with another value, unless `force` takes them over.
pub(super) fn apply(
    object: &Value,
    owners: &Owners,
    applied: &Value,
    own: &Owner,
    force: bool,
    api_version: &str,
) -> Result<(Value, Owners), Vec<Conflict>> {
    let wanted = leaves(applied);
    let mut owners = owners.clone();
    let mut conflicts = Vec::new();
    for (owner, fields) in owners.iter_mut().filter(|(owner, _)| *owner != own) {
        let differing: Vec<Path> = fields
            .iter()
            .filter(|path| wanted.contains(*path) && !matches!(path.last(), Some(Step::Item(_))))
            .filter(|path| at(object, path) != at(applied, path))
            .cloned()
            .collect();
        for path in differing {
            if force {
                fields.remove(&path);
            } else {
                conflicts.push(Conflict {
                    owner: owner.shown(api_version),
                    field: text(&path),
                });
            }
        }
    }
    if !conflicts.is_empty() {
        return Err(conflicts);
    }
    let mut new = object.clone();
    // What this manager applied before and does not now goes, unless another owns it as well.
    let before = owners.get(own).cloned().unwrap_or_default();
    for path in before.difference(&wanted) {
        let is_others = owners
            .iter()
            .filter(|(owner, _)| *owner != own)
            .any(|(_, fields)| fields.iter().any(|other| other.starts_with(path)));
        let is_wanted = wanted.iter().any(|other| other.starts_with(path));
        // What tells an item apart goes with the item.
        let is_needed = is_key(path) && at(&new, path).is_some();
        if !is_others && !is_wanted && !is_needed {
            remove(&mut new, path);
        }
    }
    for path in &wanted {
        if let Some(value) = at(applied, path) {
            put(&mut new, path, value);
        }
    }
    owners.insert(own.clone(), wanted);
    owners.retain(|_, fields| !fields.is_empty());
    Ok((new, owners))
}

/// Takes note of what an update by `own` changed.
pub(super) fn updated(before: &Value, after: &Value, owners: &mut Owners, own: &Owner) {
    let (old, new) = (leaves(before), leaves(after));
    let changed: BTreeSet<Path> = new
        .iter()
        .filter(|path| match path.last() {
            Some(Step::Item(_)) => !old.contains(*path),
            _ => at(before, path) != at(after, path),
        })
        .cloned()
        .collect();
    for (owner, fields) in owners.iter_mut() {
        fields.retain(|path| {
            let is_gone = old.contains(path) && !new.contains(path);
            !is_gone && (owner == own || !changed.contains(path))
        });
    }
    owners.entry(own.clone()).or_default().extend(changed);
    owners.retain(|_, fields| !fields.is_empty());
}

impl Owner {
    fn operation(&self) -> &'static str {
        if self.is_apply { "Apply" } else { "Update" }
    }

    fn shown(&self, api_version: &str) -> String {
        let mut text = format!("\"{}\"", self.manager);
        if !self.subresource.is_empty() {
            text += &format!(" with subresource \"{}\"", self.subresource);
        }
        if !self.is_apply {
            text += &format!(" using {api_version}");
        }
        text
    }

    /// As an entry of `metadata.managedFields`.
    pub(super) fn entry(&self, fields: &BTreeSet<Path>, api_version: &str, time: &str) -> Value {
        let mut tree = json!({});
        for path in fields {
            let place = path
                .iter()
                .fold(&mut tree, |place, step| &mut place[step.written()]);
            if place.is_null() {
                *place = json!({});
            }
            if matches!(path.last(), Some(Step::Item(_))) {
                place["."] = json!({});
            }
        }
        let mut entry = json!({
            "manager": self.manager,
            "operation": self.operation(),
            "apiVersion": api_version,
            "time": time,
            "fieldsType": "FieldsV1",
            "fieldsV1": tree,
        });
        if !self.subresource.is_empty() {
            entry["subresource"] = json!(self.subresource);
        }
        entry
    }
}
