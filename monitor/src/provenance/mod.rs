//! Who signed an image: cosign's signatures, checked offline against configured public keys, wherever
//! they lie; and what else is stated about it, which is listed.
//!
//! `judge` is the verdict, a pure function of what was found, keys and a time, and `document` what is
//! found; `gather` finds it in containerd (`content`), in a registry (`remote`) or in a folder (`folder`, `layout`);
//! `service` asks them, and `held` is what they said.

mod artifact;
mod content;
mod document;
mod folder;
mod gather;
mod held;
mod judge;
mod keys;
mod layout;
mod remote;
mod service;
mod signature;
mod verdict;

use std::path::PathBuf;

use serde::Deserialize;

pub use self::{
    document::SIGNED_BYTES_MAX,
    keys::{KEYS_MAX, KeyError, KeyOptions, OptionsError},
    service::Provenance,
    signature::{Attestation, Signature, Target},
    verdict::{Down, Source, Subject, Verdict},
};

/// With which keys signatures are checked, and where they are looked for beside containerd and, where
/// that is configured, registries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// The keys.
    pub keys: Vec<KeyOptions>,
    /// A folder of signatures.
    pub folder: Option<PathBuf>,
}

impl Options {
    /// Whether the values make sense.
    ///
    /// # Errors
    ///
    /// Names, numbers or repositories of the keys do not.
    pub fn check(&self) -> Result<(), OptionsError> {
        keys::check(&self.keys)
    }
}

#[cfg(test)]
#[expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
mod tests;
