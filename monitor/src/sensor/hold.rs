//! Holds what is executed (design, promise 7): descriptors that survive the process, the name and
//! the mount.
//!
//! fanotify's `FAN_OPEN_EXEC` on a container's root gives a descriptor for each file that execve
//! opens. The kernel queues it before `sched_process_exec` runs, so that a reader which empties
//! the ring first and this queue second finds every file of every exec it has read.

use std::{
    collections::VecDeque,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sys::{
        fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags},
        stat::{Mode, fstat, major, minor},
        statfs::{OVERLAYFS_SUPER_MAGIC, fstatfs},
    },
};

use monitor_common::exec::FILE_OVERLAY;

use super::{account::HeldCounters, elf, event::Exec};

/// Held files that may wait for their exec; the oldest is let go for a new one. An exec takes its
/// files within a millisecond, so what waits long is of execs that failed.
const WAITING_MAX: usize = 4096;
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
        // Closed at once: as long as it is open the runtime cannot unmount.
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let root = open(rootfs, flags, Mode::empty()).map_err(failed)?;
        let seen = fstat(&root).map_err(failed)?.st_dev;
        if (major(seen), minor(seen)) != (u64::from(device >> 20), u64::from(device & 0xf_ffff)) {
            return Err(HolderError::Ended(rootfs.to_owned()));
        }
        // Any other filesystem is the host's as well, and all that the host executes would be held.
        if fstatfs(&root).map_err(failed)?.filesystem_type() != OVERLAYFS_SUPER_MAGIC {
            return Err(HolderError::NotOverlay(rootfs.to_owned()));
        }
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
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
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
    /// the ELF interpreter if the program names one.
    pub(super) fn take(&self, exec: &Exec) -> Vec<OwnedFd> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let own: Vec<usize> = waiting
            .iter()
            .enumerate()
            .filter(|(_, held)| held.pid == exec.process.pid)
            .map(|(index, _)| index)
            .collect();
        let files = own
            .iter()
            .filter_map(|index| waiting.get(*index))
            .map(|held| &held.file);
        let mut count = own.len().min(1);
        for (position, file) in files.enumerate() {
            if elf::is_inode(file, &[exec.file.facts.inode, exec.file.facts.real_inode]) {
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
    let facts = &exec.file.facts;
    let covered = facts.flags & FILE_OVERLAY != 0 && !exec.held.is_empty();
    if covered || REMOTE_FILESYSTEMS.contains(&facts.filesystem_magic) {
        return None;
    }
    let path = format!("/proc/{}/exe", exec.process.pid);
    open(
        path.as_str(),
        OFlag::O_PATH | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .ok()
}

impl From<HolderError> for io::Error {
    fn from(error: HolderError) -> Self {
        Self::other(error)
    }
}
