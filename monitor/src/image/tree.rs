//! The directory of one layer while its tar stream is read.

use std::{collections::BTreeMap, mem};

use super::{
    layer::{
        ENTRIES_MAX, Entry, EntryKind, Layer, LayerBuilder, Metadata, PATH_BYTES_MAX,
        TEXT_BYTES_MAX,
    },
    tar::{Kind, TarEntry},
    unpack::LayerError,
};
use crate::digest::Digest;

/// Symlinks followed to find the directory of one entry; the kernel's limit.
pub(super) const LINKS_MAX: usize = 40;

const WHITEOUT: &[u8] = b".wh.";
const WHITEOUT_META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// The directory of the layer, as far as the stream has been read.
pub(super) struct Tree {
    // The root is the first.
    nodes: Vec<Node>,
    // By directory and name. A directory that is replaced gets another number, and what was in it
    // is found no more; it still counts as entries.
    children: BTreeMap<(u32, Box<[u8]>), usize>,
    directories: u32,
    text_bytes: usize,
    // Most entries follow one of the same directory.
    last_directory: Option<(Vec<u8>, usize)>,
}

#[derive(Default)]
struct Node {
    slot: Slot,
    metadata: Option<Metadata>,
    // In the layer's own words, both hide only what is in the layers below.
    whiteout: bool,
    opaque: bool,
    path_bytes: usize,
    // Where its children are, should it be a directory.
    directory: u32,
}

#[derive(Clone, Default)]
enum Slot {
    /// Nothing but perhaps a whiteout.
    #[default]
    Empty,
    Directory,
    Other(Kind),
}

const ROOT: usize = 0;

impl Tree {
    pub(super) fn new() -> Self {
        let root = Node {
            slot: Slot::Directory,
            ..Node::default()
        };
        Self {
            nodes: vec![root],
            children: BTreeMap::new(),
            directories: 0,
            text_bytes: 0,
            last_directory: None,
        }
    }

    pub(super) fn apply(&mut self, entry: TarEntry) -> Result<(), LayerError> {
        let names = names(&entry.name)?;
        // What describes the root describes no path; containerd ignores it as well.
        let Some((base, directories)) = names.split_last() else {
            return Ok(());
        };
        let meta = |name: &&[u8]| name.starts_with(WHITEOUT_META);
        // Left behind by aufs.
        if directories.iter().any(meta) || (meta(base) && *base != OPAQUE) {
            return Ok(());
        }
        let directory = self.directory(directories, &entry.name)?;
        if *base == OPAQUE {
            self.node(directory)?.opaque = true;
            return Ok(());
        }
        if let Some(name) = base.strip_prefix(WHITEOUT) {
            if matches!(name, b"" | b"." | b"..") {
                return Err(LayerError::Whiteout(shown(&entry.name)));
            }
            let node = self.child(directory, name)?;
            self.node(node)?.whiteout = true;
            return Ok(());
        }
        let node = self.child(directory, base)?;
        let metadata = Metadata {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            capability: entry.capability,
        };
        if entry.kind == Kind::Directory {
            if !matches!(self.node(node)?.slot, Slot::Directory) {
                self.replace(node, Slot::Directory)?;
            }
            self.node(node)?.metadata = Some(metadata);
            return Ok(());
        }
        // The old entry goes before a link is looked for, which may have been in it.
        self.replace(node, Slot::Empty)?;
        let (kind, metadata) = match entry.kind {
            Kind::Hardlink(target) => self.link(&target, &entry.name, metadata)?,
            other => (other, metadata),
        };
        if let Kind::Symlink(target) | Kind::Hardlink(target) = &kind {
            self.count_text(target.len())?;
        }
        self.replace(node, Slot::Other(kind))?;
        self.node(node)?.metadata = Some(metadata);
        Ok(())
    }

    /// What a hard link is: the same as its target, or left open if this layer does not hold it.
    fn link(
        &mut self,
        target: &[u8],
        name: &[u8],
        metadata: Metadata,
    ) -> Result<(Kind, Metadata), LayerError> {
        let names = names(target)?;
        let Some((base, directories)) = names.split_last() else {
            return Err(LayerError::DirectoryLink(shown(name)));
        };
        let open = || Kind::Hardlink(names.join(&b'/'));
        let Some(directory) = self.walk(directories, name, false)? else {
            return Ok((open(), metadata));
        };
        let Some(found) = self.find(directory, base)? else {
            return Ok((open(), metadata));
        };
        let found = self.node(found)?;
        match &found.slot {
            Slot::Empty => Ok((open(), metadata)),
            Slot::Directory => Err(LayerError::DirectoryLink(shown(name))),
            Slot::Other(kind) => Ok((kind.clone(), found.metadata.unwrap_or(metadata))),
        }
    }

    /// The directory that `names` lead to, made where nothing is yet.
    fn directory(&mut self, names: &[&[u8]], entry: &[u8]) -> Result<usize, LayerError> {
        let key = names.join(&b'/');
        if let Some((last, node)) = &self.last_directory
            && *last == key
        {
            return Ok(*node);
        }
        let found = self.walk(names, entry, true)?;
        let found = found.ok_or_else(|| LayerError::NotADirectory(shown(entry)))?;
        self.last_directory = Some((key, found));
        Ok(found)
    }

    /// Follows `names` and the symlinks of this layer from the root, never out of it. Where
    /// nothing is, either makes a directory or gives up.
    fn walk(
        &mut self,
        names: &[&[u8]],
        entry: &[u8],
        make: bool,
    ) -> Result<Option<usize>, LayerError> {
        let mut links = 0;
        let mut way = vec![ROOT];
        let mut left: Vec<Vec<u8>> = names.iter().rev().map(|name| name.to_vec()).collect();
        while let Some(name) = left.pop() {
            let here = way.last().copied().unwrap_or(ROOT);
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    way.pop();
                    continue;
                }
                _ => {}
            }
            let next = match self.find(here, &name)? {
                Some(next) => next,
                None if make => self.child(here, &name)?,
                None => return Ok(None),
            };
            match &self.node(next)?.slot {
                Slot::Directory => way.push(next),
                Slot::Empty if make => {
                    self.node(next)?.slot = Slot::Directory;
                    way.push(next);
                }
                Slot::Empty => return Ok(None),
                Slot::Other(Kind::Symlink(target)) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(LayerError::Links(shown(entry)));
                    }
                    if target.starts_with(b"/") {
                        way.truncate(0);
                    }
                    left.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
                }
                Slot::Other(_) if make => return Err(LayerError::NotADirectory(shown(entry))),
                Slot::Other(_) => return Ok(None),
            }
        }
        Ok(Some(way.last().copied().unwrap_or(ROOT)))
    }

    fn node(&mut self, index: usize) -> Result<&mut Node, LayerError> {
        let missing = || LayerError::Inconsistent("no such node".to_owned());
        self.nodes.get_mut(index).ok_or_else(missing)
    }

    fn find(&mut self, directory: usize, name: &[u8]) -> Result<Option<usize>, LayerError> {
        let key = (self.node(directory)?.directory, name.into());
        Ok(self.children.get(&key).copied())
    }

    fn new_directory(&mut self) -> u32 {
        // Two for each header at most, of which a layer has fewer than 2^27.
        self.directories += 1;
        self.directories
    }

    /// The node of a name in a directory, made empty if there is none.
    fn child(&mut self, directory: usize, name: &[u8]) -> Result<usize, LayerError> {
        if let Some(found) = self.find(directory, name)? {
            return Ok(found);
        }
        let new = self.nodes.len();
        let parent = self.node(directory)?;
        let separator = usize::from(directory != ROOT);
        let path_bytes = parent.path_bytes + separator + name.len();
        if path_bytes > PATH_BYTES_MAX {
            return Err(LayerError::PathTooLong(path_bytes));
        }
        if new > ENTRIES_MAX {
            return Err(LayerError::TooManyEntries);
        }
        let key = (parent.directory, name.into());
        self.count_text(path_bytes)?;
        self.children.insert(key, new);
        let directory = self.new_directory();
        self.nodes.push(Node {
            path_bytes,
            directory,
            ..Node::default()
        });
        Ok(new)
    }

    /// Puts something else in the place of a node; what was in it as a directory is gone.
    fn replace(&mut self, node: usize, slot: Slot) -> Result<(), LayerError> {
        let empty = self.new_directory();
        let node = self.node(node)?;
        let led_somewhere = matches!(node.slot, Slot::Directory | Slot::Other(Kind::Symlink(_)));
        node.slot = slot;
        node.metadata = None;
        node.opaque = false;
        node.directory = empty;
        if led_somewhere {
            self.last_directory = None;
        }
        Ok(())
    }

    /// What is in a directory with its paths, last name first.
    fn within(&self, directory: u32, prefix: &[u8]) -> Vec<(Vec<u8>, usize)> {
        let end = (directory.saturating_add(1), Box::default());
        let children = self.children.range((directory, Box::default())..end).rev();
        children
            .map(|((_, name), node)| ([prefix, name].concat(), *node))
            .collect()
    }

    fn count_text(&mut self, bytes: usize) -> Result<(), LayerError> {
        self.text_bytes = self.text_bytes.saturating_add(bytes);
        if self.text_bytes > TEXT_BYTES_MAX {
            Err(LayerError::TooMuchText)
        } else {
            Ok(())
        }
    }

    pub(super) fn into_layer(mut self, diff_id: Digest) -> Result<Layer, LayerError> {
        let mut builder = LayerBuilder::new();
        let mut left = self.within(0, b"");
        while let Some((path, node)) = left.pop() {
            let node = mem::take(self.node(node)?);
            let metadata = node.metadata.unwrap_or(Metadata::IMPLIED);
            match &node.slot {
                Slot::Empty if node.whiteout => builder.push(&path, Entry::Whiteout)?,
                Slot::Empty => continue,
                Slot::Directory => {
                    // A directory in the place of what its own layer removed starts empty.
                    let opaque = node.opaque || node.whiteout;
                    builder.push(
                        &path,
                        Entry::Directory {
                            opaque,
                            metadata: node.metadata,
                        },
                    )?;
                }
                Slot::Other(Kind::Hardlink(target)) => {
                    builder.push(&path, Entry::Hardlink { target })?;
                }
                Slot::Other(kind) => {
                    builder.push(
                        &path,
                        Entry::Node {
                            kind: kind_of(kind),
                            metadata,
                        },
                    )?;
                }
            }
            left.extend(self.within(node.directory, &[path.as_slice(), b"/"].concat()));
        }
        Ok(builder.finish(diff_id))
    }
}

fn kind_of(kind: &Kind) -> EntryKind<'_> {
    match kind {
        Kind::File { size, sha256 } => EntryKind::File {
            size: *size,
            sha256: Some(*sha256),
        },
        Kind::Symlink(target) | Kind::Hardlink(target) => EntryKind::Symlink { target },
        Kind::CharDevice { major, minor } => EntryKind::CharDevice {
            major: *major,
            minor: *minor,
        },
        Kind::BlockDevice { major, minor } => EntryKind::BlockDevice {
            major: *major,
            minor: *minor,
        },
        Kind::Fifo => EntryKind::Fifo,
        Kind::Directory => EntryKind::Directory,
    }
}

/// The names of a path. `.` and empty ones mean nothing; `..` has no place in a layer.
fn names(path: &[u8]) -> Result<Vec<&[u8]>, LayerError> {
    let names: Vec<&[u8]> = path
        .split(|byte| *byte == b'/')
        .filter(|name| !matches!(*name, b"" | b"."))
        .collect();
    if names.contains(&b"..".as_slice()) {
        return Err(LayerError::ParentInPath(shown(path)));
    }
    Ok(names)
}

/// A path in a message.
fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path.get(..200).unwrap_or(path)).into_owned()
}
