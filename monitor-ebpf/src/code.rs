//! A file was mapped executable.

use monitor_common::{
    Hook, HookSet, RecordKind,
    code::{CODE_ANONYMOUS, CODE_WRITTEN, CodeRecord},
    file::FileFacts,
    path::PathLengths,
};

use crate::{
    file::Opened,
    kernel::{Pointer, offset, opaque},
    maps::{self, Outcome},
    record::{self, Begun},
    scratch::Claim,
    task::Watched,
};

/// `PROT_EXEC` of `include/uapi/asm-generic/mman-common.h`.
pub const PROT_EXEC: u64 = 4;
const PROT_READ: u64 = 1;
/// `READ_IMPLIES_EXEC` of `include/uapi/linux/personality.h`.
const READ_IMPLIES_EXEC: u32 = 0x0040_0000;

/// Whether a mapping asked for with this protection can be executed.
#[inline(always)]
pub fn is_executable(protection: u64) -> bool {
    let implied =
        || Pointer::current_task().load::<u32>(offset!(task_personality)) & READ_IMPLIES_EXEC != 0;
    protection & PROT_EXEC != 0 || (protection & PROT_READ != 0 && implied())
}

/// A mapping; zeros where the kernel has not chosen its place yet.
#[derive(Clone, Copy)]
pub struct Mapping {
    pub start: u64,
    pub end: u64,
    /// Its pages were written before.
    pub written: bool,
}

impl Mapping {
    /// Of a mapping that is being made.
    pub const NEW: Self = Self {
        start: 0,
        end: 0,
        written: false,
    };

    /// Reads a `struct vm_area_struct` that the verifier trusts.
    #[inline(always)]
    pub fn of(vma: Pointer) -> Self {
        Self {
            start: vma.load(offset!(vma_start)),
            end: vma.load(offset!(vma_end)),
            // Only pages that a process has of its own have such a list.
            written: opaque(u64::from(!vma.follow(offset!(vma_anon)).is_null())) != 0,
        }
    }
}

/// Runs when `file` is mapped executable, or memory without a file (null) after it was written.
/// Memory that was not written yet is left out: the kernel shows nothing that could be told of it.
#[inline(always)]
pub fn observe(file: Pointer, mapping: Mapping, hook: HookSet) {
    if file.is_null() && !mapping.written {
        return;
    }
    let outcome = match Watched::current(hook) {
        Some(watched) => observe_in(&watched, file, mapping),
        None => Outcome::Unwatched,
    };
    maps::count(Hook::Code, outcome);
}

#[inline(always)]
fn observe_in(watched: &Watched, file: Pointer, mapping: Mapping) -> Outcome {
    if file.is_null() && !maps::is_first_memory(&watched.process()) {
        return Outcome::Remembered;
    }
    let Some(claim) = Claim::take() else {
        return Outcome::MapFull;
    };
    let outcome = send(claim, watched, file, mapping).unwrap_or(Outcome::Unreadable);
    claim.release();
    outcome
}

#[inline(always)]
fn send(claim: Claim, watched: &Watched, file: Pointer, mapping: Mapping) -> Option<Outcome> {
    const FIXED: usize = size_of::<CodeRecord>();
    let mut flags = if mapping.written { CODE_WRITTEN } else { 0 };
    let begun = if file.is_null() {
        flags |= CODE_ANONYMOUS;
        *claim.file() = FileFacts::ZERO;
        Begun::behind(claim, watched, PathLengths::default(), FIXED)?
    } else {
        let opened = Opened::of(file)?;
        opened.write_facts(claim.file())?;
        if !mapping.written && (watched.remembers(claim) || is_program(watched.task, &opened)?) {
            return Some(Outcome::Remembered);
        }
        Begun::new(claim, watched, &opened, FIXED)?
    };
    let record = CodeRecord {
        header: record::header(RecordKind::Code, watched.hook, begun.end),
        task: *claim.task(),
        file: *claim.file(),
        path: begun.path,
        start: mapping.start,
        end: mapping.end,
        flags,
        reserved: 0,
    };
    let truncated = begun.is_truncated();
    record::submit(claim, record, begun.end, truncated)
}

/// Whether the file is the program that the process executes: it was judged as that, and cannot
/// have been written since.
#[inline(always)]
fn is_program(task: Pointer, file: &Opened) -> Option<bool> {
    let program = task.follow(offset!(task_mm)).follow(offset!(mm_exe_file));
    // The kernel makes the memory of its first processes itself.
    if program.is_null() {
        return Some(false);
    }
    Some(program.probe_follow(offset!(file_inode))? == file.inode)
}
