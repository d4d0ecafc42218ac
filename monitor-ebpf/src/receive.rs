//! Open files that a process received over AF_UNIX, where no hook of the security framework is to be
//! had: their descriptors are read from where the kernel has written them for the process.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use monitor_common::{Hook, HookSet, open::RECEIVED_MAX};

use crate::{
    kernel::{Memory, Pointer, offset},
    maps::{self, Outcome},
    open,
    socket_call::{self, COMPATIBLE, Layout, WIDE},
    syscall::{self, CONTINUE, STOP, X32},
    task::Watched,
};

/// `SOL_SOCKET` and `SCM_RIGHTS` of `include/linux/socket.h`.
const SOL_SOCKET: u32 = 1;
const SCM_RIGHTS: u32 = 1;
/// The number of that system call, of all programs alike.
const PIDFD_GETFD: u64 = 438;
const DESCRIPTOR_BYTES: u64 = size_of::<u32>() as u64;

/// How far the descriptors of messages have been looked at.
struct Search {
    /// The next `struct msghdr`.
    header: u64,
    messages_left: u64,
    /// The next control message of the one before, and its bytes with those behind it.
    control: u64,
    control_left: u64,
    /// The next descriptor, and how many there are with it.
    descriptor: u64,
    descriptors_left: u64,
    layout: Layout,
    finished: bool,
}

/// Runs at the end of a system call that received a message, or as many as its result says, or took a
/// descriptor from another process.
#[inline(always)]
pub fn observe(registers: Pointer, result: i64) {
    if !maps::is_at_syscalls(Hook::Open) || Watched::current(HookSet::Tracepoint).is_none() {
        return;
    }
    let number = registers.load::<u64>(offset!(regs_number)) & !X32;
    if number == PIDFD_GETFD {
        look_at(result as u64);
        return;
    }
    let (header, are_many, layout) = if syscall::is_compatible() {
        let second: u64 = registers.load(offset!(regs_cx));
        if number == socket_call::NUMBER {
            let which: u64 = registers.load(offset!(regs_bx));
            (socket_call::argument(second, 1), which == 19, COMPATIBLE)
        } else {
            (second, number != 372, COMPATIBLE)
        }
    } else {
        (registers.load(offset!(regs_si)), number == 299, WIDE)
    };
    let mut search = Search {
        header,
        messages_left: if are_many { result as u64 } else { 1 },
        control: 0,
        control_left: 0,
        descriptor: 0,
        descriptors_left: 0,
        layout,
        finished: false,
    };
    // Most carry nothing but bytes.
    if !are_many && search.control_bytes() == 0 {
        return;
    }
    // SAFETY: the callback has the prototype that bpf_loop calls, and its context is a search.
    unsafe {
        bpf_loop(
            RECEIVED_MAX,
            next_step as *mut c_void,
            (&raw mut search).cast(),
            0,
        )
    };
    if !search.finished {
        maps::count(Hook::Open, Outcome::Unreadable);
    }
}

/// Looks at what has come to be behind a descriptor.
#[inline(always)]
fn look_at(descriptor: u64) {
    if let Some(file) = open::file_of(Pointer::current_task(), descriptor) {
        open::observe_received(file, descriptor as u32, HookSet::Tracepoint);
    }
}

impl Search {
    /// Reads a number of the process that is as long as a pointer; 0 on a fault.
    #[inline(always)]
    fn word(&self, at: u64, wide: usize, compatible: usize) -> u64 {
        if self.layout.is_compatible {
            let word: Option<u32> = Memory::Process(at).get(compatible);
            word.unwrap_or(0).into()
        } else {
            Memory::Process(at).get(wide).unwrap_or(0)
        }
    }

    /// How long the control messages of the next message are.
    #[inline(always)]
    fn control_bytes(&self) -> u64 {
        self.word(self.header, 40, 20)
    }

    /// Bytes of the header of a control message, without what follows its type.
    #[inline(always)]
    fn header_bytes(&self) -> u64 {
        if self.layout.is_compatible { 12 } else { 16 }
    }
}

unsafe extern "C" fn next_step(_index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `observe` hands it over.
    let search = unsafe { &mut *context.cast::<Search>() };
    if search.descriptors_left > 0 {
        let descriptor: Option<u32> = Memory::Process(search.descriptor).get(0);
        search.descriptor += DESCRIPTOR_BYTES;
        search.descriptors_left -= 1;
        if let Some(descriptor) = descriptor {
            look_at(descriptor.into());
        }
        return CONTINUE;
    }
    let header_bytes = search.header_bytes();
    if search.control_left >= header_bytes {
        let message = search.control;
        let length = search.word(message, 0, 0);
        if length < header_bytes || length > search.control_left {
            search.control_left = 0;
            return CONTINUE;
        }
        let kind = Memory::Process(message + header_bytes - 8);
        if (kind.get(0), kind.get(4)) == (Some(SOL_SOCKET), Some(SCM_RIGHTS)) {
            search.descriptor = message + header_bytes;
            search.descriptors_left = (length - header_bytes) / DESCRIPTOR_BYTES;
        }
        let alignment = if search.layout.is_compatible { 3 } else { 7 };
        let aligned = (length + alignment) & !alignment;
        search.control += aligned;
        search.control_left = search.control_left.saturating_sub(aligned);
        return CONTINUE;
    }
    if search.messages_left == 0 {
        search.finished = true;
        return STOP;
    }
    search.control = search.word(search.header, 32, 16);
    search.control_left = search.control_bytes();
    search.header += search.layout.stride;
    search.messages_left -= 1;
    CONTINUE
}
