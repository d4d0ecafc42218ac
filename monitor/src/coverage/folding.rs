//! One gap for what goes on: at most one per container in [`INTERVAL_NS`], with everything that was
//! lost since the last.

use std::{collections::HashMap, sync::Arc};

use super::{Affected, Losses};
use crate::containers::{Container, inventory::Key};

/// Nanoseconds between two gaps of one container.
pub const INTERVAL_NS: u64 = 5_000_000_000;
/// Containers whose losses are folded apart; those of more are told as anybody's.
const AFFECTED_MAX: usize = 1024;

/// A loss and the time in which it happened, in nanoseconds since boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// The last time at which nothing was missing.
    pub begin_ns: u64,
    /// When it was found out.
    pub end_ns: u64,
    /// What.
    pub losses: Losses,
}

#[derive(Debug, Default)]
struct Entry {
    affected: Affected,
    told_ns: Option<u64>,
    pending: Option<Loss>,
}

impl Entry {
    fn is_due(&self, now_ns: u64) -> bool {
        self.told_ns
            .is_none_or(|told| now_ns.saturating_sub(told) >= INTERVAL_NS)
    }
}

type Whose = Option<(Key, i128)>;

/// The losses that have not been told yet.
#[derive(Debug, Default)]
pub struct Folding {
    entries: HashMap<Whose, Entry>,
}

impl Folding {
    /// Something of `affected` was lost.
    pub fn add(&mut self, affected: Option<&Arc<Container>>, loss: Loss) {
        if loss.losses.is_empty() {
            return;
        }
        let name = |container: &Arc<Container>| (Key::of(container), container.created_unix_ns);
        let mut whose = affected.map(name);
        if !self.entries.contains_key(&whose) && self.entries.len() >= AFFECTED_MAX {
            whose = None;
        }
        let affected = affected.filter(|_| whose.is_some());
        let entry = self.entries.entry(whose).or_default();
        entry.affected = affected.cloned();
        match &mut entry.pending {
            Some(pending) => {
                pending.begin_ns = pending.begin_ns.min(loss.begin_ns);
                pending.end_ns = pending.end_ns.max(loss.end_ns);
                pending.losses.add_all(&loss.losses);
            }
            None => entry.pending = Some(loss),
        }
    }

    /// Whether everything has been told.
    pub fn is_told(&self) -> bool {
        self.entries.values().all(|entry| entry.pending.is_none())
    }

    /// What is to be told now.
    pub fn take_due(&mut self, now_ns: u64) -> Vec<(Affected, Loss)> {
        let mut due = Vec::new();
        self.entries.retain(|_, entry| {
            if !entry.is_due(now_ns) {
                return true;
            }
            let Some(loss) = entry.pending.take() else {
                return false;
            };
            entry.told_ns = Some(now_ns);
            due.push((entry.affected.clone(), loss));
            true
        });
        due
    }

    /// What is left to be told, at the end.
    pub fn take_all(&mut self) -> Vec<(Affected, Loss)> {
        let entries = std::mem::take(&mut self.entries).into_values();
        entries
            .filter_map(|entry| Some((entry.affected, entry.pending?)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{coverage::Cause, detect::file::tests as sample};

    const SECOND: u64 = 1_000_000_000;

    fn loss(begin: u64, end: u64, count: u64) -> Loss {
        Loss {
            begin_ns: begin * SECOND,
            end_ns: end * SECOND,
            losses: [(("exec", Cause::RingFull), count)].into_iter().collect(),
        }
    }

    fn container(name: &str) -> Arc<Container> {
        let mut container = sample::container();
        Arc::make_mut(&mut container).id = name.to_owned();
        container
    }

    #[derive(Clone, Copy, Debug)]
    enum Step<'a> {
        /// Of whom, from, to, how many.
        Lose(&'a str, u64, u64, u64),
        /// When, and what is told: of whom, from, to, how many.
        Look(u64, &'a [(&'a str, u64, u64, u64)]),
        /// What is told at the end.
        End(&'a [(&'a str, u64, u64, u64)]),
    }
    use Step::{End, Look, Lose};

    fn shown(told: Vec<(Affected, Loss)>) -> Vec<(String, u64, u64, u64)> {
        let mut shown: Vec<_> = told
            .into_iter()
            .map(|(affected, loss)| {
                let who = affected.map_or_else(String::new, |container| container.id.clone());
                let (begin, end) = (loss.begin_ns / SECOND, loss.end_ns / SECOND);
                (who, begin, end, loss.losses.total())
            })
            .collect();
        shown.sort();
        shown
    }

    #[test]
    fn what_goes_on_is_told_every_five_seconds() {
        let check = |steps: &[Step<'_>]| {
            let mut folding = Folding::default();
            for step in steps {
                let (told, expect) = match *step {
                    Lose("", begin, end, count) => {
                        folding.add(None, loss(begin, end, count));
                        continue;
                    }
                    Lose(who, begin, end, count) => {
                        folding.add(Some(&container(who)), loss(begin, end, count));
                        continue;
                    }
                    Look(now, expect) => (folding.take_due(now * SECOND), expect),
                    End(expect) => (folding.take_all(), expect),
                };
                let expect: Vec<_> = expect
                    .iter()
                    .map(|(who, begin, end, count)| ((*who).to_owned(), *begin, *end, *count))
                    .collect();
                assert_eq!(shown(told), expect, "{step:?} of {steps:?}");
            }
        };
        check(&[Look(1, &[]), End(&[])]);
        check(&[
            Lose("a", 0, 1, 3),
            Look(1, &[("a", 0, 1, 3)]),
            Look(9, &[]),
            End(&[]),
        ]);
        // The first is told at once, the rest five seconds later.
        check(&[
            Lose("a", 0, 1, 1),
            Look(1, &[("a", 0, 1, 1)]),
            Lose("a", 1, 2, 10),
            Look(2, &[]),
            Lose("a", 4, 5, 100),
            Look(5, &[]),
            Look(6, &[("a", 1, 5, 110)]),
            Look(11, &[]),
        ]);
        // Containers do not wait for each other, nor for what is anybody's.
        check(&[
            Lose("a", 0, 1, 1),
            Look(1, &[("a", 0, 1, 1)]),
            Lose("b", 1, 2, 2),
            Lose("", 1, 2, 3),
            Look(2, &[("", 1, 2, 3), ("b", 1, 2, 2)]),
        ]);
        // At the end nothing waits.
        check(&[
            Lose("a", 0, 1, 1),
            Look(1, &[("a", 0, 1, 1)]),
            Lose("a", 1, 2, 5),
            End(&[("a", 1, 2, 5)]),
        ]);
        check(&[Lose("a", 0, 1, 0), Look(1, &[])]);
    }

    #[test]
    fn more_containers_than_the_bound_are_told_as_anybodys() {
        let mut folding = Folding::default();
        for number in 0..AFFECTED_MAX + 5 {
            folding.add(Some(&container(&number.to_string())), loss(0, 1, 1));
        }
        let told = shown(folding.take_due(SECOND));
        assert_eq!(told.len(), AFFECTED_MAX + 1);
        assert_eq!(told.first(), Some(&(String::new(), 0, 1, 5)));
    }

    proptest! {
        #[test]
        fn all_that_is_lost_is_told(
            steps in prop::collection::vec((0..3_u64, 0..4_u64, 0..9_u64), 0..80),
        ) {
            let (mut folding, mut now, mut lost, mut told) = (Folding::default(), 0, 0, 0);
            let mut last: HashMap<String, u64> = HashMap::new();
            for (wait, who, count) in steps {
                now += wait;
                let affected = (who > 0).then(|| container(&who.to_string()));
                folding.add(affected.as_ref(), loss(now, now + 1, count));
                lost += count;
                for (who, _, _, count) in shown(folding.take_due(now * SECOND)) {
                    told += count;
                    let before = last.insert(who, now);
                    prop_assert!(before.is_none_or(|before| now - before >= 5));
                }
            }
            told += shown(folding.take_all()).iter().map(|told| told.3).sum::<u64>();
            prop_assert_eq!(told, lost);
        }
    }
}
