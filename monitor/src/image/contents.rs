//! What an image holds: its layers seen as one tree.

use std::{fmt, path::PathBuf, sync::Arc};

use super::{
    capability::FileCapability,
    layer::{Entry, EntryKind, Layer, Metadata, PATH_BYTES_MAX, compare, is_within},
    lower,
};
use crate::{
    containers::ImageId,
    digest::{Digest, Sha256},
};

/// Symlinks followed in one path; the kernel's limit.
const LINKS_MAX: usize = 40;

/// Files with the bytes asked for that are looked at before [`Contents::find_bytes`] gives up; an
/// image has more only of bytes like the empty file's.
const CANDIDATES_MAX: usize = 1000;

/// Files read at a time to find one with the same bytes as another.
const SAME_SIZE_MAX: usize = 64;

/// Bytes of those.
const SAME_SIZE_BYTES_MAX: u64 = 256 << 20;

/// The visible paths of an image. Layers are not merged, so that images share them.
pub struct Contents {
    // `None` if only its chain ID is known; then it is not known which diff IDs the layers have.
    image: Option<ImageId>,
    layers: Vec<Arc<Layer>>,
    // Where each layer was unpacked; empty if all were read from blobs.
    directories: Vec<PathBuf>,
}

/// How strong the evidence of contents is (design, promise 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// Read from layer blobs whose digests were checked up to the manifest.
    Verified,
    /// Read from the lower directories of a snapshot, each file as it was found when it was first
    /// used.
    Unpacked,
}

impl Evidence {
    /// Its name in alerts and in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Unpacked => "unpacked",
        }
    }
}

/// A visible path of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found<'a> {
    /// What it is.
    pub kind: EntryKind<'a>,
    /// Permission bits with set-user-ID, set-group-ID and sticky (`0o7777`).
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// What executing it gives; only of files.
    pub capability: Option<FileCapability>,
    /// Diff ID of the layer that holds it: the topmost for a directory. See
    /// [`Contents::layer_of`].
    pub layer: Digest,
}

impl Contents {
    /// The contents of `image`, whose layers are given from bottom to top.
    pub fn new(image: ImageId, layers: Vec<Arc<Layer>>) -> Self {
        Self {
            image: Some(image),
            layers,
            directories: Vec::new(),
        }
    }

    /// The contents of `image`, if that is known, as its layers, given from bottom to top, were unpacked into
    /// `directories`.
    pub(super) fn unpacked(
        image: Option<ImageId>,
        layers: Vec<Arc<Layer>>,
        directories: Vec<PathBuf>,
    ) -> Self {
        Self {
            image,
            layers,
            directories,
        }
    }

    /// How strong the evidence is.
    pub fn evidence(&self) -> Evidence {
        if self.directories.is_empty() {
            Evidence::Verified
        } else {
            Evidence::Unpacked
        }
    }

    /// Reads the bytes of the file at an absolute path, no symlink followed, if they were not read
    /// yet; a file that cannot be read stays without a hash. Blocks.
    pub fn read(&self, path: &[u8]) {
        let Some(path) = normal(path) else { return };
        // What shows at a path is the topmost entry of that path, if anything.
        let layers = self.layers.iter().zip(&self.directories).rev();
        let mut holding = layers.filter(|(layer, _)| layer.get(&path).is_some());
        if let Some((layer, directory)) = holding.next()
            && let Some((size, slot)) = layer.unread(&path)
            && let Some(sha256) = lower::hash(directory, &path, size)
        {
            // Another may have been first, with what it found.
            let _ = slot.set(sha256);
        }
    }

    /// Reads the bytes of the files of this length, of which one may have the same bytes as another
    /// file; at most 64 of them and 256 MiB at a time. Blocks.
    pub fn read_of_size(&self, size: u64) {
        let affordable = SAME_SIZE_BYTES_MAX / size.max(1);
        let files_max =
            usize::try_from(affordable).map_or(SAME_SIZE_MAX, |files| files.min(SAME_SIZE_MAX));
        let unread =
            self.layers
                .iter()
                .zip(&self.directories)
                .rev()
                .flat_map(|(layer, directory)| {
                    let paths = layer.unread_of_size(size);
                    paths.map(move |path| (layer, directory, path))
                });
        for (layer, directory, path) in unread.take(files_max) {
            if let Some((size, slot)) = layer.unread(path)
                && let Some(sha256) = lower::hash(directory, path, size)
            {
                let _ = slot.set(sha256);
            }
        }
    }

    /// The image, if it is known.
    pub fn image(&self) -> Option<&ImageId> {
        self.image.as_ref()
    }

    /// Diff ID of the layer that holds what was found, if it is known.
    pub fn layer_of(&self, found: &Found<'_>) -> Option<Digest> {
        self.image.as_ref().map(|_| found.layer)
    }

    /// Its layers from bottom to top.
    pub fn layers(&self) -> &[Arc<Layer>] {
        &self.layers
    }

    /// What is at an absolute path, no symlink followed: the dentry path that the kernel tells. A
    /// path with a `.` or `..` component is found nowhere.
    pub fn lookup(&self, path: &[u8]) -> Option<Found<'_>> {
        lookup_in(&self.layers, normal(path)?.as_slice())
    }

    /// What is at an absolute path with symlinks followed inside the root, at most 40, and `..`
    /// staying in it; with the path where it is.
    pub fn resolve(&self, path: &[u8]) -> Option<(Vec<u8>, Found<'_>)> {
        let (path, found) = resolve_in(&self.layers, path, true)?;
        Some(([b"/".as_slice(), path.as_slice()].concat(), found))
    }

    /// A visible file with these bytes, if the image has one; of several, one in the topmost layer.
    /// Links from one layer to a file of another are not looked at.
    pub fn find_bytes(&self, sha256: &Sha256) -> Option<Vec<u8>> {
        let candidates = self
            .layers
            .iter()
            .rev()
            .flat_map(|layer| layer.files_with(sha256));
        let mut candidates = candidates.take(CANDIDATES_MAX);
        let path = candidates.find(|path| {
            lookup_in(&self.layers, path).is_some_and(|found| {
                matches!(found.kind, EntryKind::File { sha256: seen, .. } if seen == Some(*sha256))
            })
        })?;
        Some([b"/", path].concat())
    }

    /// All visible paths but the root, absolute; a directory before what is in it.
    pub fn entries(&self) -> Entries<'_> {
        Entries {
            contents: self,
            next: vec![0; self.layers.len()],
            above: Vec::new(),
            within: Vec::new(),
            lowest: 0,
        }
    }

    /// The visible paths in a directory at any depth, likewise; none if `directory` is none. The
    /// root is the empty path.
    pub fn below(&self, directory: &[u8]) -> Entries<'_> {
        let within = normal(directory).unwrap_or_default();
        Entries {
            contents: self,
            next: self
                .layers
                .iter()
                .map(|layer| layer.behind(&within))
                .collect(),
            above: Vec::new(),
            lowest: lowest_within(&self.layers, &within),
            within,
        }
    }
}

impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the entries, of which there are many.
        let layers: Vec<Digest> = self.layers.iter().map(|layer| layer.diff_id()).collect();
        f.debug_struct("Contents")
            .field("image", &self.image)
            .field("layers", &layers)
            .finish()
    }
}

/// The visible paths of an image, in order; see [`Contents::entries`].
pub struct Entries<'a> {
    contents: &'a Contents,
    // For each layer the index of the next entry.
    next: Vec<usize>,
    // The paths that the last one lies in, outermost first, each with the lowest layer that shows
    // in it.
    above: Vec<(&'a [u8], usize)>,
    // Only what lies in this directory; everything for the root, which is empty.
    within: Vec<u8>,
    // The lowest layer that shows in it.
    lowest: usize,
}

impl Entries<'_> {
    /// Leaves out what is in `directory`, which was just given.
    pub fn skip_within(&mut self, directory: &[u8]) {
        let directory = directory.strip_prefix(b"/").unwrap_or(directory);
        for (next, layer) in self.next.iter_mut().zip(&self.contents.layers) {
            *next = (*next).max(layer.behind_all(directory));
        }
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = (Vec<u8>, Found<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let layers = &self.contents.layers;
        loop {
            let heads = layers
                .iter()
                .zip(&self.next)
                .filter_map(|(layer, next)| layer.at(*next));
            let (path, _) = heads.min_by(|(a, _), (b, _)| compare(a, b))?;
            if !self.within.is_empty() && !is_within(path, &self.within) {
                return None;
            }
            while self
                .above
                .last()
                .is_some_and(|(above, _)| !is_within(path, above))
            {
                self.above.pop();
            }
            let lowest = self.above.last().map_or(self.lowest, |(_, lowest)| *lowest);

            // From the top: the first entry is what shows, the others only say what shows in it.
            let mut shown = None;
            let mut lowest_within = None;
            for (index, layer) in layers.iter().enumerate().rev() {
                let Some(next) = self.next.get_mut(index) else {
                    continue;
                };
                let Some((_, entry)) = layer.at(*next).filter(|(head, _)| *head == path) else {
                    continue;
                };
                *next += 1;
                if index < lowest || lowest_within.is_some() {
                    continue;
                }
                match entry {
                    Entry::Directory { opaque, .. } => {
                        if opaque {
                            lowest_within = Some(index);
                        }
                    }
                    Entry::Node { .. } | Entry::Hardlink { .. } | Entry::Whiteout => {
                        lowest_within = Some(index + 1);
                        // Under a directory of a higher layer.
                        if shown.is_some() {
                            continue;
                        }
                    }
                }
                if shown.is_none() {
                    let below = layers.get(..index).unwrap_or_default();
                    shown = Some(found_in(below, path, layer, entry));
                }
            }
            self.above.push((path, lowest_within.unwrap_or(lowest)));
            if let Some(Some(found)) = shown {
                return Some(([b"/", path].concat(), found));
            }
        }
    }
}

fn lookup_in<'a>(layers: &'a [Arc<Layer>], path: &[u8]) -> Option<Found<'a>> {
    if path.is_empty() {
        let layer = layers.last()?.diff_id();
        return Some(found(EntryKind::Directory, Metadata::IMPLIED, layer));
    }
    let mut left = layers;
    while let Some((layer, below)) = left.split_last() {
        left = below;
        if let Some(entry) = layer.get(path) {
            return found_in(below, path, layer, entry);
        }
        // Not here; what is here of its ancestors may hide it in the layers below.
        for ancestor in ancestors(path) {
            match layer.get(ancestor) {
                // Then nothing below it is here either.
                None => break,
                Some(Entry::Directory { opaque: false, .. }) => {}
                Some(_) => return None,
            }
        }
    }
    None
}

/// The lowest layer that shows in a directory.
fn lowest_within(layers: &[Arc<Layer>], directory: &[u8]) -> usize {
    for (index, layer) in layers.iter().enumerate().rev() {
        let mut lowest = None;
        for path in ancestors(directory).chain([directory]) {
            match layer.get(path) {
                None => break,
                Some(Entry::Directory { opaque: false, .. }) => {}
                Some(Entry::Directory { opaque: true, .. }) => lowest = Some(index),
                Some(_) => lowest = Some(index + 1),
            }
        }
        if let Some(lowest) = lowest {
            return lowest;
        }
    }
    0
}

/// What an entry of `layer` is, given the layers `below` it.
fn found_in<'a>(
    below: &'a [Arc<Layer>],
    path: &[u8],
    layer: &'a Layer,
    entry: Entry<'a>,
) -> Option<Found<'a>> {
    match entry {
        Entry::Whiteout => None,
        Entry::Node { kind, metadata } => Some(found(kind, metadata, layer.diff_id())),
        Entry::Hardlink { target } => {
            let (_, target) = resolve_in(below, target, false)?;
            // No file system links directories.
            (target.kind != EntryKind::Directory).then_some(target)
        }
        Entry::Directory { metadata, .. } => {
            let kept = || {
                let lower = lookup_in(below, path)?;
                let Found { mode, uid, gid, .. } = lower;
                (lower.kind == EntryKind::Directory).then_some(Metadata {
                    mode,
                    uid,
                    gid,
                    capability: None,
                })
            };
            let metadata = metadata.or_else(kept).unwrap_or(Metadata::IMPLIED);
            Some(found(EntryKind::Directory, metadata, layer.diff_id()))
        }
    }
}

fn resolve_in<'a>(
    layers: &'a [Arc<Layer>],
    path: &[u8],
    follow_last: bool,
) -> Option<(Vec<u8>, Found<'a>)> {
    let mut links = 0;
    let mut here: Vec<u8> = Vec::new();
    let mut now = lookup_in(layers, &here)?;
    let mut left: Vec<Vec<u8>> = path.split(is_slash).rev().map(<[u8]>::to_vec).collect();
    while let Some(name) = left.pop() {
        if now.kind != EntryKind::Directory {
            return None;
        }
        match name.as_slice() {
            b"" | b"." => continue,
            b".." => {
                here.truncate(here.iter().rposition(|byte| *byte == b'/').unwrap_or(0));
                now = lookup_in(layers, &here)?;
                continue;
            }
            _ => {}
        }
        let parent = here.len();
        if parent > 0 {
            here.push(b'/');
        }
        here.extend_from_slice(&name);
        if here.len() > PATH_BYTES_MAX {
            return None;
        }
        let directory = now;
        now = lookup_in(layers, &here)?;
        let EntryKind::Symlink { target } = now.kind else {
            continue;
        };
        if left.is_empty() && !follow_last {
            break;
        }
        links += 1;
        if links > LINKS_MAX {
            return None;
        }
        here.truncate(parent);
        now = directory;
        if target.starts_with(b"/") {
            here.clear();
            now = lookup_in(layers, &here)?;
        }
        left.extend(target.split(is_slash).rev().map(<[u8]>::to_vec));
    }
    Some((here, now))
}

fn found(kind: EntryKind<'_>, metadata: Metadata, layer: Digest) -> Found<'_> {
    Found {
        kind,
        mode: metadata.mode,
        uid: metadata.uid,
        gid: metadata.gid,
        capability: metadata.capability,
        layer,
    }
}

fn is_slash(byte: &u8) -> bool {
    *byte == b'/'
}

/// The path as layers spell it.
fn normal(path: &[u8]) -> Option<Vec<u8>> {
    let names = path.split(is_slash).filter(|name| !name.is_empty());
    let names: Vec<&[u8]> = names.collect();
    let refused = |name: &&[u8]| matches!(*name, b"." | b"..");
    (!names.iter().any(refused)).then(|| names.join(&b'/'))
}

/// The directories that a path lies in, outermost first, without the root.
fn ancestors(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
    slashes.filter_map(|(index, _)| path.get(..index))
}
