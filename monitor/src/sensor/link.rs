//! Where a descriptor or a process's program leads, as the kernel says it (`d_path`).

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Read as _},
    os::unix::ffi::OsStringExt,
    path::Path,
};

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

/// Bytes read of `/proc/PID/maps`.
const MAPS_BYTES_MAX: u64 = 8 << 20;
/// Files told of one process.
const MAPPED_MAX: usize = 1024;

/// The paths of the files that a process has mapped executable; none if it has gone.
pub fn mapped(pid: u32) -> Vec<Vec<u8>> {
    let Ok(maps) = File::open(format!("/proc/{pid}/maps")) else {
        return Vec::new();
    };
    let lines = BufReader::new(maps.take(MAPS_BYTES_MAX)).split(b'\n');
    let mut paths = BTreeSet::new();
    for line in lines.map_while(Result::ok) {
        if let Some(path) = executable(&line)
            && paths.len() < MAPPED_MAX
        {
            paths.insert(path.to_vec());
        }
    }
    paths.into_iter().collect()
}

/// The path in a line of `/proc/PID/maps` about a file that is mapped executable.
fn executable(line: &[u8]) -> Option<&[u8]> {
    let permissions = line.split(|byte| *byte == b' ').nth(1)?;
    let path = line.get(line.iter().position(|byte| *byte == b'/')?..)?;
    permissions.contains(&b'x').then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executable_mappings_name_their_files() {
        let check = |line: &str, expect: Option<&str>| {
            let expect = expect.map(str::as_bytes);
            assert_eq!(executable(line.as_bytes()), expect, "{line}");
        };
        check(
            "7f01-7f02 r-xp 0 fe:00 12    /lib/a b.so",
            Some("/lib/a b.so"),
        );
        check("7f01-7f02 r--p 0 fe:00 12    /lib/a.so", None);
        check("7f01-7f02 rwxp 0 00:00 0 ", None);
        check("7ffc-7ffd r-xp 0 00:00 0 [vdso]", None);
    }
}
