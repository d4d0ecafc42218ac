//! The containers of this node and the cgroups that were seen, as a state machine: what containerd
//! said goes in as [`Change`]s, what has to be done comes out as [`Effect`]s, and each event's
//! cgroup is placed. No I/O and no clock.
//!
//! A cgroup is a container's, the host's or unknown (design, promise 9). It is called the host's
//! only by a complete listing that began after the cgroup had been seen: a runtime makes a
//! container's cgroup after containerd has stored the container, so that a container the cgroup
//! could be of is in that listing, or was told before it and is in the graveyard. A container that
//! came and went while nobody told is in neither; so events from before the first listing of a
//! connection are not called the host's by it and stay unknown.

mod change;
mod graveyard;
mod reconcile;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    num::NonZeroUsize,
    sync::Arc,
};

use lru::LruCache;

pub use self::change::{
    Change, Counters, Effect, Key, ListingId, ListingRequest, Place, PlacedBy, TaskFacts,
};
use self::graveyard::Graveyard;
use super::{
    Container, ContainerKind, Identity, ImageProblem,
    cgroup::{self, Found, Paths},
    facts::Facts,
};
use crate::{containerd::LISTED_MAX, sensor::event::Cgroup};

/// Cgroups that are remembered, as many as the kernel side remembers. The least recently seen one
/// is forgotten on both sides, and is unknown when it is seen again.
pub const CGROUPS_MAX: usize = monitor_common::CGROUPS_MAX as usize;
/// Containers that are known. More are refused and counted, and from then on no cgroup is called
/// the host's.
pub const CONTAINERS_MAX: usize = LISTED_MAX;
/// Tasks that wait for their container to become known; the oldest is dropped and counted.
pub const WAITING_TASKS_MAX: usize = 1024;

#[derive(Debug)]
struct Entry {
    key: Key,
    container: Arc<Container>,
    created_unix_ns: i128,
    // By its spec, from the root the runtime saw.
    cgroup_path: Option<Vec<u8>>,
    // By its task, from the root this program sees, if that is another.
    task_cgroup_path: Option<Vec<u8>>,
    running: bool,
    // The listing begun last when it was added, and when its task was last heard of.
    added: ListingId,
    task_heard: ListingId,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Container(u64),
    // Of earlier events nobody can say.
    Host { since_boot_ns: u64 },
    // The listing that had begun last when it was first seen.
    Unknown(ListingId),
}

#[derive(Debug)]
struct CgroupEntry {
    path: Vec<u8>,
    state: State,
}

#[derive(Debug)]
struct WaitingTask {
    facts: TaskFacts,
    heard: ListingId,
    exited_boot_ns: Option<u64>,
}

/// Something that ended while a listing was under way, which may still have it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Ended {
    Container(Key),
    Task(Key, u32),
}

/// The containers of this node and the cgroups that were seen.
#[derive(Debug)]
pub struct Inventory {
    host_mount_namespace: u32,
    // Each creation of a container has a serial number of its own, because ids come again.
    live: HashMap<u64, Entry>,
    serials: HashMap<Key, u64>,
    next_serial: u64,
    paths: Paths,
    mount_namespaces: HashMap<u32, u64>,
    waiting_tasks: LruCache<Key, WaitingTask>,
    graveyard: Graveyard,
    cgroups: LruCache<u64, CgroupEntry>,
    connected: bool,
    listing: ListingId,
    under_way: bool,
    listing_wanted: bool,
    // Later ones than the first of a connection are told by events.
    tasks_wanted: bool,
    told_since_boot_ns: u64,
    ended: HashSet<Ended>,
    pending: Vec<Effect>,
    counters: Counters,
}

impl Inventory {
    /// An inventory that knows nothing. Tasks in `host_mount_namespace` are never placed by mount
    /// namespace.
    pub fn new(host_mount_namespace: u32) -> Self {
        let capacity = |size| NonZeroUsize::new(size).unwrap_or(NonZeroUsize::MIN);
        Self {
            host_mount_namespace,
            live: HashMap::new(),
            serials: HashMap::new(),
            next_serial: 1,
            paths: Paths::default(),
            mount_namespaces: HashMap::new(),
            waiting_tasks: LruCache::new(capacity(WAITING_TASKS_MAX)),
            graveyard: Graveyard::default(),
            cgroups: LruCache::new(capacity(CGROUPS_MAX)),
            connected: false,
            listing: ListingId::default(),
            under_way: false,
            listing_wanted: false,
            tasks_wanted: false,
            told_since_boot_ns: u64::MAX,
            ended: HashSet::new(),
            pending: Vec::new(),
            counters: Counters::default(),
        }
    }

    /// The containers there are, and whether the task of each is running.
    pub fn containers(&self) -> impl Iterator<Item = (&Arc<Container>, bool)> {
        self.live
            .values()
            .map(|entry| (&entry.container, entry.running))
    }

    /// Since when every container is known, however short it lives, in nanoseconds since boot: the
    /// first listing of this connection, `u64::MAX` before there was one. Earlier events of cgroups
    /// that no container claims stay [`Place::Unknown`].
    pub fn told_since_boot_ns(&self) -> u64 {
        self.told_since_boot_ns
    }

    /// What happened at the bounds.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Begins a listing if one is wanted: after [`Change::Connected`], and when cgroups are unknown
    /// that no listing under way can settle. The caller hands it to [`super::watch`] at once and
    /// calls this after each [`Self::apply`] and each [`Place::Unknown`]. At most one is under way.
    pub fn begin_listing(&mut self) -> Option<ListingRequest> {
        if !self.connected || self.under_way || !self.listing_wanted {
            return None;
        }
        self.listing.0 += 1;
        self.under_way = true;
        self.listing_wanted = false;
        Some(ListingRequest {
            id: self.listing,
            with_tasks: self.tasks_wanted,
        })
    }

    /// Says where an event of `cgroup` belongs, whose task was in `mount_namespace` at
    /// `time_boot_ns`. Effects of it (a cgroup forgotten at the bound) come with the next
    /// [`Self::apply`] or [`Self::take_effects`].
    pub fn place(&mut self, cgroup: &Cgroup, mount_namespace: u32, time_boot_ns: u64) -> Place {
        let known = self.cgroups.get(&cgroup.id).map(|entry| entry.state);
        let state = match known {
            Some(State::Container(serial)) if self.container(serial).is_some() => {
                State::Container(serial)
            }
            Some(State::Host { since_boot_ns }) => State::Host { since_boot_ns },
            Some(unknown @ State::Unknown(_)) => self.by_path(&cgroup.path).unwrap_or(unknown),
            // Of a container so long gone that nothing is left of it, or not seen before.
            Some(State::Container(_)) | None => self
                .by_path(&cgroup.path)
                .unwrap_or(State::Unknown(self.listing)),
        };
        if known != Some(state) {
            self.remember(cgroup, state);
        }
        let (serial, by) = match state {
            State::Container(serial) => (Some(serial), PlacedBy::Cgroup),
            State::Host { .. } | State::Unknown(_) => {
                let serial = self.in_namespace(mount_namespace, time_boot_ns);
                (serial, PlacedBy::MountNamespace)
            }
        };
        if let Some(container) = serial.and_then(|serial| self.container(serial)) {
            let container = container.clone();
            return Place::Container { container, by };
        }
        match state {
            State::Host { since_boot_ns } if time_boot_ns >= since_boot_ns => Place::Host,
            _ => Place::Unknown,
        }
    }

    /// The container whose cgroup is at or above `path`, one that is there before one that is gone.
    fn by_path(&self, path: &[u8]) -> Option<State> {
        match self.paths.find(path) {
            Found::Container(serial) => Some(State::Container(serial)),
            Found::Unclear => None,
            Found::Nothing => self.graveyard.find(path).map(State::Container),
        }
    }

    fn remember(&mut self, cgroup: &Cgroup, state: State) {
        self.listing_wanted |= matches!(state, State::Unknown(_));
        let entry = CgroupEntry {
            path: cgroup.path.clone(),
            state,
        };
        if let Some((id, _)) = self.cgroups.push(cgroup.id, entry)
            && id != cgroup.id
        {
            self.counters.cgroups_forgotten += 1;
            self.pending.push(Effect::ForgetCgroup(id));
        }
    }

    fn container(&self, serial: u64) -> Option<&Arc<Container>> {
        self.live
            .get(&serial)
            .map(|entry| &entry.container)
            .or_else(|| self.graveyard.container(serial))
    }

    /// The container whose mount namespace this was at `time_boot_ns`.
    pub fn of_namespace(&self, mount_namespace: u32, time_boot_ns: u64) -> Option<&Arc<Container>> {
        self.container(self.in_namespace(mount_namespace, time_boot_ns)?)
    }

    /// The container of a task of which no more is known than its cgroup's id and its mount
    /// namespace. `path` is asked for the cgroup's path where the id alone does not tell.
    pub fn of_task(
        &self,
        cgroup_id: u64,
        path: impl FnOnce() -> Option<Vec<u8>>,
        mount_namespace: u32,
        time_boot_ns: u64,
    ) -> Option<&Arc<Container>> {
        let known = self.cgroups.peek(&cgroup_id).map(|entry| entry.state);
        let state = known
            .filter(|state| matches!(state, State::Container(_)))
            .or_else(|| self.by_path(&path()?));
        let serial = match state {
            Some(State::Container(serial)) => Some(serial),
            _ => self.in_namespace(mount_namespace, time_boot_ns),
        };
        self.container(serial?)
    }

    fn in_namespace(&self, mount_namespace: u32, time_boot_ns: u64) -> Option<u64> {
        self.mount_namespaces
            .get(&mount_namespace)
            .copied()
            .or_else(|| self.graveyard.in_namespace(mount_namespace, time_boot_ns))
    }

    /// Effects that wait.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.pending)
    }

    /// Takes in what containerd said.
    pub fn apply(&mut self, change: Change) -> Vec<Effect> {
        match change {
            Change::Connected => {
                self.connected = true;
                self.listing_wanted = true;
                self.tasks_wanted = true;
            }
            Change::Disconnected => {
                self.connected = false;
                self.under_way = false;
                self.told_since_boot_ns = u64::MAX;
                self.ended.clear();
            }
            Change::Created(facts) => self.add(*facts),
            Change::Identified {
                key,
                created_unix_ns,
                identity,
                image_problem,
            } => self.identify(&key, created_unix_ns, identity, image_problem),
            Change::TaskCreated { key, facts } => self.start_task(key, facts, self.listing),
            Change::TaskExited {
                key,
                pid,
                time_boot_ns,
            } => self.end_task(key, pid, time_boot_ns),
            Change::Deleted { key, time_boot_ns } => {
                if self.under_way && self.ended.len() < CONTAINERS_MAX {
                    self.ended.insert(Ended::Container(key.clone()));
                }
                self.waiting_tasks.pop(&key);
                if let Some(serial) = self.serials.get(&key) {
                    self.remove(*serial, time_boot_ns);
                }
            }
            Change::Listed {
                id,
                containers,
                tasks,
                time_boot_ns,
            } => self.reconcile(id, containers, tasks, time_boot_ns),
        }
        self.take_effects()
    }

    /// Has the containers of a pod know its labels, which its sandbox has.
    fn share_labels(&mut self, container: &mut Container) {
        let is_sandbox = container.kind == ContainerKind::Sandbox;
        let Some(pod) = &mut container.pod else {
            return;
        };
        let others = self.live.values_mut().map(|entry| &mut entry.container);
        let mut others = others.filter(|other| {
            let own = other.pod.as_ref().map(|own| &own.uid);
            own == Some(&pod.uid) && (other.kind == ContainerKind::Sandbox) != is_sandbox
        });
        if !is_sandbox {
            let labels = others.next().and_then(|sandbox| sandbox.pod.as_ref());
            pod.labels = labels.map(|it| Arc::clone(&it.labels)).unwrap_or_default();
            return;
        }
        for other in others {
            if let Some(own) = &mut Arc::make_mut(other).pod {
                own.labels = Arc::clone(&pod.labels);
            }
        }
    }

    fn add(&mut self, facts: Facts) {
        let key = Key::of(&facts.container);
        if let Some(serial) = self.serials.get(&key).copied()
            && let Some(known) = self.live.get(&serial)
        {
            if facts.created_unix_ns <= known.created_unix_ns {
                return;
            }
            // Deleted and created again while nobody told.
            self.remove(serial, 0);
        }
        if self.live.len() >= CONTAINERS_MAX {
            self.counters.containers_refused += 1;
            return;
        }
        let serial = self.next_serial;
        self.next_serial += 1;
        let mut container = facts.container;
        self.share_labels(&mut container);
        let container = Arc::new(container);
        if let Some(path) = &facts.cgroup_path {
            self.paths.insert(path, serial);
        }
        self.serials.insert(key.clone(), serial);
        self.live.insert(
            serial,
            Entry {
                key: key.clone(),
                container: container.clone(),
                created_unix_ns: facts.created_unix_ns,
                cgroup_path: facts.cgroup_path.clone(),
                task_cgroup_path: None,
                running: false,
                added: self.listing,
                task_heard: self.listing,
            },
        );
        self.pending.push(Effect::ContainerAdded(container));
        if let Some(path) = facts.cgroup_path {
            self.forget_below(&path);
        }
        if let Some(waiting) = self.waiting_tasks.pop(&key) {
            let pid = waiting.facts.task.pid;
            self.start_task(key.clone(), waiting.facts, waiting.heard);
            if let Some(time_boot_ns) = waiting.exited_boot_ns {
                self.end_task(key, pid, time_boot_ns);
            }
        }
    }

    /// A container's cgroup is at `path`: what was thought of cgroups there no longer holds. Those
    /// of containers that are gone stay theirs.
    fn forget_below(&mut self, path: &[u8]) {
        let stale: Vec<u64> = self
            .cgroups
            .iter()
            .filter(|(_, entry)| match entry.state {
                State::Host { .. } => cgroup::may_be_below(&entry.path, path),
                // Only if the new one is nearer.
                State::Container(serial) => {
                    self.live.contains_key(&serial)
                        && cgroup::may_be_below(&entry.path, path)
                        && self.by_path(&entry.path) != Some(entry.state)
                }
                State::Unknown(_) => false,
            })
            .map(|(id, _)| *id)
            .collect();
        for id in stale {
            self.cgroups.pop(&id);
            self.pending.push(Effect::ForgetCgroup(id));
        }
    }

    fn identify(
        &mut self,
        key: &Key,
        created_unix_ns: i128,
        identity: Identity,
        image_problem: Option<ImageProblem>,
    ) {
        let live = self
            .serials
            .get(key)
            .and_then(|serial| self.live.get_mut(serial))
            .filter(|entry| entry.created_unix_ns == created_unix_ns)
            .map(|entry| &mut entry.container);
        let container = match live {
            Some(container) => Some(container),
            None => self.graveyard.of_creation(key, created_unix_ns),
        };
        if let Some(container) = container {
            let changed = Arc::make_mut(container);
            changed.identity = identity;
            changed.image_problem = image_problem;
            let container = container.clone();
            self.pending.push(Effect::ContainerIdentified(container));
        }
    }

    /// A task exists, heard of when listing `heard` had begun last.
    fn start_task(&mut self, key: Key, facts: TaskFacts, heard: ListingId) {
        let entry = self.serials.get(&key).and_then(|serial| {
            let entry = self.live.get_mut(serial)?;
            Some((*serial, entry))
        });
        let Some((serial, entry)) = entry else {
            let waiting = WaitingTask {
                facts,
                heard,
                exited_boot_ns: None,
            };
            if let Some((dropped, _)) = self.waiting_tasks.push(key.clone(), waiting)
                && dropped != key
            {
                self.counters.tasks_dropped += 1;
            }
            return;
        };
        let before = entry.container.task.as_ref();
        if entry.running && before.is_some_and(|task| task.pid == facts.task.pid) {
            return;
        }
        if entry.running {
            // Its exit was not told.
            self.stop(serial, 0);
        }
        let Some(entry) = self.live.get_mut(&serial) else {
            return;
        };
        entry.running = true;
        entry.task_heard = heard;
        let mount_namespace = facts.task.mount_namespace;
        Arc::make_mut(&mut entry.container).task = Some(facts.task);
        let path = facts.cgroup_path.and_then(|seen| {
            cgroup::path_of_task(entry.cgroup_path.as_deref(), &entry.key.id, &seen)
        });
        let container = entry.container.clone();
        if let Some(path) = path.filter(|path| Some(path) != entry.cgroup_path.as_ref()) {
            let before = entry.task_cgroup_path.replace(path.clone());
            if let Some(before) = before {
                self.paths.remove(&before, serial);
            }
            self.paths.insert(&path, serial);
            self.forget_below(&path);
        }
        if let Some(inode) = mount_namespace
            && inode != self.host_mount_namespace
        {
            self.mount_namespaces.insert(inode, serial);
        }
        self.pending.push(Effect::TaskStarted(container));
    }

    fn end_task(&mut self, key: Key, pid: u32, time_boot_ns: u64) {
        if self.under_way && self.ended.len() < CONTAINERS_MAX {
            self.ended.insert(Ended::Task(key.clone(), pid));
        }
        if let Some(waiting) = self.waiting_tasks.get_mut(&key)
            && waiting.facts.task.pid == pid
        {
            waiting.exited_boot_ns = Some(time_boot_ns);
        }
        if let Some(serial) = self.serials.get(&key)
            && let Some(entry) = self.live.get(serial)
            && entry.running
            && entry
                .container
                .task
                .as_ref()
                .is_some_and(|task| task.pid == pid)
        {
            self.stop(*serial, time_boot_ns);
        }
    }

    /// The task of a container is gone since `time_boot_ns`.
    fn stop(&mut self, serial: u64, time_boot_ns: u64) {
        let listing = self.listing;
        let Some(entry) = self.live.get_mut(&serial) else {
            return;
        };
        if !entry.running {
            return;
        }
        entry.running = false;
        entry.task_heard = listing;
        let task = entry.container.task.as_ref();
        if let Some(inode) = task.and_then(|task| task.mount_namespace)
            && self.mount_namespaces.get(&inode) == Some(&serial)
        {
            self.mount_namespaces.remove(&inode);
            self.graveyard.leave_namespace(inode, serial, time_boot_ns);
        }
        let container = entry.container.clone();
        self.pending.push(Effect::TaskExited(container));
    }

    fn remove(&mut self, serial: u64, time_boot_ns: u64) {
        self.stop(serial, time_boot_ns);
        let Some(entry) = self.live.remove(&serial) else {
            return;
        };
        if self.serials.get(&entry.key) == Some(&serial) {
            self.serials.remove(&entry.key);
        }
        let paths: Vec<Vec<u8>> = [entry.cgroup_path, entry.task_cgroup_path]
            .into_iter()
            .flatten()
            .collect();
        for path in &paths {
            self.paths.remove(path, serial);
        }
        let container = entry.container;
        self.pending
            .push(Effect::ContainerRemoved(container.clone()));
        self.graveyard
            .bury(serial, entry.key, entry.created_unix_ns, container, paths);
    }
}
