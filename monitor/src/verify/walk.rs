//! The paths of a root filesystem, in the order of [`layer::compare`](crate::image::layer::compare).
//!
//! Whoever lives in it may exchange paths at any time, so that everything is opened below the root's
//! descriptor and never through a symbolic link.

use std::{
    fs::File,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::stat::{major, minor};
use rustix::{
    fs::{Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat2, readlinkat},
    io::Errno,
};

use super::Owners;
use crate::{
    digest::Sha256,
    image::{capability::FileCapability, layer::PATH_BYTES_MAX, lower::FILE_BYTES_MAX},
};

/// Names that wait to be looked at; a directory with more is not read.
const NAMES_MAX: usize = 1 << 20;

/// A path that is there.
#[derive(Debug)]
pub struct Seen {
    /// The path, beginning with `/`.
    pub path: Vec<u8>,
    /// What it is, or why that cannot be told.
    pub node: Result<Node, String>,
    /// It is a directory of which it is not known what is in it.
    pub is_unread_directory: bool,
}

/// What a path is.
#[derive(Debug)]
pub struct Node {
    /// Its type, and what that says.
    pub kind: Kind,
    /// Permission bits with set-user-ID, set-group-ID and sticky.
    pub mode: u16,
    /// Owner, as processes of the container see it.
    pub uid: u32,
    /// Group, likewise.
    pub gid: u32,
    /// Of a file, what executing it gives.
    pub capability: Option<FileCapability>,
}

/// The type of a path.
#[derive(Debug)]
pub enum Kind {
    /// A regular file.
    File {
        /// Bytes it has.
        size: u64,
        /// Their hash, or why they were not read.
        sha256: Result<Sha256, String>,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// What it says.
        target: Vec<u8>,
    },
    /// A character device, major and minor.
    CharDevice((u32, u32)),
    /// A block device, major and minor.
    BlockDevice((u32, u32)),
    /// A named pipe.
    Fifo,
    /// A socket, which no image holds.
    Socket,
}

impl Kind {
    /// Its name in the API.
    pub fn name(&self) -> &'static str {
        match self {
            Self::File { .. } => "file",
            Self::Directory => "directory",
            Self::Symlink { .. } => "symlink",
            Self::CharDevice(_) => "character_device",
            Self::BlockDevice(_) => "block_device",
            Self::Fifo => "fifo",
            Self::Socket => "socket",
        }
    }
}

/// Goes through a root filesystem; each path is read when it is asked for. Blocks.
#[derive(Debug)]
pub struct Walk {
    root: OwnedFd,
    owners: Owners,
    // Directories on the way, each with what is left of its names, last name first.
    left: Vec<(Vec<u8>, Vec<Vec<u8>>)>,
    names: usize,
}

impl Walk {
    /// Begins at `root`, whose owners are shifted by `owners`.
    ///
    /// # Errors
    ///
    /// The root cannot be read.
    pub fn new(root: OwnedFd, owners: Owners) -> Result<Self, String> {
        let mut walk = Self {
            root,
            owners,
            left: Vec::new(),
            names: 0,
        };
        walk.enter(b"/")?;
        Ok(walk)
    }

    /// Opens a path, beginning with `/`, below the root.
    fn open(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let below = path.strip_prefix(b"/").unwrap_or(path);
        let below = if below.is_empty() { b"." } else { below };
        openat2(
            &self.root,
            below,
            flags | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
        )
    }

    /// Has the names of a directory gone through next.
    fn enter(&mut self, path: &[u8]) -> Result<(), String> {
        let failed = |error: Errno| format!("it could not be listed: {error}");
        let opened = self
            .open(path, OFlags::RDONLY | OFlags::DIRECTORY)
            .map_err(failed)?;
        let mut names = Vec::new();
        for entry in Dir::new(opened).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name().to_bytes().to_vec();
            if matches!(name.as_slice(), b"." | b"..") {
                continue;
            }
            names.push(name);
            if self.names + names.len() > NAMES_MAX {
                return Err(format!(
                    "more than {NAMES_MAX} names would wait to be looked at"
                ));
            }
        }
        names.sort_unstable_by(|a, b| b.cmp(a));
        self.names += names.len();
        self.left.push((path.to_vec(), names));
        Ok(())
    }

    fn node(&self, opened: &OwnedFd, stat: &Stat) -> Result<Node, String> {
        let device = (
            u32::try_from(major(stat.st_rdev)).unwrap_or(u32::MAX),
            u32::try_from(minor(stat.st_rdev)).unwrap_or(u32::MAX),
        );
        let mut found = None;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                let size = u64::try_from(stat.st_size).unwrap_or_default();
                let sha256 = read(opened, size, &mut found);
                Kind::File { size, sha256 }
            }
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Symlink {
                target: readlinkat(opened, "", Vec::new())
                    .map_err(|error| format!("it could not be read: {error}"))?
                    .into_bytes(),
            },
            FileType::CharacterDevice => Kind::CharDevice(device),
            FileType::BlockDevice => Kind::BlockDevice(device),
            FileType::Fifo => Kind::Fifo,
            _ => Kind::Socket,
        };
        Ok(Node {
            kind,
            // Masked to what fits.
            mode: u16::try_from(stat.st_mode & 0o7777).unwrap_or_default(),
            uid: self.owners.user(stat.st_uid),
            gid: self.owners.group(stat.st_gid),
            capability: found,
        })
    }

    fn look(&mut self, path: Vec<u8>) -> Option<Seen> {
        let failed = |path, reason| {
            Some(Seen {
                path,
                node: Err(reason),
                is_unread_directory: true,
            })
        };
        if path.len() > PATH_BYTES_MAX {
            return failed(
                path,
                format!("its path is longer than {PATH_BYTES_MAX} bytes"),
            );
        }
        let opened = match self.open(&path, OFlags::PATH) {
            Ok(opened) => opened,
            // Removed since its directory was listed.
            Err(Errno::NOENT) => return None,
            Err(error) => return failed(path, format!("it could not be opened: {error}")),
        };
        let node = fstat(&opened)
            .map_err(|error| format!("it could not be examined: {error}"))
            .and_then(|stat| self.node(&opened, &stat));
        if matches!(&node, Ok(node) if matches!(node.kind, Kind::Directory))
            && let Err(reason) = self.enter(&path)
        {
            return failed(path, reason);
        }
        Some(Seen {
            path,
            node,
            is_unread_directory: false,
        })
    }
}

impl Iterator for Walk {
    type Item = Seen;

    fn next(&mut self) -> Option<Seen> {
        loop {
            let (directory, names) = self.left.last_mut()?;
            let Some(name) = names.pop() else {
                self.left.pop();
                continue;
            };
            self.names -= 1;
            let separator: &[u8] = if directory.ends_with(b"/") { b"" } else { b"/" };
            let path = [directory.as_slice(), separator, &name].concat();
            if let Some(seen) = self.look(path) {
                return Some(seen);
            }
        }
    }
}

/// Hashes a file of which a path descriptor is held.
fn read(
    opened: &OwnedFd,
    size: u64,
    capability: &mut Option<FileCapability>,
) -> Result<Sha256, String> {
    let file = File::options()
        .read(true)
        .open(format!("/proc/self/fd/{}", opened.as_raw_fd()))
        .map_err(|error| format!("it could not be opened for reading: {error}"))?;
    *capability = FileCapability::of_file(&file);
    if size > FILE_BYTES_MAX {
        return Err(format!(
            "it has {size} bytes, at most {FILE_BYTES_MAX} are hashed"
        ));
    }
    Sha256::of_file(&file, FILE_BYTES_MAX).map_err(|error| error.to_string())
}
