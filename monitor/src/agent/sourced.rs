//! Files that shells opened for reading and may have run: they wait a moment for a sign that the
//! shell takes them for commands; without one they were data.

use std::{
    collections::VecDeque,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use super::state::{Pending, What};
use crate::{
    detect::script::{Shown, Use},
    sensor::event::Source,
};

/// Files that wait; at the bound the oldest is judged as if it were run.
const SOURCED_MAX: usize = 1024;
/// How long a file waits for a sign: longer than the sensor's reader sleeps.
const WAIT: Duration = Duration::from_millis(300);

/// The files that wait, oldest first.
#[derive(Debug, Default)]
pub(super) struct Sourced {
    waiting: VecDeque<(u64, Pending)>,
    numbered: u64,
}

/// What a sign has decided.
#[derive(Debug, Default)]
pub(super) struct ByNow {
    /// Run by the shell.
    pub(super) run: Vec<Pending>,
    /// How many were data.
    pub(super) data: u64,
}

impl Sourced {
    /// Has one wait; gives its number, and the one that can wait no longer.
    pub(super) fn hold(&mut self, pending: Pending) -> (u64, Option<Pending>) {
        self.numbered += 1;
        self.waiting.push_back((self.numbered, pending));
        let oldest = (self.waiting.len() > SOURCED_MAX).then(|| self.pop());
        (self.numbered, oldest.flatten())
    }

    /// Gives one that waits a descriptor of its file.
    pub(super) fn held(&mut self, number: u64, file: Option<OwnedFd>) {
        let found = self.waiting.iter_mut().find(|(own, _)| *own == number);
        if let Some((_, pending)) = found
            && let What::Open(open, _) = &mut pending.what
        {
            open.held = file;
        }
    }

    /// Takes out what a sign shows to be run or to be data.
    pub(super) fn shown(&mut self, source: &Source) -> ByNow {
        let is_of_process = |pending: &Pending| pending.what.used().process.id() == source.process;
        let newest = self
            .waiting
            .iter()
            .rev()
            .find(|(_, pending)| is_of_process(pending))
            .map(|(number, _)| *number);
        let mut by_now = ByNow::default();
        for (number, pending) in std::mem::take(&mut self.waiting) {
            let facts = &pending.what.used().file.facts;
            let is_it = is_of_process(&pending)
                && facts.inode == source.inode
                && facts.device == source.device;
            let shown = match &pending.what {
                What::Open(_, Use::Sourced(kind)) if is_it => {
                    kind.shown_by(source.sign, newest == Some(number))
                }
                _ => None,
            };
            match shown {
                Some(Shown::Run) => by_now.run.push(pending),
                Some(Shown::Data) => by_now.data += 1,
                None => self.waiting.push_back((number, pending)),
            }
        }
        by_now
    }

    /// When the next one has waited long enough.
    pub(super) fn due(&self) -> Option<Instant> {
        self.waiting
            .front()
            .map(|(_, pending)| pending.since + WAIT)
    }

    /// Gives one that has waited long enough by `now`.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<Pending> {
        self.due()
            .filter(|due| *due <= now)
            .and_then(|_| self.pop())
    }

    /// Gives the oldest, due or not.
    pub(super) fn pop(&mut self) -> Option<Pending> {
        self.waiting.pop_front().map(|(_, pending)| pending)
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::{
        containers::processes::Processes,
        detect::{file::tests as sample, script::ShellKind},
        sensor::event::{Access, Open, ProcessId, Sign},
    };

    fn pending(inode: u64, since: Instant) -> Pending {
        let mut used = sample::exec("/tmp/x", |_| {}).used;
        used.file.facts.inode = inode;
        let known = Processes::default().acted(&used.process, 1);
        let sourced = Use::Sourced(ShellKind::Dash);
        let open = Open {
            used,
            access: Access {
                read: true,
                write: false,
            },
            is_interpreted: true,
            is_standard_input: false,
            is_received: false,
            descriptor: None,
            held: None,
        };
        Pending {
            since,
            what: What::Open(Box::new(open), sourced),
            known,
            visitor_of: None,
        }
    }

    #[test]
    fn a_sign_takes_its_own_file_only() {
        let mut sourced = Sourced::default();
        let now = Instant::now();
        for inode in [1, 2, 3] {
            assert!(sourced.hold(pending(inode, now)).1.is_none());
        }
        let used = pending(1, now).what.used().clone();
        let mut check = |pid: u32, inode: u64, device: u32, sign: Sign, expect: (usize, u64)| {
            let source = Source {
                process: ProcessId {
                    pid,
                    ..used.process.id()
                },
                inode,
                device,
                sign,
            };
            let by_now = sourced.shown(&source);
            assert_eq!((by_now.run.len(), by_now.data), expect, "{source:?}");
        };
        let (pid, device) = (used.process.pid, used.file.facts.device);
        check(pid + 1, 3, device, Sign::Kept, (0, 0));
        check(pid, 4, device, Sign::Kept, (0, 0));
        check(pid, 3, device + 1, Sign::Kept, (0, 0));
        check(pid, 3, device, Sign::Examined, (0, 0));
        check(pid, 1, device, Sign::Kept, (0, 0));
        check(pid, 3, device, Sign::Kept, (1, 0));
        check(pid, 3, device, Sign::Kept, (0, 0));
        check(pid, 1, device, Sign::Redirected, (0, 1));
        assert!(sourced.pop_due(now).is_none());
        let left = sourced.pop_due(now + WAIT).unwrap();
        assert_eq!(left.what.used().file.facts.inode, 2);
        assert_eq!(sourced.len(), 0);
    }

    #[test]
    fn at_the_bound_the_oldest_goes() {
        let mut sourced = Sourced::default();
        let now = Instant::now();
        for inode in 0..SOURCED_MAX as u64 {
            assert!(sourced.hold(pending(inode, now)).1.is_none());
        }
        let oldest = sourced.hold(pending(9999, now)).1.unwrap();
        assert_eq!(oldest.what.used().file.facts.inode, 0);
        assert_eq!(sourced.len(), SOURCED_MAX);
    }
}
