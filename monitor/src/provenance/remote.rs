//! A registry as a source: the tags of cosign, the referrers API, and its substitute, the tag
//! `sha256-HEX`.

use super::{
    artifact::{self, Referrer},
    document::SIGNED_BYTES_MAX,
    gather::{GetError, Store},
};
use crate::{
    digest::Digest,
    image::manifest::{self, DOCUMENT_BYTES_MAX},
    registry::{Documents, Unanswered},
};

impl Store for Documents {
    async fn manifest(&self, digest: &Digest) -> Result<Option<Vec<u8>>, GetError> {
        let reference = digest.to_string();
        let bytes = Documents::manifest(self, &reference, DOCUMENT_BYTES_MAX).await;
        checked(bytes, digest)
    }

    async fn blob(&self, digest: &Digest) -> Result<Option<Vec<u8>>, GetError> {
        checked(
            Documents::blob(self, digest, SIGNED_BYTES_MAX).await,
            digest,
        )
    }

    async fn tagged(&self, tag: &str) -> Result<Option<Vec<u8>>, GetError> {
        let bytes = Documents::manifest(self, tag, DOCUMENT_BYTES_MAX).await;
        bytes.map_err(down)
    }

    async fn referrers(&self, digest: &Digest) -> Result<Vec<Referrer>, GetError> {
        let listed = Documents::referrers(self, digest, DOCUMENT_BYTES_MAX).await;
        // Some that do not know the request answer it with a page of their own.
        let listed = listed.map_err(down)?;
        if let Some(referrers) = listed.and_then(|bytes| artifact::referrers(&bytes).ok()) {
            return Ok(referrers);
        }
        let tagged = self.tagged(&format!("sha256-{}", digest.0)).await?;
        let referrers = tagged.and_then(|bytes| artifact::referrers(&bytes).ok());
        Ok(referrers.unwrap_or_default())
    }
}

fn checked(
    bytes: Result<Option<Vec<u8>>, Unanswered>,
    digest: &Digest,
) -> Result<Option<Vec<u8>>, GetError> {
    let bytes = bytes.map_err(down)?;
    match &bytes {
        Some(found) if manifest::verify(found, digest).is_err() => Err(GetError::Tampered(*digest)),
        _ => Ok(bytes),
    }
}

fn down(error: Unanswered) -> GetError {
    GetError::Down(error.to_string())
}
