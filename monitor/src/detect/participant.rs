//! The verdict on the files that take part in an exec beside the program: the `#!` script, the
//! interpreters that stand between it and the program, and the ELF interpreter.
//!
//! Of these only held descriptors are known, which do not say in which layer they lie, so each is
//! compared by its bytes.

use super::{
    FileVerdict, Kind, Severity,
    exec::{Bytes, ExecFacts, Expected, Judgement, Subject, raise_about},
};
use crate::image::layer::EntryKind;

/// What a file was in an exec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Named by execve or by a `#!` line, and itself a script.
    Script,
    /// Named by the program's `PT_INTERP` (`ld.so`).
    ElfInterpreter,
}

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

impl Role {
    fn added(self) -> Kind {
        match self {
            Self::Script => Kind::ScriptAdded,
            Self::ElfInterpreter => Kind::CodeAdded,
        }
    }

    fn modified(self) -> Kind {
        match self {
            Self::Script => Kind::ScriptModified,
            Self::ElfInterpreter => Kind::CodeModified,
        }
    }

    fn used(self) -> &'static str {
        match self {
            Self::Script => "was run as a script",
            Self::ElfInterpreter => "was loaded as the program's ELF interpreter",
        }
    }
}

/// Judges one participant of an exec.
pub fn judge(facts: &ExecFacts<'_>, participant: &Participant) -> Judgement {
    let Expected::Verified(contents) = facts.expected else {
        return Judgement::Unverifiable;
    };
    let role = participant.role;
    let subject = Subject {
        path: &participant.path,
        path_truncated: false,
        bytes: &participant.bytes,
    };
    let seen = participant.bytes.sha256();
    let copy_of = seen.and_then(|seen| contents.find_bytes(&seen));
    // A file of a layer seen by another path (a bind mount), or unlinked while it ran.
    if copy_of.is_some() && (participant.is_layer || participant.unlinked) {
        return Judgement::Good(FileVerdict::Image);
    }
    let found = contents
        .lookup(&participant.path)
        .filter(|_| !participant.unlinked);
    let Some(found) = found else {
        let severity = Severity::High;
        let said = format!("{} and is not in the image", role.used());
        let verdict = FileVerdict::Added;
        return raise_about(facts, &subject, role.added(), severity, verdict, &said)
            .same_bytes()
            .done();
    };
    match (&found.kind, seen) {
        (EntryKind::File { sha256, .. }, Some(seen)) if *sha256 == seen => {
            Judgement::Good(FileVerdict::Image)
        }
        // Of a layer, so most probably the image's; no more than that could be found out.
        (EntryKind::File { .. }, None) if participant.is_layer => Judgement::Unverifiable,
        (EntryKind::File { size, .. }, None) if *size == participant.size => {
            let said = format!("{} and could not be compared with the image", role.used());
            let verdict = FileVerdict::Unverifiable;
            let kind = Kind::ContentUnverifiable;
            raise_about(facts, &subject, kind, Severity::Medium, verdict, &said).done()
        }
        _ => {
            let said = format!("{} with other bytes than its image holds", role.used());
            let verdict = FileVerdict::Modified;
            let severity = Severity::Critical;
            raise_about(facts, &subject, role.modified(), severity, verdict, &said)
                .expected(found.layer, &found.kind)
                .same_bytes()
                .done()
        }
    }
}

/// Judges the script of an exec of which nothing was held: by its name alone, which says only
/// whether the image could account for it.
pub fn judge_unheld_script(facts: &ExecFacts<'_>) -> Judgement {
    let (Some(script), Expected::Verified(contents)) = (&facts.exec.script, facts.expected) else {
        return Judgement::Unverifiable;
    };
    if script.starts_with(b"/") && contents.resolve(script).is_some() {
        return Judgement::Unverifiable;
    }
    let bytes = Bytes::Gone("no descriptor of the script was held: it lies on another filesystem than the container's root, or came too early or too fast".to_owned());
    let subject = Subject {
        path: script,
        path_truncated: false,
        bytes: &bytes,
    };
    let said = "was run as a script and could not be compared with the image";
    let (kind, verdict) = (Kind::ContentUnverifiable, FileVerdict::Unverifiable);
    raise_about(facts, &subject, kind, Severity::Medium, verdict, said).done()
}

#[cfg(test)]
mod tests;
