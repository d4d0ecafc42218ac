//! What a connection is secured by, from files.

use std::path::Path;

use rustls::{
    ClientConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use super::Settings;
use crate::{files, tls};

/// Bytes of a file; a bundle of authorities is the longest.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Reads a file, for the errors of people who configured it.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, String> {
    files::read(path, FILE_BYTES_MAX).map_err(|error| format!("{} {error}", path.display()))
}

/// What `settings` name, as the files are now.
pub(super) fn config(settings: &Settings) -> Result<ClientConfig, String> {
    let unusable = |path: &Path, what: &dyn ToString| {
        format!("{} for TLS: {}; give PEM", path.display(), what.to_string())
    };
    let config = tls::trusting(&read(&settings.ca)?)
        .map_err(|error| format!("{} for TLS: {error}", settings.ca.display()))?;
    let (Some(certificate), Some(key_file)) = (&settings.certificate, &settings.key) else {
        return Ok(config.with_no_client_auth());
    };
    let pem = read(certificate)?;
    let chain = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| unusable(certificate, &error))?;
    let key = PrivateKeyDer::from_pem_slice(&read(key_file)?)
        .map_err(|error| unusable(key_file, &error))?;
    let config = config.with_client_auth_cert(chain, key);
    config.map_err(|error| unusable(certificate, &error))
}
