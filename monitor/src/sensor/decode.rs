//! Bytes of the ring become a checked [`Exec`]: pure, and safe for any bytes.

use monitor_common::{
    LAYOUT_VERSION, RecordHeader, RecordKind,
    exec::{
        EXEC_ARGUMENTS_TRUNCATED, EXEC_ARGUMENTS_UNREADABLE, EXEC_CGROUP_TRUNCATED, ExecRecord,
    },
    path::{PATH_TRUNCATED, PATH_UNLINKED, PathLengths},
};
use zerocopy::FromBytes;

use super::event::{Cgroup, Exec, File, Process};

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
    Kind(u16),
}

/// Reads one record.
pub fn decode(bytes: &[u8]) -> Result<Exec, DecodeError> {
    let cut = DecodeError::Cut {
        length: bytes.len(),
    };
    let Ok((header, _)) = RecordHeader::read_from_prefix(bytes) else {
        return Err(cut);
    };
    if header.version != LAYOUT_VERSION {
        return Err(DecodeError::Version(header.version));
    }
    if header.kind != RecordKind::Exec as u16 {
        return Err(DecodeError::Kind(header.kind));
    }
    let Some(bytes) = bytes.get(..header.length as usize) else {
        return Err(cut);
    };
    exec(bytes).ok_or(cut)
}

fn exec(bytes: &[u8]) -> Option<Exec> {
    let (record, tail) = ExecRecord::read_from_prefix(bytes).ok()?;
    let mut tail = Tail(tail);
    let (path, path_in_filesystem) = paths(&mut tail, &record.path)?;
    let mut cgroup_path = reversed([tail.take(record.cgroup_path_length)?]);
    if record.flags & EXEC_CGROUP_TRUNCATED != 0 {
        cgroup_path.splice(0..0, "…".bytes());
    }
    let script = tail.take(record.script_length)?;
    let arguments = tail.take(record.arguments_length)?;
    Some(Exec {
        time_boot_ns: record.header.time_boot_ns,
        cgroup: Cgroup {
            id: record.cgroup_id,
            path: cgroup_path,
        },
        process: Process {
            pid: record.pid,
            start_boot_ns: record.start_boot_ns,
            parent_pid: record.parent_pid,
            parent_mount_namespace: record.parent_mount_namespace,
            uid: record.uid,
            mount_namespace: record.mount_namespace,
            pid_namespace: record.pid_namespace,
            root_device: record.root_device,
        },
        file: File {
            facts: record.file,
            path,
            path_in_filesystem,
            path_truncated: record.path.flags & PATH_TRUNCATED != 0,
            unlinked: record.path.flags & PATH_UNLINKED != 0,
        },
        script: (!script.is_empty()).then(|| without_nul(script).to_vec()),
        arguments: split_arguments(arguments),
        arguments_truncated: record.flags & (EXEC_ARGUMENTS_TRUNCATED | EXEC_ARGUMENTS_UNREADABLE)
            != 0,
        already_running: false,
        held: Vec::new(),
        program: None,
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
    reason = "a test fails by panicking"
)]
mod tests {
    use super::*;
    use monitor_common::exec::FileFacts;
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    fn record(tail: [&[u8]; 6], flags: u16, path_flags: u16) -> Vec<u8> {
        let length = |index: usize| u16::try_from(tail[index].len()).unwrap();
        let total = size_of::<ExecRecord>() + tail.iter().map(|part| part.len()).sum::<usize>();
        let fixed = ExecRecord {
            header: RecordHeader {
                kind: RecordKind::Exec as u16,
                version: LAYOUT_VERSION,
                length: u32::try_from(total).unwrap(),
                time_boot_ns: 5,
            },
            cgroup_id: 7,
            start_boot_ns: 4,
            file: FileFacts::default(),
            pid: 10,
            parent_pid: 9,
            parent_mount_namespace: 8,
            uid: 0,
            mount_namespace: 1,
            pid_namespace: 2,
            root_device: 3,
            path: PathLengths {
                below_mount: length(0),
                above_mount: length(1),
                below_superblock: length(2),
                flags: path_flags,
            },
            cgroup_path_length: length(3),
            script_length: length(4),
            arguments_length: length(5),
            flags,
            reserved: 0,
        };
        let mut bytes = fixed.as_bytes().to_vec();
        tail.iter().for_each(|part| bytes.extend_from_slice(part));
        bytes
    }

    #[test]
    fn paths_are_put_together_from_their_runs() {
        let check = |tail: [&[u8]; 6], expect: [&[u8]; 3]| {
            let exec = decode(&record(tail, 0, 0)).unwrap();
            let found = [
                &exec.file.path[..],
                &exec.file.path_in_filesystem,
                &exec.cgroup.path,
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
            let exec = decode(&record([b"", b"", b"", b"", b"", bytes], 0, 0)).unwrap();
            assert_eq!(exec.arguments, expect);
        };
        check(b"", &[]);
        check(b"sh\0-c\0\0", &[b"sh", b"-c", b""]);
        check(b"sh\0cut", &[b"sh", b"cut"]);
    }

    #[test]
    fn flags_are_told() {
        let flags = EXEC_ARGUMENTS_TRUNCATED | EXEC_CGROUP_TRUNCATED;
        let exec = decode(&record(
            [b"", b"", b"", b"ID\0", b"/s\0", b""],
            flags,
            PATH_TRUNCATED | PATH_UNLINKED,
        ))
        .unwrap();
        assert!(exec.arguments_truncated && exec.file.path_truncated && exec.file.unlinked);
        assert_eq!(exec.cgroup.path, "…/ID".as_bytes());
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
        for length in 0..good.len() {
            assert_eq!(
                decode(&good[..length]).unwrap_err(),
                DecodeError::Cut { length }
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode(&bytes);
            let valid = RecordHeader {
                kind: RecordKind::Exec as u16,
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
