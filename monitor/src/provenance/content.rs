//! containerd as a source: images by the tags of cosign, and manifests that name an image as their
//! subject.

use std::{
    num::NonZeroUsize,
    sync::{Mutex, PoisonError},
};

use lru::LruCache;

use super::{
    artifact::{self, Referrer},
    gather::{GetError, Store},
};
use crate::{
    containerd::Client,
    digest::Digest,
    image::blobs::{BlobError, Blobs as _, DocumentError, read_document},
};

/// Bytes of a manifest that is looked at for its subject; signatures' manifests have a few hundred, and
/// some KiB with the annotations of many signatures.
const MANIFEST_BYTES_MAX: u64 = 256 << 10;
/// Manifests of which it is remembered what they are about, for a digest never changes its meaning; of
/// more, the longest not listed are read again.
const REMEMBERED_MAX: NonZeroUsize = NonZeroUsize::new(16_384).unwrap();

/// What manifests are about: the image, and how they are listed for it.
pub(super) struct Subjects(Mutex<LruCache<Digest, Option<(Digest, Referrer)>>>);

impl Subjects {
    pub(super) fn new() -> Self {
        Self(Mutex::new(LruCache::new(REMEMBERED_MAX)))
    }

    fn get(&self, manifest: &Digest) -> Option<Option<(Digest, Referrer)>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(manifest).cloned()
    }

    fn put(&self, manifest: Digest, about: Option<(Digest, Referrer)>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.put(manifest, about);
    }
}

/// A namespace of containerd, for the images of one repository.
pub(super) struct Content<'a> {
    pub(super) client: &'a Client,
    pub(super) namespace: &'a str,
    pub(super) repository: &'a str,
    pub(super) subjects: &'a Subjects,
}

impl Store for Content<'_> {
    async fn manifest(&self, digest: &Digest) -> Result<Option<Vec<u8>>, GetError> {
        match read_document(self.client.open(self.namespace, digest), digest).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(DocumentError::Blob(BlobError::NotFound(_))) => Ok(None),
            Err(DocumentError::Digest(_)) => Err(GetError::Tampered(*digest)),
            Err(error) => Err(GetError::Down(error.to_string())),
        }
    }

    async fn blob(&self, digest: &Digest) -> Result<Option<Vec<u8>>, GetError> {
        self.manifest(digest).await
    }

    async fn tagged(&self, tag: &str) -> Result<Option<Vec<u8>>, GetError> {
        let name = format!("{}:{tag}", self.repository);
        match self.client.image(self.namespace, &name).await {
            Ok(image) => match image.target {
                Some(target) => self.manifest(&target).await,
                None => Ok(None),
            },
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(GetError::Down(error.to_string())),
        }
    }

    async fn referrers(&self, digest: &Digest) -> Result<Vec<Referrer>, GetError> {
        let manifests = self.client.manifests(self.namespace, MANIFEST_BYTES_MAX);
        let manifests = manifests
            .await
            .map_err(|error| GetError::Down(error.to_string()))?;
        let mut referrers = Vec::new();
        for manifest in manifests {
            let about = match self.subjects.get(&manifest) {
                Some(about) => about,
                None => self.look_into(manifest).await?,
            };
            if let Some((subject, referrer)) = about
                && subject == *digest
            {
                referrers.push(referrer);
            }
        }
        Ok(referrers)
    }
}

impl Content<'_> {
    /// What a manifest is about, if it is an artifact's.
    async fn look_into(&self, manifest: Digest) -> Result<Option<(Digest, Referrer)>, GetError> {
        let bytes = match self.manifest(&manifest).await {
            Ok(Some(bytes)) => bytes,
            // Gone since it was listed, or not what it is said to be: nobody's referrer.
            Ok(None) | Err(GetError::Tampered(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let about = artifact::artifact(&bytes).ok().and_then(|artifact| {
            let referrer = Referrer {
                digest: manifest,
                kind: artifact.kind,
                predicate_type: artifact.predicate_type,
            };
            Some((artifact.subject?, referrer))
        });
        self.subjects.put(manifest, about.clone());
        Ok(about)
    }
}
