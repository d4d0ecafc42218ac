//! Which resources the server has, and which of them a path names.

use serde_json::Value;

use super::{
    refused::Refused,
    store::{Key, Store},
};

/// Kinds of every cluster that the tests need: group, version, plural, kind, whether it is of a namespace.
const BUILT_IN: &[(&str, &str, &str, &str, bool)] = &[
    ("", "v1", "configmaps", "ConfigMap", true),
    ("", "v1", "events", "Event", true),
    ("", "v1", "namespaces", "Namespace", false),
    ("", "v1", "nodes", "Node", false),
    ("", "v1", "pods", "Pod", true),
    ("", "v1", "secrets", "Secret", true),
    ("", "v1", "serviceaccounts", "ServiceAccount", true),
    ("", "v1", "services", "Service", true),
    (
        "apiextensions.k8s.io",
        "v1",
        "customresourcedefinitions",
        "CustomResourceDefinition",
        false,
    ),
    (
        "apps",
        "v1",
        "controllerrevisions",
        "ControllerRevision",
        true,
    ),
    ("apps", "v1", "daemonsets", "DaemonSet", true),
    ("apps", "v1", "deployments", "Deployment", true),
    ("apps", "v1", "replicasets", "ReplicaSet", true),
    ("apps", "v1", "statefulsets", "StatefulSet", true),
    ("batch", "v1", "cronjobs", "CronJob", true),
    ("batch", "v1", "jobs", "Job", true),
    ("coordination.k8s.io", "v1", "leases", "Lease", true),
    (
        "networking.k8s.io",
        "v1",
        "networkpolicies",
        "NetworkPolicy",
        true,
    ),
    (
        "policy",
        "v1",
        "poddisruptionbudgets",
        "PodDisruptionBudget",
        true,
    ),
    (
        RBAC_GROUP,
        "v1",
        "clusterrolebindings",
        "ClusterRoleBinding",
        false,
    ),
    (RBAC_GROUP, "v1", "clusterroles", "ClusterRole", false),
    (RBAC_GROUP, "v1", "rolebindings", "RoleBinding", true),
    (RBAC_GROUP, "v1", "roles", "Role", true),
];

const RBAC_GROUP: &str = "rbac.authorization.k8s.io";
/// Where definitions of further resources are kept.
pub(super) const DEFINITIONS: &str = "customresourcedefinitions.apiextensions.k8s.io";

/// A kind of object as the API has it.
#[derive(Clone, Debug)]
pub(super) struct Resource {
    pub group: String,
    pub version: String,
    pub plural: String,
    pub kind: String,
    pub is_namespaced: bool,
    /// The definition's version, of a resource that is defined by an object.
    pub definition: Option<Value>,
}

impl Resource {
    /// As `apiVersion` of its objects.
    pub(super) fn api_version(&self) -> String {
        match self.group.as_str() {
            "" => self.version.clone(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// As errors and rules name it: `deployments.apps`.
    pub(super) fn qualified(&self) -> String {
        match self.group.as_str() {
            "" => self.plural.clone(),
            group => format!("{}.{group}", self.plural),
        }
    }

    /// That fields of an object are invalid.
    pub(super) fn invalid(&self, name: &str, fields: Vec<(String, String)>) -> Refused {
        let kind = match self.group.as_str() {
            "" => self.kind.clone(),
            group => format!("{}.{group}", self.kind),
        };
        Refused::Invalid(kind, name.to_owned(), fields)
    }

    /// Whether its status is written by a path of its own.
    pub(super) fn has_status(&self) -> bool {
        match &self.definition {
            Some(version) => version.pointer("/subresources/status").is_some(),
            None => {
                self.group != RBAC_GROUP
                    && !matches!(
                        self.plural.as_str(),
                        "configmaps"
                            | "events"
                            | "secrets"
                            | "serviceaccounts"
                            | "controllerrevisions"
                            | "leases"
                            | "networkpolicies"
                    )
            }
        }
    }

    /// Whether changes of what is wanted are counted.
    pub(super) fn has_generation(&self) -> bool {
        self.has_status() && !matches!(self.plural.as_str(), "namespaces" | "nodes" | "services")
            || self.plural == "networkpolicies"
    }

    /// Whether a replacement must say which version it replaces.
    pub(super) fn needs_version(&self) -> bool {
        self.definition.is_some() || self.plural == "leases"
    }
}

/// What a path names.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub resource: Resource,
    pub key: Key,
    pub subresource: String,
}

impl Place {
    /// Reads `/api/v1/…` or `/apis/GROUP/VERSION/…`, each with or without a namespace, a name and a
    /// subresource; `None` where the store has no such resource.
    pub(super) fn read(path: &str, store: &Store) -> Option<Self> {
        let mut parts = path.trim_matches('/').split('/');
        let (group, version) = match parts.next()? {
            "api" => ("", parts.next()?),
            "apis" => (parts.next()?, parts.next()?),
            _ => return None,
        };
        let rest: Vec<&str> = parts.collect();
        let (namespace, rest) = match rest.as_slice() {
            // Of the namespace itself.
            ["namespaces", _] | ["namespaces", _, "status" | "finalize"] => ("", rest.as_slice()),
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
            rest => ("", rest),
        };
        let (plural, name, subresource) = match rest {
            [plural] => (*plural, "", ""),
            [plural, name] => (*plural, *name, ""),
            [plural, name, subresource] => (*plural, *name, *subresource),
            _ => return None,
        };
        let resource =
            built_in(group, version, plural).or_else(|| defined(group, version, plural, store))?;
        let is_whole = namespace.is_empty() && name.is_empty();
        if resource.is_namespaced == namespace.is_empty() && !(resource.is_namespaced && is_whole) {
            return None;
        }
        let is_subresource = match subresource {
            "" => true,
            "status" => resource.has_status(),
            "token" => plural == "serviceaccounts",
            "binding" => plural == "pods",
            "finalize" => plural == "namespaces",
            _ => false,
        };
        is_subresource.then(|| Self {
            key: Key {
                resource: resource.qualified(),
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            },
            subresource: subresource.to_owned(),
            resource,
        })
    }
}

fn built_in(group: &str, version: &str, plural: &str) -> Option<Resource> {
    let is_it =
        |it: &&(&str, &str, &str, &str, bool)| (it.0, it.1, it.2) == (group, version, plural);
    let (.., kind, is_namespaced) = *BUILT_IN.iter().find(is_it)?;
    Some(Resource {
        group: group.to_owned(),
        version: version.to_owned(),
        plural: plural.to_owned(),
        kind: kind.to_owned(),
        is_namespaced,
        definition: None,
    })
}

fn defined(group: &str, version: &str, plural: &str, store: &Store) -> Option<Resource> {
    let definition = store
        .get(&Key {
            resource: DEFINITIONS.to_owned(),
            namespace: String::new(),
            name: format!("{plural}.{group}"),
        })
        .ok()?;
    let text = |pointer: &str| definition.pointer(pointer).and_then(Value::as_str);
    let is_it = |it: &&Value| {
        it.get("name").and_then(Value::as_str) == Some(version)
            && it.get("served").and_then(Value::as_bool) == Some(true)
    };
    let found = definition
        .pointer("/spec/versions")?
        .as_array()?
        .iter()
        .find(is_it)?;
    Some(Resource {
        group: group.to_owned(),
        version: version.to_owned(),
        plural: plural.to_owned(),
        kind: text("/spec/names/kind")?.to_owned(),
        is_namespaced: text("/spec/scope")? == "Namespaced",
        definition: Some(found.clone()),
    })
}
