//! What goes into the inventory and what comes out.

use std::sync::Arc;

use crate::containers::{Container, Identity, ImageProblem, Task, facts::Facts};

/// Names a container in containerd.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// containerd's namespace.
    pub namespace: String,
    /// The container's id.
    pub id: String,
}

impl Key {
    /// The key of a container.
    pub fn of(container: &Container) -> Self {
        Self {
            namespace: container.runtime_namespace.clone(),
            id: container.id.clone(),
        }
    }
}

/// Names a listing. Of two, the greater one began later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListingId(pub(super) u64);

/// A listing that is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListingRequest {
    /// Names it.
    pub id: ListingId,
    /// Tasks are to be listed as well.
    pub with_tasks: bool,
}

/// A task and where it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskFacts {
    /// The task.
    pub task: Task,
    /// Cgroup of its init process from the root this program sees, if it could be read.
    pub cgroup_path: Option<Vec<u8>>,
}

/// What containerd said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// From now on every event is told.
    Connected,
    /// Events are no longer told; what happens is found by a listing after the next `Connected`.
    Disconnected,
    /// A container was created.
    Created(Box<Facts>),
    /// A container's identity was found out.
    Identified {
        /// Which container.
        key: Key,
        /// Of this creation.
        created_unix_ns: i128,
        /// Its identity.
        identity: Identity,
        /// See [`Container::image_problem`].
        image_problem: Option<ImageProblem>,
    },
    /// A container's init process exists. May come before the container is created here.
    TaskCreated {
        /// Which container.
        key: Key,
        /// The task.
        facts: TaskFacts,
    },
    /// A container's init process exited.
    TaskExited {
        /// Which container.
        key: Key,
        /// Its init process.
        pid: u32,
        /// When it was heard, in nanoseconds since boot.
        time_boot_ns: u64,
    },
    /// A container was deleted.
    Deleted {
        /// Which container.
        key: Key,
        /// When it was heard, in nanoseconds since boot.
        time_boot_ns: u64,
    },
    /// A complete listing of all namespaces. What was told by events before it was complete comes
    /// before it.
    Listed {
        /// As it was asked for.
        id: ListingId,
        /// Every container there was.
        containers: Vec<Facts>,
        /// Every task there was, by container, where they were asked for as well.
        tasks: Option<Vec<(Key, TaskFacts)>>,
        /// When it was complete, in nanoseconds since boot.
        time_boot_ns: u64,
    },
}

/// What has to be done after a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A container became known.
    ContainerAdded(Arc<Container>),
    /// Its identity became known.
    ContainerIdentified(Arc<Container>),
    /// Its init process exists; nothing of the container has run yet if it was just created.
    TaskStarted(Arc<Container>),
    /// Its init process is gone. The container still says which task it was.
    TaskExited(Arc<Container>),
    /// A container is gone. Events on the way still find it.
    ContainerRemoved(Arc<Container>),
    /// What the kernel side remembers of this cgroup no longer holds.
    ForgetCgroup(u64),
}

/// Where an event belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// To a container.
    Container {
        /// Which one.
        container: Arc<Container>,
        /// By what it was recognised.
        by: PlacedBy,
    },
    /// To no container.
    Host,
    /// Nobody knows yet: ask again after the next [`Change::Listed`].
    Unknown,
}

/// What says that an event is a container's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlacedBy {
    /// Its cgroup is the container's or below it.
    Cgroup,
    /// Its cgroup is not, but the task is in the container's mount namespace.
    MountNamespace,
}

/// What happened at the bounds, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Cgroups forgotten at [`super::CGROUPS_MAX`].
    pub cgroups_forgotten: u64,
    /// Containers refused at [`super::CONTAINERS_MAX`].
    pub containers_refused: u64,
    /// Tasks dropped at [`super::WAITING_TASKS_MAX`].
    pub tasks_dropped: u64,
}
