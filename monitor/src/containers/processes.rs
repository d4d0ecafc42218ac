//! The processes of containers: what each executes, who put it in, and what its ancestors execute.
//!
//! Events are taken note of when they come, before it is known whose they are, so that what is said
//! of a process is what it was then.

use std::{
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use lru::LruCache;
use monitor_common::file::{FILE_OVERLAY, FILE_UPPER};

use crate::{
    containers::Container,
    sensor::event::{Exec, Exit, Fork, Process, ProcessId},
};

/// Processes remembered; the one that was not asked for longest is forgotten, and what descends
/// from it has origin `unknown`.
const PROCESSES_MAX: NonZeroUsize = NonZeroUsize::new(16_384).expect("not zero");
/// Ended processes remembered, as ancestors; likewise.
const ENDED_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");
/// Ancestors told of one process.
const ANCESTORS_MAX: usize = 16;
/// `/proc` tells start times in this unit, so those of processes that ran already are cut to it.
const TICK_NS: u64 = 10_000_000;

/// How a process came into its container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// Descends from the container's init.
    Init,
    /// Put in from outside (`ctr task exec`, `kubectl exec`).
    Exec,
    /// Not known.
    Unknown,
}

/// What a process executes. Its children share it until they execute something themselves.
#[derive(Debug)]
pub struct Program {
    /// The executed file, as the process saw it.
    pub executable: Vec<u8>,
    /// Arguments.
    pub arguments: Vec<Vec<u8>>,
    /// Arguments were cut.
    pub arguments_truncated: bool,
    /// The script that it was executed for.
    pub script: Option<Vec<u8>>,
    /// Inode number of the mount namespace it was executed in.
    pub mount_namespace: u32,
    is_of_image: AtomicBool,
    is_unexpected: AtomicBool,
}

impl Program {
    fn of(exec: &Exec) -> Self {
        let (process, file) = (&exec.used.process, &exec.used.file);
        let lower = file.facts.flags & (FILE_OVERLAY | FILE_UPPER) == FILE_OVERLAY;
        Self {
            executable: file.path.clone(),
            arguments: exec.arguments.clone(),
            arguments_truncated: exec.arguments_truncated,
            script: exec.script.clone(),
            mount_namespace: process.mount_namespace,
            is_of_image: AtomicBool::new(lower && file.facts.device == process.root_device),
            is_unexpected: AtomicBool::new(false),
        }
    }

    /// The name of its file.
    pub fn name(&self) -> &[u8] {
        let path = &self.executable;
        path.rsplit(|byte| *byte == b'/').next().unwrap_or(path)
    }

    /// Whether its file is the image's, as far as that is known by now.
    pub fn is_of_image(&self) -> bool {
        self.is_of_image.load(Ordering::Relaxed)
    }

    /// Whether the profile of the image does not have it.
    pub fn is_unexpected(&self) -> bool {
        self.is_unexpected.load(Ordering::Relaxed)
    }

    /// The profile of the image does not have it.
    pub fn set_unexpected(&self) {
        self.is_unexpected.store(true, Ordering::Relaxed);
    }

    /// Its file was found to be the image's, or not.
    pub fn judged(&self, is_of_image: bool) {
        self.is_of_image.store(is_of_image, Ordering::Relaxed);
    }
}

/// What was known of a process when it did something.
#[derive(Clone, Debug)]
pub struct Known {
    /// What it executed, if that was seen.
    pub program: Option<Arc<Program>>,
    /// Executables of its ancestors, nearest first, up to the first that executed inside.
    pub ancestors: Vec<Vec<u8>>,
    /// What the first of its line that came from outside executed first in the container, if that was
    /// seen: of `kubectl exec` the command.
    pub command: Option<Arc<Program>>,
    entered: Option<ProcessId>,
    container: Option<Arc<Container>>,
}

impl Known {
    /// How a process of `container` came into it.
    pub fn origin(&self, process: &Process, container: &Container) -> Origin {
        match (&container.task, self.entered) {
            (Some(task), _) if task.pid == process.pid => Origin::Init,
            (Some(task), Some(entered)) if task.pid == entered.pid => Origin::Init,
            (Some(_), Some(_)) => Origin::Exec,
            (_, None) | (None, _) => Origin::Unknown,
        }
    }
}

#[derive(Clone, Debug)]
struct Entry {
    id: ProcessId,
    parent: Option<ProcessId>,
    program: Option<Arc<Program>>,
    /// The first of its line that came from outside.
    entered: Option<ProcessId>,
    /// What that executed first in another mount namespace than the host's.
    command: Option<Arc<Program>>,
    container: Option<Arc<Container>>,
}

/// The processes of containers, by pid.
#[derive(Debug)]
pub struct Processes {
    running: LruCache<u32, Entry>,
    ended: LruCache<ProcessId, Entry>,
}

impl Default for Processes {
    fn default() -> Self {
        Self {
            running: LruCache::new(PROCESSES_MAX),
            ended: LruCache::new(ENDED_MAX),
        }
    }
}

impl Processes {
    /// Takes note of an exec, and says what is then known of the process.
    pub fn executed(&mut self, exec: &Exec, host_mount_namespace: u32) -> Known {
        let process = &exec.used.process;
        let mut entry = self.entry_of(process, host_mount_namespace);
        let program = Arc::new(Program::of(exec));
        // Before, it is the runtime that executes itself.
        let is_inside = process.mount_namespace != host_mount_namespace;
        // What is seen of the runtime before its child is in the container is of no line of the
        // container's.
        let from_outside = process.parent_mount_namespace == host_mount_namespace;
        if is_inside && from_outside && entry.command.is_none() {
            entry.entered = Some(entry.id);
        }
        // Of who comes from nowhere it is not known whether it was put in.
        let is_first = match entry.entered {
            Some(entered) => entered == entry.id,
            None => entry.parent.is_none(),
        };
        if is_first && entry.command.is_none() && is_inside {
            entry.command = Some(Arc::clone(&program));
        }
        entry.program = Some(program);
        let known = self.known(&entry, host_mount_namespace);
        self.put(entry);
        known
    }

    /// What is known of a process that does something else.
    pub fn acted(&mut self, process: &Process, host_mount_namespace: u32) -> Known {
        let entry = self.entry_of(process, host_mount_namespace);
        self.known(&entry, host_mount_namespace)
    }

    /// Takes note of a child, which executes what its parent does.
    pub fn forked(&mut self, fork: Fork) {
        let Some(parent) = self.running(fork.parent) else {
            return;
        };
        let entry = Entry {
            id: fork.child,
            parent: Some(parent.id),
            ..parent.clone()
        };
        self.put(entry);
    }

    /// Takes note of an end.
    pub fn exited(&mut self, exit: Exit) {
        if self.running(exit.process).is_some()
            && let Some(entry) = self.running.pop(&exit.process.pid)
        {
            self.ended.put(entry.id, entry);
        }
    }

    /// Takes note of whose a process is.
    pub fn placed(&mut self, process: &Process, container: &Arc<Container>) {
        if let Some(entry) = self.running.get_mut(&process.pid)
            && is_same(entry.id, process.id())
        {
            entry.container = Some(Arc::clone(container));
        }
    }

    /// Makes room: the process is the host's.
    pub fn forget(&mut self, process: &Process) {
        if self.running(process.id()).is_some() {
            self.running.pop(&process.pid);
        }
    }

    /// The container in which a process, when this was `known` of it, or one of its ancestors had
    /// executed something. It may have ended since, and its line with it.
    pub fn container_of(&self, process: &Process, known: &Known) -> Option<Arc<Container>> {
        known.container.clone().or_else(|| {
            let id = process.id();
            self.container_in_line(self.find(id).or_else(|| self.parent_by_pid(process)))
        })
    }

    fn container_in_line<'a>(&'a self, mut entry: Option<&'a Entry>) -> Option<Arc<Container>> {
        for _ in 0..ANCESTORS_MAX {
            if let Some(container) = &entry?.container {
                return Some(Arc::clone(container));
            }
            entry = entry?.parent.and_then(|parent| self.find(parent));
        }
        None
    }

    /// The entry of a process as far as it is known, by itself or by its parent.
    fn entry_of(&mut self, process: &Process, host_mount_namespace: u32) -> Entry {
        let id = process.id();
        if self.running(id).is_some()
            && let Some(entry) = self.running.get(&process.pid)
        {
            return entry.clone();
        }
        let parent = self.parent_by_pid(process);
        let from_outside = process.parent_mount_namespace == host_mount_namespace;
        Entry {
            id,
            parent: parent.map(|parent| parent.id),
            program: parent.and_then(|parent| parent.program.clone()),
            entered: parent
                .and_then(|parent| parent.entered)
                .or_else(|| from_outside.then_some(id)),
            command: parent.and_then(|parent| parent.command.clone()),
            container: None,
        }
    }

    fn put(&mut self, entry: Entry) {
        let id = entry.id;
        if let Some(before) = self.running.put(id.pid, entry)
            && before.id != id
        {
            // Its end was not seen.
            self.ended.put(before.id, before);
        }
    }

    fn known(&self, entry: &Entry, host_mount_namespace: u32) -> Known {
        let mut ancestors: Vec<&Program> = Vec::new();
        let mut next = entry.parent;
        for _ in 0..ANCESTORS_MAX {
            let Some(parent) = next.and_then(|parent| self.find(parent)) else {
                break;
            };
            ancestors.extend(parent.program.as_deref());
            next = parent.parent;
        }
        // The runtime is seen by chance only.
        while ancestors
            .pop_if(|last| last.mount_namespace == host_mount_namespace)
            .is_some()
        {}
        let ancestors = ancestors.into_iter();
        Known {
            program: entry.program.clone(),
            ancestors: ancestors
                .map(|program| program.executable.clone())
                .collect(),
            command: entry.command.clone(),
            entered: entry.entered,
            container: self.container_in_line(Some(entry)),
        }
    }

    fn running(&self, id: ProcessId) -> Option<&Entry> {
        self.running
            .peek(&id.pid)
            .filter(|entry| is_same(entry.id, id))
    }

    fn find(&self, id: ProcessId) -> Option<&Entry> {
        self.running(id).or_else(|| self.ended.peek(&id))
    }

    fn parent_by_pid(&self, process: &Process) -> Option<&Entry> {
        self.running.peek(&process.parent_pid).filter(|parent| {
            // A reused pid is younger than what it is said to have started.
            parent.id.pid != process.pid && can_precede(parent.id, process.id())
        })
    }
}

/// A time that `/proc` told; of those that hooks tell one in ten million looks so.
fn is_cut(start_boot_ns: u64) -> bool {
    start_boot_ns.is_multiple_of(TICK_NS)
}

fn is_same(one: ProcessId, other: ProcessId) -> bool {
    let (one, other, is_same_pid) = (one.start_boot_ns, other.start_boot_ns, one.pid == other.pid);
    let is_same_tick = (is_cut(one) || is_cut(other)) && one / TICK_NS == other / TICK_NS;
    is_same_pid && (one == other || is_same_tick)
}

fn can_precede(parent: ProcessId, child: ProcessId) -> bool {
    let child_ns = if is_cut(child.start_boot_ns) {
        child.start_boot_ns + TICK_NS
    } else {
        child.start_boot_ns
    };
    parent.start_boot_ns <= child_ns
}

#[cfg(test)]
pub(crate) mod tests;
