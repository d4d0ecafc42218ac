//! The directory that keeps layers: one file for each, named by its diff ID.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::{
    codec::{self, DecodeError, FILE_BYTES_MAX},
    layer::Layer,
};
use crate::{digest::Digest, files};

/// Bytes of all files. When they are more, those not used for the longest time are removed, save what
/// is in use; a layer that is needed again is read from its blob.
const DIRECTORY_BYTES_MAX: u64 = 2 << 30;

const EXTENSION: &str = "layer";

/// A kept layer could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    #[error(transparent)]
    Read(#[from] io::Error),
    #[error("file of {0} bytes; at most {FILE_BYTES_MAX} are read")]
    TooLong(u64),
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

/// See the module. Blocks.
pub(super) struct LayerFiles {
    directory: PathBuf,
}

impl LayerFiles {
    /// Makes the directory if there is none, and clears away what a crash left half written.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        files::open_directory(directory)?;
        Ok(Self {
            directory: directory.to_owned(),
        })
    }

    pub(super) fn path(&self, diff_id: &Digest) -> PathBuf {
        self.directory.join(format!("{}.{EXTENSION}", diff_id.0))
    }

    /// The kept layer, if there is one.
    pub(super) fn load(&self, diff_id: &Digest) -> Result<Option<Layer>, LoadError> {
        let file = match File::open(self.path(diff_id)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let length = file.metadata()?.len();
        if length > FILE_BYTES_MAX {
            return Err(LoadError::TooLong(length));
        }
        let mut bytes = Vec::new();
        (&file).take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
        let layer = codec::decode(&bytes, diff_id)?;
        // Tells `trim` that it is in use. A read-only file system still serves what it keeps.
        let _ = file.set_modified(SystemTime::now());
        Ok(Some(layer))
    }

    /// Removes a kept layer; false if there is none.
    pub(super) fn remove(&self, diff_id: &Digest) -> io::Result<bool> {
        match fs::remove_file(self.path(diff_id)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            removed => removed.map(|()| true),
        }
    }

    /// Keeps a layer: the file is there whole, or as it was before. Layers `in_use` make no room.
    pub(super) fn save(&self, layer: &Layer, in_use: &HashSet<Digest>) -> io::Result<()> {
        files::replace(&self.path(&layer.diff_id()), &codec::encode(layer))?;
        self.trim(DIRECTORY_BYTES_MAX, in_use)
    }

    /// Number of kept layers.
    pub(super) fn count(&self) -> io::Result<usize> {
        Ok(self.list()?.len())
    }

    pub(super) fn trim(&self, bytes_max: u64, in_use: &HashSet<Digest>) -> io::Result<()> {
        let in_use: HashSet<PathBuf> = in_use.iter().map(|diff_id| self.path(diff_id)).collect();
        let mut files = self.list()?;
        let mut bytes: u64 = files.iter().map(|(_, length, _)| length).sum();
        files.sort_unstable();
        for (_, length, path) in files {
            if bytes <= bytes_max {
                break;
            }
            if in_use.contains(&path) {
                continue;
            }
            fs::remove_file(path)?;
            bytes -= length;
        }
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<(SystemTime, u64, PathBuf)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == EXTENSION)
            {
                let metadata = fs::symlink_metadata(&path)?;
                files.push((metadata.modified()?, metadata.len(), path));
            }
        }
        Ok(files)
    }
}
