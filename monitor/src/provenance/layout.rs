//! What `cosign save` writes: an OCI layout with an image, its signatures and its attestations.

use std::{io, path::PathBuf};

use tokio::task::spawn_blocking;

use super::{
    artifact::{self, Referrer},
    document::SIGNED_BYTES_MAX,
    gather::{GetError, Store},
};
use crate::{
    digest::Digest,
    files::{self, ReadError},
    image::manifest::{self, DOCUMENT_BYTES_MAX},
};

/// What cosign calls manifests in the list of a layout, before the name of their kind.
const KINDS: &str = "dev.cosignproject.cosign/";

/// A layout of one image.
pub(super) struct Layout(PathBuf);

impl Layout {
    /// The one in a directory, if there is one.
    pub(super) fn of(directory: PathBuf) -> Option<Self> {
        let marker = directory.join("oci-layout");
        marker.is_file().then_some(Self(directory))
    }

    async fn read(&self, path: String, bytes_max: usize) -> Result<Option<Vec<u8>>, GetError> {
        let path = self.0.join(path);
        let shown = path.display().to_string();
        let read = spawn_blocking(move || files::read(&path, bytes_max as u64)).await;
        match read {
            Ok(Ok(bytes)) => Ok(Some(bytes)),
            Ok(Err(ReadError::Io(error))) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Ok(Err(error)) => Err(GetError::Down(format!("{shown} {error}"))),
            Err(_) => Err(GetError::Down("monitord is ending".to_owned())),
        }
    }

    async fn checked(
        &self,
        digest: &Digest,
        bytes_max: usize,
    ) -> Result<Option<Vec<u8>>, GetError> {
        let path = format!("blobs/sha256/{}", digest.0);
        let bytes = self.read(path, bytes_max).await?;
        match &bytes {
            Some(found) if manifest::verify(found, digest).is_err() => {
                Err(GetError::Tampered(*digest))
            }
            _ => Ok(bytes),
        }
    }
}

impl Store for Layout {
    async fn manifest(&self, digest: &Digest) -> Result<Option<Vec<u8>>, GetError> {
        self.checked(digest, DOCUMENT_BYTES_MAX).await
    }

    async fn blob(&self, digest: &Digest) -> Result<Option<Vec<u8>>, GetError> {
        self.checked(digest, SIGNED_BYTES_MAX).await
    }

    /// Tags are kinds there.
    async fn tagged(&self, tag: &str) -> Result<Option<Vec<u8>>, GetError> {
        let Some(list) = self
            .read("index.json".to_owned(), DOCUMENT_BYTES_MAX)
            .await?
        else {
            return Ok(None);
        };
        let (_, ending) = tag.rsplit_once('.').unwrap_or_default();
        match artifact::of_kind(&list, &format!("{KINDS}{ending}s")) {
            Some(digest) => self.manifest(&digest).await,
            None => Ok(None),
        }
    }

    /// It is not told what refers to an image.
    async fn referrers(&self, _: &Digest) -> Result<Vec<Referrer>, GetError> {
        Ok(Vec::new())
    }
}
