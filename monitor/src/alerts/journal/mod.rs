//! The journal: alerts on disk, below the state directory, as a log of segments.
//!
//! A log of our own rather than a database, after weighing `redb` 4.6 and `fjall` 3.1 with 50,000
//! alerts of 1.5 KiB (75 MB), 100 in each synced group, on ext4:
//!
//! | | seconds | written | on disk | 60 copies with a bit flipped or the end cut |
//! | --- | --- | --- | --- | --- |
//! | redb | 1.8 | 120 MB | 143 MB, and still after half was deleted | 31 refused to open, 3 lacked values |
//! | fjall | 1.7 | 133 MB | 188 MB, 77 MB after it was opened again (0.6 s) | 49 refused to open |
//! | segments | 1.6 | 78 MB | 76 MB | none refused, by the tests of this module |
//!
//! Alerts are only ever appended, read forward and expired from the oldest on, so what a database
//! adds (updates, random reads, transactions) is not needed, while what is needed most, to go on
//! from any damage and on a full disk and to say what is missing, they do not have: both are
//! unusable after a failed write until they are opened again.
//!
//! What holds:
//!
//! - Who gives an alert to the log waits for no disk. A thread writes what is new, and only then
//!   do readers see it; another one syncs what is written, [`SYNC_INTERVAL`] apart.
//! - A cursor is never given twice. `head` holds how far cursors may have been given out; after a
//!   stop that was not clean, in which some may have been given that are not on disk any more, the
//!   journal goes on above that, and readers are told of the hole.
//! - A disk that is full or fails does not stop alerts: they are given out from memory, within the
//!   log's bound, and written when there is room again. What fell out of the bound until then is
//!   lost, counted and told.
//! - Opening never fails. What was torn is cut off, what rotted is left out, and readers are told
//!   which cursors that took; a directory that cannot be used at all leaves the log in memory.

mod directory;
mod head;
mod record;
mod writer;

use std::{path::PathBuf, time::Duration};

use jiff::Timestamp;
use ulid::Ulid;

pub(super) use directory::{Chunk, Facts, Recovered, read_chunk, recover};
pub(super) use record::Record;
pub(super) use writer::Writer;
pub use writer::boot_id;

/// Longest wait of something written before its sync begins. With the sync itself it is on disk
/// within 50 ms, if the disk syncs within 30 ms.
pub const SYNC_INTERVAL: Duration = Duration::from_millis(20);

/// Cursors that are said to be taken ahead of their use: one write to `head` for so many alerts, and
/// the size of the hole that a crash of the node leaves.
pub(super) const RESERVED: u64 = 65_536;

/// Most bytes of a segment. What expires is a whole segment.
const SEGMENT_BYTES_MAX: u64 = 8 << 20;

/// Segments of the least size allowed for all of them.
const SEGMENTS_PER_JOURNAL: u64 = 16;

/// Least `bytes_max` of [`Retention`].
pub const JOURNAL_BYTES_MIN: u64 = 1 << 20;

/// How long alerts are kept on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Most bytes of all segments; the oldest are removed beyond. At least
    /// [`JOURNAL_BYTES_MIN`].
    pub bytes_max: u64,
    /// Segments whose newest alert is older are removed.
    pub age_max: Duration,
}

impl Retention {
    fn segment_bytes(&self) -> u64 {
        (self.bytes_max / SEGMENTS_PER_JOURNAL).min(SEGMENT_BYTES_MAX)
    }
}

/// Why cursors are missing that did not expire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GapReason {
    /// Never written: the node stopped, or the disk was full for too long. Where the node stopped,
    /// there may have been no such alerts.
    NotWritten,
    /// Written, and not readable any more.
    Damaged,
}

impl GapReason {
    /// The word in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotWritten => "not_written",
            Self::Damaged => "damaged",
        }
    }

    fn code(self) -> u8 {
        match self {
            Self::NotWritten => 1,
            Self::Damaged => 2,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::NotWritten),
            2 => Some(Self::Damaged),
            _ => None,
        }
    }
}

/// Where a segment lies.
fn segment_path(directory: &std::path::Path, journal: Ulid, first: u64) -> PathBuf {
    directory.join(format!("{journal}-{first:020}.segment"))
}

fn unix_ms_now() -> i64 {
    Timestamp::now().as_millisecond()
}

#[cfg(test)]
mod tests;
