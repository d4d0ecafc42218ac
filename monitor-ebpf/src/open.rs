//! An interpreter opened a file for reading, or does with it as shells do with their commands.

use monitor_common::{
    Hook, HookSet, RecordKind,
    interpreter::Interpreter,
    open::{OPEN_STANDARD_INPUT, OpenRecord, Sign, SourceRecord},
};
use zerocopy::IntoBytes as _;

use crate::{
    file::{self, Opened},
    interpreter,
    kernel::{Pointer, offset},
    maps::{self, Outcome},
    record::{self, Begun},
    scratch::Claim,
    task::{self, Watched},
};

/// `FMODE_READ` of `include/linux/fs.h`.
const FMODE_READ: u32 = 1;
/// `FMODE_WRITE`, likewise.
const FMODE_WRITE: u32 = 2;
/// `FMODE_PATH`, likewise: such a descriptor cannot be read.
const FMODE_PATH: u32 = 1 << 14;
/// `__FMODE_EXEC`, likewise, in `f_flags`: opened by execve.
const FMODE_EXEC: u32 = 1 << 5;
const NO_INTERPRETER: u32 = Interpreter::None as u32;
/// `S_IFMT` and `S_IFREG` of `include/uapi/linux/stat.h`.
const FILE_TYPE: u32 = 0o170_000;
const REGULAR_FILE: u32 = 0o100_000;
/// `PROC_SUPER_MAGIC`, `SYSFS_MAGIC` and `CGROUP2_SUPER_MAGIC` of `include/uapi/linux/magic.h`:
/// files that the kernel writes itself.
const KERNEL_FILESYSTEMS: [u32; 3] = [0x9fa0, 0x6265_6572, 0x6367_7270];

/// Runs when a task has opened `file`.
#[inline(always)]
pub fn observe(file: Pointer, descriptor: u32, hook: HookSet) {
    let outcome = match Watched::current(hook) {
        Some(watched) => observe_in(&watched, file, descriptor, 0),
        None => Outcome::Unwatched,
    };
    maps::count(Hook::Open, outcome);
}

/// Runs when an interpreter was executed.
#[inline(always)]
pub fn observe_standard_input(watched: &Watched) {
    let Some(file) = file_of(watched.task, 0) else {
        return;
    };
    let outcome = observe_in(watched, file, 0, OPEN_STANDARD_INPUT);
    maps::count(Hook::Open, outcome);
}

#[inline(always)]
fn observe_in(watched: &Watched, file: Pointer, descriptor: u32, flags: u32) -> Outcome {
    if flags & OPEN_STANDARD_INPUT == 0 {
        match interpreter::of_task(watched.task) {
            Some(NO_INTERPRETER) => return Outcome::Unwatched,
            Some(_) => {}
            None => return Outcome::Unreadable,
        }
    }
    let Some(claim) = Claim::take() else {
        return Outcome::Unreadable;
    };
    let outcome = send(claim, watched, file, descriptor, flags).unwrap_or(Outcome::Unreadable);
    claim.release();
    outcome
}

#[inline(always)]
fn send(
    claim: Claim,
    watched: &Watched,
    file: Pointer,
    descriptor: u32,
    flags: u32,
) -> Option<Outcome> {
    let mode: u32 = file.probe(offset!(file_mode))?;
    let open_flags: u32 = file.probe(offset!(file_flags))?;
    // What is opened for writing as well is data; of a standard input only reading is known.
    let may_write = mode & FMODE_WRITE != 0 && flags & OPEN_STANDARD_INPUT == 0;
    let cannot_read = mode & FMODE_READ == 0 || mode & FMODE_PATH != 0;
    if cannot_read || may_write || open_flags & FMODE_EXEC != 0 {
        return Some(Outcome::Unwatched);
    }
    // An overlay opens the real file itself, of which nobody has a descriptor.
    if file::is_internal(file)? {
        return Some(Outcome::Unwatched);
    }
    let opened = Opened::of(file)?;
    if opened.was_backing {
        return Some(Outcome::Unwatched);
    }
    opened.write_facts(claim.file())?;
    let facts = claim.file();
    if facts.mode & FILE_TYPE != REGULAR_FILE
        || KERNEL_FILESYSTEMS.contains(&facts.filesystem_magic)
    {
        return Some(Outcome::Unwatched);
    }
    if watched.remembers(claim) {
        return Some(Outcome::Remembered);
    }
    let begun = Begun::new(claim, watched, &opened, size_of::<OpenRecord>())?;
    let record = OpenRecord {
        header: record::header(RecordKind::Open, watched.hook, begun.end),
        task: *claim.task(),
        file: *claim.file(),
        path: begun.path,
        descriptor,
        flags,
    };
    let truncated = begun.is_truncated();
    record::submit(claim, record, begun.end, truncated)
}

/// Runs when a task does something to a descriptor that shells do to those of their commands.
#[inline(always)]
pub fn observe_source(descriptor: u64, sign: Sign, hook: HookSet) {
    let Some(watched) = Watched::current(hook) else {
        maps::count(Hook::Source, Outcome::Unwatched);
        return;
    };
    let outcome = source(&watched, descriptor, sign).unwrap_or(Outcome::Unreadable);
    maps::count(Hook::Source, outcome);
}

#[inline(always)]
fn source(watched: &Watched, descriptor: u64, sign: Sign) -> Option<Outcome> {
    if interpreter::of_task(watched.task)? != Interpreter::Shell as u32 {
        return Some(Outcome::Unwatched);
    }
    let Some(file) = file_of(watched.task, descriptor) else {
        return Some(Outcome::Unwatched);
    };
    let (inode, device) = Opened::of(file)?.key()?;
    let record = SourceRecord {
        header: record::header(RecordKind::Source, watched.hook, size_of::<SourceRecord>()),
        start_boot_ns: task::start_boot_ns(watched.task),
        inode,
        pid: watched.task.load(offset!(task_tgid)),
        device,
        sign: sign as u32,
        reserved: 0,
    };
    Some(if maps::submit_without_waking(record.as_bytes()) {
        Outcome::Submitted { truncated: false }
    } else {
        Outcome::RingFull
    })
}

/// The file behind a descriptor of a trusted task.
#[inline(always)]
pub fn file_of(task: Pointer, descriptor: u64) -> Option<Pointer> {
    let table = task
        .follow(offset!(task_files))
        .probe_follow(offset!(files_fdt))?;
    if descriptor >= u64::from(table.probe::<u32>(offset!(fdtable_max))?) {
        return None;
    }
    let file = table
        .probe_follow(offset!(fdtable_fd))?
        .probe_follow(descriptor as usize * size_of::<u64>())?;
    (!file.is_null()).then_some(file)
}
