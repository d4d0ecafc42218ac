//! The maps that the agent and the programs share, and the account of each hook.

use aya_ebpf::{
    bindings::{BPF_NOEXIST, BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::generated::bpf_get_current_cgroup_id,
    macros::map,
    maps::{Array, HashMap, LruHashMap, LruPerCpuHashMap, PerCpuArray, ProgramArray, RingBuf},
    programs::BtfTracePointContext,
};
use monitor_common::{
    CGROUPS_MAX, CgroupFacts, HOOKS, Hook, HookCounters, Mark, REMEMBERED_MAX, RING_BYTES,
    RING_REPEATABLE_BYTES, WAKE_INTERVAL_MS,
    code::PROCESSES_MAX,
    connect::{CONNECTING_MAX, PEERS_MAX, Peer, PeerState},
    file::FileVersion,
    interpreter::INTERPRETERS_MAX,
    loss::{LOSSES_MAX, LossCause, LossKey, LossTotals},
    open::{OPENS_MAX, OpenKey},
    syscall::Next,
};

use crate::{kernel::Pointer, task};

/// Records to the agent.
#[map]
static RECORDS: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);

/// What the agent said of each cgroup id; absent is unknown.
#[map]
static CGROUPS: LruHashMap<u64, CgroupFacts> = LruHashMap::with_max_entries(CGROUPS_MAX, 0);

/// File versions that the agent has judged good.
#[map]
static REMEMBERED: LruHashMap<FileVersion, u32> = LruHashMap::with_max_entries(REMEMBERED_MAX, 0);

/// Peers that were told of or that the agent has judged good, each for the cgroup that reached for it.
#[map]
static PEERS: LruHashMap<Peer, PeerState> = LruHashMap::with_max_entries(PEERS_MAX, 0);

/// Connects of TCP that were told, by their `struct sock`, until they are answered.
#[map]
static CONNECTING: LruHashMap<u64, Connecting> = LruHashMap::with_max_entries(CONNECTING_MAX, 0);

/// Opens that the agent has judged good.
#[map]
static OPENS: LruHashMap<OpenKey, u32> = LruHashMap::with_max_entries(OPENS_MAX, 0);

/// When this CPU woke the agent for a plain open, in nanoseconds since boot.
#[map]
static WOKEN: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Which programs are interpreters, an `Interpreter` by the inode and device that processes see.
#[map]
static INTERPRETERS: LruHashMap<Program, u32> = LruHashMap::with_max_entries(INTERPRETERS_MAX, 0);

/// Processes of which it was told that they made memory without a file executable. Compilers at run
/// time do it all the time; once for each program that a process executes is enough.
#[map]
static MEMORY_TOLD: LruHashMap<Process, u32> = LruHashMap::with_max_entries(PROCESSES_MAX, 0);

/// What the hook at the end of system calls is to see: bits by `Hook`.
#[map]
static AT_SYSCALLS: Array<u32> = Array::with_max_entries(1, 0);

/// What goes on where the hook at the end of system calls leaves off, by `Next`: programs of their own,
/// since together they are too much for the verifier. Where there is none, nothing happens.
#[map]
static NEXT: ProgramArray = ProgramArray::with_max_entries(Next::COUNT, 0);

/// The account, by `Hook`.
#[map]
static COUNTERS: PerCpuArray<HookCounters> = PerCpuArray::with_max_entries(HOOKS, 0);

/// Whose records were lost. Written only then.
#[map]
static LOSSES: LruPerCpuHashMap<LossKey, u64> = LruPerCpuHashMap::with_max_entries(LOSSES_MAX, 0);

/// Up to where the agent has let go of records. This and the next two are of the agent alone; maps, so
/// that they outlive it.
#[map]
static LET_GO: Array<Mark> = Array::with_max_entries(1, 0);

/// What was lost of each `Hook` as far as the agent has told.
#[map]
static TOLD: Array<LossTotals> = Array::with_max_entries(HOOKS, 0);

/// The same by whose it was: of `LOSSES`.
#[map]
static TOLD_LOSSES: HashMap<LossKey, u64> = HashMap::with_max_entries(LOSSES_MAX, 0);

/// A program, by its file as processes see it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Program {
    pub inode: u64,
    pub device: u32,
    /// Zero; keeps the layout without padding.
    pub reserved: u32,
}

/// A connect that was told, of a socket that waits for the peer's answer.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Connecting {
    pub connect_boot_ns: u64,
    pub cgroup_id: u64,
    pub pid: u32,
    pub mount_namespace: u32,
}

/// Whose an event is.
#[derive(Clone, Copy)]
pub struct Whose {
    pub cgroup_id: u64,
    pub mount_namespace: u32,
}

/// A process of this boot.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Process {
    pub start_boot_ns: u64,
    pub pid: u32,
    /// Zero; keeps the layout without padding.
    pub reserved: u32,
}

/// What became of one run of a hook.
#[derive(Clone, Copy)]
pub enum Outcome {
    Unwatched,
    Remembered,
    Submitted { truncated: bool },
    RingFull,
    MapFull,
    Unreadable,
}

impl Whose {
    /// Of the current task.
    #[inline(always)]
    fn current() -> Self {
        Self {
            // SAFETY: a helper without arguments.
            cgroup_id: unsafe { bpf_get_current_cgroup_id() },
            mount_namespace: task::mount_namespace_of(Pointer::current_task()),
        }
    }
}

/// Counts one run of `hook` for the current task.
#[inline(always)]
pub fn count(hook: Hook, outcome: Outcome) {
    count_of(hook, outcome, Whose::current);
}

/// Counts one run of `hook`; whose it was is asked when something was lost.
#[inline(always)]
pub fn count_of(hook: Hook, outcome: Outcome, whose: impl Fn() -> Whose) {
    // Before the hook's own counters: who reads those first finds in `LOSSES` all that they hold.
    match outcome {
        Outcome::RingFull => count_loss(hook, LossCause::RingFull, whose()),
        Outcome::MapFull => count_loss(hook, LossCause::MapFull, whose()),
        Outcome::Unreadable => count_loss(hook, LossCause::Unreadable, whose()),
        Outcome::Unwatched | Outcome::Remembered | Outcome::Submitted { .. } => {}
    }
    let Some(counters) = COUNTERS.get_ptr_mut(hook as u32) else {
        return;
    };
    // SAFETY: the slot is this CPU's. Where a hook may be preempted in the middle of an addition,
    // both of its tasks add to the same number: a run may go uncounted, none is counted twice.
    let counters = unsafe { &mut *counters };
    counters.seen += 1;
    match outcome {
        Outcome::Unwatched => counters.unwatched += 1,
        Outcome::Remembered => counters.remembered += 1,
        Outcome::Submitted { truncated } => {
            counters.submitted += 1;
            counters.truncated += u64::from(truncated);
        }
        Outcome::RingFull => counters.ring_full += 1,
        Outcome::MapFull => counters.map_full += 1,
        Outcome::Unreadable => counters.unreadable += 1,
    }
}

/// Counts a record that was lost.
#[inline(always)]
fn count_loss(hook: Hook, cause: LossCause, whose: Whose) {
    let key = LossKey {
        cgroup_id: whose.cgroup_id,
        mount_namespace: whose.mount_namespace,
        hook: hook as u16,
        cause: cause as u16,
    };
    if LOSSES.get_ptr(key).is_none() {
        // Of two CPUs that add it one gets an error, and finds it there; any other error leaves
        // the loss to the hook's counters, of nobody in particular.
        let _ = LOSSES.insert(key, 0, u64::from(BPF_NOEXIST));
    }
    if let Some(lost) = LOSSES.get_ptr_mut(key) {
        // SAFETY: the value is this CPU's, see `count`.
        unsafe { *lost += 1 };
    }
}

/// What the agent said of the cgroup.
#[inline(always)]
pub fn cgroup(id: u64) -> CgroupFacts {
    // SAFETY: the value is plain numbers that the agent may replace at any time.
    unsafe { CGROUPS.get(id) }.copied().unwrap_or_default()
}

#[inline(always)]
pub fn is_remembered(version: &FileVersion) -> bool {
    // SAFETY: only whether it is there is asked.
    unsafe { REMEMBERED.get(version) }.is_some()
}

#[inline(always)]
pub fn is_open_known(key: &OpenKey) -> bool {
    // SAFETY: only whether it is there is asked.
    unsafe { OPENS.get(key) }.is_some()
}

/// What is remembered of a peer.
#[inline(always)]
pub fn peer(peer: &Peer) -> PeerState {
    // SAFETY: the value is plain numbers that the agent may replace at any time.
    unsafe { PEERS.get(peer) }.copied().unwrap_or_default()
}

/// Takes note that a peer was told of.
#[inline(always)]
pub fn set_peer(peer: &Peer, state: &PeerState) {
    // An error means that another CPU holds the bucket: then it is told twice.
    let _ = PEERS.insert(peer, state, 0);
}

/// Remembers a connect until its socket (`struct sock`) is answered.
#[inline(always)]
pub fn set_connecting(socket: u64, connecting: &Connecting) {
    // An error means that another CPU holds the bucket: then the answer is not told.
    let _ = CONNECTING.insert(socket, connecting, 0);
}

/// Takes the connect that a socket waits with.
#[inline(always)]
pub fn take_connecting(socket: u64) -> Option<Connecting> {
    // SAFETY: the value is plain numbers, and the socket's alone until it is answered.
    let connecting = unsafe { CONNECTING.get(socket) }.copied()?;
    // An error means that another CPU holds the bucket: then the next connect replaces it.
    let _ = CONNECTING.remove(socket);
    Some(connecting)
}

/// Which interpreter a program is, an `Interpreter`.
#[inline(always)]
pub fn interpreter(program: &Program) -> u32 {
    // SAFETY: the value is a plain number that does not change once it is there.
    unsafe { INTERPRETERS.get(program) }.copied().unwrap_or(0)
}

/// At the bound the one least recently used is forgotten, until it is executed again.
#[inline(always)]
pub fn add_interpreter(program: &Program, which: u32) {
    // An error means that another CPU holds the bucket: its next exec adds it.
    let _ = INTERPRETERS.insert(program, which, 0);
}

/// Whether this is the first time that it is told of the process.
#[inline(always)]
pub fn is_first_memory(process: &Process) -> bool {
    // SAFETY: only whether it is there is asked.
    let told = unsafe { MEMORY_TOLD.get(process) }.is_some();
    if !told {
        // An error means that another CPU holds the bucket: then it is told twice.
        let _ = MEMORY_TOLD.insert(process, 1, 0);
    }
    !told
}

/// The process executes another program.
#[inline(always)]
pub fn forget_memory(process: &Process) {
    // An error means that nothing was told of it.
    let _ = MEMORY_TOLD.remove(process);
}

/// Whether the hook at the end of system calls is to see these.
#[inline(always)]
pub fn is_at_syscalls(hook: Hook) -> bool {
    AT_SYSCALLS
        .get(0)
        .is_some_and(|hooks| *hooks & (1 << hook as u32) != 0)
}

/// Has another program go on in place of this one, if there is one.
#[inline(always)]
pub fn go_on(context: &BtfTracePointContext, next: Next) {
    // SAFETY: nothing here needs to be dropped.
    unsafe { NEXT.tail_call(context, next as u32) }
}

/// Hands a record to the agent and wakes it; false if the ring is full. By itself the kernel wakes
/// only a reader that has read everything, which one that sleeps over records that were handed over
/// without waking it has not.
#[inline(always)]
pub fn submit(record: &[u8]) -> bool {
    RECORDS
        .output::<[u8]>(record, u64::from(BPF_RB_FORCE_WAKEUP))
        .is_ok()
}

/// Whether the agent is to be woken for a plain open: unless this CPU has just done so.
#[inline(always)]
pub fn wakes_for_open(now_boot_ns: u64) -> bool {
    let Some(woken) = WOKEN.get_ptr_mut(0) else {
        return true;
    };
    // SAFETY: the slot is this CPU's; where it is written twice at once, both wake.
    let woken = unsafe { &mut *woken };
    if now_boot_ns - *woken < u64::from(WAKE_INTERVAL_MS) * 1_000_000 {
        return false;
    }
    *woken = now_boot_ns;
    true
}

/// Hands a record of a plain open to the agent.
#[inline(always)]
pub fn submit_open(record: &[u8], wakes: bool) -> bool {
    let flags = if wakes {
        BPF_RB_FORCE_WAKEUP
    } else {
        BPF_RB_NO_WAKEUP
    };
    RECORDS.output::<[u8]>(record, u64::from(flags)).is_ok()
}

/// Whether the ring has room for what can be repeated at will.
#[inline(always)]
pub fn has_room() -> bool {
    RECORDS.query(u64::from(BPF_RB_AVAIL_DATA)) < RING_REPEATABLE_BYTES
}

/// Hands a record to the agent, which reads it with the next that wakes it.
#[inline(always)]
pub fn submit_without_waking(record: &[u8]) -> bool {
    RECORDS
        .output::<[u8]>(record, u64::from(BPF_RB_NO_WAKEUP))
        .is_ok()
}
