//! Policies as people write them: YAML, checked as a whole.

use std::collections::{BTreeMap, HashSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    detect::{Kind, Severity},
    respond::Automatic,
    yaml::{self, API_VERSION, DocumentError},
};

/// Kind of document.
pub const KIND: &str = "Policy";

/// Rules of one document; more are refused.
pub const RULES_MAX: usize = 256;
/// Exceptions of one document; more are refused.
pub const EXCEPTIONS_MAX: usize = 1024;
/// Bytes of a name.
const NAME_BYTES_MAX: usize = 63;

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Document {
    /// [`API_VERSION`].
    pub api_version: String,
    /// [`KIND`].
    pub kind: String,
    /// Its name, which ids of its rules begin with.
    pub name: String,
    /// What adds findings, or changes their severity.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    /// What is not to be told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exceptions: Vec<Exception>,
}

/// Adds a finding, or changes the severity of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    /// Its name in the policy.
    pub name: String,
    /// What it looks at.
    pub on: On,
    /// Which containers it is for; all, if left out.
    #[serde(default, skip_serializing_if = "Selector::is_empty")]
    pub selector: Selector,
    /// A condition in CEL; always, if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<String>,
    /// How severe it is: of the finding that is added, or that is changed.
    pub severity: Severity,
    /// What a finding that is added says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What is done about it beside telling, as far as the configuration allows it.
    #[serde(default, skip_serializing_if = "Automatic::is_off")]
    pub respond: Automatic,
}

/// What a rule looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum On {
    /// The execution of a program of the image: adds `exec_unexpected`.
    Exec,
    /// The opening of a file: adds `open_sensitive`.
    Open,
    /// A peer that is reached for: adds `connect_sensitive`.
    Connect,
    /// A container, and how it was started: adds `posture`.
    Container,
    /// A finding, of whatever kind: changes its severity.
    Finding,
}

impl On {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Open => "open",
            Self::Connect => "connect",
            Self::Container => "container",
            Self::Finding => "finding",
        }
    }
}

impl On {
    /// The kind of finding that rules add; `None` of findings, which they only change.
    pub fn adds(self) -> Option<Kind> {
        match self {
            Self::Exec => Some(Kind::ExecUnexpected),
            Self::Open => Some(Kind::OpenSensitive),
            Self::Connect => Some(Kind::ConnectSensitive),
            Self::Container => Some(Kind::Posture),
            Self::Finding => None,
        }
    }
}

/// A finding that is not to be told, for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Exception {
    /// Its name.
    pub name: String,
    /// Who answers for it.
    pub owner: String,
    /// Why.
    pub reason: String,
    /// Until when it holds.
    pub until: Timestamp,
    /// Which containers it is for; all, if left out.
    #[serde(default, skip_serializing_if = "Selector::is_empty")]
    pub selector: Selector,
    /// Which findings, in CEL.
    pub when: String,
}

/// Which containers; what is left out is anything. `*` stands for any number of characters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    /// The image's reference without tag and digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// Digest of the image's manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Kubernetes' namespace of the pod; without one, containerd's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The container's name; its id if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Labels of the pod.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pod_labels: BTreeMap<String, String>,
}

impl Selector {
    /// Whether it chooses every container.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Document {
    /// A policy without rules and exceptions.
    pub fn new(name: &str) -> Self {
        Self {
            api_version: API_VERSION.to_owned(),
            kind: KIND.to_owned(),
            name: name.to_owned(),
            rules: Vec::new(),
            exceptions: Vec::new(),
        }
    }

    /// Reads a document; conditions are checked by [`super::Policies::new`].
    ///
    /// # Errors
    ///
    /// See [`DocumentError`].
    pub fn parse(text: &str) -> Result<Self, DocumentError> {
        let document: Self = yaml::parse(text)?;
        document.check()?;
        Ok(document)
    }

    /// Writes it.
    ///
    /// # Errors
    ///
    /// It holds what cannot be written.
    pub fn to_yaml(&self) -> Result<String, String> {
        yaml::write(self)
    }

    fn check(&self) -> Result<(), DocumentError> {
        let refused = |at: String, problem: String| Err(DocumentError::value(at, problem));
        yaml::check_header(&self.api_version, &self.kind, KIND)?;
        name("name", &self.name)?;
        let (rules, exceptions) = (self.rules.len(), self.exceptions.len());
        if rules > RULES_MAX || exceptions > EXCEPTIONS_MAX {
            let problem = format!("at most {RULES_MAX} and {EXCEPTIONS_MAX}");
            return refused(format!("{rules} rules, {exceptions} exceptions"), problem);
        }
        let mut names = HashSet::new();
        for rule in &self.rules {
            let at = format!("rules/{}", rule.name);
            name(&at, &rule.name)?;
            if !names.insert(&rule.name) {
                return refused(at, "another rule has the name".to_owned());
            }
            match (rule.on, &rule.message) {
                (On::Finding, Some(_)) => {
                    let problem = "a finding keeps its own message; leave message out";
                    return refused(at, problem.to_owned());
                }
                (On::Exec | On::Open | On::Connect | On::Container, None) => {
                    return refused(at, "give the message of what is found".to_owned());
                }
                (_, Some(message)) => yaml::check_text(&at, "message", message)?,
                (On::Finding, None) => {}
            }
        }
        for exception in &self.exceptions {
            let at = format!("exceptions/{}", exception.name);
            name(&at, &exception.name)?;
            if !names.insert(&exception.name) {
                return refused(at, "another rule or exception has the name".to_owned());
            }
            yaml::check_text(&at, "owner", &exception.owner)?;
            yaml::check_text(&at, "reason", &exception.reason)?;
        }
        Ok(())
    }
}

/// Names are parts of ids of rules.
fn name(at: &str, name: &str) -> Result<(), DocumentError> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_allowed) {
        return Ok(());
    }
    let problem =
        format!("a name has 1 to {NAME_BYTES_MAX} letters, digits, `-` and `_`, not {name:?}");
    Err(DocumentError::value(at, problem))
}
