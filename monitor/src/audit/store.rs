//! The records on disk: files of lines, the oldest of which go, and the head.
//!
//! A record is synced before the head is, so that after a kill the files are at most one record ahead
//! of it. Cutting the files shorter than the head says leaves a trace, as long as the head is left
//! alone.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use super::{
    Entry, Record,
    chain::{Check, Head, Link, Report},
};
use crate::digest::Sha256;

/// Bytes of a file after which the next record begins another one.
pub(super) const FILE_BYTES: u64 = 1 << 20;

/// Files kept: some 64 MiB, 150,000 records. Beyond, the oldest go.
const FILES_MAX: usize = 64;

/// Longest line that is taken for a record; those that are written have less than 20 KiB.
const LINE_BYTES_MAX: u64 = 32 << 10;

/// Bytes of records that are read at once.
const PAGE_BYTES_MAX: usize = 1 << 20;

const HEAD: &str = "head";
const EXTENSION: &str = "jsonl";

/// The open files.
#[derive(Debug)]
pub(super) struct Store {
    directory: PathBuf,
    file_bytes: u64,
    head: Head,
    head_file: File,
    /// By their first record; the last is written on.
    files: Vec<u64>,
    end: Option<End>,
}

/// The file that is written on.
#[derive(Debug)]
struct End {
    file: File,
    /// Of whole records; what is there beyond is cut off before the next.
    bytes: u64,
}

impl Store {
    /// Opens what is below `directory` or makes it. What is wrong with it is told, one sentence each;
    /// it is left as it is, but for the torn end of a last record, which is cut off.
    pub(super) fn open(directory: &Path, file_bytes: u64) -> io::Result<(Self, Vec<String>)> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
        let mut told = Vec::new();
        let mut files = list(directory)?;
        let last = last_line(directory, &mut files, &mut told)?;
        let path = directory.join(HEAD);
        let found = match fs::metadata(&path) {
            Ok(found) if found.len() < 1024 => Some(fs::read_to_string(&path).unwrap_or_default()),
            Ok(_) => Some(String::new()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let head_file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)?;
        let head = found.as_deref().and_then(Head::decode);
        if head.is_none() && (last.is_some() || found.is_some()) {
            told.push("the head is missing or damaged; if records were removed at the end, that cannot be told".to_owned());
        }
        let head = resume(head, last, files.first().copied(), &mut told);
        let end = match files.last() {
            Some(&first) => {
                let path = path_of(directory, first);
                let bytes = fs::metadata(&path)?.len();
                let file = OpenOptions::new().append(true).open(&path)?;
                Some(End { file, bytes })
            }
            None => None,
        };
        let mut store = Self {
            directory: directory.to_owned(),
            file_bytes,
            head,
            head_file,
            files,
            end,
        };
        store.write_head(head)?;
        store.head_file.set_len(head.encode().len() as u64)?;
        File::open(directory)?.sync_all()?;
        Ok((store, told))
    }

    pub(super) fn head(&self) -> Head {
        self.head
    }

    /// Writes a record; it is on disk when this returns, and not there at all if it fails.
    pub(super) fn append(&mut self, time: String, entry: Entry) -> io::Result<()> {
        let record = Record {
            sequence: self.head.last.sequence.saturating_add(1),
            previous: self.head.last.hash.to_string(),
            time,
            entry,
        };
        let mut line = serde_json::to_vec(&record)?;
        let last = Link {
            sequence: record.sequence,
            hash: Sha256::of(&line),
        };
        line.push(b'\n');
        if self
            .end
            .as_ref()
            .is_none_or(|end| end.bytes >= self.file_bytes)
        {
            self.begin_file(record.sequence)?;
        }
        let Some(end) = &mut self.end else {
            return Err(io::Error::other("no file was begun"));
        };
        let before = end.bytes;
        let written = end.write(&line).and_then(|()| {
            let head = Head { last, ..self.head };
            self.write_head(head)
        });
        if written.is_err()
            && let Some(end) = &mut self.end
        {
            end.bytes = before;
            // Tried again before the next record, if the disk does not even take this.
            let _ = end.file.set_len(before);
        }
        written
    }

    fn begin_file(&mut self, first: u64) -> io::Result<()> {
        let path = path_of(&self.directory, first);
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)?;
        File::open(&self.directory)?.sync_all()?;
        self.end = Some(End { file, bytes: 0 });
        if self.files.last() != Some(&first) {
            self.files.push(first);
        }
        if self.files.len() > FILES_MAX
            && let [oldest, next, ..] = self.files[..]
        {
            // The head first: a file that is missing by it was not removed by this.
            self.write_head(Head {
                first: next,
                ..self.head
            })?;
            fs::remove_file(path_of(&self.directory, oldest))?;
            self.files.remove(0);
        }
        Ok(())
    }

    fn write_head(&mut self, head: Head) -> io::Result<()> {
        // In place, within what a disk writes at once.
        self.head_file.write_all_at(head.encode().as_bytes(), 0)?;
        self.head_file.sync_data()?;
        self.head = head;
        Ok(())
    }

    /// At most `count` records after a sequence, in the order of the files. Lines that are no record
    /// are left out: [`Self::check`] tells of them.
    pub(super) fn page(&self, after: u64, count: usize) -> io::Result<Vec<Record>> {
        let begin = self
            .files
            .partition_point(|first| *first <= after.saturating_add(1));
        let mut page = Vec::new();
        let mut bytes = 0;
        for first in self.files.iter().skip(begin.saturating_sub(1)) {
            let mut lines = Lines::open(&path_of(&self.directory, *first))?;
            while let Some(line) = lines.next()? {
                let Ok(record) = serde_json::from_slice::<Record>(line) else {
                    continue;
                };
                if record.sequence <= after {
                    continue;
                }
                bytes += line.len();
                page.push(record);
                if page.len() >= count || bytes >= PAGE_BYTES_MAX {
                    return Ok(page);
                }
            }
        }
        Ok(page)
    }

    /// Looks at every record. `noted` is a link that somebody wrote down elsewhere.
    pub(super) fn check(&self, noted: Option<Link>) -> io::Result<Report> {
        let mut check = Check::new(self.head, noted);
        // As they are now, whatever this daemon knows of. One before the first has expired, and could
        // not be removed.
        let mut files = list(&self.directory)?;
        files.retain(|first| *first >= self.head.first);
        for first in files {
            let mut lines = Lines::open(&path_of(&self.directory, first))?;
            while let Some(line) = lines.next()? {
                check.line(line);
            }
        }
        Ok(check.finish())
    }
}

impl End {
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.file.metadata()?.len() != self.bytes {
            self.file.set_len(self.bytes)?;
        }
        self.file.write_all(line)?;
        self.file.sync_data()?;
        self.bytes += line.len() as u64;
        Ok(())
    }
}

/// What a daemon goes on from. A chain that is broken is gone on with so that it stays visible.
fn resume(
    head: Option<Head>,
    last: Option<Link>,
    first: Option<u64>,
    told: &mut Vec<String>,
) -> Head {
    let Some(head) = head else {
        return Head {
            first: first.unwrap_or(1),
            last: last.unwrap_or(Head::EMPTY.last),
        };
    };
    let noted = head.last;
    match last {
        None if noted.sequence == 0 => head,
        Some(last) if last == noted => head,
        // Killed between the two.
        Some(last) if last.sequence == noted.sequence.saturating_add(1) => Head { last, ..head },
        _ => {
            let found = last.map_or(0, |last| last.sequence);
            told.push(format!(
                "the head says {}, and the last record is {found} or another: records were removed or changed",
                noted.sequence
            ));
            let sequence = noted.sequence.max(found);
            Head {
                last: Link { sequence, ..noted },
                ..head
            }
        }
    }
}

fn path_of(directory: &Path, first: u64) -> PathBuf {
    directory.join(format!("{first:020}.{EXTENSION}"))
}

/// The files by their first record.
fn list(directory: &Path) -> io::Result<Vec<u64>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|found| found == EXTENSION) {
            let stem = path.file_stem().and_then(|stem| stem.to_str());
            files.extend(stem.and_then(|stem| stem.parse::<u64>().ok()));
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// The last whole record. What is torn behind it is cut off and told; files without any record are
/// removed.
fn last_line(
    directory: &Path,
    files: &mut Vec<u64>,
    told: &mut Vec<String>,
) -> io::Result<Option<Link>> {
    while let Some(&first) = files.last() {
        let path = path_of(directory, first);
        let mut file = OpenOptions::new().read(true).write(true).open(&path)?;
        let length = file.metadata()?.len();
        let from = length.saturating_sub(2 * LINE_BYTES_MAX);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        (&file).take(2 * LINE_BYTES_MAX).read_to_end(&mut bytes)?;
        let whole = bytes
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        let torn = bytes.len() - whole;
        if torn > 0 {
            told.push(format!(
                "{torn} bytes of a record that was not written to its end were cut off"
            ));
            file.set_len(from + whole as u64)?;
            file.sync_data()?;
        }
        let line = bytes.get(..whole).unwrap_or_default();
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.rsplit(|byte| *byte == b'\n').next().unwrap_or(line);
        if !line.is_empty() {
            let record = serde_json::from_slice::<Record>(line);
            return Ok(Some(Link {
                // Of one that cannot be read nothing is known, so it is not the head's.
                sequence: record.map_or(0, |record| record.sequence),
                hash: Sha256::of(line),
            }));
        }
        fs::remove_file(&path)?;
        files.pop();
    }
    Ok(None)
}

/// The lines of a file, each of bounded length.
struct Lines {
    file: BufReader<File>,
    line: Vec<u8>,
}

impl Lines {
    fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: BufReader::new(File::open(path)?),
            line: Vec::new(),
        })
    }

    fn next(&mut self) -> io::Result<Option<&[u8]>> {
        self.line.clear();
        let mut bounded = (&mut self.file).take(LINE_BYTES_MAX);
        bounded.read_until(b'\n', &mut self.line)?;
        let line = self.line.strip_suffix(b"\n").unwrap_or(&self.line);
        Ok((!self.line.is_empty()).then_some(line))
    }
}

#[cfg(test)]
mod tests;
