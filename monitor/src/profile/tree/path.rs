//! Paths as segments, and what these become in a tree.

use super::super::generalise::{self, ANY, Buffer, NAME_BYTES_MAX, WILD};

/// Names that no pattern stands for: passwords, keys, tokens, memory.
const SECRETS: [&[u8]; 16] = [
    b"accessTokens.json",
    b"application_default_credentials.json",
    b"credentials",
    b"credentials.db",
    b"environ",
    b"gshadow",
    b"gshadow-",
    b"id_dsa",
    b"id_ecdsa",
    b"id_ed25519",
    b"id_rsa",
    b"kcore",
    b"mem",
    b"shadow",
    b"shadow-",
    b"token",
];

/// Whether no pattern stands for a name.
pub(super) fn is_secret(name: &[u8]) -> bool {
    SECRETS.contains(&name)
}

pub(super) fn push(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

/// The top-level directory, with the `/` before it, and the rest.
pub(super) fn split_top(path: &[u8]) -> (&[u8], &[u8]) {
    let inner = path.get(1..).unwrap_or_default();
    match inner.iter().position(|byte| *byte == b'/') {
        Some(at) => path.split_at(at + 1),
        None => (path, &[]),
    }
}

/// The first segment and what follows it.
pub(super) fn next(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let from = rest.iter().position(|byte| *byte != b'/')?;
    let rest = rest.get(from..)?;
    let to = rest
        .iter()
        .position(|byte| *byte == b'/')
        .unwrap_or(rest.len());
    Some(rest.split_at(to))
}

pub(super) fn segments(mut rest: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (segment, after) = next(rest)?;
        rest = after;
        Some(segment)
    })
}

/// The pattern of a top-level name: of a path the name itself, of an abstract one what it becomes.
pub(super) fn top_name<'a>(first: &'a [u8], buffer: &'a mut Buffer) -> &'a [u8] {
    let is_abstract = first.first() == Some(&b'@');
    if is_abstract && is_autobound(first) {
        return b"@\0";
    }
    if first.first() == Some(&b'/') && first.len() <= NAME_BYTES_MAX && !first.contains(&WILD) {
        return first;
    }
    generalise::name(first, buffer)
}

/// Whether the kernel chose an abstract name: five hexadecimal digits.
fn is_autobound(name: &[u8]) -> bool {
    name.len() == 6 && name.iter().skip(1).all(u8::is_ascii_hexdigit)
}

/// The pattern of an entry of a directory, which may be a top-level one.
pub(super) fn entry_name<'a>(
    top: &[u8],
    is_in_top: bool,
    segment: &'a [u8],
    buffer: &'a mut Buffer,
) -> &'a [u8] {
    let is_process = is_in_top && top == b"/proc";
    if is_process && matches!(segment, b"self" | b"thread-self") {
        return ANY;
    }
    generalise::name(segment, buffer)
}
