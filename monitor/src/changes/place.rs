//! What lies at a path of an upper directory, looked at without following anything that a container
//! may have put there.

use std::{
    fs::{File, Metadata},
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::{FileTypeExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{OFlag, open, readlinkat},
    sys::{
        stat::Mode,
        statfs::{OVERLAYFS_SUPER_MAGIC, fstatfs},
    },
};

use crate::sensor::root;

/// Marks a directory below which lower layers do not show, when its value is `y`.
const OPAQUE: &str = "trusted.overlay.opaque";
/// Marks a copy of a file of a lower layer.
const ORIGIN: &str = "trusted.overlay.origin";
/// Marks a file whose bytes are still in a lower layer.
const METADATA_ONLY: &str = "trusted.overlay.metacopy";

/// Something in an upper directory.
#[derive(Debug)]
pub(super) enum Found {
    /// Nothing: what is below shows.
    Nothing,
    /// What is below was removed.
    Whiteout,
    File(Copied),
    Symlink(Vec<u8>),
    Directory {
        file: OwnedFd,
        /// Nothing that is below shows in it.
        is_opaque: bool,
    },
    Special,
}

/// A regular file in an upper directory.
#[derive(Debug)]
pub(super) struct Copied {
    /// As a path only.
    pub(super) file: OwnedFd,
    pub(super) version: Version,
    pub(super) is_copy: bool,
    pub(super) has_bytes: bool,
}

/// A version of a file, as far as its times tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) inode: u64,
    pub(super) size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Version {
    fn of(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// What lies at an absolute path below `upper`.
pub(super) fn look(upper: &OwnedFd, path: &[u8]) -> Found {
    let Some(file) = root::named(upper, path) else {
        return Found::Nothing;
    };
    let file = File::from(file);
    let Ok(metadata) = file.metadata() else {
        return Found::Nothing;
    };
    let kind = metadata.file_type();
    if kind.is_char_device() && metadata.rdev() == 0 {
        Found::Whiteout
    } else if kind.is_file() {
        Found::File(Copied {
            version: Version::of(&metadata),
            is_copy: has(&file, ORIGIN),
            has_bytes: !has(&file, METADATA_ONLY),
            file: file.into(),
        })
    } else if kind.is_symlink() {
        // A descriptor of a link is read with an empty name.
        readlinkat(&file, "").map_or(Found::Nothing, |target| {
            Found::Symlink(std::os::unix::ffi::OsStringExt::into_vec(target))
        })
    } else if kind.is_dir() {
        Found::Directory {
            is_opaque: attribute(&file, OPAQUE).is_some_and(|value| value == *b"y"),
            file: file.into(),
        }
    } else {
        Found::Special
    }
}

fn has(file: &File, name: &str) -> bool {
    let mut value = [0; 0];
    rustix::fs::getxattr(by_descriptor(file.as_raw_fd()), name, &mut value).is_ok()
}

fn attribute(file: &File, name: &str) -> Option<[u8; 1]> {
    let mut value = [0];
    let length = rustix::fs::getxattr(by_descriptor(file.as_raw_fd()), name, &mut value).ok()?;
    (length == 1).then_some(value)
}

/// Leads to a descriptor's file, also if that was opened as a path only.
pub(super) fn by_descriptor(descriptor: i32) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{descriptor}"))
}

/// Opens a file that is held as a path only. Never waits: not for a lease that a container holds.
pub(super) fn reopen(file: &OwnedFd) -> io::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOATIME | OFlag::O_CLOEXEC;
    let opened = open(&by_descriptor(file.as_raw_fd()), flags, Mode::empty())?;
    Ok(File::from(opened))
}

/// Opens a directory of the host as a path only.
pub(super) fn directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(open(path, flags, Mode::empty())?)
}

/// Opens the root of an overlay. Whoever holds it open keeps the runtime from unmounting it.
pub(super) fn overlay(rootfs: &Path) -> nix::Result<Option<OwnedFd>> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let root = open(rootfs, flags, Mode::empty())?;
    let is_overlay = fstatfs(&root)?.filesystem_type() == OVERLAYFS_SUPER_MAGIC;
    Ok(is_overlay.then_some(root))
}
