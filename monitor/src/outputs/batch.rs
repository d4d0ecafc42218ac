//! What an output writes at once.

use std::ops::Range;

use monitor_api::{
    json::{self, Missing},
    ocsf,
    v1::Alert,
};
use serde_json::Value;

use super::Kind;

/// What stands in the place of a severity where alerts are missing.
pub(super) const MISSING: &str = "missing";

/// Lines that are written together, each an alert or what is missing in its place.
#[derive(Debug, Default)]
pub(super) struct Batch {
    lines: String,
    items: Vec<Item>,
    /// The newest cursor in it.
    pub(super) cursor: u64,
    pub(super) alerts: u64,
    pub(super) missing: u64,
}

/// A line of a batch.
#[derive(Clone, Debug)]
pub(super) struct Item {
    /// Where it stands, without its end.
    range: Range<usize>,
    /// The first cursor that it tells of.
    pub(super) from: u64,
    /// The last; 0 if it tells of another journal.
    pub(super) cursor: u64,
    /// The alert's severity, or `missing`.
    pub(super) severity: &'static str,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// All lines, each with its end.
    pub(super) fn lines(&self) -> &str {
        &self.lines
    }

    pub(super) fn items(&self) -> &[Item] {
        &self.items
    }

    /// The line of an item, without its end.
    pub(super) fn line(&self, item: &Item) -> &str {
        self.lines.get(item.range.clone()).unwrap_or_default()
    }

    pub(super) fn push_alert(&mut self, kind: Kind, alert: &Alert) {
        let value = match kind {
            Kind::Jsonl => json::alert(alert),
            Kind::Ocsf => ocsf::alert(alert),
        };
        self.push(&value, alert.cursor, alert.cursor, alert.severity().name());
        self.cursor = alert.cursor;
        self.alerts += 1;
    }

    /// One without `before` is of another journal.
    pub(super) fn push_missing(&mut self, kind: Kind, missing: &Missing<'_>) {
        let value = missing_line(kind, missing);
        let Some(before) = missing.before else {
            return self.push(&value, 0, 0, MISSING);
        };
        self.cursor = before.saturating_sub(1);
        self.missing += before.saturating_sub(missing.from);
        self.push(&value, missing.from, self.cursor, MISSING);
    }

    fn push(&mut self, value: &Value, from: u64, cursor: u64, severity: &'static str) {
        let begin = self.lines.len();
        self.lines.push_str(&json::line(value));
        let range = begin..self.lines.len();
        self.lines.push('\n');
        self.items.push(Item {
            range,
            from,
            cursor,
            severity,
        });
    }
}

/// How it is written that alerts are missing.
pub(super) fn missing_line(kind: Kind, missing: &Missing<'_>) -> Value {
    match kind {
        Kind::Jsonl => json::missing(missing),
        Kind::Ocsf => ocsf::missing(missing),
    }
}
