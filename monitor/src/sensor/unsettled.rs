//! Which records the daemon has read and not judged yet: pure.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
};

use monitor_common::Mark;

/// Whoever holds one has not done yet with the event that it came with.
#[derive(Clone, Debug, Default)]
pub struct Receipt(Option<Arc<()>>);

impl Receipt {
    pub(super) fn new() -> Self {
        Self(Some(Arc::default()))
    }

    /// Whether anybody waits for it.
    pub fn is_some(&self) -> bool {
        self.0.is_some()
    }

    /// Whether others hold the same is seen by this without holding it.
    pub(super) fn observe(&self) -> Weak<()> {
        self.0.as_ref().map(Arc::downgrade).unwrap_or_default()
    }
}

/// A receipt is no part of what happened.
impl PartialEq for Receipt {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Receipt {}

/// A record that came with a receipt, and those after it without one.
struct Record {
    end: Mark,
    receipt: Weak<()>,
}

/// Records that were read, oldest first, as far as one of them is not settled.
pub(super) struct Unsettled {
    records: VecDeque<Record>,
    /// Where the last record ends that was read.
    read: Mark,
    /// Up to where every record is settled.
    settled: Mark,
}

impl Unsettled {
    /// Nothing after `begin` was read yet.
    pub(super) fn new(begin: Mark) -> Self {
        Self {
            records: VecDeque::new(),
            read: begin,
            settled: begin,
        }
    }

    /// A record that ends at `end` was read. It is settled when its receipt is gone, one without a
    /// receipt with the record before it.
    pub(super) fn read(&mut self, end: Mark, receipt: Option<&Receipt>) {
        self.read = end;
        match receipt {
            Some(receipt) => self.records.push_back(Record {
                end,
                receipt: receipt.observe(),
            }),
            None => {
                if let Some(last) = self.records.back_mut() {
                    last.end = end;
                }
            }
        }
    }

    /// Up to where everything is settled.
    pub(super) fn settled(&mut self) -> Mark {
        while let Some(oldest) = self.records.front() {
            if oldest.receipt.strong_count() > 0 {
                return self.settled;
            }
            self.settled = oldest.end;
            self.records.pop_front();
        }
        self.settled = self.read;
        self.settled
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a model that keeps every record by its number.
        #[test]
        fn what_is_not_settled_stays(
            records in prop::collection::vec((prop::bool::ANY, 0_usize..8), 0..60),
        ) {
            let mut unsettled = Unsettled::new(Mark::default());
            let mut kept = Vec::new();
            for (number, (has_receipt, settle)) in (0_u64..).zip(records) {
                let read = Mark { position: 8 * (number + 1), records: number + 1 };
                let receipt = has_receipt.then(Receipt::new);
                unsettled.read(read, receipt.as_ref());
                kept.extend(receipt.map(|receipt| (number, receipt)));
                if settle < kept.len() {
                    kept.remove(settle);
                }
                let mark = unsettled.settled();
                // All before the oldest that waits, and nothing else.
                let oldest = kept.first().map_or(read.records, |(number, _)| *number);
                prop_assert_eq!(mark, Mark { position: 8 * oldest, records: oldest });
            }
        }
    }
}
