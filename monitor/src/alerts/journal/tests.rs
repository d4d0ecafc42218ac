#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Instant, SystemTime},
};

use monitor_api::v1::Alert;
use proptest::prelude::*;
use tempfile::TempDir;

use super::{record::RECORD_HEADER_BYTES, *};
use crate::alerts::{AlertLog, Delivery, Next, Start};

const BOOT: [u8; 16] = [1; 16];
const ANOTHER_BOOT: [u8; 16] = [2; 16];
const RETENTION: Retention = Retention {
    bytes_max: JOURNAL_BYTES_MIN,
    age_max: Duration::from_secs(3600),
};
const PATIENCE: Duration = Duration::from_secs(20);

/// In memory where there is such a place: there are many, and each is synced.
fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

fn open(directory: &Path, boot: [u8; 16]) -> AlertLog {
    open_with(directory, boot, RETENTION, 100)
}

fn open_with(directory: &Path, boot: [u8; 16], retention: Retention, alerts: usize) -> AlertLog {
    AlertLog::open_bounded(directory, retention, boot, alerts, usize::MAX).unwrap()
}

/// Appends alerts that say which they are.
fn append(log: &AlertLog, messages: impl IntoIterator<Item = u64>) -> Vec<u64> {
    let alert = |message: u64| Alert {
        message: message.to_string(),
        ..Alert::default()
    };
    let cursors = messages
        .into_iter()
        .map(|message| log.append(alert(message)));
    cursors.collect()
}

fn wait(what: &str, done: impl Fn() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < PATIENCE, "not {what}");
        std::thread::yield_now();
    }
}

/// All that a reader is given now: `7=3` is alert 3 under cursor 7, `1..3` cursors that expired,
/// `1..3 damaged` a gap.
fn read(log: &AlertLog, from: Start) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut reader = log.subscribe(from, Delivery::Written).unwrap();
        let mut said = Vec::new();
        while let Some(next) = reader.try_next().await {
            said.push(match next {
                Next::Alert(alert) => {
                    assert_eq!(alert.journal, log.journal());
                    format!("{}={}", alert.cursor, alert.message)
                }
                Next::Expired { from, before } => format!("{from}..{before}"),
                Next::Gap {
                    from,
                    before,
                    reason,
                } => format!("{from}..{before} {}", reason.name()),
            });
        }
        said
    })
}

fn numbered(cursors: std::ops::RangeInclusive<u64>) -> Vec<String> {
    cursors.map(|n| format!("{n}={n}")).collect()
}

fn segments(directory: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|name| name == "segment"))
        .collect();
    paths.sort();
    paths
}

/// What is on disk of a daemon that is killed now.
fn killed(log: &AlertLog, directory: &Path) -> TempDir {
    wait("written", || log.newest() == log.shared_newest());
    copy(directory)
}

fn copy(directory: &Path) -> TempDir {
    let to = scratch();
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.path().join(entry.file_name())).unwrap();
    }
    to
}

#[test]
fn what_was_written_is_there_after_a_restart() {
    let directory = scratch();
    let log = open(directory.path(), BOOT);
    assert_eq!(append(&log, 1..=3), [1, 2, 3]);
    wait("durable", || log.durable() == 3);
    log.close();
    // A clean stop holds over a boot.
    let again = open(directory.path(), ANOTHER_BOOT);
    assert_eq!(again.journal(), log.journal());
    assert_eq!((again.newest(), again.durable()), (3, 3));
    assert_eq!(append(&again, 4..=4), [4]);
    wait("written", || again.newest() == 4);
    assert_eq!(read(&again, Start::After(0)), numbered(1..=4));
    assert_eq!(read(&again, Start::Last(2)), numbered(3..=4));
    again.close();
}

#[test]
fn more_than_is_in_memory_is_read_from_disk() {
    let directory = scratch();
    let log = open_with(directory.path(), BOOT, RETENTION, 10);
    for message in 1..=2000 {
        append(&log, [message]);
        wait("written", || log.newest() == message);
    }
    assert!(segments(directory.path()).len() > 1);
    assert_eq!(read(&log, Start::Oldest), numbered(1..=2000));
    assert_eq!(read(&log, Start::After(1234)), numbered(1235..=2000));
    log.close();
}

#[test]
fn a_killed_daemon_goes_on_where_it_was_and_a_killed_node_beyond() {
    let directory = scratch();
    let log = open(directory.path(), BOOT);
    append(&log, 1..=3);
    let check = |boot, next: u64, expect: &[&str]| {
        let directory = killed(&log, directory.path());
        let again = open(directory.path(), boot);
        assert_eq!(again.newest(), 3);
        assert_eq!(append(&again, [4]), [next]);
        wait("written", || again.newest() == next);
        let said = read(&again, Start::After(2));
        assert_eq!(said, expect);
        again.close();
        // The hole is told after a further restart as well.
        let again = open(directory.path(), boot);
        assert_eq!(read(&again, Start::After(2)), expect);
        again.close();
    };
    check(BOOT, 4, &["3=3", "4=4"]);
    check(
        ANOTHER_BOOT,
        65_537,
        &["3=3", "4..65537 not_written", "65537=4"],
    );
    log.close();
}

#[test]
fn a_write_that_a_kill_cuts_leaves_no_gap() {
    let directory = scratch();
    let log = open(directory.path(), BOOT);
    append(&log, 1..=3);
    let left = killed(&log, directory.path());
    append(&log, 4..=4);
    log.close();
    // What the fourth alert's write had come to.
    let [whole, written] = [directory.path(), left.path()]
        .map(|directory| fs::read(segments(directory).remove(0)).unwrap());
    for length in written.len()..whole.len() {
        let copy = copy(left.path());
        fs::write(segments(copy.path()).remove(0), &whole[..length]).unwrap();
        let again = open(copy.path(), BOOT);
        assert_eq!(append(&again, [5]), [4], "{length}");
        again.close();
        let said = ["1=1", "2=2", "3=3", "4=5"];
        assert_eq!(read(&again, Start::After(0)), said, "{length}");
    }
}

#[test]
fn a_lost_directory_is_another_journal() {
    let directory = scratch();
    let log = open(directory.path(), BOOT);
    append(&log, 1..=3);
    log.close();
    // The segments alone do not say how far their cursors went.
    fs::remove_file(directory.path().join("head")).unwrap();
    let again = open(directory.path(), BOOT);
    assert_ne!(again.journal(), log.journal());
    assert_eq!(append(&again, [1]), [1]);
    wait("written", || again.newest() == 1);
    assert_eq!(read(&again, Start::Oldest), ["1=1"]);
    again.close();
}

#[test]
fn a_directory_that_cannot_be_used_leaves_alerts_in_memory_until_it_can() {
    let directory = scratch();
    let path = directory.path().join("journal");
    fs::write(&path, "in the way").unwrap();
    let log = open(&path, BOOT);
    wait("told", || log.summary().memory_only.is_some());
    append(&log, 1..=150);
    assert_eq!(log.newest(), 150);
    assert_eq!(log.durable(), 0);
    let summary = log.summary();
    assert_eq!((summary.lost, summary.oldest), (50, 51));
    fs::remove_file(&path).unwrap();
    wait("written again", || log.summary().memory_only.is_none());
    append(&log, [151]);
    wait("durable", || log.durable() == 151);
    log.close();
    let again = open(&path, BOOT);
    let mut expect = vec!["1..51".to_owned()];
    expect.extend(numbered(51..=151));
    assert_eq!(read(&again, Start::After(0)), expect);
    again.close();
}

#[test]
fn what_is_too_much_or_too_old_expires_and_is_told() {
    let directory = scratch();
    let small = Retention {
        bytes_max: 20_000,
        ..RETENTION
    };
    let log = open_with(directory.path(), BOOT, small, 5);
    for message in 1..=1000 {
        append(&log, [message]);
        wait("written", || log.newest() == message);
    }
    assert!(log.summary().bytes <= 20_000 + 2000, "{:?}", log.summary());
    let oldest = log.summary().oldest;
    assert!(oldest > 500, "{oldest}");
    let mut expect = vec![format!("1..{oldest}")];
    expect.extend(numbered(oldest..=1000));
    assert_eq!(read(&log, Start::After(0)), expect);
    log.close();

    // All but the segment that is written on.
    let short = Retention {
        age_max: Duration::from_millis(1),
        ..RETENTION
    };
    let again = open_with(directory.path(), BOOT, short, 1);
    append(&again, 1001..=1001);
    wait("written", || again.newest() == 1001);
    // It is looked for when a segment ends.
    let large = "x".repeat(70_000);
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(3));
        again.append(Alert {
            message: large.clone(),
            ..Alert::default()
        });
        wait("written", || again.newest() == again.shared_newest());
    }
    wait("expired", || again.summary().oldest > 1000);
    again.close();
}

#[test]
fn alerts_of_a_segment_that_is_gone_are_told() {
    let directory = scratch();
    let log = open_with(directory.path(), BOOT, RETENTION, 1);
    for message in 1..=3000 {
        append(&log, [message]);
        wait("written", || log.newest() == message);
    }
    let files = segments(directory.path());
    assert!(files.len() > 2);
    fs::remove_file(&files[1]).unwrap();
    let said = read(&log, Start::After(0));
    let gap: Vec<_> = said
        .iter()
        .filter(|text| text.contains("damaged"))
        .collect();
    assert_eq!(gap.len(), 1, "{gap:?}");
    let cursors = said.iter().filter_map(|text| text.split_once('=')).count();
    assert!((1000..3000).contains(&cursors));
    log.close();
}

/// Opens a journal that was tampered with and goes on in it. What must hold: each alert that is
/// read is the one that was written under its cursor, all cursors up to the newest are accounted
/// for in order, and new cursors were never given before.
fn check_sound(directory: &Path, (journal, written): &(String, BTreeMap<u64, u64>)) {
    let log = open(directory, BOOT);
    assert_eq!(log.journal(), journal);
    let newest = written.keys().last().copied().unwrap_or(0);
    let next = append(&log, [0])[0];
    wait("written", || log.newest() == next);
    assert!(next > newest, "{next} was given before");
    let mut expected = 1;
    for said in read(&log, Start::After(0)) {
        if let Some((cursor, message)) = said.split_once('=') {
            let cursor: u64 = cursor.parse().unwrap();
            assert_eq!(cursor, expected);
            let message: u64 = message.parse().unwrap();
            assert_eq!(
                message,
                written.get(&cursor).copied().unwrap_or(0),
                "{said}"
            );
            expected = cursor + 1;
        } else {
            let (range, _) = said.split_once(' ').unwrap_or((&said, ""));
            let (from, before) = range.split_once("..").unwrap();
            assert_eq!(from.parse::<u64>().unwrap(), expected);
            expected = before.parse().unwrap();
        }
    }
    assert_eq!(expected, next + 1);
    log.close();
}

/// A journal of a killed daemon, with what it had written.
fn a_journal(alerts: u64) -> (TempDir, (String, BTreeMap<u64, u64>)) {
    let directory = scratch();
    let log = open(directory.path(), BOOT);
    let cursors = append(&log, 1..=alerts);
    let copy = killed(&log, directory.path());
    log.close();
    let written = cursors.into_iter().zip(1..=alerts).collect();
    (copy, (log.journal().to_owned(), written))
}

#[test]
fn a_journal_cut_at_any_byte_opens_and_says_nothing_wrong() {
    let (directory, written) = a_journal(4);
    let path = segments(directory.path()).remove(0);
    let whole = fs::read(&path).unwrap();
    for length in 0..whole.len() {
        let copy = copy(directory.path());
        let path = segments(copy.path()).remove(0);
        fs::write(&path, &whole[..length]).unwrap();
        check_sound(copy.path(), &written);
    }
    for garbage in [1, RECORD_HEADER_BYTES, 100] {
        let copy = copy(directory.path());
        let path = segments(copy.path()).remove(0);
        let longer = [whole.as_slice(), &vec![0xaa; garbage]].concat();
        fs::write(&path, longer).unwrap();
        check_sound(copy.path(), &written);
    }
    println!("{} cuts of {} bytes", whole.len() + 3, whole.len());
}

#[test]
fn a_journal_with_any_bit_flipped_opens_and_says_nothing_wrong() {
    let (directory, written) = a_journal(3);
    let mut cases = 0;
    for name in ["head", "segment"] {
        let of = |directory: &Path| match name {
            "head" => directory.join(name),
            _ => segments(directory).remove(0),
        };
        let whole = fs::read(of(directory.path())).unwrap();
        // Of the head, the slots' contents.
        let bytes = (0..whole.len()).filter(|at| name != "head" || at % 4096 < 80);
        for at in bytes {
            for bit in 0..8 {
                let copy = copy(directory.path());
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << bit;
                fs::write(of(copy.path()), bytes).unwrap();
                check_sound(copy.path(), &written);
                cases += 1;
            }
        }
    }
    println!("{cases} flipped bits");
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Append(u64),
    Stop,
    Kill {
        reboots: bool,
    },
    /// Cuts so many bytes of the last segment of a killed daemon.
    Cut(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1_u64..40).prop_map(Step::Append),
        1 => Just(Step::Stop),
        1 => any::<bool>().prop_map(|reboots| Step::Kill { reboots }),
        1 => (1_usize..2000).prop_map(Step::Cut),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, max_shrink_iters: 100, failure_persistence: None, ..ProptestConfig::default() })]

    /// Against a model that knows what was given out under each cursor.
    #[test]
    fn cursors_never_repeat_and_nothing_is_missing_in_silence(steps in prop::collection::vec(step(), 1..30)) {
        let mut directory = scratch();
        let mut boot = BOOT;
        let mut log = open(directory.path(), boot);
        let journal = log.journal().to_owned();
        let mut given: BTreeMap<u64, u64> = BTreeMap::new();
        let mut message = 0;
        for step in steps {
            match step {
                Step::Append(count) => {
                    for _ in 0..count {
                        message += 1;
                        let cursor = append(&log, [message])[0];
                        prop_assert!(given.insert(cursor, message).is_none(), "{cursor} again");
                    }
                }
                Step::Stop => {
                    log.close();
                    log = open(directory.path(), boot);
                }
                Step::Kill { reboots } => {
                    let left = killed(&log, directory.path());
                    log.close();
                    directory = left;
                    boot[0] += u8::from(reboots);
                    log = open(directory.path(), boot);
                }
                Step::Cut(bytes) => {
                    let left = killed(&log, directory.path());
                    log.close();
                    directory = left;
                    if let Some(path) = segments(directory.path()).pop() {
                        let length = fs::metadata(&path).unwrap().len();
                        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
                        file.set_len(length.saturating_sub(bytes as u64)).unwrap();
                    }
                    log = open(directory.path(), boot);
                }
            }
            prop_assert_eq!(log.journal(), &journal);
        }
        wait("written", || log.newest() == log.shared_newest() || given.is_empty());
        let mut next = 1;
        for said in read(&log, Start::After(0)) {
            match said.split_once('=') {
                Some((cursor, message)) => {
                    let cursor: u64 = cursor.parse().unwrap();
                    prop_assert_eq!(cursor, next);
                    prop_assert_eq!(given.get(&cursor).map(u64::to_string), Some(message.to_owned()));
                    next = cursor + 1;
                }
                None => {
                    let (from, before) = said.split(' ').next().unwrap().split_once("..").unwrap();
                    prop_assert_eq!(from, &next.to_string());
                    next = before.parse().unwrap();
                }
            }
        }
        log.close();
    }
}

#[test]
fn a_file_is_old_by_its_time() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    file.as_file().set_modified(hour_ago).unwrap();
    let path = file.path().to_owned();
    assert!(writer::is_older(&path, Duration::from_secs(60)));
    assert!(!writer::is_older(&path, Duration::from_secs(7200)));
}
