//! Bytes that are mostly text, as text.

use std::fmt::Write as _;

/// `bytes` as text from which they can be had back: what is UTF-8 stands as it is, a byte that is
/// not becomes `\xNN`, and a backslash becomes `\\`. Control characters stay as they are; JSON
/// escapes them itself.
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for char in chunk.valid().chars() {
            if char == '\\' {
                text.push('\\');
            }
            text.push(char);
        }
        for byte in chunk.invalid() {
            // Writing to a String cannot fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// The bytes that [`escape`] made `text` of; `None` if it made no such text.
pub fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        match rest {
            [b'\\', tail @ ..] => {
                bytes.push(b'\\');
                rest = tail;
            }
            [b'x', high, low, tail @ ..] => {
                let digit = |byte: &u8| char::from(*byte).to_digit(16);
                bytes.push(u8::try_from(digit(high)? << 4 | digit(low)?).ok()?);
                rest = tail;
            }
            _ => return None,
        }
    }
    Some(bytes)
}

/// Whether a terminal may act on `char` or show something else than what is there: control
/// characters, and those that reorder or hide text.
pub fn is_unsafe(char: char) -> bool {
    char.is_control()
        || matches!(
            char,
            '\u{061c}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_what_is_not_text_is_escaped() {
        let check = |bytes: &[u8], expect: &str| assert_eq!(escape(bytes), expect);
        check(b"/bin/sh", "/bin/sh");
        check("/tmp/ü".as_bytes(), "/tmp/ü");
        check(b"/tmp/\xff\xfe", "/tmp/\\xff\\xfe");
        check(br"/tmp/\xff", r"/tmp/\\xff");
        check(b"\xe2\x82", "\\xe2\\x82");
        check(b"a\nb", "a\nb");
    }

    #[test]
    fn what_escape_does_not_make_is_not_unescaped() {
        for text in [r"\", r"\x", r"\x1", r"\xg0", r"\n"] {
            assert_eq!(unescape(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn escaping_is_reversible(bytes: Vec<u8>) {
            prop_assert_eq!(unescape(&escape(&bytes)), Some(bytes));
        }
    }
}
