//! Who may do what, by the roles and bindings in the store.
//!
//! Semantics: <https://kubernetes.io/docs/reference/access-authn-authz/rbac/>.

use serde_json::Value;

use super::{
    refused::Refused,
    resources::Place,
    store::{Key, Store},
};

/// Whose request it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    pub name: String,
    pub groups: Vec<String>,
}

impl User {
    /// Who sends no token.
    pub(super) fn anonymous() -> Self {
        Self {
            name: "system:anonymous".to_owned(),
            groups: vec!["system:unauthenticated".to_owned()],
        }
    }

    /// The tests' own, who may do everything.
    pub(super) fn admin() -> Self {
        Self {
            name: "admin".to_owned(),
            groups: vec![MASTERS.to_owned(), "system:authenticated".to_owned()],
        }
    }

    /// A `ServiceAccount`.
    pub(super) fn account(namespace: &str, name: &str) -> Self {
        Self {
            name: format!("system:serviceaccount:{namespace}:{name}"),
            groups: vec![
                "system:serviceaccounts".to_owned(),
                format!("system:serviceaccounts:{namespace}"),
                "system:authenticated".to_owned(),
            ],
        }
    }
}

/// The group that needs no role.
const MASTERS: &str = "system:masters";
const GROUP: &str = "rbac.authorization.k8s.io";

/// Fails unless a role allows `verb` at `place`.
///
/// # Errors
///
/// [`Refused::Forbidden`].
pub(super) fn authorize(
    store: &Store,
    user: &User,
    verb: &str,
    place: &Place,
) -> Result<(), Refused> {
    let namespace = place.key.namespace.as_str();
    let in_namespace = |plural| {
        let bindings = (!namespace.is_empty()).then(|| store.list(plural, namespace));
        bindings.into_iter().flatten()
    };
    let role_bindings = format!("rolebindings.{GROUP}");
    let cluster_role_bindings = format!("clusterrolebindings.{GROUP}");
    let is_allowed = user.groups.iter().any(|group| group == MASTERS)
        || store
            .list(&cluster_role_bindings, "")
            .chain(in_namespace(&role_bindings))
            .filter(|(_, binding)| binds(binding, user))
            .filter_map(|(key, binding)| role(store, &key.namespace, binding))
            .any(|role| {
                let rules = role.get("rules").and_then(Value::as_array).cloned();
                rules
                    .unwrap_or_default()
                    .iter()
                    .any(|rule| allows(rule, verb, place))
            });
    if is_allowed {
        return Ok(());
    }
    let scope = match namespace {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace \"{namespace}\""),
    };
    let what = format!(
        "User \"{}\" cannot {verb} resource \"{}\" in API group \"{}\" {scope}",
        user.name,
        resource(place),
        place.resource.group
    );
    Err(Refused::Forbidden(place.key.clone(), what))
}

fn resource(place: &Place) -> String {
    match place.subresource.as_str() {
        "" => place.resource.plural.clone(),
        subresource => format!("{}/{subresource}", place.resource.plural),
    }
}

fn binds(binding: &Value, user: &User) -> bool {
    let subjects = binding.get("subjects").and_then(Value::as_array);
    subjects.into_iter().flatten().any(|subject| {
        let text = |field: &str| {
            subject
                .get(field)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let name = text("name");
        match text("kind") {
            "User" => name == user.name,
            "Group" => user.groups.iter().any(|group| group == name),
            "ServiceAccount" => User::account(text("namespace"), name).name == user.name,
            _ => false,
        }
    })
}

fn role(store: &Store, namespace: &str, binding: &Value) -> Option<Value> {
    let kind = binding.pointer("/roleRef/kind")?.as_str()?;
    let (plural, namespace) = match kind {
        "ClusterRole" => ("clusterroles", ""),
        "Role" => ("roles", namespace),
        _ => return None,
    };
    let key = Key {
        resource: format!("{plural}.{GROUP}"),
        namespace: namespace.to_owned(),
        name: binding.pointer("/roleRef/name")?.as_str()?.to_owned(),
    };
    store.get(&key).ok()
}

fn allows(rule: &Value, verb: &str, place: &Place) -> bool {
    let list = |field: &str| {
        let list = rule.get(field).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(Value::as_str)
    };
    let has = |field: &str, one: &str| list(field).any(|it| it == one || it == "*");
    let resource = resource(place);
    let of_any = format!("*/{}", place.subresource);
    let has_resource = has("resources", &resource)
        || !place.subresource.is_empty() && list("resources").any(|it| it == of_any);
    let has_name = list("resourceNames").next().is_none()
        || list("resourceNames").any(|name| name == place.key.name);
    has("apiGroups", &place.resource.group) && has_resource && has("verbs", verb) && has_name
}
