//! Where a descriptor or a process's program leads, as the kernel says it (`d_path`).

use std::{fs, io, os::unix::ffi::OsStringExt, path::Path};

/// What the kernel adds to the path of a file without a name.
const DELETED: &[u8] = b" (deleted)";

/// The path that a link in `/proc` shows, and whether the file has lost that name. A file whose
/// name itself ends like that is taken for one that has.
pub fn read(link: &Path) -> io::Result<(Vec<u8>, bool)> {
    let mut path = fs::read_link(link)?.into_os_string().into_vec();
    let unlinked = path.ends_with(DELETED);
    if unlinked {
        path.truncate(path.len() - DELETED.len());
    }
    Ok((path, unlinked))
}
