//! The account: what became of every run of a hook (design, promise 4).

use std::{
    fs,
    os::fd::{AsFd, AsRawFd},
};

use monitor_common::{
    HOOKS, Hook, HookCounters,
    loss::{LossCause, LossKey, LossTotals},
};

use super::hooks::KINDS;

/// [`HookCounters`] as a map value.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct KernelCounters(pub(super) HookCounters);

// SAFETY: plain integers without padding, as `HookCounters` proves by deriving `FromBytes`.
unsafe impl aya::Pod for KernelCounters {}

/// [`LossKey`] as a map key.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct KernelLossKey(pub(super) LossKey);

// SAFETY: plain integers without padding, as `LossKey` proves by deriving `FromBytes`.
unsafe impl aya::Pod for KernelLossKey {}

/// Records of one cgroup that the kernel side lost since the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Id of the cgroup.
    pub cgroup_id: u64,
    /// Mount namespace of the tasks.
    pub mount_namespace: u32,
    /// Which kind of event.
    pub hook: Hook,
    /// Why.
    pub cause: LossCause,
    /// How many; begins again at 0 if the kernel side had forgotten the cgroup.
    pub count: u64,
}

impl Lost {
    pub(super) fn key(&self) -> LossKey {
        LossKey {
            cgroup_id: self.cgroup_id,
            mount_namespace: self.mount_namespace,
            hook: self.hook as u16,
            cause: self.cause as u16,
        }
    }

    pub(super) fn new(key: LossKey, count: u64) -> Option<Self> {
        let causes = [
            LossCause::RingFull,
            LossCause::MapFull,
            LossCause::Unreadable,
        ];
        Some(Self {
            cgroup_id: key.cgroup_id,
            mount_namespace: key.mount_namespace,
            hook: KINDS.into_iter().find(|hook| *hook as u16 == key.hook)?,
            cause: causes
                .into_iter()
                .find(|cause| *cause as u16 == key.cause)?,
            count,
        })
    }
}

/// One hook over all CPUs:
/// `seen = unwatched + remembered + submitted + ring_full + map_full + unreadable`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HookAccount {
    /// See [`HookCounters`].
    pub counters: HookCounters,
    /// Runs that the kernel skipped because the program was already running on that CPU.
    pub recursion_misses: u64,
}

impl HookAccount {
    /// What was lost until a time, in nanoseconds since boot.
    pub fn losses(&self, until_boot_ns: u64) -> LossTotals {
        LossTotals {
            ring_full: self.counters.ring_full,
            map_full: self.counters.map_full,
            unreadable: self.counters.unreadable,
            recursion_misses: self.recursion_misses,
            told_later: 0,
            until_boot_ns,
        }
    }

    pub(super) fn add(&mut self, other: &HookCounters) {
        let own = &mut self.counters;
        own.seen += other.seen;
        own.unwatched += other.unwatched;
        own.remembered += other.remembered;
        own.submitted += other.submitted;
        own.ring_full += other.ring_full;
        own.map_full += other.map_full;
        own.unreadable += other.unreadable;
        own.truncated += other.truncated;
    }
}

/// What fanotify held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeldCounters {
    /// Files held.
    pub held: u64,
    /// Overflows of fanotify's queue; how many files each lost is not known.
    pub queue_overflows: u64,
    /// Held files let go because too many waited for their exec.
    pub evicted: u64,
}

/// What became of everything the sensor saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Each kind of hook, by [`Hook`].
    pub hooks: [HookAccount; HOOKS as usize],
    /// Records read from the ring, by this daemon and those before it that used the same:
    /// `submitted = received + still in the ring`.
    pub received: u64,
    /// Of these, those that daemons before this one judged and let go of. What they had read and not
    /// let go of is in the ring again.
    pub earlier: u64,
    /// Programs and libraries told at the start of processes that ran already, and what hooks of
    /// another version left.
    pub running: u64,
    /// Of the records, those that were not readable as such.
    pub undecodable: u64,
    /// Held files.
    pub held: HeldCounters,
}

impl Account {
    /// One kind of hook.
    pub fn hook(&self, hook: Hook) -> HookAccount {
        self.hooks.get(hook as usize).copied().unwrap_or_default()
    }
}

/// `recursion_misses` of a loaded program, by the kernel's fdinfo (`bpf_prog_show_fdinfo`).
pub(super) fn recursion_misses(program: impl AsFd) -> u64 {
    fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_fd().as_raw_fd()))
        .ok()
        .and_then(|text| {
            text.lines()
                .find_map(|line| line.strip_prefix("recursion_misses:")?.trim().parse().ok())
        })
        .unwrap_or(0)
}
