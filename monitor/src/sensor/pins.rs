//! What stays in the kernel between two daemons: maps, programs and links, pinned in a folder of a
//! bpffs that is named by what they are, so that a daemon only reopens what it would have made.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use aya::{
    maps::{Map, MapData},
    pin::PinError,
    programs::{ProgramInfo, links::FdLink},
};
use monitor_common::LAYOUT_VERSION;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use super::{programs::chain, ring::Ring};

/// Where a bpffs is by convention.
const BPFFS: &str = "/sys/fs/bpf";
/// Digits of the hash in the name of a folder.
pub(super) const HASH_DIGITS: usize = 16;
/// Ends the name of a folder that is not complete.
const UNFINISHED: &str = "-new";

/// Nothing can be pinned.
#[derive(Debug, thiserror::Error)]
pub enum PinsError {
    /// There is no bpffs.
    #[error(
        "{} is not on a bpffs, so hooks cannot outlive monitord: mount one with `mount -t bpf bpf {BPFFS}`, or use --no-pin ({reason})",
        path.display()
    )]
    NoBpffs {
        /// Where the pins were to lie.
        path: PathBuf,
        /// Why none could be mounted.
        reason: String,
    },
    /// Two daemons would read one ring.
    #[error(
        "the pins in {} are in use by another monitord; stop it, or give another directory with --pin-directory",
        .0.display()
    )]
    InUse(PathBuf),
    /// A file operation failed.
    #[error("cannot {action} {path}: {reason}")]
    Failed {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        reason: String,
    },
}

fn failed(action: &'static str, path: &Path, reason: impl ToString) -> PinsError {
    PinsError::Failed {
        action,
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

/// The directory of the pins, which this process alone uses.
pub struct Pins {
    directory: PathBuf,
    _lock: Flock<File>,
}

impl Pins {
    /// Takes the directory for this process; makes it, and mounts the bpffs at its usual place, if
    /// they are not there.
    pub fn open(directory: &Path) -> Result<Self, PinsError> {
        if let Err(reason) = mount_bpffs(directory) {
            return Err(PinsError::NoBpffs {
                path: directory.to_owned(),
                reason,
            });
        }
        make_directory(directory)?;
        // A bpffs holds no files, but its directories can be locked.
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_DIRECTORY)
            .open(directory)
            .map_err(|error| failed("open", directory, error))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock);
        match lock {
            Ok(lock) => Ok(Self {
                directory: directory.to_owned(),
                _lock: lock,
            }),
            Err((_, Errno::EAGAIN)) => Err(PinsError::InUse(directory.to_owned())),
            Err((_, error)) => Err(failed("lock", directory, error)),
        }
    }

    /// Removes everything pinned, and with it the hooks. What was not read is lost.
    pub fn remove(self) -> Result<(), PinsError> {
        for folder in self.folders()? {
            folder.remove()?;
        }
        match fs::remove_dir(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => {
                Err(failed("remove", &self.directory, error))
            }
            _ => Ok(()),
        }
    }

    /// The folder of the programs and offsets whose hash this is.
    pub(super) fn folder(&self, hash: &str) -> Folder {
        Folder(self.directory.join(format!("v{LAYOUT_VERSION}-{hash}")))
    }

    /// Removes every folder but `own`; gives the rings in them whose records this daemon can read.
    pub(super) fn supersede(&self, own: &Folder) -> Result<Vec<Ring>, PinsError> {
        let mut rings = Vec::new();
        let readable = format!("v{LAYOUT_VERSION}-");
        for folder in self.folders()?.into_iter().filter(|folder| folder != own) {
            let name = folder.0.file_name().unwrap_or_default().to_string_lossy();
            tracing::info!(folder = %folder.0.display(), "removing the hooks of another monitord");
            let records = folder.map("RECORDS");
            if name.ends_with(UNFINISHED) {
                // No daemon ever said that it watched with these.
            } else if name.starts_with(&readable) {
                let ring = records
                    .and_then(|records| Ok((records, folder.map("LET_GO")?)))
                    .and_then(|(records, let_go)| {
                        Ring::open(records, let_go)
                            .map_err(|error| failed("read the records of", &folder.0, error))
                    });
                match ring {
                    Ok(ring) => rings.push(ring),
                    Err(error) => {
                        tracing::error!(%error, "what it had seen and not judged is lost");
                    }
                }
            } else {
                tracing::warn!(folder = %folder.0.display(), "its records have another layout: what it had seen and not judged is lost");
            }
            folder.remove()?;
        }
        Ok(rings)
    }

    fn folders(&self) -> Result<Vec<Folder>, PinsError> {
        let failed = |error| failed("read", &self.directory, error);
        let mut folders = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            // The directory may hold what others have pinned.
            if path
                .file_name()
                .is_some_and(|name| is_folder(&name.to_string_lossy()))
            {
                folders.push(Folder(path));
            }
        }
        Ok(folders)
    }
}

/// What one load of the programs has pinned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Folder(PathBuf);

impl Folder {
    /// Whether it is there, which it is only complete.
    pub(super) fn exists(&self) -> bool {
        self.0.is_dir()
    }

    /// A new one to be filled, until [`Folder::finish`].
    pub(super) fn begin(&self) -> Result<Self, PinsError> {
        let mut path = self.0.clone().into_os_string();
        path.push(UNFINISHED);
        let new = Self(path.into());
        if new.exists() {
            new.remove()?;
        }
        make_directory(&new.0)?;
        Ok(new)
    }

    /// `new` is complete.
    pub(super) fn finish(&self, new: &Self) -> Result<(), PinsError> {
        fs::rename(&new.0, &self.0).map_err(|error| failed("rename", &new.0, error))
    }

    /// Where an object is pinned.
    fn path(&self, kind: &str, name: &str) -> PathBuf {
        self.0.join(format!("{kind}-{name}"))
    }

    pub(super) fn pin_link(&self, name: &str, link: FdLink) -> Result<FdLink, PinsError> {
        let path = self.path("link", name);
        match link.pin(&path) {
            Ok(pinned) => Ok(pinned.into()),
            Err(error) => Err(failed("pin", &path, chain(&error))),
        }
    }

    /// Pins an object by `pin`, which is told where.
    pub(super) fn pin(
        &self,
        kind: &str,
        name: &str,
        pin: impl FnOnce(&Path) -> Result<(), PinError>,
    ) -> Result<(), PinsError> {
        let path = self.path(kind, name);
        pin(&path).map_err(|error| failed("pin", &path, chain(&error)))
    }

    /// A pinned map.
    pub(super) fn map(&self, name: &str) -> Result<Map, PinsError> {
        let path = self.path("map", name);
        MapData::from_pin(&path)
            .and_then(Map::from_map_data)
            .map_err(|error| failed("reopen", &path, chain(&error)))
    }

    /// A pinned program.
    pub(super) fn program(&self, name: &str) -> Result<ProgramInfo, PinsError> {
        let path = self.path("program", name);
        ProgramInfo::from_pin(&path).map_err(|error| failed("reopen", &path, chain(&error)))
    }

    /// Whether a program is pinned, which only those are that run.
    pub(super) fn has_program(&self, name: &str) -> bool {
        self.path("program", name).exists()
    }

    pub(super) fn remove(&self) -> Result<(), PinsError> {
        fs::remove_dir_all(&self.0).map_err(|error| failed("remove", &self.0, error))
    }
}

/// Whether a name is one that [`Pins::folder`] gives, or of one that is not complete.
fn is_folder(name: &str) -> bool {
    let name = name.strip_suffix(UNFINISHED).unwrap_or(name);
    let parts = name.strip_prefix('v').and_then(|name| name.split_once('-'));
    parts.is_some_and(|(version, hash)| {
        version.parse::<u16>().is_ok()
            && hash.len() == HASH_DIGITS
            && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

/// For root alone: whoever can open a map can write it.
fn make_directory(path: &Path) -> Result<(), PinsError> {
    match DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Ok(()) => Ok(()),
        Err(error) => Err(failed("create", path, error)),
    }
}

/// Sees to it that the directory lies on a bpffs.
fn mount_bpffs(directory: &Path) -> Result<(), String> {
    let is_bpffs = || {
        // What is not there yet will be made below the first that is.
        let mut ancestors = directory.ancestors();
        let there = ancestors.find(|path| path.exists());
        there.is_some_and(|path| {
            statfs(path).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
        })
    };
    if is_bpffs() {
        return Ok(());
    }
    if !directory.starts_with(BPFFS) {
        return Err(format!("it does not lie below {BPFFS}"));
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), BPFFS, Some("bpf"), flags, Some("mode=700"))
        .map_err(|error| format!("mounting one failed: {}", io::Error::from(error)))?;
    tracing::info!("mounted a bpffs at {BPFFS}");
    if is_bpffs() {
        Ok(())
    } else {
        Err("it is still none after mounting one".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_monitord_named_is_a_folder() {
        let check = |name, expect| assert_eq!(is_folder(name), expect, "{name}");
        check("v3-0123456789abcdef", true);
        check("v12-0123456789abcdef-new", true);
        check("v3-0123456789abcde", false);
        check("v3-0123456789abcdefg", false);
        check("v3-0123456789abcdeg", false);
        check("v-0123456789abcdef", false);
        check("w3-0123456789abcdef", false);
        check("v3", false);
        check("", false);
    }
}
