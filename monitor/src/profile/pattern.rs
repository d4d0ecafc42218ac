//! Patterns of paths as text: `*` stands for a name or a part of one, `**` at the end for whatever
//! lies below.

use monitor_api::bytes::{escape, unescape};

use super::{
    generalise::{NAME_BYTES_MAX, WILD},
    tree::{READ, Rule, WRITE},
};

/// Bytes of a path or a pattern.
pub(super) const PATH_BYTES_MAX: usize = 4096;

/// Why a text is no pattern.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum PatternError {
    #[error(
        "a path begins with \"/\", an abstract name with \"@\", and neither is longer than {PATH_BYTES_MAX} bytes"
    )]
    Start,
    #[error("names have at most {NAME_BYTES_MAX} bytes, and none is empty")]
    Name,
    #[error("a name has one \"*\" at most; \"**\" is a whole name, the last one, below another")]
    Wild,
    #[error("a backslash begins \\\\, or \\x and two hexadecimal digits other than 00")]
    Escape,
}

/// A pattern as text.
pub(super) fn text(pattern: &[u8]) -> String {
    let parts = pattern.split(|byte| *byte == WILD);
    let parts: Vec<String> = parts
        .map(|part| escape(part).replace('*', "\\x2a"))
        .collect();
    parts.join("*")
}

/// The pattern that [`text`] made a text of, and whether `**` follows.
pub(super) fn parse(text: &str) -> Result<(Vec<u8>, bool), PatternError> {
    if text.len() > PATH_BYTES_MAX || !text.starts_with(['/', '@']) {
        return Err(PatternError::Start);
    }
    let (text, is_below) = match text.strip_suffix("/**") {
        Some(before) => (before, true),
        None => (text, false),
    };
    let mut pattern = Vec::with_capacity(text.len());
    for (at, part) in text.split('*').enumerate() {
        let part = unescape(part).ok_or(PatternError::Escape)?;
        if part.contains(&WILD) {
            return Err(PatternError::Escape);
        }
        if at > 0 {
            pattern.push(WILD);
        }
        pattern.extend_from_slice(&part);
    }
    if pattern == b"/" && !is_below {
        return Ok((pattern, false));
    }
    let inner = pattern.get(1..).ok_or(PatternError::Wild)?;
    for (at, name) in inner.split(|byte| *byte == b'/').enumerate() {
        let wilds = name.iter().filter(|byte| **byte == WILD).count();
        if wilds > 1 || (wilds > 0 && at == 0 && pattern.starts_with(b"/")) {
            return Err(PatternError::Wild);
        }
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(PatternError::Name);
        }
    }
    Ok((pattern, is_below))
}

/// The rule that a text is, for some access.
pub(super) fn rule(text: &str, access: u8) -> Result<Rule, PatternError> {
    let (pattern, is_below) = parse(text)?;
    Ok(Rule {
        pattern,
        is_below,
        access,
    })
}

/// A rule's pattern as text.
pub(super) fn rule_text(rule: &Rule) -> String {
    let below = if rule.is_below { "/**" } else { "" };
    text(&rule.pattern) + below
}

/// An access in a word.
pub(super) fn access_name(access: u8) -> &'static str {
    match (access & READ != 0, access & WRITE != 0) {
        (true, true) => "readwrite",
        (false, true) => "write",
        _ => "read",
    }
}

/// The last segment of a path.
pub(super) fn last_of(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_has_one_text() {
        let check = |given: &str, expect: Option<(&[u8], bool)>| {
            let parsed = parse(given).ok();
            let seen = parsed
                .as_ref()
                .map(|(bytes, below)| (bytes.as_slice(), *below));
            assert_eq!(seen, expect, "{given}");
            if let Some((bytes, false)) = parsed {
                assert_eq!(text(&bytes), given);
            }
        };
        check("/usr/lib/x", Some((b"/usr/lib/x", false)));
        check("/", Some((b"/", false)));
        check("/proc/*/stat", Some((b"/proc/\0/stat", false)));
        check("/a/b*.log", Some((b"/a/b\0.log", false)));
        check("/a/**", Some((b"/a", true)));
        check(r"/a/\x2a\xff\\", Some((b"/a/*\xff\\", false)));
        check("@*", Some((b"@\0", false)));
        for wrong in [
            "", "a", "/*", "/**", "/a//b", "/a/", "/a/**/b", "/a/*b*", r"/a\x00", r"/a\q", "@",
        ] {
            check(wrong, None);
        }
    }
}
