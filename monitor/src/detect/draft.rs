//! A finding about a file, put together.

use std::sync::Arc;

use super::{
    FileFinding, FileVerdict, Finding, HashState, Kind, ProcessFinding, Severity,
    file::{Bytes, Expected, Judgement, Subject, UseFacts},
};
use crate::{
    containers::processes::{Origin, Program},
    image::{contents::Found, layer::EntryKind},
    sensor::event::Process,
};

/// A finding while it is put together.
pub(super) struct Draft<'a, 'b> {
    facts: &'b UseFacts<'a>,
    finding: Finding,
    file: FileFinding,
}

/// Raises a finding about the file that was used.
pub(super) fn raise<'a, 'b>(
    facts: &'b UseFacts<'a>,
    raised: (Kind, Severity),
    verdict: FileVerdict,
    said: &str,
) -> Draft<'a, 'b> {
    raise_about(facts, &Subject::of(facts), raised, verdict, said)
}

pub(super) fn raise_about<'a, 'b>(
    facts: &'b UseFacts<'a>,
    subject: &Subject<'_>,
    (kind, severity): (Kind, Severity),
    verdict: FileVerdict,
    said: &str,
) -> Draft<'a, 'b> {
    let finding = Finding {
        kind,
        severity,
        time_boot_ns: facts.used.time_boot_ns,
        container: Arc::clone(facts.container),
        evidence: match facts.expected {
            Expected::Known(contents) => Some(contents.evidence().name()),
            Expected::Unavailable(_) | Expected::NoImage => None,
        },
        message: format!("{} {said}", monitor_api::bytes::escape(subject.path)),
        process: Some(process_of(
            &facts.used.process,
            facts.origin,
            facts.program,
            &facts.ancestors,
        )),
        file: None,
        connection: None,
        details: match subject.bytes {
            Bytes::Gone(reason) => Some(reason.clone()),
            Bytes::Hashed(_) | Bytes::Touched(_) | Bytes::Remembered => None,
        },
        hook: Some(facts.hook),
        rule: None,
    };
    let file = FileFinding {
        path: subject.path.to_vec(),
        path_truncated: subject.path_truncated,
        verdict,
        layer: None,
        expected: None,
        seen: subject.bytes.sha256(),
        hash_state: match subject.bytes {
            Bytes::Hashed(_) | Bytes::Touched(_) => HashState::Done,
            Bytes::Remembered | Bytes::Gone(_) => HashState::Gone,
        },
        same_bytes_as: None,
    };
    Draft {
        facts,
        finding,
        file,
    }
}

/// What is said of a process.
pub fn process_of(
    process: &Process,
    origin: Origin,
    program: Option<&Program>,
    ancestors: &[Vec<u8>],
) -> ProcessFinding {
    ProcessFinding {
        process: process.clone(),
        origin,
        executable: program
            .map(|program| program.executable.clone())
            .unwrap_or_default(),
        arguments: program
            .map(|program| program.arguments.clone())
            .unwrap_or_default(),
        arguments_truncated: program.is_some_and(|program| program.arguments_truncated),
        ancestors: ancestors.to_vec(),
    }
}

impl Draft<'_, '_> {
    pub(super) fn expected(mut self, found: &Found<'_>) -> Self {
        if let Expected::Known(contents) = self.facts.expected {
            self.file.layer = contents.layer_of(found);
        }
        if let EntryKind::File { sha256, .. } = found.kind {
            self.file.expected = sha256;
        }
        self
    }

    /// Says under which name the image holds the same bytes, if it does.
    pub(super) fn same_bytes(mut self) -> Self {
        if let (Expected::Known(contents), Some(seen)) = (self.facts.expected, self.file.seen) {
            self.file.same_bytes_as = contents.find_bytes(&seen);
        }
        self
    }

    /// Goes on with the message.
    pub(super) fn because(mut self, more: &str) -> Self {
        self.finding.message.push_str(": ");
        self.finding.message.push_str(more);
        self
    }

    pub(super) fn details(mut self, details: String) -> Self {
        self.finding.details = Some(match self.finding.details.take() {
            Some(before) => format!("{details}; {before}"),
            None => details,
        });
        self
    }

    pub(super) fn done(mut self) -> Judgement {
        self.finding.file = Some(self.file);
        Judgement::Finding(Box::new(self.finding))
    }
}
