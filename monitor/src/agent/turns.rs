//! Who floods the daemon with uses waits for its turn, and nobody else does.
//!
//! A use is judged at once, in the order of the ring, as long as its cgroup had few since nothing
//! waited. Beyond, its uses wait in a queue of their own, and the queues are judged in
//! turn. What waits stays in the ring, where what can be repeated at will is lost first, so the ring
//! bounds what waits.

use std::collections::{HashMap, VecDeque};

use tokio::sync::mpsc;

use super::{
    owner::{IN_FLIGHT_MAX, Owner},
    state::Pending,
};
use crate::sensor::event::Event;

/// Uses of a cgroup that are judged at once.
const AT_ONCE_MAX: u32 = 64;

/// Cgroups whose uses are counted; before one more they all begin anew.
const CGROUPS_MAX: usize = 16_384;

/// Uses that wait for their turn; at the bound no further events are taken. The ring has room for
/// fewer.
const TURNS_MAX: usize = 65_536;

/// Events that are taken before it is the turn of one that waits.
const EVENTS_PER_TURN: usize = 64;

/// The uses that wait for their turn.
#[derive(Debug)]
pub(super) struct Turns<T = Pending> {
    /// None of them is empty.
    queues: HashMap<u64, VecDeque<T>>,
    /// The cgroups that have a queue, in the order of their turns.
    order: VecDeque<u64>,
    len: usize,
    /// What was judged at once since there was last nothing to do, by cgroup.
    at_once: HashMap<u64, u32>,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self {
            queues: HashMap::new(),
            order: VecDeque::new(),
            len: 0,
            at_once: HashMap::new(),
        }
    }
}

impl<T> Turns<T> {
    /// Gives a use of `cgroup` back that may be judged at once; another has to [`Turns::wait`].
    pub(super) fn take(&mut self, cgroup: u64, use_: T) -> Option<T> {
        if !self.queues.contains_key(&cgroup) {
            if self.at_once.len() >= CGROUPS_MAX {
                self.at_once.clear();
            }
            let at_once = self.at_once.entry(cgroup).or_default();
            if *at_once < AT_ONCE_MAX {
                *at_once += 1;
                return Some(use_);
            }
        }
        self.wait(cgroup, use_);
        None
    }

    /// Has a use of `cgroup` wait for its turn.
    pub(super) fn wait(&mut self, cgroup: u64, use_: T) {
        let queue = self.queues.entry(cgroup).or_default();
        if queue.is_empty() {
            self.order.push_back(cgroup);
        }
        queue.push_back(use_);
        self.len += 1;
    }

    /// The use whose turn it is.
    pub(super) fn next(&mut self) -> Option<T> {
        let cgroup = self.order.pop_front()?;
        let queue = self.queues.get_mut(&cgroup)?;
        let use_ = queue.pop_front()?;
        if queue.is_empty() {
            self.queues.remove(&cgroup);
        } else {
            self.order.push_back(cgroup);
        }
        self.len -= 1;
        self.rest();
        Some(use_)
    }

    /// There are no more events: everyone may begin anew, unless something waits.
    pub(super) fn rest(&mut self) {
        if self.len == 0 {
            self.at_once.clear();
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn has_room(&self) -> bool {
        self.len < TURNS_MAX
    }
}

impl Owner {
    /// Whether the uses in flight leave room for another.
    pub(super) fn has_room(&self) -> bool {
        self.state.in_flight.len() < IN_FLIGHT_MAX
    }

    /// Takes an event and what has come after it.
    pub(super) fn events(&mut self, first: Event, more: &mut mpsc::Receiver<Event>) {
        self.event(first);
        for _ in 1..EVENTS_PER_TURN {
            match more.try_recv() {
                Ok(event) => self.event(event),
                Err(_) => return self.state.turns.rest(),
            }
        }
    }

    /// Judges a use, unless its cgroup has to wait.
    pub(super) fn take(&mut self, pending: Pending) {
        let cgroup = pending.what.used().cgroup.id;
        if !self.has_room() {
            self.state.turns.wait(cgroup, pending);
        } else if let Some(pending) = self.state.turns.take(cgroup, pending) {
            self.place_in_turn(pending);
        }
    }

    /// Judges the use whose turn it is.
    pub(super) fn take_turn(&mut self) {
        if let Some(pending) = self.state.turns.next() {
            self.place_in_turn(pending);
            self.follow_up();
        }
    }

    fn place_in_turn(&mut self, mut pending: Pending) {
        self.let_go_unpinned(&mut pending);
        self.place(pending);
    }

    /// Without a successor, a record stays in the ring only while it waits for its turn.
    pub(super) fn let_go_unpinned(&self, pending: &mut Pending) {
        if self
            .sensor
            .as_ref()
            .is_some_and(|sensor| !sensor.is_pinned())
        {
            pending.what.give_up();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn who_floods_waits_and_nobody_else() {
        let mut turns = Turns::default();
        let at_once: Vec<_> = (0..5000)
            .filter_map(|number| turns.take(1, number))
            .collect();
        assert_eq!(at_once, (0..i64::from(AT_ONCE_MAX)).collect::<Vec<_>>());
        assert_eq!(turns.take(2, -1), Some(-1), "the other is judged at once");
        for number in 1..100 {
            turns.take(2, -number);
        }
        let next: Vec<_> = (0..6).filter_map(|_| turns.next()).collect();
        assert_eq!(next, [64, -64, 65, -65, 66, -66], "in turn");
        turns.rest();
        assert_eq!(turns.take(1, 7), None, "behind what waits");
        while turns.next().is_some() {}
        assert_eq!(turns.take(1, 8), Some(8));
    }

    proptest! {
        /// Each once, and those of a cgroup in their order.
        #[test]
        fn nothing_is_lost_or_overtaken(
            steps in prop::collection::vec((0_u64..4, 0_u32..60, 0_usize..60, prop::bool::ANY), 0..40),
        ) {
            let mut turns = Turns::default();
            let (mut numbers, mut given) = (HashMap::new(), HashMap::new());
            let mut check = |(cgroup, number): (u64, u32)| {
                let expected = given.entry(cgroup).or_insert(0);
                assert_eq!(number, *expected, "of {cgroup}");
                *expected += 1;
            };
            for (cgroup, taken, judged, rests) in steps {
                for _ in 0..taken {
                    let number = numbers.entry(cgroup).or_insert(0);
                    turns.take(cgroup, (cgroup, *number)).map(&mut check);
                    *number += 1;
                }
                for _ in 0..judged {
                    turns.next().map(&mut check);
                }
                if rests {
                    turns.rest();
                }
            }
            while let Some(next) = turns.next() {
                check(next);
            }
            prop_assert_eq!(turns.len(), 0);
            prop_assert_eq!(numbers, given);
        }
    }
}
