//! Ways to run code in a container that its image does not account for, and to reach for peers that
//! no container should, and what must be said of each: run in real containers, natively and in guests with other kernels.

mod code;
pub mod document;
mod image;
mod network;
mod opens;
mod outcome;
mod places;
mod programs;
mod scripts;
mod stage;
mod whose;

use anyhow::Result;

pub use self::image::{GUEST_RUNTIME, PYTHON_PROGRAM as PYTHON, files};
pub use self::outcome::{Outcome, kernel, run};
use self::{image::TOOLS, stage::Stage};

/// One way, and what must be said of it.
#[derive(Clone, Copy, Debug)]
pub struct Technique {
    /// What people call it.
    pub name: &'static str,
    /// What it does, in one sentence.
    pub what: &'static str,
    /// The alerts that its container must raise, each as kind and path, and whether path or
    /// arguments are cut, or as kind, protocol and peer; `*` stands for any part of a path.
    pub raises: &'static [&'static str],
    /// Hooks that cannot see it, each with the reason that the kernel gives. Where one of them is
    /// in force, nothing must be raised: a miss that is none any more is told.
    pub missed: &'static [(&'static str, &'static str)],
    steps: Steps,
    image: &'static str,
    flags: &'static [&'static str],
}

/// Every hook, in [`Technique::missed`].
pub const ALL: &str = "all hooks";

/// How a technique is carried out.
#[derive(Clone, Copy, Debug)]
enum Steps {
    /// By a shell in a container, behind [`FUNCTIONS`].
    Shell(&'static str),
    /// With help from the host.
    Staged(fn(&Stage<'_>) -> Result<()>),
}

/// What the lines of techniques are written with: files that the image does not have, as copies of
/// files that it has, since bytes behind the end change nothing but the hash.
const FUNCTIONS: &str = r#"set -e
program() { cp /bin/probe "$1"; echo salt >> "$1"; }
library() { cp /opt/library.so "$1"; echo salt >> "$1"; }
script() { printf '#!%s\n:\n' "${2:-/bin/sh}" > "$1"; chmod +x "$1"; }
"#;

/// A mount that is not the image's, for [`Technique::flags`].
const VOLUME: &[&str] = &["--mount", "type=tmpfs,src=tmpfs,dst=/volume,options=rw"];

impl Technique {
    const fn new(name: &'static str, what: &'static str, steps: Steps) -> Self {
        Self {
            name,
            what,
            raises: &[],
            missed: &[],
            steps,
            image: TOOLS,
            flags: &[],
        }
    }

    const fn raises(mut self, raises: &'static [&'static str]) -> Self {
        self.raises = raises;
        self
    }

    const fn missed(mut self, missed: &'static [(&'static str, &'static str)]) -> Self {
        self.missed = missed;
        self
    }

    const fn image(mut self, image: &'static str) -> Self {
        self.image = image;
        self
    }

    /// Further options of `ctr run`.
    const fn flags(mut self, flags: &'static [&'static str]) -> Self {
        self.flags = flags;
        self
    }
}

const fn shell(name: &'static str, what: &'static str, line: &'static str) -> Technique {
    Technique::new(name, what, Steps::Shell(line))
}

const fn staged(
    name: &'static str,
    what: &'static str,
    steps: fn(&Stage<'_>) -> Result<()>,
) -> Technique {
    Technique::new(name, what, Steps::Staged(steps))
}

/// All techniques, in groups with a title.
pub const TABLE: [(&str, &[Technique]); 7] = [
    ("Programs", programs::ROWS),
    ("Libraries and other mapped code", code::ROWS),
    ("Scripts", scripts::ROWS),
    ("Opened files", opens::ROWS),
    ("Names and places", places::ROWS),
    ("Whose process, and edits from outside", whose::ROWS),
    ("Peers", network::ROWS),
];

/// All techniques without their groups.
pub fn techniques() -> impl Iterator<Item = &'static Technique> {
    TABLE.iter().flat_map(|(_, rows)| rows.iter())
}
