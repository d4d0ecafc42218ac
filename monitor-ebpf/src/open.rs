//! A file was opened, or a shell does with it as shells do with their commands.

use monitor_common::{
    Hook, HookSet, RecordKind,
    interpreter::Interpreter,
    open::{
        OPEN_INTERPRETED, OPEN_READ, OPEN_RECEIVED, OPEN_STANDARD_INPUT, OPEN_WRITE, OpenRecord,
        Sign, SourceRecord,
    },
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
    observe_with(file, descriptor, 0, hook);
}

/// Runs when a task has received `file`, which another opened.
#[inline(always)]
pub fn observe_received(file: Pointer, descriptor: u32, hook: HookSet) {
    observe_with(file, descriptor, OPEN_RECEIVED, hook);
}

#[inline(always)]
fn observe_with(file: Pointer, descriptor: u32, flags: u32, hook: HookSet) {
    let outcome = match Watched::current(hook) {
        Some(watched) => observe_in(&watched, file, descriptor, flags),
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
    let Some(claim) = Claim::take() else {
        return Outcome::MapFull;
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
    let is_standard_input = flags & OPEN_STANDARD_INPUT != 0;
    let access = access(file)?;
    // Of a standard input only reading is known.
    if access == 0 || (is_standard_input && access & OPEN_READ == 0) {
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
    let (mode, magic) = opened.mode_and_magic()?;
    if mode & FILE_TYPE != REGULAR_FILE || KERNEL_FILESYSTEMS.contains(&magic) {
        return Some(Outcome::Unwatched);
    }
    // What is opened for writing as well is data, and so is what no name led to.
    let mut may_become_code = is_standard_input
        || (access == OPEN_READ
            && flags & OPEN_RECEIVED == 0
            && interpreter::of_task(watched.task)? != NO_INTERPRETER);
    let is_known = is_standard_input
        || maps::is_open_known(&opened.open_key(magic, watched.cgroup_id, access)?);
    if is_known && !may_become_code {
        return Some(Outcome::Remembered);
    }
    opened.write_facts(claim.file())?;
    if may_become_code && watched.remembers(claim) {
        if is_known {
            return Some(Outcome::Remembered);
        }
        may_become_code = false;
    }
    if !may_become_code && !maps::has_room() {
        return Some(Outcome::RingFull);
    }
    let begun = Begun::new(claim, watched, &opened, size_of::<OpenRecord>())?;
    let header = record::header(RecordKind::Open, watched.hook, begun.end);
    // Here, since older verifiers forget on the way how long the record is.
    let wakes = may_become_code || maps::wakes_for_open(header.time_boot_ns);
    let record = OpenRecord {
        header,
        task: *claim.task(),
        file: *claim.file(),
        path: begun.path,
        descriptor,
        flags: flags | access | if may_become_code { OPEN_INTERPRETED } else { 0 },
    };
    let truncated = begun.is_truncated();
    record::submit_by(claim, record, begun.end, truncated, |record| {
        maps::submit_open(record, wakes)
    })
}

/// What a file was opened for: [`OPEN_READ`], [`OPEN_WRITE`]; 0 if neither, or by execve.
#[inline(always)]
fn access(file: Pointer) -> Option<u32> {
    let mode: u32 = file.probe(offset!(file_mode))?;
    let open_flags: u32 = file.probe(offset!(file_flags))?;
    if mode & FMODE_PATH != 0 || open_flags & FMODE_EXEC != 0 {
        return Some(0);
    }
    let mut access = 0;
    if mode & FMODE_READ != 0 {
        access |= OPEN_READ;
    }
    if mode & FMODE_WRITE != 0 {
        access |= OPEN_WRITE;
    }
    Some(access)
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
