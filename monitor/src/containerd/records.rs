//! What containerd keeps, in types of our own.

use std::{collections::HashMap, path::PathBuf};

use containerd_client::{
    services::v1 as wire,
    types::{Mount, v1::Process, v1::Status},
};

use crate::{clock::unix_ns, digest::Digest};

/// A container as containerd has it.
#[derive(Clone, Debug, Default)]
pub struct ContainerRecord {
    /// Its id, unique in its namespace.
    pub id: String,
    /// Its labels.
    pub labels: HashMap<String, String>,
    /// The image reference it was created with; may be empty.
    pub image: String,
    /// Name of the runtime (`io.containerd.runc.v2`).
    pub runtime: String,
    /// Its snapshotter; empty if it has no snapshot.
    pub snapshotter: String,
    /// Name of its snapshot; likewise.
    pub snapshot_key: String,
    /// The OCI runtime spec, JSON.
    pub spec: Vec<u8>,
    /// What clients stored with it, by name.
    pub extensions: HashMap<String, Extension>,
    /// When it was created, in nanoseconds since 1970 by containerd's clock; 0 if not told.
    pub created_unix_ns: i128,
    /// When it was last changed, likewise.
    pub updated_unix_ns: i128,
    /// Id of the sandbox that it belongs to; empty if to none.
    pub sandbox: String,
}

/// What a client stored with a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extension {
    /// What `value` is, as the client named it.
    pub type_url: String,
    /// The bytes.
    pub value: Vec<u8>,
}

/// The init process of a container as containerd has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskRecord {
    /// The container's id.
    pub container_id: String,
    /// Process id in the pid namespace of containerd.
    pub pid: u32,
    /// Whether the process is there (created, running or paused).
    pub alive: bool,
}

/// A snapshot as the snapshotter has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// Name of the snapshot below it; empty if there is none.
    pub parent: String,
    /// Its labels.
    pub labels: HashMap<String, String>,
    /// When it was created, in nanoseconds since 1970 by containerd's clock; 0 if not told.
    pub created_unix_ns: i128,
}

/// An image reference and what it points to now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRecord {
    /// The reference.
    pub name: String,
    /// Digest of the index or manifest; `None` if it is not SHA-256.
    pub target: Option<Digest>,
    /// Media type of the target.
    pub media_type: String,
    /// When the reference was last changed, in nanoseconds since 1970 by containerd's clock; 0 if
    /// not told.
    pub updated_unix_ns: i128,
}

pub(super) fn container(found: wire::Container) -> ContainerRecord {
    ContainerRecord {
        id: found.id,
        labels: found.labels,
        image: found.image,
        runtime: found
            .runtime
            .map(|runtime| runtime.name)
            .unwrap_or_default(),
        snapshotter: found.snapshotter,
        snapshot_key: found.snapshot_key,
        spec: found.spec.map(|spec| spec.value).unwrap_or_default(),
        extensions: found
            .extensions
            .into_iter()
            .map(|(name, any)| {
                let extension = Extension {
                    type_url: any.type_url,
                    value: any.value,
                };
                (name, extension)
            })
            .collect(),
        created_unix_ns: unix_ns(found.created_at),
        updated_unix_ns: unix_ns(found.updated_at),
        sandbox: found.sandbox,
    }
}

pub(super) fn image(found: wire::Image) -> ImageRecord {
    let target = found.target.unwrap_or_default();
    ImageRecord {
        name: found.name,
        target: target.digest.parse().ok(),
        media_type: target.media_type,
        updated_unix_ns: unix_ns(found.updated_at),
    }
}

pub(super) fn task(found: Process) -> TaskRecord {
    TaskRecord {
        alive: matches!(
            found.status(),
            Status::Created | Status::Running | Status::Paused | Status::Pausing
        ),
        // Of a listed task `container_id` is empty and `id` is the container's.
        container_id: if found.container_id.is_empty() {
            found.id
        } else {
            found.container_id
        },
        pid: found.pid,
    }
}

/// The lower directories of one overlay mount, from bottom to top.
pub(super) fn lower_directories(mounts: &[Mount]) -> Option<Vec<PathBuf>> {
    let [mount] = mounts else { return None };
    if mount.r#type != "overlay" {
        return None;
    }
    let option = |option: &'_ String| option.strip_prefix("lowerdir=").map(str::to_owned);
    let listed = mount.options.iter().find_map(option)?;
    Some(listed.rsplit(':').map(PathBuf::from).collect())
}
