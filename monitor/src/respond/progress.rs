//! How an order goes on: which step comes after which, and how it ends. Pure.

use serde::{Deserialize, Serialize};

use super::order::OnFailure;

/// A step of an order. Each looks at what there is and does what is missing, so that it can be done
/// again after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Brings the image from its registry to containerd.
    Pull,
    /// Unpacks its layers.
    Unpack,
    /// Prepares the new snapshot.
    Prepare,
    /// Notes the old container under another id.
    Keep,
    /// Ends the old task.
    Stop,
    /// Creates the new container under the id of the old one.
    Replace,
    /// Starts it.
    Start,
    /// Proves what runs.
    Verify,
    /// Sees that it stays up.
    Watch,
    /// Removes what was prepared: nothing has changed.
    Discard,
    /// Ends the new container, for [`OnFailure::Stop`].
    Halt,
    /// Removes the new container and puts the old one back, for [`OnFailure::Undo`].
    PutBack,
    /// Starts the old one.
    StartOld,
}

/// How an order stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It is under way.
    Running,
    /// The new container runs, which is proven.
    Done,
    /// It went wrong and was left as it was then.
    Held,
    /// It went wrong; the old container runs again.
    Undone,
    /// It went wrong; neither container runs.
    Stopped,
    /// It went wrong before anything had changed.
    Failed,
    /// It was given up before anything had changed.
    Aborted,
}

/// What comes after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Another one.
    Step(Step),
    /// Nothing.
    End(State),
}

impl Step {
    /// Its name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Unpack => "unpack",
            Self::Prepare => "prepare",
            Self::Keep => "keep",
            Self::Stop => "stop",
            Self::Replace => "replace",
            Self::Start => "start",
            Self::Verify => "verify",
            Self::Watch => "watch",
            Self::Discard => "discard",
            Self::Halt => "halt",
            Self::PutBack => "put_back",
            Self::StartOld => "start_old",
        }
    }

    /// Whether all that was made so far can be taken back without a trace.
    pub fn is_harmless(self) -> bool {
        matches!(self, Self::Pull | Self::Unpack | Self::Prepare | Self::Keep)
    }

    /// What comes after it. `is_ok` says whether it was done, `is_aborted` whether the order is to be
    /// given up.
    pub fn next(self, is_ok: bool, is_aborted: bool, on_failure: OnFailure) -> Next {
        match (self, is_ok) {
            (step, _) if is_aborted && step.is_harmless() => Next::Step(Self::Discard),
            (Self::Pull, true) => Next::Step(Self::Unpack),
            (Self::Unpack, true) => Next::Step(Self::Prepare),
            (Self::Prepare, true) => Next::Step(Self::Keep),
            (Self::Keep, true) => Next::Step(Self::Stop),
            (Self::Pull | Self::Unpack | Self::Prepare | Self::Keep, false) => {
                Next::Step(Self::Discard)
            }
            (Self::Stop, true) => Next::Step(Self::Replace),
            (Self::Replace, true) => Next::Step(Self::Start),
            (Self::Start, true) => Next::Step(Self::Verify),
            (Self::Verify, true) => Next::Step(Self::Watch),
            (Self::Watch, true) => Next::End(State::Done),
            (Self::Stop | Self::Replace | Self::Start | Self::Verify | Self::Watch, false) => {
                match on_failure {
                    OnFailure::Hold => Next::End(State::Held),
                    OnFailure::Undo => Next::Step(Self::PutBack),
                    OnFailure::Stop => Next::Step(Self::Halt),
                }
            }
            (Self::PutBack, true) => Next::Step(Self::StartOld),
            (Self::StartOld, true) => Next::End(State::Undone),
            (Self::Halt, true) => Next::End(State::Stopped),
            (Self::Discard, true) if is_aborted => Next::End(State::Aborted),
            (Self::Discard, true) => Next::End(State::Failed),
            (Self::PutBack | Self::StartOld | Self::Halt | Self::Discard, false) => {
                Next::End(State::Held)
            }
        }
    }
}

impl State {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Running,
        Self::Done,
        Self::Held,
        Self::Undone,
        Self::Stopped,
        Self::Failed,
        Self::Aborted,
    ];

    /// Its name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Held => "held",
            Self::Undone => "undone",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Aborted => "aborted",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The steps until an order ends, if `failing` fails.
    fn run(
        failing: Option<Step>,
        aborted_after: Option<Step>,
        on_failure: OnFailure,
    ) -> (Vec<&'static str>, State) {
        let (mut step, mut steps, mut is_aborted) = (Step::Pull, Vec::new(), false);
        loop {
            steps.push(step.name());
            is_aborted |= aborted_after == Some(step);
            match step.next(failing != Some(step), is_aborted, on_failure) {
                Next::Step(next) => step = next,
                Next::End(state) => return (steps, state),
            }
        }
    }

    #[test]
    fn an_order_ends_in_each_way() {
        let check = |failing, aborted, on_failure, last: &[&str], expect| {
            let (steps, state) = run(failing, aborted, on_failure);
            assert!(steps.ends_with(last), "{steps:?}");
            assert_eq!(state, expect, "{failing:?} {on_failure:?}");
        };
        let hold = OnFailure::Hold;
        let forward = [
            "pull", "unpack", "prepare", "keep", "stop", "replace", "start", "verify", "watch",
        ];
        check(None, None, hold, &forward, State::Done);
        for step in [Step::Pull, Step::Unpack, Step::Prepare] {
            let early = [step.name(), "discard"];
            check(Some(step), None, hold, &early, State::Failed);
        }
        let undo = OnFailure::Undo;
        check(Some(Step::Keep), None, undo, &["discard"], State::Failed);
        check(Some(Step::Discard), None, hold, &["watch"], State::Done);
        for step in [
            Step::Stop,
            Step::Replace,
            Step::Start,
            Step::Verify,
            Step::Watch,
        ] {
            check(Some(step), None, hold, &[step.name()], State::Held);
            let back = [step.name(), "put_back", "start_old"];
            check(Some(step), None, undo, &back, State::Undone);
            let halt = [step.name(), "halt"];
            check(Some(step), None, OnFailure::Stop, &halt, State::Stopped);
        }
    }

    #[test]
    fn an_order_is_given_up_only_while_nothing_has_changed() {
        let check = |after, last: &[&str], expect| {
            let (steps, state) = run(None, Some(after), OnFailure::Hold);
            assert!(steps.ends_with(last), "{steps:?}");
            assert_eq!(state, expect, "{after:?}");
        };
        check(Step::Pull, &["pull", "discard"], State::Aborted);
        check(Step::Unpack, &["unpack", "discard"], State::Aborted);
        check(Step::Prepare, &["prepare", "discard"], State::Aborted);
        check(Step::Keep, &["keep", "discard"], State::Aborted);
        check(Step::Stop, &["watch"], State::Done);
    }

    #[test]
    fn what_fails_on_the_way_back_is_held() {
        let check = |step: Step| {
            let next = step.next(false, false, OnFailure::Undo);
            assert_eq!(next, Next::End(State::Held), "{step:?}");
        };
        check(Step::PutBack);
        check(Step::StartOld);
        check(Step::Halt);
        check(Step::Discard);
    }
}
