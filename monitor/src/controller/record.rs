//! An order about a workload, as it is kept: in an annotation of the workload itself, so that whoever
//! leads next goes on with it, and `kubectl` shows it.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    plan::Plan,
    workload::{Name, Workload},
};
use crate::{
    digest::Digest,
    respond::{By, Kept, State},
};

/// Bytes of an order as it is kept; a longer annotation is no order of ours. The API server takes
/// 256 KiB of annotations in all.
pub const RECORD_BYTES_MAX: usize = 64 << 10;

/// A step of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Has the workload name the image.
    Apply,
    /// Sees its pods replaced.
    Rollout,
    /// Has the nodes tell what runs in them.
    Verify,
    /// Has the workload name the image of before, for `--on-failure undo`.
    PutBack,
    /// Has no pod of it run, for `--on-failure stop`.
    Halt,
}

impl Step {
    /// Its name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Apply => "apply",
            Self::Rollout => "rollout",
            Self::Verify => "verify",
            Self::PutBack => "put_back",
            Self::Halt => "halt",
        }
    }
}

/// What must be reported to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expected {
    /// Manifests that the approved digest stands for: itself, or those of its index.
    pub manifests: BTreeSet<Digest>,
    /// Chain IDs of their layers; empty if no registry could be asked, so that the manifest alone counts.
    pub chain_ids: BTreeSet<Digest>,
}

/// An order, and how it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The plan's id.
    pub id: String,
    /// What is done.
    pub plan: Plan,
    /// Who ordered it.
    pub by: By,
    /// When it began.
    pub began_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// How it stands.
    pub state: State,
    /// The step that is made, or was made last.
    pub step: Step,
    /// When each step was begun.
    pub begun: Vec<(Step, Timestamp)>,
    /// What went wrong first; empty if nothing did.
    pub failure: String,
    /// How many leaders went on with it that had not begun it.
    pub resumed: u32,
    /// Pods that were proven to run the image.
    pub proven: u64,
    /// What the present step waits for, as it was seen last; not written at the workload.
    #[serde(skip)]
    pub waits_for: String,
}

impl Record {
    /// An order that begins now.
    pub fn new(id: String, plan: Plan, by: By, now: Timestamp) -> Self {
        Self {
            id,
            plan,
            by,
            began_at: now,
            ended_at: None,
            state: State::Running,
            step: Step::Apply,
            begun: vec![(Step::Apply, now)],
            failure: String::new(),
            resumed: 0,
            proven: 0,
            waits_for: String::new(),
        }
    }

    /// A step begins.
    pub fn begin(&mut self, step: Step, now: Timestamp) {
        self.step = step;
        self.waits_for.clear();
        self.begun.retain(|(begun, _)| *begun != step);
        self.begun.push((step, now));
    }

    /// Something went wrong, maybe not the first.
    pub fn note_failure(&mut self, reason: &str) {
        if self.failure.is_empty() {
            reason.clone_into(&mut self.failure);
        } else {
            self.failure = format!("{}; then {reason}", self.failure);
        }
    }

    /// Times that are later than `now` are not believed: whoever may change a workload may write there.
    pub fn not_after(&mut self, now: Timestamp) {
        self.began_at = self.began_at.min(now);
        self.ended_at = self.ended_at.map(|at| at.min(now));
        for (_, at) in &mut self.begun {
            *at = (*at).min(now);
        }
    }

    /// When the present step began.
    pub fn since(&self) -> Timestamp {
        let found = self.begun.iter().find(|(begun, _)| *begun == self.step);
        found.map_or(self.began_at, |(_, at)| *at)
    }

    /// The last order about a workload; `None` if it has none.
    ///
    /// # Errors
    ///
    /// What is written there is no order about it.
    pub fn of(workload: &Workload) -> Result<Option<Self>, String> {
        let Some(text) = workload.annotation() else {
            return Ok(None);
        };
        if text.len() > RECORD_BYTES_MAX {
            return Err(format!("it has more than {RECORD_BYTES_MAX} bytes"));
        }
        let record: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        // A copy of a workload has its annotations.
        if record.plan.workload != workload.name || record.plan.uid != workload.uid() {
            return Err("it is about another workload".to_owned());
        }
        Ok(Some(record))
    }

    /// As it is written there.
    pub fn written(&self) -> String {
        // Of strings, numbers and lists: there is nothing that cannot be written.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Which workload it is about.
    pub fn workload(&self) -> &Name {
        &self.plan.workload
    }
}

impl Kept for Record {
    type Plan = Plan;

    fn id(&self) -> &str {
        &self.id
    }

    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn state(&self) -> State {
        self.state
    }

    fn began_at(&self) -> Timestamp {
        self.began_at
    }

    fn ended_at(&self) -> Option<Timestamp> {
        self.ended_at
    }
}
