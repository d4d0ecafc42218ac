#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000_000;

fn an_alert(container: &str, path: &str, at: i64) -> Alert {
    let time = Some(prost_types::Timestamp {
        seconds: at,
        nanos: 0,
    });
    Alert {
        id: Ulid::new().to_string(),
        revision: 1,
        count: 1,
        kind: "exec_added".to_owned(),
        first_seen: time,
        last_seen: time,
        container: Some(alert::Container {
            id: container.to_owned(),
            ..alert::Container::default()
        }),
        file: Some(alert::File {
            path: path.into(),
            ..alert::File::default()
        }),
        ..Alert::default()
    }
}

impl Aggregator {
    /// Of what came by no record.
    fn take(&mut self, alert: Alert, now_ns: u64) -> Vec<Alert> {
        self.take_of(&Receipt::default(), alert, now_ns)
    }
}

fn empty() -> Aggregator {
    Aggregator::resume(&[], 0)
}

/// Revision and count of each.
fn said(alerts: &[Alert]) -> Vec<(u32, u64)> {
    let said = alerts.iter().map(|alert| (alert.revision, alert.count));
    said.collect()
}

#[test]
fn the_first_is_given_on_at_once_and_repeats_become_revisions() {
    let mut aggregator = empty();
    let first = aggregator.take(an_alert("c", "/x", 1), SECOND);
    assert_eq!(said(&first), [(1, 1)]);
    assert_eq!(
        said(&aggregator.take(an_alert("c", "/x", 2), 2 * SECOND)),
        []
    );
    assert_eq!(
        said(&aggregator.take(an_alert("c", "/x", 3), 3 * SECOND)),
        []
    );
    // Another file, container, or bytes are another alert.
    assert_eq!(
        said(&aggregator.take(an_alert("c", "/y", 3), 3 * SECOND)),
        [(1, 1)]
    );
    assert_eq!(
        said(&aggregator.take(an_alert("d", "/x", 3), 3 * SECOND)),
        [(1, 1)]
    );
    let mut other = an_alert("c", "/x", 3);
    other.file.as_mut().unwrap().seen_sha256 = "aa".to_owned();
    assert_eq!(said(&aggregator.take(other, 3 * SECOND)), [(1, 1)]);

    assert_eq!(said(&aggregator.due(10 * SECOND)), []);
    let due = aggregator.due(11 * SECOND);
    assert_eq!(said(&due), [(2, 3)]);
    assert_eq!(due.first().unwrap().id, first.first().unwrap().id);
    assert_eq!(due.first().unwrap().last_seen.unwrap().seconds, 3);
    assert_eq!(due.first().unwrap().first_seen.unwrap().seconds, 1);
    assert_eq!(said(&aggregator.due(30 * SECOND)), []);
    // After a pause a repeat is told at once.
    assert_eq!(
        said(&aggregator.take(an_alert("c", "/x", 60), 60 * SECOND)),
        [(3, 4)]
    );
}

#[test]
fn more_that_is_known_is_told_at_once_and_then_with_the_repeats() {
    let of_peer = |port, result: Option<&str>| {
        let mut alert = an_alert("c", "", 1);
        alert.connection = Some(alert::Connection {
            port: Some(port),
            ..alert::Connection::default()
        });
        alert.details = result.map(|result| {
            let kind = prost_types::value::Kind::StringValue(result.to_owned());
            let value = prost_types::Value { kind: Some(kind) };
            prost_types::Struct {
                fields: [("result".to_owned(), value)].into(),
            }
        });
        alert
    };
    let mut aggregator = empty();
    let amend = |aggregator: &mut Aggregator, result, at| {
        let amended = aggregator.amend(&of_peer(80, Some(result)), at);
        said(&amended.into_iter().collect::<Vec<_>>())
    };
    // Not raised, or forgotten.
    assert_eq!(amend(&mut aggregator, "refused", SECOND), []);
    assert_eq!(said(&aggregator.take(of_peer(80, None), SECOND)), [(1, 1)]);
    // Another peer is another alert.
    assert_eq!(said(&aggregator.take(of_peer(81, None), SECOND)), [(1, 1)]);
    assert_eq!(amend(&mut aggregator, "refused", 2 * SECOND), [(2, 1)]);
    assert_eq!(amend(&mut aggregator, "refused", 3 * SECOND), []);
    assert_eq!(amend(&mut aggregator, "connected", 4 * SECOND), []);
    let due = aggregator.due(12 * SECOND);
    assert_eq!(said(&due), [(3, 1)]);
    assert_eq!(
        due.first().unwrap().details,
        of_peer(80, Some("connected")).details
    );
}

#[test]
fn counts_go_on_over_a_restart() {
    let mut aggregator = empty();
    let mut log = aggregator.take(an_alert("c", "/x", 1), SECOND);
    aggregator.take(an_alert("c", "/x", 2), 2 * SECOND);
    log.extend(aggregator.flush(2 * SECOND));
    assert_eq!(said(&log), [(1, 1), (2, 2)]);
    let log: Vec<_> = log.into_iter().map(Arc::new).collect();
    let mut again = Aggregator::resume(&log, 5 * SECOND);
    assert_eq!(said(&again.take(an_alert("c", "/x", 6), 6 * SECOND)), []);
    assert_eq!(said(&again.due(15 * SECOND)), [(3, 3)]);
}

#[test]
fn a_container_of_the_same_name_that_was_made_later_is_another() {
    let mut aggregator = empty();
    let made = |seconds| {
        let mut alert = an_alert("c", "/x", 1);
        let created_at = Some(prost_types::Timestamp { seconds, nanos: 0 });
        alert.container.as_mut().unwrap().created_at = created_at;
        alert
    };
    assert_eq!(said(&aggregator.take(made(1), SECOND)), [(1, 1)]);
    assert_eq!(said(&aggregator.take(made(2), SECOND)), [(1, 1)]);
}

#[test]
fn a_storm_is_told_once_and_throttles_only_its_own_repeats() {
    let mut aggregator = empty();
    let mut storms = 0;
    for n in 0..2 * STORM_ALERTS {
        let given = aggregator.take(an_alert("c", &n.to_string(), 1), SECOND);
        assert_eq!(given.first().unwrap().kind, "exec_added", "{n}");
        storms += given.iter().filter(|alert| alert.kind == STORM).count();
    }
    assert_eq!(storms, 1);
    aggregator.take(an_alert("d", "/x", 1), SECOND);
    for container in ["c", "d"] {
        let path = if container == "c" { "7" } else { "/x" };
        aggregator.take(an_alert(container, path, 2), 2 * SECOND);
    }
    assert_eq!(said(&aggregator.due(11 * SECOND)), [(2, 2)], "of d");
    assert_eq!(said(&aggregator.due(60 * SECOND)), []);
    assert_eq!(said(&aggregator.due(61 * SECOND)), [(2, 2)], "of c");
    // Two quiet windows end it.
    aggregator.take(an_alert("c", "a", 100), 100 * SECOND);
    aggregator.take(an_alert("c", "b", 200), 200 * SECOND);
    aggregator.take(an_alert("c", "b", 201), 201 * SECOND);
    assert_eq!(said(&aggregator.due(210 * SECOND)), [(2, 2)]);
}

#[test]
fn what_was_counted_is_told_when_there_are_too_many() {
    let mut aggregator = empty();
    aggregator.take(an_alert("c", "/x", 1), SECOND);
    aggregator.take(an_alert("c", "/x", 1), SECOND);
    let mut revisions = 0;
    for n in 0..OPEN_MAX.get() {
        let given = aggregator.take(an_alert(&n.to_string(), "/y", 1), SECOND);
        revisions += given.iter().filter(|alert| alert.revision == 2).count();
    }
    assert_eq!(revisions, 1);
}

proptest! {
    /// Whatever comes when: in the end each occurrence is counted once, revisions and counts only
    /// grow, and the first of each kind comes at once.
    #[test]
    fn nothing_is_lost_or_counted_twice(
        steps in prop::collection::vec((0_u64..15, prop::option::of((0_u8..3, 0_u8..3))), 0..200),
    ) {
        let mut aggregator = empty();
        let mut now = 0;
        let mut occurred: BTreeMap<(u8, u8), u64> = BTreeMap::new();
        let mut told: BTreeMap<String, (u32, u64)> = BTreeMap::new();
        for (seconds, what) in steps {
            now += seconds * SECOND;
            let mut given = aggregator.due(now);
            if let Some((container, path)) = what {
                let alert = an_alert(&container.to_string(), &path.to_string(), 1);
                let taken = aggregator.take(alert, now);
                let count = occurred.entry((container, path)).or_default();
                *count += 1;
                prop_assert!(*count > 1 || said(&taken) == [(1, 1)]);
                given.extend(taken);
            }
            for alert in given {
                let before = told.insert(alert.id, (alert.revision, alert.count));
                let (revision, count) = before.unwrap_or((0, 0));
                prop_assert!(alert.revision == revision + 1 && alert.count > count);
            }
        }
        for alert in aggregator.flush(now) {
            told.insert(alert.id, (alert.revision, alert.count));
        }
        let counted: u64 = told.values().map(|(_, count)| count).sum();
        prop_assert_eq!(counted, occurred.values().sum::<u64>());
        prop_assert_eq!(told.len(), occurred.len());
    }
}
