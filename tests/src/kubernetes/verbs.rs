//! What each verb does to the store.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::{
    metadata::{random, seconds_of, set, text},
    rbac::{self, User},
    refused::{Refused, about},
    resources::{DEFINITIONS, Place},
    selectors::Selector,
    store::{Key, Store, Write},
};

/// Seconds that a pod is given to end, if it does not say.
const GRACE: u64 = 30;
/// Seconds that a token is good for, if the request does not say.
const TOKEN_SECONDS: i64 = 3600;

/// A request whose path is known.
pub(super) struct Request<'a> {
    pub user: &'a User,
    pub verb: &'static str,
    pub place: &'a Place,
    pub query: &'a HashMap<String, String>,
    /// Media type of the body.
    pub kind: &'a str,
    pub body: &'a [u8],
    /// Who it is to be written for.
    pub manager: &'a str,
}

/// Tokens of accounts, with the account's object.
pub(super) type Tokens = HashMap<String, (Key, String)>;

/// The verb that a method means at a place.
pub(super) fn verb(method: &str, place: &Place, is_watch: bool) -> Result<&'static str, Refused> {
    let has_name = !place.key.name.is_empty();
    let is_creating = matches!(place.subresource.as_str(), "token" | "binding");
    match method {
        "GET" if has_name => Ok("get"),
        "GET" if is_watch => Ok("watch"),
        "GET" => Ok("list"),
        // Whoever names no namespace can only look.
        _ if place.resource.is_namespaced && place.key.namespace.is_empty() => {
            Err(Refused::NotAllowed)
        }
        "POST" if !has_name || is_creating => Ok("create"),
        "PUT" if has_name && !is_creating => Ok("update"),
        "PATCH" if has_name && !is_creating => Ok("patch"),
        "DELETE" if has_name && place.subresource.is_empty() => Ok("delete"),
        "DELETE" if !has_name => Ok("deletecollection"),
        _ => Err(Refused::NotAllowed),
    }
}

/// Carries out what is not a watch.
pub(super) fn answer(
    store: &mut Store,
    tokens: &mut Tokens,
    request: &Request<'_>,
) -> Result<(u16, Value), Refused> {
    let place = request.place;
    let write = Write {
        resource: &place.resource,
        key: &place.key,
        subresource: &place.subresource,
        manager: request.manager,
    };
    match request.verb {
        "get" => Ok((200, store.get(&place.key)?)),
        "list" => Ok((200, list(store, request)?)),
        "create" => match place.subresource.as_str() {
            "token" => Ok((201, token(store, tokens, request)?)),
            "binding" => bind(store, request, &write),
            _ => create(store, request, &write),
        },
        "update" => {
            let value = request.named()?;
            let value = store.replace(&write, &value)?;
            finish(store, &place.key, (200, value))
        }
        "patch" => {
            let answer = patch(store, request, &write)?;
            finish(store, &place.key, answer)
        }
        "delete" => delete(store, request, &place.key),
        "deletecollection" => {
            let selector = request.selector()?;
            let found = store.list(&place.key.resource, &place.key.namespace);
            let found = found.filter(|(_, value)| selector.fits(value));
            let found: Vec<Key> = found.map(|(key, _)| key.clone()).collect();
            for key in &found {
                delete(store, request, key)?;
            }
            Ok((200, success(&place.key)))
        }
        _ => Err(Refused::NotAllowed),
    }
}

impl Request<'_> {
    /// What of the query is about objects.
    pub(super) fn selector(&self) -> Result<Selector, Refused> {
        let text = |name: &str| self.query.get(name).map(String::as_str).unwrap_or_default();
        let resource = &self.place.key.resource;
        Selector::read(resource, text("labelSelector"), text("fieldSelector"))
    }

    fn json(&self) -> Result<Value, Refused> {
        let malformed = |error| Refused::Malformed(format!("couldn't get version/kind; {error}"));
        let value = serde_json::from_slice::<Value>(self.body).map_err(malformed)?;
        self.object(value)
    }

    /// The body as YAML, of which JSON is a part.
    fn yaml(&self) -> Result<Value, Refused> {
        let malformed = |what: String| Refused::Malformed(format!("error decoding YAML: {what}"));
        let text = std::str::from_utf8(self.body).map_err(|error| malformed(error.to_string()))?;
        let value = serde_saphyr::from_str(text).map_err(|error| malformed(error.to_string()))?;
        self.object(value)
    }

    fn object(&self, value: Value) -> Result<Value, Refused> {
        let field = |name: &str| value.get(name).and_then(Value::as_str);
        let resource = &self.place.resource;
        let is_of_kind = field("kind").is_none_or(|kind| kind == resource.kind)
            && field("apiVersion").is_none_or(|version| version == resource.api_version());
        if !value.is_object() || !is_of_kind && self.place.subresource.is_empty() {
            let kind = &resource.kind;
            return Err(Refused::Malformed(format!(
                "the object provided is unrecognized or not a {kind}"
            )));
        }
        let namespace = text(&value, "namespace").unwrap_or_default();
        if !namespace.is_empty() && namespace != self.place.key.namespace {
            let what = "the namespace of the provided object does not match the namespace sent on the request";
            return Err(Refused::Malformed(what.to_owned()));
        }
        Ok(value)
    }

    /// The body, which must name the object that the path names.
    fn named(&self) -> Result<Value, Refused> {
        self.json().and_then(|value| self.refuse_other_name(value))
    }

    fn refuse_other_name(&self, value: Value) -> Result<Value, Refused> {
        let name = text(&value, "name").unwrap_or_default();
        if name != self.place.key.name {
            let what = format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                self.place.key.name
            );
            return Err(Refused::Malformed(what));
        }
        Ok(value)
    }
}

fn list(store: &Store, request: &Request<'_>) -> Result<Value, Refused> {
    let selector = request.selector()?;
    let Place { resource, key, .. } = request.place;
    let number = |name: &str| {
        request
            .query
            .get(name)
            .and_then(|number| number.parse::<usize>().ok())
    };
    let limit = number("limit")
        .filter(|limit| *limit > 0)
        .unwrap_or(usize::MAX);
    // Where the page before ended: its version, namespace and name.
    let token = request
        .query
        .get("continue")
        .filter(|token| !token.is_empty());
    let (version, after) = match token {
        None => (store.version(), None),
        Some(token) => {
            let parts: Vec<&str> = token.splitn(3, '/').collect();
            let malformed = || Refused::Malformed("continue key is not valid".to_owned());
            let [version, namespace, name] = parts.as_slice() else {
                return Err(malformed());
            };
            let version = version.parse().map_err(|_| malformed())?;
            store.refuse_expired(version)?;
            (version, Some(((*namespace).to_owned(), (*name).to_owned())))
        }
    };
    let mut found = store
        .list(&key.resource, &key.namespace)
        .filter(|(_, value)| selector.fits(value))
        .filter(|(key, _)| {
            let after = after.as_ref();
            after.is_none_or(|(namespace, name)| (&key.namespace, &key.name) > (namespace, name))
        })
        .peekable();
    let mut items = Vec::new();
    let mut metadata = json!({"resourceVersion": version.to_string()});
    while let Some((key, value)) = found.next() {
        let mut value = value.clone();
        // The list says it for all, of kinds that the server has types for.
        if resource.definition.is_none()
            && let Some(fields) = value.as_object_mut()
        {
            fields.retain(|field, _| field != "apiVersion" && field != "kind");
        }
        items.push(value);
        if items.len() == limit && found.peek().is_some() {
            metadata["continue"] = json!(format!("{version}/{}/{}", key.namespace, key.name));
            break;
        }
    }
    let kind = format!("{}List", resource.kind);
    Ok(
        json!({"kind": kind, "apiVersion": resource.api_version(), "metadata": metadata, "items": items}),
    )
}

fn create(
    store: &mut Store,
    request: &Request<'_>,
    write: &Write<'_>,
) -> Result<(u16, Value), Refused> {
    let mut value = request.json()?;
    let generated = text(&value, "generateName").map(|prefix| {
        let random = random();
        format!("{prefix}{}", random.get(..5).unwrap_or_default())
    });
    let name = text(&value, "name")
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .or(generated);
    let Some(name) = name else {
        let why = "Required value: name or generateName is required".to_owned();
        let why = vec![("metadata.name".to_owned(), why)];
        return Err(write.resource.invalid("", why));
    };
    set(&mut value, "name", json!(name));
    let key = Key {
        name,
        ..write.key.clone()
    };
    refuse_nowhere(store, &key)?;
    Ok((
        201,
        store.create(
            &Write {
                key: &key,
                ..write.clone()
            },
            &value,
        )?,
    ))
}

/// Nothing is created in a namespace that is not there.
fn refuse_nowhere(store: &Store, key: &Key) -> Result<(), Refused> {
    if !key.namespace.is_empty() {
        store.get(&Key {
            resource: "namespaces".to_owned(),
            namespace: String::new(),
            name: key.namespace.clone(),
        })?;
    }
    Ok(())
}

fn patch(
    store: &mut Store,
    request: &Request<'_>,
    write: &Write<'_>,
) -> Result<(u16, Value), Refused> {
    match request.kind {
        "application/apply-patch+yaml" => {
            let value = request.yaml()?;
            // Who names none means that of the path.
            let value = match text(&value, "name") {
                None => value,
                Some(_) => request.refuse_other_name(value)?,
            };
            if request.manager.is_empty() {
                let kind = "PatchOptions.meta.k8s.io".to_owned();
                let why = "Required value: is required for apply patch".to_owned();
                let why = vec![("fieldManager".to_owned(), why)];
                return Err(Refused::Invalid(kind, String::new(), why));
            }
            if value.get("apiVersion").is_none() || value.get("kind").is_none() {
                return Err(Refused::Malformed(
                    "apiVersion and kind must be set".to_owned(),
                ));
            }
            if value.pointer("/metadata/managedFields").is_some() {
                return Err(Refused::Malformed(
                    "metadata.managedFields must be nil".to_owned(),
                ));
            }
            let is_new = store.get(write.key).is_err();
            if is_new {
                rbac::authorize(store, request.user, "create", request.place)?;
                refuse_nowhere(store, write.key)?;
            }
            let force = request
                .query
                .get("force")
                .is_some_and(|force| force == "true");
            let value = store.apply(write, &value, force)?;
            Ok((if is_new { 201 } else { 200 }, value))
        }
        "application/merge-patch+json" => {
            let patch = request.json()?;
            Ok((200, store.merge(write, &patch)?))
        }
        kind => Err(Refused::Unsupported(format!(
            "the body of the request was in an unknown format: {kind}"
        ))),
    }
}

fn delete(store: &mut Store, request: &Request<'_>, key: &Key) -> Result<(u16, Value), Refused> {
    let object = store.get(key)?;
    let options: Value = match request.body {
        [] => json!({}),
        body => {
            serde_json::from_slice(body).map_err(|error| Refused::Malformed(error.to_string()))?
        }
    };
    for (field, refused) in [
        ("uid", Refused::Replaced(key.clone())),
        ("resourceVersion", Refused::Outdated(key.clone())),
    ] {
        let asked = options
            .get("preconditions")
            .and_then(|it| it.get(field))
            .and_then(Value::as_str);
        if asked.is_some() && asked != text(&object, field) {
            return Err(refused);
        }
    }
    let asked = options.get("gracePeriodSeconds").and_then(Value::as_u64);
    let asked = asked.or_else(|| request.query.get("gracePeriodSeconds")?.parse().ok());
    // A pod on a node is its kubelet's to end, which then removes it without grace.
    if key.resource == "pods" && object.pointer("/spec/nodeName").is_some() {
        let own = object
            .pointer("/spec/terminationGracePeriodSeconds")
            .and_then(Value::as_u64);
        let has_ended = object
            .pointer("/status/phase")
            .is_some_and(|phase| phase == "Failed" || phase == "Succeeded");
        let grace = if has_ended {
            0
        } else {
            asked.or(own).unwrap_or(GRACE)
        };
        if grace > 0 {
            let is_marked = text(&object, "deletionTimestamp").is_some();
            return Ok((
                200,
                if is_marked {
                    object
                } else {
                    store.mark(key, grace)?
                },
            ));
        }
    }
    let has_finalizers = object
        .pointer("/metadata/finalizers")
        .and_then(Value::as_array)
        .is_some_and(|finalizers| !finalizers.is_empty());
    if has_finalizers {
        return Ok((200, store.mark(key, 0)?));
    }
    let is_orphaning = options
        .get("propagationPolicy")
        .is_some_and(|policy| policy == "Orphan");
    let removed = remove(store, key, is_orphaning)?;
    Ok((
        200,
        if key.resource == "pods" {
            removed
        } else {
            success(key)
        },
    ))
}

/// Removes an object, what is in it and what it owns, as controllers of a cluster do.
fn remove(store: &mut Store, key: &Key, is_orphaning: bool) -> Result<Value, Refused> {
    let removed = store.remove(key)?;
    let mut going: Vec<Key> = Vec::new();
    match key.resource.as_str() {
        "namespaces" => going.extend(store.within(&key.name)),
        DEFINITIONS => going.extend(store.list(&key.name, "").map(|(key, _)| key.clone())),
        _ => {}
    }
    if !is_orphaning {
        going.extend(store.orphans(text(&removed, "uid").unwrap_or_default()));
    }
    for key in going {
        let is_running = key.resource == "pods"
            && store
                .get(&key)
                .is_ok_and(|pod| pod.pointer("/spec/nodeName").is_some());
        if is_running {
            store.mark(&key, GRACE)?;
        } else {
            // One that was another's as well may have gone with it.
            let _ = remove(store, &key, false);
        }
    }
    Ok(removed)
}

fn bind(
    store: &mut Store,
    request: &Request<'_>,
    write: &Write<'_>,
) -> Result<(u16, Value), Refused> {
    let binding = request.json()?;
    let node = binding.pointer("/target/name").cloned().unwrap_or_default();
    if store.get(write.key)?.pointer("/spec/nodeName").is_some() {
        return Err(Refused::Outdated(write.key.clone()));
    }
    let write = Write {
        subresource: "",
        ..write.clone()
    };
    store.merge(&write, &json!({"spec": {"nodeName": node}}))?;
    Ok((201, success(write.key)))
}

fn token(store: &Store, tokens: &mut Tokens, request: &Request<'_>) -> Result<Value, Refused> {
    let key = &request.place.key;
    let account = store.get(key)?;
    let asked = request.json()?;
    let seconds = asked
        .pointer("/spec/expirationSeconds")
        .and_then(Value::as_i64);
    let seconds = seconds.unwrap_or(TOKEN_SECONDS);
    let end = jiff::Timestamp::now()
        .saturating_add(jiff::SignedDuration::from_secs(seconds))
        .unwrap_or(jiff::Timestamp::MAX);
    let token = random();
    let uid = text(&account, "uid").unwrap_or_default().to_owned();
    tokens.insert(token.clone(), (key.clone(), uid));
    Ok(json!({
        "kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1",
        "metadata": {"name": key.name, "namespace": key.namespace},
        "spec": {"audiences": [], "expirationSeconds": seconds},
        "status": {"token": token, "expirationTimestamp": seconds_of(end)},
    }))
}

fn success(key: &Key) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
        "details": about(&key.resource, &key.name),
    })
}

/// Removes what was only waiting for its last finalizer.
fn finish(store: &mut Store, key: &Key, answer: (u16, Value)) -> Result<(u16, Value), Refused> {
    let metadata = |field: &str| answer.1.get("metadata")?.get(field);
    let is_waiting = metadata("deletionTimestamp").is_some()
        && metadata("deletionGracePeriodSeconds") == Some(&json!(0));
    if is_waiting && metadata("finalizers").is_none() {
        remove(store, key, false)?;
    }
    Ok(answer)
}
