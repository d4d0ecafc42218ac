//! The thread: takes what the kernel tells, and reads what is due in slices.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::Path,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        eventfd::EventFd,
        fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags},
    },
};
use tokio::sync::mpsc::Sender;

use super::{
    Account, Changed, ChangesError, Command, Root, count,
    place::{self, by_descriptor},
    reading::Reading,
    tree::{Ticket, Tree, Work},
    watches::{Told, Watches},
};
use crate::{
    containers::{Container, inventory::Key, procfs},
    sensor::{link, root},
};

/// Containers whose roots are followed; of one more it is told that it is not.
const TREES_MAX: usize = 4096;
/// Failed reads of fanotify's queue after which other things come first.
const READ_FAILURES_MAX: usize = 64;
/// Written files looked at before other things.
const WRITTEN_MAX: usize = 4096;
/// Longest sleep.
const SLEEP_MAX: Duration = Duration::from_secs(10);
/// How long what waits is read at the end.
const STOP_TIME_MAX: Duration = Duration::from_secs(2);

pub(super) struct Thread {
    changed: Sender<Changed>,
    orders: mpsc::Receiver<Command>,
    wake: Arc<EventFd>,
    account: Arc<Account>,
    watches: Watches,
    written: Fanotify,
    trees: BTreeMap<u64, Tree>,
    numbered: u64,
    /// The tree that was read of last.
    last: u64,
    reading: Option<(u64, Ticket, Reading)>,
    held: Arc<()>,
    ends: Option<Instant>,
}

impl Thread {
    pub(super) fn new(
        changed: Sender<Changed>,
        orders: mpsc::Receiver<Command>,
        wake: Arc<EventFd>,
        account: Arc<Account>,
    ) -> Result<Self, ChangesError> {
        let (written, watches) = kernel_lists()?;
        Ok(Self {
            changed,
            orders,
            wake,
            account,
            watches,
            written,
            trees: BTreeMap::new(),
            numbered: 0,
            last: 0,
            reading: None,
            held: Arc::default(),
            ends: None,
        })
    }

    pub(super) fn run(mut self) {
        loop {
            self.take_orders();
            self.take_names();
            self.take_written();
            let now = Instant::now();
            for (number, tree) in &mut self.trees {
                tree.keep_up(*number, &mut self.watches, now);
            }
            // The owner has gone.
            if self.read().is_err() {
                return;
            }
            self.drop_ended();
            let is_done = self.reading.is_none() && self.trees.is_empty();
            if self.ends.is_some_and(|ends| is_done || ends <= now) {
                return;
            }
            self.sleep();
        }
    }

    fn take_orders(&mut self) {
        // The count is of no use.
        let _ = self.wake.read();
        while let Ok(command) = self.orders.try_recv() {
            match command {
                Command::Follow(root) => self.follow(*root),
                Command::Forget(container) => self.forget(&container),
                Command::Stop => {
                    self.ends = Some(Instant::now() + STOP_TIME_MAX);
                    self.trees.values_mut().for_each(Tree::end);
                }
            }
        }
    }

    fn follow(&mut self, root: Root) {
        let container = Arc::clone(&root.container);
        if let Err(error) = self.mark(&root) {
            tracing::debug!(%error, id = container.id, "files written in a container's root are not told");
        }
        let of = creation(&container);
        let known = self.trees.values_mut();
        let mut known = known.filter(|tree| creation(&tree.root.container) == of);
        if let Some(tree) = known.next() {
            return tree.renew(root);
        }
        let Some(upper) = procfs::upper_directory(root.device) else {
            tracing::debug!(
                id = container.id,
                "the container's root has no upper directory"
            );
            return;
        };
        // A daemon in a container sees the host's directories below the root of process 1.
        let on_host = Path::new("/proc/1/root").join(upper.strip_prefix("/").unwrap_or(&upper));
        let opened = place::directory(&on_host).or_else(|_| place::directory(&upper));
        match opened {
            Ok(_) if self.trees.len() >= TREES_MAX => {
                count(&self.account.unfollowed);
                tracing::warn!(
                    id = container.id,
                    "{TREES_MAX} containers are followed already; what this one changes of its image is not seen"
                );
            }
            Ok(upper) => {
                self.numbered += 1;
                let (account, held) = (Arc::clone(&self.account), Arc::clone(&self.held));
                let tree = Tree::new(root, upper, account, held);
                self.trees.insert(self.numbered, tree);
            }
            Err(error) => {
                count(&self.account.unfollowed);
                tracing::warn!(%error, id = container.id, upper = %upper.display(), "cannot open the upper directory; what the container changes of its image is not seen");
            }
        }
    }

    fn mark(&self, root: &Root) -> nix::Result<()> {
        // Of a container that has ended it is a directory of the host.
        let directory = place::overlay(&root.rootfs)?
            .filter(|directory| root::is_device(directory, root.device).unwrap_or(false))
            .ok_or(Errno::ENODEV)?;
        self.written.mark(
            MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_FILESYSTEM,
            MaskFlags::FAN_CLOSE_WRITE,
            &directory,
            None::<&Path>,
        )
    }

    fn forget(&mut self, container: &Container) {
        let of = creation(container);
        for tree in self.trees.values_mut() {
            if creation(&tree.root.container) == of {
                tree.end();
            }
        }
    }

    fn drop_ended(&mut self) {
        let read = self.reading.as_ref().map(|(number, ..)| *number);
        let watches = &mut self.watches;
        self.trees.retain(|number, tree| {
            let has_ended = tree.has_ended() && read != Some(*number);
            if has_ended {
                watches.forget(*number);
            }
            !has_ended
        });
    }

    fn take_names(&mut self) {
        for told in self.watches.read() {
            match told {
                Told::Name(number, path) => {
                    if let Some(tree) = self.trees.get_mut(&number) {
                        tree.named(number, path, &mut self.watches);
                    }
                }
                Told::Overflow => self.overflow(),
            }
        }
    }

    fn overflow(&mut self) {
        count(&self.account.overflows);
        let now = Instant::now();
        for tree in self.trees.values_mut() {
            tree.fall_behind();
            tree.look_soon(now);
        }
    }

    fn take_written(&mut self) {
        let (mut failures, mut taken) = (0, 0);
        while failures < READ_FAILURES_MAX && taken < WRITTEN_MAX {
            let events = match self.written.read_events() {
                Ok(events) => events,
                Err(Errno::EAGAIN) => return,
                // The event whose file could not be opened is consumed by the failed read.
                Err(_) => {
                    failures += 1;
                    self.overflow();
                    continue;
                }
            };
            taken += events.len();
            for event in events {
                if event.mask().contains(MaskFlags::FAN_Q_OVERFLOW) {
                    self.overflow();
                } else if let Some(Ok(file)) = event.fd().map(|fd| fd.try_clone_to_owned()) {
                    self.closed(&file);
                }
            }
        }
    }

    fn closed(&mut self, file: &OwnedFd) {
        let path = link::read(&by_descriptor(file.as_raw_fd())).map(|(path, _)| path);
        let path = path.unwrap_or_default();
        let device = root::device(file);
        let mut is_known = false;
        for (number, tree) in &mut self.trees {
            if Some(tree.root.device) == device {
                tree.written(*number, &path, file, &mut self.watches);
                is_known = true;
            }
        }
        if !is_known {
            // Files of an overlay with layers on several filesystems have devices of their own.
            let now = Instant::now();
            self.trees.values_mut().for_each(|tree| tree.look_soon(now));
        }
    }

    /// Reads a slice of what is being read, or begins with what is due, of one container after the
    /// other.
    fn read(&mut self) -> Result<(), ()> {
        if let Some((number, ticket, mut reading)) = self.reading.take() {
            let Some(read) = reading.go_on() else {
                self.reading = Some((number, ticket, reading));
                return Ok(());
            };
            let Some(tree) = self.trees.get_mut(&number) else {
                return Ok(());
            };
            let changed = tree.read(ticket, read, reading.spent);
            return self.tell(changed);
        }
        let now = Instant::now();
        let after = self.last + 1;
        let order: Vec<u64> = self
            .trees
            .range(after..)
            .chain(self.trees.range(..after))
            .map(|(number, _)| *number)
            .collect();
        for number in order {
            let work = self.trees.get_mut(&number).and_then(|tree| tree.take(now));
            match work {
                None => {}
                Some(Work::Told(changed)) => {
                    self.last = number;
                    return self.tell(changed);
                }
                Some(Work::Read(ticket, file)) => {
                    self.last = number;
                    self.reading = Some((number, ticket, Reading::new(file)));
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn tell(&self, changed: Changed) -> Result<(), ()> {
        self.changed.blocking_send(changed).map_err(drop)
    }

    fn sleep(&self) {
        if self.reading.is_some() {
            return;
        }
        let now = Instant::now();
        let next = self.trees.values().map(Tree::next).min();
        let next = next.unwrap_or(now + SLEEP_MAX).min(now + SLEEP_MAX);
        let left = next.saturating_duration_since(now);
        // Rounded up, so that it is not woken just before.
        let left = left.as_millis() + u128::from(!left.is_zero());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        let mut descriptors = [
            PollFd::new(self.wake.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.watches.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.written.as_fd(), PollFlags::POLLIN),
        ];
        // Whatever it returns for, everything is looked at.
        let _ = poll(&mut descriptors, timeout);
    }
}

/// Where the kernel tells of files that were written, and of what happened to names.
pub(super) fn kernel_lists() -> Result<(Fanotify, Watches), ChangesError> {
    let written = Fanotify::init(
        InitFlags::FAN_CLASS_NOTIF
            | InitFlags::FAN_CLOEXEC
            | InitFlags::FAN_NONBLOCK
            | InitFlags::FAN_UNLIMITED_MARKS,
        // A pipe and a file that a container has a lease on must not be waited for.
        EventFFlags::O_RDONLY
            | EventFFlags::O_LARGEFILE
            | EventFFlags::O_CLOEXEC
            | EventFFlags::O_NONBLOCK,
    )
    .map_err(ChangesError::Fanotify)?;
    let watches = Watches::new().map_err(ChangesError::Inotify)?;
    Ok((written, watches))
}

fn creation(container: &Container) -> (Key, i128) {
    (Key::of(container), container.created_unix_ns)
}
