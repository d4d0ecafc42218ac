//! What is found in a journal's directory when the daemon starts, and what is made of it.

use std::{
    collections::VecDeque,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, BufReader},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use monitor_api::v1::Alert;
use prost::Message as _;
use tracing::{info, warn};
use ulid::Ulid;

use super::{
    GapReason, RESERVED,
    head::{Head, HeadFile},
    record::{Header, Record, Segment},
    segment_path,
};

/// Bytes of a segment that are read at once for a reader, beside one alert.
const CHUNK_BYTES_MAX: u64 = 256 << 10;

/// What is known of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::alerts) struct Facts {
    pub(in crate::alerts) path: PathBuf,
    /// The least cursor that can be in it.
    pub(in crate::alerts) first: u64,
    /// The greatest cursor that was written to it; less than `first` if there is none.
    pub(in crate::alerts) last: u64,
    pub(in crate::alerts) bytes: u64,
    pub(in crate::alerts) created_unix_ms: i64,
    /// Why cursors before `first` are missing, if they are.
    pub(in crate::alerts) gap: Option<GapReason>,
}

/// A segment of this daemon's journal that can be written on.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) file: Arc<File>,
    pub(super) header: Header,
    pub(super) bytes: u64,
}

/// What a daemon goes on from.
#[derive(Debug)]
pub(in crate::alerts) struct Recovered {
    pub(in crate::alerts) journal: Ulid,
    /// In order of their cursors.
    pub(in crate::alerts) segments: VecDeque<Facts>,
    /// Files of other journals or without a header, oldest first; retention removes them.
    pub(super) others: VecDeque<(PathBuf, u64)>,
    /// The last alerts, in order.
    pub(in crate::alerts) tail: VecDeque<Arc<Alert>>,
    /// The cursor before the first to be given out now.
    pub(in crate::alerts) newest: u64,
    /// Why the cursors between the last segment and `newest` are missing, if some are.
    pub(in crate::alerts) gap: Option<GapReason>,
    pub(super) active: Option<Active>,
    /// The head to be written on, and how it stands; or why nothing can be written.
    pub(super) head: io::Result<(HeadFile, Head)>,
}

/// Reads what is below `directory`, cuts off what is torn, and decides which cursors come next.
/// `tail_max` alerts with at most `tail_bytes_max` bytes are read into memory.
pub(in crate::alerts) fn recover(
    directory: &Path,
    boot: [u8; 16],
    tail_max: usize,
    tail_bytes_max: usize,
) -> Recovered {
    let made = DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory);
    let (file, head) = match made.and_then(|()| HeadFile::open(&directory.join("head"))) {
        Ok((file, head)) => (Ok(file), head),
        Err(error) => (Err(error), None),
    };
    let journal = head.map_or_else(Ulid::new, |head| head.journal);
    let Listed {
        mut segments,
        others,
        is_end_lost,
    } = list(directory, journal);
    if head.is_none() {
        info!(%journal, others = others.len(), "a new journal begins; alerts of an earlier one, if any, cannot be asked for");
    }
    let mut last = Last::read(&mut segments);
    if let Some(last) = &mut last {
        last.is_cut |= is_end_lost;
    }
    let (newest, gap) = head.map_or((0, None), |head| resume(&head, last.as_ref(), boot));
    let active = last.and_then(|last| last.go_on(&mut segments, gap));
    let tail = read_tail(&segments, tail_max, tail_bytes_max);
    let (file, journal) = match file {
        // Without a head that can be written, a later start would give the same cursors again.
        Err(error) => (Err(error), Ulid::new()),
        Ok(file) => (Ok(file), journal),
    };
    let head = file.and_then(|mut file| {
        let head = Head {
            journal,
            reserved: newest + RESERVED,
            newest,
            boot,
            is_clean: false,
            is_memory_only: false,
        };
        file.write(&head)?;
        Ok((file, head))
    });
    if let Err(error) = head {
        return Recovered {
            journal: Ulid::new(),
            segments: VecDeque::new(),
            others: VecDeque::new(),
            tail: VecDeque::new(),
            newest: 0,
            gap: None,
            active: None,
            head: Err(error),
        };
    }
    Recovered {
        journal,
        segments,
        others,
        tail,
        newest,
        gap,
        active,
        head,
    }
}

/// The newest cursor that may have been given out, and why those that are not on disk are missing.
fn resume(head: &Head, last: Option<&Last>, boot: [u8; 16]) -> (u64, Option<GapReason>) {
    let written = last.map_or(0, |last| last.cursor);
    let newest = head.reserved.max(written);
    let is_same_boot = head.boot == boot;
    let is_short = written < head.newest && (head.is_clean || is_same_boot);
    // A kill in the middle of a write leaves a part of it. Readers are given nothing before it is
    // noted as written, so they have nothing of that.
    let is_killed = is_same_boot && !head.is_clean && !head.is_memory_only;
    if is_killed && !is_short && last.is_some() {
        return (written, None);
    }
    // A segment is there from the first moment on, and the newest is never removed.
    if is_short || last.is_none_or(|last| last.is_cut) {
        warn!(
            written,
            "the journal's end is damaged; what came after cursor {written} is lost, and told so"
        );
        return (newest, Some(GapReason::Damaged));
    }
    if head.is_clean {
        return (written, None);
    }
    warn!(
        written,
        "the daemon or the node stopped before its alerts were on disk; what came after cursor {written}, if anything, is lost, and told so"
    );
    (newest, Some(GapReason::NotWritten))
}

/// The segments of `journal` by cursor, and all other files by age.
struct Listed {
    segments: VecDeque<Facts>,
    others: VecDeque<(PathBuf, u64)>,
    /// A file of the journal without a header is its last.
    is_end_lost: bool,
}

fn list(directory: &Path, journal: Ulid) -> Listed {
    let mut names: Vec<PathBuf> = match fs::read_dir(directory) {
        Ok(entries) => entries
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| {
                path.extension()
                    .is_some_and(|extension| extension == "segment")
            })
            .collect(),
        Err(_) => Vec::new(),
    };
    // Journals are named by ULIDs, which sort by time.
    names.sort_unstable();
    let mut segments: VecDeque<Facts> = VecDeque::new();
    let mut others = VecDeque::new();
    let mut is_end_lost = false;
    let of_journal = journal.to_string();
    for path in names {
        let bytes = fs::metadata(&path).map_or(0, |found| found.len());
        let header = File::open(&path)
            .and_then(Segment::open)
            .ok()
            .flatten()
            .map(|segment| *segment.header())
            .filter(|header| {
                header.journal == journal
                    && header.first > 0
                    && path == segment_path(directory, journal, header.first)
            });
        let Some(header) = header else {
            let name = path.file_name().and_then(|name| name.to_str());
            // One without a byte was made by a process that died at that moment.
            is_end_lost |= bytes > 0 && name.is_some_and(|name| name.starts_with(&of_journal));
            others.push_back((path, bytes));
            continue;
        };
        is_end_lost = false;
        // Written anew in the next segment after a failure, from there on.
        if let Some(before) = segments.back_mut() {
            before.last = header.first - 1;
        }
        segments.push_back(Facts {
            path,
            first: header.first,
            last: header.first - 1,
            bytes,
            created_unix_ms: header.created_unix_ms,
            gap: header.gap,
        });
    }
    for index in 1..segments.len() {
        let follows_gap = segments.get(index).is_some_and(|next| next.gap.is_some());
        if let Some(facts) = segments.get_mut(index - 1)
            && follows_gap
            && let Ok(last) = last_cursor(facts)
        {
            facts.last = facts.last.min(last.unwrap_or(facts.first - 1));
        }
    }
    Listed {
        segments,
        others,
        is_end_lost,
    }
}

fn last_cursor(facts: &Facts) -> io::Result<Option<u64>> {
    let mut last = None;
    if let Some(mut segment) = Segment::open(BufReader::new(File::open(&facts.path)?))? {
        while let Some(record) = segment.next_from(0)? {
            last = Some(record.cursor);
        }
    }
    Ok(last)
}

/// The last segment, read to its end.
struct Last {
    header: Header,
    cursor: u64,
    valid_bytes: u64,
    /// Bytes follow that are no record.
    is_cut: bool,
}

impl Last {
    fn read(segments: &mut VecDeque<Facts>) -> Option<Self> {
        let facts = segments.back_mut()?;
        let read = || -> io::Result<Option<Self>> {
            let file = BufReader::new(File::open(&facts.path)?);
            let Some(mut segment) = Segment::open(file)? else {
                return Ok(None);
            };
            let mut cursor = facts.first - 1;
            while let Some(record) = segment.next_from(0)? {
                cursor = record.cursor;
            }
            Ok(Some(Self {
                header: *segment.header(),
                cursor,
                valid_bytes: segment.offset(),
                is_cut: segment.offset() < facts.bytes,
            }))
        };
        let last = read().ok().flatten()?;
        facts.last = last.cursor;
        Some(last)
    }

    /// Cuts off what is torn; the segment to write on, if its next cursor is the next to come.
    fn go_on(self, segments: &mut VecDeque<Facts>, gap: Option<GapReason>) -> Option<Active> {
        let facts = segments.back_mut()?;
        let open = || -> io::Result<File> {
            let file = OpenOptions::new().append(true).open(&facts.path)?;
            if self.is_cut {
                file.set_len(self.valid_bytes)?;
            }
            // What a killed process left in the cache is counted as durable from here on.
            file.sync_data()?;
            Ok(file)
        };
        match open() {
            Ok(file) => {
                facts.bytes = self.valid_bytes;
                gap.is_none().then(|| Active {
                    file: Arc::new(file),
                    header: self.header,
                    bytes: self.valid_bytes,
                })
            }
            Err(error) => {
                warn!(%error, segment = %facts.path.display(), "cannot go on in the journal's last segment; beginning another");
                None
            }
        }
    }
}

fn read_tail(
    segments: &VecDeque<Facts>,
    tail_max: usize,
    tail_bytes_max: usize,
) -> VecDeque<Arc<Alert>> {
    let mut tail: VecDeque<Arc<Alert>> = VecDeque::new();
    let mut bytes = 0;
    for facts in segments.iter().rev() {
        if tail.len() >= tail_max || bytes >= tail_bytes_max {
            break;
        }
        // What cannot be read is told to who asks for it.
        let earlier = read_all(facts).unwrap_or_default();
        bytes += earlier
            .iter()
            .map(prost::Message::encoded_len)
            .sum::<usize>();
        for alert in earlier.into_iter().rev() {
            tail.push_front(Arc::new(alert));
        }
    }
    while tail.len() > tail_max || bytes > tail_bytes_max {
        let Some(alert) = tail.pop_front() else { break };
        bytes -= alert.encoded_len();
    }
    tail
}

fn read_all(facts: &Facts) -> io::Result<Vec<Alert>> {
    let mut alerts = Vec::new();
    if let Some(mut segment) = Segment::open(BufReader::new(File::open(&facts.path)?))? {
        while let Some(record) = segment.next_from(facts.first)? {
            if record.cursor > facts.last {
                break;
            }
            alerts.extend(record.alert);
        }
    }
    Ok(alerts)
}

/// Some of a segment.
#[derive(Debug)]
pub(in crate::alerts) struct Chunk {
    pub(in crate::alerts) records: VecDeque<Record>,
    /// Where to go on.
    pub(in crate::alerts) offset: u64,
}

/// Reads records with cursors `from` to `to`, beginning at `offset` if what is there comes not after
/// `from`. Waits for the disk.
pub(in crate::alerts) fn read_chunk(
    facts: &Facts,
    offset: Option<u64>,
    from: u64,
    to: u64,
) -> io::Result<Chunk> {
    let mut chunk = Chunk {
        records: VecDeque::new(),
        offset: 0,
    };
    let Some(mut segment) = Segment::open(BufReader::new(File::open(&facts.path)?))? else {
        return Ok(chunk);
    };
    if let Some(offset) = offset {
        segment.seek(offset)?;
    }
    let begin = segment.offset();
    chunk.offset = begin;
    while segment.offset() < begin + CHUNK_BYTES_MAX || chunk.records.is_empty() {
        let Some(record) = segment.next_from(from)? else {
            break;
        };
        if record.cursor > to {
            break;
        }
        chunk.offset = segment.offset();
        let is_last = record.cursor == to;
        chunk.records.push_back(record);
        if is_last {
            break;
        }
    }
    Ok(chunk)
}
