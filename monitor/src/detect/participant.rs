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
    // A file of the image that was unlinked while it ran has lost its path, not its bytes.
    if participant.unlinked && seen.is_some_and(|seen| contents.find_bytes(&seen).is_some()) {
        return Judgement::Good(FileVerdict::Image);
    }
    let found = contents
        .lookup(&participant.path)
        .filter(|_| !participant.unlinked);
    let Some(found) = found else {
        let copied = seen.is_some_and(|seen| contents.find_bytes(&seen).is_some());
        let severity = if copied {
            Severity::Medium
        } else {
            Severity::High
        };
        let said = format!("{} and is not in the image", role.used());
        return raise_about(
            facts,
            &subject,
            role.added(),
            severity,
            FileVerdict::Added,
            &said,
        )
        .same_bytes()
        .done();
    };
    match (&found.kind, seen) {
        (EntryKind::File { sha256, .. }, Some(seen)) if *sha256 == seen => {
            Judgement::Good(FileVerdict::Image)
        }
        // Nothing says that it is not the image's: most are, and were gone in a moment.
        (EntryKind::File { .. }, None) => Judgement::Unverifiable,
        _ => {
            let said = format!("{} with other bytes than its image holds", role.used());
            let verdict = FileVerdict::Modified;
            raise_about(
                facts,
                &subject,
                role.modified(),
                Severity::Critical,
                verdict,
                &said,
            )
            .expected(found.layer, &found.kind)
            .same_bytes()
            .done()
        }
    }
}
