//! TLS of the TCP listeners: certificates are demanded of both sides, and read anew when their
//! files change.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
    version::TLS13,
};
use serde::Deserialize;
use tracing::{info, warn};

use crate::files::{self, ReadError};

/// Bytes of a file with certificates or a key; a longer one is refused.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where the certificates and the key are, each PEM.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The daemon's certificate, then those between it and its authority's.
    pub certificate: PathBuf,
    /// The certificate's private key.
    pub key: PathBuf,
    /// Certificates of the authorities whose clients may connect.
    pub client_ca: PathBuf,
}

/// The files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// One cannot be read.
    #[error("cannot read {path} for TLS: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// One is too long to be what it should be.
    #[error(
        "{path} is no regular file of at most {FILE_BYTES_MAX} bytes, so it is not read for TLS"
    )]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// One does not hold what it should.
    #[error("{path} for TLS: {what}; give PEM")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// They do not belong together.
    #[error("the certificate {certificate} and its key for TLS cannot be used: {what}")]
    Unusable {
        /// The certificate's file.
        certificate: PathBuf,
        /// What is wrong.
        what: String,
    },
}

/// What tells that files were replaced: device, inode, bytes and time of each.
type Stamp = [Option<(u64, u64, u64, i64, i64)>; 3];

/// The files, as they were last read.
#[derive(Debug)]
pub struct Tls {
    files: TlsFiles,
    current: Mutex<Current>,
    reload_failures: AtomicU64,
}

#[derive(Debug)]
struct Current {
    stamp: Stamp,
    config: Arc<ServerConfig>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    ///
    /// See [`TlsError`].
    pub fn load(files: &TlsFiles) -> Result<Self, TlsError> {
        // Before reading: a file that is replaced meanwhile is read again.
        let stamp = stamp(files);
        Ok(Self {
            files: files.clone(),
            current: Mutex::new(Current {
                stamp,
                config: Arc::new(read(files)?),
            }),
            reload_failures: AtomicU64::new(0),
        })
    }

    /// What a new connection is served with: the files as they are now, or as they last were good.
    /// Connections that are open keep what they began with.
    pub(super) fn config(&self) -> Arc<ServerConfig> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = stamp(&self.files);
        if stamp != current.stamp {
            current.stamp = stamp;
            match read(&self.files) {
                Ok(config) => {
                    info!("the files for TLS have changed and were read anew");
                    current.config = Arc::new(config);
                }
                Err(error) => {
                    self.reload_failures.fetch_add(1, Ordering::Relaxed);
                    warn!(
                        %error,
                        "the files for TLS have changed and cannot be used; the last good ones stay in force"
                    );
                }
            }
        }
        Arc::clone(&current.config)
    }

    /// Changes of the files that could not be used.
    pub(super) fn reload_failures(&self) -> u64 {
        self.reload_failures.load(Ordering::Relaxed)
    }
}

fn stamp(files: &TlsFiles) -> Stamp {
    [&files.certificate, &files.key, &files.client_ca].map(|path| {
        let found = fs::metadata(path).ok()?;
        Some((
            found.dev(),
            found.ino(),
            found.size(),
            found.ctime(),
            found.ctime_nsec(),
        ))
    })
}

fn read(files: &TlsFiles) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let mut authorities = RootCertStore::empty();
    for certificate in certificates(&files.client_ca)? {
        authorities
            .add(certificate)
            .map_err(|error| content(&files.client_ca, &error))?;
    }
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), Arc::clone(&provider))
            .build()
            .map_err(|error| content(&files.client_ca, &error))?;
    let key = PrivateKeyDer::from_pem_slice(&read_file(&files.key)?)
        .map_err(|error| content(&files.key, &error))?;
    let unusable = |error: rustls::Error| TlsError::Unusable {
        certificate: files.certificate.clone(),
        what: error.to_string(),
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(unusable)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&files.certificate)?, key)
        .map_err(unusable)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read_file(path)?;
    let certificates = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| content(path, &error))?;
    if certificates.is_empty() {
        return Err(content(path, &"no certificate in it"));
    }
    Ok(certificates)
}

/// A file with certificates or a key, of at most [`FILE_BYTES_MAX`].
pub(super) fn read_file(path: &Path) -> Result<Vec<u8>, TlsError> {
    files::read(path, FILE_BYTES_MAX).map_err(|error| {
        let path = path.to_owned();
        match error {
            ReadError::Io(source) => TlsError::Read { path, source },
            ReadError::NotAFile(_) => TlsError::NotAFile { path },
        }
    })
}

fn content(path: &Path, what: &dyn ToString) -> TlsError {
    TlsError::Content {
        path: path.to_owned(),
        what: what.to_string(),
    }
}
