//! Containers that are gone, for events that were on the way.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use super::Key;
use crate::containers::{
    Container,
    cgroup::{Found, Paths},
};

/// Containers that are remembered after they are gone; the one gone longest is forgotten. At a
/// hundred containers a second that is forty seconds, far more than events take.
pub(super) const GRAVES_MAX: usize = 4096;

#[derive(Debug)]
struct Grave {
    key: Key,
    created_unix_ns: i128,
    container: Arc<Container>,
    paths: Vec<Vec<u8>>,
}

#[derive(Clone, Copy, Debug)]
struct Left {
    inode: u32,
    serial: u64,
    time_boot_ns: u64,
}

/// Containers that are gone.
#[derive(Debug, Default)]
pub(super) struct Graveyard {
    graves: HashMap<u64, Grave>,
    order: VecDeque<u64>,
    paths: Paths,
    serials: HashMap<(Key, i128), u64>,
    // Mount namespaces whose task is gone, oldest first; of restarted containers as well.
    left: VecDeque<Left>,
}

impl Graveyard {
    pub(super) fn bury(
        &mut self,
        serial: u64,
        key: Key,
        created_unix_ns: i128,
        container: Arc<Container>,
        paths: Vec<Vec<u8>>,
    ) {
        if self.order.len() >= GRAVES_MAX
            && let Some(oldest) = self.order.pop_front()
            && let Some(grave) = self.graves.remove(&oldest)
        {
            for path in &grave.paths {
                self.paths.remove(path, oldest);
            }
            let creation = (grave.key, grave.created_unix_ns);
            if self.serials.get(&creation) == Some(&oldest) {
                self.serials.remove(&creation);
            }
        }
        for path in &paths {
            self.paths.insert(path, serial);
        }
        self.serials.insert((key.clone(), created_unix_ns), serial);
        self.order.push_back(serial);
        self.graves.insert(
            serial,
            Grave {
                key,
                created_unix_ns,
                container,
                paths,
            },
        );
    }

    pub(super) fn container(&self, serial: u64) -> Option<&Arc<Container>> {
        self.graves.get(&serial).map(|grave| &grave.container)
    }

    pub(super) fn of_creation(
        &mut self,
        key: &Key,
        created_unix_ns: i128,
    ) -> Option<&mut Arc<Container>> {
        let serial = self.serials.get(&(key.clone(), created_unix_ns))?;
        self.graves
            .get_mut(serial)
            .map(|grave| &mut grave.container)
    }

    pub(super) fn find(&self, path: &[u8]) -> Option<u64> {
        match self.paths.find(path) {
            Found::Container(serial) => Some(serial),
            Found::Unclear | Found::Nothing => None,
        }
    }

    /// The kernel gives the number of a mount namespace away again at once, so what ran in it later
    /// is not the container's.
    pub(super) fn leave_namespace(&mut self, inode: u32, serial: u64, time_boot_ns: u64) {
        if self.left.len() >= GRAVES_MAX {
            self.left.pop_front();
        }
        self.left.push_back(Left {
            inode,
            serial,
            time_boot_ns,
        });
    }

    pub(super) fn in_namespace(&self, inode: u32, time_boot_ns: u64) -> Option<u64> {
        // An event is mostly newer than the newest, so the first look ends the search.
        self.left
            .iter()
            .rev()
            .take_while(|left| left.time_boot_ns == 0 || left.time_boot_ns >= time_boot_ns)
            .find(|left| left.inode == inode && left.time_boot_ns >= time_boot_ns)
            .map(|left| left.serial)
    }
}
