#![expect(clippy::panic, reason = "a test fails by panicking")]

use std::{
    future::Future as _,
    task::{Context, Poll, Waker},
};

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

/// What `reader` is given now; a log in memory waits for nothing.
fn now(reader: &mut AlertReader) -> Option<Next> {
    let mut reading = std::pin::pin!(reader.try_next());
    match reading
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Ready(next) => next,
        Poll::Pending => panic!("waits"),
    }
}

/// What `reader` is given now, as text: `3` is an alert, `1..3` what expired.
fn drain(reader: &mut AlertReader) -> String {
    let mut said = Vec::new();
    while let Some(next) = now(reader) {
        said.push(match next {
            Next::Alert(alert) => alert.cursor.to_string(),
            Next::Expired { from, before } => format!("{from}..{before}"),
            Next::Gap { .. } => panic!("a log in memory has no gaps"),
        });
    }
    said.join(" ")
}

#[test]
fn a_reader_starts_where_it_says() {
    let check = |appended, from, expect: Result<&str, AheadOfJournal>| {
        let said = log(3, appended)
            .subscribe(from, Delivery::Written)
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
        .subscribe(Start::Last(1), Delivery::Written)
        .unwrap_or_else(|error| panic!("{error}"));
    let Some(Next::Alert(alert)) = now(&mut reader) else {
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
        .subscribe(Start::After(1), Delivery::Written)
        .unwrap_or_else(|error| panic!("{error}"));
    drain(&mut reader);
    let by_kind = [("exec_added", 5), ("exec_memory", 1)]
        .map(|(kind, count)| ((kind.to_owned(), Severity::Unspecified), count));
    assert_eq!(
        log.summary(),
        Summary {
            oldest: 5,
            newest: 6,
            durable: 6,
            by_kind: by_kind.into(),
            expired_unread: 3,
            bytes: 0,
            memory_only: None,
            lost: 0,
        }
    );
    assert_eq!(AlertLog::new().summary().oldest, 0);
}

#[tokio::test]
async fn a_waiting_reader_is_woken() {
    let log = log(3, 0);
    let mut reader = log
        .subscribe(Start::Now, Delivery::Written)
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
            .subscribe(Start::Now, Delivery::Written)
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
                    gap @ Next::Gap { .. } => panic!("{gap:?}"),
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
            .filter_map(|from| log.subscribe(from, Delivery::Written).ok())
            .zip([1, oldest(newest), newest + 1])
            .collect();
        prop_assert_eq!(readers.len(), 3);
        for step in steps {
            let Some((reader, next)) = step.and_then(|index| readers.get_mut(index)) else {
                newest += 1;
                prop_assert_eq!(log.append(alert("exec_added")), newest);
                continue;
            };
            match now(reader) {
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
                Some(gap @ Next::Gap { .. }) => panic!("{gap:?}"),
            }
        }
    }
}
