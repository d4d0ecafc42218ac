//! What was mounted on a container's root filesystem: the runtime makes an empty file or directory
//! where the image has none.

use std::{collections::BTreeSet, fs, io};

use super::walk::{Kind, Node, Seen};
use crate::containers::procfs;

/// Where something is mounted, and the directories on the way there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountPoints(BTreeSet<Vec<u8>>);

impl MountPoints {
    /// As the process `pid` sees them.
    ///
    /// # Errors
    ///
    /// The process is gone.
    pub fn of(pid: u32) -> io::Result<Self> {
        Ok(Self::parse(&fs::read(format!("/proc/{pid}/mountinfo"))?))
    }

    /// Reads `mountinfo`; a line that is none is left out. The kernel bounds the number of mounts.
    pub(super) fn parse(mountinfo: &[u8]) -> Self {
        let mut found = BTreeSet::new();
        for line in mountinfo.split(|byte| *byte == b'\n') {
            let Some(point) = line.split(|byte| *byte == b' ').nth(4) else {
                continue;
            };
            let point = procfs::unescaped(point);
            let slashes = point.iter().enumerate().skip(1);
            for (end, _) in slashes.filter(|(_, byte)| **byte == b'/') {
                found.extend(point.get(..end).map(<[u8]>::to_vec));
            }
            found.insert(point);
        }
        Self(found)
    }

    /// Whether a path that the image does not have is there to be mounted on.
    pub(super) fn account_for(&self, seen: &Seen) -> bool {
        let is_empty = match &seen.node {
            Ok(Node {
                kind: Kind::File { size, .. },
                ..
            }) => *size == 0,
            Ok(Node { kind, .. }) => matches!(kind, Kind::Directory),
            Err(_) => false,
        };
        is_empty && self.0.contains(&seen.path)
    }
}
