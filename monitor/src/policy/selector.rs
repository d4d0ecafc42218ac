//! Which containers a rule is for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::document::Selector;
use crate::{
    containers::{self, Container},
    pattern::is_like,
};

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
