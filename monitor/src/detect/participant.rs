//! The verdict on the files that take part in an exec beside the program: the `#!` script, the
//! interpreters that stand between it and the program, and the ELF interpreter.
//!
//! Of these only held descriptors are known, which do not say in which layer they lie, so each is
//! compared by its bytes.

use super::{
    FileVerdict,
    file::{Bytes, Comparison, Expected, Judgement, Subject, UseFacts, differs, unverifiable},
    role::Role,
};

/// A file that took part in an exec, of the container's root filesystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Participant {
    /// What it was.
    pub role: Role,
    /// Its path where it was opened.
    pub path: Vec<u8>,
    /// It had no name any more when it was read.
    pub unlinked: bool,
    /// Bytes it had when it was read.
    pub size: u64,
    /// It did not change since before the container was created, so that it lies in a layer.
    pub is_layer: bool,
    /// What it held.
    pub bytes: Bytes,
}

/// Judges one participant of an exec.
pub fn judge(facts: &UseFacts<'_>, participant: &Participant) -> Judgement {
    let Expected::Known(contents) = facts.expected else {
        return Judgement::Unverifiable;
    };
    let role = participant.role;
    let subject = Subject {
        path: &participant.path,
        path_truncated: false,
        path_in_image: &participant.path,
        size: participant.size,
        bytes: &participant.bytes,
    };
    let seen = participant.bytes.sha256();
    let is_copy = seen.is_some_and(|seen| contents.find_bytes(&seen).is_some());
    // A file of a layer seen by another path (a bind mount), or unlinked while it ran.
    if is_copy && (participant.is_layer || participant.unlinked) {
        return Judgement::Good(FileVerdict::Image);
    }
    if participant.unlinked {
        return differs(facts, role, &subject, Comparison::Absent).done();
    }
    match Comparison::of(&subject, contents) {
        Comparison::Same(_) => Judgement::Good(FileVerdict::Image),
        // Of a layer, so most probably the image's; no more than that could be found out.
        Comparison::Unread | Comparison::Other(_) if participant.is_layer && seen.is_none() => {
            Judgement::Unverifiable
        }
        Comparison::Unread => unverifiable(facts, role, &subject, ""),
        comparison => differs(facts, role, &subject, comparison).done(),
    }
}

/// Judges the script of an exec of which nothing was held: by its name alone, which says only
/// whether the image could account for it. Where the opens of interpreters are seen, the
/// interpreter's own says more.
pub fn judge_unheld_script(facts: &UseFacts<'_>) -> Judgement {
    let script = facts.program.and_then(|program| program.script.as_deref());
    let (Some(script), Expected::Known(contents)) = (script, facts.expected) else {
        return Judgement::Unverifiable;
    };
    if script.starts_with(b"/") && contents.resolve(script).is_some() {
        return Judgement::Unverifiable;
    }
    let bytes = Bytes::Gone("no descriptor of the script was held: it lies on another filesystem than the container's root, or came too early or too fast".to_owned());
    let subject = Subject {
        path: script,
        path_truncated: false,
        path_in_image: script,
        size: 0,
        bytes: &bytes,
    };
    unverifiable(facts, Role::Script, &subject, "")
}

#[cfg(test)]
mod tests;
