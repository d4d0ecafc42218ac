//! Where lines go.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::{
        fd::AsFd as _,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use super::STDOUT;

/// Most bytes of a line without an end that is looked for and cut; more is none of ours.
const TORN_BYTES_MAX: u64 = 4 << 20;

/// Takes lines.
#[derive(Debug)]
pub(super) enum Sink {
    /// A file that is appended to, opened when there is something to write.
    File { path: PathBuf, open: Option<File> },
    /// Standard output; a line may have been torn.
    Stdout { is_torn: bool },
}

impl Sink {
    pub(super) fn new(path: &Path) -> Self {
        if path == Path::new(STDOUT) {
            Self::Stdout { is_torn: false }
        } else {
            Self::File {
                path: path.to_owned(),
                open: None,
            }
        }
    }

    /// Writes whole lines, which survive the node when this returns, as far as the place can keep
    /// anything. After an error it is open which of them were written.
    ///
    /// # Errors
    ///
    /// The system's.
    pub(super) fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        match self {
            Self::File { path, open } => {
                // Moved or removed by those who rotate files: they need not tell us.
                let current = open.take().filter(|file| is_at(file, path));
                let file = match current {
                    Some(file) => file,
                    None => open_to_append(path)?,
                };
                (&file).write_all(lines)?;
                file.sync_data()?;
                *open = Some(file);
                Ok(())
            }
            Self::Stdout { is_torn } => {
                // Not by std's handle: it would keep a part of a line that it could not write.
                let mut stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
                if *is_torn {
                    stdout.write_all(b"\n")?;
                }
                *is_torn = true;
                stdout.write_all(lines)?;
                *is_torn = false;
                Ok(())
            }
        }
    }
}

/// Whether `path` still leads to `file`.
fn is_at(file: &File, path: &Path) -> bool {
    let identity = |found: io::Result<std::fs::Metadata>| {
        let found = found.ok()?;
        Some((found.dev(), found.ino()))
    };
    let open = identity(file.metadata());
    open.is_some() && open == identity(path.metadata())
}

/// Opens a file, or makes it for its owner alone, without the part of a line at its end that a
/// write which failed or was killed has left.
fn open_to_append(path: &Path) -> io::Result<File> {
    let mut file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        // A pipe that nobody reads must not hold this up; of a file it means nothing.
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    cut_torn_line(&mut file)?;
    // The name of a new file is to survive the node as well.
    let directory = path.parent().unwrap_or(Path::new("/"));
    File::open(directory)?.sync_all()?;
    Ok(file)
}

fn cut_torn_line(file: &mut File) -> io::Result<()> {
    let end = file.seek(SeekFrom::End(0))?;
    let mut last = [0];
    if end == 0 {
        return Ok(());
    }
    file.seek(SeekFrom::Start(end - 1))?;
    file.read_exact(&mut last)?;
    if last == *b"\n" {
        return Ok(());
    }
    let begin = end.saturating_sub(TORN_BYTES_MAX);
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(begin))?;
    (&mut *file).take(TORN_BYTES_MAX).read_to_end(&mut tail)?;
    let newline = tail.iter().rposition(|byte| *byte == b'\n');
    // A torn alert begins as each alert does: what does not is not ours to cut.
    let line = newline.map_or(0, |at| at + 1);
    let is_ours = tail.get(line) == Some(&b'{') && (newline.is_some() || begin == 0);
    if !is_ours {
        return Err(io::Error::other(
            "it does not end in a line of an output; move it away",
        ));
    }
    let kept = u64::try_from(line).map_err(io::Error::other)?;
    file.set_len(begin + kept)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::fs;

    use super::*;

    #[test]
    fn a_torn_line_is_cut_before_more_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("alerts");
        let check = |before: &str, expect: Result<&str, &str>| {
            fs::write(&path, before).unwrap();
            let written = Sink::new(&path).write(b"{new}\n");
            let after = fs::read_to_string(&path).unwrap();
            match expect {
                Ok(expect) => assert_eq!((written.is_ok(), after.as_str()), (true, expect)),
                Err(part) => {
                    assert!(written.unwrap_err().to_string().contains(part), "{before}");
                    assert_eq!(after, before, "nothing of another's is touched");
                }
            }
        };
        check("", Ok("{new}\n"));
        check("{a}\n", Ok("{a}\n{new}\n"));
        check("{a}\n{b", Ok("{a}\n{new}\n"));
        check("{a", Ok("{new}\n"));
        check("root:x:0", Err("move it away"));
        check("{a}\nx", Err("move it away"));
    }

    #[test]
    fn a_file_that_was_moved_is_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("alerts");
        let moved = directory.path().join("alerts.1");
        let mut sink = Sink::new(&path);
        sink.write(b"{1}\n").unwrap();
        sink.write(b"{2}\n").unwrap();
        fs::rename(&path, &moved).unwrap();
        sink.write(b"{3}\n").unwrap();
        fs::remove_file(&path).unwrap();
        sink.write(b"{4}\n").unwrap();
        assert_eq!(fs::read_to_string(&moved).unwrap(), "{1}\n{2}\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "{4}\n");
        let mode = fs::metadata(&path).unwrap().mode() & 0o777;
        assert_eq!(mode, 0o600);
    }

    #[test]
    fn what_cannot_be_written_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [&pipe, directory.path(), &directory.path().join("none/x")] {
            let written = Sink::new(path).write(b"{}\n");
            assert!(written.is_err(), "{}", path.display());
        }
    }
}
