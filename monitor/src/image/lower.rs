//! A layer read from the directory that containerd unpacked it into: names, types, lengths and
//! metadata at once, bytes when a file is first used.
//!
//! Only root on the node can write there, so that paths need no guard against being exchanged.

use std::{
    fs::{self, File, Metadata as Stat, OpenOptions},
    io::{self, Read as _},
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use nix::sys::stat::{major, minor};

use super::{
    capability::{self, FileCapability},
    contents::Contents,
    layer::{BuildError, ENTRIES_MAX, Entry, EntryKind, Layer, LayerBuilder, Metadata},
};
use crate::digest::{Digest, Sha256};

/// Bytes of a file; a longer one is not hashed, since a sparse file of any length costs nothing to
/// make.
pub const FILE_BYTES_MAX: u64 = 1 << 30;

const OPAQUE: &str = "trusted.overlay.opaque";

/// An unpacked layer cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LowerError {
    /// A file or directory of it.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// It exceeds a bound, or is no layer.
    #[error("{}: {error}", directory.display())]
    Layer {
        /// The unpacked layer.
        directory: PathBuf,
        /// The reason.
        error: String,
    },
}

/// Reads the layer `diff_id` as it was unpacked into `directory`. Blocks.
pub(super) fn read_directory(directory: &Path, diff_id: Digest) -> Result<Layer, LowerError> {
    let refused = |error: BuildError| LowerError::Layer {
        directory: directory.to_owned(),
        error: error.to_string(),
    };
    let mut builder = LayerBuilder::new();
    // What is in a directory, last name first.
    let mut left = within(directory, b"")?;
    while let Some(path) = left.pop() {
        let full = below(directory, &path);
        let failed = |source| LowerError::Io {
            path: full.clone(),
            source,
        };
        let stat = fs::symlink_metadata(&full).map_err(failed)?;
        let target;
        let entry = if stat.is_dir() {
            Entry::Directory {
                opaque: attribute::<1>(&full, OPAQUE).is_some_and(|value| value == b"y"),
                metadata: Some(metadata(&stat, None)),
            }
        } else if let Some(kind) = device(&stat) {
            match kind {
                // So overlayfs marks what is removed.
                EntryKind::CharDevice { major: 0, minor: 0 } => Entry::Whiteout,
                kind => Entry::Node {
                    kind,
                    metadata: metadata(&stat, None),
                },
            }
        } else if stat.is_symlink() {
            target = fs::read_link(&full).map_err(failed)?;
            Entry::Node {
                kind: EntryKind::Symlink {
                    target: target.as_os_str().as_bytes(),
                },
                metadata: metadata(&stat, None),
            }
        } else if stat.is_file() {
            let capability =
                attribute::<{ capability::ATTRIBUTE_BYTES_MAX }>(&full, capability::ATTRIBUTE)
                    .and_then(|value| FileCapability::parse(&value));
            Entry::Node {
                kind: EntryKind::File {
                    size: stat.len(),
                    sha256: None,
                },
                metadata: metadata(&stat, capability),
            }
        } else {
            // A socket, which no image holds.
            continue;
        };
        builder.push(&path, entry).map_err(refused)?;
        if stat.is_dir() {
            left.extend(within(directory, &path)?);
            if left.len() > ENTRIES_MAX {
                return Err(refused(BuildError::TooManyEntries));
            }
        }
    }
    Ok(builder.finish_late(diff_id))
}

/// Hashes a file of an unpacked layer, if it still has the length it had when the layer was read.
pub(super) fn hash(directory: &Path, path: &[u8], size: u64) -> Option<Sha256> {
    let file = open(directory, path)?;
    let is_same = |file: &File| file.metadata().is_ok_and(|stat| stat.len() == size);
    if !is_same(&file) {
        return None;
    }
    let sha256 = Sha256::of_file(&file, FILE_BYTES_MAX).ok()?;
    is_same(&file).then_some(sha256)
}

/// The first `max` bytes of a file of an image, from the topmost layer that has it; the layers were
/// unpacked into `directories`, given from bottom to top.
pub fn read_file(
    contents: &Contents,
    directories: &[PathBuf],
    path: &[u8],
    max: usize,
) -> Option<Vec<u8>> {
    let path = path.strip_prefix(b"/").unwrap_or(path);
    let layers = contents.layers().iter().zip(directories).rev();
    let mut holding = layers.filter(|(layer, _)| layer.get(path).is_some());
    let (_, directory) = holding.next()?;
    let file = open(directory, path)?;
    let mut bytes = Vec::new();
    let max = u64::try_from(max).unwrap_or(u64::MAX);
    file.take(max).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

fn open(directory: &Path, path: &[u8]) -> Option<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(below(directory, path))
        .ok()?;
    file.metadata().ok()?.is_file().then_some(file)
}

fn within(directory: &Path, path: &[u8]) -> Result<Vec<Vec<u8>>, LowerError> {
    let full = below(directory, path);
    let failed = |source| LowerError::Io {
        path: full.clone(),
        source,
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(&full).map_err(failed)? {
        names.push(entry.map_err(failed)?.file_name().into_vec());
        if names.len() > ENTRIES_MAX {
            return Err(LowerError::Layer {
                directory: directory.to_owned(),
                error: BuildError::TooManyEntries.to_string(),
            });
        }
    }
    names.sort_unstable_by(|a, b| b.cmp(a));
    let prefix = if path.is_empty() {
        Vec::new()
    } else {
        [path, b"/"].concat()
    };
    Ok(names
        .into_iter()
        .map(|name| [prefix.as_slice(), &name].concat())
        .collect())
}

fn below(directory: &Path, path: &[u8]) -> PathBuf {
    directory.join(std::ffi::OsStr::from_bytes(path))
}

fn metadata(stat: &Stat, capability: Option<FileCapability>) -> Metadata {
    Metadata {
        // Masked to what fits.
        mode: u16::try_from(stat.mode() & 0o7777).unwrap_or_default(),
        uid: stat.uid(),
        gid: stat.gid(),
        capability,
    }
}

fn device(stat: &Stat) -> Option<EntryKind<'static>> {
    let kind = stat.file_type();
    let number = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    let (major, minor) = (number(major(stat.rdev())), number(minor(stat.rdev())));
    if kind.is_char_device() {
        Some(EntryKind::CharDevice { major, minor })
    } else if kind.is_block_device() {
        Some(EntryKind::BlockDevice { major, minor })
    } else if kind.is_fifo() {
        Some(EntryKind::Fifo)
    } else {
        None
    }
}

/// An extended attribute of at most `N` bytes; most files have none.
fn attribute<const N: usize>(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = [0; N];
    let length = rustix::fs::lgetxattr(path, name, &mut value).ok()?;
    Some(value.get(..length)?.to_vec())
}
