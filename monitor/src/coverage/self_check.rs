//! The daemon's check of itself: it does something known in a cgroup of its own, and expects to see
//! it.

use std::collections::BTreeSet;

/// Nanoseconds between two checks.
const INTERVAL_NS: u64 = 60_000_000_000;
/// How long after it was done it must have been seen; also how long it may take to be done.
const SEEN_NS_MAX: u64 = 10_000_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Begun { at_ns: u64 },
    Done { at_ns: u64 },
}

/// What became of the checks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SelfCheckCounts {
    /// When the last one that was seen was seen, in nanoseconds since boot.
    pub last_success_ns: Option<u64>,
    /// Seen.
    pub succeeded: u64,
    /// Done and not seen.
    pub missed: u64,
    /// Could not be done.
    pub failed: u64,
    /// Why the last one could not be done.
    pub error: String,
}

/// What is to be done now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing.
    Nothing,
    /// A check is to be done.
    Begin,
    /// These kinds of events were not seen.
    Missed(Vec<&'static str>),
}

/// The state of the check.
#[derive(Clone, Debug)]
pub struct SelfCheck {
    missing: BTreeSet<&'static str>,
    state: State,
    next_ns: u64,
    counts: SelfCheckCounts,
}

impl Default for SelfCheck {
    fn default() -> Self {
        Self {
            missing: BTreeSet::new(),
            state: State::Idle,
            next_ns: 0,
            counts: SelfCheckCounts::default(),
        }
    }
}

impl SelfCheck {
    /// What is to be done now; a check that begins expects events of the kinds `expected`.
    pub fn due(&mut self, now_ns: u64, expected: &[&'static str]) -> Due {
        match self.state {
            State::Idle if now_ns >= self.next_ns => {
                self.state = State::Begun { at_ns: now_ns };
                self.next_ns = now_ns.saturating_add(INTERVAL_NS);
                self.missing = expected.iter().copied().collect();
                Due::Begin
            }
            State::Done { at_ns } if now_ns.saturating_sub(at_ns) > SEEN_NS_MAX => {
                self.state = State::Idle;
                self.counts.missed += 1;
                Due::Missed(std::mem::take(&mut self.missing).into_iter().collect())
            }
            State::Begun { at_ns } if now_ns.saturating_sub(at_ns) > SEEN_NS_MAX => {
                self.done(Err("it did not end in time".to_owned()), now_ns);
                Due::Nothing
            }
            State::Idle | State::Begun { .. } | State::Done { .. } => Due::Nothing,
        }
    }

    /// An event of the check's cgroup was seen.
    pub fn seen(&mut self, kind: &str, now_ns: u64) {
        self.missing.remove(kind);
        if self.missing.is_empty() && self.state != State::Idle {
            self.state = State::Idle;
            self.counts.succeeded += 1;
            self.counts.last_success_ns = Some(now_ns);
            self.counts.error.clear();
        }
    }

    /// The check was done, or could not be.
    pub fn done(&mut self, result: Result<(), String>, now_ns: u64) {
        if !matches!(self.state, State::Begun { .. }) {
            return;
        }
        self.state = match result {
            Ok(()) => State::Done { at_ns: now_ns },
            Err(error) => {
                self.counts.failed += 1;
                self.counts.error = error;
                State::Idle
            }
        };
    }

    /// What became of the checks so far.
    pub fn counts(&self) -> &SelfCheckCounts {
        &self.counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Nothing,
        Begin,
        Missed(&'static [&'static str]),
        Seen(&'static str),
        Done,
        Failed,
    }
    use Step::{Begin, Done, Failed, Missed, Nothing, Seen};

    #[test]
    fn what_is_done_must_be_seen() {
        // Steps at seconds; then the successes, misses and failures, and the last success.
        let check = |steps: &[(u64, Step)], expect: (u64, u64, u64, Option<u64>)| {
            let mut of_self = SelfCheck::default();
            for (second, step) in steps {
                let now = second * SECOND;
                let due = match *step {
                    Seen(kind) => {
                        of_self.seen(kind, now);
                        continue;
                    }
                    Done => {
                        of_self.done(Ok(()), now);
                        continue;
                    }
                    Failed => {
                        of_self.done(Err("no".to_owned()), now);
                        continue;
                    }
                    Nothing => Due::Nothing,
                    Begin => Due::Begin,
                    Missed(kinds) => Due::Missed(kinds.to_vec()),
                };
                let found = of_self.due(now, &["exec", "open"]);
                assert_eq!(found, due, "at {second} of {steps:?}");
            }
            let counts = of_self.counts();
            let success = counts.last_success_ns.map(|time| time / SECOND);
            let found = (counts.succeeded, counts.missed, counts.failed, success);
            assert_eq!(found, expect, "{steps:?}");
        };
        let seen = [(1, Begin), (1, Seen("exec")), (2, Seen("open")), (2, Done)];
        check(&seen, (1, 0, 0, Some(2)));
        check(
            &[&seen[..], &[(30, Nothing), (61, Begin)]].concat(),
            (1, 0, 0, Some(2)),
        );
        // It may be seen before or after it is known to have been done.
        let late = [(1, Begin), (2, Done), (3, Seen("exec")), (11, Nothing)];
        check(
            &[&late[..], &[(12, Seen("open"))]].concat(),
            (1, 0, 0, Some(12)),
        );
        check(
            &[&late[..], &[(13, Missed(&["open"]))]].concat(),
            (0, 1, 0, None),
        );
        // After a miss there is another check, and what comes late is not taken for its event.
        let missed = [(1, Begin), (1, Done), (12, Missed(&["exec", "open"]))];
        check(
            &[
                &missed[..],
                &[(13, Seen("exec")), (14, Seen("open")), (61, Begin)],
            ]
            .concat(),
            (0, 1, 0, None),
        );
        // What was not done is not missed.
        check(
            &[(1, Begin), (1, Failed), (20, Nothing), (61, Begin)],
            (0, 0, 1, None),
        );
        check(&[(1, Begin), (12, Nothing), (61, Begin)], (0, 0, 1, None));
    }
}
