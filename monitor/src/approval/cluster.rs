//! What was said of images in a cluster, as its controller tells it and a node keeps it. Pure.

use std::collections::BTreeMap;

use super::{Document, FullError, REPOSITORIES_MAX, Statement, document::STATEMENTS_MAX};
use crate::yaml::DocumentError;

/// Bytes of all of it, as it is told and as it is kept; more is refused.
pub const CLUSTER_BYTES_MAX: usize = 32 << 20;

/// What is told makes no sense, or is too much. Nothing of it is in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClusterError {
    /// Above [`CLUSTER_BYTES_MAX`].
    #[error("it has more than {CLUSTER_BYTES_MAX} bytes")]
    TooLong,
    /// [`REPOSITORIES_MAX`], or [`STATEMENTS_MAX`] of one repository.
    #[error(transparent)]
    Full(#[from] FullError),
    /// Two documents of one repository.
    #[error("repository {0} is there twice")]
    Twice(String),
    /// What is said of a repository.
    #[error("{repository}: {error}")]
    Document {
        /// The repository.
        repository: String,
        /// What is wrong.
        error: DocumentError,
    },
    /// Not of the form that it is kept in.
    #[error("it is no JSON of approvals: {0}")]
    Syntax(String),
}

/// All that was said of images in a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterApprovals {
    // Each of another repository, and sorted by it.
    documents: Vec<Document>,
}

impl ClusterApprovals {
    /// Of statements in any order.
    ///
    /// # Errors
    ///
    /// See [`ClusterError`].
    pub fn new(
        statements: impl IntoIterator<Item = (String, Statement)>,
    ) -> Result<Self, ClusterError> {
        let mut documents: BTreeMap<String, Document> = BTreeMap::new();
        for (repository, statement) in statements {
            if !documents.contains_key(&repository) && documents.len() >= REPOSITORIES_MAX {
                return Err(FullError::Repositories.into());
            }
            let new = || Document::new(&repository);
            let document = documents.entry(repository.clone()).or_insert_with(new);
            if document.statements.len() >= STATEMENTS_MAX {
                return Err(FullError::Statements.into());
            }
            document.statements.push(statement);
        }
        Self::of(documents.into_values().collect())
    }

    /// Reads what [`ClusterApprovals::to_json`] wrote.
    ///
    /// # Errors
    ///
    /// See [`ClusterError`].
    pub fn from_json(bytes: &[u8]) -> Result<Self, ClusterError> {
        if bytes.len() > CLUSTER_BYTES_MAX {
            return Err(ClusterError::TooLong);
        }
        let documents = serde_json::from_slice(bytes);
        Self::of(documents.map_err(|error| ClusterError::Syntax(error.to_string()))?)
    }

    /// As it is kept: a JSON array of the documents.
    ///
    /// # Errors
    ///
    /// [`ClusterError::TooLong`]: it could not be read again.
    pub fn to_json(&self) -> Result<Vec<u8>, ClusterError> {
        let bytes = serde_json::to_vec(&self.documents);
        let bytes = bytes.map_err(|error| ClusterError::Syntax(error.to_string()))?;
        if bytes.len() > CLUSTER_BYTES_MAX {
            return Err(ClusterError::TooLong);
        }
        Ok(bytes)
    }

    /// What was said, each of another repository.
    pub fn documents(&self) -> &[Document] {
        &self.documents
    }

    fn of(mut documents: Vec<Document>) -> Result<Self, ClusterError> {
        if documents.len() > REPOSITORIES_MAX {
            return Err(FullError::Repositories.into());
        }
        documents.sort_by(|a, b| a.repository.cmp(&b.repository));
        for document in &mut documents {
            let checked = document.check();
            checked.map_err(|error| ClusterError::Document {
                repository: document.repository.chars().take(80).collect(),
                error,
            })?;
            document.statements.sort_by_key(|it| (it.at, it.state));
        }
        let twice = documents.windows(2).find_map(|pair| match pair {
            [a, b] if a.repository == b.repository => Some(a.repository.clone()),
            _ => None,
        });
        match twice {
            Some(repository) => Err(ClusterError::Twice(repository)),
            None => Ok(Self { documents }),
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::{
        approval::State,
        digest::{Digest, Sha256},
    };

    fn statement(number: usize, reason: &str) -> Statement {
        let digest = format!("sha256:{}", Sha256::of(number.to_string().as_bytes()));
        Statement {
            digest: digest.parse::<Digest>().unwrap(),
            state: State::Approved,
            by: "alice".to_owned(),
            at: Timestamp::from_second(i64::try_from(number).unwrap()).unwrap(),
            reason: reason.to_owned(),
            until: None,
        }
    }

    #[test]
    fn it_is_kept_as_it_was_told() {
        let said = [("b/web", 2), ("a/web", 1), ("b/web", 1)];
        let said = said.map(|(name, at)| (name.to_owned(), statement(at, "why")));
        let told = ClusterApprovals::new(said).unwrap();
        let shown: Vec<_> = told
            .documents()
            .iter()
            .map(|it| (it.repository.as_str(), it.statements.len()))
            .collect();
        assert_eq!(shown, [("a/web", 1), ("b/web", 2)]);
        let kept = told.to_json().unwrap();
        assert_eq!(ClusterApprovals::from_json(&kept), Ok(told));
        assert_eq!(
            ClusterApprovals::from_json(b"[]"),
            Ok(ClusterApprovals::default())
        );
    }

    #[test]
    fn what_is_out_of_bounds_or_makes_no_sense_is_refused() {
        let check = |said: Vec<(String, Statement)>, expect: &str| {
            let error = ClusterApprovals::new(said).unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
        };
        let one = |name: &str, reason: &str| vec![(name.to_owned(), statement(1, reason))];
        check(one("", "why"), "no repository");
        check(one("a/web:1", "why"), "has a tag");
        check(one("a/\u{1b}[31m", "why"), "no repository");
        check(one("a/web", ""), "reason");
        check(one("a/web", &"x".repeat(1025)), "reason");
        let many = (0..=STATEMENTS_MAX).map(|it| ("a/web".to_owned(), statement(it, "why")));
        check(many.collect(), "1024 digests");
        let many = (0..=REPOSITORIES_MAX).map(|it| (format!("a/{it}"), statement(it, "why")));
        check(many.collect(), "1024 repositories");
        let long = |it: usize| {
            let name = format!("a/{}", it % REPOSITORIES_MAX);
            (name, statement(it, &"\u{1}".repeat(1024)))
        };
        let too_long = ClusterApprovals::new((0..6000).map(long)).unwrap();
        assert_eq!(too_long.to_json(), Err(ClusterError::TooLong));
    }

    #[test]
    fn a_kept_file_is_checked_when_it_is_read_back() {
        let check = |text: &str, expect: &str| {
            let error = ClusterApprovals::from_json(text.as_bytes());
            let error = error.unwrap_err().to_string();
            assert!(error.contains(expect), "{text}: {error}");
        };
        let document = |repository: &str| {
            format!(
                r#"{{"apiVersion":"monitor.v1","kind":"ImageApproval","repository":"{repository}","statements":[]}}"#
            )
        };
        check("", "no JSON");
        check("{}", "no JSON");
        check("[{}]", "missing field");
        check(&"[".repeat(1000), "no JSON");
        check(
            "[{\"apiVersion\":\"monitor.v2\",\"kind\":\"ImageApproval\",\"repository\":\"a\",\"statements\":[]}]",
            "monitor.v1",
        );
        check(&format!("[{}]", document("a:1")), "has a tag");
        let (a, b) = (document("a"), document("b"));
        check(&format!("[{a},{b},{a}]"), "a is there twice");
        check(&format!("[{a}] trailing"), "no JSON");
        check(&" ".repeat(CLUSTER_BYTES_MAX + 1), "more than");
    }
}
