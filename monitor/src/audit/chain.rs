//! The chain: what a record is, and whether records still are what was written. Pure.
//!
//! A record is a line of JSON. Its hash is the SHA-256 of the line without its end, and each record
//! holds the hash of the one before, so `tail -1 FILE | tr -d '\n' | sha256sum` gives the head.

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, Sha256};

/// Places that are told of a broken chain; more are counted.
pub const BREAKS_MAX: usize = 16;

/// What the first record holds as the hash of the one before.
pub(super) const NONE_BEFORE: Sha256 = Sha256([0; 32]);

/// A record and its hash, by which the next one holds on to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Counts records from 1; 0 is before the first.
    pub sequence: u64,
    /// Of the line.
    pub hash: Sha256,
}

/// The end of the chain, and where it begins since older records expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) first: u64,
    pub(super) last: Link,
}

impl Head {
    /// Of no record.
    pub(super) const EMPTY: Self = Self {
        first: 1,
        last: Link {
            sequence: 0,
            hash: NONE_BEFORE,
        },
    };

    /// As a line that is as long whatever it says.
    pub(super) fn encode(&self) -> String {
        let Link { sequence, hash } = self.last;
        format!("{:020} {sequence:020} {hash}\n", self.first)
    }

    /// `None` if it is no such line.
    pub(super) fn decode(text: &str) -> Option<Self> {
        let mut words = text.strip_suffix('\n')?.split(' ');
        let head = Self {
            first: words.next()?.parse().ok()?,
            last: Link {
                sequence: words.next()?.parse().ok()?,
                hash: hash(words.next()?)?,
            },
        };
        (head.encode() == text).then_some(head)
    }
}

/// A hash as it is shown.
pub fn hash(text: &str) -> Option<Sha256> {
    let digest: Digest = format!("sha256:{text}").parse().ok()?;
    Some(digest.0)
}

/// What a record says. Texts are of the caller's making: hostile to a terminal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Who called: `user 0`, the names of a certificate, or `monitord` for the daemon's own.
    pub caller: String,
    /// The caller's roles.
    pub roles: Vec<String>,
    /// From where: `pid 4242`, or an address.
    pub peer: String,
    /// The call, by its name in the service.
    pub method: String,
    /// What it was about: `consumer/soc`; empty for a call that was refused before it was read.
    pub object: String,
    /// See [`Outcome`](super::Outcome).
    pub outcome: String,
    /// What more there is to say: why it failed.
    pub detail: String,
    /// Calls that the record stands for, at least 1.
    pub count: u64,
    /// When the first of several was made, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Counts records from 1.
    pub sequence: u64,
    /// The hash of the record before.
    pub previous: String,
    /// When it was written, RFC 3339.
    pub time: String,
    /// What it says.
    #[serde(flatten)]
    pub entry: Entry,
}

/// Where the chain does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Break {
    /// The last record before that holds; 0 if there is none.
    pub after: u64,
    /// What is wrong there.
    pub reason: String,
}

/// What came of looking at every record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// How many there are.
    pub records: u64,
    /// The oldest.
    pub first: Option<Link>,
    /// The newest.
    pub last: Option<Link>,
    /// Where it is broken, at most [`BREAKS_MAX`] places.
    pub breaks: Vec<Break>,
    /// At how many places it is broken.
    pub broken: u64,
    /// The record that was noted has expired, so nothing can be said of it.
    pub is_noted_expired: bool,
}

/// Looks at records one by one, in the order of the files.
#[derive(Debug)]
pub(super) struct Check {
    head: Head,
    noted: Option<Link>,
    before: Option<Link>,
    is_head_met: bool,
    is_noted_met: bool,
    report: Report,
}

impl Check {
    /// `noted` is a link that somebody wrote down elsewhere.
    pub(super) fn new(head: Head, noted: Option<Link>) -> Self {
        Self {
            head,
            noted,
            before: None,
            is_head_met: false,
            is_noted_met: false,
            report: Report::default(),
        }
    }

    /// The next line, without its end.
    pub(super) fn line(&mut self, line: &[u8]) {
        let hash = Sha256::of(line);
        let Ok(record) = serde_json::from_slice::<Record>(line) else {
            return self.broken("what follows is no record".to_owned());
        };
        let link = Link {
            sequence: record.sequence,
            hash,
        };
        self.report.records += 1;
        self.report.first.get_or_insert(link);
        match self.before {
            Some(before) => self.follows(before, &record),
            None => self.begins(&record),
        }
        if link.sequence == self.head.last.sequence {
            self.is_head_met = true;
            if hash != self.head.last.hash {
                self.broken(format!(
                    "record {} is not what the head says",
                    link.sequence
                ));
            }
        }
        if let Some(noted) = self.noted.filter(|noted| noted.sequence == link.sequence) {
            self.is_noted_met = true;
            if hash != noted.hash {
                self.broken(format!(
                    "record {} is not the one that was noted",
                    link.sequence
                ));
            }
        }
        self.before = Some(link);
    }

    fn begins(&mut self, record: &Record) {
        let first = self.head.first;
        if record.sequence != first {
            self.broken(format!(
                "it begins with record {}, and should with {first}",
                record.sequence
            ));
        } else if first == 1 && record.previous != NONE_BEFORE.to_string() {
            self.broken("record 1 names one before it".to_owned());
        }
    }

    fn follows(&mut self, before: Link, record: &Record) {
        let expect = before.sequence.saturating_add(1);
        if record.sequence != expect {
            self.broken(format!(
                "record {} follows, and should {expect}",
                record.sequence
            ));
        } else if record.previous != before.hash.to_string() {
            self.broken(format!(
                "record {expect} holds another hash of the one before than that has"
            ));
        }
    }

    fn broken(&mut self, reason: String) {
        self.report.broken += 1;
        if self.report.breaks.len() < BREAKS_MAX {
            let after = self.before.map_or(0, |before| before.sequence);
            self.report.breaks.push(Break { after, reason });
        }
    }

    /// After the last line.
    pub(super) fn finish(mut self) -> Report {
        self.report.last = self.before;
        let head = self.head.last.sequence;
        if !self.is_head_met && head > 0 {
            self.broken(format!("record {head}, the last by the head, is missing"));
        }
        if let Some(noted) = self.noted.filter(|_| !self.is_noted_met) {
            self.report.is_noted_expired = noted.sequence < self.head.first;
            if !self.report.is_noted_expired {
                self.broken(format!(
                    "record {}, which was noted, is missing",
                    noted.sequence
                ));
            }
        }
        self.report
    }
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        reason = "a test fails by panicking"
    )]

    use proptest::{prelude::*, sample::Index};

    use super::*;
    use crate::audit::fixture::entry;

    /// A chain of `count` records from `first` on, and its head.
    fn chain(first: u64, count: u64) -> (Vec<Vec<u8>>, Head) {
        let mut head = Head {
            first,
            ..Head::EMPTY
        };
        head.last.sequence = first - 1;
        let mut lines = Vec::new();
        for sequence in first..first + count {
            let record = Record {
                sequence,
                previous: head.last.hash.to_string(),
                time: "2026-11-27T00:00:00Z".to_owned(),
                entry: entry("Alerts"),
            };
            let line = serde_json::to_vec(&record).unwrap();
            let hash = Sha256::of(&line);
            head.last = Link { sequence, hash };
            lines.push(line);
        }
        (lines, head)
    }

    fn checked(lines: &[Vec<u8>], head: Head, noted: Option<Link>) -> Report {
        let mut check = Check::new(head, noted);
        lines.iter().for_each(|line| check.line(line));
        check.finish()
    }

    #[test]
    fn a_break_is_told_where_it_is() {
        let (whole, head) = chain(1, 5);
        let check = |change: &dyn Fn(&mut Vec<Vec<u8>>), after: u64, reason: &str| {
            let mut lines = whole.clone();
            change(&mut lines);
            let report = checked(&lines, head, None);
            let first = report.breaks.first().unwrap();
            assert_eq!((first.after, first.reason.as_str()), (after, reason));
        };
        check(
            &|lines| drop(lines.remove(0)),
            0,
            "it begins with record 2, and should with 1",
        );
        check(
            &|lines| drop(lines.remove(2)),
            2,
            "record 4 follows, and should 3",
        );
        check(
            &|lines| lines.swap(1, 2),
            1,
            "record 3 follows, and should 2",
        );
        check(
            &|lines| drop(lines.pop()),
            4,
            "record 5, the last by the head, is missing",
        );
        check(&|lines| lines[1].push(b'x'), 1, "what follows is no record");
        check(
            &|lines| lines[1].push(b' '),
            2,
            "record 3 holds another hash of the one before than that has",
        );
        check(
            &|lines| lines[4].push(b' '),
            4,
            "record 5 is not what the head says",
        );
        assert_eq!(checked(&whole, head, None).broken, 0);
        assert_eq!(checked(&[], Head::EMPTY, None).broken, 0);
    }

    #[test]
    fn a_chain_that_was_made_anew_differs_from_what_was_noted() {
        let (mut lines, mut head) = chain(1, 5);
        let noted = Some(head.last);
        assert_eq!(checked(&lines, head, noted).broken, 0);
        // Whoever can write the head as well can cut the end off without a trace in the files.
        lines.pop();
        head.last = Link {
            sequence: 4,
            hash: Sha256::of(&lines[3]),
        };
        assert_eq!(checked(&lines, head, None).broken, 0);
        assert_eq!(checked(&lines, head, noted).broken, 1);
        let (later, head) = chain(7, 2);
        let report = checked(&later, head, noted);
        assert_eq!((report.broken, report.is_noted_expired), (0, true));
    }

    #[test]
    fn a_record_that_was_written_just_before_a_kill_is_no_break() {
        let (lines, _) = chain(1, 5);
        let (_, head) = chain(1, 4);
        assert_eq!(checked(&lines, head, None).broken, 0);
    }

    #[test]
    fn a_head_is_read_as_it_was_written() {
        let (_, head) = chain(3, 2);
        assert_eq!(Head::decode(&head.encode()), Some(head));
        let text = head.encode();
        for at in 0..text.len() {
            assert_eq!(Head::decode(&text[..at]), None, "{at}");
        }
        assert_eq!(Head::decode(&text.replacen('0', " ", 1)), None);
    }

    proptest! {
        #[test]
        fn whatever_is_removed_changed_or_swapped_is_found(
            count in 2_u64..20,
            first in 1_u64..3,
            what in 0..3,
            at in any::<Index>(),
            other in any::<Index>(),
            byte in any::<u8>(),
        ) {
            let (whole, head) = chain(first, count);
            prop_assert_eq!(checked(&whole, head, None).broken, 0);
            let mut lines = whole.clone();
            let index = at.index(lines.len());
            match what {
                0 => drop(lines.remove(index)),
                1 => {
                    let line = &mut lines[index];
                    let place = other.index(line.len());
                    line[place] = byte;
                }
                _ => lines.swap(index, other.index(whole.len())),
            }
            let is_found = checked(&lines, head, None).broken > 0;
            prop_assert_eq!(is_found, lines != whole);
        }
    }
}
