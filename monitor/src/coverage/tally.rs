//! What has been lost since one last looked, and whose.

use std::collections::{BTreeMap, HashMap};

use super::{LossKind, Losses};

/// Losses of a known cgroup and mount namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Named {
    /// Id of the cgroup.
    pub cgroup_id: u64,
    /// The mount namespace.
    pub mount_namespace: u32,
    /// What was lost, and why.
    pub kind: LossKind,
}

/// Compares the account with what it was. What is counted without a name is of anybody: the names
/// are in a bounded memory of the kernel side.
#[derive(Debug, Default)]
pub struct Tally {
    named: HashMap<Named, u64>,
    // Over all looks: named or told as anybody's.
    accounted: BTreeMap<LossKind, u64>,
}

impl Tally {
    /// Goes on after what was told before: `accounted`, and of these the named ones.
    pub fn resume(accounted: &Losses, named: impl IntoIterator<Item = (Named, u64)>) -> Self {
        Self {
            named: named.into_iter().collect(),
            accounted: accounted.iter().collect(),
        }
    }

    /// Takes in all losses since the start: `totals`, and of these the named ones, which were read
    /// later. Gives what has grown, and what of it has no name. `named` is at most as long as the
    /// kernel side's memory, and only that is kept.
    pub fn grown(
        &mut self,
        totals: &Losses,
        named: impl IntoIterator<Item = (Named, u64)>,
    ) -> (Vec<(Named, u64)>, Losses) {
        let mut grown = Vec::new();
        let mut now = HashMap::new();
        for (name, count) in named {
            let before = self.named.get(&name).copied().unwrap_or(0);
            // Less than before: it was forgotten and counted anew.
            let before = if count < before { 0 } else { before };
            let accounted = self.accounted.entry(name.kind).or_default();
            // Never more than was lost: the names may be ahead, because they were read later, and of
            // what an earlier daemon has told it may not have left the names.
            let left = totals.get(name.kind).saturating_sub(*accounted);
            let more = (count - before).min(left);
            if more > 0 {
                *accounted += more;
                grown.push((name, more));
            }
            now.insert(name, before + more);
        }
        self.named = now;
        let mut unnamed = Losses::default();
        for (kind, total) in totals.iter() {
            let accounted = self.accounted.entry(kind).or_default();
            let missing = total.saturating_sub(*accounted);
            *accounted += missing;
            unnamed.add(kind, missing);
        }
        (grown, unnamed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::coverage::Cause;

    const RING: LossKind = ("exec", Cause::RingFull);

    fn named(cgroup_id: u64) -> Named {
        Named {
            cgroup_id,
            mount_namespace: 7,
            kind: RING,
        }
    }

    /// Looks one after the other: total, named by cgroup; what each finds grown and unnamed.
    type Look<'a> = (u64, &'a [(u64, u64)], &'a [(u64, u64)], u64);

    #[test]
    fn what_has_grown_is_told_once() {
        let check = |looks: &[Look<'_>]| {
            let mut tally = Tally::default();
            for (number, (total, counts, grown, unnamed)) in looks.iter().enumerate() {
                let totals = [(RING, *total)].into_iter().collect();
                let names = counts.iter().map(|(id, count)| (named(*id), *count));
                let found = tally.grown(&totals, names);
                let expect = (
                    grown.iter().map(|(id, more)| (named(*id), *more)).collect(),
                    [(RING, *unnamed)].into_iter().collect(),
                );
                assert_eq!(found, expect, "look {number} of {looks:?}");
            }
        };
        check(&[(0, &[], &[], 0)]);
        check(&[(3, &[(1, 3)], &[(1, 3)], 0), (3, &[(1, 3)], &[], 0)]);
        check(&[(5, &[(1, 2), (2, 2)], &[(1, 2), (2, 2)], 1)]);
        // Read later, the names are ahead; the totals catch up.
        check(&[(3, &[(1, 4)], &[(1, 3)], 0), (4, &[(1, 4)], &[(1, 1)], 0)]);
        // Forgotten by the kernel side, and counted anew.
        check(&[
            (9, &[(1, 9)], &[(1, 9)], 0),
            (11, &[(1, 2)], &[(1, 2)], 0),
            (12, &[], &[], 1),
        ]);
    }

    #[test]
    fn what_was_told_before_is_not_told_again() {
        let told = [(RING, 5)].into_iter().collect();
        let mut tally = Tally::resume(&told, [(named(1), 4)]);
        let totals = [(RING, 8)].into_iter().collect();
        let (grown, unnamed) = tally.grown(&totals, [(named(1), 5), (named(2), 1)]);
        assert_eq!(grown, [(named(1), 1), (named(2), 1)]);
        assert_eq!(unnamed, [(RING, 1)].into_iter().collect());
    }

    #[test]
    fn what_was_told_without_its_name_is_not_told_by_it() {
        let told = [(RING, 5)].into_iter().collect();
        let mut tally = Tally::resume(&told, [(named(1), 2)]);
        let totals = [(RING, 8)].into_iter().collect();
        let (grown, unnamed) = tally.grown(&totals, [(named(1), 8)]);
        assert_eq!(grown, [(named(1), 3)]);
        assert_eq!(unnamed, Losses::default());
    }

    proptest! {
        #[test]
        fn nothing_is_left_unsaid(
            losses in prop::collection::vec((0..4_u64, 0..9_u64, any::<bool>()), 0..60),
        ) {
            let (mut tally, mut total, mut said) = (Tally::default(), 0, 0);
            let mut counts: HashMap<u64, u64> = HashMap::new();
            for (cgroup, count, forgets) in losses {
                total += count;
                if forgets {
                    counts.remove(&cgroup);
                }
                *counts.entry(cgroup).or_default() += count;
                let totals = [(RING, total)].into_iter().collect();
                let names = counts.iter().map(|(id, count)| (named(*id), *count));
                let (grown, unnamed) = tally.grown(&totals, names);
                said += grown.iter().map(|(_, more)| more).sum::<u64>() + unnamed.total();
                prop_assert_eq!(said, total);
            }
        }
    }
}
