//! A program was executed.

use monitor_common::{
    Hook, HookSet, RecordKind,
    exec::{
        ARGUMENTS_BYTES_MAX, EXEC_ARGUMENTS_TRUNCATED, EXEC_ARGUMENTS_UNREADABLE,
        EXEC_SCRIPT_TRUNCATED, ExecRecord, SCRIPT_BYTES_MAX,
    },
    file::FILE_REMEMBERED,
};

use crate::{
    file::Opened,
    interpreter,
    kernel::{Pointer, offset, read_user},
    maps::{self, Outcome},
    open,
    record::{self, Begun},
    scratch::{self, CGROUP_END, Claim, SCRIPT_END},
    task::Watched,
};

/// Where the arguments lie when the hook runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Arguments {
    /// The kernel has noted their place in the new process (`sched_process_exec`).
    Placed,
    /// They are the first strings on the stack being made (`bprm_committed_creds`).
    OnStack,
}

/// Runs in the task that executes, when there is no way back for it.
#[inline(always)]
pub fn observe(binprm: *const u8, arguments: Arguments, hook: HookSet) {
    let outcome = match Watched::current(hook) {
        Some(watched) => observe_in(&watched, Pointer(binprm), arguments),
        None => Outcome::Unwatched,
    };
    maps::count(Hook::Exec, outcome);
}

#[inline(always)]
fn observe_in(watched: &Watched, binprm: Pointer, arguments: Arguments) -> Outcome {
    maps::forget_memory(&watched.process());
    let Some(claim) = Claim::take() else {
        return Outcome::MapFull;
    };
    let mut is_interpreter = false;
    let outcome =
        send(claim, watched, binprm, arguments, &mut is_interpreter).unwrap_or(Outcome::Unreadable);
    claim.release();
    if is_interpreter {
        open::observe_standard_input(watched);
    }
    outcome
}

#[inline(always)]
fn send(
    claim: Claim,
    watched: &Watched,
    binprm: Pointer,
    place: Arguments,
    is_interpreter: &mut bool,
) -> Option<Outcome> {
    let opened = Opened::of(binprm.follow(offset!(binprm_file)))?;
    opened.write_facts(claim.file())?;
    if watched.remembers(claim) {
        claim.file().flags |= FILE_REMEMBERED;
    }
    let begun = Begun::new(claim, watched, &opened, size_of::<ExecRecord>())?;
    let end = begun.end;
    let mut flags = 0;

    let script_length = write_script(claim, binprm, end, &mut flags)?;
    *is_interpreter = interpreter::note(&opened, script_length > 0)?;
    let end = end + script_length;

    let arguments = write_arguments(claim, watched.task, binprm, place, end, &mut flags)?;
    let end = end + arguments.length;
    let record = ExecRecord {
        header: record::header(RecordKind::Exec, watched.hook, end),
        task: *claim.task(),
        file: *claim.file(),
        path: begun.path,
        script_length: script_length as u16,
        arguments_length: arguments.length as u16,
        arguments_count: arguments.count,
        flags,
        reserved: 0,
    };
    let truncated =
        begun.is_truncated() || flags & (EXEC_ARGUMENTS_TRUNCATED | EXEC_SCRIPT_TRUNCATED) != 0;
    record::submit(claim, record, end, truncated)
}

/// What was handed to execve, where the kernel went on to an interpreter.
#[inline(always)]
fn write_script(claim: Claim, binprm: Pointer, end: usize, flags: &mut u32) -> Option<usize> {
    let name = binprm.follow(offset!(binprm_filename));
    if name == binprm.follow(offset!(binprm_interp)) {
        return Some(0);
    }
    let end = scratch::bounded(end, CGROUP_END)?;
    // SAFETY: that leaves room for a script's name.
    let length = unsafe { name.probe_string(claim.bytes().wrapping_add(end), SCRIPT_BYTES_MAX) };
    if length <= 0 || length > SCRIPT_BYTES_MAX as i64 {
        return None;
    }
    if length == SCRIPT_BYTES_MAX as i64 {
        *flags |= EXEC_SCRIPT_TRUNCATED;
    }
    Some(length as usize)
}

struct Written {
    length: usize,
    count: u32,
}

/// The arguments from the new process's stack, where execve has just put them.
#[inline(always)]
fn write_arguments(
    claim: Claim,
    task: Pointer,
    binprm: Pointer,
    place: Arguments,
    end: usize,
    flags: &mut u32,
) -> Option<Written> {
    let mm = task.follow(offset!(task_mm));
    let (start, mut length, count) = match place {
        Arguments::Placed => {
            let start: u64 = mm.load(offset!(mm_arg_start));
            let length = mm.load::<u64>(offset!(mm_arg_end)).wrapping_sub(start);
            (start, length, u32::MAX)
        }
        Arguments::OnStack => {
            let start: u64 = binprm.load(offset!(binprm_p));
            let count = binprm.load::<u32>(offset!(binprm_argc));
            // Behind them lie the environment and, last on the stack, the name.
            let length = binprm.load::<u64>(offset!(binprm_exec)).wrapping_sub(start);
            (start, length, count)
        }
    };
    if length > u64::from(ARGUMENTS_BYTES_MAX) {
        if place == Arguments::Placed {
            *flags |= EXEC_ARGUMENTS_TRUNCATED;
        }
        length = u64::from(ARGUMENTS_BYTES_MAX);
    }
    let length = scratch::bounded(length as usize, ARGUMENTS_BYTES_MAX as usize)?;
    let end = scratch::bounded(end, SCRIPT_END)?;
    // SAFETY: that leaves room for all arguments.
    if unsafe { read_user(claim.bytes().wrapping_add(end), length as u32, start) } {
        Some(Written { length, count })
    } else {
        *flags |= EXEC_ARGUMENTS_UNREADABLE;
        Some(Written { length: 0, count })
    }
}
