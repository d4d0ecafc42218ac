//! Where the bytes of an image come from.

use std::{
    io::{self, BufRead, Read},
    mem,
    pin::Pin,
    time::Duration,
};

use bytes::Bytes;
use tokio::{runtime::Handle, time};
use tokio_stream::{Stream, StreamExt as _};

use super::{
    hashing::StreamHash,
    manifest::{self, DOCUMENT_BYTES_MAX, DigestMismatch},
};
use crate::digest::Digest;

/// How long a blob may give no bytes before it counts as unavailable.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// The bytes of one blob, in order, not checked.
pub type BlobStream = Pin<Box<dyn Stream<Item = Result<Bytes, BlobError>> + Send>>;

/// Gives blobs by their digest. What it gives is checked by whoever reads it.
pub trait Blobs: Send + Sync + 'static {
    /// The bytes of a blob of one containerd namespace. That there is none is said by the stream.
    fn open(&self, namespace: &str, digest: &Digest) -> BlobStream;
}

/// What of an image is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Its manifest, of at most [`DOCUMENT_BYTES_MAX`].
    Manifest,
    /// Its config, likewise.
    Config,
    /// A layer.
    Layer {
        /// Of the blob, as the manifest says; neither more nor fewer are given.
        bytes: u64,
    },
}

/// Gives the blobs of one image that the node does not have any more. What it gives is checked by
/// whoever reads it.
pub trait Origin: Send + Sync + 'static {
    /// The bytes of a blob.
    fn open(&self, part: Part, digest: &Digest) -> BlobStream;
}

/// A blob could not be read.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum BlobError {
    /// The content store does not hold it: not pulled yet, or discarded after unpacking.
    #[error("blob {0} is not in the content store")]
    NotFound(Digest),
    /// The content store could not be asked, or stopped answering.
    #[error("content store unavailable: {0}")]
    Unavailable(String),
    /// A registry did not give it.
    #[error("registry {registry}, blob {digest}: {reason}")]
    Registry {
        /// The registry, `HOST` or `HOST:PORT`.
        registry: String,
        /// The blob.
        digest: Digest,
        /// Why not.
        reason: String,
    },
}

/// A manifest, an index or a config could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// See [`BlobError`].
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// Longer than [`DOCUMENT_BYTES_MAX`].
    #[error("longer than {DOCUMENT_BYTES_MAX} bytes")]
    TooLong,
    /// Other bytes than asked for.
    #[error(transparent)]
    Digest(#[from] DigestMismatch),
}

/// Reads a manifest, an index or a config and checks its digest. At most [`DOCUMENT_BYTES_MAX`]
/// bytes are read.
pub async fn read_document(
    mut stream: BlobStream,
    digest: &Digest,
) -> Result<Vec<u8>, DocumentError> {
    let mut document = Vec::new();
    while let Some(chunk) = next(&mut stream).await? {
        if document.len().saturating_add(chunk.len()) > DOCUMENT_BYTES_MAX {
            return Err(DocumentError::TooLong);
        }
        document.extend_from_slice(&chunk);
    }
    manifest::verify(&document, digest)?;
    Ok(document)
}

async fn next(stream: &mut BlobStream) -> Result<Option<Bytes>, BlobError> {
    match time::timeout(SILENCE_MAX, stream.next()).await {
        Ok(chunk) => chunk.transpose(),
        Err(_) => Err(BlobError::Unavailable(format!(
            "no bytes for {} s",
            SILENCE_MAX.as_secs()
        ))),
    }
}

/// Reads a blob on a blocking thread, while another one hashes what it reads.
pub(super) struct BlobReader {
    runtime: Handle,
    stream: BlobStream,
    chunk: Bytes,
    ended: bool,
    // Decoders wrap what they were given, so that it is told again at the end.
    broken: Option<BlobError>,
    hash: StreamHash,
}

impl BlobReader {
    /// `runtime` drives the stream, so that this must not be used on one of its async threads.
    pub(super) fn new(runtime: Handle, stream: BlobStream) -> Self {
        let hash = StreamHash::start(&runtime);
        Self {
            runtime,
            stream,
            chunk: Bytes::new(),
            ended: false,
            broken: None,
            hash,
        }
    }

    /// Whether the blob starts with `magic`. To be asked before anything is read.
    pub(super) fn starts_with(&mut self, magic: &[u8]) -> io::Result<bool> {
        while self.chunk.len() < magic.len() {
            let Some(more) = self.pull()? else { break };
            self.chunk = Bytes::from([self.chunk.as_ref(), more.as_ref()].concat());
        }
        Ok(self.chunk.starts_with(magic))
    }

    /// What drives the stream.
    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// The bytes that come next, as they were sent; empty at the end.
    pub(super) fn next_chunk(&mut self) -> io::Result<Bytes> {
        self.fill_buf()?;
        Ok(mem::take(&mut self.chunk))
    }

    /// Reads what is left and gives the digest of the whole blob.
    pub(super) fn finish(mut self) -> io::Result<Digest> {
        while self.pull()?.is_some() {}
        self.hash.finish()
    }

    fn pull(&mut self) -> io::Result<Option<Bytes>> {
        if let Some(error) = &self.broken {
            return Err(io::Error::other(error.clone()));
        }
        if self.ended {
            return Ok(None);
        }
        let chunk = self.runtime.block_on(next(&mut self.stream));
        let chunk = chunk.map_err(|error| {
            self.broken = Some(error.clone());
            io::Error::other(error)
        })?;
        match chunk {
            Some(chunk) => {
                self.hash.update(chunk.clone())?;
                Ok(Some(chunk))
            }
            None => {
                self.ended = true;
                Ok(None)
            }
        }
    }
}

impl BufRead for BlobReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.chunk.is_empty() {
            let Some(chunk) = self.pull()? else { break };
            self.chunk = chunk;
        }
        Ok(&self.chunk)
    }

    fn consume(&mut self, amount: usize) {
        let _ = self.chunk.split_to(amount.min(self.chunk.len()));
    }
}

impl Read for BlobReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(into)?;
        self.consume(read);
        Ok(read)
    }
}
