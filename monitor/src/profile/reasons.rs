//! Why a profile may not have everything.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::document::State;

/// Reasons that are kept; of more the first.
const REASONS_MAX: usize = 16;
/// Bytes of one in a document.
pub(super) const REASON_BYTES_MAX: usize = 256;

const NOT_RUN: &str = "no container has run yet";
const LEARNING: &str = "learning goes on";
const OLDER: &str = "containers that started before the daemon";
const FURTHER: &str = "further losses of events";

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reasons(BTreeSet<String>);

impl Reasons {
    /// Those of a document, without those that follow from its state.
    pub(super) fn of(texts: &[String], state: State) -> Self {
        let mut reasons = Self(texts.iter().cloned().collect());
        if let Some(implied) = implied(state) {
            reasons.0.remove(implied);
        }
        reasons.bound();
        reasons
    }

    /// Those of a document.
    pub(super) fn texts(&self, state: State) -> Vec<String> {
        let mut all = self.0.clone();
        all.extend(implied(state).map(str::to_owned));
        all.into_iter().collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn lost(&mut self, at: Timestamp) {
        let second = Timestamp::from_second(at.as_second()).unwrap_or(at);
        self.0.insert(format!("events lost at {second}"));
        self.bound();
    }

    pub(super) fn set_older(&mut self, is_so: bool) {
        self.set(OLDER, is_so);
    }

    pub(super) fn set_not_run(&mut self, is_so: bool) {
        self.set(NOT_RUN, is_so);
    }

    pub(super) fn has_older(&self) -> bool {
        self.0.contains(OLDER)
    }

    pub(super) fn join(&mut self, other: &Self) {
        self.0.extend(other.0.iter().cloned());
        self.bound();
    }

    fn set(&mut self, reason: &str, is_so: bool) {
        if is_so {
            self.0.insert(reason.to_owned());
        } else {
            self.0.remove(reason);
        }
    }

    fn bound(&mut self) {
        let was = self.0.len();
        while self.0.len() > REASONS_MAX {
            // What comes last by name among losses is the latest.
            self.0.remove(FURTHER);
            if self.0.len() >= REASONS_MAX {
                self.0.pop_last();
            }
        }
        if was > REASONS_MAX {
            self.0.insert(FURTHER.to_owned());
        }
    }
}

fn implied(state: State) -> Option<&'static str> {
    match state {
        State::Seeded => Some(NOT_RUN),
        State::Learning => Some(LEARNING),
        State::Frozen => None,
    }
}
