//! What is asked of an image's provenance, and what is answered.

use std::fmt;

use jiff::Timestamp;

use super::signature::{Attestation, Signature};
use crate::digest::Digest;

/// An image whose signatures are asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Subject {
    /// Namespace of containerd that has it.
    pub runtime_namespace: String,
    /// Its reference without tag and digest, as [`containers::repository`] gives it; the image's
    /// signatures are looked for there, and keys count for it.
    ///
    /// [`containers::repository`]: crate::containers::repository
    pub repository: String,
    /// Digest of its manifest.
    pub manifest: Digest,
    /// Digest of the index that it was found by. Its signatures count only if it lists the manifest.
    pub index: Option<Digest>,
}

/// Where signatures are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// containerd's content store and images.
    Containerd,
    /// The image's registry.
    Registry,
    /// The configured folder.
    Folder,
}

impl Source {
    /// As people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::Registry => "registry",
            Self::Folder => "folder",
        }
    }
}

/// A source that does not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Down {
    /// Which one.
    pub source: Source,
    /// When it was first found so.
    pub since: Timestamp,
    /// Why.
    pub reason: String,
    /// When it last answered: what it said then stands. `None` if it never did.
    pub answered: Option<Timestamp>,
}

impl fmt::Display for Down {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            source,
            since,
            reason,
            answered,
        } = self;
        write!(f, "the {} does not answer since {since}", source.name())?;
        match answered {
            Some(answered) => write!(f, ", what it said at {answered} stands: {reason}"),
            None => write!(f, " and never did: {reason}"),
        }
    }
}

/// What is known of an image's provenance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Of its signatures.
    pub signature: Signature,
    /// What else is stated about it, not judged.
    pub attestations: Vec<Attestation>,
    /// Sources that do not answer; the verdict is made of what they last said.
    pub down: Vec<Down>,
    /// When sources were last asked.
    pub asked: Timestamp,
    /// The keys by which it was judged; see [`Provenance::generation`](super::Provenance::generation).
    pub generation: u64,
}
