//! Owners of files as processes of a container see them. Pure but for [`Owners::of`].

use std::{fs, io};

/// How the user namespace of a process shifts owners.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owners {
    users: Vec<Range>,
    groups: Vec<Range>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    inside: u32,
    outside: u32,
    length: u32,
}

impl Owners {
    /// Of the process `pid`.
    ///
    /// # Errors
    ///
    /// The process is gone.
    pub fn of(pid: u32) -> io::Result<Self> {
        let read = |name| fs::read_to_string(format!("/proc/{pid}/{name}"));
        Ok(Self::parse(&read("uid_map")?, &read("gid_map")?))
    }

    /// Reads `uid_map` and `gid_map`; a line that is none is left out.
    pub(super) fn parse(users: &str, groups: &str) -> Self {
        let ranges = |text: &str| text.lines().filter_map(range).collect();
        Self {
            users: ranges(users),
            groups: ranges(groups),
        }
    }

    /// The user inside; one that is not mapped stays as it is.
    pub fn user(&self, outside: u32) -> u32 {
        inside(&self.users, outside)
    }

    /// The group inside, likewise.
    pub fn group(&self, outside: u32) -> u32 {
        inside(&self.groups, outside)
    }
}

fn range(line: &str) -> Option<Range> {
    let mut numbers = line.split_whitespace().map(str::parse);
    let mut number = || numbers.next()?.ok();
    Some(Range {
        inside: number()?,
        outside: number()?,
        length: number()?,
    })
}

fn inside(ranges: &[Range], outside: u32) -> u32 {
    let found = ranges.iter().find_map(|range| {
        let offset = outside.checked_sub(range.outside)?;
        (offset < range.length).then(|| range.inside.checked_add(offset))?
    });
    found.unwrap_or(outside)
}
