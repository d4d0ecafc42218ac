//! The verdict on an executed file.

use std::{collections::HashSet, sync::Arc};

use crate::{
    containers::{Container, processes::Origin},
    detect::{FileFinding, FileVerdict, Finding, HashState, Kind, ProcessFinding, Severity},
    digest::Sha256,
    image::{contents::Contents, layer::EntryKind},
    sensor::event::Exec,
};
use monitor_common::exec::{FILE_OVERLAY, FILE_UPPER};

/// Everything a verdict on an exec depends on.
pub struct ExecFacts<'a> {
    /// The exec.
    pub exec: &'a Exec,
    /// The container it happened in.
    pub container: &'a Arc<Container>,
    /// Inode number of the host's mount namespace.
    pub host_mount_namespace: u32,
    /// The runtime's own files.
    pub runtime: &'a RuntimeFiles,
    /// What the image holds.
    pub expected: Expected<'a>,
    /// What was executed.
    pub bytes: &'a Bytes,
    /// How the process came into the container.
    pub origin: Origin,
    /// Executables of its ancestors, nearest first.
    pub ancestors: Vec<Vec<u8>>,
    /// Which hook saw it.
    pub hook: &'static str,
}

/// What the image holds, as far as that is known.
#[derive(Clone, Copy)]
pub enum Expected<'a> {
    /// Read from checked blobs.
    Verified(&'a Contents),
    /// The contents could not be had, and why.
    Unavailable(&'a str),
    /// No image accounts for the container.
    NoImage,
}

/// The bytes that were executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bytes {
    /// Their hash.
    Hashed(Sha256),
    /// The hash of what the file holds now; its change time is later than the exec, so that it may
    /// have held something else then.
    Touched(Sha256),
    /// Gone before they could be read, or changed since, and how that was noticed.
    Gone(String),
}

impl Bytes {
    /// Their hash, if they could be read.
    pub fn sha256(&self) -> Option<Sha256> {
        match self {
            Self::Hashed(sha256) | Self::Touched(sha256) => Some(*sha256),
            Self::Gone(_) => None,
        }
    }
}

/// The container runtime's own programs on this host. The runtime executes itself inside the
/// container's cgroup before the entrypoint; that step is known by the file, not by a name.
#[derive(Clone, Debug, Default)]
pub struct RuntimeFiles {
    /// Kernel device and inode number, size, and change time in seconds and nanoseconds.
    pub versions: HashSet<(u32, u64, u64, i64, u32)>,
    /// The same files' hashes: some versions execute a sealed copy in memory.
    pub hashes: HashSet<Sha256>,
}

impl RuntimeFiles {
    fn contains(&self, exec: &Exec, bytes: &Bytes) -> bool {
        let facts = &exec.file.facts;
        let version = (
            facts.device,
            facts.inode,
            facts.size,
            facts.changed_s,
            facts.changed_ns,
        );
        self.versions.contains(&version)
            || bytes
                .sha256()
                .is_some_and(|sha256| self.hashes.contains(&sha256))
    }
}

/// What came of judging one exec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// As the image says, or changed in metadata only.
    Good(FileVerdict),
    /// The runtime's own step.
    Runtime,
    /// Could not be compared; already said of the container as a whole.
    Unverifiable,
    /// Not accounted for.
    Finding(Box<Finding>),
}

/// Where the executed file lies, before its contents are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Run from the host's mount namespace in the container's cgroup.
    HostNamespace,
    /// In a lower layer of the container's root.
    Lower,
    /// In the upper layer of the container's root, or in a root without layers.
    Writable,
    /// In another filesystem.
    Volume,
    /// Without a name.
    Memory,
}

fn place(facts: &ExecFacts<'_>) -> Place {
    let exec = facts.exec;
    let file = &exec.file;
    if exec.process.mount_namespace == facts.host_mount_namespace {
        return Place::HostNamespace;
    }
    let root = facts
        .container
        .task
        .as_ref()
        .and_then(|task| task.root_device)
        .unwrap_or(exec.process.root_device);
    let in_root = file.facts.device == root;
    let layered = file.facts.flags & FILE_OVERLAY != 0;
    // A file of the image that was unlinked while it was open is still the image's.
    if in_root && layered && file.facts.flags & FILE_UPPER == 0 {
        return Place::Lower;
    }
    if file.facts.link_count == 0 || file.unlinked || file.facts.mount_namespace == 0 {
        return Place::Memory;
    }
    if in_root {
        Place::Writable
    } else {
        Place::Volume
    }
}

/// Judges one exec (design, promise 2).
pub fn judge(facts: &ExecFacts<'_>) -> Judgement {
    match place(facts) {
        Place::HostNamespace => host_namespace(facts),
        Place::Memory => memory(facts),
        Place::Volume => volume(facts),
        Place::Lower => lower(facts),
        Place::Writable => writable(facts),
    }
}

fn host_namespace(facts: &ExecFacts<'_>) -> Judgement {
    if facts.runtime.contains(facts.exec, facts.bytes) {
        return Judgement::Runtime;
    }
    let said = "was executed in the host's mount namespace by a process of the container, and is not the container runtime";
    raise(facts, Kind::ExecAdded, Severity::Critical, FileVerdict::Added, said)
        .details("the process is in the container's cgroup but sees the host's filesystem: an escape, or a hook of the runtime".to_owned())
        .done()
}

fn memory(facts: &ExecFacts<'_>) -> Judgement {
    // Replaced by an update while it ran: most that is found so at the start is of the image.
    if facts.exec.already_running
        && let (Expected::Verified(contents), Some(seen)) = (facts.expected, facts.bytes.sha256())
        && contents.find_bytes(&seen).is_some()
    {
        return Judgement::Good(FileVerdict::Image);
    }
    raise(
        facts,
        Kind::ExecMemory,
        Severity::Critical,
        FileVerdict::Memory,
        "was executed from memory or after it was deleted",
    )
    .same_bytes()
    .done()
}

fn volume(facts: &ExecFacts<'_>) -> Judgement {
    raise(
        facts,
        Kind::ExecVolume,
        Severity::Low,
        FileVerdict::Volume,
        "was executed from another filesystem than the container's root",
    )
    .same_bytes()
    .done()
}

/// The image's by construction of the overlay; its hash confirms the layer on this node's disk.
fn lower(facts: &ExecFacts<'_>) -> Judgement {
    let (Expected::Verified(contents), Some(seen)) = (facts.expected, facts.bytes.sha256()) else {
        return Judgement::Good(FileVerdict::Image);
    };
    let contradiction = "the file was executed from an unpacked layer on this node, and its bytes differ from the layer blob: the layer was edited on the host, or the container overwrote the file just after it was executed";
    match contents
        .lookup(&facts.exec.file.path_in_filesystem)
        .map(|found| (found.layer, found.kind))
    {
        Some((_, EntryKind::File { sha256, .. })) if sha256 == seen => {
            Judgement::Good(FileVerdict::Image)
        }
        Some((layer, kind)) => raise(
            facts,
            Kind::ExecModified,
            Severity::Critical,
            FileVerdict::Modified,
            "was executed with other bytes than its image holds",
        )
        .expected(layer, &kind)
        .same_bytes()
        .details(contradiction.to_owned())
        .done(),
        // Deleted while it ran, so that its path is no longer its name in the image.
        None if facts.exec.file.unlinked => Judgement::Good(FileVerdict::Image),
        None => raise(
            facts,
            Kind::ExecAdded,
            added_severity(contents, seen),
            FileVerdict::Added,
            "was executed and is not in the image",
        )
        .same_bytes()
        .details(contradiction.to_owned())
        .done(),
    }
}

fn writable(facts: &ExecFacts<'_>) -> Judgement {
    let contents = match facts.expected {
        Expected::Verified(contents) => contents,
        Expected::NoImage => return Judgement::Unverifiable,
        Expected::Unavailable(reason) => return unverifiable(facts, reason.to_owned()),
    };
    let seen = facts.bytes.sha256();
    let file = &facts.exec.file;
    // A root without layers is a directory of a larger filesystem, whose path says nothing.
    let layered = file.facts.flags & FILE_OVERLAY != 0;
    let path = if layered {
        &file.path_in_filesystem
    } else {
        &file.path
    };
    let Some(found) = contents.lookup(path) else {
        let severity = seen.map_or(Severity::Critical, |seen| added_severity(contents, seen));
        return raise(
            facts,
            Kind::ExecAdded,
            severity,
            FileVerdict::Added,
            "was executed and is not in the image",
        )
        .same_bytes()
        .done();
    };
    let modified = |said| {
        raise(
            facts,
            Kind::ExecModified,
            Severity::Critical,
            FileVerdict::Modified,
            said,
        )
        .expected(found.layer, &found.kind)
        .same_bytes()
    };
    match (&found.kind, seen) {
        (EntryKind::File { sha256, .. }, Some(seen)) if *sha256 == seen => {
            if let Bytes::Touched(_) = facts.bytes {
                let reason = "the file was copied up and changed after it was executed; what it holds now is the image's";
                return unverifiable(facts, reason.to_owned());
            }
            Judgement::Good(if facts.exec.file.facts.flags & FILE_OVERLAY != 0 {
                FileVerdict::MetadataChanged
            } else {
                FileVerdict::Image
            })
        }
        (EntryKind::File { size, .. }, None) if *size == facts.exec.file.facts.size => {
            let Bytes::Gone(reason) = facts.bytes else {
                return Judgement::Unverifiable;
            };
            unverifiable(
                facts,
                format!("the file was copied up and its bytes could not be read: {reason}"),
            )
        }
        (EntryKind::File { .. }, _) => {
            modified("was executed with other bytes than its image holds").done()
        }
        _ => modified("was executed where its image holds no file")
            .details("the image holds something other than a regular file at this path".to_owned())
            .done(),
    }
}

fn unverifiable(facts: &ExecFacts<'_>, reason: String) -> Judgement {
    raise(
        facts,
        Kind::ContentUnverifiable,
        Severity::Medium,
        FileVerdict::Unverifiable,
        "was executed and could not be compared with the image",
    )
    .details(reason)
    .done()
}

/// A copy of one of the image's own files is drift, but brings no foreign code.
fn added_severity(contents: &Contents, seen: Sha256) -> Severity {
    if contents.find_bytes(&seen).is_some() {
        Severity::Medium
    } else {
        Severity::Critical
    }
}

/// The file that a finding is about.
pub(super) struct Subject<'a> {
    /// As the process sees it.
    pub(super) path: &'a [u8],
    /// The path was cut.
    pub(super) path_truncated: bool,
    /// What it held.
    pub(super) bytes: &'a Bytes,
}

/// A finding while it is put together.
pub(super) struct Draft<'a, 'b> {
    facts: &'b ExecFacts<'a>,
    finding: Finding,
    file: FileFinding,
}

/// Raises a finding about the executed program.
fn raise<'a, 'b>(
    facts: &'b ExecFacts<'a>,
    kind: Kind,
    severity: Severity,
    verdict: FileVerdict,
    said: &str,
) -> Draft<'a, 'b> {
    let subject = Subject {
        path: &facts.exec.file.path,
        path_truncated: facts.exec.file.path_truncated,
        bytes: facts.bytes,
    };
    raise_about(facts, &subject, kind, severity, verdict, said)
}

/// Raises a finding about a file that took part in an exec.
pub(super) fn raise_about<'a, 'b>(
    facts: &'b ExecFacts<'a>,
    subject: &Subject<'_>,
    kind: Kind,
    severity: Severity,
    verdict: FileVerdict,
    said: &str,
) -> Draft<'a, 'b> {
    let exec = facts.exec;
    let finding = Finding {
        kind,
        severity,
        time_boot_ns: exec.time_boot_ns,
        container: Arc::clone(facts.container),
        evidence: match facts.expected {
            Expected::Verified(_) => Some("verified"),
            Expected::Unavailable(_) | Expected::NoImage => None,
        },
        message: format!("{} {said}", monitor_api::bytes::escape(subject.path)),
        process: Some(ProcessFinding {
            process: exec.process.clone(),
            origin: facts.origin,
            executable: exec.file.path.clone(),
            arguments: exec.arguments.clone(),
            arguments_truncated: exec.arguments_truncated,
            ancestors: facts.ancestors.clone(),
        }),
        file: None,
        details: match subject.bytes {
            Bytes::Gone(reason) => Some(reason.clone()),
            Bytes::Hashed(_) | Bytes::Touched(_) => None,
        },
        hook: Some(facts.hook),
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
            Bytes::Gone(_) => HashState::Gone,
        },
        same_bytes_as: None,
    };
    Draft {
        facts,
        finding,
        file,
    }
}

impl Draft<'_, '_> {
    pub(super) fn expected(mut self, layer: crate::digest::Digest, kind: &EntryKind<'_>) -> Self {
        self.file.layer = Some(layer);
        if let EntryKind::File { sha256, .. } = kind {
            self.file.expected = Some(*sha256);
        }
        self
    }

    /// Says under which name the image holds the same bytes, if it does.
    pub(super) fn same_bytes(mut self) -> Self {
        if let (Expected::Verified(contents), Some(seen)) = (self.facts.expected, self.file.seen) {
            self.file.same_bytes_as = contents.find_bytes(&seen);
        }
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

#[cfg(test)]
pub(crate) mod tests;
