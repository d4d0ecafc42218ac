//! Which container a task belongs to, and which image the container was created from.

pub mod catalog;
pub mod cgroup;
pub mod facts;
pub mod hierarchy;
pub mod identity;
pub mod inventory;
mod meant;
pub mod posture;
pub mod processes;
pub mod procfs;
mod resolve;
pub mod watch;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

pub use meant::meant;

use self::posture::Posture;
use crate::digest::Digest;

/// A container as the agent knows it. Replaced as a whole when something of it changes, so that
/// what was judged keeps what was known then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// containerd's namespace (`default`, `k8s.io`, `moby`).
    pub runtime_namespace: String,
    /// The container's id, unique within `runtime_namespace`.
    pub id: String,
    /// The name people gave it: CRI's container name, nerdctl's name, else empty.
    pub name: String,
    /// What it is for.
    pub kind: ContainerKind,
    /// The pod it is in, where CRI says so.
    pub pod: Option<Pod>,
    /// Name of its runtime (`io.containerd.runc.v2`).
    pub runtime: String,
    /// When it was created, by containerd's clock, in nanoseconds since 1970.
    pub created_unix_ns: i128,
    /// The image reference it was created with; may have been moved since.
    pub image_reference: Option<String>,
    /// Name of the snapshotter, and of the container's snapshot in it; empty for `--rootfs`.
    pub snapshotter: String,
    /// See `snapshotter`.
    pub snapshot_key: String,
    /// Which image it was created from, and how that is known.
    pub identity: Identity,
    /// Why the image that its reference stands for could not be read, where that left the identity
    /// open.
    pub image_problem: Option<ImageProblem>,
    /// With how much privilege it is started, where its spec says so.
    pub posture: Option<Arc<Posture>>,
    /// What is known once its task exists.
    pub task: Option<Task>,
}

impl Container {
    /// Chain ID of the layers that its files are compared with.
    pub fn chain_id(&self) -> Option<Digest> {
        match self.identity.contents_of() {
            Some(image) => Some(image.chain_id),
            None => Some(self.unread_layers()?.chain_id),
        }
    }

    /// Whether it was created by a reference that names a digest, which cannot point elsewhere.
    pub fn is_digest_pinned(&self) -> bool {
        let reference = self.image_reference.as_deref();
        reference.is_some_and(|reference| reference.contains('@'))
    }

    /// The layers of its snapshot, if nothing more is known of its image.
    pub fn unread_layers(&self) -> Option<SnapshotLayers> {
        self.image_problem.as_ref()?.layers
    }

    /// Whether this kernel sees what the container executes. Runtimes that run it in a virtual
    /// machine (Kata) or under a kernel of their own (gVisor) hide that.
    pub fn is_visible(&self) -> bool {
        let runtime = self.runtime.to_ascii_lowercase();
        !["kata", "runsc", "gvisor", "firecracker"]
            .iter()
            .any(|name| runtime.contains(name))
    }
}

/// An image that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageProblem {
    /// Which image, and why.
    pub reason: String,
    /// The layers of the container's snapshot, if its name tells.
    pub layers: Option<SnapshotLayers>,
}

/// What the name of a snapshot tells of the layers below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SnapshotLayers {
    /// Their chain ID.
    pub chain_id: Digest,
    /// A snapshot with shifted owners lies on top of them.
    pub is_remapped: bool,
}

/// What a container is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerKind {
    /// Runs a workload.
    Container,
    /// Holds a pod's namespaces (the pause container).
    Sandbox,
}

/// The pod of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// Pod uid.
    pub uid: String,
    /// What people labelled it with; empty until its sandbox is known.
    pub labels: Arc<BTreeMap<String, String>>,
}

/// A container's task: its init process and what was read of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Process id of init in the host's pid namespace.
    pub pid: u32,
    /// Inode number of its mount namespace; `None` if it was gone before it could be read.
    pub mount_namespace: Option<u32>,
    /// Kernel device number (`major << 20 | minor`) of its root filesystem, likewise.
    pub root_device: Option<u32>,
    /// Where its root lies in that filesystem: a directory of a larger one, where a snapshotter makes
    /// no filesystem of its own; else empty.
    pub root_path: Vec<u8>,
    /// Where the runtime mounted its root filesystem on the host.
    pub rootfs: Option<PathBuf>,
    /// Inode numbers of sensitive files in its root as they were when it was first seen: what is
    /// linked or renamed stays the same file.
    pub named: BTreeMap<u64, Vec<u8>>,
}

impl Task {
    /// Where a file lies in its root, from the file's filesystem and the path there; `None` of one that
    /// lies elsewhere.
    pub fn path_in_root<'a>(&self, device: u32, path: &'a [u8]) -> Option<&'a [u8]> {
        if self.root_device != Some(device) {
            return None;
        }
        let below = path.strip_prefix(self.root_path.as_slice())?;
        (self.root_path.is_empty() || below.starts_with(b"/")).then_some(below)
    }
}

/// An image as a container can have been created from it. Two that differ only in their config
/// (entrypoint, user) share a chain ID.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageId {
    /// Digest of the manifest of this platform.
    pub manifest: Digest,
    /// Digest of the image config.
    pub config: Digest,
    /// Chain ID of its layers: what a snapshot's name proves.
    pub chain_id: Digest,
    /// Digest of the index by which the manifest was found; always a claim.
    pub index: Option<Digest>,
}

/// Which image a container was created from, and how that is known (design, promise 1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The container's snapshot descends from the image's chain ID, and no other image known here
    /// accounts for config and spec as well.
    Proven(Arc<ImageId>),
    /// The snapshot descends from a chain ID that several images share. First those whose config
    /// accounts for the container's process as it stands.
    Ambiguous(Vec<Arc<ImageId>>),
    /// Only a name says so.
    Claimed(Arc<ImageId>),
    /// Nothing accounts for it.
    None,
    /// Not yet found out. Never for long: each container is graded once containerd has answered.
    Pending,
}

impl Identity {
    /// The grade's name in alerts and in the API.
    pub fn grade(&self) -> &'static str {
        match self {
            Self::Proven(_) => "proven",
            Self::Ambiguous(_) => "ambiguous",
            Self::Claimed(_) => "claimed",
            Self::None => "none",
            Self::Pending => "pending",
        }
    }

    /// Every image that it may be.
    pub fn images(&self) -> &[Arc<ImageId>] {
        match self {
            Self::Proven(image) | Self::Claimed(image) => std::slice::from_ref(image),
            Self::Ambiguous(candidates) => candidates,
            Self::None | Self::Pending => &[],
        }
    }

    /// The image to compare contents with. Candidates of an ambiguous identity share their layers,
    /// so that any of them serves.
    pub fn contents_of(&self) -> Option<&Arc<ImageId>> {
        match self {
            Self::Proven(image) | Self::Claimed(image) => Some(image),
            Self::Ambiguous(candidates) => candidates.first(),
            Self::None | Self::Pending => None,
        }
    }
}

/// A reference without tag and digest. A colon before a slash is that of a port.
pub fn repository(reference: &str) -> &str {
    let name = reference.split('@').next().unwrap_or(reference);
    match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_lies_in_the_root_by_its_filesystem_and_its_path_there() {
        let check = |root_path: &str, device: u32, path: &str, expect: Option<&str>| {
            let task = Task {
                pid: 1,
                mount_namespace: None,
                root_device: Some(7),
                root_path: root_path.as_bytes().to_vec(),
                rootfs: None,
                named: BTreeMap::new(),
            };
            assert_eq!(
                task.path_in_root(device, path.as_bytes()),
                expect.map(str::as_bytes),
                "{path} in {root_path}"
            );
        };
        check("", 7, "/bin/sh", Some("/bin/sh"));
        check("", 8, "/bin/sh", None);
        check("/snapshots/5", 7, "/snapshots/5/bin/sh", Some("/bin/sh"));
        check("/snapshots/5", 7, "/snapshots/55/bin/sh", None);
        check("/snapshots/5", 7, "/data/sh", None);
        check("/snapshots/5", 8, "/snapshots/5/bin/sh", None);
    }

    #[test]
    fn a_repository_is_a_reference_without_tag_and_digest() {
        let check = |reference: &str, expect: &str| assert_eq!(repository(reference), expect);
        check("docker.io/library/nginx:1.27", "docker.io/library/nginx");
        check("localhost:5000/web:2@sha256:ab", "localhost:5000/web");
        check("localhost:5000/web", "localhost:5000/web");
        check("web@sha256:ab", "web");
        check("", "");
    }
}
