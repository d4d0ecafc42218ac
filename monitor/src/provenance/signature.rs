//! What became of the signatures of an image.

use std::fmt;

use jiff::Timestamp;

use crate::digest::Digest;

/// What a signature was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The manifest of the image.
    Manifest,
    /// An index that lists the manifest.
    Index,
}

impl Target {
    /// As people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Manifest => "manifest",
            Self::Index => "index",
        }
    }
}

/// The verdict on the signatures of an image: valid if one is, else the reason that tells most.
///
/// Signers are known by keys; one who is known by a certificate would be another variant beside
/// [`Signature::Valid`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signature {
    /// A key that counts for the repository signed this image.
    Valid {
        /// Name of the key.
        key: String,
        /// What it signed.
        target: Target,
    },
    /// Signed by a key that was revoked, by its configuration or by removing its file.
    Revoked {
        /// Name of the key.
        key: String,
    },
    /// Signed by a key whose time is over. When it signed cannot be told offline.
    Expired {
        /// Name of the key.
        key: String,
        /// Until when it counted.
        not_after: Timestamp,
    },
    /// Signed by a key that counts for other repositories only.
    OtherRepository {
        /// Name of the key.
        key: String,
    },
    /// What a key signed names another repository than the image's, or none where one is demanded.
    WrongReference {
        /// Name of the key.
        key: String,
        /// What was signed, if it names one.
        signed: Option<String>,
    },
    /// A key signed another image.
    WrongDigest {
        /// Name of the key.
        key: String,
        /// The image that it signed.
        signed: Digest,
    },
    /// Bytes are not those that their digest names.
    Tampered {
        /// The digest by which they were asked for.
        digest: Digest,
    },
    /// No configured key made the signature, or what it signed was changed since.
    WrongKey,
    /// A signature that cannot be read or compared.
    Unusable {
        /// Why.
        what: String,
    },
    /// A source that could have one does not answer and never did; no other has one.
    Unreachable {
        /// Which one, and why.
        what: String,
    },
    /// There is none.
    Missing,
}

impl Signature {
    /// Whether the image is signed as it is configured.
    pub fn is_valid(&self) -> bool {
        matches!(self, Self::Valid { .. })
    }

    /// A word for each, for outputs that programs read.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Valid { .. } => "valid",
            Self::Revoked { .. } => "revoked",
            Self::Expired { .. } => "expired",
            Self::OtherRepository { .. } => "other_repository",
            Self::WrongReference { .. } => "wrong_reference",
            Self::WrongDigest { .. } => "wrong_digest",
            Self::Tampered { .. } => "tampered",
            Self::WrongKey => "wrong_key",
            Self::Unusable { .. } => "unusable",
            Self::Unreachable { .. } => "unreachable",
            Self::Missing => "missing",
        }
    }

    /// How much it tells; 0 most. What a known key signed comes before what nobody known did.
    fn rank(&self) -> u8 {
        match self {
            Self::Valid { .. } => 0,
            Self::Revoked { .. } => 1,
            Self::Expired { .. } => 2,
            Self::OtherRepository { .. } => 3,
            Self::WrongReference { .. } => 4,
            Self::WrongDigest { .. } => 5,
            Self::Tampered { .. } => 6,
            Self::WrongKey => 7,
            Self::Unusable { .. } => 8,
            Self::Unreachable { .. } => 9,
            Self::Missing => 10,
        }
    }

    /// The one that tells most; the first of equals.
    pub(super) fn best(signatures: impl Iterator<Item = Self>) -> Self {
        signatures.min_by_key(Self::rank).unwrap_or(Self::Missing)
    }

    pub(super) fn unusable(what: impl ToString) -> Self {
        Self::Unusable {
            what: what.to_string(),
        }
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Valid { key, target } => {
                write!(f, "its {} is signed by the key {key:?}", target.name())
            }
            Self::Revoked { key } => write!(f, "it is signed by the key {key:?}, which is revoked"),
            Self::Expired { key, not_after } => write!(
                f,
                "it is signed by the key {key:?}, which counted until {not_after}"
            ),
            Self::OtherRepository { key } => write!(
                f,
                "it is signed by the key {key:?}, which does not count for this repository"
            ),
            Self::WrongReference {
                key,
                signed: Some(signed),
            } => write!(f, "the key {key:?} signed it as an image of {signed:?}"),
            Self::WrongReference { key, signed: None } => write!(
                f,
                "the key {key:?} signed it without naming a repository, which is demanded of this key"
            ),
            Self::WrongDigest { key, signed } => write!(
                f,
                "its signature by the key {key:?} is of another image, {signed}"
            ),
            Self::Tampered { digest } => write!(
                f,
                "a part of its signature was changed: it is not the bytes that {digest} names"
            ),
            Self::WrongKey => f.write_str(
                "no configured key made its signature, or what was signed has been changed since",
            ),
            Self::Unusable { what } => write!(f, "its signature cannot be used: {what}"),
            Self::Unreachable { what } => {
                write!(f, "whether it is signed is not known: {what}")
            }
            Self::Missing => f.write_str("it has no signature"),
        }
    }
}

/// A statement about an image that is listed and not judged: SLSA provenance, an SBOM and so on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attestation {
    /// Digest of the artifact that holds it.
    pub digest: Digest,
    /// Type of the statement where that is told (`https://slsa.dev/provenance/v1`), else of the
    /// artifact or of its media; not checked, of at most 200 characters.
    pub kind: String,
    /// What it is about.
    pub target: Target,
}
