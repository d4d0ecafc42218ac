//! What a stream has of a journal, as far as its publisher knows.
//!
//! A publisher that was interrupted does not know which of the messages in flight were stored: the
//! first ones, all, or, where the server refused or lost one in the middle, any of them. So each
//! message says in a header what its publisher knew to be stored when it was sent. The last message
//! of the node then tells from where on to look, and each message from there on what else is stored:
//! no more than was in flight once.

use std::{collections::BTreeSet, fmt, str::FromStr};

/// What the stream has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    known: Known,
    /// What else it has, by cursor.
    stored: BTreeSet<u64>,
    /// The newest sequence that a message of the node was stored at.
    newest: u64,
}

/// The stream has all up to `cursor`. Whatever it has of those that follow, it has at sequences
/// after `sequence`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) cursor: u64,
    pub(super) sequence: u64,
}

impl fmt::Display for Known {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.cursor, self.sequence)
    }
}

impl FromStr for Known {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (cursor, sequence) = text.split_once('/').ok_or(())?;
        Ok(Self {
            cursor: cursor.parse().map_err(drop)?,
            sequence: sequence.parse().map_err(drop)?,
        })
    }
}

impl Place {
    /// What a message tells that is the last of the node, at `sequence`.
    pub(super) fn told(known: Known, sequence: u64) -> Self {
        // A stream that was made anew while its publisher was connected counts anew.
        let is_anew = known.sequence >= sequence;
        Self {
            known: Known {
                sequence: if is_anew { 0 } else { known.sequence },
                ..known
            },
            stored: BTreeSet::new(),
            newest: sequence,
        }
    }

    /// The stream has nothing of this journal up to `sequence`, and needs nothing up to `cursor`.
    pub(super) fn without(cursor: u64, sequence: u64) -> Self {
        Self::told(Known { cursor, sequence }, sequence.saturating_add(1))
    }

    pub(super) fn known(&self) -> Known {
        self.known
    }

    /// A message at a sequence that is greater than the known one.
    pub(super) fn found(&mut self, cursor: u64, sequence: u64) {
        self.newest = self.newest.max(sequence);
        if cursor > self.known.cursor {
            self.stored.insert(cursor);
        }
    }

    /// The newest cursor that the stream has.
    pub(super) fn newest_cursor(&self) -> u64 {
        let last = self.stored.last().copied().unwrap_or_default();
        last.max(self.known.cursor)
    }

    pub(super) fn has(&self, cursor: u64) -> bool {
        cursor <= self.known.cursor || self.stored.contains(&cursor)
    }

    /// Whether it has all before `cursor`.
    pub(super) fn has_all_before(&self, cursor: u64) -> bool {
        let next = self.known.cursor + 1;
        (next..cursor).all(|cursor| self.stored.contains(&cursor))
    }

    /// All up to `cursor` is stored now, the last of it at `sequence`, if that was now.
    pub(super) fn advance(&mut self, cursor: u64, sequence: Option<u64>) {
        self.newest = sequence.unwrap_or(self.newest);
        self.known.cursor = self.known.cursor.max(cursor);
        self.stored.retain(|stored| *stored > self.known.cursor);
        if self.stored.is_empty() {
            self.known.sequence = self.newest;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Of one node; the message at index n has sequence n + 1.
    type Stream = Vec<(u64, Known)>;

    fn look(stream: &Stream, first: u64) -> Place {
        let Some((_, known)) = stream.last() else {
            return Place::without(first - 1, 0);
        };
        let mut place = Place::told(*known, stream.len() as u64);
        let from = usize::try_from(place.known().sequence).unwrap_or_default();
        for (index, (cursor, _)) in stream.iter().enumerate().skip(from) {
            place.found(*cursor, index as u64 + 1);
        }
        place
    }

    /// How publishing goes.
    #[derive(Clone, Debug)]
    enum Step {
        /// A chunk of so many, all stored.
        Chunk(u64),
        /// A chunk whose publisher is interrupted; of each message, whether it was stored.
        Interrupted(Vec<bool>),
        /// As that, and the publisher has forgotten so many that it had kept as acknowledged.
        Killed(Vec<bool>, u64),
        /// The stream has lost so many at its end, and the publisher is interrupted.
        Lost(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let stored = || prop::collection::vec(any::<bool>(), 1..8);
        let step = prop_oneof![
            (1..8_u64).prop_map(Step::Chunk),
            stored().prop_map(Step::Interrupted),
            (stored(), 0..20_u64).prop_map(|(stored, back)| Step::Killed(stored, back)),
            (1..20_usize).prop_map(Step::Lost),
        ];
        prop::collection::vec(step, 1..40)
    }

    proptest! {
        #[test]
        fn each_is_in_the_stream_once(steps in steps()) {
            let mut stream = Stream::new();
            let mut place = look(&stream, 1);
            // What the publisher reads next.
            let mut next = 1;
            let publish = |stream: &mut Stream, place: &Place, cursor: u64| {
                stream.push((cursor, place.known()));
                stream.len() as u64
            };
            for step in steps {
                let (count, stored) = match &step {
                    Step::Chunk(count) => (*count, None),
                    Step::Interrupted(stored) | Step::Killed(stored, _) => {
                        (stored.len() as u64, Some(stored.clone()))
                    }
                    Step::Lost(_) => (0, Some(Vec::new())),
                };
                let chunk: Vec<u64> = (next..next + count).collect();
                let wanted = chunk.iter().copied().filter(|cursor| !place.has(*cursor));
                let mut last = None;
                let mut stored = stored.clone().map(Vec::into_iter);
                let is_interrupted = stored.is_some();
                for cursor in wanted.collect::<Vec<_>>() {
                    if stored.as_mut().is_none_or(|stored| stored.next() == Some(true)) {
                        last = Some(publish(&mut stream, &place, cursor));
                    }
                }
                if !is_interrupted {
                    next += count;
                    place.advance(next - 1, last);
                    continue;
                }
                match step {
                    Step::Killed(_, back) => next = next.saturating_sub(back).max(1),
                    Step::Lost(count) => stream.truncate(stream.len().saturating_sub(count)),
                    _ => {}
                }
                if stream.is_empty() {
                    // Nothing tells that something was there; it is as if it had been purged.
                    next = 1;
                }
                place = look(&stream, next);
                if !place.has_all_before(next) {
                    next = place.known().cursor + 1;
                }
                prop_assert!(place.stored.len() <= 32, "{place:?}");
            }
            let newest = place.newest_cursor().max(next + 2);
            for cursor in (next..=newest).filter(|cursor| !place.has(*cursor)) {
                publish(&mut stream, &place, cursor);
            }
            let mut cursors: Vec<u64> = stream.iter().map(|(cursor, _)| *cursor).collect();
            cursors.sort_unstable();
            prop_assert_eq!(cursors, (1..=newest).collect::<Vec<_>>());
        }
    }
}
