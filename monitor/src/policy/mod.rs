//! Policies as code: rules and exceptions over what containers did and what was found. Pure.

pub mod document;
pub mod facts;
pub mod recording;
mod selector;

use std::cell::OnceCell;

use jiff::Timestamp;
use monitor_api::v1::Alert;
use serde_json::Value;

pub use self::{
    document::{Document, Exception, On, Rule},
    selector::Who,
};
use crate::{
    containers::Container,
    detect::Severity,
    expression::{Expression, ExpressionError},
    respond::Automatic,
};

/// Policies in force; more are refused.
pub const POLICIES_MAX: usize = 64;

/// The policies that are in force without being told to.
pub const DEFAULT: &str = include_str!("../../policies/default.yaml");

/// Policies are refused, and those before them stay in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A condition.
    #[error(
        "{at}: the condition is refused: {error}. It is CEL over event, container, image, process and posture"
    )]
    Condition {
        /// Where: `POLICY.RULE`.
        at: String,
        /// Why.
        error: ExpressionError,
    },
    /// Two have one name.
    #[error("two policies have the name {0:?}")]
    Twice(String),
    /// Too many.
    #[error("there are {0} policies; at most {POLICIES_MAX} are in force")]
    TooMany(usize),
}

/// Rules and exceptions in force.
#[derive(Default)]
pub struct Policies {
    rules: Vec<InForce<Rule>>,
    exceptions: Vec<InForce<Exception>>,
}

/// A rule or an exception, and what became of it.
pub struct InForce<T> {
    /// `POLICY.RULE`.
    pub id: String,
    /// As it is written.
    pub written: T,
    selector: document::Selector,
    condition: Option<Expression>,
    /// How often it held.
    pub held: u64,
    failed_before: u64,
    /// Why it is no longer in force.
    pub stopped: Option<String>,
}

impl<T> InForce<T> {
    fn new(
        policy: &str,
        name: &str,
        written: T,
        selector: &document::Selector,
        condition: Option<&str>,
    ) -> Result<Self, PolicyError> {
        let id = format!("{policy}.{name}");
        let condition = condition
            .map(|text| Expression::new(text, &facts::is_known))
            .transpose()
            .map_err(|error| PolicyError::Condition {
                at: id.clone(),
                error,
            })?;
        Ok(Self {
            selector: selector.clone(),
            condition,
            id,
            written,
            held: 0,
            failed_before: 0,
            stopped: None,
        })
    }

    /// Evaluations of the condition that failed.
    pub fn failed(&self) -> u64 {
        self.failed_before + self.condition.as_ref().map_or(0, Expression::failed)
    }

    /// Goes on counting where another of its id was.
    fn follow(&mut self, before: &[Self]) {
        if let Some(before) = before.iter().find(|before| before.id == self.id) {
            (self.held, self.failed_before) = (before.held, before.failed());
        }
    }

    fn is_for(&self, who: &Asked<'_>) -> bool {
        self.stopped.is_none() && (self.selector.is_empty() || self.selector.chooses(who.get()))
    }

    /// Whether the condition looks at more than what was done.
    fn looks_at_process(&self) -> bool {
        let condition = self.condition.as_ref();
        condition.is_some_and(|it| it.names().contains("process"))
    }

    fn holds(&mut self, facts: &Value) -> bool {
        let holds = match &mut self.condition {
            None => Ok(Some(true)),
            Some(condition) => condition.holds(facts),
        };
        match holds {
            Ok(Some(holds)) => {
                self.held += u64::from(holds);
                holds
            }
            // What fails says nothing.
            Ok(None) => {
                if self.failed() == 1 {
                    tracing::warn!(rule = self.id, %facts, "the condition of a policy fails, or gives no boolean; further failures are counted");
                }
                false
            }
            Err(slow) => {
                let reason = slow.to_string();
                tracing::error!(
                    rule = self.id,
                    reason,
                    "a rule of a policy is no longer in force"
                );
                self.stopped = Some(reason);
                false
            }
        }
    }
}

/// Whose act or finding it is; worked out when a selector asks for it.
pub struct Asked<'a> {
    container: Option<&'a Container>,
    who: OnceCell<Who>,
}

impl<'a> Asked<'a> {
    /// Of a container.
    pub fn of(container: &'a Container) -> Self {
        Self {
            container: Some(container),
            who: OnceCell::new(),
        }
    }

    /// Of a recording.
    pub fn recorded(who: Who) -> Self {
        Self {
            container: None,
            who: OnceCell::from(who),
        }
    }

    /// What selectors look at.
    pub fn get(&self) -> &Who {
        self.who.get_or_init(|| match self.container {
            Some(container) => Who::of(container),
            None => Who::default(),
        })
    }
}

/// What a rule adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Added {
    /// The rule's id.
    pub rule: String,
    /// How severe.
    pub severity: Severity,
    /// What it says.
    pub message: String,
}

/// What is to become of a finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is told as it is.
    Told,
    /// It is told with this severity, by the rule with this id.
    Severity(Severity, String),
    /// It is not told, by the exception with this id.
    Excepted(String),
}

impl Policies {
    /// Puts documents in force.
    ///
    /// # Errors
    ///
    /// See [`PolicyError`].
    pub fn new(documents: &[Document]) -> Result<Self, PolicyError> {
        if documents.len() > POLICIES_MAX {
            return Err(PolicyError::TooMany(documents.len()));
        }
        let mut policies = Self::default();
        for (index, document) in documents.iter().enumerate() {
            let name = &document.name;
            if documents
                .iter()
                .take(index)
                .any(|other| other.name == *name)
            {
                return Err(PolicyError::Twice(name.clone()));
            }
            for rule in &document.rules {
                let (selector, when) = (&rule.selector, rule.when.as_deref());
                let in_force = InForce::new(name, &rule.name, rule.clone(), selector, when)?;
                policies.rules.push(in_force);
            }
            for exception in &document.exceptions {
                let (selector, when) = (&exception.selector, Some(exception.when.as_str()));
                let written = exception.clone();
                let in_force = InForce::new(name, &exception.name, written, selector, when)?;
                policies.exceptions.push(in_force);
            }
        }
        Ok(policies)
    }

    /// Goes on counting where those before have stopped.
    pub fn follow(&mut self, before: &Self) {
        for rule in &mut self.rules {
            rule.follow(&before.rules);
        }
        for exception in &mut self.exceptions {
            exception.follow(&before.exceptions);
        }
    }

    /// Whether the time of an exception was over after `since`, at `now` at the latest.
    pub fn has_expired(&self, since: Timestamp, now: Timestamp) -> bool {
        let mut exceptions = self.exceptions.iter();
        exceptions.any(|it| it.written.until > since && it.written.until <= now)
    }

    /// Rules, in their order.
    pub fn rules(&self) -> &[InForce<Rule>] {
        &self.rules
    }

    /// What the rule with this id asks for beside telling.
    pub fn respond(&self, id: &str) -> Automatic {
        let rule = self.rules.iter().find(|rule| rule.id == id);
        rule.map_or(Automatic::Off, |rule| rule.written.respond)
    }

    /// Exceptions, in their order.
    pub fn exceptions(&self) -> &[InForce<Exception>] {
        &self.exceptions
    }

    /// Whether a rule looks at what a container does in this way.
    pub fn looks_at(&self, on: On, who: &Asked<'_>) -> bool {
        let mut rules = self.rules.iter();
        rules.any(|rule| rule.written.on == on && rule.is_for(who))
    }

    /// Whether what a rule says of it may be another the next time, though the same is done: it looks at
    /// the process.
    pub fn may_change(&self, on: On, who: &Asked<'_>) -> bool {
        let mut rules = self.rules.iter();
        rules.any(|rule| rule.written.on == on && rule.is_for(who) && rule.looks_at_process())
    }

    /// What the rules add of what a container did, by `facts`.
    pub fn added(&mut self, on: On, who: &Asked<'_>, facts: &Value) -> Vec<Added> {
        let rules = self.rules.iter_mut();
        rules
            .filter(|rule| rule.written.on == on && rule.is_for(who))
            .filter_map(|rule| {
                rule.holds(facts).then(|| Added {
                    rule: rule.id.clone(),
                    severity: rule.written.severity,
                    message: rule.written.message.clone().unwrap_or_default(),
                })
            })
            .collect()
    }

    /// What is to become of a finding, by its `facts`. Of several exceptions and rules the first decides.
    pub fn fate(&mut self, who: &Asked<'_>, facts: impl FnOnce() -> Value, now: Timestamp) -> Fate {
        let is_regraded = |rule: &InForce<Rule>| rule.written.on == On::Finding && rule.is_for(who);
        if !self.exceptions.iter().any(|it| it.is_for(who)) && !self.rules.iter().any(is_regraded) {
            return Fate::Told;
        }
        let facts = facts();
        if let Some(exception) = self.exception(who, &facts, now) {
            return Fate::Excepted(exception);
        }
        let mut rules = self.rules.iter_mut().filter(|it| is_regraded(it));
        let changed = rules.find_map(|it| {
            let severity = it.written.severity;
            it.holds(&facts).then(|| (severity, it.id.clone()))
        });
        match changed {
            Some((severity, rule)) => Fate::Severity(severity, rule),
            None => Fate::Told,
        }
    }

    /// The exception that has it that a finding is not told.
    pub fn exception(&mut self, who: &Asked<'_>, facts: &Value, now: Timestamp) -> Option<String> {
        let exceptions = self.exceptions.iter_mut();
        let mut exceptions = exceptions.filter(|it| it.written.until > now && it.is_for(who));
        exceptions.find_map(|it| it.holds(facts).then(|| it.id.clone()))
    }

    /// Whether there is an exception that may hold for findings in a container.
    pub fn has_exceptions(&self, who: &Asked<'_>) -> bool {
        self.exceptions.iter().any(|it| it.is_for(who))
    }
}

/// What findings like an alert's have in common: kind, file and its bytes, peer, and program.
const COMMON: [(&str, &str); 7] = [
    ("event", "kind"),
    ("event", "path"),
    // Other bytes at the same path are another file.
    ("event", "sha256"),
    ("event", "protocol"),
    ("event", "address"),
    ("event", "port"),
    ("process", "executable"),
];

/// The condition that findings like an alert's fulfil.
pub fn like(alert: &Alert) -> String {
    let facts = facts::of(On::Finding, alert, None);
    let equal = COMMON.iter().filter_map(|&(part, name)| {
        let value = facts::member(facts::member(&facts, part), name);
        let is_said = !value.is_null() && value != "";
        // JSON's strings and numbers are CEL's.
        is_said.then(|| format!("{part}.{name} == {value}"))
    });
    equal.collect::<Vec<_>>().join(" && ")
}

#[cfg(test)]
mod tests;
