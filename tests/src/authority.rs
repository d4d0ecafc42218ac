//! Certificates, as an administrator makes them.

use std::{fs, path::Path};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

/// An authority that signs certificates of nodes and clients.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    /// One with a key of its own.
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // OpenSSL takes a certificate whose subject is its issuer's for self-signed.
        params
            .distinguished_name
            .push(DnType::CommonName, "authority");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        Ok(Self(issuer))
    }

    /// Writes `ca.crt`, over one that is there.
    pub fn write(&self, directory: &Path) -> Result<()> {
        replace(&directory.join("ca.crt"), &self.0.pem())
    }

    /// Writes `NAME.crt` and `NAME.key`, over those that are there.
    pub fn issue(&self, name: &str, directory: &Path) -> Result<()> {
        let key = KeyPair::generate()?;
        let params = CertificateParams::new(vec![name.to_owned()])?;
        let certificate = params.signed_by(&key, &self.0)?;
        replace(&directory.join(format!("{name}.crt")), &certificate.pem())?;
        replace(&directory.join(format!("{name}.key")), &key.serialize_pem())
    }
}

/// As a whole, so that nobody reads half of it.
fn replace(path: &Path, text: &str) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    Ok(fs::rename(&new, path)?)
}
