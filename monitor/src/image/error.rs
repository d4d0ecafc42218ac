//! Why the contents of an image cannot be told.

use std::{io, path::PathBuf, sync::Arc};

use super::{
    blobs::{BlobError, DocumentError},
    lower::LowerError,
    manifest::ManifestError,
    unpack::LayerError,
};
use crate::digest::Digest;

/// The directory of the layers cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("image contents cannot be kept in {}: {source}", directory.display())]
pub struct StoreError {
    pub(super) directory: PathBuf,
    pub(super) source: io::Error,
}

/// The contents of an image cannot be told.
#[derive(Clone, Debug, thiserror::Error)]
#[error("contents of image {manifest}: {cause}")]
pub struct ContentsError {
    /// Digest of the image's manifest.
    pub manifest: Digest,
    /// What is wrong.
    pub cause: Arc<Cause>,
}

/// What is wrong with an image.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// Its manifest or config cannot be read.
    #[error("{what} {digest}: {error}")]
    Document {
        /// `manifest` or `config`.
        what: &'static str,
        /// Its digest.
        digest: Digest,
        /// The reason.
        error: DocumentError,
    },
    /// Its manifest or config cannot be understood.
    #[error("{what} {digest}: {error}")]
    Malformed {
        /// `manifest` or `config`.
        what: &'static str,
        /// Its digest.
        digest: Digest,
        /// The reason.
        error: ManifestError,
    },
    /// An index stands where the manifest of one platform belongs.
    #[error("is an index, not the manifest of one platform")]
    Index,
    /// The manifest names another config than the image was found by.
    #[error("manifest names config {seen}, expected {expected}")]
    Config {
        /// The image's config digest.
        expected: Digest,
        /// The one in the manifest.
        seen: Digest,
    },
    /// Manifest and config do not fit together.
    #[error("manifest has {layers} layers, config has {diff_ids} diff IDs")]
    LayerCount {
        /// Layers in the manifest.
        layers: usize,
        /// Diff IDs in the config.
        diff_ids: usize,
    },
    /// The config's layers are not those of the image's snapshot.
    #[error("layers of config have chain ID {}, expected {expected}", shown(seen))]
    ChainId {
        /// The image's chain ID.
        expected: Digest,
        /// That of the config's layers; `None` if it has none.
        seen: Option<Digest>,
    },
    /// A layer cannot be read.
    #[error("layer {blob} (diff ID {diff_id}): {error}")]
    Layer {
        /// Digest of the layer blob.
        blob: Digest,
        /// Digest of the uncompressed layer.
        diff_id: Digest,
        /// The reason.
        error: LayerError,
    },
    /// The lower directories of a snapshot are not known, or not the image's.
    #[error("nor can the snapshot's lower directories be read: {0}")]
    Snapshot(String),
    /// A lower directory cannot be read.
    #[error("nor can the unpacked layers be read: {0}")]
    Lower(LowerError),
    /// Neither the blobs nor the unpacked layers can be read.
    #[error("{blobs}; {unpacked}")]
    Both {
        /// Why not the blobs.
        blobs: Arc<Cause>,
        /// Why not the unpacked layers.
        unpacked: Arc<Cause>,
    },
    /// The program is shutting down.
    #[error("reading was interrupted")]
    Interrupted,
}

impl Cause {
    /// The blob that containerd does not have, if that is the reason.
    pub fn missing_blob(&self) -> Option<Digest> {
        match self.blob_error() {
            Some(BlobError::NotFound(digest)) => Some(*digest),
            _ => None,
        }
    }

    /// The blob error behind it, if that is what it is: worth another try.
    fn blob_error(&self) -> Option<&BlobError> {
        match self {
            Self::Document {
                error: DocumentError::Blob(error),
                ..
            }
            | Self::Layer {
                error: LayerError::Blob(error),
                ..
            } => Some(error),
            _ => None,
        }
    }
}

impl ContentsError {
    /// Whether the bytes are wrong, so that another try cannot help unless they are replaced. Else
    /// containerd did not give them, or not yet.
    pub fn is_permanent(&self) -> bool {
        !matches!(*self.cause, Cause::Interrupted) && self.cause.blob_error().is_none()
    }

    /// Of blobs that could not be read, and of unpacked layers that could not be read either.
    pub fn and(self, unpacked: Self) -> Self {
        Self {
            manifest: self.manifest,
            cause: Arc::new(Cause::Both {
                blobs: self.cause,
                unpacked: unpacked.cause,
            }),
        }
    }

    /// The blob that containerd does not have, if that is the reason.
    pub fn missing_blob(&self) -> Option<Digest> {
        self.cause.missing_blob()
    }
}

fn shown(digest: &Option<Digest>) -> String {
    digest.map_or_else(|| "of no layers".to_owned(), |digest| digest.to_string())
}
