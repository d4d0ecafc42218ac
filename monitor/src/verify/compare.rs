//! The comparison. Pure but for the bytes of unpacked layers, which are read when they are asked for.

use std::{cmp::Ordering, ops::ControlFlow};

use super::{
    MountPoints,
    walk::{Kind, Node, Seen},
};
use crate::{
    digest::{Digest, Sha256},
    image::{
        contents::{Contents, Found},
        layer::{self, EntryKind},
    },
};

/// What is the matter with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// The image has nothing there.
    Added,
    /// Other bytes, another type, link or device.
    Modified,
    /// Another mode or owner, or other capabilities.
    MetadataChanged,
    /// Only the image has it.
    Removed,
    /// It could not be compared.
    Unverifiable,
}

impl Verdict {
    /// Its name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Modified => "modified",
            Self::MetadataChanged => "metadata_changed",
            Self::Removed => "removed",
            Self::Unverifiable => "unverifiable",
        }
    }
}

/// A path that is not as the image holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The path, beginning with `/`.
    pub path: Vec<u8>,
    /// What is the matter with it.
    pub verdict: Verdict,
    /// What is there.
    pub seen_type: Option<&'static str>,
    /// What the image has there.
    pub expected_type: Option<&'static str>,
    /// The hash of the file that is there.
    pub seen: Option<Sha256>,
    /// The hash of the image's file.
    pub expected: Option<Sha256>,
    /// Diff ID of the layer that has it.
    pub layer: Option<Digest>,
    /// What differs beside the bytes, or why it could not be compared.
    pub details: String,
}

impl Difference {
    /// At a path where the image has `found`; nothing is said of what is there.
    fn from(
        path: Vec<u8>,
        verdict: Verdict,
        contents: &Contents,
        found: Option<Found<'_>>,
    ) -> Self {
        Self {
            path,
            verdict,
            seen_type: None,
            expected_type: found.map(|found| type_of(&found.kind)),
            seen: None,
            expected: found.and_then(|found| hash_of(&found.kind)),
            layer: found.and_then(|found| contents.layer_of(&found)),
            details: String::new(),
        }
    }
}

/// What is told while paths are compared.
#[derive(Debug)]
pub enum Step {
    /// A difference.
    Difference(Difference),
    /// A path was compared.
    Compared(Summary),
}

/// What was compared so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Paths that are there.
    pub paths: u64,
    /// Bytes of the files among them.
    pub bytes: u64,
    /// Paths that are only there for something to be mounted on them.
    pub mount_points: u64,
}

/// Compares what is `seen`, in the order of [`layer::compare`], with what the image holds, until
/// `tell` breaks off. `None` if it did.
pub fn compare(
    seen: impl Iterator<Item = Seen>,
    contents: &Contents,
    mounts: &MountPoints,
    mut tell: impl FnMut(Step) -> ControlFlow<()>,
) -> Option<Summary> {
    let mut summary = Summary::default();
    let mut expected = contents.entries().map(|(path, _)| path).peekable();
    let mut seen = seen.peekable();
    // A directory that could not be read: what the image has in it may be there.
    let mut unread: Option<Vec<u8>> = None;
    loop {
        let order = match (seen.peek(), expected.peek()) {
            (None, None) => return Some(summary),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(seen), Some(expected)) => layer::compare(&seen.path, expected),
        };
        let expected_path = if order == Ordering::Less {
            None
        } else {
            expected.next()
        };
        let seen_now = if order == Ordering::Greater {
            None
        } else {
            seen.next()
        };
        let difference = match (seen_now, expected_path) {
            (Some(seen), path) => {
                summary.paths += 1;
                if let Ok(Node {
                    kind: Kind::File { size, .. },
                    ..
                }) = &seen.node
                {
                    summary.bytes = summary.bytes.saturating_add(*size);
                }
                if seen.is_unread_directory {
                    unread = Some(seen.path.clone());
                }
                if path.is_none() && mounts.account_for(&seen) {
                    summary.mount_points += 1;
                    None
                } else {
                    let found = path.and_then(|path| {
                        contents.read(&path);
                        contents.lookup(&path)
                    });
                    of(&seen, contents, found)
                }
            }
            (None, Some(path)) => {
                let is_hidden = unread.as_ref().is_some_and(|unread| {
                    path.strip_prefix(unread.as_slice())
                        .is_some_and(|rest| rest.first() == Some(&b'/'))
                });
                (!is_hidden).then(|| removed(contents, path))
            }
            (None, None) => None,
        };
        if let Some(difference) = difference
            && tell(Step::Difference(difference)).is_break()
        {
            return None;
        }
        if tell(Step::Compared(summary)).is_break() {
            return None;
        }
    }
}

fn removed(contents: &Contents, path: Vec<u8>) -> Difference {
    contents.read(&path);
    let found = contents.lookup(&path);
    Difference::from(path, Verdict::Removed, contents, found)
}

/// How one path differs from what the image holds there, if it does.
fn of(seen: &Seen, contents: &Contents, found: Option<Found<'_>>) -> Option<Difference> {
    let path = seen.path.clone();
    let mut difference = Difference::from(path, Verdict::Unverifiable, contents, found);
    let node = match &seen.node {
        Ok(node) => node,
        Err(reason) => {
            difference.details.clone_from(reason);
            return Some(difference);
        }
    };
    difference.seen_type = Some(node.kind.name());
    let mut unread = None;
    if let Kind::File { sha256, .. } = &node.kind {
        match sha256 {
            Ok(sha256) => difference.seen = Some(*sha256),
            Err(reason) => unread = Some(reason),
        }
    }
    let Some(found) = found else {
        difference.verdict = Verdict::Added;
        if let Some(reason) = unread {
            difference.details.clone_from(reason);
        }
        return Some(difference);
    };
    if difference.seen_type != difference.expected_type {
        difference.verdict = Verdict::Modified;
        return Some(difference);
    }
    let is_modified = match (&node.kind, found.kind) {
        (
            Kind::File { size, sha256 },
            EntryKind::File {
                size: expected,
                sha256: known,
            },
        ) => match (sha256, known) {
            _ if *size != expected => true,
            (Ok(seen), Some(known)) => *seen != known,
            (Err(reason), _) => {
                difference.details.clone_from(reason);
                return Some(difference);
            }
            (Ok(_), None) => {
                difference.details =
                    "the image's own file could not be read from the unpacked layer".to_owned();
                return Some(difference);
            }
        },
        (Kind::Symlink { target }, EntryKind::Symlink { target: expected }) => target != expected,
        (Kind::CharDevice(device), EntryKind::CharDevice { major, minor })
        | (Kind::BlockDevice(device), EntryKind::BlockDevice { major, minor }) => {
            *device != (major, minor)
        }
        _ => false,
    };
    let metadata = metadata(node, &found);
    difference.verdict = match (is_modified, metadata.is_empty()) {
        (true, _) => Verdict::Modified,
        (false, false) => Verdict::MetadataChanged,
        (false, true) => return None,
    };
    difference.details = metadata;
    Some(difference)
}

/// What of the metadata differs.
fn metadata(node: &Node, found: &Found<'_>) -> String {
    let mut said = Vec::new();
    // Symlinks have no mode of their own.
    if node.mode != found.mode && !matches!(node.kind, Kind::Symlink { .. }) {
        said.push(format!(
            "mode {:04o} instead of {:04o}",
            node.mode, found.mode
        ));
    }
    if (node.uid, node.gid) != (found.uid, found.gid) {
        said.push(format!(
            "owner {}:{} instead of {}:{}",
            node.uid, node.gid, found.uid, found.gid
        ));
    }
    if node.capability != found.capability && matches!(node.kind, Kind::File { .. }) {
        let shown = |capability: Option<crate::image::capability::FileCapability>| {
            capability.map_or_else(|| "none".to_owned(), |capability| capability.to_string())
        };
        said.push(format!(
            "capabilities {} instead of {}",
            shown(node.capability),
            shown(found.capability)
        ));
    }
    said.join("; ")
}

fn hash_of(kind: &EntryKind<'_>) -> Option<Sha256> {
    match kind {
        EntryKind::File { sha256, .. } => *sha256,
        _ => None,
    }
}

fn type_of(kind: &EntryKind<'_>) -> &'static str {
    match kind {
        EntryKind::File { .. } => "file",
        EntryKind::Directory => "directory",
        EntryKind::Symlink { .. } => "symlink",
        EntryKind::CharDevice { .. } => "character_device",
        EntryKind::BlockDevice { .. } => "block_device",
        EntryKind::Fifo => "fifo",
    }
}
