#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use tempfile::TempDir;

use super::*;
use crate::audit::fixture::entry;

fn open(directory: &TempDir) -> (Store, Vec<String>) {
    Store::open(directory.path(), 2000).unwrap()
}

fn append(store: &mut Store, count: usize) {
    for _ in 0..count {
        let time = "2026-11-27T00:00:00Z".to_owned();
        store.append(time, entry("Alerts")).unwrap();
    }
}

/// A directory with `count` records.
fn written(count: usize) -> TempDir {
    let directory = TempDir::new().unwrap();
    append(&mut open(&directory).0, count);
    directory
}

fn last_file(directory: &TempDir) -> PathBuf {
    let files = list(directory.path()).unwrap();
    path_of(directory.path(), *files.last().unwrap())
}

#[test]
fn the_chain_goes_on_over_files_and_restarts() {
    let directory = written(30);
    assert!(list(directory.path()).unwrap().len() > 3);
    let (mut store, told) = open(&directory);
    assert_eq!(told, Vec::<String>::new());
    append(&mut store, 5);
    let report = store.check(None).unwrap();
    assert_eq!((report.records, report.broken), (35, 0));
    assert_eq!(report.last, Some(store.head().last));
    let sequences = |after, count| -> Vec<u64> {
        let page = store.page(after, count).unwrap();
        page.iter().map(|record| record.sequence).collect()
    };
    assert_eq!(sequences(0, 3), [1, 2, 3]);
    assert_eq!(sequences(17, 3), [18, 19, 20]);
    assert_eq!(sequences(33, 9), [34, 35]);
    for after in [35, u64::MAX] {
        assert_eq!(sequences(after, 9), [0; 0]);
    }
}

#[test]
fn the_oldest_files_go_and_the_chain_still_holds() {
    let directory = TempDir::new().unwrap();
    let (mut store, _) = Store::open(directory.path(), 1).unwrap();
    append(&mut store, FILES_MAX + 10);
    assert_eq!(list(directory.path()).unwrap().len(), FILES_MAX);
    let report = store.check(None).unwrap();
    assert_eq!(report.first.unwrap().sequence, 11);
    assert_eq!(report.broken, 0);
    // Which is not the same as removing one.
    fs::remove_file(path_of(directory.path(), 11)).unwrap();
    assert_eq!(store.check(None).unwrap().broken, 1);
}

#[test]
fn a_record_torn_at_any_byte_is_cut_off_and_told() {
    let directory = written(3);
    let path = last_file(&directory);
    let head = fs::read(directory.path().join(HEAD)).unwrap();
    append(&mut open(&directory).0, 1);
    let whole = fs::read(&path).unwrap();
    let before = whole.len() - whole.rsplit(|byte| *byte == b'\n').nth(1).unwrap().len() - 1;
    for length in before..=whole.len() {
        // As a kill leaves it: the head is written after the record.
        fs::write(directory.path().join(HEAD), &head).unwrap();
        fs::write(&path, &whole[..length]).unwrap();
        let (mut store, told) = open(&directory);
        let is_whole = length == before || length == whole.len();
        assert_eq!(told.is_empty(), is_whole, "{length}: {told:?}");
        append(&mut store, 1);
        let report = store.check(None).unwrap();
        let records = if length == whole.len() { 5 } else { 4 };
        assert_eq!((report.records, report.broken), (records, 0), "{length}");
    }
}

#[test]
fn what_was_removed_while_the_daemon_was_away_stays_visible() {
    let check = |change: &dyn Fn(&TempDir), told: &str| {
        let directory = written(8);
        change(&directory);
        let (mut store, found) = open(&directory);
        assert!(
            found.iter().any(|it| it.contains(told)),
            "{told}: {found:?}"
        );
        append(&mut store, 2);
        drop(store);
        let (store, found) = open(&directory);
        assert_eq!(found, Vec::<String>::new());
        store.check(None).unwrap().broken
    };
    let cut = |directory: &TempDir| {
        let text = fs::read_to_string(last_file(directory)).unwrap();
        let kept = text
            .trim_end()
            .rsplit_once('\n')
            .map_or("", |(kept, _)| kept);
        fs::write(last_file(directory), format!("{kept}\n")).unwrap();
    };
    assert_eq!(check(&cut, "the head says 8"), 1);
    let remove = |directory: &TempDir| fs::remove_file(last_file(directory)).unwrap();
    assert_eq!(check(&remove, "the head says 8"), 1);
    let change = |directory: &TempDir| {
        let text = fs::read_to_string(last_file(directory)).unwrap();
        fs::write(last_file(directory), text.replace("done", "dome")).unwrap();
    };
    assert!(check(&change, "the head says 8") > 0);
    let behead = |directory: &TempDir| fs::remove_file(directory.path().join(HEAD)).unwrap();
    assert_eq!(check(&behead, "the head is missing"), 0, "only told");
}

#[test]
fn a_record_that_cannot_be_written_is_not_there() {
    let directory = written(2);
    let (mut store, _) = open(&directory);
    let path = last_file(&directory);
    let end = store.end.as_mut().unwrap();
    let file = std::mem::replace(&mut end.file, File::open(&path).unwrap());
    let refused = store.append("t".to_owned(), entry("Alerts"));
    assert!(refused.is_err());
    store.end.as_mut().unwrap().file = file;
    // What a disk took of it before it was full.
    let mut torn = OpenOptions::new().append(true).open(&path).unwrap();
    torn.write_all(b"{\"sequence\":3").unwrap();
    append(&mut store, 1);
    let report = store.check(None).unwrap();
    assert_eq!((report.records, report.broken), (3, 0));
}
