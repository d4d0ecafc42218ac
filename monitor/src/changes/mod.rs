//! What a container changed of its image: the upper directory of its root, followed as it changes.
//!
//! The upper directory holds all that differs from the image, so that what lies there under a path
//! of the image is all there is to compare. inotify on those of its directories that the image has
//! as well tells of files that are copied up, created, renamed over and removed, whoever asked for
//! it and how; fanotify on the overlay tells of files closed after writing; and what is known to lie
//! there is looked at again now and then, for writes that nothing tells of (through a mapping). A
//! path is read some time after its change, so that a file that is removed and made anew is one
//! change, and by a descriptor taken at once, so that it is there after the container's end.
//!
//! One thread does all of it and reads files in slices, so that no container keeps the others waiting.
//! It looks up paths that the image has and never lists what a container made, so that no container
//! can make it work more than its image is large.

mod place;
mod reading;
mod thread;
mod tree;
mod watches;

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
};

use nix::{errno::Errno, sys::eventfd::EventFd};
use tokio::sync::mpsc::Sender;

use self::thread::Thread;
use crate::{containers::Container, detect::file::Bytes, image::contents::Contents};

/// Changes between the thread and the owner; at the bound the thread waits.
pub const CHANGES_MAX: usize = 256;
/// Paths of all containers that wait to be read; of a container with more, the upper directory is
/// walked when it has none left.
const WAITING_MAX: u64 = 65_536;

/// What is not seen of changes, or not at once.
pub const BLIND_SPOTS: [&str; 4] = [
    "a file that is changed and put back within a quarter of a second",
    "what is written through a mapping, or by a process that keeps the file open, at once: it is looked for every 10 s",
    "what a container changed that ended before its image's contents were known",
    "containers whose root is no overlay",
];

/// What lies at a path of the image now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing.
    Removed,
    /// A regular file.
    File {
        /// Its bytes.
        bytes: Bytes,
        /// The first of them; empty if they could not be read.
        head: Vec<u8>,
        /// It began as a copy of a file of the image, and is not one that was put in its place.
        is_copy: bool,
    },
    /// A symbolic link, and where it leads.
    Symlink(Vec<u8>),
    /// A directory that hides what the image has in its own, and the files of the image that are
    /// not in it: some of them, and how many.
    Directory(Vec<Vec<u8>>, u64),
    /// A device, pipe or socket.
    Special,
}

/// A path of the image at which a container's root holds something of its own.
#[derive(Debug)]
pub struct Changed {
    /// Whose root it is.
    pub container: Arc<Container>,
    /// What its image holds.
    pub contents: Arc<Contents>,
    /// When it was noticed, in nanoseconds since boot.
    pub time_boot_ns: u64,
    /// The path in the image.
    pub path: Vec<u8>,
    /// Of a regular file there, its inode in the upper directory's filesystem.
    pub inode: Option<u64>,
    /// What is there.
    pub seen: Seen,
}

/// What the thread did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Changes of paths of the image that were noticed.
    pub noticed: u64,
    /// Changes that wait to be read and judged.
    pub waiting: u64,
    /// Files written that are not of the image.
    pub others: u64,
    /// Times that the kernel or this program could not keep a list of changes, so that upper
    /// directories were walked instead.
    pub overflows: u64,
    /// Directories that could not be followed; they are walked now and then instead.
    pub unfollowed: u64,
}

#[derive(Debug, Default)]
struct Account {
    noticed: AtomicU64,
    waiting: AtomicU64,
    others: AtomicU64,
    overflows: AtomicU64,
    unfollowed: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Changes cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum ChangesError {
    /// No fanotify.
    #[error("cannot create a fanotify group for written files (needs CAP_SYS_ADMIN): {0}")]
    Fanotify(Errno),
    /// No inotify.
    #[error("cannot follow directories with inotify: {0}; raise fs.inotify.max_user_instances")]
    Inotify(io::Error),
    /// No thread.
    #[error("cannot start the thread that follows what containers change: {0}")]
    Thread(io::Error),
}

enum Command {
    Follow(Box<Root>),
    Forget(Arc<Container>),
    Stop,
}

/// A container's root filesystem.
struct Root {
    container: Arc<Container>,
    contents: Arc<Contents>,
    rootfs: PathBuf,
    device: u32,
}

/// The thread that follows what containers change.
#[derive(Debug)]
pub struct Changes {
    commands: mpsc::Sender<Command>,
    wake: Arc<EventFd>,
    account: Arc<Account>,
}

impl Changes {
    /// Starts the thread; nothing is followed until it is told of a container.
    ///
    /// # Errors
    ///
    /// The kernel refuses inotify, fanotify or a thread.
    pub fn start(changed: Sender<Changed>) -> Result<Self, ChangesError> {
        let (commands, orders) = mpsc::channel();
        let wake = EventFd::from_flags(nix::sys::eventfd::EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| ChangesError::Thread(errno.into()))?;
        let (wake, account) = (Arc::new(wake), Arc::<Account>::default());
        let thread = Thread::new(changed, orders, Arc::clone(&wake), Arc::clone(&account))?;
        // It ends when the owner has gone, or by an order; nobody waits for it.
        std::thread::Builder::new()
            .name("changes".to_owned())
            .spawn(move || thread.run())
            .map_err(ChangesError::Thread)?;
        Ok(Self {
            commands,
            wake,
            account,
        })
    }

    /// Whether the kernel gives what the thread needs.
    ///
    /// # Errors
    ///
    /// What it refuses.
    pub fn may_start() -> Result<(), ChangesError> {
        thread::kernel_lists().map(drop)
    }

    /// Follows the root of a container that runs; one that is followed already is looked for at its
    /// present place.
    pub fn follow(&self, container: &Arc<Container>, contents: &Arc<Contents>) {
        let place = container
            .task
            .as_ref()
            .and_then(|task| Some((task.rootfs.clone()?, task.root_device?)));
        if let Some((rootfs, device)) = place {
            self.order(Command::Follow(Box::new(Root {
                container: Arc::clone(container),
                contents: Arc::clone(contents),
                rootfs,
                device,
            })));
        }
    }

    /// Forgets a container that was removed.
    pub fn forget(&self, container: &Arc<Container>) {
        self.order(Command::Forget(Arc::clone(container)));
    }

    /// Takes note that one of [`Changed`] was judged.
    pub fn judged(&self) {
        self.account.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    /// The counters.
    pub fn counters(&self) -> Counters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            noticed: read(&self.account.noticed),
            waiting: read(&self.account.waiting),
            others: read(&self.account.others),
            overflows: read(&self.account.overflows),
            unfollowed: read(&self.account.unfollowed),
        }
    }

    /// Tells the thread to read what waits, for a bounded time, and to end.
    pub fn stop(&self) {
        self.order(Command::Stop);
    }

    fn order(&self, command: Command) {
        // Both fail only when the thread has ended.
        if self.commands.send(command).is_err() || self.wake.write(1).is_err() {
            tracing::debug!("the thread that follows what containers change has ended");
        }
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.stop();
    }
}
