//! Files that others write, read within a bound.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::Path,
};

/// What a file holds.
///
/// # Errors
///
/// The system's; it is no regular file, or has more than `bytes_max` bytes.
pub(crate) fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let refused = || {
        io::Error::other(format!(
            "it is no regular file of at most {bytes_max} bytes"
        ))
    };
    // Before it is opened: that of a pipe would wait.
    if !fs::metadata(path)?.is_file() {
        return Err(refused());
    }
    let mut bytes = Vec::new();
    let file = File::open(path)?;
    file.take(bytes_max.saturating_add(1))
        .read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > bytes_max) {
        return Err(refused());
    }
    Ok(bytes)
}
