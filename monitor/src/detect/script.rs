//! Whether a file that an interpreter opened is a script to it or data: by what the interpreter was
//! told to do, by what it reads without being told, and by the file's name.

mod interpreter;

pub use interpreter::Class;
use interpreter::Orders;

use crate::{
    containers::processes::Program,
    image::{contents::Contents, layer::EntryKind},
    sensor::event::Sign,
};

/// Bytes of a file that are looked at.
pub const HEAD_BYTES: usize = 256;

/// An interpreter's open of a file.
pub struct Opened<'a> {
    /// What the process executes; `None` if that is not known.
    pub program: Option<&'a Program>,
    /// The file's path as the process sees it.
    pub path: &'a [u8],
    /// It was the standard input when the interpreter was executed.
    pub is_standard_input: bool,
}

/// What the file is to the interpreter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// It runs the file.
    Script,
    /// A shell reads it: it runs the file if it then does with it what this kind of shell does
    /// with its commands.
    Sourced(ShellKind),
    /// It does something else with it.
    Data,
}

/// How a shell treats its commands, see [`Sign`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShellKind {
    /// bash asks for a sourced file's size, and reads it whole.
    Bash,
    /// dash and busybox move the descriptor of their commands out of the way.
    Dash,
    /// One or the other.
    Unknown,
}

impl ShellKind {
    fn of(program: &Program) -> Self {
        match program.name() {
            b"bash" | b"rbash" => Self::Bash,
            b"dash" | b"ash" => Self::Dash,
            name if name.starts_with(b"busybox") => Self::Dash,
            _ => Self::Unknown,
        }
    }

    /// What a sign shows; `None` if nothing. `is_newest` says that the process opened no other file
    /// since: what a shell saves before it redirects again, it moves as dash does its commands.
    pub fn shown_by(self, sign: Sign, is_newest: bool) -> Option<Shown> {
        let runs = match (self, sign) {
            (_, Sign::Redirected) => return Some(Shown::Data),
            (Self::Bash, sign) => sign == Sign::Examined,
            (Self::Dash, sign) => sign == Sign::Kept && is_newest,
            (Self::Unknown, sign) => sign == Sign::Examined || is_newest,
        };
        runs.then_some(Shown::Run)
    }
}

/// What a sign shows of a file that a shell opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// The shell runs it.
    Run,
    /// It is the input of a command.
    Data,
}

/// Decides it.
pub fn judge(opened: &Opened<'_>) -> Use {
    let Some(program) = opened.program else {
        return if opened.is_standard_input || is_known_data(opened.path) {
            Use::Data
        } else {
            Use::Sourced(ShellKind::Unknown)
        };
    };
    let (class, arguments) = Class::of(program);
    if class == Class::None {
        return Use::Data;
    }
    let orders = Orders::read(class, arguments);
    if opened.is_standard_input {
        return if orders.standard_input {
            Use::Script
        } else {
            Use::Data
        };
    }
    let named = program.script.iter().map(Vec::as_slice);
    let mut ordered = named.chain(orders.files.iter().copied());
    if ordered.any(|operand| is_named(opened.path, operand)) {
        return Use::Script;
    }
    if class.has_modules(opened.path) {
        return Use::Script;
    }
    match class {
        Class::Shell if !is_known_data(opened.path) => Use::Sourced(ShellKind::of(program)),
        _ => Use::Data,
    }
}

/// Whether a shell would take what begins like this for commands; they all refuse a file with a NUL
/// in its first line.
pub fn is_text(head: &[u8]) -> bool {
    !head.contains(&0)
}

/// Whether a file is bytecode that python made of a source of the image and keeps beside it. Whoever
/// can write there can forge one, but nothing short of compiling the source again would tell.
pub fn is_own_cache(contents: &Contents, path: &[u8], head: &[u8]) -> bool {
    source_of_cache(path)
        .and_then(|source| contents.lookup(&source))
        .is_some_and(|found| match found.kind {
            EntryKind::File { size, .. } => is_cache_of(head, size),
            _ => false,
        })
}

/// Whether python would keep bytecode of a source of the image at this path.
pub fn is_place_of_cache(contents: &Contents, path: &[u8]) -> bool {
    source_of_cache(path)
        .and_then(|source| contents.lookup(&source))
        .is_some_and(|found| matches!(found.kind, EntryKind::File { .. }))
}

/// The source of one of python's own bytecode caches: `DIR/NAME.py` of
/// `DIR/__pycache__/NAME.cpython-311.pyc`.
fn source_of_cache(path: &[u8]) -> Option<Vec<u8>> {
    let slash = path.iter().rposition(|byte| *byte == b'/')?;
    let (directory, file) = (path.get(..slash)?, path.get(slash + 1..)?);
    let directory = directory.strip_suffix(b"__pycache__")?;
    let tagged = file.strip_suffix(b".pyc")?;
    let mut parts = tagged.split(|byte| *byte == b'.');
    let (name, tag) = (parts.next()?, parts.next()?);
    // Further parts tell of optimisation (`.opt-1`).
    (tag.starts_with(b"cpython-") || tag.starts_with(b"pypy"))
        .then(|| [directory, name, b".py"].concat())
}

/// Whether a cache that begins with `head` was made from a source of this length: python says so in
/// the header (PEP 552), and does not run a cache whose header does not fit the source's length and
/// time. A cache that is bound by hash or by nothing is run unchecked, and is none.
fn is_cache_of(head: &[u8], source_bytes: u64) -> bool {
    let field = |at: usize| -> Option<u32> {
        Some(u32::from_le_bytes(head.get(at..at + 4)?.try_into().ok()?))
    };
    // Magic number, flags, modification time, length modulo 2^32.
    field(4) == Some(0) && field(12).map(u64::from) == Some(source_bytes & u64::from(u32::MAX))
}

/// Whether `path` is what a process means by `operand`, as far as that can be told without its
/// working directory and without following symlinks.
fn is_named(path: &[u8], operand: &[u8]) -> bool {
    let mut components: Vec<&[u8]> = Vec::new();
    for component in operand.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => drop(components.pop()),
            component => components.push(component),
        }
    }
    let mut path = path.rsplit(|byte| *byte == b'/');
    !components.is_empty()
        && components
            .iter()
            .rev()
            .all(|component| path.next() == Some(*component))
}

/// What shells read by themselves or by the C library, and run nothing of.
const KNOWN_DATA: &[&[u8]] = &[
    b"/etc/passwd",
    b"/etc/group",
    b"/etc/nsswitch.conf",
    b"/etc/hosts",
    b"/etc/hostname",
    b"/etc/resolv.conf",
    b"/etc/host.conf",
    b"/etc/gai.conf",
    b"/etc/services",
    b"/etc/localtime",
    b"/etc/timezone",
    b"/etc/ld.so.cache",
    b"/etc/ld.so.preload",
    b"/etc/inputrc",
    b"/etc/locale.alias",
    b"/etc/terminfo",
    b"/etc/shells",
];
/// Directories of such files.
const KNOWN_DATA_BELOW: &[&[u8]] = &[
    b"/usr/share/zoneinfo/",
    b"/usr/share/locale/",
    b"/usr/lib/locale/",
    b"/usr/share/terminfo/",
    b"/lib/terminfo/",
    b"/usr/lib/terminfo/",
    b"/etc/terminfo/",
    b"/proc/",
    b"/sys/",
];
/// Names of such files in any directory.
const KNOWN_DATA_NAMED: &[&[u8]] = &[
    b".inputrc",
    b".bash_history",
    b".ash_history",
    b".sh_history",
    b".zsh_history",
    b".history",
    b"gconv-modules.cache",
];

fn is_known_data(path: &[u8]) -> bool {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
    KNOWN_DATA.contains(&path)
        || KNOWN_DATA_NAMED.contains(&name)
        || KNOWN_DATA_BELOW
            .iter()
            .any(|directory| path.starts_with(directory))
}

#[cfg(test)]
mod tests;
