//! Finds the file that the kernel told of, to be read.

use std::{
    fs::{File, Metadata, OpenOptions},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::PathBuf,
};

use monitor_common::file::OVERLAYFS_MAGIC;
use nix::sys::stat::fstat;

use crate::sensor::{event::FileFacts, root};

/// A file that was used.
pub(super) struct Wanted {
    /// What the kernel said of it then.
    pub(super) facts: FileFacts,
    /// A descriptor of it that is a path only, and may be of another file.
    pub(super) path_only: Option<OwnedFd>,
    /// It lies in the container's root.
    pub(super) is_in_root: bool,
    /// Its path there, if that is whole and it has one.
    pub(super) path: Option<Vec<u8>>,
    /// Where the container's root is mounted on the host.
    pub(super) rootfs: Option<PathBuf>,
}

impl Wanted {
    /// Whether a file is the one.
    pub(super) fn is(&self, metadata: &Metadata) -> bool {
        [self.facts.inode, self.facts.real_inode].contains(&metadata.ino())
    }

    /// Takes hold of the file by its path below the container's root, if nothing else holds it.
    pub(super) fn hold(&mut self) {
        if self.path_only.is_none() {
            self.path_only = self.named();
        }
    }

    /// By its path below where the container's root is mounted on the host.
    fn named(&self) -> Option<OwnedFd> {
        root::file(
            self.rootfs.as_deref()?,
            self.facts.device,
            self.path.as_deref()?,
        )
    }
}

/// Opens the file by the descriptor.
pub(super) fn open_held(wanted: &Wanted) -> Result<(File, Metadata), String> {
    // An overlay of the container's own making may have any server below it.
    if wanted.facts.filesystem_magic == OVERLAYFS_MAGIC && !wanted.is_in_root {
        return Err("it lies on an overlay that the container mounted".to_owned());
    }
    let Some(path_only) = &wanted.path_only else {
        return Err(
            "no descriptor of it was held, and it or its process had gone from its place"
                .to_owned(),
        );
    };
    // Before it is opened, since a pipe or a device does what it likes then.
    let is_wanted = fstat(path_only).is_ok_and(|stat| {
        stat.st_mode & libc::S_IFMT == libc::S_IFREG
            && [wanted.facts.inode, wanted.facts.real_inode].contains(&stat.st_ino)
    });
    if !is_wanted {
        return Err(
            "no descriptor of it was held and what is in its place is another file".to_owned(),
        );
    }
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(format!("/proc/self/fd/{}", path_only.as_raw_fd()))
        .map_err(|error| format!("it could not be opened for reading: {error}"))?;
    let metadata = file
        .metadata()
        .map_err(|error| format!("it could not be examined: {error}"))?;
    Ok((file, metadata))
}
