//! Names that are made anew each time become patterns: numbers, ids, hashes, dates, temporary names.
//! A function of one segment of a path alone, so that it gives the same in any order.

/// Stands for any bytes in a name; no path has this byte.
pub(super) const WILD: u8 = 0;
/// The name that stands for any.
pub(super) const ANY: &[u8] = &[WILD];
/// Bytes of a name that is kept; a longer one becomes [`ANY`].
pub(super) const NAME_BYTES_MAX: usize = 96;

/// Digits that are no version any more.
const NUMBER_DIGITS_MIN: usize = 5;
/// Hexadecimal digits, with figures and letters among them, that are no word any more.
const MIXED_HEX_MIN: usize = 8;
/// Likewise without both.
const HEX_MIN: usize = 16;
/// Letters and figures that are no word any more, if so many of them are figures.
const RANDOM_MIN: usize = 20;
const RANDOM_DIGITS_MIN: usize = 3;
/// What mkstemp, mktemp and their like make.
const TEMPORARY: std::ops::RangeInclusive<usize> = 6..=12;
/// What mkstemp puts behind a stem.
const MKSTEMP_BYTES: usize = 6;
/// What `sed -i` begins the names of its temporary files with, beside the file that it changes.
const SED_STEM: &[u8] = b"sed";
/// What Python's `tempfile` makes: `tmp` and eight characters.
const PYTHON_STEM: &[u8] = b"tmp";
const PYTHON_BYTES: usize = 11;
/// Words in names of files that are not to stay (Redis: `temp-12.rdb`, PostgreSQL: `pgsql_tmp12.0`).
const PASSING: [&[u8]; 4] = [b"tmp", b"temp", b"pid", b"lock"];
/// Bytes of a UUID.
const UUID_BYTES: usize = 36;

/// Where the pattern of a name is put together.
pub(super) type Buffer = [u8; NAME_BYTES_MAX + 1];

/// The pattern of a name: the name itself, [`ANY`], or one with [`WILD`] in it.
pub(super) fn name<'a>(segment: &'a [u8], buffer: &'a mut Buffer) -> &'a [u8] {
    if segment.len() > NAME_BYTES_MAX || segment.contains(&WILD) {
        return ANY;
    }
    let Some((from, to)) = changing(segment) else {
        return segment;
    };
    let (Some(stem), Some(end)) = (segment.get(..from), segment.get(to..)) else {
        return segment;
    };
    let bytes = stem.iter().chain(ANY).chain(end);
    for (to, byte) in buffer.iter_mut().zip(bytes) {
        *to = *byte;
    }
    buffer
        .get(..stem.len() + ANY.len() + end.len())
        .unwrap_or(ANY)
}

/// Whether `pattern`, which has [`WILD`] in it, stands for a name.
pub(super) fn stands_for(pattern: &[u8], name: &[u8]) -> bool {
    let Some(at) = pattern.iter().position(|byte| *byte == WILD) else {
        return pattern == name;
    };
    let (stem, end) = pattern.split_at(at);
    let end = end.get(1..).unwrap_or_default();
    name.len() >= stem.len() + end.len() && name.starts_with(stem) && name.ends_with(end)
}

/// From where to where a name changes.
fn changing(segment: &[u8]) -> Option<(usize, usize)> {
    // Most names are words.
    let has_digit = segment.iter().any(u8::is_ascii_digit);
    if !has_digit && segment.len() < *TEMPORARY.start() {
        return None;
    }
    if is_digits(segment) {
        return Some((0, segment.len()));
    }
    if segment.len() == PYTHON_BYTES
        && segment.strip_prefix(PYTHON_STEM).is_some_and(|rest| {
            rest.iter()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'_')
        })
    {
        return Some((PYTHON_STEM.len(), segment.len()));
    }
    if segment.len() == SED_STEM.len() + MKSTEMP_BYTES
        && segment
            .strip_prefix(SED_STEM)
            .is_some_and(|rest| rest.iter().all(u8::is_ascii_alphanumeric))
    {
        return Some((SED_STEM.len(), segment.len()));
    }
    let mut found: Option<(usize, usize)> = None;
    let mut add = |from: usize, to: usize| {
        found = Some(found.map_or((from, to), |(first, last)| (first.min(from), last.max(to))));
    };
    if let Some(at) = segment.windows(UUID_BYTES).position(is_uuid) {
        add(at, at + UUID_BYTES);
    }
    let digits_min = if has_digit && is_passing(segment) {
        1
    } else {
        NUMBER_DIGITS_MIN
    };
    for (from, to) in tokens(segment) {
        let token = segment.get(from..to).unwrap_or_default();
        if let Some(length) = dated(segment.get(from..).unwrap_or_default()) {
            add(from, from + length);
        } else if is_id(token) || is_counter(segment, from, to) || is_temporary(segment, from, to) {
            add(from, to);
        } else if to == segment.len() && ends_at_random(token) {
            add(to - MKSTEMP_BYTES, to);
        } else {
            let digits = token
                .iter()
                .rev()
                .take_while(|it| it.is_ascii_digit())
                .count();
            if digits >= digits_min {
                add(to - digits, to);
            }
        }
    }
    found
}

/// Where the runs of letters and figures are.
fn tokens(segment: &[u8]) -> impl Iterator<Item = (usize, usize)> + '_ {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || !byte.is_ascii();
    let mut at = 0;
    std::iter::from_fn(move || {
        let from = at + segment.get(at..)?.iter().position(is_part)?;
        let rest = segment.get(from..)?;
        let length = rest
            .iter()
            .position(|byte| !is_part(byte))
            .unwrap_or(rest.len());
        at = from + length;
        Some((from, at))
    })
}

fn is_digits(token: &[u8]) -> bool {
    !token.is_empty() && token.iter().all(u8::is_ascii_digit)
}

fn is_id(token: &[u8]) -> bool {
    let digits = token.iter().filter(|byte| byte.is_ascii_digit()).count();
    let is_hex = token.iter().all(u8::is_ascii_hexdigit);
    (digits == token.len() && digits >= NUMBER_DIGITS_MIN)
        || (is_hex && token.len() >= HEX_MIN)
        || (is_hex && token.len() >= MIXED_HEX_MIN && digits > 0)
        || (token.is_ascii() && token.len() >= RANDOM_MIN && digits >= RANDOM_DIGITS_MIN)
}

/// A number that stands first (`1249_fsm`, `12.pid`), or between dots or last (`aof.3.incr`,
/// `init.1234`), where no other is.
fn is_counter(segment: &[u8], from: usize, to: usize) -> bool {
    let (before, after) = (
        segment.get(..from).unwrap_or_default(),
        segment.get(to..).unwrap_or_default(),
    );
    let mut others = before.iter().chain(after);
    if !is_digits(segment.get(from..to).unwrap_or_default()) || others.any(u8::is_ascii_digit) {
        return false;
    }
    if before.is_empty() {
        let is_apart = matches!(after.first(), Some(b'.' | b'_'));
        return is_apart && after.iter().any(u8::is_ascii_alphabetic);
    }
    // `libc.so.6` is a version.
    let is_behind_dot = before.ends_with(b".") && !before.ends_with(b".so.");
    is_behind_dot && matches!(after.first(), None | Some(b'.'))
}

/// Whether a name says that it is of one process or not to stay: the numbers in it are ids, however
/// short they are.
fn is_passing(segment: &[u8]) -> bool {
    tokens(segment).any(|(from, to)| {
        let token = segment.get(from..to).unwrap_or_default();
        let digits = token
            .iter()
            .rev()
            .take_while(|it| it.is_ascii_digit())
            .count();
        let word = token.get(..token.len() - digits).unwrap_or_default();
        PASSING.contains(&word)
    })
}

/// What follows a stem at the end of a name and is no word: of mixed case in its middle, or with
/// figures between its letters.
fn is_temporary(segment: &[u8], from: usize, to: usize) -> bool {
    let token = segment.get(from..to).unwrap_or_default();
    let is_behind_stem = to == segment.len()
        && from > 1
        && matches!(segment.get(from - 1), Some(b'.' | b'-' | b'_'));
    if !is_behind_stem || !TEMPORARY.contains(&token.len()) || !token.is_ascii() {
        return false;
    }
    let kind = |byte: u8| match byte {
        b'0'..=b'9' => 0,
        b'a'..=b'z' => 1,
        _ => 2,
    };
    let turns = token
        .windows(2)
        .filter(|pair| matches!(pair, [a, b] if kind(*a) != kind(*b)))
        .count();
    let has_lower = token.iter().any(u8::is_ascii_lowercase);
    let inner = token.get(1..).unwrap_or_default();
    let has_inner_upper = inner.iter().any(u8::is_ascii_uppercase);
    turns >= 3 || (has_lower && has_inner_upper && turns >= 2 && token.len() % 2 == 0)
}

/// Whether a word ends with what mkstemp makes: letters of both cases and figures, mixed.
fn ends_at_random(token: &[u8]) -> bool {
    let Some((stem, random)) = token.split_last_chunk::<MKSTEMP_BYTES>() else {
        return false;
    };
    let has = |is: fn(&u8) -> bool| random.iter().any(is);
    let is_mixed =
        has(u8::is_ascii_digit) && has(u8::is_ascii_lowercase) && has(u8::is_ascii_uppercase);
    stem.len() > 1 && stem.iter().all(u8::is_ascii_lowercase) && random.is_ascii() && is_mixed
}

fn is_uuid(bytes: &[u8]) -> bool {
    bytes.len() == UUID_BYTES
        && bytes.iter().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => matches!(byte, b'-' | b'_'),
            _ => byte.is_ascii_hexdigit(),
        })
}

/// How long the date is that bytes begin with, `2026-11-27` or `2026.11.27`; `None` if there is none.
fn dated(bytes: &[u8]) -> Option<usize> {
    let [y1, y2, y3, y4, first, m1, m2, second, d1, d2, rest @ ..] = bytes else {
        return None;
    };
    let is_date = [y1, y2, y3, y4, m1, m2, d1, d2]
        .iter()
        .all(|byte| byte.is_ascii_digit())
        && matches!((y1, y2), (b'1', b'9') | (b'2', b'0'))
        && first == second
        && matches!(first, b'-' | b'_' | b'.')
        && !rest.first().is_some_and(u8::is_ascii_digit);
    is_date.then_some(10)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn general(segment: &str) -> String {
        let mut buffer = [0; NAME_BYTES_MAX + 1];
        String::from_utf8_lossy(name(segment.as_bytes(), &mut buffer)).replace('\0', "*")
    }

    #[test]
    fn names_that_are_made_anew_become_patterns() {
        let check = |segment: &str, expect: &str| assert_eq!(general(segment), expect, "{segment}");
        check("1", "*");
        check("42", "*");
        check("000000010000000000000001", "*");
        check("0123456789abcdef0123456789abcdef", "*");
        check("6f1c2a34-9b1d-4c2e-8f00-aabbccddeeff", "*");
        check(
            "job-6f1c2a34-9b1d-4c2e-8f00-aabbccddeeff.json",
            "job-*.json",
        );
        check("app-2026-11-27.log", "app-*.log");
        check("app-20261127.log", "app-*.log");
        check("2026-11-27", "*");
        check("12.pid", "*.pid");
        check("1249_fsm", "*_fsm");
        check("16384.1", "*.1");
        check("pgsql_tmp12345", "pgsql_tmp*");
        check("pg_internal.init.4711", "pg_internal.init.*");
        check("PostgreSQL.1804289383", "PostgreSQL.*");
        check("temp-12.rdb", "temp-*.rdb");
        check("temp-rewriteaof-bg-7.aof", "temp-rewriteaof-bg-*.aof");
        check("appendonly.aof.3.incr.aof", "appendonly.aof.*.incr.aof");
        check("pgsql_tmp123.0", "pgsql_tmp*");
        check(".java_pid7", ".java_pid*");
        check("access.log.1", "access.log.*");
        check(
            "kubepods-pod6f1c2a34_9b1d_4c2e_8f00_aabbccddeeff.slice",
            "kubepods-pod*.slice",
        );
        check("tmp.Ab3dE9xYz0", "tmp.*");
        check("upload.a8Xk2q", "upload.*");
        check("tmp4f_q8x2k", "tmp*");
        check("sedqByR79", "sed*");
        check("sedabcdef", "sed*");
        check("cacheqByR79", "cache*");
        check("sess_9k2j4h6g8f0d1s3a5q7w", "sess_*");
        check(&"x".repeat(NAME_BYTES_MAX + 1), "*");
    }

    #[test]
    fn words_and_versions_stay() {
        for segment in [
            "libc.so.6",
            "libssl.so.1.1",
            "python3.11",
            "x86_64-linux-gnu",
            "libboost_filesystem.so.1.74.0",
            "nginx.conf",
            "PG_VERSION",
            "README.md",
            "meminfo",
            "site-packages",
            "DejaVuSans.ttf",
            "core-js",
            "ld-linux-x86-64.so.2",
            "1.1.1",
            "facade",
            "shadow",
            "sources.list",
            "ISO8859-1.so",
            "sediment",
            "sedation1x",
            "HelloBarBaz9",
            "mainFooBar",
        ] {
            assert_eq!(general(segment), segment);
        }
    }

    proptest! {
        #[test]
        fn a_pattern_stands_for_its_name(segment in proptest::collection::vec(1u8..=255, 1..140)) {
            let mut buffer = [0; NAME_BYTES_MAX + 1];
            prop_assert!(stands_for(name(&segment, &mut buffer), &segment));
        }
    }
}
