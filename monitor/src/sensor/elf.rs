//! As much of ELF as tells which of the held files belong together.

use std::{
    fs::File,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
};

use nix::sys::stat::fstat;

/// What an ELF file begins with.
pub const MAGIC: &[u8] = b"\x7fELF";

const CLASS_64: u8 = 2;
const PT_INTERP: u32 = 3;
/// Program headers looked at; compilers make about a dozen.
const HEADERS_MAX: usize = 128;

/// Whether the file begins as an ELF file does.
pub(super) fn is_elf(file: &OwnedFd) -> bool {
    let mut start = [0; MAGIC.len()];
    let file = file.try_clone().map(File::from);
    file.is_ok_and(|file| file.read_exact_at(&mut start, 0).is_ok()) && start == MAGIC
}

/// Whether the file is one of these inodes.
pub(super) fn is_inode(file: &OwnedFd, inodes: &[u64]) -> bool {
    fstat(file.as_fd()).is_ok_and(|stat| inodes.contains(&stat.st_ino))
}

/// Whether the file is an ELF program that names an interpreter (`ld.so`).
pub(super) fn has_interpreter(file: &OwnedFd) -> bool {
    let Ok(file) = file.try_clone().map(File::from) else {
        return false;
    };
    let read = |offset: u64, length: usize| {
        let mut bytes = vec![0; length];
        let read = file.read_at(&mut bytes, offset).ok()?;
        bytes.truncate(read);
        Some(bytes)
    };
    read(0, 64).is_some_and(|header| names_interpreter(&header, read))
}

/// Reads the program headers that an ELF header points to (ELF-64 Object File Format, chapters 3
/// and 6; the machine's own byte order, as the kernel demands).
fn names_interpreter(header: &[u8], read: impl Fn(u64, usize) -> Option<Vec<u8>>) -> bool {
    let u16_at = |offset: usize| {
        let bytes = header.get(offset..offset + 2)?;
        Some(usize::from(u16::from_ne_bytes(bytes.try_into().ok()?)))
    };
    let headers = || {
        if !header.starts_with(MAGIC) {
            return None;
        }
        let (offset, size, count) = if *header.get(4)? == CLASS_64 {
            let offset = u64::from_ne_bytes(header.get(32..40)?.try_into().ok()?);
            (offset, u16_at(54)?, u16_at(56)?)
        } else {
            let offset = u32::from_ne_bytes(header.get(28..32)?.try_into().ok()?);
            (u64::from(offset), u16_at(42)?, u16_at(44)?)
        };
        let bytes = read(offset, size.checked_mul(count.min(HEADERS_MAX))?)?;
        Some((bytes, size))
    };
    headers().is_some_and(|(bytes, size)| {
        size >= 4
            && bytes
                .chunks_exact(size)
                .any(|entry| entry.starts_with(&PT_INTERP.to_ne_bytes()))
    })
}

#[cfg(test)]
#[expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn program(class: u8, types: &[u32]) -> Vec<u8> {
        let (header, entry) = if class == CLASS_64 {
            (64, 56)
        } else {
            (52, 32)
        };
        let mut bytes = vec![0; 64];
        bytes[..4].copy_from_slice(MAGIC);
        bytes[4] = class;
        let count = u16::try_from(types.len()).unwrap().to_ne_bytes();
        let size = u16::try_from(entry).unwrap().to_ne_bytes();
        if class == CLASS_64 {
            bytes[32..40].copy_from_slice(&64u64.to_ne_bytes());
            bytes[54..56].copy_from_slice(&size);
            bytes[56..58].copy_from_slice(&count);
        } else {
            bytes[28..32].copy_from_slice(&64u32.to_ne_bytes());
            bytes[42..44].copy_from_slice(&size);
            bytes[44..46].copy_from_slice(&count);
        }
        assert!(header <= 64);
        for kind in types {
            let mut entry = vec![0; entry];
            entry[..4].copy_from_slice(&kind.to_ne_bytes());
            bytes.extend(entry);
        }
        bytes
    }

    fn names(file: &[u8]) -> bool {
        let read = |offset: u64, length: usize| {
            let rest = file.get(usize::try_from(offset).ok()?..)?;
            Some(rest[..length.min(rest.len())].to_vec())
        };
        names_interpreter(&file[..file.len().min(64)], read)
    }

    #[test]
    fn a_dynamic_program_names_its_interpreter() {
        let check = |file: &[u8], expect: bool| assert_eq!(names(file), expect);
        check(&program(2, &[6, PT_INTERP, 1]), true);
        check(&program(1, &[6, PT_INTERP, 1]), true);
        check(&program(2, &[6, 1]), false);
        check(&program(1, &[]), false);
        check(b"#!/bin/sh\n", false);
        check(b"", false);
    }

    proptest! {
        #[test]
        fn damaged_headers_never_panic(at in 0usize..300, value: u8, cut in 0usize..300) {
            let mut file = program(2, &[6, PT_INTERP, 1, 1]);
            let length = file.len();
            file[at % length] = value;
            file.truncate(cut);
            names(&file);
        }
    }
}
