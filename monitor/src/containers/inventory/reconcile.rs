//! A complete listing against what events told.

use std::collections::HashSet;

use super::{Ended, Inventory, Key, ListingId, State, TaskFacts};
use crate::containers::{cgroup::Found, facts::Facts};

impl Inventory {
    pub(super) fn reconcile(
        &mut self,
        id: ListingId,
        containers: Vec<Facts>,
        tasks: Option<Vec<(Key, TaskFacts)>>,
        time_boot_ns: u64,
    ) {
        if id != self.listing || !self.under_way {
            // Asked for before the connection was lost and made again: it has no tasks, and what
            // it does not have may have been added since. The next one is on its way.
            for facts in containers {
                let key = Key::of(&facts.container);
                if !self.ended.contains(&Ended::Container(key)) {
                    self.add(facts);
                }
            }
            return;
        }
        self.under_way = false;
        let listed: HashSet<Key> = containers
            .iter()
            .map(|facts| Key::of(&facts.container))
            .collect();
        // The containers of these are not there any more, if they are not listed.
        let stale: Vec<Key> = self
            .waiting_tasks
            .iter()
            .filter(|(key, waiting)| waiting.heard < id && !listed.contains(key))
            .map(|(key, _)| key.clone())
            .collect();
        for key in stale {
            self.waiting_tasks.pop(&key);
        }
        let ended = std::mem::take(&mut self.ended);
        // What came after the listing began is newer than what it says.
        let vanished: Vec<u64> = self
            .live
            .iter()
            .filter(|(_, entry)| entry.added < id && !listed.contains(&entry.key))
            .map(|(serial, _)| *serial)
            .collect();
        for serial in vanished {
            self.remove(serial, time_boot_ns);
        }
        for facts in containers {
            let key = Key::of(&facts.container);
            let newer = |serial: &u64| self.live.get(serial).is_some_and(|entry| entry.added >= id);
            if !ended.contains(&Ended::Container(key.clone()))
                && !self.serials.get(&key).is_some_and(newer)
            {
                self.add(facts);
            }
        }
        if let Some(tasks) = tasks {
            self.tasks_wanted = false;
            self.told_since_boot_ns = time_boot_ns;
            self.reconcile_tasks(id, tasks, &ended, time_boot_ns);
        }
        self.settle(id);
    }

    fn reconcile_tasks(
        &mut self,
        id: ListingId,
        tasks: Vec<(Key, TaskFacts)>,
        ended: &HashSet<Ended>,
        time_boot_ns: u64,
    ) {
        let alive: HashSet<(&Key, u32)> = tasks
            .iter()
            .map(|(key, facts)| (key, facts.task.pid))
            .collect();
        let exited: Vec<u64> = self
            .live
            .iter()
            .filter(|(_, entry)| {
                let task = entry.container.task.as_ref();
                let pid = task.map(|task| task.pid).unwrap_or_default();
                entry.running && entry.task_heard < id && !alive.contains(&(&entry.key, pid))
            })
            .map(|(serial, _)| *serial)
            .collect();
        for serial in exited {
            self.stop(serial, time_boot_ns);
        }
        for (key, facts) in tasks {
            let entry = self
                .serials
                .get(&key)
                .and_then(|serial| self.live.get(serial));
            // A task heard of since then is newer; one of a container not known has ended with it.
            if entry.is_some_and(|entry| !entry.running)
                && !ended.contains(&Ended::Task(key.clone(), facts.task.pid))
            {
                self.start_task(key, facts, id);
            }
        }
    }

    /// Decides on the cgroups that had been seen when listing `id` began.
    fn settle(&mut self, id: ListingId) {
        let settled: Vec<(u64, State)> = self
            .cgroups
            .iter()
            .filter_map(|(cgroup, entry)| match entry.state {
                State::Unknown(listing) if listing < id => {
                    let state = match (self.by_path(&entry.path), self.paths.find(&entry.path)) {
                        (Some(state), _) => state,
                        // Only what names no container at all is the host's.
                        (None, Found::Nothing) if self.counters.containers_refused == 0 => {
                            State::Host {
                                since_boot_ns: self.told_since_boot_ns,
                            }
                        }
                        (None, _) => return None,
                    };
                    Some((*cgroup, state))
                }
                _ => None,
            })
            .collect();
        for (cgroup, state) in settled {
            if let Some(entry) = self.cgroups.peek_mut(&cgroup) {
                entry.state = state;
            }
        }
    }
}
