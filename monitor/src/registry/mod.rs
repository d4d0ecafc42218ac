//! Registries as a source of blobs that the node does not have any more, for whom that is configured.
//!
//! What they send is checked by whoever reads it, as any blob is. Here it is bounded: in bytes by
//! what the manifest says, in time, and in where a registry may lead to.

mod challenge;
mod client;
mod credentials;
mod documents;
mod repository;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use rustls::ClientConfig;
use serde::Deserialize;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;

pub use self::{
    documents::{Documents, Unanswered},
    repository::{Repository, RepositoryError, full_name, host},
};
use crate::{
    digest::Digest,
    files,
    image::{
        blobs::{BlobError, BlobStream, Origin, Part},
        manifest::DOCUMENT_BYTES_MAX,
    },
    tls,
};

/// Chunks, each of at most [`client::BUFFER_BYTES_MAX`], that are read ahead of who uses them.
const AHEAD_MAX: usize = 4;

/// Bytes of a file with certificates or credentials; a longer one is refused.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// How long a blob may take, however short.
const TIME_MIN: Duration = Duration::from_secs(60);
/// How long a blob may take, however long.
const TIME_MAX: Duration = Duration::from_secs(60 * 60);
/// Bytes for which a second more is given.
const BYTES_PER_SECOND_MIN: u64 = 256 << 10;

/// Whether and how registries are asked for blobs that containerd does not have.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Whether they are asked at all.
    pub enabled: bool,
    /// File with user names and passwords, of the form of docker's `config.json`; read anew each
    /// time. Without it registries are asked as anybody.
    pub credentials: Option<PathBuf>,
    /// Certificates of the authorities that registries' own are checked by, PEM.
    pub ca: PathBuf,
    /// Registries, each `HOST:PORT` or `HOST`, that are asked without TLS.
    pub plain_http: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            enabled: false,
            credentials: None,
            // Debian's package ca-certificates.
            ca: PathBuf::from("/etc/ssl/certs/ca-certificates.crt"),
            plain_http: Vec::new(),
        }
    }
}

/// A file that is needed to ask registries cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{} for registries: {what}", path.display())]
pub struct FileError {
    path: PathBuf,
    what: String,
}

impl FileError {
    fn new(path: &Path, what: impl ToString) -> Self {
        Self {
            path: path.to_owned(),
            what: what.to_string(),
        }
    }
}

/// All registries, as they are configured.
#[derive(Clone)]
pub struct Registry(Arc<Shared>);

struct Shared {
    credentials: Option<PathBuf>,
    plain_http: Vec<String>,
    tls: Arc<ClientConfig>,
    limits: client::Limits,
    bytes: AtomicU64,
}

impl Registry {
    /// Reads the certificates.
    ///
    /// # Errors
    ///
    /// They, or the credentials, cannot be read.
    pub fn new(options: &Options) -> Result<Self, FileError> {
        Self::within(options, client::LIMITS)
    }

    fn within(options: &Options, limits: client::Limits) -> Result<Self, FileError> {
        if let Some(path) = &options.credentials {
            credentials::check(path)?;
        }
        let ca = &options.ca;
        let config = tls::trusting(&read(ca)?).map_err(|error| FileError::new(ca, error))?;
        Ok(Self(Arc::new(Shared {
            credentials: options.credentials.clone(),
            plain_http: options.plain_http.clone(),
            tls: Arc::new(config.with_no_client_auth()),
            limits,
            bytes: AtomicU64::new(0),
        })))
    }

    /// The blobs of one repository.
    pub fn origin(&self, repository: Repository) -> Arc<dyn Origin> {
        Arc::new(self.remote(repository))
    }

    /// The documents of one repository.
    pub fn documents(&self, repository: Repository) -> Documents {
        Documents(self.remote(repository))
    }

    fn remote(&self, repository: Repository) -> Remote {
        Remote {
            registry: self.clone(),
            repository,
            authorization: Arc::default(),
        }
    }

    /// Bytes of blobs that registries have sent.
    pub fn bytes(&self) -> u64 {
        self.0.bytes.load(Ordering::Relaxed)
    }
}

/// A repository in its registry, and what the registry lets us in by.
#[derive(Clone)]
struct Remote {
    registry: Registry,
    repository: Repository,
    authorization: client::Authorization,
}

impl Origin for Remote {
    fn open(&self, part: Part, digest: &Digest) -> BlobStream {
        let (sender, receiver) = mpsc::channel(AHEAD_MAX);
        let (remote, digest) = (self.clone(), *digest);
        tokio::spawn(async move {
            let time_max = time_max(part);
            let fetched = remote.fetch(part, &digest, &sender);
            let reason = match timeout(time_max, fetched).await {
                Ok(Ok(())) => return,
                Ok(Err(reason)) => reason,
                Err(_) => format!("not whole within {} s", time_max.as_secs()),
            };
            let error = BlobError::Registry {
                registry: remote.repository.registry().to_owned(),
                digest,
                reason,
            };
            // Whoever went away needs no answer.
            let _ = sender.send(Err(error)).await;
        });
        Box::pin(ReceiverStream::new(receiver))
    }
}

impl Remote {
    /// Sends on what comes, and never more than it may be.
    async fn fetch(
        &self,
        part: Part,
        digest: &Digest,
        sender: &mpsc::Sender<Result<Bytes, BlobError>>,
    ) -> Result<(), String> {
        let kind = match part {
            Part::Manifest => "manifests",
            Part::Config | Part::Layer { .. } => "blobs",
        };
        let body = self.get(&format!("{kind}/{digest}")).await;
        let mut body = body.map_err(client::Problem::into_reason)?;
        // The size of a document that is asked for by its digest need not be known.
        let is_exact = matches!(part, Part::Layer { .. });
        let bytes = bytes_max(part);
        if let Some(said) = body.length()
            && (said > bytes || is_exact && said != bytes)
        {
            return Err(format!("has {said} bytes there instead of {bytes}"));
        }
        let mut left = bytes;
        while let Some(chunk) = body.next().await? {
            let length = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
            left = left
                .checked_sub(length)
                .ok_or_else(|| format!("has more than {bytes} bytes there"))?;
            self.registry.0.bytes.fetch_add(length, Ordering::Relaxed);
            if sender.send(Ok(chunk)).await.is_err() {
                return Ok(());
            }
        }
        if is_exact && left > 0 {
            return Err(format!("ends {left} bytes before its {bytes}"));
        }
        Ok(())
    }
}

fn bytes_max(part: Part) -> u64 {
    match part {
        Part::Manifest | Part::Config => DOCUMENT_BYTES_MAX as u64,
        Part::Layer { bytes } => bytes,
    }
}

fn time_max(part: Part) -> Duration {
    let more = Duration::from_secs(bytes_max(part) / BYTES_PER_SECOND_MIN);
    TIME_MIN.saturating_add(more).min(TIME_MAX)
}

fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    files::read(path, FILE_BYTES_MAX).map_err(|error| FileError::new(path, error))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
pub(crate) mod fake;

#[cfg(test)]
#[expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
mod tests;
