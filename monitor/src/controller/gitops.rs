//! Who keeps a workload as a repository says, and would undo what is changed behind its back. Pure.

use serde_json::Value;

/// Managers of Argo CD's fields.
const ARGO_CD: [&str; 2] = ["argocd-controller", "argocd-application-controller"];
/// Managers of Flux's fields.
const FLUX: [&str; 2] = ["kustomize-controller", "helm-controller"];

/// Argo CD or Flux, with the application by which it owns an object; `None` if neither does.
///
/// By <https://argo-cd.readthedocs.io/en/stable/user-guide/resource_tracking/> and
/// <https://fluxcd.io/flux/components/kustomize/kustomizations/#role-based-access-control>.
pub fn owner(object: &Value) -> Option<String> {
    let text = |kind: &str, key: &str| {
        let found = object.pointer(&format!("/metadata/{kind}"))?.get(key)?;
        found.as_str().map(str::to_owned)
    };
    if let Some(tracked) = text("annotations", "argocd.argoproj.io/tracking-id") {
        let application = tracked.split(':').next().unwrap_or_default();
        return Some(format!("Argo CD (application {application})"));
    }
    if let Some(application) = text("labels", "argocd.argoproj.io/instance") {
        return Some(format!("Argo CD (application {application})"));
    }
    for (kind, prefix) in [("Kustomization", "kustomize"), ("HelmRelease", "helm")] {
        if let Some(name) = text("labels", &format!("{prefix}.toolkit.fluxcd.io/name")) {
            let namespace = text("labels", &format!("{prefix}.toolkit.fluxcd.io/namespace"));
            let namespace = namespace.unwrap_or_default();
            return Some(format!("Flux ({kind} {namespace}/{name})"));
        }
    }
    // The marks above can be configured away; who applies the object is noted by the API server.
    let managers = object.pointer("/metadata/managedFields");
    let managers = managers.and_then(Value::as_array).into_iter().flatten();
    let mut names = managers.filter_map(|it| it.get("manager")?.as_str());
    names.find_map(|name| match name {
        _ if ARGO_CD.contains(&name) => Some("Argo CD".to_owned()),
        _ if FLUX.contains(&name) => Some("Flux".to_owned()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_owner_is_known_by_its_marks() {
        let check = |metadata: Value, expect: Option<&str>| {
            let found = owner(&json!({ "metadata": metadata }));
            assert_eq!(found.as_deref(), expect, "{metadata}");
        };
        check(json!({}), None);
        check(
            json!({"annotations": {"argocd.argoproj.io/tracking-id": "shop:apps/Deployment:a/web"}}),
            Some("Argo CD (application shop)"),
        );
        check(
            json!({"labels": {"argocd.argoproj.io/instance": "shop"}}),
            Some("Argo CD (application shop)"),
        );
        check(
            json!({"labels": {"kustomize.toolkit.fluxcd.io/name": "shop", "kustomize.toolkit.fluxcd.io/namespace": "flux"}}),
            Some("Flux (Kustomization flux/shop)"),
        );
        check(
            json!({"labels": {"helm.toolkit.fluxcd.io/name": "shop"}}),
            Some("Flux (HelmRelease /shop)"),
        );
        check(
            json!({"managedFields": [{"manager": "kubectl"}, {"manager": "helm-controller"}]}),
            Some("Flux"),
        );
        check(
            json!({"managedFields": [{"manager": "argocd-controller"}]}),
            Some("Argo CD"),
        );
        check(
            json!({"managedFields": [{"manager": "helm"}], "labels": {"app": "x"}}),
            None,
        );
    }
}
