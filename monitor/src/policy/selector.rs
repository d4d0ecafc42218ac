//! Which containers a rule is for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::document::Selector;
use crate::containers::{self, Container};

/// What a selector looks at of a container; kept with recordings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Who {
    /// The image's reference without tag and digest.
    pub repository: String,
    /// Manifest digests of the images that it may be of.
    pub digests: Vec<String>,
    /// Kubernetes' namespace of the pod; without one, containerd's.
    pub namespace: String,
    /// The container's name; its id if it has none.
    pub container: String,
    /// Labels of the pod.
    pub pod_labels: BTreeMap<String, String>,
}

impl Who {
    /// Of a container.
    pub fn of(container: &Container) -> Self {
        let reference = container.image_reference.as_deref().unwrap_or_default();
        let images = container.identity.images().iter();
        let pod = container.pod.as_ref();
        Self {
            repository: containers::repository(reference).to_owned(),
            digests: images.map(|image| image.manifest.to_string()).collect(),
            namespace: pod
                .map_or(&container.runtime_namespace, |pod| &pod.namespace)
                .clone(),
            container: if container.name.is_empty() {
                container.id.clone()
            } else {
                container.name.clone()
            },
            pod_labels: pod
                .map(|pod| pod.labels.as_ref().clone())
                .unwrap_or_default(),
        }
    }
}

impl Selector {
    /// Whether it chooses a container.
    pub(super) fn chooses(&self, who: &Who) -> bool {
        let is = |wanted: &Option<String>, seen: &str| {
            wanted.as_ref().is_none_or(|wanted| is_like(wanted, seen))
        };
        // Of several candidates every one.
        let is_digest = self.digest.as_ref().is_none_or(|wanted| {
            !who.digests.is_empty() && who.digests.iter().all(|digest| is_like(wanted, digest))
        });
        let mut labels = self.pod_labels.iter();
        is_digest
            && is(&self.repository, &who.repository)
            && is(&self.namespace, &who.namespace)
            && is(&self.container, &who.container)
            && labels.all(|(key, wanted)| {
                who.pod_labels
                    .get(key)
                    .is_some_and(|seen| is_like(wanted, seen))
            })
    }
}

/// Whether a text is like a pattern, in which `*` stands for any number of characters.
fn is_like(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_asterisk_stands_for_anything() {
        let check = |pattern: &str, text: &str, expect: bool| {
            assert_eq!(is_like(pattern, text), expect, "{pattern} {text}");
        };
        check("nginx", "nginx", true);
        check("nginx", "nginx2", false);
        check("*", "", true);
        check("*/nginx", "docker.io/library/nginx", true);
        check("docker.io/*/nginx", "docker.io/library/nginx", true);
        check("docker.io/*/nginx", "docker.io/nginx", false);
        check("a*a", "a", false);
        check("a*b*c", "a-b-b-c", true);
        check("a*b*c", "a-c-b", false);
        check("", "", true);
        check("", "a", false);
    }
}
