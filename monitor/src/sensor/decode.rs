//! Bytes of the ring become a checked [`Event`]: pure, and safe for any bytes.

mod connect;

use monitor_common::{
    LAYOUT_VERSION, RecordHeader, RecordKind,
    code::{CODE_ANONYMOUS, CODE_WRITTEN, CodeRecord},
    exec::{EXEC_ARGUMENTS_TRUNCATED, EXEC_ARGUMENTS_UNREADABLE, ExecRecord},
    file::FileFacts,
    open::{
        NO_DESCRIPTOR, OPEN_INTERPRETED, OPEN_READ, OPEN_RECEIVED, OPEN_STANDARD_INPUT, OPEN_WRITE,
        OpenRecord, Sign, SourceRecord,
    },
    path::{PATH_TRUNCATED, PATH_UNLINKED, PathLengths},
    process::{ExitRecord, ForkRecord},
    task::{TASK_CGROUP_TRUNCATED, TaskFacts},
};
use zerocopy::FromBytes;

use super::{
    event::{
        Access, Cgroup, Code, Event, Exec, Exit, File, FileUse, Fork, Open, Process, ProcessId,
        Receipt, Source,
    },
    hooks::{HookSet, SETS},
};

/// A record is not one that this agent's own programs write.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    /// Shorter than it says, or than it must be.
    #[error("a record of {length} bytes is cut")]
    Cut {
        /// Bytes there were.
        length: usize,
    },
    /// Written by other programs than this agent loaded.
    #[error("a record has layout version {0}, this agent reads {LAYOUT_VERSION}")]
    Version(u16),
    /// No such kind.
    #[error("a record has the unknown kind {0}")]
    Kind(u8),
    /// No such set of hooks.
    #[error("a record is of the unknown set of hooks {0}")]
    HookSet(u8),
}

/// In place of a path for memory without a file, in the manner of `/proc/PID/maps`.
const ANONYMOUS: &[u8] = b"[anonymous]";

/// Reads one record.
pub fn decode(bytes: &[u8]) -> Result<Event, DecodeError> {
    let cut = DecodeError::Cut {
        length: bytes.len(),
    };
    let Ok((header, _)) = RecordHeader::read_from_prefix(bytes) else {
        return Err(cut);
    };
    if header.version != LAYOUT_VERSION {
        return Err(DecodeError::Version(header.version));
    }
    let Some(bytes) = bytes.get(..header.length as usize) else {
        return Err(cut);
    };
    let hook = SETS
        .into_iter()
        .find(|set| *set as u8 == header.hook)
        .ok_or(DecodeError::HookSet(header.hook))?;
    let event = match header.kind {
        kind if kind == RecordKind::Exec as u8 => exec(bytes, hook),
        kind if kind == RecordKind::Code as u8 => code(bytes, hook),
        kind if kind == RecordKind::Open as u8 => open(bytes, hook),
        kind if kind == RecordKind::Source as u8 => source(bytes),
        kind if kind == RecordKind::Fork as u8 => fork(bytes),
        kind if kind == RecordKind::Exit as u8 => exit(bytes),
        kind if kind == RecordKind::Connect as u8 => connect::connect(bytes, hook),
        kind if kind == RecordKind::Answer as u8 => connect::answer(bytes),
        kind => return Err(DecodeError::Kind(kind)),
    };
    event.ok_or(cut)
}

fn exec(bytes: &[u8], hook: HookSet) -> Option<Event> {
    let (record, tail) = ExecRecord::read_from_prefix(bytes).ok()?;
    let mut tail = Tail(tail);
    let used = file_use(
        record.header,
        hook,
        &record.task,
        record.file,
        &record.path,
        &mut tail,
    )?;
    let script = tail.take(record.script_length)?;
    let bytes = tail.take(record.arguments_length)?;
    let mut arguments = split_arguments(bytes);
    let mut cut = record.flags & (EXEC_ARGUMENTS_TRUNCATED | EXEC_ARGUMENTS_UNREADABLE) != 0;
    if record.arguments_count != u32::MAX {
        // Each ends with a NUL, and what follows the last one is not of the arguments.
        let count = record.arguments_count as usize;
        let ended = bytes.iter().filter(|byte| **byte == 0).count();
        cut |= ended < count;
        arguments.truncate(count);
    }
    Some(Event::Exec(Box::new(Exec {
        used,
        script: (!script.is_empty()).then(|| without_nul(script).to_vec()),
        arguments,
        arguments_truncated: cut,
        held: Vec::new(),
        program: None,
    })))
}

fn code(bytes: &[u8], hook: HookSet) -> Option<Event> {
    let (record, tail) = CodeRecord::read_from_prefix(bytes).ok()?;
    let mut tail = Tail(tail);
    let (header, task) = (record.header, &record.task);
    let is_anonymous = record.flags & CODE_ANONYMOUS != 0;
    let mut used = file_use(header, hook, task, record.file, &record.path, &mut tail)?;
    if is_anonymous {
        used.file.path = ANONYMOUS.to_vec();
        used.file.path_in_filesystem = ANONYMOUS.to_vec();
    }
    Some(Event::Code(Box::new(Code {
        used,
        written: record.flags & CODE_WRITTEN != 0,
        is_anonymous,
        mapping: (record.start, record.end),
        libraries: Vec::new(),
        held: None,
    })))
}

fn open(bytes: &[u8], hook: HookSet) -> Option<Event> {
    let (record, tail) = OpenRecord::read_from_prefix(bytes).ok()?;
    let mut tail = Tail(tail);
    let (header, task) = (record.header, &record.task);
    Some(Event::Open(Box::new(Open {
        used: file_use(header, hook, task, record.file, &record.path, &mut tail)?,
        access: Access {
            read: record.flags & OPEN_READ != 0,
            write: record.flags & OPEN_WRITE != 0,
        },
        is_interpreted: record.flags & OPEN_INTERPRETED != 0,
        is_standard_input: record.flags & OPEN_STANDARD_INPUT != 0,
        is_received: record.flags & OPEN_RECEIVED != 0,
        descriptor: (record.descriptor != NO_DESCRIPTOR).then_some(record.descriptor),
        held: None,
    })))
}

fn source(bytes: &[u8]) -> Option<Event> {
    let (record, _) = SourceRecord::read_from_prefix(bytes).ok()?;
    let sign = [Sign::Kept, Sign::Examined, Sign::Redirected]
        .into_iter()
        .find(|sign| *sign as u32 == record.sign)?;
    Some(Event::Source(Source {
        process: ProcessId {
            pid: record.pid,
            start_boot_ns: record.start_boot_ns,
        },
        inode: record.inode,
        device: record.device,
        sign,
    }))
}

fn fork(bytes: &[u8]) -> Option<Event> {
    let (record, _) = ForkRecord::read_from_prefix(bytes).ok()?;
    Some(Event::Fork(Fork {
        parent: ProcessId {
            pid: record.parent_pid,
            start_boot_ns: record.parent_start_boot_ns,
        },
        child: ProcessId {
            pid: record.child_pid,
            start_boot_ns: record.child_start_boot_ns,
        },
    }))
}

fn exit(bytes: &[u8]) -> Option<Event> {
    let (record, _) = ExitRecord::read_from_prefix(bytes).ok()?;
    Some(Event::Exit(Exit {
        process: ProcessId {
            pid: record.pid,
            start_boot_ns: record.start_boot_ns,
        },
    }))
}

/// What records of all kinds begin their tail with: the file's path and the cgroup's.
fn file_use(
    header: RecordHeader,
    hook: HookSet,
    task: &TaskFacts,
    facts: FileFacts,
    path: &PathLengths,
    tail: &mut Tail<'_>,
) -> Option<FileUse> {
    let flags = path.flags;
    let (path, path_in_filesystem) = paths(tail, path)?;
    let mut cgroup_path = reversed([tail.take(task.cgroup_path_length)?]);
    if task.flags & TASK_CGROUP_TRUNCATED != 0 {
        cgroup_path.splice(0..0, "…".bytes());
    }
    Some(FileUse {
        time_boot_ns: header.time_boot_ns,
        hook,
        cgroup: Cgroup {
            id: task.cgroup_id,
            path: cgroup_path,
        },
        process: Process {
            pid: task.pid,
            start_boot_ns: task.start_boot_ns,
            parent_pid: task.parent_pid,
            parent_mount_namespace: task.parent_mount_namespace,
            uid: task.uid,
            mount_namespace: task.mount_namespace,
            pid_namespace: task.pid_namespace,
            root_device: task.root_device,
        },
        file: File {
            facts,
            path,
            path_in_filesystem,
            path_truncated: flags & PATH_TRUNCATED != 0,
            unlinked: flags & PATH_UNLINKED != 0,
        },
        already_running: false,
        receipt: Receipt::default(),
    })
}

/// What is left of a record behind its fixed part.
struct Tail<'a>(&'a [u8]);

impl<'a> Tail<'a> {
    fn take(&mut self, length: u16) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::from(length))?;
        self.0 = rest;
        Some(taken)
    }
}

/// The path in the mount namespace, and the path in the superblock.
fn paths(tail: &mut Tail<'_>, lengths: &PathLengths) -> Option<(Vec<u8>, Vec<u8>)> {
    let below_mount = tail.take(lengths.below_mount)?;
    let above_mount = tail.take(lengths.above_mount)?;
    let below_superblock = tail.take(lengths.below_superblock)?;
    Some((
        reversed([below_mount, above_mount]),
        reversed([below_mount, below_superblock]),
    ))
}

/// Runs of components, leaf first, to a path that begins with `/`.
fn reversed<const N: usize>(runs: [&[u8]; N]) -> Vec<u8> {
    let mut path = Vec::with_capacity(runs.iter().map(|run| run.len()).sum::<usize>() + 1);
    for run in runs.iter().rev() {
        for component in without_nul(run).rsplit(|byte| *byte == 0) {
            if !component.is_empty() {
                path.push(b'/');
                path.extend_from_slice(component);
            }
        }
    }
    if path.is_empty() {
        path.push(b'/');
    }
    path
}

pub(super) fn split_arguments(bytes: &[u8]) -> Vec<Vec<u8>> {
    if bytes.is_empty() {
        return Vec::new();
    }
    without_nul(bytes)
        .split(|byte| *byte == 0)
        .map(<[u8]>::to_vec)
        .collect()
}

/// Without the NUL that ends it.
fn without_nul(bytes: &[u8]) -> &[u8] {
    bytes.strip_suffix(&[0]).unwrap_or(bytes)
}

#[cfg(test)]
#[expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    fn record(tail: [&[u8]; 6], flags: u32, path_flags: u16) -> Vec<u8> {
        counted_record(tail, u32::MAX, flags, path_flags)
    }

    fn counted_record(
        tail: [&[u8]; 6],
        arguments_count: u32,
        flags: u32,
        path_flags: u16,
    ) -> Vec<u8> {
        let length = |index: usize| u16::try_from(tail[index].len()).unwrap();
        let total = size_of::<ExecRecord>() + tail.iter().map(|part| part.len()).sum::<usize>();
        let fixed = ExecRecord {
            header: RecordHeader {
                kind: RecordKind::Exec as u8,
                hook: HookSet::Lsm as u8,
                version: LAYOUT_VERSION,
                length: u32::try_from(total).unwrap(),
                time_boot_ns: 5,
            },
            task: TaskFacts {
                cgroup_id: 7,
                cgroup_path_length: length(3),
                flags: if flags == 0 { 0 } else { TASK_CGROUP_TRUNCATED },
                ..TaskFacts::default()
            },
            file: FileFacts::default(),
            path: PathLengths {
                below_mount: length(0),
                above_mount: length(1),
                below_superblock: length(2),
                flags: path_flags,
            },
            script_length: length(4),
            arguments_length: length(5),
            arguments_count,
            flags,
            reserved: 0,
        };
        let mut bytes = fixed.as_bytes().to_vec();
        tail.iter().for_each(|part| bytes.extend_from_slice(part));
        bytes
    }

    fn decode_exec(bytes: &[u8]) -> Exec {
        match decode(bytes).unwrap() {
            Event::Exec(exec) => *exec,
            other => panic!("not an exec: {other:?}"),
        }
    }

    #[test]
    fn paths_are_put_together_from_their_runs() {
        let check = |tail: [&[u8]; 6], expect: [&[u8]; 3]| {
            let exec = decode_exec(&record(tail, 0, 0));
            let found = [
                &exec.used.file.path[..],
                &exec.used.file.path_in_filesystem,
                &exec.used.cgroup.path,
            ];
            assert_eq!(found, expect);
        };
        check(
            [b"sh\0bin\0", b"", b"", b"ID\0default\0", b"", b""],
            [b"/bin/sh", b"/bin/sh", b"/default/ID"],
        );
        check(
            [b"x\0sub\0", b"data\0mnt\0", b"volume\0", b"", b"", b""],
            [b"/mnt/data/sub/x", b"/volume/sub/x", b"/"],
        );
        check(
            [b"memfd:a\0", b"", b"", b"", b"", b""],
            [b"/memfd:a", b"/memfd:a", b"/"],
        );
        check(
            [b"a\nb\xff\0", b"", b"", b"c\0", b"", b""],
            [b"/a\nb\xff", b"/a\nb\xff", b"/c"],
        );
    }

    #[test]
    fn arguments_keep_empty_ones() {
        let check = |bytes: &[u8], expect: &[&[u8]]| {
            let exec = decode_exec(&record([b"", b"", b"", b"", b"", bytes], 0, 0));
            assert_eq!(exec.arguments, expect);
        };
        check(b"", &[]);
        check(b"sh\0-c\0\0", &[b"sh", b"-c", b""]);
        check(b"sh\0cut", &[b"sh", b"cut"]);
    }

    #[test]
    fn what_follows_the_arguments_is_left_out() {
        let check = |bytes: &[u8], count: u32, expect: &[&[u8]], truncated: bool| {
            let bytes = counted_record([b"", b"", b"", b"", b"", bytes], count, 0, 0);
            let exec = decode_exec(&bytes);
            assert_eq!(
                (exec.arguments, exec.arguments_truncated),
                (expect.iter().map(|word| word.to_vec()).collect(), truncated)
            );
        };
        check(b"sh\0-c\0SECRET=1\0", 2, &[b"sh", b"-c"], false);
        check(b"sh\0-c\0", 2, &[b"sh", b"-c"], false);
        check(b"sh\0-", 2, &[b"sh", b"-"], true);
        check(b"sh\0", 2, &[b"sh"], true);
        check(b"SECRET=1\0", 0, &[], false);
    }

    #[test]
    fn flags_are_told() {
        let exec = decode_exec(&record(
            [b"", b"", b"", b"ID\0", b"/s\0", b""],
            EXEC_ARGUMENTS_TRUNCATED,
            PATH_TRUNCATED | PATH_UNLINKED,
        ));
        assert!(
            exec.arguments_truncated && exec.used.file.path_truncated && exec.used.file.unlinked
        );
        assert_eq!(exec.used.cgroup.path, "…/ID".as_bytes());
        assert_eq!(exec.script.as_deref(), Some(&b"/s"[..]));
    }

    #[test]
    fn foreign_records_are_refused() {
        let good = record([b"x\0", b"", b"", b"", b"", b""], 0, 0);
        let mut other_version = good.clone();
        other_version[2] = 99;
        assert_eq!(
            decode(&other_version).unwrap_err(),
            DecodeError::Version(99)
        );
        let mut other_kind = good.clone();
        other_kind[0] = 99;
        assert_eq!(decode(&other_kind).unwrap_err(), DecodeError::Kind(99));
        let mut other_hook = good.clone();
        other_hook[1] = 99;
        assert_eq!(decode(&other_hook).unwrap_err(), DecodeError::HookSet(99));
        for length in 0..good.len() {
            assert_eq!(
                decode(&good[..length]).unwrap_err(),
                DecodeError::Cut { length }
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), kind in 0u8..10) {
            let _ = decode(&bytes);
            let valid = RecordHeader {
                kind,
                hook: HookSet::Lsm as u8,
                version: LAYOUT_VERSION,
                length: u32::try_from(bytes.len()).unwrap(),
                time_boot_ns: 0,
            };
            if let Some(start) = bytes.get_mut(..size_of::<RecordHeader>()) {
                start.copy_from_slice(valid.as_bytes());
            }
            let _ = decode(&bytes);
        }
    }
}
