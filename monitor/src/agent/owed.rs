//! What the ring no longer has and no daemon after this one would be told of, until an alert or a gap
//! that tells of it is written: pure.

use std::collections::VecDeque;

use monitor_common::HOOKS;

use crate::{alerts::log::ALERTS_MAX, sensor::event::Owed};

/// By [`monitor_common::Hook`].
pub(super) type Counts = [u64; HOOKS as usize];

/// What is told and not known to be written yet.
#[derive(Debug, Default)]
pub(super) struct Debts {
    /// With the cursors that tell of them, oldest first.
    told: VecDeque<(u64, Owed)>,
    /// What was told of and written.
    written: Counts,
}

impl Debts {
    /// Goes on after so many that were written before.
    pub(super) fn resume(written: Counts) -> Self {
        Self {
            told: VecDeque::new(),
            written,
        }
    }

    /// The alert at `cursor` tells of `owed`.
    pub(super) fn told(&mut self, cursor: u64, owed: Owed) {
        if owed.is_empty() {
            return;
        }
        let is_full = self.told.len() >= ALERTS_MAX;
        match self.told.back_mut() {
            Some((last, before)) if *last == cursor || is_full => {
                *last = cursor;
                before.add(&owed);
            }
            _ => self.told.push_back((cursor, owed)),
        }
    }

    /// What has been told of and written by now, of records that the ring, let go up to `let_go`, no
    /// longer has: before that, they would be told again.
    pub(super) fn settle(&mut self, newest: u64, let_go: u64) -> Counts {
        while let Some((cursor, owed)) = self.told.front()
            && *cursor <= newest
            && owed.is_let_go(let_go)
        {
            add(&mut self.written, owed.counts());
            self.told.pop_front();
        }
        self.written
    }
}

/// Adds each.
pub(super) fn add(sums: &mut Counts, counts: Counts) {
    for (sum, count) in sums.iter_mut().zip(counts) {
        *sum += count;
    }
}

#[cfg(test)]
mod tests {
    use monitor_common::Hook;

    use super::*;

    fn owed(count: u64) -> Owed {
        let mut owed = Owed::default();
        owed.add_count(Hook::Open, count);
        owed
    }

    #[test]
    fn what_is_told_counts_once_it_is_written() {
        let mut debts = Debts::resume(owed(7).counts());
        debts.told(3, Owed::default());
        debts.told(4, owed(1));
        debts.told(4, owed(2));
        debts.told(9, owed(10));
        for (newest, expect) in [(3, 7), (4, 10), (8, 10), (9, 20), (9, 20)] {
            assert_eq!(debts.settle(newest, 0), owed(expect).counts(), "{newest}");
        }
    }

    #[test]
    fn more_than_can_be_kept_apart_wait_for_the_last() {
        let mut debts = Debts::default();
        let count = ALERTS_MAX as u64 + 5;
        for cursor in 1..=count {
            debts.told(cursor, owed(1));
        }
        assert_eq!(debts.settle(count - 1, 0), owed(count - 6).counts());
        assert_eq!(debts.settle(count, 0), owed(count).counts());
    }
}
