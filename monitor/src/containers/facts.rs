//! What a container's record says of it, read with bounds: its spec, labels and CRI's metadata.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{Container, ContainerKind, Identity, Pod, cgroup, posture::Posture};
use crate::{containerd::ContainerRecord, digest::Digest};

/// Labels of a pod; of more some are left out.
const LABELS_MAX: usize = 64;

/// Bytes of a name taken from labels and annotations; longer ones are cut.
const NAME_BYTES_MAX: usize = 1024;

/// Where CRI keeps what it knows of a container. Measured on 1.6.20 and read in the source up to
/// 2.4: JSON `{"Version": "v1", "Metadata": {"ImageRef": CONFIG_DIGEST, …}}`; `ImageDigest`, the
/// digest of the index or manifest, is there from 2.3 on.
const CRI_METADATA: &str = "io.cri-containerd.container.metadata";

/// What the record of a container says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The container, its identity pending, without a task.
    pub container: Container,
    /// Where its cgroup is, from the root the runtime saw.
    pub cgroup_path: Option<Vec<u8>>,
    /// When it was created, by containerd's clock: tells it from another of the same id.
    pub created_unix_ns: i128,
    /// What of it bears on its identity.
    pub claims: Claims,
}

/// What the record of a container says about its image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// Config digest that CRI recorded when it created the container.
    pub config: Option<Digest>,
    /// Digest of the index or manifest that CRI recorded, likewise.
    pub target: Option<Digest>,
    /// What its process is to be.
    pub process: ProcessFacts,
    /// Its user namespace.
    pub id_map: IdMap,
}

/// Of the spec's process, what an image config sets defaults for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessFacts {
    /// `process.args`.
    pub arguments: Vec<String>,
    /// `process.env`, each `NAME=value`.
    pub environment: Vec<String>,
    /// `process.cwd`.
    pub directory: String,
    /// `process.user.uid`.
    pub uid: u32,
}

/// The spec's user namespace mappings. Serialised as containerd does it for the name of a remapped
/// snapshot, so the order of the fields matters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct IdMap {
    /// User ids.
    #[serde(rename = "UidMap")]
    pub uids: Vec<Mapping>,
    /// Group ids.
    #[serde(rename = "GidMap")]
    pub gids: Vec<Mapping>,
}

/// One range of ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Mapping {
    /// First id inside.
    #[serde(rename = "containerID")]
    pub container_id: u32,
    /// First id on the host.
    #[serde(rename = "hostID")]
    pub host_id: u32,
    /// How many.
    pub size: u32,
}

#[derive(Default, Deserialize)]
struct Spec {
    process: Option<SpecProcess>,
    linux: Option<SpecLinux>,
    annotations: Option<HashMap<String, String>>,
}

#[derive(Default, Deserialize)]
struct SpecProcess {
    args: Option<Vec<String>>,
    env: Option<Vec<String>>,
    cwd: Option<String>,
    user: Option<SpecUser>,
}

#[derive(Default, Deserialize)]
struct SpecUser {
    uid: Option<u32>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SpecLinux {
    cgroups_path: Option<String>,
    uid_mappings: Option<Vec<Mapping>>,
    gid_mappings: Option<Vec<Mapping>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CriMetadata {
    metadata: CriContainer,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CriContainer {
    image_ref: Option<String>,
    image_digest: Option<String>,
}

/// What people labelled a pod with, without what Kubernetes and containerd add.
fn labels(all: &HashMap<String, String>) -> BTreeMap<String, String> {
    let is_own =
        |key: &str| !key.starts_with("io.kubernetes.") && !key.starts_with("io.cri-containerd.");
    let own = all.iter().filter(|(key, _)| is_own(key));
    own.take(LABELS_MAX)
        .map(|(key, value)| (cut(key), cut(value)))
        .collect()
}

impl Facts {
    /// Reads a record. What is missing or unreadable in it is left out: a container whose spec is
    /// not JSON is still a container.
    pub fn read(namespace: &str, record: ContainerRecord) -> Self {
        // A spec is at most as long as a message from containerd.
        let spec: Spec = serde_json::from_slice(&record.spec).unwrap_or_default();
        let linux = spec.linux.unwrap_or_default();
        let process = spec.process.unwrap_or_default();
        let annotations = spec.annotations.unwrap_or_default();
        // Annotations are in the spec that the runtime was given; labels can be changed later.
        let named = |annotation: &str, label: &str| {
            annotations
                .get(annotation)
                .or_else(|| record.labels.get(label))
                .map(|text| cut(text))
        };
        let kind = named("io.kubernetes.cri.container-type", "io.cri-containerd.kind");
        let name = named(
            "io.kubernetes.cri.container-name",
            "io.kubernetes.container.name",
        )
        .or_else(|| record.labels.get("nerdctl/name").map(|text| cut(text)));
        let pod =
            named("io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name").map(|name| Pod {
                namespace: named(
                    "io.kubernetes.cri.sandbox-namespace",
                    "io.kubernetes.pod.namespace",
                )
                .unwrap_or_default(),
                name,
                uid: named("io.kubernetes.cri.sandbox-uid", "io.kubernetes.pod.uid")
                    .unwrap_or_default(),
                // containerd gives the pod's to its sandbox.
                labels: Arc::new(if kind.as_deref() == Some("sandbox") {
                    labels(&record.labels)
                } else {
                    BTreeMap::new()
                }),
            });
        let cri: Option<CriContainer> = record
            .extensions
            .get(CRI_METADATA)
            .and_then(|extension| serde_json::from_slice::<CriMetadata>(&extension.value).ok())
            .map(|versioned| versioned.metadata);
        let digest = |text: Option<&String>| text.and_then(|text| text.parse().ok());
        let claims = Claims {
            config: digest(cri.as_ref().and_then(|cri| cri.image_ref.as_ref())),
            target: digest(cri.as_ref().and_then(|cri| cri.image_digest.as_ref())),
            process: ProcessFacts {
                arguments: process.args.unwrap_or_default(),
                environment: process.env.unwrap_or_default(),
                directory: process.cwd.unwrap_or_default(),
                uid: process.user.and_then(|user| user.uid).unwrap_or_default(),
            },
            id_map: IdMap {
                uids: sorted(linux.uid_mappings),
                gids: sorted(linux.gid_mappings),
            },
        };
        // CRI creates its containers with an image id; the annotation has the name people gave.
        let image_reference = annotations
            .get("io.kubernetes.cri.image-name")
            .cloned()
            .or_else(|| (!record.image.is_empty()).then(|| record.image.clone()));
        Self {
            cgroup_path: linux.cgroups_path.as_deref().and_then(cgroup::path_of_spec),
            created_unix_ns: record.created_unix_ns,
            claims,
            container: Container {
                runtime_namespace: namespace.to_owned(),
                id: record.id,
                name: name.unwrap_or_default(),
                kind: if kind.as_deref() == Some("sandbox") {
                    ContainerKind::Sandbox
                } else {
                    ContainerKind::Container
                },
                pod,
                runtime: cut(&record.runtime),
                image_reference,
                snapshotter: record.snapshotter,
                snapshot_key: record.snapshot_key,
                identity: Identity::Pending,
                image_problem: None,
                posture: Posture::of(&record.spec).map(Arc::new),
                created_unix_ns: record.created_unix_ns,
                task: None,
            },
        }
    }

    /// Of a container that was gone before its record could be asked for: what its events said,
    /// and the cgroup that containerd's clients give by default.
    pub fn of_vanished(namespace: &str, id: &str, image: &str, created_unix_ns: i128) -> Self {
        let record = ContainerRecord {
            id: id.to_owned(),
            image: image.to_owned(),
            created_unix_ns,
            ..ContainerRecord::default()
        };
        Self {
            cgroup_path: cgroup::path_of_spec(&format!("/{namespace}/{id}")),
            ..Self::read(namespace, record)
        }
    }
}

fn cut(text: &str) -> String {
    let mut end = text.len().min(NAME_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}

fn sorted(mappings: Option<Vec<Mapping>>) -> Vec<Mapping> {
    let mut mappings = mappings.unwrap_or_default();
    mappings.sort_by_key(|mapping| mapping.container_id);
    mappings
}

#[cfg(test)]
#[expect(
    clippy::unwrap_used,
    reason = "a test that cannot set itself up has failed"
)]
mod tests {
    use super::*;
    use crate::containerd::Extension;

    #[test]
    fn a_plain_container_is_read() {
        let facts = Facts::read(
            "default",
            ContainerRecord {
                id: "web".to_owned(),
                image: "example.org/web:1".to_owned(),
                spec: br#"{"process": {"args": ["/a", "b"], "env": ["A=b"], "cwd": "/w",
                    "user": {"uid": 7, "gid": 7}},
                    "linux": {"cgroupsPath": "/default/web",
                    "uidMappings": [{"containerID": 9, "hostID": 1, "size": 1},
                                    {"containerID": 0, "hostID": 5000, "size": 9}]}}"#
                    .to_vec(),
                created_unix_ns: 5,
                ..ContainerRecord::default()
            },
        );
        assert_eq!(facts.cgroup_path.as_deref(), Some(&b"/default/web"[..]));
        assert_eq!(facts.claims.process.arguments, ["/a", "b"]);
        assert_eq!(facts.claims.process.uid, 7);
        assert_eq!(facts.claims.id_map.uids.first().unwrap().host_id, 5000);
        assert_eq!(
            facts.container.image_reference.as_deref(),
            Some("example.org/web:1")
        );
        assert_eq!(facts.container.pod, None);
    }

    #[test]
    fn a_container_of_cri_is_read() {
        let config = format!("sha256:{}", "ab".repeat(32));
        let metadata =
            format!(r#"{{"Version":"v1","Metadata":{{"ID":"x","ImageRef":"{config}"}}}}"#);
        let spec = br#"{"annotations": {"io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.container-name": "app", "io.kubernetes.cri.sandbox-name": "pod-1",
            "io.kubernetes.cri.sandbox-namespace": "shop", "io.kubernetes.cri.sandbox-uid": "u",
            "io.kubernetes.cri.image-name": "example.org/app:2"}}"#;
        let facts = Facts::read(
            "k8s.io",
            ContainerRecord {
                id: "x".to_owned(),
                image: config.clone(),
                spec: spec.to_vec(),
                extensions: HashMap::from([(
                    CRI_METADATA.to_owned(),
                    Extension {
                        type_url: "github.com/containerd/cri/pkg/store/container/Metadata"
                            .to_owned(),
                        value: metadata.into_bytes(),
                    },
                )]),
                ..ContainerRecord::default()
            },
        );
        assert_eq!(facts.claims.config, config.parse().ok());
        assert_eq!(facts.claims.target, None);
        assert_eq!(facts.container.name, "app");
        assert_eq!(facts.container.kind, ContainerKind::Container);
        assert_eq!(
            facts.container.image_reference.as_deref(),
            Some("example.org/app:2")
        );
        let pod = facts.container.pod.unwrap();
        assert_eq!(
            (pod.namespace.as_str(), pod.name.as_str(), pod.uid.as_str()),
            ("shop", "pod-1", "u")
        );
    }

    #[test]
    fn what_cannot_be_read_is_left_out() {
        for spec in [
            &b""[..],
            b"{",
            b"[]",
            b"\xff",
            br#"{"process": {"args": 1}}"#,
        ] {
            let facts = Facts::read(
                "n",
                ContainerRecord {
                    id: "x".to_owned(),
                    spec: spec.to_vec(),
                    ..ContainerRecord::default()
                },
            );
            assert_eq!(
                (facts.container.id.as_str(), facts.cgroup_path),
                ("x", None)
            );
        }
        let facts = Facts::of_vanished("n", "x", "", 3);
        assert_eq!(facts.cgroup_path.as_deref(), Some(&b"/n/x"[..]));
        assert_eq!(cut(&"é".repeat(NAME_BYTES_MAX)).len(), NAME_BYTES_MAX);
    }
}
