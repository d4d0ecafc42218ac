//! What the log's owner, its readers and the journal's threads share.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    io,
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use monitor_api::v1::{Alert, Severity};
use prost::Message as _;
use tokio::sync::watch;
use ulid::Ulid;

use super::Delivery;
use crate::alerts::journal::{Facts, GapReason, Recovered};

#[derive(Debug)]
pub(in crate::alerts) struct Shared {
    pub(in crate::alerts) journal: Ulid,
    pub(super) journal_text: String,
    pub(super) alerts_max: usize,
    pub(super) bytes_max: usize,
    kept: Mutex<Kept>,
    /// Woken when there is something to write.
    work: Condvar,
    /// Woken when there is something to sync.
    written: Condvar,
    /// The newest alert that readers may have.
    pub(super) published: watch::Sender<u64>,
    /// The newest alert that is synced.
    pub(super) durable: watch::Sender<u64>,
    pub(super) memory_only: watch::Sender<bool>,
}

/// Why the journal is not written.
#[derive(Debug)]
pub(in crate::alerts) struct Failure {
    pub(in crate::alerts) since: Timestamp,
    pub(in crate::alerts) tried: Instant,
    pub(in crate::alerts) error: String,
}

/// The alerts in memory, and what is known of those on disk.
#[derive(Debug, Default)]
pub(in crate::alerts) struct Kept {
    /// In order; the last stays, so that the newest cursor is always known.
    alerts: VecDeque<Arc<Alert>>,
    alerts_bytes: usize,
    /// The last cursor that is taken. Ahead of all alerts where a stop left a hole.
    pub(in crate::alerts) newest: u64,
    /// Up to here everything that is not lost is in a segment.
    pub(in crate::alerts) written: u64,
    /// Up to here it is synced.
    pub(in crate::alerts) durable: u64,
    pub(in crate::alerts) segments: VecDeque<Facts>,
    /// Why cursors before the next segment will be missing.
    pub(in crate::alerts) gap: Option<GapReason>,
    /// Files with bytes that are not synced.
    pub(in crate::alerts) unsynced: Vec<Arc<File>>,
    pub(in crate::alerts) is_syncing: bool,
    pub(in crate::alerts) sync_error: Option<io::Error>,
    /// Changes when what was written counts as not written.
    pub(in crate::alerts) generation: u64,
    pub(in crate::alerts) failure: Option<Failure>,
    pub(in crate::alerts) is_stopping: bool,
    has_no_disk: bool,
    pub(super) by_kind: BTreeMap<(String, Severity), u64>,
    pub(super) expired_unread: u64,
    pub(in crate::alerts) lost: u64,
}

/// Where an alert is.
#[derive(Debug)]
pub(super) enum Found {
    Memory(Arc<Alert>),
    Disk(Facts),
    Expired {
        before: u64,
    },
    Gap {
        before: u64,
        reason: GapReason,
    },
    /// Nowhere yet.
    Nothing,
}

impl Kept {
    pub(super) fn in_memory() -> Self {
        Self {
            has_no_disk: true,
            ..Self::default()
        }
    }

    pub(super) fn recovered(recovered: &mut Recovered) -> Self {
        let written = recovered.segments.back().map_or(0, |facts| facts.last);
        let alerts = std::mem::take(&mut recovered.tail);
        Self {
            alerts_bytes: alerts.iter().map(|alert| alert.encoded_len()).sum(),
            alerts,
            newest: recovered.newest,
            written,
            durable: written,
            segments: std::mem::take(&mut recovered.segments),
            gap: recovered.gap,
            ..Self::default()
        }
    }

    /// Whether alerts are given out without being written.
    pub(super) fn is_in_memory(&self) -> bool {
        self.has_no_disk || self.failure.is_some()
    }

    pub(super) fn push(&mut self, alert: Alert, alerts_max: usize, bytes_max: usize) {
        let kind = (alert.kind.clone(), alert.severity());
        *self.by_kind.entry(kind).or_default() += 1;
        self.newest = alert.cursor;
        self.alerts_bytes += alert.encoded_len();
        self.alerts.push_back(Arc::new(alert));
        if self.has_no_disk {
            self.written = self.newest;
            self.durable = self.newest;
        }
        // The newest stays, however large it is.
        while self.alerts.len() > 1
            && (self.alerts.len() > alerts_max || self.alerts_bytes > bytes_max)
        {
            if let Some(gone) = self.alerts.pop_front() {
                self.alerts_bytes -= gone.encoded_len();
                self.lost += u64::from(gone.cursor > self.written);
            }
        }
    }

    pub(super) fn recent(&self) -> Vec<Arc<Alert>> {
        self.alerts.iter().cloned().collect()
    }

    /// The first alerts that are in no segment.
    pub(in crate::alerts) fn unwritten(&self, max: usize) -> Vec<Arc<Alert>> {
        let from = self.position(self.written + 1);
        self.alerts.range(from..).take(max).cloned().collect()
    }

    pub(in crate::alerts) fn unsynced(&mut self, file: &Arc<File>) {
        let is_there = self
            .unsynced
            .last()
            .is_some_and(|last| Arc::ptr_eq(last, file));
        if !is_there {
            self.unsynced.push(Arc::clone(file));
        }
    }

    /// Counts what is not synced as not written; the files that then hold nothing.
    pub(in crate::alerts) fn roll_back(&mut self) -> Vec<PathBuf> {
        self.generation += 1;
        self.unsynced.clear();
        self.written = self.durable;
        let mut empty = Vec::new();
        while let Some(facts) = self.segments.pop_back() {
            if facts.first <= self.durable {
                let last = facts.last.min(self.durable);
                self.segments.push_back(Facts { last, ..facts });
                break;
            }
            self.gap = facts.gap.or(self.gap);
            empty.push(facts.path);
        }
        empty
    }

    pub(super) fn is_empty(&self) -> bool {
        self.alerts.is_empty() && self.segments.iter().all(|facts| facts.last < facts.first)
    }

    /// The cursor of the oldest alert that is kept, or of the next to come.
    pub(super) fn oldest(&self) -> u64 {
        let disk = self.segments.iter().find(|facts| facts.last >= facts.first);
        let memory = self.alerts.front().map(|alert| alert.cursor);
        disk.map(|facts| facts.first)
            .into_iter()
            .chain(memory)
            .min()
            .unwrap_or(self.newest + 1)
    }

    /// The cursor of the alert that many before the next, or of the oldest.
    pub(super) fn last(&self, count: u64) -> u64 {
        let in_memory = self.alerts.len() as u64;
        let Some(front) = self.alerts.front() else {
            return self.newest + 1;
        };
        match in_memory.checked_sub(count) {
            Some(index) => usize::try_from(index)
                .ok()
                .and_then(|index| self.alerts.get(index))
                .map_or(self.newest + 1, |alert| alert.cursor),
            None => front
                .cursor
                .saturating_sub(count - in_memory)
                .max(self.oldest()),
        }
    }

    /// A cursor before which all alerts were judged before `time`, and not far from it.
    pub(super) fn before(&self, time: prost_types::Timestamp) -> u64 {
        let judged = |alert: &Alert| {
            let at = alert.observed_time.unwrap_or_default();
            (at.seconds, at.nanos)
        };
        let wanted = (time.seconds, time.nanos);
        match self.alerts.front() {
            Some(oldest) if judged(oldest) < wanted => {
                let index = self.alerts.iter().position(|alert| judged(alert) >= wanted);
                let alert = index.and_then(|index| self.alerts.get(index));
                alert.map_or(self.newest + 1, |alert| alert.cursor)
            }
            _ => {
                let began = |facts: &&Facts| facts.created_unix_ms.div_euclid(1000) < time.seconds;
                let segment = self.segments.iter().rev().find(began);
                segment.map_or_else(|| self.oldest(), |facts| facts.first.max(self.oldest()))
            }
        }
    }

    fn position(&self, cursor: u64) -> usize {
        self.alerts.partition_point(|alert| alert.cursor < cursor)
    }

    /// The alert at `cursor`, or why it is not there; nothing beyond `limit` is looked at.
    pub(super) fn find(&self, cursor: u64, limit: u64) -> Found {
        if cursor > limit {
            return Found::Nothing;
        }
        let next = self.position(cursor);
        let in_memory = self.alerts.get(next);
        if let Some(alert) = in_memory
            && alert.cursor == cursor
        {
            return Found::Memory(Arc::clone(alert));
        }
        let after = self.segments.partition_point(|facts| facts.first <= cursor);
        let holds = after
            .checked_sub(1)
            .and_then(|index| self.segments.get(index));
        if let Some(facts) = holds
            && cursor <= facts.last
        {
            return Found::Disk(facts.clone());
        }
        let next_segment = self.segments.get(after);
        let before = next_segment
            .map(|facts| facts.first)
            .into_iter()
            .chain(in_memory.map(|alert| alert.cursor))
            .min();
        match before {
            None => Found::Nothing,
            Some(before) if before > limit => Found::Nothing,
            Some(before) if holds.is_none() => Found::Expired { before },
            Some(before) => Found::Gap {
                before,
                reason: next_segment
                    .filter(|facts| facts.first == before)
                    .map_or(self.gap, |facts| facts.gap)
                    .unwrap_or(GapReason::NotWritten),
            },
        }
    }
}

impl Shared {
    pub(super) fn new(journal: Ulid, alerts_max: usize, bytes_max: usize, kept: Kept) -> Self {
        let newest = kept.alerts.back().map_or(0, |alert| alert.cursor);
        Self {
            journal,
            journal_text: journal.to_string(),
            alerts_max,
            bytes_max,
            kept: Mutex::new(kept),
            work: Condvar::new(),
            written: Condvar::new(),
            published: watch::Sender::new(newest),
            durable: watch::Sender::new(newest),
            memory_only: watch::Sender::new(false),
        }
    }

    pub(super) fn upto(&self, delivery: Delivery) -> watch::Receiver<u64> {
        match delivery {
            Delivery::Written => self.published.subscribe(),
            Delivery::Durable => self.durable.subscribe(),
        }
    }

    /// Nothing under the lock can panic half-way, so a poisoned lock guards sound data.
    pub(in crate::alerts) fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the readers what there is for them. Their cursors never go back, also when what they
    /// were given has to be written again.
    pub(in crate::alerts) fn publish(&self, kept: &Kept) {
        let raise = |sender: &watch::Sender<u64>, limit: u64| {
            let index = kept.position(limit + 1).checked_sub(1);
            let newest = index.and_then(|index| kept.alerts.get(index));
            if let Some(alert) = newest {
                sender.send_if_modified(|told| {
                    let is_more = alert.cursor > *told;
                    *told = alert.cursor.max(*told);
                    is_more
                });
            }
        };
        let readable = if kept.is_in_memory() {
            kept.newest
        } else {
            kept.written
        };
        raise(&self.published, readable);
        raise(&self.durable, kept.durable);
        self.memory_only.send_if_modified(|told| {
            let is_new = *told != kept.failure.is_some();
            *told = kept.failure.is_some();
            is_new
        });
        self.written.notify_one();
    }

    pub(in crate::alerts) fn wake_writer(&self) {
        self.work.notify_one();
    }

    pub(super) fn wake_all(&self) {
        self.work.notify_all();
        self.written.notify_all();
    }

    pub(in crate::alerts) fn wait_for_work<'a>(
        &self,
        kept: MutexGuard<'a, Kept>,
        longest: Duration,
    ) -> MutexGuard<'a, Kept> {
        let waited = self.work.wait_timeout(kept, longest);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    pub(in crate::alerts) fn wait_for_written<'a>(
        &self,
        kept: MutexGuard<'a, Kept>,
        longest: Option<Duration>,
    ) -> MutexGuard<'a, Kept> {
        match longest {
            None => self
                .written
                .wait(kept)
                .unwrap_or_else(PoisonError::into_inner),
            Some(longest) => {
                let waited = self.written.wait_timeout(kept, longest);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }
}
