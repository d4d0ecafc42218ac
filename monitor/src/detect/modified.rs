//! A file of the image that a container wrote, replaced or removed.

use std::sync::Arc;

use super::{FileFinding, FileVerdict, Finding, HashState, Kind, Severity, file::Bytes};
use crate::{
    changes::{Changed, Seen},
    containers::Container,
    digest::Sha256,
    image::{contents::Found, layer::EntryKind},
    sensor::elf,
};

/// What sees it, in alerts: the upper directory of the container's root, whoever changed it and how.
const HOOK: &str = "overlay";
/// Ends of the names of files that a program loads to run them.
const CODE_NAMES: &[&[u8]] = &[
    b".so", b".ko", b".py", b".pyc", b".pl", b".pm", b".rb", b".js", b".mjs", b".cjs", b".php",
    b".lua", b".sh", b".jar", b".war", b".class", b".dll",
];
/// Where the bytecode lies that Python keeps of its sources, and writes anew by itself.
const CACHES: &[u8] = b"/__pycache__/";
/// Any of the bits that let a file be executed.
const EXECUTABLE: u16 = 0o111;

/// What came of comparing a path with the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// As in the image, but maybe for mode, owner and times.
    Same,
    /// It could not be read.
    Unverifiable,
    /// Something else.
    Finding(Box<Finding>),
}

/// What was last told of a path, so that a file that is written again and again is told once:
/// only of code each version is news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// That it is gone, or something else than a file.
    Gone,
    /// That its bytes are others.
    Data,
    /// That it is code with these bytes.
    Code(Option<Sha256>),
}

impl Told {
    /// What a finding of [`judge`] tells.
    pub fn by(finding: &Finding) -> Self {
        match &finding.file {
            Some(file) if file.hash_state == HashState::NotRead => Self::Gone,
            Some(file) if finding.severity == Severity::High => Self::Code(file.seen),
            _ => Self::Data,
        }
    }
}

/// Compares what lies at a path of the image with the image.
pub fn judge(changed: &Changed) -> Judgement {
    let Changed {
        contents,
        path,
        seen,
        ..
    } = changed;
    let Some(expected) = contents.lookup(path) else {
        return Judgement::Same;
    };
    match (&expected.kind, seen) {
        (EntryKind::Directory, Seen::Directory(missing, count)) => {
            replaced_directory(changed, &expected, missing, *count)
        }
        (EntryKind::Directory, _) => directory(changed, &expected),
        (EntryKind::File { sha256, .. }, Seen::File { bytes, .. }) => {
            match (bytes.sha256(), sha256) {
                (Some(seen), Some(expected)) if seen == *expected => Judgement::Same,
                (Some(_), Some(_)) => file(changed, &expected),
                // Of a length that is the image's it may be the image's.
                (None, _) | (_, None) => Judgement::Unverifiable,
            }
        }
        (EntryKind::Symlink { target }, Seen::Symlink(seen)) if target == seen => Judgement::Same,
        (EntryKind::File { .. } | EntryKind::Symlink { .. }, _) => file(changed, &expected),
        // They have no bytes.
        (EntryKind::CharDevice { .. } | EntryKind::BlockDevice { .. } | EntryKind::Fifo, _) => {
            Judgement::Same
        }
    }
}

/// A file or a symbolic link of the image that is another, something else or gone.
fn file(changed: &Changed, expected: &Found<'_>) -> Judgement {
    let (contents, path) = (&changed.contents, &changed.path);
    let link = |target: &[u8]| format!("a symbolic link to {}", monitor_api::bytes::escape(target));
    let done = match (&changed.seen, &expected.kind) {
        (Seen::Removed, _) => "was removed".to_owned(),
        (Seen::File { is_copy: true, .. }, _) => {
            "was overwritten: its bytes are no longer the image's".to_owned()
        }
        (Seen::File { .. }, EntryKind::File { .. }) => {
            "was replaced by another file: its bytes are no longer the image's".to_owned()
        }
        (Seen::File { .. }, _) => "was replaced by a file".to_owned(),
        (Seen::Symlink(target), _) => format!("was replaced by {}", link(target)),
        (Seen::Directory(..), _) => "was replaced by a directory".to_owned(),
        (Seen::Special, _) => "was replaced by a device, a pipe or a socket".to_owned(),
    };
    let head = match &changed.seen {
        Seen::File { head, .. } => head.as_slice(),
        _ => &[],
    };
    let leads_to_code = match (&expected.kind, &changed.seen) {
        (EntryKind::Symlink { .. }, _) | (_, Seen::Symlink(_)) => contents
            .resolve(path)
            .is_some_and(|(path, found)| is_code(&path, &found, &[])),
        _ => false,
    };
    let severity = severity(leads_to_code || is_code(path, expected, head));
    let (seen, state, details) = match &changed.seen {
        Seen::File { bytes, .. } => match bytes {
            Bytes::Hashed(sha256) | Bytes::Touched(sha256) => {
                (Some(*sha256), HashState::Done, None)
            }
            Bytes::Gone(reason) => (None, HashState::Gone, Some(reason.clone())),
            Bytes::Remembered => (None, HashState::Gone, None),
        },
        _ => (None, HashState::NotRead, None),
    };
    let mut said = about(changed, Some(expected));
    said.expected = match expected.kind {
        EntryKind::File { sha256, .. } => sha256,
        _ => None,
    };
    said.seen = seen;
    said.hash_state = state;
    said.same_bytes_as = seen.and_then(|seen| contents.find_bytes(&seen));
    finding(changed, severity, &done, said, details)
}

/// A directory of the image that is gone, or something else.
fn directory(changed: &Changed, expected: &Found<'_>) -> Judgement {
    let within = changed.contents.below(&changed.path);
    let files = within.filter(|(_, found)| is_file(found));
    let (mut count, mut has_code) = (0_u64, false);
    for (path, found) in files {
        count += 1;
        has_code |= is_code(&path, &found, &[]);
    }
    if count == 0 {
        return Judgement::Same;
    }
    let done = match changed.seen {
        Seen::Removed => format!("was removed with {count} files of the image"),
        _ => format!("was replaced by something else: {count} files of the image in it are gone"),
    };
    let said = about(changed, Some(expected));
    finding(changed, severity(has_code), &done, said, None)
}

/// A directory of the image that was made anew, and files of the image that are not in it.
fn replaced_directory(
    changed: &Changed,
    expected: &Found<'_>,
    missing: &[Vec<u8>],
    count: u64,
) -> Judgement {
    let Some(first) = missing.first() else {
        return Judgement::Same;
    };
    let is_code = |path: &Vec<u8>| {
        let found = changed.contents.lookup(path);
        found.is_some_and(|found| is_code(path, &found, &[]))
    };
    let done = format!("was made anew: {count} files of the image in it are gone");
    let details = format!("{} is gone", monitor_api::bytes::escape(first));
    let said = about(changed, Some(expected));
    let severity = severity(missing.iter().any(is_code));
    finding(changed, severity, &done, said, Some(details))
}

fn severity(is_code: bool) -> Severity {
    if is_code {
        Severity::High
    } else {
        Severity::Info
    }
}

fn is_file(found: &Found<'_>) -> bool {
    matches!(found.kind, EntryKind::File { .. })
}

/// Whether a file is run, as far as the image or its first bytes tell.
fn is_code(path: &[u8], expected: &Found<'_>, head: &[u8]) -> bool {
    if path.windows(CACHES.len()).any(|part| part == CACHES) {
        return false;
    }
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
    let is_versioned = || name.windows(4).any(|part| part == b".so.");
    (is_file(expected) && expected.mode & EXECUTABLE != 0)
        || head.starts_with(elf::MAGIC)
        || head.starts_with(b"#!")
        || CODE_NAMES.iter().any(|end| name.ends_with(end))
        || is_versioned()
}

fn about(changed: &Changed, expected: Option<&Found<'_>>) -> FileFinding {
    FileFinding {
        path: changed.path.clone(),
        path_truncated: false,
        verdict: FileVerdict::Modified,
        layer: expected.and_then(|found| changed.contents.layer_of(found)),
        expected: None,
        seen: None,
        hash_state: HashState::NotRead,
        same_bytes_as: None,
    }
}

fn finding(
    changed: &Changed,
    severity: Severity,
    done: &str,
    file: FileFinding,
    details: Option<String>,
) -> Judgement {
    Judgement::Finding(Box::new(Finding {
        kind: Kind::ImageFileModified,
        severity,
        time_boot_ns: changed.time_boot_ns,
        container: Arc::<Container>::clone(&changed.container),
        evidence: Some(changed.contents.evidence().name()),
        message: format!("{} {done}", monitor_api::bytes::escape(&changed.path)),
        process: None,
        file: Some(file),
        connection: None,
        details,
        hook: Some(HOOK),
        rule: None,
    }))
}

#[cfg(test)]
mod tests;
