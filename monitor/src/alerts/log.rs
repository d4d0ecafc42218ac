//! The last alerts, kept in memory for any number of readers.
//!
//! A reader holds a cursor, not a place in a queue: it takes the lock only to copy one alert, and
//! sleeps on the newest cursor without it. So a slow reader costs nobody anything; one that falls
//! behind what is kept is told what it missed.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use monitor_api::v1::Alert;
use prost::Message as _;
use tokio::sync::watch;
use ulid::Ulid;

/// Alerts kept. Beyond, the oldest expire and readers behind them are told.
pub const ALERTS_MAX: usize = 10_000;

/// Bytes of alerts kept, by their encoded length; a typical alert has 1.5 KiB, one can have
/// 20 KiB. Beyond, the oldest expire and readers behind them are told.
pub const ALERTS_BYTES_MAX: usize = 64 << 20;

/// The last alerts of this start. Clones are the same log.
#[derive(Clone, Debug)]
pub struct AlertLog {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    journal: String,
    alerts_max: usize,
    bytes_max: usize,
    kept: Mutex<Kept>,
    newest: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Kept {
    /// Without gaps; the last has the cursor `newest`.
    alerts: VecDeque<Arc<Alert>>,
    bytes: usize,
    newest: u64,
    by_kind: BTreeMap<String, u64>,
    expired_unread: u64,
}

impl Kept {
    /// The cursor of the oldest alert that is kept, or of the next to come.
    fn oldest(&self) -> u64 {
        self.newest + 1 - u64::try_from(self.alerts.len()).unwrap_or(self.newest)
    }

    fn get(&self, cursor: u64) -> Option<&Arc<Alert>> {
        let index = usize::try_from(cursor.checked_sub(self.oldest())?).ok()?;
        self.alerts.get(index)
    }
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
    /// Alerts ever appended, by kind.
    pub by_kind: BTreeMap<String, u64>,
    /// Alerts that readers were told had expired, summed over readers.
    pub expired_unread: u64,
}

impl AlertLog {
    /// An empty log; its journal is named by a new ULID.
    pub fn new() -> Self {
        Self::bounded(ALERTS_MAX, ALERTS_BYTES_MAX)
    }

    pub(crate) fn bounded(alerts_max: usize, bytes_max: usize) -> Self {
        let shared = Shared {
            journal: Ulid::new().to_string(),
            alerts_max,
            bytes_max,
            kept: Mutex::default(),
            newest: watch::Sender::new(0),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// The journal that cursors count in.
    pub fn journal(&self) -> &str {
        &self.shared.journal
    }

    /// Keeps `alert` under the next cursor, which is returned, and wakes the readers. Journal and
    /// cursor of `alert` are set by this.
    pub fn append(&self, mut alert: Alert) -> u64 {
        let mut kept = self.kept();
        let cursor = kept.newest + 1;
        alert.journal.clone_from(&self.shared.journal);
        alert.cursor = cursor;
        *kept.by_kind.entry(alert.kind.clone()).or_default() += 1;
        kept.newest = cursor;
        kept.bytes += alert.encoded_len();
        kept.alerts.push_back(Arc::new(alert));
        // The newest stays, however large it is.
        while kept.alerts.len() > 1
            && (kept.alerts.len() > self.shared.alerts_max || kept.bytes > self.shared.bytes_max)
        {
            if let Some(expired) = kept.alerts.pop_front() {
                kept.bytes -= expired.encoded_len();
            }
        }
        // Under the lock, so that the cursors that readers see only grow.
        self.shared.newest.send_replace(cursor);
        cursor
    }

    /// A reader of its own.
    ///
    /// # Errors
    ///
    /// [`AheadOfJournal`] if `from` names a cursor that was never given out.
    pub fn subscribe(&self, from: Start) -> Result<AlertReader, AheadOfJournal> {
        let newest = self.shared.newest.subscribe();
        let kept = self.kept();
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
            Start::Last(count) => (kept.newest + 1).saturating_sub(count).max(kept.oldest()),
        };
        drop(kept);
        Ok(AlertReader {
            log: self.clone(),
            newest,
            next,
        })
    }

    /// The newest cursor; 0 if there is none.
    pub fn newest(&self) -> u64 {
        *self.shared.newest.borrow()
    }

    /// What the log holds now.
    pub fn summary(&self) -> Summary {
        let kept = self.kept();
        Summary {
            oldest: if kept.alerts.is_empty() {
                0
            } else {
                kept.oldest()
            },
            newest: kept.newest,
            by_kind: kept.by_kind.clone(),
            expired_unread: kept.expired_unread,
        }
    }

    /// Nothing under the lock can panic half-way, so a poisoned lock guards sound data.
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.shared
            .kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for AlertLog {
    fn default() -> Self {
        Self::new()
    }
}

/// Reads a log at its own pace: each cursor once, in order.
#[derive(Debug)]
pub struct AlertReader {
    log: AlertLog,
    newest: watch::Receiver<u64>,
    next: u64,
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
}

impl AlertReader {
    /// The next alert, waiting for it if there is none. Nothing is lost when the future is
    /// dropped.
    pub async fn next(&mut self) -> Next {
        loop {
            // Marked as seen before looking, so that what comes after the look wakes.
            self.newest.mark_unchanged();
            if let Some(next) = self.try_next() {
                return next;
            }
            // The sender lives in `self.log`, so this cannot fail.
            let _ = self.newest.changed().await;
        }
    }

    /// The next alert, if it is there.
    pub fn try_next(&mut self) -> Option<Next> {
        let mut kept = self.log.kept();
        let oldest = kept.oldest();
        if self.next < oldest {
            kept.expired_unread += oldest - self.next;
            let expired = Next::Expired {
                from: self.next,
                before: oldest,
            };
            self.next = oldest;
            return Some(expired);
        }
        let alert = Arc::clone(kept.get(self.next)?);
        self.next += 1;
        Some(Next::Alert(alert))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::panic, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;

    fn alert(kind: &str) -> Alert {
        Alert {
            kind: kind.to_owned(),
            ..Alert::default()
        }
    }

    fn log(alerts_max: usize, appended: u64) -> AlertLog {
        let log = AlertLog::bounded(alerts_max, usize::MAX);
        for _ in 0..appended {
            log.append(alert("exec_added"));
        }
        log
    }

    /// What `reader` is given now, as text: `3` is an alert, `1..3` what expired.
    fn drain(reader: &mut AlertReader) -> String {
        let mut said = Vec::new();
        while let Some(next) = reader.try_next() {
            said.push(match next {
                Next::Alert(alert) => alert.cursor.to_string(),
                Next::Expired { from, before } => format!("{from}..{before}"),
            });
        }
        said.join(" ")
    }

    #[test]
    fn a_reader_starts_where_it_says() {
        let check = |appended, from, expect: Result<&str, AheadOfJournal>| {
            let said = log(3, appended)
                .subscribe(from)
                .map(|mut reader| drain(&mut reader));
            assert_eq!(
                said.as_deref(),
                expect.as_ref().map(|text| &**text),
                "{from:?}"
            );
        };
        check(0, Start::Oldest, Ok(""));
        check(0, Start::Now, Ok(""));
        check(0, Start::Last(5), Ok(""));
        check(0, Start::After(0), Ok(""));
        check(
            0,
            Start::After(1),
            Err(AheadOfJournal {
                cursor: 1,
                newest: 0,
            }),
        );
        check(2, Start::Oldest, Ok("1 2"));
        check(2, Start::After(0), Ok("1 2"));
        check(2, Start::After(1), Ok("2"));
        check(2, Start::After(2), Ok(""));
        check(
            2,
            Start::After(u64::MAX),
            Err(AheadOfJournal {
                cursor: u64::MAX,
                newest: 2,
            }),
        );
        check(5, Start::Oldest, Ok("3 4 5"));
        check(5, Start::After(0), Ok("1..3 3 4 5"));
        check(5, Start::After(1), Ok("2..3 3 4 5"));
        check(5, Start::After(2), Ok("3 4 5"));
        check(5, Start::Last(0), Ok(""));
        check(5, Start::Last(2), Ok("4 5"));
        check(5, Start::Last(u64::MAX), Ok("3 4 5"));
        check(5, Start::Now, Ok(""));
    }

    #[test]
    fn an_alert_is_given_its_cursor_and_journal() {
        let log = log(3, 1);
        assert_eq!(log.append(alert("exec_memory")), 2);
        let mut reader = log
            .subscribe(Start::Last(1))
            .unwrap_or_else(|error| panic!("{error}"));
        let Some(Next::Alert(alert)) = reader.try_next() else {
            panic!("no alert")
        };
        assert_eq!((alert.cursor, alert.journal.as_str()), (2, log.journal()));
    }

    #[test]
    fn the_bytes_kept_are_bounded() {
        let log = AlertLog::bounded(100, 800);
        for _ in 0..10 {
            log.append(alert(&"x".repeat(300)));
        }
        let summary = log.summary();
        assert_eq!(
            (summary.oldest, summary.newest),
            (9, 10),
            "with a journal each has 330 bytes"
        );
        log.append(alert(&"x".repeat(5000)));
        assert_eq!(log.summary().oldest, 11, "the newest stays, however large");
    }

    #[test]
    fn the_summary_counts_what_expired_as_well() {
        let log = log(2, 5);
        log.append(alert("exec_memory"));
        let mut reader = log
            .subscribe(Start::After(1))
            .unwrap_or_else(|error| panic!("{error}"));
        drain(&mut reader);
        let by_kind = [("exec_added".to_owned(), 5), ("exec_memory".to_owned(), 1)];
        assert_eq!(
            log.summary(),
            Summary {
                oldest: 5,
                newest: 6,
                by_kind: by_kind.into(),
                expired_unread: 3
            }
        );
        assert_eq!(AlertLog::new().summary().oldest, 0);
    }

    #[tokio::test]
    async fn a_waiting_reader_is_woken() {
        let log = log(3, 0);
        let mut reader = log
            .subscribe(Start::Now)
            .unwrap_or_else(|error| panic!("{error}"));
        let waiting = tokio::spawn(async move { reader.next().await });
        // The other task runs until it waits.
        tokio::task::yield_now().await;
        log.append(alert("exec_added"));
        match waiting.await {
            Ok(Next::Alert(alert)) => assert_eq!(alert.cursor, 1),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn readers_and_a_writer_at_once_agree() {
        const ALERTS: u64 = 20_000;
        let log = log(16, 0);
        let mut readers = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let mut reader = log
                .subscribe(Start::Now)
                .unwrap_or_else(|error| panic!("{error}"));
            readers.spawn(async move {
                let mut next = 1;
                while next <= ALERTS {
                    match reader.next().await {
                        Next::Alert(alert) => {
                            assert_eq!(alert.cursor, next);
                            next += 1;
                        }
                        Next::Expired { from, before } => {
                            assert_eq!(from, next);
                            next = before;
                        }
                    }
                }
            });
        }
        let writer = tokio::task::spawn_blocking(move || {
            for _ in 0..ALERTS {
                log.append(alert("exec_added"));
            }
        });
        assert!(writer.await.is_ok());
        while let Some(reader) = readers.join_next().await {
            assert!(reader.is_ok(), "{reader:?}");
        }
    }

    proptest! {
        /// Against a model that keeps everything: a reader gets each cursor once and in order, or
        /// is told exactly which range it missed.
        #[test]
        fn any_interleaving_of_appends_and_reads(
            alerts_max in 1_usize..6,
            before in 0_u64..10,
            steps in prop::collection::vec(prop::option::of(0_usize..3), 0..100),
        ) {
            let log = log(alerts_max, before);
            let mut newest = before;
            let kept = u64::try_from(alerts_max).unwrap_or(u64::MAX);
            let oldest = |newest: u64| newest.saturating_sub(kept) + 1;
            let mut readers: Vec<_> = [Start::After(0), Start::Oldest, Start::Now]
                .into_iter()
                .filter_map(|from| log.subscribe(from).ok())
                .zip([1, oldest(newest), newest + 1])
                .collect();
            prop_assert_eq!(readers.len(), 3);
            for step in steps {
                let Some((reader, next)) = step.and_then(|index| readers.get_mut(index)) else {
                    newest += 1;
                    prop_assert_eq!(log.append(alert("exec_added")), newest);
                    continue;
                };
                match reader.try_next() {
                    None => prop_assert_eq!(*next, newest + 1),
                    Some(Next::Alert(alert)) => {
                        prop_assert_eq!(alert.cursor, *next);
                        *next += 1;
                    }
                    Some(Next::Expired { from, before }) => {
                        prop_assert_eq!((from, before), (*next, oldest(newest)));
                        prop_assert!(from < before);
                        *next = before;
                    }
                }
            }
        }
    }
}
