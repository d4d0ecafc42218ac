//! Which records the daemon has read and not done with yet: pure.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Weak,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
};

use monitor_common::{HOOKS, Hook, Mark};

/// The record may go from the ring; what becomes of it is seen later.
const LEFT: u8 = 1;
/// Likewise, and who held its receipt says when that has been told.
const OWED: u8 = 2;
/// The mark counts it as untold.
const COUNTED: u8 = 4;

/// What was read and let go, for others than the reader.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Up to which position in the ring.
    read: AtomicU64,
    /// Up to which position in the ring.
    let_go: AtomicU64,
    /// By [`Hook`], records that the mark counts as untold and that were done with since.
    told_later: [AtomicU64; HOOKS as usize],
}

impl Progress {
    pub(super) fn set(&self, read: Mark, let_go: Mark) {
        self.let_go.store(let_go.position, Ordering::Release);
        self.read.store(read.position, Ordering::Release);
    }

    /// Bytes of the ring between the two, at most.
    pub(super) fn held_bytes(&self) -> u64 {
        let let_go = self.let_go();
        self.read.load(Ordering::Acquire).saturating_sub(let_go)
    }

    pub(super) fn let_go(&self) -> u64 {
        self.let_go.load(Ordering::Acquire)
    }

    pub(super) fn told_later(&self) -> [u64; HOOKS as usize] {
        (self.told_later.each_ref()).map(|count| count.load(Ordering::Relaxed))
    }
}

#[derive(Debug)]
struct Ticket {
    /// `None` if it is no record's.
    hook: Option<Hook>,
    /// Where the record ends.
    position: u64,
    state: AtomicU8,
    progress: Arc<Progress>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let state = *self.state.get_mut();
        if state & COUNTED != 0
            && state & OWED == 0
            && let Some(hook) = self.hook
            && let Some(count) = self.progress.told_later.get(hook as usize)
        {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Whoever holds one has not done yet with the event that it came with. Until then, or until it is
/// left, its record stays in the ring for a next daemon.
#[derive(Clone, Debug, Default)]
pub struct Receipt(Option<Arc<Ticket>>);

impl Receipt {
    /// Of a record of `hook` that ends at `end`.
    pub(super) fn new(hook: Hook, end: Mark, progress: &Arc<Progress>) -> Self {
        Self(Some(Arc::new(Ticket {
            hook: Some(hook),
            position: end.position,
            state: AtomicU8::new(0),
            progress: Arc::clone(progress),
        })))
    }

    /// Of what came by no record; whether it is still held is seen by the second.
    pub(super) fn of_no_record() -> (Self, Held) {
        let ticket = Arc::new(Ticket {
            hook: None,
            position: 0,
            state: AtomicU8::new(0),
            progress: Arc::default(),
        });
        let held = Held(Arc::downgrade(&ticket));
        (Self(Some(ticket)), held)
    }

    /// Lets the record go although its holder has not done with it: it counts as untold until then.
    /// False if there is none, or it was left before.
    pub fn leave(&mut self) -> bool {
        let is_of_record = |ticket: &Arc<Ticket>| ticket.hook.is_some();
        if self.0.as_ref().is_none_or(is_of_record) {
            self.set(LEFT)
        } else {
            self.0.take().is_some()
        }
    }

    /// Lets the record go as one that is untold until [`Owed::is_let_go`] and its holder says so.
    /// Nothing if there is none, or it was owed before.
    pub fn owe(&self) -> Owed {
        let mut owed = Owed::default();
        if let Some(ticket) = &self.0
            && let Some(hook) = ticket.hook
            && self.set(OWED)
        {
            owed.position = ticket.position;
            owed.add_count(hook, 1);
        }
        owed
    }

    fn set(&self, flag: u8) -> bool {
        let ticket = self.0.as_ref();
        ticket.is_some_and(|ticket| ticket.state.fetch_or(flag, Ordering::AcqRel) & flag == 0)
    }
}

/// A receipt is no part of what happened.
impl PartialEq for Receipt {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Receipt {}

/// Sees whether somebody still holds a receipt.
pub(super) struct Held(Weak<Ticket>);

impl Held {
    pub(super) fn is_held(&self) -> bool {
        self.0.strong_count() > 0
    }
}

/// Records that were let go, or soon are, and are still to be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owed {
    /// Where the last of them ends.
    position: u64,
    counts: [u64; HOOKS as usize],
}

impl Owed {
    /// That many of a kind, let go before.
    pub fn add_count(&mut self, hook: Hook, count: u64) {
        if let Some(sum) = self.counts.get_mut(hook as usize) {
            *sum += count;
        }
    }

    /// All of `other` too.
    pub fn add(&mut self, other: &Self) {
        self.position = self.position.max(other.position);
        for (sum, count) in self.counts.iter_mut().zip(other.counts) {
            *sum += count;
        }
    }

    /// How many of a kind.
    pub fn count(&self, hook: Hook) -> u64 {
        self.counts.get(hook as usize).copied().unwrap_or(0)
    }

    /// How many, by [`Hook`].
    pub fn counts(&self) -> [u64; HOOKS as usize] {
        self.counts
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.counts.iter().all(|count| *count == 0)
    }

    /// Whether a ring that was let go up to `position` no longer has them.
    pub fn is_let_go(&self, position: u64) -> bool {
        self.position <= position
    }
}

/// A record that came with a receipt, and those after it without one.
struct Record {
    /// Where they end.
    end: Mark,
    ticket: Arc<Ticket>,
}

impl Record {
    /// Whether it may go, and whether it is untold then.
    fn settled(&mut self) -> Option<bool> {
        // In this order: what its last holder did is seen then.
        let is_held = Arc::get_mut(&mut self.ticket).is_none();
        let state = self.ticket.state.load(Ordering::Acquire);
        if state & (LEFT | OWED) == 0 {
            return (!is_held).then_some(false);
        }
        let is_untold = is_held || state & OWED != 0;
        if is_untold {
            self.ticket.state.fetch_or(COUNTED, Ordering::AcqRel);
        }
        Some(is_untold)
    }
}

/// Records that were read, oldest first, as far as one of them is not settled.
pub(super) struct Unsettled {
    records: VecDeque<Record>,
    /// Where the last record ends that was read.
    read: Mark,
    /// Up to where every record is settled.
    settled: Mark,
    /// Before that, what is untold and not let go yet.
    untold: Vec<Arc<Ticket>>,
}

impl Unsettled {
    /// Nothing after `begin` was read yet.
    pub(super) fn new(begin: Mark) -> Self {
        Self {
            records: VecDeque::new(),
            read: begin,
            settled: begin,
            untold: Vec::new(),
        }
    }

    /// A record that ends at `end` was read. It is settled when its receipt is gone or left, one
    /// without a receipt with the record before it.
    pub(super) fn read(&mut self, end: Mark, receipt: Option<&Receipt>) {
        self.read = end;
        match receipt.and_then(|receipt| receipt.0.as_ref()) {
            Some(ticket) => self.records.push_back(Record {
                end,
                ticket: Arc::clone(ticket),
            }),
            None => {
                if let Some(last) = self.records.back_mut() {
                    last.end = end;
                }
            }
        }
    }

    /// Up to where everything is settled, and how much before that is untold.
    pub(super) fn settled(&mut self) -> Mark {
        while let Some(mut oldest) = self.records.pop_front() {
            let Some(is_untold) = oldest.settled() else {
                self.records.push_front(oldest);
                return self.settled;
            };
            self.settle(oldest.end);
            if is_untold {
                let counts = &mut self.settled.untold;
                let hook = oldest.ticket.hook.map(|hook| hook as usize);
                if let Some(count) = hook.and_then(|hook| counts.get_mut(hook)) {
                    *count += 1;
                }
                self.untold.push(oldest.ticket);
            }
        }
        self.settle(self.read);
        self.settled
    }

    /// What was settled has been let go.
    pub(super) fn let_go(&mut self) {
        self.untold.clear();
    }

    fn settle(&mut self, end: Mark) {
        self.settled.position = end.position;
        self.settled.records = end.records;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a model that keeps every record by its number.
        #[test]
        fn what_is_not_settled_stays_and_what_is_left_is_untold_until_it_is_done(
            records in prop::collection::vec((prop::bool::ANY, 0_usize..8, 0_u8..4), 0..60),
        ) {
            let of = |counts: [u64; HOOKS as usize]| {
                counts.get(Hook::Open as usize).copied().unwrap_or(0)
            };
            let progress = Arc::new(Progress::default());
            let mut unsettled = Unsettled::new(Mark::default());
            let (mut kept, mut gone): (Vec<(u64, Receipt)>, Vec<Receipt>) = Default::default();
            let (mut owed, mut owed_let_go) = (Owed::default(), 0);
            for (number, (has_receipt, which, what)) in (0_u64..).zip(records) {
                let read = Mark {
                    position: 8 * (number + 1),
                    records: number + 1,
                    ..Mark::default()
                };
                let receipt = has_receipt.then(|| Receipt::new(Hook::Open, read, &progress));
                unsettled.read(read, receipt.as_ref());
                kept.extend(receipt.map(|receipt| (number, receipt)));
                if which < kept.len() {
                    match what {
                        0 => drop(kept.remove(which)),
                        // Both leave nothing that keeps it in the ring.
                        1 => gone.push(kept.remove(which).1),
                        _ => owed.add(&kept.remove(which).1.owe()),
                    }
                    for receipt in &mut gone {
                        let _ = receipt.leave();
                    }
                }
                let mark = unsettled.settled();
                unsettled.let_go();
                // All before the oldest that waits, and nothing else.
                let oldest = kept.first().map_or(read.records, |(number, _)| *number);
                prop_assert_eq!((mark.position, mark.records), (8 * oldest, oldest));
                if owed.is_let_go(mark.position) {
                    owed_let_go += owed.count(Hook::Open);
                    owed = Owed::default();
                }
                // What was let go and is not done with.
                let told = of(progress.told_later());
                let left = gone.iter().filter(|receipt| {
                    receipt.0.as_ref().is_some_and(|one| one.position <= mark.position)
                });
                let untold = left.count() as u64 + owed_let_go;
                let partly = owed.count(Hook::Open);
                let counted = of(mark.untold) - told;
                prop_assert!(untold <= counted && counted <= untold + partly);
                if what == 3 {
                    gone.clear();
                }
            }
        }
    }
}
