//! Repeats of one call are folded into counts, so that nobody can fill the disk by repeating it. Pure.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::Entry;

/// Callers, methods, objects and outcomes that are told apart; more are counted together.
const KEYS_MAX: usize = 1024;

/// How long repeats of a call are counted after its first record. The time doubles from record to
/// record, up to [`WINDOW_MAX`], until there was none for so long after it.
const WINDOW_MIN: Duration = Duration::from_secs(60);

/// Longest time between a repeat and its record.
const WINDOW_MAX: Duration = Duration::from_secs(60 * 60);

/// What a repeat has in common with the call before.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    caller: String,
    method: String,
    object: String,
    outcome: String,
}

impl Key {
    fn of(entry: &Entry) -> Self {
        Self {
            caller: entry.caller.clone(),
            method: entry.method.clone(),
            object: entry.object.clone(),
            outcome: entry.outcome.clone(),
        }
    }
}

/// Repeats that have no record yet.
#[derive(Debug)]
struct Window {
    /// All of them; `None` if there are none.
    pending: Option<Entry>,
    until: Instant,
    length: Duration,
}

/// What repeats.
#[derive(Debug, Default)]
pub(super) struct Fold(HashMap<Key, Window>);

impl Fold {
    /// What is to be written of a call now: itself if it is the first, nothing if it was counted.
    pub(super) fn take(&mut self, mut entry: Entry, time: &str, now: Instant) -> Option<Entry> {
        if self.0.len() >= KEYS_MAX && !self.0.contains_key(&Key::of(&entry)) {
            entry = Entry {
                caller: "several".to_owned(),
                roles: Vec::new(),
                peer: String::new(),
                method: "several".to_owned(),
                object: String::new(),
                detail: String::new(),
                ..entry
            };
        }
        let key = Key::of(&entry);
        if let Some(window) = self.0.get_mut(&key) {
            if window.pending.is_none() && window.until <= now {
                window.begin_next(now);
                return Some(entry);
            }
            entry.since = Some(time.to_owned());
            window.add(entry);
            return None;
        }
        let window = Window {
            pending: None,
            until: now + WINDOW_MIN,
            length: WINDOW_MIN,
        };
        self.0.insert(key, window);
        Some(entry)
    }

    /// What is to be written of the repeats whose time is over.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Entry> {
        let mut due = Vec::new();
        self.0.retain(|_, window| {
            if window.until > now {
                return true;
            }
            let Some(pending) = window.pending.take() else {
                return window.until + WINDOW_MAX > now;
            };
            due.push(pending);
            window.begin_next(now);
            true
        });
        due
    }

    /// What has no record yet, however long it waits.
    pub(super) fn rest(&mut self) -> Vec<Entry> {
        let windows = self.0.values_mut();
        windows.filter_map(|window| window.pending.take()).collect()
    }

    /// What could not be written waits for the next time. Its caller goes on.
    pub(super) fn put_back(&mut self, entry: Entry, now: Instant) {
        let window = self.0.entry(Key::of(&entry)).or_insert(Window {
            pending: None,
            until: now + WINDOW_MIN,
            length: WINDOW_MIN,
        });
        window.add(entry);
    }
}

impl Window {
    fn begin_next(&mut self, now: Instant) {
        self.length = WINDOW_MAX.min(self.length * 2);
        self.until = now + self.length;
    }

    fn add(&mut self, mut entry: Entry) {
        if let Some(before) = self.pending.take() {
            entry.count = entry.count.saturating_add(before.count);
            entry.since = before.since;
        }
        self.pending = Some(entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::fixture::entry;

    fn counts(entries: &[Entry]) -> Vec<(&str, u64)> {
        let counts = entries.iter();
        counts
            .map(|entry| (entry.method.as_str(), entry.count))
            .collect()
    }

    #[test]
    fn the_first_call_is_written_and_its_repeats_are_counted() {
        let (mut fold, start) = (Fold::default(), Instant::now());
        let take = |fold: &mut Fold, method, minutes| {
            let now = start + WINDOW_MIN * minutes;
            fold.take(entry(method), "t", now).is_some()
        };
        assert!(take(&mut fold, "a", 0));
        assert!(!take(&mut fold, "a", 0) && !take(&mut fold, "a", 0));
        assert!(take(&mut fold, "b", 0));
        assert_eq!(fold.due(start), []);
        let due = fold.due(start + WINDOW_MIN);
        assert_eq!(counts(&due), [("a", 2)], "b had no repeats");
        assert_eq!(due.first().and_then(|due| due.since.as_deref()), Some("t"));
        assert!(take(&mut fold, "b", 1), "and is written again");
        assert!(!take(&mut fold, "b", 2) && !take(&mut fold, "a", 2));
        assert_eq!(counts(&fold.due(start + WINDOW_MIN * 2)), []);
        assert_eq!(fold.due(start + WINDOW_MIN * 3).len(), 2);
        fold.due(start + WINDOW_MAX * 4);
        assert!(fold.0.is_empty());
    }

    #[test]
    fn a_flood_writes_a_record_an_hour_in_the_end() {
        let (mut fold, start) = (Fold::default(), Instant::now());
        let mut written = 0;
        for second in (0..24 * 60 * 60).step_by(61) {
            let now = start + Duration::from_secs(second);
            written += fold.due(now).len();
            written += usize::from(fold.take(entry("a"), "t", now).is_some());
        }
        assert!(written < 30, "{written}");
    }

    #[test]
    fn of_too_many_the_rest_is_counted_together() {
        let (mut fold, start) = (Fold::default(), Instant::now());
        for n in 0..KEYS_MAX + 10 {
            fold.take(entry(&n.to_string()), "t", start);
        }
        assert!(fold.0.len() <= KEYS_MAX + 1);
        assert_eq!(counts(&fold.rest()), [("several", 9)]);
    }

    #[test]
    fn what_could_not_be_written_is_written_later() {
        let (mut fold, start) = (Fold::default(), Instant::now());
        let first = fold.take(entry("a"), "t", start);
        first.into_iter().for_each(|it| fold.put_back(it, start));
        fold.take(entry("a"), "t", start);
        assert_eq!(counts(&fold.due(start + WINDOW_MIN)), [("a", 2)]);
    }
}
