//! Capabilities that the kernel gives to whoever executes a file.

use std::{fmt, os::fd::AsFd};

/// Bytes of the extended attribute `security.capability` at most.
pub const ATTRIBUTE_BYTES_MAX: usize = 24;

/// Name of the extended attribute.
pub const ATTRIBUTE: &str = "security.capability";

const VERSION_MASK: u32 = 0xff00_0000;
const VERSION_1: u32 = 0x0100_0000;
const VERSION_2: u32 = 0x0200_0000;
const VERSION_3: u32 = 0x0300_0000;
const EFFECTIVE: u32 = 1;

/// What `struct vfs_cap_data` of `include/uapi/linux/capability.h` says. The user namespace that
/// version 3 names is left out: the kernel answers with another one according to who asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileCapability {
    /// Capabilities that are gained, a bit each.
    pub permitted: u64,
    /// Capabilities that are gained if the process has them inheritable.
    pub inheritable: u64,
    /// They are in force at once.
    pub effective: bool,
}

impl FileCapability {
    /// Reads the value of the extended attribute; `None` if the kernel would not take it.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (words, []) = value.as_chunks::<4>() else {
            return None;
        };
        let word = |index: usize| words.get(index).map(|word| u32::from_le_bytes(*word));
        let header = word(0)?;
        let length = match header & VERSION_MASK {
            VERSION_1 => 3,
            VERSION_2 => 5,
            VERSION_3 => 6,
            _ => return None,
        };
        if words.len() != length {
            return None;
        }
        let is_wide = length > 3;
        let high = |index| is_wide.then(|| word(index)).flatten().map_or(0, u64::from) << 32;
        Some(Self {
            permitted: u64::from(word(1)?) | high(3),
            inheritable: u64::from(word(2)?) | high(4),
            effective: header & EFFECTIVE != 0,
        })
    }

    /// Of an open file; most have none, and most filesystems know none.
    pub fn of_file(file: impl AsFd) -> Option<Self> {
        let mut value = [0; ATTRIBUTE_BYTES_MAX];
        let length = rustix::fs::fgetxattr(file, ATTRIBUTE, &mut value).ok()?;
        Self::parse(value.get(..length)?)
    }

    /// Whether it gives what `other` does not.
    pub fn exceeds(&self, other: &Self) -> bool {
        self.permitted & !other.permitted != 0
            || self.inheritable & !other.inheritable != 0
            || (self.effective && !other.effective && self.permitted != 0)
    }
}

impl fmt::Display for FileCapability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (permitted, inheritable) = (self.permitted, self.inheritable);
        let effective = if self.effective { ", effective" } else { "" };
        write!(
            f,
            "permitted {permitted:#x}, inheritable {inheritable:#x}{effective}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(hex: &str, expect: Option<(u64, u64, bool)>) {
        let value = hex::decode(hex).unwrap_or_default();
        let seen = FileCapability::parse(&value);
        let seen = seen.map(|seen| (seen.permitted, seen.inheritable, seen.effective));
        assert_eq!(seen, expect, "{hex}");
    }

    #[test]
    fn an_attribute_is_read_as_the_kernel_reads_it() {
        // `setcap cap_net_raw=ep`, as getfattr shows it.
        check(
            "0100000200200000000000000000000000000000",
            Some((1 << 13, 0, true)),
        );
        // The same for the root of another user namespace.
        check(
            "0100000300200000000000000000000000000000e8030000",
            Some((1 << 13, 0, true)),
        );
        check("000000010020000001000000", Some((1 << 13, 1, false)));
        // cap_bpf is in the second word.
        check(
            "0000000200000000000000008000000000000000",
            Some((1 << 39, 0, false)),
        );
        for refused in [
            "",
            "01",
            "01000002",
            "0100000900200000000000000000000000000000",
            "010000020020000000000000000000000000000000",
        ] {
            check(refused, None);
        }
    }

    #[test]
    fn less_does_not_exceed_more() {
        let raw = FileCapability {
            permitted: 1 << 13,
            inheritable: 0,
            effective: true,
        };
        let lame = FileCapability {
            effective: false,
            ..raw
        };
        let none = FileCapability::default();
        for (seen, expected, exceeds) in [
            (raw, raw, false),
            (raw, lame, true),
            (lame, raw, false),
            (raw, none, true),
            (none, raw, false),
            (
                FileCapability {
                    permitted: 1,
                    ..raw
                },
                raw,
                true,
            ),
            (
                FileCapability {
                    inheritable: 1,
                    ..raw
                },
                raw,
                true,
            ),
        ] {
            assert_eq!(seen.exceeds(&expected), exceeds, "{seen:?} {expected:?}");
        }
    }
}
