//! Approvals of one repository as people and the API write them: YAML, checked as a whole.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    yaml::{self, API_VERSION, DocumentError},
};

/// Kind of document.
pub const KIND: &str = "ImageApproval";

/// Statements of one document; more are refused.
pub const STATEMENTS_MAX: usize = 1024;
/// Bytes of a repository's name, which the OCI distribution specification leaves to registries.
pub const REPOSITORY_BYTES_MAX: usize = 255;

/// What was said of the images of one repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Document {
    /// [`API_VERSION`].
    pub api_version: String,
    /// [`KIND`].
    pub kind: String,
    /// A reference without tag and digest, as containers are created with it.
    pub repository: String,
    /// In the order of their times.
    pub statements: Vec<Statement>,
}

/// That an image is approved, or no longer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Statement {
    /// Digest of a manifest, or of an index, which stands for each manifest in it.
    pub digest: Digest,
    /// What is said.
    pub state: State,
    /// Who said it.
    pub by: String,
    /// When; before that it does not hold.
    pub at: Timestamp,
    /// Why.
    pub reason: String,
    /// Until when an approval holds; without it until something else is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

/// What is said of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It may run.
    Approved,
    /// It may no longer run.
    Revoked,
}

impl Document {
    /// Of a repository of which nothing was said.
    pub fn new(repository: &str) -> Self {
        Self {
            api_version: API_VERSION.to_owned(),
            kind: KIND.to_owned(),
            repository: repository.to_owned(),
            statements: Vec::new(),
        }
    }

    /// Of a repository and what was said of its images.
    ///
    /// # Errors
    ///
    /// See [`DocumentError`].
    pub fn of(repository: &str, statements: Vec<Statement>) -> Result<Self, DocumentError> {
        let mut document = Self {
            statements,
            ..Self::new(repository)
        };
        document.check()?;
        document.statements.sort_by_key(|it| (it.at, it.state));
        Ok(document)
    }

    /// Reads a document.
    ///
    /// # Errors
    ///
    /// See [`DocumentError`].
    pub fn parse(text: &str) -> Result<Self, DocumentError> {
        let mut document: Self = yaml::parse(text)?;
        document.check()?;
        document.statements.sort_by_key(|it| (it.at, it.state));
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

    pub(super) fn check(&self) -> Result<(), DocumentError> {
        let refused = |at: String, problem: String| Err(DocumentError::value(at, problem));
        yaml::check_header(&self.api_version, &self.kind, KIND)?;
        if let Err(problem) = check_repository(&self.repository) {
            return refused("repository".to_owned(), problem);
        }
        if self.statements.len() > STATEMENTS_MAX {
            let problem = format!("{}; at most {STATEMENTS_MAX}", self.statements.len());
            return refused("statements".to_owned(), problem);
        }
        for (index, statement) in self.statements.iter().enumerate() {
            let at = format!("statements/{}", index + 1);
            yaml::check_text(&at, "by", &statement.by)?;
            yaml::check_text(&at, "reason", &statement.reason)?;
            let is_never = statement.until.is_some_and(|until| until <= statement.at);
            if is_never {
                return refused(at, "until is not after at".to_owned());
            }
            if statement.state == State::Revoked && statement.until.is_some() {
                let problem = "a revocation has no end; approve the digest again instead";
                return refused(at, problem.to_owned());
            }
        }
        Ok(())
    }
}

/// Whether a text is a reference without tag and digest.
///
/// # Errors
///
/// What is wrong with it.
pub fn check_repository(text: &str) -> Result<(), String> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"./-_:".contains(&byte);
    if !(1..=REPOSITORY_BYTES_MAX).contains(&text.len()) || !text.bytes().all(is_allowed) {
        return Err(format!(
            "{text:?} is no repository of 1 to {REPOSITORY_BYTES_MAX} letters, digits, `.`, `/`, `-`, `_` and `:`"
        ));
    }
    if crate::containers::repository(text) != text {
        return Err(format!("{text:?} has a tag; leave it out"));
    }
    Ok(())
}
