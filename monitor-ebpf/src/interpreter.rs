//! Knows programs that turn other files into code.

use monitor_common::interpreter::{Interpreter, NAME_BYTES_MAX, OTHERS, SHELLS};

use crate::{
    file::Opened,
    kernel::{Pointer, offset},
    maps::{self, Program},
};

/// Takes note of an executed program if it is an interpreter: by its name, or because the kernel
/// came to it by a `#!` line. Says whether it is one; `None` if it cannot be read.
#[inline(always)]
pub fn note(program: &Opened, of_script: bool) -> Option<bool> {
    let (inode, device) = program.key()?;
    let key = Program {
        inode,
        device,
        reserved: 0,
    };
    let known = maps::interpreter(&key);
    let name = name(program.dentry)?;
    let found = if begins_with(name, &SHELL_PREFIXES) {
        Interpreter::Shell as u32
    } else if of_script || begins_with(name, &OTHER_PREFIXES) {
        Interpreter::Other as u32
    } else {
        known
    };
    // Inodes and devices are used again, so that what is known may be of another program.
    if found != known {
        maps::add_interpreter(&key, found);
    }
    Some(found != Interpreter::None as u32)
}

/// Which interpreter the program of a trusted task is, an `Interpreter`.
#[inline(always)]
pub fn of_task(task: Pointer) -> Option<u32> {
    let file = task.follow(offset!(task_mm)).follow(offset!(mm_exe_file));
    // A thread of the kernel has no program.
    if file.is_null() {
        return Some(Interpreter::None as u32);
    }
    let inode = file.probe_follow(offset!(file_inode))?;
    let superblock = inode.probe_follow(offset!(inode_sb))?;
    Some(maps::interpreter(&Program {
        inode: inode.probe(offset!(inode_ino))?,
        device: superblock.probe(offset!(super_block_dev))?,
        reserved: 0,
    }))
}

/// The first bytes of a file's name, the first one lowest.
#[inline(always)]
fn name(dentry: Pointer) -> Option<u64> {
    // Short names lie in the dentry, behind them are zeros or whatever was there.
    let name = dentry.probe_follow(offset!(dentry_name))?;
    Some(u64::from_le_bytes(name.probe::<[u8; NAME_BYTES_MAX]>(0)?))
}

#[inline(always)]
fn begins_with<const N: usize>(name: u64, prefixes: &[(u64, u64); N]) -> bool {
    let mut found = false;
    let mut index = 0;
    while index < N {
        let (prefix, mask) = prefixes[index];
        found |= name & mask == prefix;
        index += 1;
    }
    found
}

const SHELL_PREFIXES: [(u64, u64); SHELLS.len()] = prefixes(SHELLS);
const OTHER_PREFIXES: [(u64, u64); OTHERS.len()] = prefixes(OTHERS);

/// Each name as a number, and the bits of a name that must be equal to it.
const fn prefixes<const N: usize>(names: &[&[u8]]) -> [(u64, u64); N] {
    let mut prefixes = [(0, 0); N];
    let mut index = 0;
    while index < N {
        let name = names[index];
        assert!(name.len() <= NAME_BYTES_MAX);
        let mut byte = 0;
        while byte < name.len() {
            prefixes[index].0 |= (name[byte] as u64) << (8 * byte);
            prefixes[index].1 |= 0xff << (8 * byte);
            byte += 1;
        }
        index += 1;
    }
    prefixes
}
