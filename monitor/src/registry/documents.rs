//! Small documents of a repository: manifests by digest or tag, what refers to them, and small blobs.

use tokio::time::timeout;

use super::{Remote, TIME_MIN, client::Problem};
use crate::digest::Digest;

/// A registry did not give a document, and did not say that there is none.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("registry {registry}, {path}: {reason}")]
pub struct Unanswered {
    registry: String,
    path: String,
    reason: String,
}

/// The documents of one repository. What they hold is not checked; `None` is what the registry says that
/// it does not have.
pub struct Documents(pub(super) Remote);

impl Documents {
    /// A manifest or an index by its digest or a tag.
    ///
    /// # Errors
    ///
    /// It is not given whole within a minute or `bytes_max` bytes.
    pub async fn manifest(
        &self,
        reference: &str,
        bytes_max: usize,
    ) -> Result<Option<Vec<u8>>, Unanswered> {
        self.read(format!("manifests/{reference}"), bytes_max).await
    }

    /// The index of what refers to a manifest, of which the first page is taken; `None` also of a
    /// registry that does not know of that.
    ///
    /// # Errors
    ///
    /// As of [`Documents::manifest`].
    pub async fn referrers(
        &self,
        digest: &Digest,
        bytes_max: usize,
    ) -> Result<Option<Vec<u8>>, Unanswered> {
        self.read(format!("referrers/{digest}"), bytes_max).await
    }

    /// A blob.
    ///
    /// # Errors
    ///
    /// As of [`Documents::manifest`].
    pub async fn blob(
        &self,
        digest: &Digest,
        bytes_max: usize,
    ) -> Result<Option<Vec<u8>>, Unanswered> {
        self.read(format!("blobs/{digest}"), bytes_max).await
    }

    async fn read(&self, path: String, bytes_max: usize) -> Result<Option<Vec<u8>>, Unanswered> {
        let read = async {
            match self.0.get(&path).await {
                Ok(body) => body.whole(bytes_max).await.map(Some),
                Err(Problem::Missing) => Ok(None),
                Err(problem) => Err(problem.into_reason()),
            }
        };
        let read = timeout(TIME_MIN, read).await;
        let read = read.unwrap_or_else(|_| Err(format!("not whole in {} s", TIME_MIN.as_secs())));
        read.map_err(|reason| Unanswered {
            registry: self.0.repository.registry().to_owned(),
            path,
            reason,
        })
    }
}
