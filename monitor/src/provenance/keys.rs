//! The public keys that signatures are checked with.

use std::{
    io,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::Deserialize;
use sigstore::crypto::{CosignVerificationKey, Signature as SigstoreSignature};

use crate::{
    digest::Sha256,
    files::{self, ReadError},
    pattern::is_like,
};

/// Keys that are configured; more are refused.
pub const KEYS_MAX: usize = 64;
/// Bytes of a file with a key; of a longer one nothing is read.
const KEY_BYTES_MAX: u64 = 16 << 10;
/// Bytes of a key's name.
const NAME_BYTES_MAX: usize = 100;

/// A public key, and for what it counts.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyOptions {
    /// What it is called in verdicts.
    pub name: String,
    /// File with it, PEM (`BEGIN PUBLIC KEY`), as `cosign generate-key-pair` writes it. Read anew when
    /// it changes; without it the key counts as revoked.
    pub file: PathBuf,
    /// Repositories that it counts for, `HOST/NAME`, in which `*` stands for any characters.
    pub repositories: Vec<String>,
    /// Until when it counts; for ever if left out.
    pub not_after: Option<Timestamp>,
    /// Whether it counts no more; what it signed is told as such.
    #[serde(default)]
    pub revoked: bool,
    /// Whether what it signs must name the image's repository as well.
    #[serde(default)]
    pub check_reference: bool,
}

/// The keys that are configured make no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OptionsError {
    /// Too many.
    #[error("there are {0} keys; at most {KEYS_MAX} are taken")]
    TooMany(usize),
    /// A name that is none, or another's.
    #[error("the name {0:?} is empty, longer than {NAME_BYTES_MAX} bytes, or another key's")]
    Name(String),
    /// A key that counts for nothing.
    #[error("the key {0:?} counts for no repository; give repositories, [\"*\"] for all")]
    NoRepository(String),
}

pub(super) fn check(options: &[KeyOptions]) -> Result<(), OptionsError> {
    if options.len() > KEYS_MAX {
        return Err(OptionsError::TooMany(options.len()));
    }
    for (place, key) in options.iter().enumerate() {
        let is_used = options.iter().take(place).any(|it| it.name == key.name);
        if key.name.is_empty() || key.name.len() > NAME_BYTES_MAX || is_used {
            return Err(OptionsError::Name(key.name.chars().take(100).collect()));
        }
        if key.repositories.is_empty() {
            return Err(OptionsError::NoRepository(key.name.clone()));
        }
    }
    Ok(())
}

/// A file does not hold a key.
#[derive(Debug, thiserror::Error)]
#[error("the key {name:?} in {}: {what}; give a public key in PEM", path.display())]
pub struct KeyError {
    name: String,
    path: PathBuf,
    what: String,
}

/// What verdicts depend on of a key: its file's hash, whether it is revoked and whether it has expired.
pub(super) type State = (Sha256, bool, bool);

/// A key that is configured.
#[derive(Clone, Debug)]
pub(super) struct Key {
    options: KeyOptions,
    verifier: CosignVerificationKey,
    /// Of its file.
    hash: Sha256,
    /// Its file is gone.
    is_gone: bool,
}

impl Key {
    /// Of what its file holds.
    pub(super) fn new(options: &KeyOptions, pem: &[u8]) -> Result<Self, KeyError> {
        let refused = |what: String| KeyError {
            name: options.name.clone(),
            path: options.file.clone(),
            what,
        };
        // A private key must not lie here, and its file must not be half understood.
        if !pem
            .trim_ascii_start()
            .starts_with(b"-----BEGIN PUBLIC KEY-----")
        {
            return Err(refused(
                "it does not begin with BEGIN PUBLIC KEY".to_owned(),
            ));
        }
        let verifier = CosignVerificationKey::try_from_pem(pem);
        Ok(Self {
            options: options.clone(),
            verifier: verifier.map_err(|error| refused(error.to_string()))?,
            hash: Sha256::of(pem),
            is_gone: false,
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.options.name
    }

    /// Whether it made this signature of `message`.
    pub(super) fn signed(&self, message: &[u8], signature: &[u8]) -> bool {
        let signature = SigstoreSignature::Raw(signature);
        self.verifier.verify_signature(signature, message).is_ok()
    }

    pub(super) fn is_revoked(&self) -> bool {
        self.options.revoked || self.is_gone
    }

    /// When its time ended, if that was before `now`.
    pub(super) fn expired(&self, now: Timestamp) -> Option<Timestamp> {
        self.options.not_after.filter(|not_after| *not_after < now)
    }

    pub(super) fn counts_for(&self, repository: &str) -> bool {
        let mut patterns = self.options.repositories.iter();
        patterns.any(|pattern| is_like(pattern, repository))
    }

    pub(super) fn checks_reference(&self) -> bool {
        self.options.check_reference
    }

    fn read(options: &KeyOptions) -> Result<Self, Unread> {
        let bytes = files::read(&options.file, KEY_BYTES_MAX).map_err(|error| match error {
            ReadError::Io(error) if error.kind() == io::ErrorKind::NotFound => Unread::Gone,
            error => Unread::Refused(KeyError {
                name: options.name.clone(),
                path: options.file.clone(),
                what: error.to_string(),
            }),
        })?;
        Self::new(options, &bytes).map_err(Unread::Refused)
    }

    fn state(&self, now: Timestamp) -> State {
        (self.hash, self.is_revoked(), self.expired(now).is_some())
    }
}

enum Unread {
    Gone,
    Refused(KeyError),
}

/// The keys in force.
#[derive(Clone, Debug, Default)]
pub(super) struct Keys(Vec<Key>);

impl Keys {
    /// Reads them at the start. Blocks.
    ///
    /// # Errors
    ///
    /// One cannot be read: nothing else could be in force.
    pub(super) fn read(options: &[KeyOptions]) -> Result<Self, KeyError> {
        let keys = options.iter().map(|options| {
            Key::read(options).map_err(|error| match error {
                Unread::Refused(error) => error,
                Unread::Gone => KeyError {
                    name: options.name.clone(),
                    path: options.file.clone(),
                    what: "there is no such file".to_owned(),
                },
            })
        });
        keys.collect::<Result<_, _>>().map(Self)
    }

    /// Reads them anew: a key whose file is gone is revoked, one that cannot be read stays as it was.
    /// Blocks.
    pub(super) fn read_again(&self) -> Self {
        let keys = self.0.iter().map(|before| {
            match Key::read(&before.options) {
                Ok(key) => key,
                Err(Unread::Gone) => {
                    if !before.is_gone {
                        tracing::warn!(key = before.name(), path = %path(before).display(), "the file of a key is gone; the key counts as revoked");
                    }
                    Key {
                        is_gone: true,
                        ..before.clone()
                    }
                }
                Err(Unread::Refused(error)) => {
                    tracing::error!(%error, "a key cannot be read anew; it stays in force as it was");
                    before.clone()
                }
            }
        });
        Self(keys.collect())
    }

    /// Whether none is configured.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a key is configured for a repository, be it in force or not.
    pub(super) fn are_for(&self, repository: &str) -> bool {
        self.0.iter().any(|key| key.counts_for(repository))
    }

    /// What verdicts depend on, of each.
    pub(super) fn state(&self, now: Timestamp) -> Vec<State> {
        self.0.iter().map(|key| key.state(now)).collect()
    }

    /// Those that made this signature of `message`: one key can have several entries.
    pub(super) fn signers<'a>(
        &'a self,
        message: &'a [u8],
        signature: &'a [u8],
    ) -> impl Iterator<Item = &'a Key> {
        let keys = self.0.iter();
        keys.filter(move |key| key.signed(message, signature))
    }
}

#[cfg(test)]
impl From<Vec<Key>> for Keys {
    fn from(keys: Vec<Key>) -> Self {
        Self(keys)
    }
}

fn path(key: &Key) -> &Path {
    &key.options.file
}
