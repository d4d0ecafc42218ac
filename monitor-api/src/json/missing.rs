//! What stands among alerts where some are missing.

use serde_json::{Value, json};

use super::time;
use crate::SCHEMA;

/// Cursors that are missing in a series of alerts.
#[derive(Clone, Copy, Debug)]
pub struct Missing<'a> {
    /// The journal that they count in.
    pub journal: &'a str,
    /// The first that is missing.
    pub from: u64,
    /// The first that is not; none if all that followed is missing.
    pub before: Option<u64>,
    /// `expired`, `not_written`, `damaged` or `journal_changed`.
    pub reason: &'a str,
    /// When it was found out.
    pub time: prost_types::Timestamp,
}

impl Missing<'_> {
    /// One sentence for people.
    pub fn message(&self) -> String {
        let Self { from, reason, .. } = self;
        match self.before {
            Some(before) => format!(
                "alerts {from} to {} are missing: {reason}",
                before.saturating_sub(1)
            ),
            None => format!("alerts from {from} on are missing: {reason}"),
        }
    }

    /// The keys of `missing` in [`missing`].
    pub(crate) fn json(&self) -> Value {
        json!({
            "from": self.from.to_string(),
            "before": self.before.map(|before| before.to_string()),
            "reason": self.reason,
        })
    }
}

/// What stands among alerts where some are missing: it has no `cursor`.
pub fn missing(missing: &Missing<'_>) -> Value {
    json!({
        "schema": SCHEMA,
        "journal": missing.journal,
        "time": time(Some(&missing.time)),
        "missing": missing.json(),
    })
}
