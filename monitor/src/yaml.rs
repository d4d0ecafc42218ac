//! What the documents that people write in YAML have in common: policies, approvals and profiles.

use serde::{Serialize, de::DeserializeOwned};

/// Version of the forms.
pub const API_VERSION: &str = "monitor.v1";
/// Bytes of a document; a longer one is refused.
pub const DOCUMENT_BYTES_MAX: usize = 1 << 20;
/// Bytes of a text in it, such as a reason.
pub const TEXT_BYTES_MAX: usize = 1024;

/// A document is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// Too long.
    #[error("it has {0} bytes; at most {DOCUMENT_BYTES_MAX} are read")]
    TooLong(usize),
    /// Not YAML of this form; the text names line and column.
    #[error("{0}")]
    Syntax(String),
    /// A value that makes no sense.
    #[error("{at}: {problem}")]
    Value {
        /// Where: `rules/NAME`, `statements/3`.
        at: String,
        /// What is wrong, and what is allowed.
        problem: String,
    },
}

impl DocumentError {
    /// Refuses a value.
    pub(crate) fn value(at: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Value {
            at: at.into(),
            problem: problem.into(),
        }
    }
}

/// Reads a document, whose values are yet to be checked.
pub(crate) fn parse<T: DeserializeOwned>(text: &str) -> Result<T, DocumentError> {
    if text.len() > DOCUMENT_BYTES_MAX {
        return Err(DocumentError::TooLong(text.len()));
    }
    serde_saphyr::from_str(text)
        .map_err(|error| DocumentError::Syntax(error.to_string().trim_end().to_owned()))
}

/// Writes one.
pub(crate) fn write(document: &impl Serialize) -> Result<String, String> {
    serde_saphyr::to_string(document).map_err(|error| error.to_string())
}

/// Whether a document is of a version and a kind that are known.
pub(crate) fn check_header(
    api_version: &str,
    kind: &str,
    expected: &str,
) -> Result<(), DocumentError> {
    if api_version == API_VERSION && kind == expected {
        return Ok(());
    }
    let problem = format!("give apiVersion: {API_VERSION} and kind: {expected}");
    Err(DocumentError::value("apiVersion", problem))
}

/// Whether a text that people are to read is there, and short enough.
pub(crate) fn check_text(at: &str, key: &str, text: &str) -> Result<(), DocumentError> {
    if (1..=TEXT_BYTES_MAX).contains(&text.trim().len()) {
        return Ok(());
    }
    let problem = format!("{key} has 1 to {TEXT_BYTES_MAX} bytes");
    Err(DocumentError::value(at, problem))
}
