//! The root of one container: what of the image it holds something else for, and what of that waits
//! to be read.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use rustix::fs::{AtFlags, StatxFlags, statx};

use super::{
    Account, Changed, Root, Seen, WAITING_MAX, count,
    place::{self, Copied, Found, Version},
    watches::Watches,
};
use crate::{
    clock,
    detect::file::Bytes,
    image::{contents::Contents, layer::EntryKind},
    sensor::root,
};

/// How long a path waits after what is done at one stroke.
const SETTLE: Duration = Duration::from_millis(250);
/// How long it waits for its writer to close it.
const CLOSE_WAIT: Duration = Duration::from_secs(1);
/// How often files that are known to be the container's own are looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// How often such files are read again although their times say that they are as they were: a page
/// that waits to be written back can be changed without a trace, for half a minute by default.
const READ_AGAIN: u8 = 4;
/// Bytes of a file that is read again so.
const READ_AGAIN_BYTES_MAX: u64 = 16 << 20;
/// Descriptors held of files that wait, of all containers; of others the path is looked up again.
const HELD_MAX: usize = 1024;
/// A container gets at most one part in this many of a processor for the reading of its files,
const SHARE: u32 = 4;
/// after as much of it at once.
const BURST: Duration = Duration::from_millis(100);
/// Missing files of the image that are told of one directory.
const MISSING_MAX: usize = 1024;

pub(super) struct Tree {
    pub(super) root: Root,
    upper: OwnedFd,
    /// Of the mount that processes of the container have as their root.
    root_mount: Option<u64>,
    known: BTreeMap<Vec<u8>, Known>,
    waiting: BTreeMap<Vec<u8>, Waiting>,
    due: BTreeSet<(Instant, Vec<u8>)>,
    has_opaque: bool,
    /// The upper directory is to be walked as a whole.
    is_behind: bool,
    /// Some of its directories are not followed.
    is_unfollowed: bool,
    look_again: Instant,
    budget: Budget,
    /// It was removed: what waits is read at once, and is the last.
    is_ending: bool,
    account: Arc<Account>,
    held: Arc<()>,
}

/// The time from which on a container may use the processor again.
struct Budget(Instant);

impl Budget {
    fn spend(&mut self, spent: Duration, now: Instant) {
        self.0 = self.0.max(now - BURST * SHARE) + spent * SHARE;
    }
}

/// A file of the container's own at a path of the image.
struct Known {
    version: Version,
    read_again: u8,
}

struct Waiting {
    due: Instant,
    since_boot_ns: u64,
    what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Looked {
    Nothing,
    /// Of the image and in the upper directory.
    Directory,
    Other,
}

enum What {
    Removed,
    File {
        held: Option<Held>,
        inode: u64,
        is_copy: bool,
    },
    Symlink(Vec<u8>),
    Directory,
    Special,
}

/// A descriptor of a file, counted.
struct Held(
    OwnedFd,
    #[expect(dead_code, reason = "its references are counted")] Arc<()>,
);

/// Something that is due.
pub(super) enum Work {
    /// To be read.
    Read(Ticket, File),
    /// Known already.
    Told(Changed),
}

/// A file that is being read.
pub(super) struct Ticket {
    path: Vec<u8>,
    since_boot_ns: u64,
    inode: Option<u64>,
    is_copy: bool,
}

impl Drop for Tree {
    fn drop(&mut self) {
        let waiting = self.waiting.len() as u64;
        self.account.waiting.fetch_sub(waiting, Ordering::Relaxed);
    }
}

impl Tree {
    pub(super) fn new(root: Root, upper: OwnedFd, account: Arc<Account>, held: Arc<()>) -> Self {
        let now = Instant::now();
        let mut tree = Self {
            root_mount: None,
            root,
            upper,
            known: BTreeMap::new(),
            waiting: BTreeMap::new(),
            due: BTreeSet::new(),
            has_opaque: false,
            is_behind: true,
            is_unfollowed: false,
            look_again: now + LOOK_AGAIN,
            budget: Budget(now - BURST * SHARE),
            is_ending: false,
            account,
            held,
        };
        tree.find_mount();
        tree
    }

    /// Takes note that the container runs again, maybe with its root at another place.
    pub(super) fn renew(&mut self, root: Root) {
        self.root = root;
        self.is_behind = true;
        self.find_mount();
    }

    fn find_mount(&mut self) {
        let pid = self.root.container.task.as_ref().map_or(0, |task| task.pid);
        let place = std::path::PathBuf::from(format!("/proc/{pid}/root"));
        let directory = place::directory(&place).ok();
        self.root_mount = directory.and_then(|directory| mount_of(&directory));
    }

    /// Has the upper directory walked.
    pub(super) fn fall_behind(&mut self) {
        self.is_behind = true;
    }

    /// Has what is known looked at again shortly.
    pub(super) fn look_soon(&mut self, now: Instant) {
        self.look_again = self.look_again.min(now + SETTLE);
    }

    /// Has what waits read at once; nothing more will come.
    pub(super) fn end(&mut self) {
        self.is_ending = true;
        let now = Instant::now();
        self.budget.0 = now;
        self.due.clear();
        for (path, waiting) in &mut self.waiting {
            waiting.due = now;
            self.due.insert((now, path.clone()));
        }
    }

    /// Whether it was removed and nothing waits.
    pub(super) fn has_ended(&self) -> bool {
        self.is_ending && self.waiting.is_empty()
    }

    /// Something happened to this path.
    pub(super) fn named(&mut self, number: u64, path: Vec<u8>, watches: &mut Watches) {
        self.notice(number, path, CLOSE_WAIT, watches);
    }

    /// A file was closed that was open for writing, by this name.
    pub(super) fn written(
        &mut self,
        number: u64,
        path: &[u8],
        file: &OwnedFd,
        watches: &mut Watches,
    ) {
        if self.root.contents.lookup(path).is_some() {
            self.notice(number, path.to_vec(), SETTLE, watches);
            if let Some(known) = self.known.get_mut(path) {
                known.read_again = READ_AGAIN;
            }
        } else {
            count(&self.account.others);
        }
        // A file of the image may have other names.
        let has_links = rustix::fs::fstat(file).is_ok_and(|stat| stat.st_nlink > 1);
        if has_links || self.root_mount.is_none() || mount_of(file) != self.root_mount {
            self.look_soon(Instant::now());
        }
    }

    /// Looks at what is at a path now, if it is one of the image.
    fn notice(&mut self, number: u64, path: Vec<u8>, delay: Duration, watches: &mut Watches) {
        let contents = Arc::clone(&self.root.contents);
        let Some(expected) = contents.lookup(&path) else {
            return;
        };
        match self.look(number, &path, expected.kind, delay, watches) {
            Looked::Nothing => self.vanished(&path),
            Looked::Other => {}
            Looked::Directory if self.budget.0 <= Instant::now() => {
                self.walk(number, &path, watches);
            }
            Looked::Directory => self.is_behind = true,
        }
    }

    fn look(
        &mut self,
        number: u64,
        path: &[u8],
        expected: EntryKind<'_>,
        delay: Duration,
        watches: &mut Watches,
    ) -> Looked {
        let (what, looked) = match place::look(&self.upper, path) {
            Found::Nothing => return Looked::Nothing,
            Found::Whiteout => (What::Removed, Looked::Other),
            Found::File(copied) => {
                let delay = if copied.is_copy { delay } else { SETTLE };
                self.file(path.to_vec(), copied, delay);
                return Looked::Other;
            }
            Found::Symlink(target) => (What::Symlink(target), Looked::Other),
            Found::Special => (What::Special, Looked::Other),
            Found::Directory { .. } if expected != EntryKind::Directory => {
                (What::Directory, Looked::Other)
            }
            Found::Directory { file, is_opaque } => {
                self.followed(watches.add(number, path, &file));
                self.has_opaque |= is_opaque;
                if !is_opaque {
                    return Looked::Directory;
                }
                // What was in the image's is told with it; what is in this one is looked at next.
                self.drop_within(path);
                (What::Directory, Looked::Directory)
            }
        };
        self.known.remove(path);
        self.wait(path.to_vec(), what, SETTLE);
        looked
    }

    fn followed(&mut self, result: io::Result<()>) {
        if let Err(error) = result
            && !self.is_unfollowed
        {
            count(&self.account.unfollowed);
            self.is_unfollowed = true;
            tracing::warn!(%error, id = self.root.container.id, "not all directories of a container can be followed; they are walked every {} s", LOOK_AGAIN.as_secs());
        }
    }

    fn file(&mut self, path: Vec<u8>, copied: Copied, delay: Duration) {
        if !copied.has_bytes {
            return;
        }
        let Copied {
            version, is_copy, ..
        } = copied;
        let held = (Arc::strong_count(&self.held) <= HELD_MAX)
            .then(|| Held(copied.file, Arc::clone(&self.held)));
        let known = self.known.entry(path.clone()).or_insert(Known {
            version,
            read_again: READ_AGAIN,
        });
        known.version = version;
        let what = What::File {
            held,
            inode: version.inode,
            is_copy,
        };
        self.wait(path, what, delay);
    }

    /// Nothing is at a path any more. Where the image's file shows again, the host did it: so the
    /// runtime does when it removes a container, after it has unmounted its root.
    fn vanished(&mut self, path: &[u8]) {
        if !self.has_opaque {
            return;
        }
        let is_mounted = || root::file(&self.root.rootfs, self.root.device, b"/").is_some();
        let opaque = ancestors(path).find(|directory| {
            let found = place::look(&self.upper, directory);
            matches!(
                found,
                Found::Directory {
                    is_opaque: true,
                    ..
                }
            )
        });
        if let Some(opaque) = opaque.map(<[u8]>::to_vec)
            && is_mounted()
        {
            self.known.remove(path);
            self.wait(opaque, What::Directory, SETTLE);
        }
    }

    /// Looks at all paths of the image in a directory whose own directories are in the upper
    /// directory as well, and follows those.
    fn walk(&mut self, number: u64, directory: &[u8], watches: &mut Watches) {
        let began = Instant::now();
        let contents = Arc::clone(&self.root.contents);
        let mut entries = contents.below(directory);
        while let Some((path, found)) = entries.next() {
            let looked = self.look(number, &path, found.kind, CLOSE_WAIT, watches);
            if found.kind == EntryKind::Directory && looked != Looked::Directory {
                entries.skip_within(&path);
            }
        }
        self.budget.spend(began.elapsed(), Instant::now());
    }

    fn wait(&mut self, path: Vec<u8>, what: What, delay: Duration) {
        let now = Instant::now();
        if matches!(what, What::Removed) {
            self.drop_within(&path);
        }
        let mut due = now + delay;
        let mut since_boot_ns = clock::boot_ns();
        if let Some(before) = self.waiting.remove(&path) {
            self.due.remove(&(before.due, path.clone()));
            // Whoever goes on changing it does not put off its reading.
            due = due.min(before.due.max(now));
            since_boot_ns = before.since_boot_ns;
        } else {
            if self.account.waiting.load(Ordering::Relaxed) >= WAITING_MAX {
                count(&self.account.overflows);
                self.is_behind = true;
                return;
            }
            count(&self.account.noticed);
            count(&self.account.waiting);
        }
        self.due.insert((due, path.clone()));
        let waiting = Waiting {
            due,
            since_boot_ns,
            what,
        };
        self.waiting.insert(path, waiting);
    }

    /// What is in a directory that was removed is told with it.
    fn drop_within(&mut self, directory: &[u8]) {
        let inside = [directory, b"/"].concat();
        let of = |path: &Vec<u8>| path.starts_with(&inside);
        let paths: Vec<Vec<u8>> = self
            .waiting
            .range(inside.clone()..)
            .map(|(path, _)| path.clone())
            .take_while(of)
            .collect();
        for path in paths {
            if let Some(waiting) = self.waiting.remove(&path) {
                self.due.remove(&(waiting.due, path));
                self.account.waiting.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Does what is due beside reading.
    pub(super) fn keep_up(&mut self, number: u64, watches: &mut Watches, now: Instant) {
        if self.is_behind && self.can_walk() && self.budget.0 <= now {
            self.is_behind = false;
            let followed = watches.add(number, b"", &self.upper);
            self.followed(followed);
            self.walk(number, b"", watches);
        }
        if now < self.look_again.max(self.budget.0) || self.is_ending {
            return;
        }
        self.look_again = now + LOOK_AGAIN;
        self.is_behind |= self.is_unfollowed;
        let paths: Vec<Vec<u8>> = self.known.keys().cloned().collect();
        for path in paths {
            let Found::File(copied) = place::look(&self.upper, &path) else {
                continue;
            };
            let Some(known) = self.known.get_mut(&path) else {
                continue;
            };
            let is_changed = known.version != copied.version;
            let is_doubtful = known.read_again > 0 && copied.version.size <= READ_AGAIN_BYTES_MAX;
            known.read_again = known.read_again.saturating_sub(1);
            if is_changed {
                known.read_again = READ_AGAIN;
            }
            if is_changed || is_doubtful {
                self.file(path, copied, Duration::ZERO);
            }
        }
        self.budget.spend(now.elapsed(), Instant::now());
    }

    fn can_walk(&self) -> bool {
        self.waiting.is_empty() && !self.is_ending
    }

    /// When there is something to do.
    pub(super) fn next(&self) -> Instant {
        let mut next = self.look_again.max(self.budget.0);
        if let Some((due, _)) = self.due.first() {
            next = next.min((*due).max(self.budget.0));
        }
        if self.is_behind && self.can_walk() {
            next = next.min(self.budget.0);
        }
        next
    }

    /// Takes what is due.
    pub(super) fn take(&mut self, now: Instant) -> Option<Work> {
        let (due, _) = self.due.first()?;
        if *due > now || self.budget.0 > now {
            return None;
        }
        let (_, path) = self.due.pop_first()?;
        let waiting = self.waiting.remove(&path)?;
        let mut ticket = Ticket {
            path,
            since_boot_ns: waiting.since_boot_ns,
            inode: None,
            is_copy: false,
        };
        let seen = match waiting.what {
            What::File {
                held,
                inode,
                is_copy,
            } => {
                let opened = match held {
                    Some(held) => place::reopen(&held.0),
                    None => self.open(&ticket.path),
                };
                (ticket.inode, ticket.is_copy) = (Some(inode), is_copy);
                match opened {
                    Ok(file) => return Some(Work::Read(ticket, file)),
                    Err(error) => Seen::File {
                        bytes: Bytes::Gone(format!("it could not be opened: {error}")),
                        head: Vec::new(),
                        is_copy,
                    },
                }
            }
            What::Removed => Seen::Removed,
            What::Symlink(target) => Seen::Symlink(target),
            What::Special => Seen::Special,
            What::Directory => {
                let (missing, count) = self.missing(&ticket.path);
                self.budget.spend(now.elapsed(), Instant::now());
                Seen::Directory(missing, count)
            }
        };
        Some(Work::Told(self.changed(ticket, seen)))
    }

    fn open(&self, path: &[u8]) -> io::Result<File> {
        match place::look(&self.upper, path) {
            Found::File(copied) => place::reopen(&copied.file),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Files of the image in a directory that hides the image's.
    fn missing(&self, directory: &[u8]) -> (Vec<Vec<u8>>, u64) {
        let (mut missing, mut count) = (Vec::new(), 0);
        for (path, found) in self.root.contents.below(directory) {
            if matches!(found.kind, EntryKind::File { .. })
                && matches!(place::look(&self.upper, &path), Found::Nothing)
            {
                count += 1;
                if missing.len() < MISSING_MAX {
                    missing.push(path);
                }
            }
        }
        (missing, count)
    }

    /// A file was read.
    pub(super) fn read(
        &mut self,
        ticket: Ticket,
        (bytes, head): (Bytes, Vec<u8>),
        spent: Duration,
    ) -> Changed {
        let began = Instant::now();
        // Of unpacked layers, whose bytes are read when they are needed.
        self.root.contents.read(&ticket.path);
        self.budget.spend(spent + began.elapsed(), Instant::now());
        let seen = Seen::File {
            bytes,
            head,
            is_copy: ticket.is_copy,
        };
        self.changed(ticket, seen)
    }

    fn changed(&self, ticket: Ticket, seen: Seen) -> Changed {
        Changed {
            container: Arc::clone(&self.root.container),
            contents: Arc::<Contents>::clone(&self.root.contents),
            time_boot_ns: ticket.since_boot_ns,
            path: ticket.path,
            inode: ticket.inode,
            seen,
        }
    }
}

/// The directories that an absolute path lies in, innermost first, without the root.
fn ancestors(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let slashes = path.iter().enumerate().skip(1).rev();
    slashes
        .filter(|(_, byte)| **byte == b'/')
        .filter_map(|(index, _)| path.get(..index))
}

fn mount_of(file: &OwnedFd) -> Option<u64> {
    let stat = statx(file.as_fd(), "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).ok()?;
    Some(stat.stx_mnt_id)
}
