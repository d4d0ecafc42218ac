//! Arguments as shapes: which options a program was given, without their values. The text that an
//! interpreter is told to run stays, as a short hash, so that another text is another shape.

use std::fmt::Write as _;

use monitor_api::bytes::escape;

use super::pattern::last_of;
use crate::digest::Sha256;

/// Bytes of a shape, and of a command; what follows is [`VALUE`].
pub(super) const SHAPE_BYTES_MAX: usize = 512;
/// Bytes of its text: a program's escaped name, and what begins just below the bound.
const SHAPE_TEXT_MAX: usize = 3 * SHAPE_BYTES_MAX;
/// Stands for values, one or more.
const VALUE: &str = "*";
/// What the hash of a text begins with.
const TEXT: &str = "text:";
/// Bytes of an option's name that are kept.
const OPTION_BYTES_MAX: usize = 64;
/// Bytes of the name of a program, and of its path where it is a command.
const PROGRAM_BYTES_MAX: usize = 256;
/// Bytes of the hash of a text that are told.
const HASH_BYTES: usize = 8;

/// How an interpreter is told the text that it is to run.
enum Interpreter {
    /// `-c`, also with other options of one letter around it.
    Shell,
    /// An option of one letter, last of those it stands with, or another spelling of it.
    Option(&'static [u8], &'static [&'static [u8]]),
}

/// By what the name of a program begins with.
const INTERPRETERS: [(&[u8], Interpreter); 8] = [
    (b"python", Interpreter::Option(b"c", &[])),
    (b"pypy", Interpreter::Option(b"c", &[])),
    (b"perl", Interpreter::Option(b"eE", &[])),
    (b"ruby", Interpreter::Option(b"e", &[])),
    (
        b"node",
        Interpreter::Option(b"ep", &[b"--eval", b"--print"]),
    ),
    (b"php", Interpreter::Option(b"r", &[])),
    (b"lua", Interpreter::Option(b"e", &[])),
    (b"busybox", Interpreter::Shell),
];

/// Writes the shape of arguments, the first of which is the name by which the program at `path` was
/// called; a name that is not its own comes first, in brackets.
pub(super) fn shape(path: &[u8], arguments: &[Vec<u8>], shape: &mut String) {
    shape.clear();
    let called = arguments
        .first()
        .map(|name| last_of(name))
        .unwrap_or_default();
    let own = last_of(path);
    if !called.is_empty() && called != own {
        shape.push('[');
        shape.extend(called.iter().take(OPTION_BYTES_MAX).map(|byte| match byte {
            b'.' | b'_' | b'+' | b'-' => char::from(*byte),
            byte if byte.is_ascii_alphanumeric() => char::from(*byte),
            _ => '?',
        }));
        shape.push(']');
    }
    let name = if called.is_empty() { own } else { called };
    rest(name, arguments.get(1..).unwrap_or_default(), shape);
}

/// Writes what tells a command that is put in from another: its program and the shape of its
/// arguments.
pub(super) fn command(arguments: &[Vec<u8>], command: &mut String) {
    command.clear();
    let program = arguments.first().map(Vec::as_slice).unwrap_or_default();
    let kept = program.get(..PROGRAM_BYTES_MAX).unwrap_or(program);
    let text = escape(kept);
    command.extend(text.chars().map(|char| match char {
        char if char.is_whitespace() || char.is_control() => '?',
        char => char,
    }));
    rest(
        last_of(program),
        arguments.get(1..).unwrap_or_default(),
        command,
    );
}

/// Whether `shape` can have been made by [`shape`] or [`command`].
pub(super) fn is_shape(shape: &str) -> bool {
    shape.len() <= SHAPE_TEXT_MAX && !shape.chars().any(char::is_control)
}

fn rest(program: &[u8], arguments: &[Vec<u8>], shape: &mut String) {
    let mut is_text_next = false;
    let mut is_value_last = false;
    for argument in arguments {
        let from = shape.len();
        if from >= SHAPE_BYTES_MAX {
            if !is_value_last {
                shape.push(' ');
                shape.push_str(VALUE);
            }
            return;
        }
        if from > 0 {
            shape.push(' ');
        }
        if std::mem::take(&mut is_text_next) {
            shape.push_str(TEXT);
            let hash = Sha256::of(argument);
            for byte in hash.0.iter().take(HASH_BYTES) {
                // Writing to a String cannot fail.
                let _ = write!(shape, "{byte:02x}");
            }
            is_value_last = false;
        } else if argument.len() > 1 && argument.first() == Some(&b'-') {
            is_text_next = is_before_text(program, argument);
            option(argument, shape);
            is_value_last = false;
        } else if is_value_last {
            shape.truncate(from);
        } else {
            shape.push_str(VALUE);
            is_value_last = true;
        }
    }
}

/// An option without its value.
fn option(argument: &[u8], shape: &mut String) {
    let is_name = |byte: &u8| byte.is_ascii_alphabetic() || matches!(byte, b'-' | b'_');
    let length = argument
        .iter()
        .take(OPTION_BYTES_MAX)
        .take_while(|byte| is_name(byte))
        .count();
    let (name, value) = argument.split_at(length);
    shape.extend(name.iter().map(|byte| char::from(*byte)));
    if value.first() == Some(&b'=') {
        shape.push('=');
    }
    if !value.is_empty() {
        shape.push_str(VALUE);
    }
}

/// Whether what follows an option is a text that the program is to run.
fn is_before_text(program: &[u8], option: &[u8]) -> bool {
    let letters = option
        .strip_prefix(b"-")
        .filter(|rest| !rest.starts_with(b"-"));
    let interpreter = INTERPRETERS
        .iter()
        .find(|(name, _)| program.starts_with(name));
    match interpreter {
        Some((_, Interpreter::Option(last, others))) => {
            letters
                .and_then(<[u8]>::last)
                .is_some_and(|letter| last.contains(letter))
                || others.contains(&option)
        }
        // Every shell's name ends so: sh, ash, bash, dash, zsh, ksh, fish.
        Some((_, Interpreter::Shell)) => letters.is_some_and(|letters| letters.contains(&b'c')),
        None => program.ends_with(b"sh") && letters.is_some_and(|letters| letters.contains(&b'c')),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn vector(line: &str) -> Vec<Vec<u8>> {
        line.split(' ')
            .map(|word| word.as_bytes().to_vec())
            .collect()
    }

    #[test]
    fn options_stay_and_values_go() {
        let check = |path: &str, line: &str, expect: &str| {
            let mut seen = String::from("what was there before");
            shape(path.as_bytes(), &vector(line), &mut seen);
            assert_eq!(seen, expect, "{line}");
        };
        check("/usr/sbin/nginx", "nginx -g daemon", "-g *");
        check("/usr/sbin/nginx", "nginx", "");
        check(
            "/bin/x",
            "x --port=80 -p8080 -vv a b c -",
            "--port=* -p* -vv *",
        );
        check("/bin/x", "x -1 --", "-* --");
        check("/bin/x", "x -I/usr/include -Dname=1", "-I* -Dname=*");
        check("/bin/busybox", "wget -q http://x", "[wget] -q *");
        check("/bin/dash", "sh /entry.sh a", "[sh] *");
        check(
            "/bin/dash",
            "sh -ec id",
            &format!("[sh] -ec text:{}", &Sha256::of(b"id").to_string()[..16]),
        );
        check(
            "/usr/bin/python3.11",
            "python3 -c x",
            &format!("[python3] -c text:{}", &Sha256::of(b"x").to_string()[..16]),
        );
        check("/usr/bin/python3.11", "python3.11 -m http.server", "-m *");
        check("/bin/x", "a\u{7}b", "[a?b]");
    }

    #[test]
    fn a_command_is_its_program_and_the_shape_of_its_arguments() {
        let check = |line: &str, expect: &str| {
            let mut seen = String::new();
            command(&vector(line), &mut seen);
            assert_eq!(seen, expect);
        };
        check("pg_isready -U postgres", "pg_isready -U *");
        check("/bin/ls", "/bin/ls");
        check("", "");
    }

    proptest! {
        #[test]
        fn shapes_are_bounded(arguments: Vec<Vec<u8>>, path: Vec<u8>) {
            let mut seen = String::new();
            shape(&path, &arguments, &mut seen);
            prop_assert!(is_shape(&seen), "{seen}");
            command(&arguments, &mut seen);
            prop_assert!(is_shape(&seen), "{seen}");
        }
    }
}
