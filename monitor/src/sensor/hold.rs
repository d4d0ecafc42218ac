//! Holds what is executed (design, promise 7): descriptors that survive the process, the name and
//! the mount.
//!
//! fanotify's `FAN_OPEN_EXEC` on a container's root gives a descriptor for each file that execve
//! opens. The kernel queues it before `sched_process_exec` runs, so that a reader which empties
//! the ring first and this queue second finds every file of every exec it has read.

use std::{
    collections::VecDeque,
    io,
    num::NonZeroUsize,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use lru::LruCache;
use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sys::{
        fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags},
        stat::Mode,
        statfs::{OVERLAYFS_SUPER_MAGIC, fstatfs},
    },
};

use monitor_common::file::FILE_OVERLAY;

use super::{
    account::HeldCounters,
    elf,
    event::{Code, Exec, FileFacts, FileUse, Open},
    root,
};

/// Held files that may wait for their exec; the oldest is let go for a new one. An exec takes its
/// files within a millisecond, so what waits long is of execs that failed.
const WAITING_MAX: usize = 4096;
/// Root filesystems whose place is known; of more, the files of one that was not asked for longest
/// are looked for below the roots of their processes only.
const ROOTS_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");
/// Failed reads of fanotify's queue after which the next batch comes first.
const READ_FAILURES_MAX: usize = 64;
/// How long a held file waits for its exec.
const WAITING_TIME_MAX: Duration = Duration::from_secs(5);

/// Files cannot be held.
#[derive(Debug, thiserror::Error)]
pub enum HolderError {
    /// No fanotify.
    #[error("cannot create a fanotify group (needs CAP_SYS_ADMIN): {0}")]
    Init(Errno),
    /// The container's filesystem is no longer mounted there.
    #[error("{} is no longer a container's root", .0.display())]
    Ended(PathBuf),
    /// The container's root is a directory of a larger filesystem.
    #[error("{} is not an overlay; executed files of this container are read by /proc/PID/exe as long as they run", .0.display())]
    NotOverlay(PathBuf),
    /// The filesystem could not be marked.
    #[error(
        "cannot hold what is executed below {path}: {source}; files of this container that are gone when they are judged will have hash_state gone"
    )]
    Mark {
        /// The container's root on the host.
        path: PathBuf,
        /// Why.
        source: Errno,
    },
}

/// The fanotify group.
pub struct Holder {
    group: Fanotify,
    waiting: Mutex<VecDeque<Held>>,
    /// Where the filesystems that are marked are mounted, by their kernel device number.
    roots: Mutex<LruCache<u32, PathBuf>>,
    held: AtomicU64,
    queue_overflows: AtomicU64,
    evicted: AtomicU64,
}

struct Held {
    since: Instant,
    pid: u32,
    file: OwnedFd,
}

impl Holder {
    /// Creates the group; nothing is held until a filesystem is marked.
    pub fn new() -> Result<Self, HolderError> {
        let group = Fanotify::init(
            InitFlags::FAN_CLASS_NOTIF
                | InitFlags::FAN_CLOEXEC
                | InitFlags::FAN_NONBLOCK
                | InitFlags::FAN_UNLIMITED_MARKS,
            EventFFlags::O_RDONLY | EventFFlags::O_LARGEFILE | EventFFlags::O_CLOEXEC,
        )
        .map_err(HolderError::Init)?;
        Ok(Self {
            group,
            waiting: Mutex::default(),
            roots: Mutex::new(LruCache::new(ROOTS_MAX)),
            held: AtomicU64::new(0),
            queue_overflows: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
        })
    }

    /// Holds what is executed from the filesystem mounted at `rootfs`, if that is `device` (kernel
    /// device number). It is not once the container has ended: then the path is a directory of the
    /// host, whose whole filesystem would be marked.
    pub fn mark(&self, rootfs: &Path, device: u32) -> Result<(), HolderError> {
        let failed = |source| HolderError::Mark {
            path: rootfs.to_owned(),
            source,
        };
        let root = open_root(rootfs).map_err(failed)?;
        if !root::is_device(&root, device).map_err(failed)? {
            return Err(HolderError::Ended(rootfs.to_owned()));
        }
        // Any other filesystem is the host's as well, and all that the host executes would be held.
        if fstatfs(&root).map_err(failed)?.filesystem_type() != OVERLAYFS_SUPER_MAGIC {
            return Err(HolderError::NotOverlay(rootfs.to_owned()));
        }
        lock(&self.roots).put(device, rootfs.to_owned());
        self.group
            .mark(
                MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_FILESYSTEM,
                MaskFlags::FAN_OPEN_EXEC,
                &root,
                None::<&Path>,
            )
            .map_err(failed)
    }

    /// Takes over what the kernel has queued.
    pub(super) fn drain(&self) {
        let mut waiting = lock(&self.waiting);
        let now = Instant::now();
        let mut failures = 0;
        while failures < READ_FAILURES_MAX {
            let events = match self.group.read_events() {
                Ok(events) => events,
                Err(Errno::EAGAIN) => break,
                Err(error) => {
                    // The event whose file could not be opened is consumed by the failed read.
                    tracing::debug!(%error, "a file that was executed could not be held");
                    self.evicted.fetch_add(1, Ordering::Relaxed);
                    failures += 1;
                    continue;
                }
            };
            for event in events {
                if event.mask().contains(MaskFlags::FAN_Q_OVERFLOW) {
                    self.queue_overflows.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                let Some(Ok(file)) = event.fd().map(|fd| fd.try_clone_to_owned()) else {
                    self.evicted.fetch_add(1, Ordering::Relaxed);
                    continue;
                };
                self.held.fetch_add(1, Ordering::Relaxed);
                waiting.push_back(Held {
                    since: now,
                    pid: event.pid().unsigned_abs(),
                    file,
                });
            }
        }
        while waiting.len() > WAITING_MAX {
            waiting.pop_front();
            self.evicted.fetch_add(1, Ordering::Relaxed);
        }
        while waiting
            .front()
            .is_some_and(|held| now.duration_since(held.since) > WAITING_TIME_MAX)
        {
            waiting.pop_front();
        }
    }

    /// The files held of an exec, in the order of opening.
    ///
    /// By the time its record is read, the process may have gone on to execute something else, so
    /// that the queue holds files of several execs. Those of the first end with its program, or with
    /// the ELF interpreter if the program names one. A program that was not held although it lies
    /// where files are (it was opened just before the mark, or let go at the bound) leaves the queue
    /// to the next exec; of one that lies elsewhere, one file is its script or ELF interpreter.
    pub(super) fn take(&self, exec: &Exec) -> Vec<OwnedFd> {
        let mut waiting = lock(&self.waiting);
        let own: Vec<usize> = waiting
            .iter()
            .enumerate()
            .filter(|(_, held)| held.pid == exec.used.process.pid)
            .map(|(index, _)| index)
            .collect();
        let files = own
            .iter()
            .filter_map(|index| waiting.get(*index))
            .map(|held| &held.file);
        let mut count = usize::from(!self.is_marked(exec));
        for (position, file) in files.enumerate() {
            if elf::is_inode(
                file,
                &[exec.used.file.facts.inode, exec.used.file.facts.real_inode],
            ) {
                count = position + 1 + usize::from(elf::has_interpreter(file));
                break;
            }
        }
        let (own, later) = own.split_at(count.min(own.len()));
        // Execs that fail on purpose could put a script out of its place, so each that waits is
        // judged with this one; it stays for the exec that it may belong to.
        let scripts: Vec<OwnedFd> = later
            .iter()
            .filter(|_| exec.script.is_some())
            .filter_map(|index| waiting.get(*index))
            .filter(|held| !elf::is_elf(&held.file))
            .filter_map(|held| held.file.try_clone().ok())
            .collect();
        let mut taken = Vec::with_capacity(own.len() + scripts.len());
        // From the back, so that the indices stay right.
        for index in own.iter().rev() {
            taken.extend(waiting.remove(*index).map(|held| held.file));
        }
        taken.reverse();
        taken.extend(scripts);
        taken
    }

    /// Whether the program lies in a root filesystem whose files are held.
    fn is_marked(&self, exec: &Exec) -> bool {
        let facts = &exec.used.file.facts;
        facts.flags & FILE_OVERLAY != 0
            && (facts.device == exec.used.process.root_device
                || lock(&self.roots).contains(&facts.device))
    }

    /// A mapped file by its mapping or its name, as a path only. `None` where what is there now is
    /// another file.
    pub(super) fn mapped(&self, code: &Code) -> Option<OwnedFd> {
        let (start, end) = code.mapping;
        let link = (start != 0).then(|| format!("map_files/{start:x}-{end:x}"));
        self.find(&code.used, link.as_deref())
    }

    /// An opened file by its descriptor or its name, likewise.
    pub(super) fn opened(&self, open: &Open) -> Option<OwnedFd> {
        let link = open.descriptor.map(|descriptor| format!("fd/{descriptor}"));
        self.find(&open.used, link.as_deref())
    }

    /// A used file, by a link below the process's directory in `/proc` if there is one, which is
    /// surest; else by its path in the container's root, whether the process still runs or not;
    /// else by its path below the process's root.
    fn find(&self, used: &FileUse, link: Option<&str>) -> Option<OwnedFd> {
        let facts = &used.file.facts;
        // An overlay that the container mounted may have any server below it.
        let is_foreign = facts.flags & FILE_OVERLAY != 0
            && !lock(&self.roots).contains(&facts.device)
            && facts.device != used.process.root_device;
        // Memory without a file has no inode.
        if facts.inode == 0 || is_remote(facts) || is_foreign {
            return None;
        }
        let is_same = |file: &OwnedFd| elf::is_inode(file, &[facts.inode, facts.real_inode]);
        let has_name = !used.file.path_truncated && !used.file.unlinked;
        link.and_then(|link| path_only(&format!("/proc/{}/{link}", used.process.pid)))
            .filter(is_same)
            .or_else(|| self.below_root(used).filter(|_| has_name).filter(is_same))
            .or_else(|| below_root_of(used).filter(|_| has_name).filter(is_same))
    }

    /// A file by its path in a root filesystem that is marked.
    fn below_root(&self, used: &FileUse) -> Option<OwnedFd> {
        let device = used.file.facts.device;
        let rootfs = lock(&self.roots).get(&device).cloned()?;
        root::file(&rootfs, device, &used.file.path_in_filesystem)
    }

    pub(super) fn counters(&self) -> HeldCounters {
        HeldCounters {
            held: self.held.load(Ordering::Relaxed),
            queue_overflows: self.queue_overflows.load(Ordering::Relaxed),
            evicted: self.evicted.load(Ordering::Relaxed),
        }
    }
}

/// Filesystems whose server may be slow, gone, or the container itself: looking at their files may
/// never return (`s_magic` of FUSE, NFS, 9p, CIFS, SMB2, Ceph).
const REMOTE_FILESYSTEMS: [u32; 6] = [
    0x6573_5546,
    0x6969,
    0x0102_1997,
    0xff53_4d42,
    0xfe53_4d42,
    0x00c3_6400,
];

/// What fanotify's marks do not cover (memory, volumes): the program by `/proc/PID/exe`, as a path
/// only, since opening it may block. `None` where it is covered, or the process has gone.
pub(super) fn program(exec: &Exec) -> Option<OwnedFd> {
    let covered = exec.used.file.facts.flags & FILE_OVERLAY != 0 && !exec.held.is_empty();
    if covered || is_remote(&exec.used.file.facts) {
        return None;
    }
    path_only(&format!("/proc/{}/exe", exec.used.process.pid))
}

/// A file by its path below the root of the process.
fn below_root_of(used: &FileUse) -> Option<OwnedFd> {
    let root = path_only(&format!("/proc/{}/root", used.process.pid))?;
    root::named(&root, &used.file.path)
}

/// Whoever holds it open keeps the runtime from unmounting, so it is closed at once.
fn open_root(rootfs: &Path) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    open(rootfs, flags, Mode::empty())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn path_only(path: &str) -> Option<OwnedFd> {
    open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).ok()
}

fn is_remote(facts: &FileFacts) -> bool {
    REMOTE_FILESYSTEMS.contains(&facts.filesystem_magic)
}

impl From<HolderError> for io::Error {
    fn from(error: HolderError) -> Self {
        Self::other(error)
    }
}
