//! Reads a log at its own pace.

use std::{collections::VecDeque, io, sync::Arc};

use monitor_api::v1::Alert;
use tokio::sync::watch;
use tracing::warn;

use super::shared::{Found, Shared};
use crate::alerts::journal::{Chunk, Facts, GapReason, Record, read_chunk};

/// Reads a log at its own pace: each cursor once, in order.
#[derive(Debug)]
pub struct AlertReader {
    shared: Arc<Shared>,
    upto: watch::Receiver<u64>,
    next: u64,
    /// Read from disk ahead of what was asked for, within the bound of a [`Chunk`].
    ahead: VecDeque<Record>,
    /// The segment that was read last, and how far.
    place: Option<(u64, u64)>,
    /// Alerts that were judged before are passed over, until one was not.
    not_before: Option<prost_types::Timestamp>,
}

/// What a reader is given.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// The next alert.
    Alert(Arc<Alert>),
    /// Alerts from `from` up to `before`, without it, are no longer kept; the reader goes on at
    /// `before`.
    Expired {
        /// The first cursor that is missing.
        from: u64,
        /// The first that is not.
        before: u64,
    },
    /// Cursors from `from` up to `before`, without it, are missing for another reason.
    Gap {
        /// The first cursor that is missing.
        from: u64,
        /// The first that is not.
        before: u64,
        /// Why.
        reason: GapReason,
    },
}

impl AlertReader {
    pub(super) fn new(shared: Arc<Shared>, upto: watch::Receiver<u64>, next: u64) -> Self {
        Self {
            shared,
            upto,
            next,
            ahead: VecDeque::new(),
            place: None,
            not_before: None,
        }
    }

    pub(super) fn not_before(self, time: prost_types::Timestamp) -> Self {
        Self {
            not_before: Some(time),
            ..self
        }
    }

    /// The last cursor that was given or passed over.
    pub fn position(&self) -> u64 {
        self.next - 1
    }

    /// Whether the time to start at is still to come.
    pub fn looks_for_time(&self) -> bool {
        self.not_before.is_some()
    }

    /// Goes on after `cursor`, which its user has from elsewhere.
    pub fn skip_to(&mut self, cursor: u64) {
        self.next = self.next.max(cursor + 1);
        while self
            .ahead
            .front()
            .is_some_and(|record| record.cursor < self.next)
        {
            self.ahead.pop_front();
        }
    }

    fn is_too_early(&mut self, alert: &Alert) -> bool {
        let Some(time) = self.not_before else {
            return false;
        };
        let at = alert.observed_time.unwrap_or_default();
        let is_early = (at.seconds, at.nanos) < (time.seconds, time.nanos);
        if !is_early {
            self.not_before = None;
        }
        is_early
    }

    /// The next alert, waiting for it if there is none. Nothing is lost when the future is
    /// dropped.
    pub async fn next(&mut self) -> Next {
        loop {
            // Marked as seen before looking, so that what comes after the look wakes.
            self.upto.mark_unchanged();
            if let Some(next) = self.try_next().await {
                return next;
            }
            // The sender lives in `self.shared`, so this cannot fail.
            let _ = self.upto.changed().await;
        }
    }

    /// The next alert, if it is there. Waits for the disk only, and nothing is lost when the future
    /// is dropped.
    pub async fn try_next(&mut self) -> Option<Next> {
        loop {
            match self.take_ahead() {
                Some(Next::Alert(alert)) if self.is_too_early(&alert) => continue,
                Some(next) => return Some(next),
                None => {}
            }
            let limit = *self.upto.borrow();
            let found = self.shared.kept().find(self.next, limit);
            let facts = match found {
                Found::Memory(alert) => {
                    self.next += 1;
                    if self.is_too_early(&alert) {
                        continue;
                    }
                    return Some(Next::Alert(alert));
                }
                Found::Nothing => return None,
                Found::Expired { before } => {
                    let from = std::mem::replace(&mut self.next, before);
                    self.shared.kept().expired_unread += before - from;
                    return Some(Next::Expired { from, before });
                }
                Found::Gap { before, reason } => return Some(self.gap(before, reason)),
                Found::Disk(facts) => facts,
            };
            let to = facts.last.min(limit);
            match self.read(&facts, to).await {
                Ok(chunk) if chunk.records.is_empty() => {
                    return Some(self.gap(to + 1, GapReason::Damaged));
                }
                Ok(chunk) => {
                    self.place = Some((facts.first, chunk.offset));
                    self.ahead = chunk.records;
                }
                // Expired between the look and the reading.
                Err(error) if error.kind() == io::ErrorKind::NotFound && self.is_gone(&facts) => {}
                Err(error) => {
                    warn!(%error, segment = %facts.path.display(), "cannot read the journal; its readers are told");
                    return Some(self.gap(to + 1, GapReason::Damaged));
                }
            }
        }
    }

    fn is_gone(&self, facts: &Facts) -> bool {
        let kept = self.shared.kept();
        kept.segments.iter().all(|other| other.path != facts.path)
    }

    fn gap(&mut self, before: u64, reason: GapReason) -> Next {
        let from = std::mem::replace(&mut self.next, before);
        Next::Gap {
            from,
            before,
            reason,
        }
    }

    fn take_ahead(&mut self) -> Option<Next> {
        let first = self.ahead.front()?;
        if first.cursor > self.next {
            let before = first.cursor;
            return Some(self.gap(before, GapReason::Damaged));
        }
        let record = self.ahead.pop_front()?;
        Some(match record.alert {
            Some(alert) => {
                self.next = record.cursor + 1;
                Next::Alert(Arc::new(alert))
            }
            None => self.gap(record.cursor + 1, GapReason::Damaged),
        })
    }

    async fn read(&self, facts: &Facts, to: u64) -> io::Result<Chunk> {
        let (facts, from) = (facts.clone(), self.next);
        let offset = self
            .place
            .filter(|(first, _)| *first == facts.first)
            .map(|(_, offset)| offset);
        let reading = tokio::task::spawn_blocking(move || read_chunk(&facts, offset, from, to));
        reading.await.map_err(io::Error::other)?
    }
}
