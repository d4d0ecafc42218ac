//! The processes of containers as far as execs tell of them: who put a process in, and what its
//! ancestors execute.

use std::{num::NonZeroUsize, sync::Arc};

use lru::LruCache;

use crate::{
    containers::Container,
    sensor::event::{Exec, Process},
};

/// Processes remembered; the one that was not asked for longest is forgotten, and what descends
/// from it has origin `unknown`.
const PROCESSES_MAX: NonZeroUsize = NonZeroUsize::new(16_384).expect("not zero");
/// Ancestors told of one process.
const ANCESTORS_MAX: usize = 16;

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

/// What is remembered of a process.
#[derive(Clone, Debug)]
struct Entry {
    process: Process,
    executable: Vec<u8>,
    origin: Origin,
    container: Arc<Container>,
}

/// The processes that executed something, by pid.
#[derive(Debug)]
pub struct Processes {
    by_pid: LruCache<u32, Entry>,
}

impl Default for Processes {
    fn default() -> Self {
        Self {
            by_pid: LruCache::new(PROCESSES_MAX),
        }
    }
}

impl Processes {
    /// Takes note of an exec; gives the process's origin and the executables of its ancestors,
    /// nearest first.
    pub fn observe(
        &mut self,
        exec: &Exec,
        container: &Arc<Container>,
        host_mount_namespace: u32,
    ) -> (Origin, Vec<Vec<u8>>) {
        let process = &exec.process;
        let before = self.same(process).map(|entry| entry.origin);
        let parent = self.by_pid.get(&process.parent_pid).filter(|parent| {
            // A reused pid is younger than what it is said to have started.
            parent.process.start_boot_ns <= process.start_boot_ns
        });
        let is_init = container
            .task
            .as_ref()
            .is_some_and(|task| task.pid == process.pid);
        let origin = if is_init {
            Origin::Init
        } else if let Some(origin) = before.or_else(|| parent.map(|parent| parent.origin)) {
            origin
        } else if process.parent_mount_namespace == host_mount_namespace {
            Origin::Exec
        } else {
            Origin::Unknown
        };
        let ancestors = self.ancestors(process);
        self.by_pid.put(
            process.pid,
            Entry {
                process: process.clone(),
                executable: exec.file.path.clone(),
                origin,
                container: Arc::clone(container),
            },
        );
        (origin, ancestors)
    }

    /// The container in which a process or its parent executed something before.
    pub fn container_of(&self, process: &Process) -> Option<Arc<Container>> {
        let parent = || {
            self.by_pid
                .peek(&process.parent_pid)
                .filter(|parent| parent.process.start_boot_ns <= process.start_boot_ns)
        };
        let entry = self.same(process).or_else(parent)?;
        Some(Arc::clone(&entry.container))
    }

    fn same(&self, process: &Process) -> Option<&Entry> {
        self.by_pid
            .peek(&process.pid)
            .filter(|entry| entry.process.start_boot_ns == process.start_boot_ns)
    }

    fn ancestors(&self, process: &Process) -> Vec<Vec<u8>> {
        let mut ancestors = Vec::new();
        let mut child = process;
        while ancestors.len() < ANCESTORS_MAX {
            let Some(parent) = self.by_pid.peek(&child.parent_pid) else {
                break;
            };
            if parent.process.start_boot_ns > child.start_boot_ns || parent.process.pid == child.pid
            {
                break;
            }
            ancestors.push(parent.executable.clone());
            child = &parent.process;
        }
        ancestors
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::exec::tests as sample;

    const HOST: u32 = 1;
    const OWN: u32 = 2;

    fn container(pid: u32) -> Arc<Container> {
        let mut container = sample::container();
        if let Some(task) = &mut Arc::make_mut(&mut container).task {
            task.pid = pid;
        }
        container
    }

    fn exec(pid: u32, start: u64, parent: u32, parent_namespace: u32, path: &str) -> Exec {
        sample::exec(path, |exec| {
            exec.process.pid = pid;
            exec.process.start_boot_ns = start;
            exec.process.parent_pid = parent;
            exec.process.parent_mount_namespace = parent_namespace;
        })
    }

    #[test]
    fn origin_and_ancestors_follow_the_tree() {
        let mut processes = Processes::default();
        let container = container(10);
        let mut check = |exec: Exec, origin: Origin, ancestors: &[&str]| {
            let expect: Vec<Vec<u8>> = ancestors
                .iter()
                .map(|path| path.as_bytes().to_vec())
                .collect();
            assert_eq!(
                processes.observe(&exec, &container, HOST),
                (origin, expect),
                "{exec:?}"
            );
        };
        check(exec(10, 100, 5, HOST, "/init"), Origin::Init, &[]);
        check(exec(11, 110, 10, OWN, "/sh"), Origin::Init, &["/init"]);
        check(
            exec(12, 120, 11, OWN, "/ls"),
            Origin::Init,
            &["/sh", "/init"],
        );
        // Executes again: still itself.
        check(
            exec(12, 120, 11, OWN, "/cat"),
            Origin::Init,
            &["/sh", "/init"],
        );
        check(exec(20, 130, 6, HOST, "/bin/sh"), Origin::Exec, &[]);
        check(exec(21, 140, 20, OWN, "/x"), Origin::Exec, &["/bin/sh"]);
        // A subshell that executed nothing itself stands between.
        check(exec(30, 150, 29, OWN, "/y"), Origin::Unknown, &[]);
        // A pid that is younger than its supposed child is another process.
        check(exec(12, 500, 10, OWN, "/new"), Origin::Init, &["/init"]);
        check(exec(40, 400, 12, OWN, "/z"), Origin::Unknown, &[]);
    }
}
