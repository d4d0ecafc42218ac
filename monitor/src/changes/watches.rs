//! Directories followed by inotify, of all containers.

use std::{
    collections::HashMap,
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};

use super::place::by_descriptor;

/// Directories of all containers; of one more it is told that it cannot be followed.
const DIRECTORIES_MAX: usize = 65_536;
/// Directories of one container.
const DIRECTORIES_OF_ONE_MAX: usize = 4096;
/// Bytes of what the kernel tells at once; one name needs at most 272.
const BUFFER_BYTES: usize = 16 << 10;
/// Names read at once, so that the thread does other things as well.
const NAMES_MAX: usize = 4096;

/// Files that come to be in a directory, are given a name or lose it, and those that are written
/// there, which older kernels do not tell of writes through the overlay.
const EVENTS: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::ONLYDIR);

/// What the kernel tells.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// Something happened to this path of the tree with this number.
    Name(u64, Vec<u8>),
    /// Names were lost.
    Overflow,
}

/// An inotify instance.
#[derive(Debug)]
pub(super) struct Watches {
    inotify: OwnedFd,
    // By the kernel's number the tree's number and the absolute path.
    directories: HashMap<i32, (u64, Vec<u8>)>,
    counts: HashMap<u64, usize>,
}

impl Watches {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            inotify: inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?,
            directories: HashMap::new(),
            counts: HashMap::new(),
        })
    }

    /// Follows a directory that is held as a path only. One that is followed already is known by its
    /// present path from now on.
    pub(super) fn add(&mut self, tree: u64, path: &[u8], directory: &OwnedFd) -> io::Result<()> {
        let full = self.directories.len() >= DIRECTORIES_MAX
            || self.counts.get(&tree).copied().unwrap_or(0) >= DIRECTORIES_OF_ONE_MAX;
        if full {
            return Err(io::Error::from(io::ErrorKind::QuotaExceeded));
        }
        let place = by_descriptor(directory.as_raw_fd());
        let number = inotify::add_watch(&self.inotify, place, EVENTS)?;
        if self
            .directories
            .insert(number, (tree, path.to_vec()))
            .is_none()
        {
            *self.counts.entry(tree).or_default() += 1;
        }
        Ok(())
    }

    pub(super) fn forget(&mut self, tree: u64) {
        self.counts.remove(&tree);
        let inotify = &self.inotify;
        self.directories.retain(|number, (of, _)| {
            if *of == tree {
                // It may be gone already.
                let _ = inotify::remove_watch(inotify, *number);
            }
            *of != tree
        });
    }

    /// What the kernel has to tell now, up to a bound.
    pub(super) fn read(&mut self) -> Vec<Told> {
        let mut buffer = [MaybeUninit::uninit(); BUFFER_BYTES];
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        let mut told = Vec::new();
        // What was taken from the kernel must not be left in the buffer.
        while told.len() < NAMES_MAX || !reader.is_buffer_empty() {
            let Ok(event) = reader.next() else { break };
            let flags = event.events();
            if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                told.push(Told::Overflow);
                continue;
            }
            if flags.contains(ReadFlags::IGNORED) {
                if let Some((tree, _)) = self.directories.remove(&event.wd())
                    && let Some(count) = self.counts.get_mut(&tree)
                {
                    *count = count.saturating_sub(1);
                }
                continue;
            }
            let directory = self.directories.get(&event.wd());
            if let (Some((tree, path)), Some(name)) = (directory, event.file_name()) {
                told.push(Told::Name(*tree, child(path, name.to_bytes())));
            }
        }
        told
    }
}

impl AsFd for Watches {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

/// The root is the empty path.
fn child(directory: &[u8], name: &[u8]) -> Vec<u8> {
    [directory, b"/", name].concat()
}
