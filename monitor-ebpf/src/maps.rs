//! The maps that the agent and the programs share, and the account of each hook.

use aya_ebpf::{
    macros::map,
    maps::{LruHashMap, PerCpuArray, RingBuf},
};
use monitor_common::{CGROUPS_MAX, HOOKS, Hook, HookCounters, RING_BYTES};

/// Records to the agent.
#[map]
static RECORDS: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);

/// What the agent said of each cgroup id, a `CgroupState`; absent is unknown.
#[map]
static CGROUPS: LruHashMap<u64, u32> = LruHashMap::with_max_entries(CGROUPS_MAX, 0);

/// The account, by `Hook`.
#[map]
static COUNTERS: PerCpuArray<HookCounters> = PerCpuArray::with_max_entries(HOOKS, 0);

/// What became of one run of a hook.
pub enum Outcome {
    Unwatched,
    Submitted { truncated: bool },
    RingFull,
    Unreadable,
}

/// Counts one run of `hook`.
pub fn count(hook: Hook, outcome: &Outcome) {
    let Some(counters) = COUNTERS.get_ptr_mut(hook as u32) else {
        return;
    };
    // SAFETY: the slot is this CPU's, and a tracing program does not preempt itself.
    let counters = unsafe { &mut *counters };
    counters.seen += 1;
    match outcome {
        Outcome::Unwatched => counters.unwatched += 1,
        Outcome::Submitted { truncated } => {
            counters.submitted += 1;
            counters.truncated += u64::from(*truncated);
        }
        Outcome::RingFull => counters.ring_full += 1,
        Outcome::Unreadable => counters.unreadable += 1,
    }
}

/// What the agent said of the cgroup; 0 for unknown.
pub fn cgroup_state(id: u64) -> u32 {
    // SAFETY: the value is a plain number that the agent may replace at any time.
    unsafe { CGROUPS.get(id) }.copied().unwrap_or(0)
}

/// Hands a record to the agent and wakes it; false if the ring is full.
pub fn submit(record: &[u8]) -> bool {
    RECORDS.output::<[u8]>(record, 0).is_ok()
}
