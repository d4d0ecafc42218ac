//! The objects of a cluster, each change with a version of its own, as etcd keeps them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde_json::{Value, json};

use super::{
    fields::{self, Owner, Owners},
    metadata::{
        begin, keep_fixed, merge, next_generation, refuse_outdated, seconds_of, set, text,
        version_of,
    },
    refused::Refused,
    resources::Resource,
    schema,
};

/// Changes that a watch may begin before; older ones are compacted.
const HISTORY_MAX: usize = 10_000;

/// Which object: `deployments.apps`, namespace (empty where there is none), name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    /// Plural and group.
    pub resource: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// What happened to an object.
#[derive(Clone, Debug)]
pub(super) struct Change {
    /// The version of the cluster that came of it.
    pub version: u64,
    /// Which.
    pub key: Key,
    /// As it was before.
    pub before: Option<Value>,
    /// As it was then; of a removed one its last state.
    pub object: Value,
    /// Whether it is there no more.
    pub is_removed: bool,
}

/// What is written, and by whom.
#[derive(Clone, Debug)]
pub(super) struct Write<'a> {
    pub resource: &'a Resource,
    pub key: &'a Key,
    /// `status`, or nothing.
    pub subresource: &'a str,
    pub manager: &'a str,
}

impl Write<'_> {
    fn owner(&self, is_apply: bool) -> Owner {
        Owner {
            manager: self.manager.to_owned(),
            is_apply,
            subresource: self.subresource.to_owned(),
        }
    }

    /// Leaves of `value` what may be written here: the status, or all but it.
    fn part(&self, value: &Value) -> Value {
        let mut value = value.clone();
        if let Some(fields) = value.as_object_mut() {
            if self.subresource == "status" {
                fields.retain(|field, _| field == "status");
            } else if self.resource.has_status() {
                fields.remove("status");
            }
        }
        value
    }

    /// Fails for what the resource's definition does not allow, and drops what it does not know.
    fn admit(&self, value: &mut Value) -> Result<(), Refused> {
        let problems = match &self.resource.definition {
            None => schema::bare_containers(value),
            Some(definition) => {
                let schema = definition.pointer("/schema/openAPIV3Schema");
                let schema = schema.cloned().unwrap_or_default();
                // Of metadata the server itself knows what is in it.
                let metadata = value.get("metadata").cloned();
                schema::prune(&schema, value);
                for (field, own) in [
                    ("apiVersion", json!(self.resource.api_version())),
                    ("kind", json!(self.resource.kind)),
                    ("metadata", metadata.unwrap_or_default()),
                ] {
                    value[field] = own;
                }
                schema::problems(&schema, value, "")
            }
        };
        if problems.is_empty() {
            return Ok(());
        }
        Err(self.resource.invalid(&self.key.name, problems))
    }
}

#[derive(Clone, Debug)]
struct Object {
    value: Value,
    owners: Owners,
    /// When the fields of each owner changed.
    times: BTreeMap<Owner, String>,
}

/// The objects.
#[derive(Debug, Default)]
pub(super) struct Store {
    version: u64,
    objects: BTreeMap<Key, Object>,
    history: VecDeque<Change>,
    compacted: u64,
}

impl Store {
    /// The latest version.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// One object.
    ///
    /// # Errors
    ///
    /// There is none.
    pub(super) fn get(&self, key: &Key) -> Result<Value, Refused> {
        self.object(key).map(|object| object.value.clone())
    }

    fn object(&self, key: &Key) -> Result<&Object, Refused> {
        let found = self.objects.get(key);
        found.ok_or_else(|| Refused::NotFound(key.clone()))
    }

    /// Those of a resource; of all namespaces if `namespace` is empty.
    pub(super) fn list<'a>(
        &'a self,
        resource: &'a str,
        namespace: &'a str,
    ) -> impl Iterator<Item = (&'a Key, &'a Value)> {
        let fits = move |key: &Key| {
            key.resource == resource && (namespace.is_empty() || key.namespace == namespace)
        };
        let all = self.objects.iter().filter(move |(key, _)| fits(key));
        all.map(|(key, object)| (key, &object.value))
    }

    /// Fails for a version that nothing can be watched from any more.
    ///
    /// # Errors
    ///
    /// [`Refused::Expired`].
    pub(super) fn refuse_expired(&self, version: u64) -> Result<(), Refused> {
        let is_expired = version < self.compacted;
        if is_expired {
            return Err(Refused::Expired(version, self.compacted));
        }
        Ok(())
    }

    /// What happened after a version.
    ///
    /// # Errors
    ///
    /// [`Refused::Expired`].
    pub(super) fn since(&self, version: u64) -> Result<Vec<Change>, Refused> {
        self.refuse_expired(version)?;
        let start = self
            .history
            .partition_point(|change| change.version <= version);
        Ok(self.history.range(start..).cloned().collect())
    }

    /// Forgets what happened, so that watches from before expire.
    pub(super) fn compact(&mut self) {
        // As if something elsewhere had happened, so that even the latest version that anyone saw is
        // too old.
        self.version += 1;
        self.history.clear();
        self.compacted = self.version;
    }

    /// A new object.
    ///
    /// # Errors
    ///
    /// There is one.
    pub(super) fn create(&mut self, write: &Write<'_>, value: &Value) -> Result<Value, Refused> {
        if self.objects.contains_key(write.key) {
            return Err(Refused::AlreadyExists(write.key.clone()));
        }
        if version_of(value).is_some() {
            let what = "resourceVersion should not be set on objects to be created";
            return Err(Refused::Internal(what.to_owned()));
        }
        let mut value = write.part(value);
        write.admit(&mut value)?;
        let mut owners = Owners::new();
        fields::updated(&json!({}), &value, &mut owners, &write.owner(false));
        begin(write, &mut value);
        Ok(self.put(write.key, value, owners))
    }

    /// Another state of an object.
    ///
    /// # Errors
    ///
    /// There is none, or its `resourceVersion` is another.
    pub(super) fn replace(&mut self, write: &Write<'_>, value: &Value) -> Result<Value, Refused> {
        let before = self.object(write.key)?.clone();
        if version_of(value).is_none() && write.resource.needs_version() {
            let field = "metadata.resourceVersion".to_owned();
            let why = "Invalid value: 0: must be specified for an update".to_owned();
            return Err(write.resource.invalid(&write.key.name, vec![(field, why)]));
        }
        refuse_outdated(write.key, &before.value, value)?;
        self.change(write, before, value)
    }

    /// A change by JSON merge patch (RFC 7386), or that of a test's own making.
    ///
    /// # Errors
    ///
    /// As [`Self::replace`].
    pub(super) fn merge(&mut self, write: &Write<'_>, patch: &Value) -> Result<Value, Refused> {
        let before = self.object(write.key)?.clone();
        let mut value = before.value.clone();
        merge(&mut value, patch);
        if text(&value, "name") != Some(&write.key.name) {
            let what = "the name of the object does not match the name on the URL";
            return Err(Refused::Malformed(what.to_owned()));
        }
        if text(&value, "uid") != text(&before.value, "uid") {
            let why = (
                "metadata.uid".to_owned(),
                "Invalid value: field is immutable".to_owned(),
            );
            return Err(write.resource.invalid(&write.key.name, vec![why]));
        }
        refuse_outdated(write.key, &before.value, &value)?;
        self.change(write, before, &value)
    }

    /// Server-side apply; what is not there is created.
    ///
    /// # Errors
    ///
    /// Another version than `metadata.resourceVersion`, or fields of others.
    pub(super) fn apply(
        &mut self,
        write: &Write<'_>,
        applied: &Value,
        force: bool,
    ) -> Result<Value, Refused> {
        let own = write.owner(true);
        let part = write.part(applied);
        let api_version = write.resource.api_version();
        let Some(before) = self.objects.get(write.key).cloned() else {
            // Also for who names a version, which is one that has gone: the API server does so.
            if !write.subresource.is_empty() {
                return Err(Refused::NotFound(write.key.clone()));
            }
            let (_, owners) =
                fields::apply(&json!({}), &Owners::new(), &part, &own, force, &api_version)
                    .map_err(Refused::Owned)?;
            let mut value = part;
            write.admit(&mut value)?;
            begin(write, &mut value);
            return Ok(self.put(write.key, value, owners));
        };
        refuse_outdated(write.key, &before.value, applied)?;
        let mut before_owners = before.owners.clone();
        if before_owners.is_empty() {
            let own = Owner {
                manager: "before-first-apply".to_owned(),
                is_apply: false,
                subresource: String::new(),
            };
            fields::updated(&json!({}), &before.value, &mut before_owners, &own);
        }
        let (value, owners) = fields::apply(
            &before.value,
            &before_owners,
            &part,
            &own,
            force,
            &api_version,
        )
        .map_err(Refused::Owned)?;
        let mut value = keep_fixed(&before.value, value);
        write.admit(&mut value)?;
        if value == before.value && owners == before.owners {
            return Ok(before.value);
        }
        let value = next_generation(write.resource, &before.value, value);
        Ok(self.put(write.key, value, owners))
    }

    /// Marks an object as going, to be removed by who must act before.
    ///
    /// # Errors
    ///
    /// There is none.
    pub(super) fn mark(&mut self, key: &Key, grace: u64) -> Result<Value, Refused> {
        let Object {
            mut value, owners, ..
        } = self.object(key)?.clone();
        let seconds = i64::try_from(grace).unwrap_or(i64::MAX);
        let end = jiff::Timestamp::now().saturating_add(jiff::SignedDuration::from_secs(seconds));
        let end = end.unwrap_or(jiff::Timestamp::MAX);
        set(&mut value, "deletionTimestamp", json!(seconds_of(end)));
        set(&mut value, "deletionGracePeriodSeconds", json!(grace));
        Ok(self.put(key, value, owners))
    }

    /// Removes an object, and what it owns.
    ///
    /// # Errors
    ///
    /// There is none.
    pub(super) fn remove(&mut self, key: &Key) -> Result<Value, Refused> {
        let object = self.objects.remove(key);
        let before = object.ok_or_else(|| Refused::NotFound(key.clone()))?.value;
        self.version += 1;
        let mut value = before.clone();
        set(
            &mut value,
            "resourceVersion",
            json!(self.version.to_string()),
        );
        self.note(Change {
            version: self.version,
            key: key.clone(),
            before: Some(before),
            object: value.clone(),
            is_removed: true,
        });
        Ok(value)
    }

    /// Objects with a reference to an owner that has this uid, and none that is there.
    pub(super) fn orphans(&self, uid: &str) -> Vec<Key> {
        let uids: BTreeSet<&str> = self
            .objects
            .values()
            .filter_map(|it| text(&it.value, "uid"))
            .collect();
        let is_orphan = |value: &Value| {
            let owners = value
                .pointer("/metadata/ownerReferences")
                .and_then(Value::as_array);
            let owners = owners.into_iter().flatten();
            let owners: Vec<&str> = owners.filter_map(|it| it.get("uid")?.as_str()).collect();
            owners.contains(&uid) && !owners.iter().any(|owner| uids.contains(owner))
        };
        let orphans = self
            .objects
            .iter()
            .filter(|(_, object)| is_orphan(&object.value));
        orphans.map(|(key, _)| key.clone()).collect()
    }

    /// All objects of a namespace.
    pub(super) fn within(&self, namespace: &str) -> Vec<Key> {
        let within = self.objects.keys().filter(|key| key.namespace == namespace);
        within.cloned().collect()
    }

    fn change(
        &mut self,
        write: &Write<'_>,
        before: Object,
        value: &Value,
    ) -> Result<Value, Refused> {
        // Each part leaves the other as it is.
        let is_status = write.subresource == "status";
        let (mut value, other) = if is_status {
            (before.value.clone(), value)
        } else {
            (value.clone(), &before.value)
        };
        if is_status || write.resource.has_status() {
            let status = other.get("status").cloned();
            if let Some(fields) = value.as_object_mut() {
                match status {
                    Some(status) => fields.insert("status".to_owned(), status),
                    None => fields.remove("status"),
                };
            }
        }
        let mut value = keep_fixed(&before.value, value);
        write.admit(&mut value)?;
        if value == before.value {
            return Ok(value);
        }
        let mut owners = before.owners;
        // Whose fields are nobody's, nobody applies it yet: no one takes note.
        if !owners.is_empty() {
            fields::updated(&before.value, &value, &mut owners, &write.owner(false));
        }
        let value = next_generation(write.resource, &before.value, value);
        Ok(self.put(write.key, value, owners))
    }

    fn put(&mut self, key: &Key, mut value: Value, owners: Owners) -> Value {
        let before = self.objects.remove(key);
        self.version += 1;
        set(
            &mut value,
            "resourceVersion",
            json!(self.version.to_string()),
        );
        let now = seconds_of(jiff::Timestamp::now());
        let mut times = BTreeMap::new();
        for (owner, fields) in &owners {
            let kept = before
                .as_ref()
                .filter(|before| before.owners.get(owner) == Some(fields));
            let time = kept
                .and_then(|before| before.times.get(owner))
                .unwrap_or(&now);
            times.insert(owner.clone(), time.clone());
        }
        let api_version = value
            .get("apiVersion")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        let entries = owners.iter().map(|(owner, fields)| {
            owner.entry(fields, &api_version, times.get(owner).unwrap_or(&now))
        });
        let entries: Value = entries.collect();
        set(&mut value, "managedFields", entries);
        self.note(Change {
            version: self.version,
            key: key.clone(),
            before: before.map(|before| before.value),
            object: value.clone(),
            is_removed: false,
        });
        let object = Object {
            value: value.clone(),
            owners,
            times,
        };
        self.objects.insert(key.clone(), object);
        value
    }

    fn note(&mut self, change: Change) {
        self.history.push_back(change);
        if self.history.len() > HISTORY_MAX
            && let Some(oldest) = self.history.pop_front()
        {
            self.compacted = oldest.version;
        }
    }
}
