//! Who owns a container and would undo what is done to it behind its back. Pure.

use super::order::Refusal;
use crate::{containerd::ContainerRecord, digest::Digest};

/// Refuses what a supervisor owns, with what to do there. `image` is what it is to be created from.
///
/// # Errors
///
/// [`Refusal::Supervised`].
pub(super) fn refuse_supervised(
    namespace: &str,
    record: &ContainerRecord,
    repository: &str,
    image: Option<&Digest>,
) -> Result<(), Refusal> {
    let image = match image {
        Some(image) => format!("{repository}@{image}"),
        None => format!("{repository}@DIGEST"),
    };
    let has = |prefix: &str| record.labels.keys().any(|label| label.starts_with(prefix));
    let (who, how) = if namespace == "k8s.io" || has("io.kubernetes.") || has("io.cri-containerd.")
    {
        (
            "Kubernetes",
            format!(
                "Set the image of its workload: `kubectl set image KIND/NAME CONTAINER={image}`"
            ),
        )
    } else if namespace == "moby" || has("com.docker.") {
        (
            "docker",
            format!("Create it anew there: `docker run … {image}`, or in the compose file"),
        )
    } else if has("nerdctl/") {
        (
            "nerdctl",
            format!("Create it anew there: `nerdctl run … {image}`, or in the compose file"),
        )
    } else if has("containerd.io/restart.") {
        (
            "containerd's restart monitor",
            "Take its labels `containerd.io/restart.*` off first: `ctr containers label`"
                .to_owned(),
        )
    } else {
        return Ok(());
    };
    Err(Refusal::Supervised {
        container: record.id.clone(),
        who,
        how,
    })
}

/// Refuses a target that only a cluster has.
///
/// # Errors
///
/// [`Refusal::Supervised`].
pub fn refuse_workload(target: &str) -> Result<(), Refusal> {
    match target.split_once('/') {
        Some(("pod" | "deployment", _)) => Err(Refusal::Supervised {
            container: target.to_owned(),
            who: "Kubernetes",
            how: "Ask `monitord controller`, or set the image with `kubectl set image`".to_owned(),
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_own_is_refused() {
        let check = |namespace: &str, label: &str, expect: Option<&str>| {
            let mut record = ContainerRecord::default();
            record.labels.insert(label.to_owned(), "x".to_owned());
            let refused = refuse_supervised(namespace, &record, "example.org/web", None);
            let who = refused.err().and_then(|refusal| match refusal {
                Refusal::Supervised { who, .. } => Some(who),
                _ => None,
            });
            assert_eq!(who, expect, "{namespace} {label}");
        };
        check("default", "maintainer", None);
        check("k8s.io", "maintainer", Some("Kubernetes"));
        check("default", "io.kubernetes.pod.name", Some("Kubernetes"));
        check("default", "io.cri-containerd.kind", Some("Kubernetes"));
        check("moby", "maintainer", Some("docker"));
        check("default", "nerdctl/name", Some("nerdctl"));
        check(
            "default",
            "containerd.io/restart.status",
            Some("containerd's restart monitor"),
        );
        assert!(refuse_workload("deployment/shop/web").is_err());
        assert!(refuse_workload("pod/shop/web").is_err());
        assert_eq!(refuse_workload("web"), Ok(()));
    }
}
