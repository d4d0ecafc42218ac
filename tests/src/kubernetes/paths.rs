//! Ways to the fields of an object. Which lists are told apart by what in their items, and which
//! values are one whole, is in the API's types; here it goes by the names of fields.

use std::{collections::BTreeSet, fmt};

use serde_json::{Map, Value, json};

/// A step on the way to a field.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    /// A field of an object.
    Field(String),
    /// The item of a list whose fields have these values.
    Item(Vec<(String, Scalar)>),
    /// The text in a list that is a set.
    Member(String),
}

/// What tells items apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Scalar {
    Text(String),
    Number(i64),
}

/// The way to a field from the object.
pub(super) type Path = Vec<Step>;

impl Scalar {
    fn read(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) => Some(Self::Text(text.clone())),
            Value::Number(number) => number.as_i64().map(Self::Number),
            _ => None,
        }
    }

    fn value(&self) -> Value {
        match self {
            Self::Text(text) => json!(text),
            Self::Number(number) => json!(number),
        }
    }
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value().fmt(f)
    }
}

impl Step {
    /// Whether this is the item.
    pub(super) fn is(&self, item: &Value) -> bool {
        match self {
            Self::Field(_) => false,
            Self::Item(keys) => keys
                .iter()
                .all(|(key, value)| key_of(item, key).as_ref() == Some(value)),
            Self::Member(text) => item.as_str() == Some(text),
        }
    }

    /// The item with nothing but what tells it apart.
    pub(super) fn item(&self) -> Value {
        match self {
            Self::Field(_) => Value::Null,
            Self::Item(keys) => {
                let fields = keys.iter().map(|(key, value)| (key.clone(), value.value()));
                Value::Object(fields.collect())
            }
            Self::Member(text) => json!(text),
        }
    }

    /// As `FieldsV1` has it.
    pub(super) fn written(&self) -> String {
        match self {
            Self::Field(name) => format!("f:{name}"),
            Self::Item(_) => format!("k:{}", self.item()),
            Self::Member(text) => format!("v:{}", json!(text)),
        }
    }
}

/// `.spec.template.spec.containers[name="web"].image`.
pub(super) fn text(path: &[Step]) -> String {
    path.iter()
        .map(|step| match step {
            Step::Field(name) => format!(".{name}"),
            Step::Item(keys) => {
                let keys = keys.iter().map(|(key, value)| format!("{key}={value}"));
                format!("[{}]", keys.collect::<Vec<_>>().join(","))
            }
            Step::Member(text) => format!("[={}]", json!(text)),
        })
        .collect()
}

/// Whether it is one of the fields that tell an item apart.
pub(super) fn is_key(path: &[Step]) -> bool {
    match path {
        [.., Step::Item(keys), Step::Field(name)] => keys.iter().any(|(key, _)| key == name),
        _ => false,
    }
}

/// What is at `path`.
pub(super) fn at<'a>(value: &'a Value, path: &[Step]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, step| match step {
        Step::Field(name) => value.get(name),
        Step::Item(_) | Step::Member(_) => value.as_array()?.iter().find(|item| step.is(item)),
    })
}

/// The leaves of a value, and the items of lists themselves.
pub(super) fn leaves(value: &Value) -> BTreeSet<Path> {
    let mut found = BTreeSet::new();
    walk(value, &mut Vec::new(), &mut found);
    found
}

fn walk(value: &Value, path: &mut Path, found: &mut BTreeSet<Path>) {
    let name = match path.last() {
        Some(Step::Field(name)) => name.clone(),
        _ => String::new(),
    };
    match value {
        Value::Object(fields) if !fields.is_empty() && !is_whole(&name) => {
            for (field, value) in fields {
                if is_fixed(path, field) {
                    continue;
                }
                path.push(Step::Field(field.clone()));
                walk(value, path, found);
                path.pop();
            }
        }
        Value::Array(items) if steps(&name, items).is_some() => {
            let steps = steps(&name, items).unwrap_or_default();
            for (step, item) in steps.into_iter().zip(items) {
                path.push(step);
                found.insert(path.clone());
                if let Value::Object(fields) = item {
                    walk_item(fields, path, found);
                }
                path.pop();
            }
        }
        Value::Null => {}
        _ if path.is_empty() => {}
        _ => {
            found.insert(path.clone());
        }
    }
}

fn walk_item(fields: &Map<String, Value>, path: &mut Path, found: &mut BTreeSet<Path>) {
    for (field, value) in fields {
        path.push(Step::Field(field.clone()));
        walk(value, path, found);
        path.pop();
    }
}

/// Fields that say which object it is, and what the server says of it: nobody's.
fn is_fixed(path: &[Step], field: &str) -> bool {
    match path {
        [] => matches!(field, "apiVersion" | "kind"),
        [Step::Field(metadata)] if metadata == "metadata" => matches!(
            field,
            "name"
                | "namespace"
                | "uid"
                | "resourceVersion"
                | "generation"
                | "creationTimestamp"
                | "deletionTimestamp"
                | "deletionGracePeriodSeconds"
                | "managedFields"
        ),
        _ => false,
    }
}

/// Objects of which managers own all or nothing (`structType=atomic`, `mapType=atomic`).
fn is_whole(name: &str) -> bool {
    name.ends_with("KeyRef")
        || matches!(
            name,
            "fieldRef" | "labelSelector" | "namespaceSelector" | "nodeSelector" | "selector"
        )
}

/// The steps to the items of a list; `None` of a list that is one whole.
fn steps(name: &str, items: &[Value]) -> Option<Vec<Step>> {
    if name == "finalizers" {
        let texts = items
            .iter()
            .map(|item| item.as_str().map(|text| Step::Member(text.to_owned())));
        return texts.collect();
    }
    let keys: &[&str] = match name {
        "containers"
        | "env"
        | "ephemeralContainers"
        | "imagePullSecrets"
        | "initContainers"
        | "volumes" => &["name"],
        "conditions" => &["type"],
        "hostAliases" => &["ip"],
        "ownerReferences" => &["uid"],
        "ports" if items.iter().any(|item| item.get("containerPort").is_some()) => {
            &["containerPort", "protocol"]
        }
        "ports" => &["port", "protocol"],
        "topologySpreadConstraints" => &["topologyKey", "whenUnsatisfiable"],
        "volumeDevices" => &["devicePath"],
        "volumeMounts" => &["mountPath"],
        _ => return None,
    };
    let of = |item: &Value| {
        let keys = keys
            .iter()
            .map(|key| Some(((*key).to_owned(), key_of(item, key)?)));
        keys.collect::<Option<_>>().map(Step::Item)
    };
    items.iter().map(of).collect()
}

/// A key of an item, by its default where it has none.
fn key_of(item: &Value, key: &str) -> Option<Scalar> {
    match item.get(key) {
        Some(value) => Scalar::read(value),
        None if key == "protocol" => Some(Scalar::Text("TCP".to_owned())),
        None => None,
    }
}
