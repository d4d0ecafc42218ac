//! The verdict on a file that became code: where it lies, what the image expects there, and what was
//! seen (design, promise 2). What each way of becoming code is called is in [`super::role`].

use std::{collections::HashSet, sync::Arc};

use monitor_common::file::{FILE_OVERLAY, FILE_UPPER};

use super::{
    FileVerdict, Finding,
    draft::{Draft, raise, raise_about},
    jit,
    role::Role,
    script,
};
use crate::{
    containers::{
        Container,
        processes::{Origin, Program},
    },
    digest::Sha256,
    image::{
        capability::FileCapability,
        contents::{Contents, Evidence, Found},
        layer::EntryKind,
    },
    sensor::event::{FileFacts, FileUse},
};

/// What the message of a file says that a lower layer holds otherwise than the image.
const EDITED: &str = "the unpacked layer was edited on the host";

/// Set-user-ID and set-group-ID.
const SET_ID: u32 = 0o6000;

/// Everything a verdict on a use of a file depends on.
#[derive(Clone)]
pub struct UseFacts<'a> {
    /// The use.
    pub used: &'a FileUse,
    /// How the file became code.
    pub role: Role,
    /// The container it happened in.
    pub container: &'a Arc<Container>,
    /// Inode number of the host's mount namespace.
    pub host_mount_namespace: u32,
    /// The runtime's own files.
    pub runtime: &'a RuntimeFiles,
    /// What the image holds.
    pub expected: Expected<'a>,
    /// What the file held.
    pub bytes: &'a Bytes,
    /// Its first bytes; empty if they could not be read.
    pub head: &'a [u8],
    /// What executing it gave, by its file capabilities.
    pub capability: Option<FileCapability>,
    /// Names of the files that the process has mapped executable; only for memory without a file.
    pub libraries: &'a [Vec<u8>],
    /// What the process executes; `None` if it did not execute anything since it is watched.
    pub program: Option<&'a Program>,
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
    /// They are known; how surely, they say themselves.
    Known(&'a Contents),
    /// The contents could not be had, and why.
    Unavailable(&'a str),
    /// No image accounts for the container.
    NoImage,
}

impl<'a> Expected<'a> {
    /// The contents, if they are known.
    pub fn contents(self) -> Option<&'a Contents> {
        match self {
            Self::Known(contents) => Some(contents),
            Self::Unavailable(_) | Self::NoImage => None,
        }
    }
}

/// The bytes that were used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bytes {
    /// Their hash.
    Hashed(Sha256),
    /// The hash of what the file holds now; its change time is later than the use, so that it may
    /// have held something else then.
    Touched(Sha256),
    /// Not read again: the kernel side remembers that this version was found to be the image's.
    Remembered,
    /// Gone before they could be read, or changed since, and how that was noticed.
    Gone(String),
}

impl Bytes {
    /// Their hash, if they could be read.
    pub fn sha256(&self) -> Option<Sha256> {
        match self {
            Self::Hashed(sha256) | Self::Touched(sha256) => Some(*sha256),
            Self::Remembered | Self::Gone(_) => None,
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
    fn contains(&self, facts: &FileFacts, bytes: &Bytes) -> bool {
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

/// What came of judging one use of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Of the image by its place in a lower layer, and its bytes are those of the layer's blob, so
    /// that it need not be told again.
    Confirmed,
    /// As the image says, or changed in metadata only.
    Good(FileVerdict),
    /// The runtime's own step.
    Runtime,
    /// Made by a compiler at run time.
    Jit,
    /// Made by the interpreter itself, from a source of the image.
    Cache,
    /// Could not be compared; already said of the container as a whole.
    Unverifiable,
    /// Not accounted for.
    Finding(Box<Finding>),
}

impl Judgement {
    /// The finding that it is, if it is one.
    pub fn into_finding(self) -> Option<Finding> {
        match self {
            Self::Finding(finding) => Some(*finding),
            _ => None,
        }
    }
}

/// Where a file lies, before its contents are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Used in the host's mount namespace by a task of the container's cgroup.
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

impl Place {
    /// Of a file used in `container`.
    pub fn of(used: &FileUse, container: &Container, host_mount_namespace: u32) -> Self {
        let file = &used.file;
        if used.process.mount_namespace == host_mount_namespace {
            return Self::HostNamespace;
        }
        let task = container.task.as_ref();
        let in_root = match task.filter(|task| task.root_device.is_some()) {
            // What is missing of a path may be where its root lies.
            Some(task) if !file.path_truncated => task
                .path_in_root(file.facts.device, &file.path_in_filesystem)
                .is_some(),
            Some(task) => task.root_device == Some(file.facts.device),
            None => used.process.root_device == file.facts.device,
        };
        // A file of the image that was unlinked while it was open is still the image's.
        if in_root && file.facts.flags & (FILE_OVERLAY | FILE_UPPER) == FILE_OVERLAY {
            return Self::Lower;
        }
        if file.facts.link_count == 0 || file.unlinked || file.facts.mount_namespace == 0 {
            return Self::Memory;
        }
        if in_root {
            Self::Writable
        } else {
            Self::Volume
        }
    }
}

/// Judges one use of a file.
pub fn judge(facts: &UseFacts<'_>) -> Judgement {
    let place = Place::of(facts.used, facts.container, facts.host_mount_namespace);
    if facts.role.is_written() && place != Place::HostNamespace {
        let said = "was mapped, written in memory and made executable: what runs is not what the file holds";
        return raise(facts, facts.role.memory(), FileVerdict::Memory, said).done();
    }
    match place {
        Place::HostNamespace => host_namespace(facts),
        _ if facts.role == Role::Anonymous => anonymous(facts),
        Place::Memory => memory(facts),
        Place::Volume => volume(facts),
        Place::Lower => lower(facts),
        Place::Writable => writable(facts),
    }
}

fn host_namespace(facts: &UseFacts<'_>) -> Judgement {
    if facts.role == Role::Program {
        if facts.runtime.contains(&facts.used.file.facts, facts.bytes) {
            return Judgement::Runtime;
        }
    } else if facts
        .program
        .is_none_or(|program| program.mount_namespace == facts.host_mount_namespace)
    {
        // What executed in the host's mount namespace was judged as a program, or is of the host
        // and on its way into the container.
        return Judgement::Runtime;
    }
    let said = format!(
        "{} in the host's mount namespace by a process of the container, and is not the container runtime",
        facts.role.used()
    );
    raise(facts, facts.role.added(), FileVerdict::Added, &said)
        .details("the process is in the container's cgroup but sees the host's filesystem: an escape, or a hook of the runtime".to_owned())
        .done()
}

fn anonymous(facts: &UseFacts<'_>) -> Judgement {
    let may_compile = || match facts.expected {
        // Of a process that has ended already it is not known what it had mapped.
        Expected::Known(contents) if facts.libraries.is_empty() => {
            jit::may_be_compiler(facts.program, contents.entries().map(|(path, _)| path))
        }
        _ => false,
    };
    if jit::is_compiler(facts.program, facts.libraries) || may_compile() {
        return Judgement::Jit;
    }
    let said = "memory was written and then made executable by a program that is no known compiler: code that no file of the image holds";
    raise(facts, facts.role.memory(), FileVerdict::Memory, said).done()
}

fn memory(facts: &UseFacts<'_>) -> Judgement {
    // Replaced by an update while it ran: most that is found so at the start is of the image.
    if facts.used.already_running
        && let (Expected::Known(contents), Some(seen)) = (facts.expected, facts.bytes.sha256())
        && contents.find_bytes(&seen).is_some()
    {
        return Judgement::Good(FileVerdict::Image);
    }
    if facts.role.is_code()
        && jit::is_compiled(
            facts.program,
            &facts.used.file.path_in_filesystem,
            facts.head,
        )
    {
        return Judgement::Jit;
    }
    let said = format!("{} from memory or after it was deleted", facts.role.used());
    raise(facts, facts.role.memory(), FileVerdict::Memory, &said)
        .same_bytes()
        .done()
}

fn volume(facts: &UseFacts<'_>) -> Judgement {
    let said = format!(
        "{} from another filesystem than the container's root",
        facts.role.used()
    );
    raise(facts, facts.role.volume(), FileVerdict::Volume, &said)
        .same_bytes()
        .done()
}

/// The image's by construction of the overlay; its hash confirms the layer on this node's disk.
fn lower(facts: &UseFacts<'_>) -> Judgement {
    let (Expected::Known(contents), Some(_)) = (facts.expected, facts.bytes.sha256()) else {
        return Judgement::Good(FileVerdict::Image);
    };
    let contradiction = match contents.evidence() {
        Evidence::Verified => {
            "the file was used from an unpacked layer on this node, and it differs from the layer blob"
        }
        Evidence::Unpacked => {
            "the file was used from an unpacked layer on this node, and it differs from what the layer held when it was first read; its blob is gone"
        }
    };
    let subject = Subject::of(facts);
    match Comparison::of(&subject, contents) {
        Comparison::Same(found) if gives_more(facts, &found) => privileged(facts, &subject, &found)
            .because(EDITED)
            .details(contradiction.to_owned())
            .done(),
        Comparison::Same(_)
            if matches!(facts.bytes, Bytes::Hashed(_))
                && contents.evidence() == Evidence::Verified =>
        {
            Judgement::Confirmed
        }
        // Of the image by its place, which is all that is known where its blob is gone.
        Comparison::Same(_) | Comparison::Unread => Judgement::Good(FileVerdict::Image),
        // Deleted while it ran, so that its path is no longer its name in the image.
        Comparison::Absent if facts.used.file.unlinked => Judgement::Good(FileVerdict::Image),
        comparison => differs(facts, facts.role, &subject, comparison)
            .because(EDITED)
            .details(contradiction.to_owned())
            .done(),
    }
}

fn writable(facts: &UseFacts<'_>) -> Judgement {
    let subject = Subject::of(facts);
    let contents = match facts.expected {
        Expected::Known(contents) => contents,
        Expected::NoImage => return Judgement::Unverifiable,
        Expected::Unavailable(reason) => return unverifiable(facts, facts.role, &subject, reason),
    };
    match Comparison::of(&subject, contents) {
        Comparison::Absent | Comparison::Other(_)
            if facts.role == Role::Script
                && script::is_own_cache(contents, subject.path_in_image, facts.head) =>
        {
            Judgement::Cache
        }
        // Nothing tells a cache of the interpreter's own from a forged one.
        Comparison::Absent
            if facts.role == Role::Script
                && subject.bytes.sha256().is_none()
                && script::is_place_of_cache(contents, subject.path_in_image) =>
        {
            let reason = "it lies where the interpreter keeps its own bytecode of a source of the image, and its bytes could not be read";
            unverifiable(facts, facts.role, &subject, reason)
        }
        Comparison::Same(found) => {
            // The mode is of the moment of use, whatever became of the bytes afterwards.
            if gives_more(facts, &found) {
                return privileged(facts, &subject, &found).done();
            }
            if let Bytes::Touched(_) = facts.bytes {
                let reason = "the file was copied up and changed after it was used; what it holds now is the image's";
                return unverifiable(facts, facts.role, &subject, reason);
            }
            Judgement::Good(if facts.used.file.facts.flags & FILE_OVERLAY != 0 {
                FileVerdict::MetadataChanged
            } else {
                FileVerdict::Image
            })
        }
        Comparison::Unread => {
            let reason = match facts.bytes.sha256() {
                Some(_) => "the image's own file could not be read from the unpacked layer",
                None if facts.used.file.facts.flags & FILE_OVERLAY == 0 => {
                    "its container's root has no layers, and its bytes could not be read"
                }
                None => "the file was copied up and its bytes could not be read",
            };
            unverifiable(facts, facts.role, &subject, reason)
        }
        comparison => differs(facts, facts.role, &subject, comparison).done(),
    }
}

/// Whether executing the file gives more than the image's file would. One that gives less, as chown
/// leaves it, is changed in metadata only.
fn gives_more(facts: &UseFacts<'_>, found: &Found<'_>) -> bool {
    let set_id = facts.used.file.facts.mode & SET_ID & !u32::from(found.mode);
    let expected = found.capability.unwrap_or_default();
    let is_capable = facts.capability.is_some_and(|seen| seen.exceeds(&expected));
    facts.role == Role::Program && (set_id != 0 || is_capable)
}

fn privileged<'a, 'b>(
    facts: &'b UseFacts<'a>,
    subject: &Subject<'_>,
    found: &Found<'_>,
) -> Draft<'a, 'b> {
    let said = "was executed with a set-user-ID bit, a set-group-ID bit or file capabilities that its image does not give it";
    let seen = facts.used.file.facts.mode & 0o7777;
    let bytes = match facts.bytes {
        Bytes::Touched(_) => {
            "what the file holds now is the image's, and it was changed after it was used"
        }
        _ => "the bytes are the image's",
    };
    raise_about(
        facts,
        subject,
        facts.role.modified(),
        FileVerdict::Modified,
        said,
    )
    .expected(found)
    .details(format!(
        "{bytes}; mode {seen:04o} instead of {:04o}, capabilities {} instead of {}",
        found.mode,
        shown(facts.capability),
        shown(found.capability),
    ))
}

fn shown(capability: Option<FileCapability>) -> String {
    capability.map_or_else(|| "none".to_owned(), |capability| capability.to_string())
}

/// The file that a finding is about.
pub(super) struct Subject<'a> {
    /// As the process sees it.
    pub(super) path: &'a [u8],
    /// The path was cut.
    pub(super) path_truncated: bool,
    /// Where the image would have it.
    pub(super) path_in_image: &'a [u8],
    /// Bytes it has.
    pub(super) size: u64,
    /// What it held.
    pub(super) bytes: &'a Bytes,
}

impl<'a> Subject<'a> {
    pub(super) fn of(facts: &'a UseFacts<'_>) -> Self {
        let file = &facts.used.file;
        Self {
            path: &file.path,
            path_truncated: file.path_truncated,
            path_in_image: path_in_image(facts.used),
            size: file.facts.size,
            bytes: facts.bytes,
        }
    }
}

/// Where the image would have the file that was used.
pub fn path_in_image(used: &FileUse) -> &[u8] {
    let file = &used.file;
    // A root without layers is a directory of a larger filesystem, whose path says nothing.
    let layered = file.facts.flags & FILE_OVERLAY != 0;
    if layered {
        &file.path_in_filesystem
    } else {
        &file.path
    }
}

/// A file beside what the image has at its path.
pub(super) enum Comparison<'a> {
    /// The same bytes.
    Same(Found<'a>),
    /// The image has nothing there.
    Absent,
    /// The same length, and the bytes of one of them could not be read.
    Unread,
    /// Other bytes.
    Other(Found<'a>),
    /// No regular file there.
    NoFile(Found<'a>),
}

impl<'a> Comparison<'a> {
    pub(super) fn of(subject: &Subject<'_>, contents: &'a Contents) -> Self {
        let Some(found) = contents.lookup(subject.path_in_image) else {
            return Self::Absent;
        };
        match (&found.kind, subject.bytes.sha256()) {
            (EntryKind::File { sha256, .. }, Some(seen)) if *sha256 == Some(seen) => {
                Self::Same(found)
            }
            (EntryKind::File { size, sha256 }, seen)
                if (seen.is_none() || sha256.is_none()) && *size == subject.size =>
            {
                Self::Unread
            }
            (EntryKind::File { .. }, _) => Self::Other(found),
            _ => Self::NoFile(found),
        }
    }
}

/// Raises what a comparison found.
pub(super) fn differs<'a, 'b>(
    facts: &'b UseFacts<'a>,
    role: Role,
    subject: &Subject<'_>,
    comparison: Comparison<'_>,
) -> Draft<'a, 'b> {
    let used = role.used();
    let modified = |said: &str, found: &Found<'_>| {
        let said = format!("{used} {said}");
        raise_about(
            facts,
            subject,
            role.modified(),
            FileVerdict::Modified,
            &said,
        )
        .expected(found)
        .same_bytes()
    };
    match comparison {
        Comparison::Other(found) => modified("with other bytes than its image holds", &found),
        Comparison::NoFile(found) => modified("where its image holds no file", &found)
            .details("the image holds something other than a regular file at this path".to_owned()),
        Comparison::Same(_) | Comparison::Unread | Comparison::Absent => {
            // A copy of one of the image's own files is drift, but brings no foreign code.
            let is_copy = match (facts.expected, subject.bytes.sha256()) {
                (Expected::Known(contents), Some(seen)) => contents.find_bytes(&seen).is_some(),
                _ => false,
            };
            let raised = if is_copy { role.copied() } else { role.added() };
            let said = format!("{used} and is not in the image");
            raise_about(facts, subject, raised, FileVerdict::Added, &said).same_bytes()
        }
    }
}

/// Raises that a file could not be compared, and why.
pub(super) fn unverifiable(
    facts: &UseFacts<'_>,
    role: Role,
    subject: &Subject<'_>,
    reason: &str,
) -> Judgement {
    let said = format!("{} and could not be compared with the image", role.used());
    let verdict = FileVerdict::Unverifiable;
    let draft = raise_about(facts, subject, role.unverifiable(), verdict, &said);
    match reason {
        "" => draft.done(),
        reason => draft.details(reason.to_owned()).done(),
    }
}

#[cfg(test)]
pub(crate) mod tests;
