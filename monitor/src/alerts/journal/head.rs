//! The file that makes cursors unique: which journal this is, and how far its cursors may have been
//! given out.
//!
//! It is written in place and by turns into two slots, each with a number and a checksum: a write
//! that is torn leaves the other slot, and a full disk does not prevent it, since the bytes are
//! there already. A third slot notes without waiting for the disk what was written, so that a
//! segment that was cut between two records is not taken for whole.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
};

use ulid::Ulid;

const MAGIC: [u8; 8] = *b"monhead1";
/// Apart by more than what a disk writes at once.
const SLOT_BYTES: u64 = 4096;
const SLOTS: u64 = 2;
const NOTE_SLOT: u64 = SLOTS;
const CONTENT_BYTES: usize = 8 + 8 + 16 + 8 + 8 + 16 + 4 + 4;

/// What is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) journal: Ulid,
    /// No cursor above this one was given to anybody.
    pub(super) reserved: u64,
    /// A cursor that was written; the newest, if the process alone died.
    pub(super) newest: u64,
    /// The boot in which it was written: what was written in the same boot is still there when only
    /// the process died.
    pub(super) boot: [u8; 16],
    /// The daemon stopped with everything on disk.
    pub(super) is_clean: bool,
    /// Alerts were given out that are in no segment.
    pub(super) is_memory_only: bool,
}

impl Head {
    fn encode(&self, number: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(CONTENT_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(number.to_le_bytes());
        bytes.extend(self.journal.to_bytes());
        bytes.extend(self.reserved.to_le_bytes());
        bytes.extend(self.newest.to_le_bytes());
        bytes.extend(self.boot);
        bytes.extend([u8::from(self.is_clean), u8::from(self.is_memory_only), 0, 0]);
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; CONTENT_BYTES]) -> Option<(u64, Self)> {
        let (content, checksum) = bytes.split_last_chunk::<4>()?;
        if crc32fast::hash(content) != u32::from_le_bytes(*checksum) {
            return None;
        }
        let mut rest = content.strip_prefix(&MAGIC)?;
        let mut take = |count| rest.split_off(..count);
        let number = u64::from_le_bytes(take(8)?.try_into().ok()?);
        let head = Self {
            journal: Ulid::from_bytes(take(16)?.try_into().ok()?),
            reserved: u64::from_le_bytes(take(8)?.try_into().ok()?),
            newest: u64::from_le_bytes(take(8)?.try_into().ok()?),
            boot: take(16)?.try_into().ok()?,
            is_clean: take(1)? == [1],
            is_memory_only: take(1)? == [1],
        };
        Some((number, head))
    }
}

/// The open file.
#[derive(Debug)]
pub(super) struct HeadFile {
    file: File,
    /// Of the next write.
    number: u64,
    /// The slot of the next write that is waited for.
    slot: u64,
}

impl HeadFile {
    /// Opens or makes the file, and reads the newest slot that is whole; `None` if none is.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Option<Head>)> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        let whole = (SLOTS + 1) * SLOT_BYTES;
        let length = file.metadata()?.len();
        if let Ok(missing @ 1..) = usize::try_from(whole.saturating_sub(length)) {
            // Room for all slots, so that none is wanting when the disk is full.
            file.write_all_at(&vec![0; missing], length)?;
        }
        let mut newest: Option<(u64, Head)> = None;
        let mut older = (0, u64::MAX);
        for slot in 0..=NOTE_SLOT {
            let mut bytes = [0; CONTENT_BYTES];
            let read = file.read_exact_at(&mut bytes, slot * SLOT_BYTES);
            let found = read.ok().and_then(|()| Head::decode(&bytes));
            let place = found.map_or(0, |(number, _)| number + 1);
            if slot < SLOTS && place < older.1 {
                older = (slot, place);
            }
            if let Some((number, head)) = found
                && newest.is_none_or(|(other, _)| number > other)
            {
                newest = Some((number, head));
            }
        }
        let file = Self {
            file,
            number: newest.map_or(0, |(number, _)| number + 1),
            slot: older.0,
        };
        Ok((file, newest.map(|(_, head)| head)))
    }

    /// Replaces the older slot and waits for the disk.
    pub(super) fn write(&mut self, head: &Head) -> io::Result<()> {
        self.write_slot(self.slot, head)?;
        self.file.sync_data()?;
        self.slot = (self.slot + 1) % SLOTS;
        Ok(())
    }

    /// Replaces the note, which outlives the process but perhaps not the node.
    pub(super) fn note(&mut self, head: &Head) -> io::Result<()> {
        self.write_slot(NOTE_SLOT, head)
    }

    fn write_slot(&mut self, slot: u64, head: &Head) -> io::Result<()> {
        let mut bytes = head.encode(self.number);
        // The whole slot, so that later writes need no room.
        bytes.resize(usize::try_from(SLOT_BYTES).unwrap_or(CONTENT_BYTES), 0);
        self.file.write_all_at(&bytes, slot * SLOT_BYTES)?;
        self.number += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::fs;

    use super::*;

    fn head(reserved: u64) -> Head {
        Head {
            journal: Ulid::from_bytes([7; 16]),
            reserved,
            newest: 3,
            boot: [9; 16],
            is_clean: reserved.is_multiple_of(2),
            is_memory_only: reserved.is_multiple_of(3),
        }
    }

    #[test]
    fn the_newest_whole_slot_is_what_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("head");
        let (mut file, found) = HeadFile::open(&path).unwrap();
        assert_eq!(found, None);
        for reserved in 1..=5 {
            file.write(&head(reserved)).unwrap();
            assert_eq!(HeadFile::open(&path).unwrap().1, Some(head(reserved)));
        }
        file.note(&head(6)).unwrap();
        assert_eq!(HeadFile::open(&path).unwrap().1, Some(head(6)));
        let whole = fs::read(&path).unwrap();
        let noted = usize::try_from(NOTE_SLOT * SLOT_BYTES).unwrap();
        for at in 0..CONTENT_BYTES {
            for bit in 0..8 {
                let mut bytes = whole.clone();
                *bytes.get_mut(noted + at).unwrap() ^= 1 << bit;
                fs::write(&path, &bytes).unwrap();
                assert_eq!(HeadFile::open(&path).unwrap().1, Some(head(5)), "{at}");
                // 5 was written to the first slot, 4 to the second.
                *bytes.get_mut(at).unwrap() ^= 1 << bit;
                fs::write(&path, &bytes).unwrap();
                assert_eq!(HeadFile::open(&path).unwrap().1, Some(head(4)), "{at}");
            }
        }
    }
}
