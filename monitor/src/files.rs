//! Files: those that others write, read within a bound, and those that are kept.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
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

/// What [`replace`] begins the names of files with that are not whole yet.
const UNFINISHED: &str = ".";

/// Makes a directory of files that [`replace`] writes, if there is none, and clears away what a crash
/// left half written there.
pub(crate) fn open_directory(directory: &Path) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.as_encoded_bytes().starts_with(UNFINISHED.as_bytes()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Writes a file under another name and renames it, so that it is there whole or as it was; for its
/// owner alone.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .tempfile_in(directory)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(directory)?.sync_all()
}

/// Files of a folder; further ones are not read, which is said.
const FOLDER_FILES_MAX: usize = 1024;

/// Files with the ending of YAML in a folder, in the order of their names.
pub(crate) fn listed(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let is_yaml = path
            .extension()
            .is_some_and(|it| it == "yaml" || it == "yml");
        if is_yaml && paths.len() >= FOLDER_FILES_MAX {
            tracing::error!(directory = %directory.display(), limit = FOLDER_FILES_MAX, "there are more files than are read");
            break;
        }
        if is_yaml {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// A file as it was: name, size, inode and time.
type Version = (PathBuf, u64, u64, i64, i64);

/// A folder of files that people keep, looked at now and then: a folder that a cluster mounts is
/// exchanged as a whole, which no watch of its files notices.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    directory: Option<PathBuf>,
    looked: Instant,
    /// What its files were when they were last listed; `None` before.
    seen: Option<Vec<Version>>,
    has_failed: bool,
}

impl Folder {
    /// Of no directory it never tells of anything.
    pub(crate) fn new(directory: Option<PathBuf>) -> Self {
        Self {
            directory,
            looked: Instant::now(),
            seen: None,
            has_failed: false,
        }
    }

    /// The folder to be looked at, if there is one and that was `interval` ago or longer.
    pub(crate) fn if_due(&mut self, interval: Duration) -> Option<Self> {
        if self.directory.is_none() || self.looked.elapsed() < interval {
            return None;
        }
        self.looked = Instant::now();
        Some(self.clone())
    }

    /// Its files, if they are not what they were before. Blocks.
    pub(crate) fn changed(&mut self) -> Option<Vec<PathBuf>> {
        let directory = self.directory.as_ref()?;
        let paths = match listed(directory) {
            Ok(paths) => paths,
            Err(error) => {
                // Said once.
                if !std::mem::replace(&mut self.has_failed, true) {
                    tracing::error!(%error, directory = %directory.display(), "cannot read the folder; what is in force stays");
                }
                return None;
            }
        };
        self.has_failed = false;
        let seen: Vec<_> = paths.iter().filter_map(|path| version(path)).collect();
        if self.seen.as_ref() == Some(&seen) {
            return None;
        }
        self.seen = Some(seen);
        Some(paths)
    }
}

fn version(path: &Path) -> Option<Version> {
    let stat = fs::metadata(path).ok()?;
    let (size, inode) = (stat.len(), stat.ino());
    Some((
        path.to_owned(),
        size,
        inode,
        stat.mtime(),
        stat.mtime_nsec(),
    ))
}

/// The text of a file of at most `bytes_max` bytes, or why there is none.
pub(crate) fn read_text(path: &Path, bytes_max: usize) -> Result<String, String> {
    let bytes_max = u64::try_from(bytes_max).unwrap_or(u64::MAX);
    let bytes = read(path, bytes_max).map_err(|error| error.to_string())?;
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())
}

/// What each of some files holds, or why one is refused, with its name. Blocks.
pub(crate) fn parse_all<T, E: std::fmt::Display>(
    paths: &[PathBuf],
    bytes_max: usize,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<Vec<T>, String> {
    let parsed = paths.iter().map(|path| {
        let text = read_text(path, bytes_max);
        let parsed = text.and_then(|text| parse(&text).map_err(|error| error.to_string()));
        parsed.map_err(|error| format!("{}: {error}", path.display()))
    });
    parsed.collect()
}
