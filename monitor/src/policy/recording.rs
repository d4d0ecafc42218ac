//! What containers did and what was found, as it was, so that policies can be tried on it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Asked, Fate, On, Policies, Who,
    facts::{self, member},
};

/// Bytes of a line; a longer one is refused.
pub const LINE_BYTES_MAX: usize = 256 << 10;

/// An act or a finding: a line of a recording.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Recorded {
    /// When.
    pub time: Timestamp,
    /// What it was.
    pub on: On,
    /// Whose it was.
    pub who: Who,
    /// What conditions look at.
    pub facts: Value,
}

/// A finding, and what policies make of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Replayed {
    /// The finding, as conditions see it.
    pub facts: Value,
    /// What becomes of it.
    pub fate: Fate,
}

impl Recorded {
    /// Reads a line.
    ///
    /// # Errors
    ///
    /// It is too long or no such line; the text says why.
    pub fn parse(line: &str) -> Result<Self, String> {
        if line.len() > LINE_BYTES_MAX {
            return Err(format!("it has more than {LINE_BYTES_MAX} bytes"));
        }
        serde_json::from_str(line).map_err(|error| error.to_string())
    }

    /// The line.
    pub fn to_line(&self) -> String {
        // Nothing in it that JSON has not.
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl Policies {
    /// The findings that would have been raised of a line of a recording, as of its time. One that a
    /// policy had added by then is none: what adds it now does so by itself.
    pub fn replay(&mut self, recorded: &Recorded) -> Vec<Replayed> {
        let asked = Asked::recorded(recorded.who.clone());
        let facts = &recorded.facts;
        let findings = match recorded.on {
            On::Finding if is_of_policy(facts) => Vec::new(),
            On::Finding => vec![facts.clone()],
            on => {
                let added = self.added(on, &asked, facts);
                added.iter().map(|it| facts::added(on, it, facts)).collect()
            }
        };
        let replayed = findings.into_iter().map(|facts| Replayed {
            fate: self.fate(&asked, || facts.clone(), recorded.time),
            facts,
        });
        replayed.collect()
    }
}

fn is_of_policy(finding: &Value) -> bool {
    let rule = member(member(finding, "event"), "rule").as_str();
    rule.is_some_and(|rule| rule.starts_with("policy."))
}

impl Replayed {
    /// The finding under the names that alerts have, and the rule that changed its severity or the exception.
    pub fn json(&self, time: Timestamp) -> Value {
        let event = member(&self.facts, "event");
        let (mut severity, mut severity_by, mut excepted_by) =
            (member(event, "severity").clone(), Value::Null, Value::Null);
        match &self.fate {
            Fate::Told => {}
            Fate::Severity(changed, by) => {
                severity = json!(changed.name());
                severity_by = json!(by);
            }
            Fate::Excepted(by) => excepted_by = json!(by),
        }
        json!({
            "time": time,
            "container": member(member(&self.facts, "container"), "id"),
            "kind": member(event, "kind"),
            "severity": severity,
            "severity_by": severity_by,
            "excepted_by": excepted_by,
            "rule": member(event, "rule"),
            "message": member(event, "message"),
            "path": member(event, "path"),
            "address": member(event, "address"),
            "port": member(event, "port"),
        })
    }
}
