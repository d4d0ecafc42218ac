//! The alerts of this node, for any number of readers: the last in memory, all that is kept in the
//! [journal](super::journal).
//!
//! A reader holds a cursor, not a place in a queue: it takes the lock only to copy one alert, reads
//! older ones from disk by itself, and sleeps on the newest cursor. So a slow reader costs nobody
//! anything; one that falls behind what is kept is told what it missed.

mod reader;
mod shared;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex},
};

use jiff::Timestamp;
use monitor_api::v1::{Alert, Severity};

use super::consumers::Consumers;
use super::journal::{Recovered, Retention, Writer, boot_id, recover};
pub use reader::{AlertReader, Next};
use shared::Kept;
pub(super) use shared::{Failure, Shared};

/// Alerts kept in memory; how many can wait for a full disk to have room again. Beyond, the oldest
/// go: they are on disk, or lost and counted.
pub const ALERTS_MAX: usize = 10_000;

/// Bytes of alerts kept in memory, by their encoded length; a typical alert has 1.5 KiB, one can
/// have 20 KiB. The same happens beyond.
pub const ALERTS_BYTES_MAX: usize = 64 << 20;

/// The alerts of this node. Clones are the same log.
#[derive(Clone, Debug)]
pub struct AlertLog {
    shared: Arc<Shared>,
    writer: Arc<Mutex<Option<Writer>>>,
    consumers: Arc<Consumers>,
}

/// Where a reader starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// After this cursor: the last that the reader has; 0 is before the first.
    After(u64),
    /// At the oldest alert kept.
    Oldest,
    /// At the next alert to come.
    Now,
    /// At this many alerts before the next, or the oldest kept.
    Last(u64),
}

/// Which alerts a reader is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Delivery {
    /// Once they are written, which survives the daemon; on a full disk, also from memory.
    #[default]
    Written,
    /// Once they are synced, which survives the node.
    Durable,
}

/// The journal has not come to the cursor that a reader says it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cursor {cursor} is ahead of the journal, whose newest is {newest}")]
pub struct AheadOfJournal {
    /// What was asked for.
    pub cursor: u64,
    /// What there is.
    pub newest: u64,
}

/// What the log holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The oldest cursor kept; 0 if there is none.
    pub oldest: u64,
    /// The newest cursor; 0 if there is none.
    pub newest: u64,
    /// The newest cursor that survives the node; 0 if there is none.
    pub durable: u64,
    /// Alerts and revisions of them appended by this daemon, by kind and severity.
    pub by_kind: BTreeMap<(String, Severity), u64>,
    /// Alerts that readers were told had expired, summed over readers.
    pub expired_unread: u64,
    /// Bytes of the journal's segments.
    pub bytes: u64,
    /// Since when alerts are kept in memory alone, and why; `None` while the journal is written.
    pub memory_only: Option<(Timestamp, String)>,
    /// Alerts that fell out of memory before they could be written.
    pub lost: u64,
}

impl AlertLog {
    /// An empty log in memory alone; its journal is named by a new ULID.
    pub fn new() -> Self {
        Self::bounded(ALERTS_MAX, ALERTS_BYTES_MAX)
    }

    pub(crate) fn bounded(alerts_max: usize, bytes_max: usize) -> Self {
        let shared = Shared::new(ulid::Ulid::new(), alerts_max, bytes_max, Kept::in_memory());
        Self {
            shared: Arc::new(shared),
            writer: Arc::default(),
            consumers: Arc::new(Consumers::in_memory()),
        }
    }

    /// The log whose journal lies in `directory`, which is made if it is not there. Waits for the
    /// disk. It goes on where it ended; in a directory that cannot be used it is kept in memory, and
    /// [`Summary::memory_only`] says why.
    ///
    /// # Errors
    ///
    /// The system's, when it has no more threads.
    pub fn open(directory: &Path, retention: Retention) -> std::io::Result<Self> {
        Self::open_bounded(
            directory,
            retention,
            boot_id(),
            ALERTS_MAX,
            ALERTS_BYTES_MAX,
        )
    }

    pub(super) fn open_bounded(
        directory: &Path,
        retention: Retention,
        boot: [u8; 16],
        alerts_max: usize,
        bytes_max: usize,
    ) -> std::io::Result<Self> {
        let mut recovered = recover(directory, boot, alerts_max, bytes_max);
        let kept = Kept::recovered(&mut recovered);
        let Recovered { journal, .. } = recovered;
        let shared = Arc::new(Shared::new(journal, alerts_max, bytes_max, kept));
        let writer = Writer::start(&shared, directory.to_owned(), retention, boot, recovered)?;
        Ok(Self {
            shared,
            writer: Arc::new(Mutex::new(Some(writer))),
            consumers: Arc::new(Consumers::open(directory.join("consumers.json"))),
        })
    }

    /// The journal that cursors count in.
    pub fn journal(&self) -> &str {
        &self.shared.journal_text
    }

    /// Keeps `alert` under the next cursor, which is returned; readers get it once it is written.
    /// Journal and cursor of `alert` are set by this. Waits for no disk.
    pub fn append(&self, mut alert: Alert) -> u64 {
        let mut kept = self.shared.kept();
        let cursor = kept.newest + 1;
        alert.journal.clone_from(&self.shared.journal_text);
        alert.cursor = cursor;
        kept.push(alert, self.shared.alerts_max, self.shared.bytes_max);
        if kept.is_in_memory() {
            // Under the lock, so that the cursors that readers see only grow.
            self.shared.publish(&kept);
        } else {
            self.shared.wake_writer();
        }
        cursor
    }

    /// A reader of its own.
    ///
    /// # Errors
    ///
    /// [`AheadOfJournal`] if `from` names a cursor that was never given out.
    pub fn subscribe(
        &self,
        from: Start,
        delivery: Delivery,
    ) -> Result<AlertReader, AheadOfJournal> {
        let upto = self.shared.upto(delivery);
        let kept = self.shared.kept();
        let next = match from {
            Start::After(cursor) if cursor > kept.newest => {
                return Err(AheadOfJournal {
                    cursor,
                    newest: kept.newest,
                });
            }
            Start::After(cursor) => cursor + 1,
            Start::Oldest => kept.oldest(),
            Start::Now => kept.newest + 1,
            Start::Last(count) => kept.last(count),
        };
        drop(kept);
        Ok(AlertReader::new(Arc::clone(&self.shared), upto, next))
    }

    /// A reader that starts at the first alert that was judged at `time` or later; where the clock
    /// was set back, after the last that was judged before.
    pub fn subscribe_at(&self, time: prost_types::Timestamp, delivery: Delivery) -> AlertReader {
        let next = self.shared.kept().before(time);
        AlertReader::new(Arc::clone(&self.shared), self.shared.upto(delivery), next)
            .not_before(time)
    }

    /// The named consumers.
    pub fn consumers(&self) -> &Arc<Consumers> {
        &self.consumers
    }

    /// The newest cursor that readers can have; 0 if there is none.
    pub fn newest(&self) -> u64 {
        *self.shared.published.borrow()
    }

    /// Waits until readers can have what is at `cursor` and before.
    pub async fn written(&self, cursor: u64) {
        let mut published = self.shared.published.subscribe();
        // An error means that the log is gone.
        let _ = published.wait_for(|newest| *newest >= cursor).await;
    }

    /// The newest cursor that survives the node; 0 if there is none.
    pub fn durable(&self) -> u64 {
        *self.shared.durable.borrow()
    }

    /// Changes with [`AlertLog::durable`].
    pub fn durable_cursor(&self) -> tokio::sync::watch::Receiver<u64> {
        self.shared.durable.subscribe()
    }

    /// Changes when the journal ceases to be written, and when it is written again.
    pub fn memory_only(&self) -> tokio::sync::watch::Receiver<bool> {
        self.shared.memory_only.subscribe()
    }

    /// What the log holds now.
    pub fn summary(&self) -> Summary {
        let kept = self.shared.kept();
        Summary {
            oldest: if kept.is_empty() { 0 } else { kept.oldest() },
            newest: self.newest(),
            durable: self.durable(),
            by_kind: kept.by_kind.clone(),
            expired_unread: kept.expired_unread,
            bytes: kept.segments.iter().map(|facts| facts.bytes).sum(),
            memory_only: kept
                .failure
                .as_ref()
                .map(|failure| (failure.since, failure.error.clone())),
            lost: kept.lost,
        }
    }

    /// The cursor of the newest alert, whether or not it is written.
    #[cfg(test)]
    pub(super) fn shared_newest(&self) -> u64 {
        self.recent().last().map_or(0, |alert| alert.cursor)
    }

    /// The alerts in memory, in order.
    pub fn recent(&self) -> Vec<Arc<Alert>> {
        self.shared.kept().recent()
    }

    /// Writes and syncs what there is, and ends the writing; readers go on. Waits for the disk.
    pub fn close(&self) {
        self.shared.kept().is_stopping = true;
        self.shared.wake_all();
        let writer = self.writer.lock().ok().and_then(|mut writer| writer.take());
        if let Some(writer) = writer {
            writer.join();
        }
    }
}

impl Default for AlertLog {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;
