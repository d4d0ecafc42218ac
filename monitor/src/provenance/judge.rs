//! The verdict on what was found, as a pure function.

use jiff::Timestamp;

use super::{
    document::{self, Bundle, Claim},
    keys::{Key, Keys},
    signature::{Signature, Target},
};
use crate::{containers, digest::Digest, registry::Repository};

/// A document that may be a signature, as a source has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Signed {
    /// A payload of simple signing, and its signature in base64.
    Simple { payload: Vec<u8>, signature: String },
    /// A Sigstore bundle.
    Bundle(Vec<u8>),
    /// One that could not be taken, and why.
    Refused(Signature),
}

impl Signed {
    /// Bytes that it takes.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Simple { payload, signature } => payload.len() + signature.len(),
            Self::Bundle(bytes) => bytes.len(),
            Self::Refused(_) => 0,
        }
    }

    /// The digest of the bytes without which it cannot be checked.
    pub(super) fn message(&self) -> Option<Digest> {
        let Self::Bundle(bytes) = self else {
            return None;
        };
        match document::bundle(bytes) {
            Ok(Bundle::Message { digest, .. }) => Some(digest),
            _ => None,
        }
    }
}

/// What a signature may be for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) target: Target,
    pub(super) digest: Digest,
    /// Its bytes, whose digest was checked, where they are needed and known.
    pub(super) bytes: Option<Vec<u8>>,
}

/// An image whose signatures are judged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    /// `HOST/NAME`.
    pub(super) repository: &'a str,
    pub(super) candidates: &'a [Candidate],
    pub(super) now: Timestamp,
}

impl Asked<'_> {
    /// The verdict on all signatures: one that is valid is enough.
    pub(super) fn judge<'a>(
        self,
        signed: impl Iterator<Item = &'a Signed>,
        keys: &Keys,
    ) -> Signature {
        Signature::best(signed.filter_map(|signed| self.judge_one(signed, keys)))
    }

    /// `None` of what is no signature.
    fn judge_one(self, signed: &Signed, keys: &Keys) -> Option<Signature> {
        let judged = match signed {
            Signed::Refused(why) => return Some(why.clone()),
            Signed::Simple { payload, signature } => self.judge_simple(payload, signature, keys),
            Signed::Bundle(bytes) => self.judge_bundle(bytes, keys).transpose()?,
        };
        Some(judged.unwrap_or_else(Signature::unusable))
    }

    fn judge_simple(
        self,
        payload: &[u8],
        signature: &str,
        keys: &Keys,
    ) -> Result<Signature, String> {
        let signature = document::signature(signature)?;
        let claim = document::payload(payload)?;
        Ok(self.judge_claim(payload, &signature, &claim, keys))
    }

    fn judge_bundle(self, bytes: &[u8], keys: &Keys) -> Result<Option<Signature>, String> {
        let judged = match document::bundle(bytes)? {
            Bundle::Attestation { .. } => return Ok(None),
            Bundle::Statement {
                signed,
                signature,
                claim,
            } => self.judge_claim(&signed, &signature, &claim, keys),
            Bundle::Message { digest, signature } => {
                let mut candidates = self.candidates.iter();
                let candidate = candidates
                    .find(|candidate| candidate.digest == digest)
                    .ok_or_else(|| format!("it is of other bytes than the image's, {digest}"))?;
                let message = candidate.bytes.as_ref().ok_or_else(|| {
                    let target = candidate.target.name();
                    format!("it is of the bytes of the {target}, which no source has")
                })?;
                let claim = Claim {
                    digests: vec![digest],
                    reference: None,
                };
                self.judge_claim(message, &signature, &claim, keys)
            }
        };
        Ok(Some(judged))
    }

    fn judge_claim(
        self,
        message: &[u8],
        signature: &[u8],
        claim: &Claim,
        keys: &Keys,
    ) -> Signature {
        let signers = keys.signers(message, signature);
        let judged: Vec<_> = signers.map(|key| self.judge_signer(key, claim)).collect();
        if judged.is_empty() {
            return Signature::WrongKey;
        }
        Signature::best(judged.into_iter())
    }

    /// What the signature of a key counts for that is known to be its own.
    fn judge_signer(self, key: &Key, claim: &Claim) -> Signature {
        let name = || key.name().to_owned();
        let mut candidates = self.candidates.iter();
        let signed = candidates.find(|candidate| claim.digests.contains(&candidate.digest));
        let Some(candidate) = signed else {
            return match claim.digests.first() {
                Some(signed) => Signature::WrongDigest {
                    key: name(),
                    signed: *signed,
                },
                None => Signature::unusable("it is of nothing"),
            };
        };
        if key.is_revoked() {
            return Signature::Revoked { key: name() };
        }
        if let Some(not_after) = key.expired(self.now) {
            return Signature::Expired {
                key: name(),
                not_after,
            };
        }
        if !key.counts_for(self.repository) {
            return Signature::OtherRepository { key: name() };
        }
        let reference = claim.reference.as_deref();
        if key.checks_reference() && !reference.is_some_and(|it| is_of(it, self.repository)) {
            return Signature::WrongReference {
                key: name(),
                signed: reference.map(document::shortened),
            };
        }
        Signature::Valid {
            key: name(),
            target: candidate.target,
        }
    }
}

/// Whether a reference that was signed, with or without tag and digest, is of a repository.
fn is_of(reference: &str, repository: &str) -> bool {
    if containers::repository(reference) == repository {
        return true;
    }
    // Names of Docker Hub have several spellings.
    match (Repository::of(reference), Repository::of(repository)) {
        (Ok(signed), Ok(own)) => signed == own,
        _ => false,
    }
}
