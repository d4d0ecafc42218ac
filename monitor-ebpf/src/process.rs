//! A process came to be or ended.

use monitor_common::{
    Hook, HookSet, RecordKind,
    process::{ExitRecord, ForkRecord},
};
use zerocopy::IntoBytes as _;

use crate::{
    kernel::{Pointer, offset},
    maps::{self, Outcome},
    record,
    task::{self, Watched},
};

/// Runs in the parent before the child does. Threads are left out.
#[inline(always)]
pub fn observe_fork(child: *const u8) {
    let child = Pointer(child);
    let child_pid: u32 = child.load(offset!(task_tgid));
    if child_pid != child.load::<u32>(offset!(task_pid)) {
        return;
    }
    let Some(watched) = Watched::current(HookSet::Tracepoint) else {
        maps::count(Hook::Fork, Outcome::Unwatched);
        return;
    };
    let record = ForkRecord {
        header: record::header(RecordKind::Fork, watched.hook, size_of::<ForkRecord>()),
        parent_start_boot_ns: task::start_boot_ns(watched.task),
        child_start_boot_ns: child.load(offset!(task_start_boottime)),
        parent_pid: watched.task.load(offset!(task_tgid)),
        child_pid,
    };
    maps::count(Hook::Fork, submitted(record.as_bytes()));
}

/// Runs in the task that ends. Of a process, the end of its first thread counts.
#[inline(always)]
pub fn observe_exit() {
    let task = Pointer::current_task();
    let pid: u32 = task.load(offset!(task_tgid));
    if pid != task.load::<u32>(offset!(task_pid)) {
        return;
    }
    let Some(watched) = Watched::current(HookSet::Tracepoint) else {
        maps::count(Hook::Exit, Outcome::Unwatched);
        return;
    };
    let record = ExitRecord {
        header: record::header(RecordKind::Exit, watched.hook, size_of::<ExitRecord>()),
        start_boot_ns: task::start_boot_ns(watched.task),
        pid,
        reserved: 0,
    };
    maps::count(Hook::Exit, submitted(record.as_bytes()));
}

#[inline(always)]
fn submitted(record: &[u8]) -> Outcome {
    if maps::submit_without_waking(record) {
        Outcome::Submitted { truncated: false }
    } else {
        Outcome::RingFull
    }
}
