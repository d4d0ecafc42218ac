//! Files that others write, read within a bound.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::Path,
};

/// A file was not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The system's.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// No file, or too long.
    #[error("is no regular file of at most {0} bytes")]
    NotAFile(u64),
}

/// What a file of at most `bytes_max` bytes holds.
pub(crate) fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, ReadError> {
    // Before it is opened: that of a pipe would wait.
    let found = fs::metadata(path)?;
    if !found.is_file() || found.len() > bytes_max {
        return Err(ReadError::NotAFile(bytes_max));
    }
    let mut bytes = Vec::new();
    // It may have grown since.
    let file = File::open(path)?;
    file.take(bytes_max.saturating_add(1))
        .read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > bytes_max) {
        return Err(ReadError::NotAFile(bytes_max));
    }
    Ok(bytes)
}
