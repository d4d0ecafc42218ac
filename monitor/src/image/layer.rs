//! One layer in memory: its entries sorted by path, in compact storage.

use std::{cmp::Ordering, sync::OnceLock};

use super::capability::FileCapability;
use crate::digest::{Digest, Sha256};

/// Bytes of a path, as in the kernel (`PATH_MAX`); a layer with a longer one is refused.
pub const PATH_BYTES_MAX: usize = 4096;

/// Entries of a layer, with the directories that their paths imply; a layer with more is refused.
pub const ENTRIES_MAX: usize = 1 << 20;

/// Bytes of all paths and link targets of a layer; a layer with more is refused.
pub const TEXT_BYTES_MAX: usize = 256 << 20;

/// What a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind<'a> {
    /// A regular file.
    File {
        /// Length in bytes.
        size: u64,
        /// SHA-256 of its bytes; `None` in a layer that was unpacked, until they are first read.
        sha256: Option<Sha256>,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// What it says, not resolved.
        target: &'a [u8],
    },
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// Mode, owner and capabilities of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Permission bits with set-user-ID, set-group-ID and sticky (`0o7777`).
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// What executing it gives; only of files.
    pub capability: Option<FileCapability>,
}

impl Metadata {
    /// What containerd gives to a directory that no tar entry describes.
    pub const IMPLIED: Self = Self {
        mode: 0o755,
        uid: 0,
        gid: 0,
        capability: None,
    };
}

/// What a layer says about a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry<'a> {
    /// A directory.
    Directory {
        /// Hides what the layers below hold in it.
        opaque: bool,
        /// `None` if only a path below it implies it: then it keeps what a directory in a lower
        /// layer has, or gets [`Metadata::IMPLIED`].
        metadata: Option<Metadata>,
    },
    /// Anything but a directory.
    Node {
        /// Never [`EntryKind::Directory`].
        kind: EntryKind<'a>,
        /// Mode, owner and capabilities.
        metadata: Metadata,
    },
    /// A hard link to a path that this layer does not hold: the same as that path in the layers
    /// below.
    Hardlink {
        /// Path relative to the root.
        target: &'a [u8],
    },
    /// The path is removed from the layers below.
    Whiteout,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Text {
    offset: u32,
    length: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    File { size: u64, sha256: Option<Sha256> },
    Directory { opaque: bool, implied: bool },
    Symlink(Text),
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
    Hardlink(Text),
    Whiteout,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Record {
    path: Text,
    kind: Kind,
    mode: u16,
    uid: u32,
    gid: u32,
}

/// The entries of one layer. Paths are relative to the root, without a leading `/`, and raw
/// bytes; every directory on the way to an entry is an entry itself, the root is none.
#[derive(Debug, PartialEq, Eq)]
pub struct Layer {
    diff_id: Digest,
    text: Box<[u8]>,
    records: Box<[Record]>,
    // Indexes of the files: by hash, or by size where hashes come late.
    files: Box<[u32]>,
    // By index, where files are hashed when they are first used.
    late: Option<Box<[OnceLock<Sha256>]>>,
    // Apart, by index in order, since few files have any.
    capabilities: Box<[(u32, FileCapability)]>,
}

impl Layer {
    /// Digest of the uncompressed layer.
    pub fn diff_id(&self) -> Digest {
        self.diff_id
    }

    /// Number of entries, whiteouts and implied directories among them.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether it has no entry.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Bytes that this layer takes in memory.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + self.text.len()
            + size_of_val(&*self.records)
            + size_of_val(&*self.files)
            + self.late.as_ref().map_or(0, |late| size_of_val(&**late))
            + size_of_val(&*self.capabilities)
    }

    /// What it says about a path, relative to the root.
    pub fn get(&self, path: &[u8]) -> Option<Entry<'_>> {
        self.at(self.index(path)?).map(|(_, entry)| entry)
    }

    fn index(&self, path: &[u8]) -> Option<usize> {
        self.records
            .binary_search_by(|record| compare(self.text(record.path), path))
            .ok()
    }

    /// The entry at an index, in the order of [`compare`].
    pub fn at(&self, index: usize) -> Option<(&[u8], Entry<'_>)> {
        let record = self.records.get(index)?;
        Some((self.text(record.path), self.entry(index, record)))
    }

    /// Index of the first entry behind `path` in the order of [`compare`]: the first in it, if it
    /// is a directory that has any.
    pub(super) fn behind(&self, path: &[u8]) -> usize {
        self.records
            .partition_point(|record| compare(self.text(record.path), path) != Ordering::Greater)
    }

    /// Index of the first entry behind `path` and all that is in it.
    pub(super) fn behind_all(&self, path: &[u8]) -> usize {
        self.records.partition_point(|record| {
            let own = self.text(record.path);
            compare(own, path) != Ordering::Greater || is_within(own, path)
        })
    }

    /// All entries, in the order of [`compare`].
    pub fn entries(&self) -> impl Iterator<Item = (&[u8], Entry<'_>)> {
        (0..self.records.len()).filter_map(|index| self.at(index))
    }

    /// Paths of the files with these bytes, as far as they are known, in the order of [`compare`].
    pub fn files_with(&self, sha256: &Sha256) -> impl Iterator<Item = &[u8]> {
        let hash = |index: &u32| self.file_at(*index).and_then(|(_, sha256)| sha256);
        let is_late = self.late.is_some();
        let start = if is_late {
            0
        } else {
            self.files
                .partition_point(|index| hash(index) < Some(*sha256))
        };
        self.files
            .iter()
            .skip(start)
            .take_while(move |index| is_late || hash(index) == Some(*sha256))
            .filter(move |index| hash(index) == Some(*sha256))
            .filter_map(|index| self.at(usize::try_from(*index).ok()?))
            .map(|(path, _)| path)
    }

    /// Paths of the files of this length that were not read yet.
    pub(super) fn unread_of_size(&self, size: u64) -> impl Iterator<Item = &[u8]> {
        let size_at = |index: &u32| self.file_at(*index).map(|(size, _)| size);
        let late = self.late.as_ref().map(|_| &self.files);
        let start = late.map_or(0, |files| {
            files.partition_point(|index| size_at(index) < Some(size))
        });
        late.into_iter()
            .flat_map(move |files| files.iter().skip(start))
            .take_while(move |index| size_at(index) == Some(size))
            .filter(|index| {
                self.file_at(**index)
                    .is_some_and(|(_, sha256)| sha256.is_none())
            })
            .filter_map(|index| self.at(usize::try_from(*index).ok()?))
            .map(|(path, _)| path)
    }

    /// Where the hash of a file belongs that was not read yet, and the length the file has.
    pub(super) fn unread(&self, path: &[u8]) -> Option<(u64, &OnceLock<Sha256>)> {
        let index = self.index(path)?;
        let slot = self.late.as_ref()?.get(index)?;
        match self.records.get(index)?.kind {
            Kind::File { size, .. } if slot.get().is_none() => Some((size, slot)),
            _ => None,
        }
    }

    /// Length and hash of the file at an index.
    fn file_at(&self, index: u32) -> Option<(u64, Option<Sha256>)> {
        let index = usize::try_from(index).ok()?;
        match self.records.get(index)?.kind {
            Kind::File { size, sha256 } => Some((size, self.hash(index, sha256))),
            _ => None,
        }
    }

    fn hash(&self, index: usize, recorded: Option<Sha256>) -> Option<Sha256> {
        match &self.late {
            Some(late) => late.get(index)?.get().copied(),
            None => recorded,
        }
    }

    fn capability(&self, index: usize) -> Option<FileCapability> {
        let index = u32::try_from(index).ok()?;
        let found = self
            .capabilities
            .binary_search_by_key(&index, |(index, _)| *index);
        self.capabilities.get(found.ok()?).map(|(_, found)| *found)
    }

    fn text(&self, text: Text) -> &[u8] {
        slice(&self.text, text)
    }

    fn entry(&self, index: usize, record: &Record) -> Entry<'_> {
        let metadata = Metadata {
            mode: record.mode,
            uid: record.uid,
            gid: record.gid,
            capability: self.capability(index),
        };
        let kind = match record.kind {
            Kind::File { size, sha256 } => EntryKind::File {
                size,
                sha256: self.hash(index, sha256),
            },
            Kind::Directory { opaque, implied } => {
                return Entry::Directory {
                    opaque,
                    metadata: (!implied).then_some(metadata),
                };
            }
            Kind::Symlink(target) => EntryKind::Symlink {
                target: self.text(target),
            },
            Kind::CharDevice { major, minor } => EntryKind::CharDevice { major, minor },
            Kind::BlockDevice { major, minor } => EntryKind::BlockDevice { major, minor },
            Kind::Fifo => EntryKind::Fifo,
            Kind::Hardlink(target) => {
                return Entry::Hardlink {
                    target: self.text(target),
                };
            }
            Kind::Whiteout => return Entry::Whiteout,
        };
        Entry::Node { kind, metadata }
    }
}

/// The order of entries: a directory, then all that is in it, then its next sibling.
pub fn compare(a: &[u8], b: &[u8]) -> Ordering {
    // No name holds a NUL, so that it can stand for the slash, which must sort before any byte.
    let key = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    a.iter().map(key).cmp(b.iter().map(key))
}

/// Whether `path` lies in the directory `directory`, at any depth.
pub(super) fn is_within(path: &[u8], directory: &[u8]) -> bool {
    path.strip_prefix(directory)
        .is_some_and(|rest| rest.first() == Some(&b'/'))
}

fn slice(arena: &[u8], text: Text) -> &[u8] {
    let start = usize::try_from(text.offset).unwrap_or(usize::MAX);
    arena
        .get(start..start.saturating_add(usize::from(text.length)))
        .unwrap_or_default()
}

/// Entries cannot make a layer.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum BuildError {
    #[error("more than {ENTRIES_MAX} entries")]
    TooManyEntries,
    #[error("paths and link targets of more than {TEXT_BYTES_MAX} bytes together")]
    TooMuchText,
    #[error("path or link target longer than {PATH_BYTES_MAX} bytes")]
    TooLong,
    #[error("entries are not in order")]
    Order,
    #[error("a path has an empty, `.` or `..` component or a NUL")]
    Path,
    #[error("an entry lies in no directory of its layer")]
    Orphan,
}

/// Makes a layer of entries that come in the order of [`compare`], each after its directory.
pub(super) struct LayerBuilder {
    text: Vec<u8>,
    records: Vec<Record>,
    capabilities: Vec<(u32, FileCapability)>,
    // The directories that the last entry lies in, outermost first.
    directories: Vec<Text>,
}

impl LayerBuilder {
    pub(super) fn new() -> Self {
        Self {
            text: Vec::new(),
            records: Vec::new(),
            capabilities: Vec::new(),
            directories: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, path: &[u8], entry: Entry<'_>) -> Result<(), BuildError> {
        if self.records.len() == ENTRIES_MAX {
            return Err(BuildError::TooManyEntries);
        }
        let refused = |name: &[u8]| matches!(name, b"" | b"." | b"..") || name.contains(&0);
        if path.split(|byte| *byte == b'/').any(refused) {
            return Err(BuildError::Path);
        }
        if let Some(last) = self.records.last()
            && compare(slice(&self.text, last.path), path) != Ordering::Less
        {
            return Err(BuildError::Order);
        }
        while let Some(last) = self.directories.last()
            && !is_within(path, slice(&self.text, *last))
        {
            self.directories.pop();
        }
        let parent = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        if self
            .directories
            .last()
            .map_or(0, |last| usize::from(last.length))
            != parent
        {
            return Err(BuildError::Orphan);
        }

        let path = self.store(path)?;
        let mut metadata = Metadata {
            mode: 0,
            uid: 0,
            gid: 0,
            capability: None,
        };
        let kind = match entry {
            Entry::Directory {
                opaque,
                metadata: stated,
            } => {
                self.directories.push(path);
                metadata = stated.unwrap_or(metadata);
                Kind::Directory {
                    opaque,
                    implied: stated.is_none(),
                }
            }
            Entry::Node {
                kind,
                metadata: stated,
            } => {
                metadata = stated;
                match kind {
                    EntryKind::File { size, sha256 } => Kind::File { size, sha256 },
                    EntryKind::Directory => {
                        self.directories.push(path);
                        Kind::Directory {
                            opaque: false,
                            implied: false,
                        }
                    }
                    EntryKind::Symlink { target } => Kind::Symlink(self.store(target)?),
                    EntryKind::CharDevice { major, minor } => Kind::CharDevice { major, minor },
                    EntryKind::BlockDevice { major, minor } => Kind::BlockDevice { major, minor },
                    EntryKind::Fifo => Kind::Fifo,
                }
            }
            Entry::Hardlink { target } => Kind::Hardlink(self.store(target)?),
            Entry::Whiteout => Kind::Whiteout,
        };
        if let (Kind::File { .. }, Some(capability)) = (kind, metadata.capability) {
            let index =
                u32::try_from(self.records.len()).map_err(|_| BuildError::TooManyEntries)?;
            self.capabilities.push((index, capability));
        }
        self.records.push(Record {
            path,
            kind,
            mode: metadata.mode,
            uid: metadata.uid,
            gid: metadata.gid,
        });
        Ok(())
    }

    pub(super) fn finish(self, diff_id: Digest) -> Layer {
        let mut files: Vec<(Option<Sha256>, u32)> = self
            .files()
            .map(|(_, sha256, index)| (sha256, index))
            .collect();
        files.sort_unstable();
        let files = files.into_iter().map(|(_, index)| index).collect();
        self.layer(diff_id, files, None)
    }

    /// A layer whose files are hashed when they are first used.
    pub(super) fn finish_late(self, diff_id: Digest) -> Layer {
        let mut files: Vec<(u64, u32)> =
            self.files().map(|(size, _, index)| (size, index)).collect();
        files.sort_unstable();
        let files = files.into_iter().map(|(_, index)| index).collect();
        let late = self.records.iter().map(|_| OnceLock::new()).collect();
        self.layer(diff_id, files, Some(late))
    }

    fn files(&self) -> impl Iterator<Item = (u64, Option<Sha256>, u32)> {
        (0..)
            .zip(&self.records)
            .filter_map(|(index, record)| match record.kind {
                Kind::File { size, sha256 } => Some((size, sha256, index)),
                _ => None,
            })
    }

    fn layer(
        self,
        diff_id: Digest,
        files: Box<[u32]>,
        late: Option<Box<[OnceLock<Sha256>]>>,
    ) -> Layer {
        Layer {
            diff_id,
            text: self.text.into(),
            records: self.records.into(),
            files,
            late,
            capabilities: self.capabilities.into(),
        }
    }

    fn store(&mut self, text: &[u8]) -> Result<Text, BuildError> {
        if text.len() > PATH_BYTES_MAX {
            return Err(BuildError::TooLong);
        }
        if self.text.len() + text.len() > TEXT_BYTES_MAX {
            return Err(BuildError::TooMuchText);
        }
        let offset = u32::try_from(self.text.len()).map_err(|_| BuildError::TooMuchText)?;
        let length = u16::try_from(text.len()).map_err(|_| BuildError::TooLong)?;
        self.text.extend_from_slice(text);
        Ok(Text { offset, length })
    }
}
