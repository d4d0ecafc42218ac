//! What processes open and reach through io_uring, where no hook of the security framework is to be had.
//!
//! The kernel tells when a request is submitted, and when it writes a completion. That it can be asked
//! not to write, or have no room for, so requests are remembered from their submission on, and looked
//! at again at each occasion: their thread submits more, comes back from submitting, or does what the
//! kernel left it to do once a request has ended elsewhere.

use core::ffi::c_void;

use aya_ebpf::{helpers::generated::bpf_loop, macros::map, maps::LruHashMap};
use monitor_common::{
    Hook, HookSet,
    open::NO_DESCRIPTOR,
    ring::{ALL_REQUESTS_MAX, REQUESTS_MAX, SUBMITTERS_MAX},
};

use crate::{
    connect,
    kernel::{Memory, Pointer, offset, opaque},
    maps::{self, Outcome},
    open,
    syscall::{CONTINUE, STOP},
    task::Watched,
};

/// `IORING_OP_*` of `include/uapi/linux/io_uring.h`.
const OP_SENDMSG: u8 = 9;
const OP_CONNECT: u8 = 16;
const OP_OPENAT: u8 = 18;
const OP_SEND: u8 = 26;
const OP_OPENAT2: u8 = 28;
const OP_SOCKET: u8 = 45;
const OP_SEND_ZC: u8 = 47;
const OP_SENDMSG_ZC: u8 = 48;
/// `REQ_F_FIXED_FILE` of `include/linux/io_uring_types.h`, the flag of the uapi: the file is one of
/// the ring's own.
const FIXED_FILE: u32 = 1;
/// `IORING_FILE_INDEX_ALLOC` of `include/uapi/linux/io_uring.h`: the kernel chooses the slot.
const ANY_SLOT: u32 = u32::MAX;
/// The lower bits of a pointer in a slot are flags.
const SLOT_FLAGS: u64 = 7;

/// Requests that nothing was told of, by where the kernel has them (`struct io_kiocb`), with their
/// opcodes.
#[map]
static REQUESTS: LruHashMap<u64, u32> = LruHashMap::with_max_entries(ALL_REQUESTS_MAX, 0);

/// Keys of those that a thread has submitted, 0 for none, by the kernel's `struct io_uring_task` of the
/// thread, which alone writes there.
#[map]
static SUBMITTERS: LruHashMap<u64, [u64; REQUESTS_MAX as usize]> =
    LruHashMap::with_max_entries(SUBMITTERS_MAX, 0);

/// Not on the stack, which it would fill.
static NOTHING_SUBMITTED: &[u64; REQUESTS_MAX as usize] = &[0; REQUESTS_MAX as usize];

/// Runs when a thread has submitted a request that the verifier trusts, before anything is done
/// about it.
#[inline(always)]
pub fn observe_submission(request: Pointer) {
    observe_occasion();
    let opcode: u8 = request.load(offset!(ring_opcode));
    let hook = match opcode {
        OP_OPENAT | OP_OPENAT2 | OP_CONNECT => hook_of(opcode),
        OP_SOCKET | OP_SENDMSG | OP_SEND | OP_SEND_ZC | OP_SENDMSG_ZC => Hook::Connect,
        _ => return,
    };
    if !maps::is_at_syscalls(hook) || Watched::current(HookSet::Tracepoint).is_none() {
        return;
    }
    let lost = match opcode {
        OP_OPENAT | OP_OPENAT2 | OP_CONNECT => {
            (!remember(request.0 as u64, opcode)).then_some(Outcome::MapFull)
        }
        OP_SOCKET => makes(request).is_none().then_some(Outcome::Unreadable),
        _ => sends(request).is_none().then_some(Outcome::Unreadable),
    };
    if let Some(lost) = lost {
        maps::count(hook, lost);
    }
}

/// Tells of a socket that is about to be made: nothing tells when it is, if there is no completion.
#[inline(always)]
fn makes(request: Pointer) -> Option<()> {
    let command = offset!(ring_command);
    let family: u32 = request.probe(command + offset!(ring_socket_family))?;
    let kind: u32 = request.probe(command + offset!(ring_socket_type))?;
    connect::observe_creation(family.into(), kind.into(), HookSet::Tracepoint);
    Some(())
}

/// Tells of the address that something is about to be sent to, which the kernel has copied. Once it is
/// sent, that is gone.
#[inline(always)]
fn sends(request: Pointer) -> Option<()> {
    let message = request.probe_follow(offset!(ring_message))?;
    if message.is_null() {
        return Some(());
    }
    let header = offset!(ring_message_header);
    if message
        .probe_follow(header + offset!(msghdr_name))?
        .is_null()
    {
        return Some(());
    }
    let length: u32 = message.probe(header + offset!(msghdr_name_length))?;
    let descriptor: u32 = request.probe(offset!(ring_descriptor))?;
    let flags: u32 = request.probe(offset!(ring_flags))?;
    let file = if flags & FIXED_FILE == 0 {
        open::file_of(Pointer::current_task(), descriptor.into())?
    } else {
        file_in_slot(request, descriptor)?
    };
    let address = Memory::Kernel(message).from(offset!(ring_message_address));
    connect::observe_send(file, address, length.into());
    Some(())
}

/// Runs when the kernel has written a completion of a request, in whatever thread of the process.
#[inline(always)]
pub fn observe_completion(request: u64) {
    look_again(request);
}

/// Runs when the current thread has come to where requests of its own may have ended.
#[inline(always)]
pub fn observe_occasion() {
    look_again(0);
}

/// Of what is remembered.
#[inline(always)]
fn hook_of(opcode: u8) -> Hook {
    if opcode == OP_CONNECT {
        Hook::Connect
    } else {
        Hook::Open
    }
}

/// The key of what the current thread has submitted; 0 of one that never did.
#[inline(always)]
fn submitter() -> u64 {
    Pointer::current_task().load(offset!(task_ring))
}

/// False if there is no room.
#[inline(always)]
fn remember(request: u64, opcode: u8) -> bool {
    let submitter = submitter();
    // Another thread that uses the ring got the memory before it was told of who had it.
    // SAFETY: who adds it is the only one that writes the value.
    if let Some(&before) = unsafe { REQUESTS.get(request) } {
        maps::count(hook_of(before as u8), Outcome::Unreadable);
    }
    if SUBMITTERS.get_ptr(submitter).is_none()
        && SUBMITTERS.insert(submitter, NOTHING_SUBMITTED, 0).is_err()
    {
        return false;
    }
    let mut free = Free {
        submitter,
        request,
        found: false,
    };
    // SAFETY: the callback has the prototype that bpf_loop calls, and its context is this.
    unsafe {
        bpf_loop(
            REQUESTS_MAX,
            next_place as *mut c_void,
            (&raw mut free).cast(),
            0,
        )
    };
    free.found && REQUESTS.insert(request, u32::from(opcode), 0).is_ok()
}

/// The search of a place for a request.
struct Free {
    submitter: u64,
    request: u64,
    found: bool,
}

unsafe extern "C" fn next_place(index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `remember` hands it over.
    let free = unsafe { &mut *context.cast::<Free>() };
    let Some(place) = place(free.submitter, index) else {
        return STOP;
    };
    if *place != 0 {
        return CONTINUE;
    }
    *place = free.request;
    free.found = true;
    STOP
}

#[inline(always)]
fn place(submitter: u64, index: u32) -> Option<&'static mut u64> {
    let requests = SUBMITTERS.get_ptr_mut(submitter)?;
    // SAFETY: the value lives as long as the map, and only the thread whose it is writes there.
    unsafe { (*requests).get_mut(opaque(index.into()) as usize) }
}

/// Requests that may have ended.
struct Ended {
    submitter: u64,
    /// One that has, in whatever thread; 0 for none.
    request: u64,
    /// Some of the thread's own have not.
    are_left: bool,
}

/// Tells what came of the current thread's requests that have ended.
#[inline(always)]
fn look_again(request: u64) {
    let mut ended = Ended {
        submitter: submitter(),
        request,
        are_left: false,
    };
    let is_own = SUBMITTERS.get_ptr(ended.submitter).is_some();
    if !is_own && (request == 0 || !is_remembered(request)) {
        return;
    }
    // SAFETY: the callback has the prototype that bpf_loop calls, and its context is this.
    unsafe {
        bpf_loop(
            REQUESTS_MAX + 1,
            next_request as *mut c_void,
            (&raw mut ended).cast(),
            0,
        )
    };
    if is_own && !ended.are_left {
        // An error means that another CPU holds the bucket: then it is looked at once more.
        let _ = SUBMITTERS.remove(ended.submitter);
    }
}

unsafe extern "C" fn next_request(index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `look_again` hands it over.
    let ended = unsafe { &mut *context.cast::<Ended>() };
    let request = if index == 0 {
        ended.request
    } else {
        let Some(place) = place(ended.submitter, index - 1) else {
            return STOP;
        };
        let request = *place;
        if request == 0 {
            return CONTINUE;
        }
        if is_remembered(request) && !is_finished(request) {
            ended.are_left = true;
            return CONTINUE;
        }
        *place = 0;
        request
    };
    if request != 0
        // SAFETY: who adds it is the only one that writes the value.
        && let Some(&opcode) = unsafe { REQUESTS.get(request) }
        // Who removes it tells of it.
        && REQUESTS.remove(request).is_ok()
    {
        tell(Pointer(request as *const u8), opcode as u8);
    }
    CONTINUE
}

#[inline(always)]
fn is_remembered(request: u64) -> bool {
    // SAFETY: only whether it is there is asked.
    unsafe { REQUESTS.get(request) }.is_some()
}

/// The memory of a request stays as it was until another is submitted in its place. That it has ended
/// is told by the name or the address that it no longer holds. The result of an open is there a few
/// instructions later, and is there for certain if it ended in this thread.
#[inline(always)]
fn is_finished(request: u64) -> bool {
    let flags: u32 = Pointer(request as *const u8)
        .probe(offset!(ring_flags))
        .unwrap_or(0);
    flags & offset!(ring_unfinished) as u32 == 0
}

/// Tells what came of a request.
#[inline(always)]
fn tell(request: Pointer, opcode: u8) {
    let told = match hook_of(opcode) {
        Hook::Connect => connected(request),
        _ => opened(request),
    };
    if told.is_none() {
        maps::count(hook_of(opcode), Outcome::Unreadable);
    }
}

#[inline(always)]
fn connected(request: Pointer) -> Option<()> {
    // The memory is another request's by now.
    if request.probe::<u8>(offset!(ring_opcode))? != OP_CONNECT {
        return None;
    }
    connect::observe_connected(request.probe_follow(offset!(ring_file))?);
    Some(())
}

#[inline(always)]
fn opened(request: Pointer) -> Option<()> {
    let opcode: u8 = request.probe(offset!(ring_opcode))?;
    // Likewise.
    if opcode != OP_OPENAT && opcode != OP_OPENAT2 {
        return None;
    }
    let result: i32 = request.probe(offset!(ring_result))?;
    if result < 0 {
        return Some(());
    }
    let slot: u32 = request.probe(offset!(ring_command) + offset!(ring_open_slot))?;
    let (descriptor, file) = match slot {
        0 => (
            result as u32,
            open::file_of(Pointer::current_task(), result as u64)?,
        ),
        ANY_SLOT => (NO_DESCRIPTOR, file_in_slot(request, result as u32)?),
        slot => (NO_DESCRIPTOR, file_in_slot(request, slot - 1)?),
    };
    open::observe(file, descriptor, HookSet::Tracepoint);
    Some(())
}

/// A file of the ring's own.
#[inline(always)]
fn file_in_slot(request: Pointer, slot: u32) -> Option<Pointer> {
    let context = request.probe_follow(offset!(ring_context))?;
    if slot >= context.probe::<u32>(offset!(ring_slots_count))? {
        return None;
    }
    let node = context
        .probe_follow(offset!(ring_slots))?
        .probe_follow(slot as usize * size_of::<u64>())?;
    let file = node.probe::<u64>(offset!(ring_slot_file))? & !SLOT_FLAGS;
    (file != 0).then_some(Pointer(file as *const u8))
}
