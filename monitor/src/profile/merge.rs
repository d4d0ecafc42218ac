//! One profile of what several nodes have learned.

use super::{
    convert,
    document::{Document, DocumentError, State},
    whole::Starts,
};
use crate::digest::Digest;

/// Two documents cannot be made one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MergeError {
    /// They are of two images.
    #[error(
        "profiles of two images, {0} and {1}, cannot be merged: compare them by `profile diff`"
    )]
    OtherImage(Digest, Digest),
    /// One of them is not valid.
    #[error(transparent)]
    Document(#[from] DocumentError),
}

/// What either has. Associative and commutative, and a document merged with itself is itself.
pub fn merge(one: &Document, other: &Document) -> Result<Document, MergeError> {
    if one.image.manifest != other.image.manifest {
        return Err(MergeError::OtherImage(
            one.image.manifest,
            other.image.manifest,
        ));
    }
    let mut whole = convert::whole(one)?;
    whole.join(&convert::whole(other)?, Starts::Larger);
    let (mut about, theirs) = (convert::about(one), convert::about(other));
    let subject = &mut about.subject;
    let their_subject = theirs.subject;
    subject.reference = subject.reference.clone().max(their_subject.reference);
    subject.repository = subject.repository.clone().max(their_subject.repository);
    subject.config = subject.config.max(their_subject.config);
    subject.chain_id = subject.chain_id.max(their_subject.chain_id);
    about.state = about.state.max(theirs.state);
    about.frozen = about.frozen.max(theirs.frozen);
    if about.state != State::Frozen {
        about.frozen = None;
    }
    about.inherited_from = about.inherited_from.max(theirs.inherited_from);
    about.user = about.user.max(theirs.user);
    about.exposed_ports.extend(theirs.exposed_ports);
    for (path, sha256) in theirs.libraries {
        let own = about.libraries.entry(path).or_default();
        *own = (*own).max(sha256);
    }
    about.reasons.join(&theirs.reasons);
    Ok(convert::document(&about, &whole))
}
