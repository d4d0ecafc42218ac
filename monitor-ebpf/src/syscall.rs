//! The end of a system call, where the kernel offers no hook nearer to what happened.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_find_vma, bpf_loop};
use monitor_common::{
    Hook, HookSet,
    code::MAPPINGS_MAX,
    open::{COMMANDS_DESCRIPTORS, Sign},
    syscall::Next,
};

use crate::{
    code::{self, Mapping, PROT_EXEC},
    connect::{self, Address, Purpose},
    kernel::{Pointer, offset},
    maps::{self, Outcome},
    open, socket_call,
};

/// `TS_COMPAT` of `arch/x86/include/asm/thread_info.h`: a system call by its 32-bit number.
const COMPATIBLE: u32 = 2;
/// `__X32_SYSCALL_BIT` of `arch/x86/include/uapi/asm/unistd.h`.
pub const X32: u64 = 0x4000_0000;
/// `SHM_EXEC` of `include/uapi/linux/shm.h`.
const SHM_EXEC: u64 = 0o100_000;
/// Of `include/uapi/linux/fcntl.h`.
const F_DUPFD: u64 = 0;
const F_DUPFD_CLOEXEC: u64 = 1030;
const AT_EMPTY_PATH: u64 = 0x1000;
/// `VM_EXEC` of `include/linux/mm.h`.
const VM_EXEC: u64 = 4;

/// What a system call asked for.
#[derive(Clone, Copy)]
pub enum Call {
    Open,
    Map {
        protection: u64,
    },
    Protect {
        start: u64,
        length: u64,
        protection: u64,
    },
    Source {
        descriptor: u64,
        sign: Sign,
    },
    /// To make a socket.
    Socket {
        family: u64,
        kind: u64,
    },
    /// To connect, or to send, each to one address.
    Address {
        descriptor: u64,
        address: Address,
        purpose: Purpose,
    },
    /// To send messages: each is a `struct msghdr`, which begins with the address.
    Messages {
        descriptor: u64,
        headers: u64,
        count: u64,
        layout: socket_call::Layout,
    },
    /// Another program looks at it.
    Next(Next),
    Other,
}

impl Call {
    /// Whether it is looked at though it failed: who is refused has tried.
    #[inline(always)]
    fn counts_if_failed(&self) -> bool {
        matches!(
            self,
            Self::Address { .. } | Self::Messages { .. } | Self::Next(Next::Rings)
        )
    }
}

/// Runs when a system call begins that may be about a shell's commands.
#[inline(always)]
pub fn observe_source(call: Call) {
    if let Call::Source { descriptor, sign } = call {
        open::observe_source(descriptor, sign, HookSet::Fentry);
    }
}

/// Runs at the end of each system call of the machine; gives what goes on, if something does.
#[inline(always)]
pub fn observe(registers: *const u8, result: i64) -> Option<Next> {
    let call = call(Pointer(registers));
    if (-4095..0).contains(&result) && !call.counts_if_failed() {
        return None;
    }
    match call {
        Call::Other => {}
        Call::Next(next) => return Some(next),
        Call::Socket { family, kind } => {
            if maps::is_at_syscalls(Hook::Connect) {
                connect::observe_creation(family, kind, HookSet::Tracepoint);
            }
        }
        Call::Address {
            descriptor,
            address,
            purpose,
        } => {
            if maps::is_at_syscalls(Hook::Connect) {
                connect::observe_call(descriptor, address, purpose);
            }
        }
        Call::Messages {
            descriptor,
            headers,
            count,
            layout,
        } => {
            if maps::is_at_syscalls(Hook::Connect) {
                socket_call::look_at(descriptor, headers, count, layout);
            }
        }
        Call::Open => {
            if maps::is_at_syscalls(Hook::Open)
                && let Some(file) = open::file_of(Pointer::current_task(), result as u64)
            {
                open::observe(file, result as u32, HookSet::Tracepoint);
            }
        }
        Call::Source { descriptor, sign } => {
            if maps::is_at_syscalls(Hook::Source) {
                open::observe_source(descriptor, sign, HookSet::Tracepoint);
            }
        }
        Call::Map { protection } => {
            if code::is_executable(protection) && maps::is_at_syscalls(Hook::Code) {
                look_at(result as u64, 1, false);
            }
        }
        Call::Protect {
            start,
            length,
            protection,
        } => {
            if code::is_executable(protection) && maps::is_at_syscalls(Hook::Code) {
                look_at(start, length, true);
            }
        }
    }
    None
}

#[inline(always)]
fn call(registers: Pointer) -> Call {
    let number = registers.load::<u64>(offset!(regs_number));
    if is_compatible() {
        return compatible_call(registers, number);
    }
    match number & !X32 {
        // open, creat, openat, open_by_handle_at, openat2
        2 | 85 | 257 | 304 | 437 => Call::Open,
        // recvmsg, recvmmsg, pidfd_getfd
        47 | 299 | 438 => Call::Next(Next::Received),
        // io_uring_enter
        426 => Call::Next(Next::Rings),
        // mmap
        9 => Call::Map {
            protection: registers.load(offset!(regs_dx)),
        },
        // mprotect, pkey_mprotect
        10 | 329 => Call::Protect {
            start: registers.load(offset!(regs_di)),
            length: registers.load(offset!(regs_si)),
            protection: registers.load(offset!(regs_dx)),
        },
        // shmat
        30 => Call::Map {
            protection: if registers.load::<u64>(offset!(regs_dx)) & SHM_EXEC != 0 {
                PROT_EXEC
            } else {
                0
            },
        },
        // socket
        41 => Call::Socket {
            family: registers.load(offset!(regs_di)),
            kind: registers.load(offset!(regs_si)),
        },
        // connect
        42 => Call::Address {
            descriptor: registers.load(offset!(regs_di)),
            address: Address {
                at: registers.load(offset!(regs_si)),
                length: registers.load(offset!(regs_dx)),
            },
            purpose: Purpose::Connect,
        },
        // sendto
        44 => Call::Address {
            descriptor: registers.load(offset!(regs_di)),
            address: Address {
                at: registers.load(offset!(regs_r8)),
                length: registers.load(offset!(regs_r9)),
            },
            purpose: Purpose::Send,
        },
        // sendmsg
        46 => Call::Messages {
            descriptor: registers.load(offset!(regs_di)),
            headers: registers.load(offset!(regs_si)),
            count: 1,
            layout: socket_call::WIDE,
        },
        // sendmmsg
        307 => Call::Messages {
            descriptor: registers.load(offset!(regs_di)),
            headers: registers.load(offset!(regs_si)),
            count: registers.load(offset!(regs_dx)),
            layout: socket_call::WIDE,
        },
        // dup2, dup3
        33 | 292 => moved(
            registers.load(offset!(regs_di)),
            registers.load(offset!(regs_si)),
        ),
        // fcntl
        72 => duplicated(
            registers.load(offset!(regs_di)),
            registers.load(offset!(regs_si)),
            registers.load(offset!(regs_dx)),
        ),
        // fstat
        5 => examined_descriptor(registers.load(offset!(regs_di))),
        // newfstatat
        262 => examined(
            registers.load(offset!(regs_di)),
            registers.load(offset!(regs_r10)),
        ),
        _ => Call::Other,
    }
}

/// Whether a system call was made by its 32-bit number.
#[inline(always)]
pub fn is_compatible() -> bool {
    Pointer::current_task().load::<u32>(offset!(task_status)) & COMPATIBLE != 0
}

/// The same of a 32-bit program, or of `int 0x80`.
#[inline(always)]
fn compatible_call(registers: Pointer, number: u64) -> Call {
    match number {
        // open, creat, openat, open_by_handle_at, openat2
        5 | 8 | 295 | 342 | 437 => Call::Open,
        // recvmsg, recvmmsg, pidfd_getfd
        372 | 337 | 417 | 438 => Call::Next(Next::Received),
        // io_uring_enter
        426 => Call::Next(Next::Rings),
        // mmap2
        192 => Call::Map {
            protection: registers.load(offset!(regs_dx)),
        },
        // mmap by arguments in memory, shmat: the mapping itself tells
        90 | 397 => Call::Map {
            protection: PROT_EXEC,
        },
        // mprotect, pkey_mprotect
        125 | 380 => Call::Protect {
            start: registers.load(offset!(regs_bx)),
            length: registers.load(offset!(regs_cx)),
            protection: registers.load(offset!(regs_dx)),
        },
        // socket
        359 => Call::Socket {
            family: registers.load(offset!(regs_bx)),
            kind: registers.load(offset!(regs_cx)),
        },
        // connect
        362 => Call::Address {
            descriptor: registers.load(offset!(regs_bx)),
            address: Address {
                at: registers.load(offset!(regs_cx)),
                length: registers.load(offset!(regs_dx)),
            },
            purpose: Purpose::Connect,
        },
        // sendto
        369 => Call::Address {
            descriptor: registers.load(offset!(regs_bx)),
            address: Address {
                at: registers.load(offset!(regs_di)),
                length: registers.load(offset!(regs_bp)),
            },
            purpose: Purpose::Send,
        },
        // sendmsg
        370 => Call::Messages {
            descriptor: registers.load(offset!(regs_bx)),
            headers: registers.load(offset!(regs_cx)),
            count: 1,
            layout: socket_call::COMPATIBLE,
        },
        // sendmmsg
        345 => Call::Messages {
            descriptor: registers.load(offset!(regs_bx)),
            headers: registers.load(offset!(regs_cx)),
            count: registers.load(offset!(regs_dx)),
            layout: socket_call::COMPATIBLE,
        },
        // socketcall
        socket_call::NUMBER => socket_call::call(
            registers.load(offset!(regs_bx)),
            registers.load(offset!(regs_cx)),
        ),
        // dup2, dup3
        63 | 330 => moved(
            registers.load(offset!(regs_bx)),
            registers.load(offset!(regs_cx)),
        ),
        // fcntl, fcntl64
        55 | 221 => duplicated(
            registers.load(offset!(regs_bx)),
            registers.load(offset!(regs_cx)),
            registers.load(offset!(regs_dx)),
        ),
        // fstat, fstat64
        108 | 197 => examined_descriptor(registers.load(offset!(regs_bx))),
        _ => Call::Other,
    }
}

/// A descriptor's file was put in another's place.
#[inline(always)]
pub fn moved(from: u64, onto: u64) -> Call {
    Call::Source {
        descriptor: from,
        sign: if onto < COMMANDS_DESCRIPTORS {
            Sign::Redirected
        } else {
            Sign::Kept
        },
    }
}

/// `fcntl` was called.
#[inline(always)]
pub fn duplicated(descriptor: u64, command: u64, argument: u64) -> Call {
    if (command == F_DUPFD || command == F_DUPFD_CLOEXEC) && argument >= COMMANDS_DESCRIPTORS {
        return Call::Source {
            descriptor,
            sign: Sign::Kept,
        };
    }
    Call::Other
}

/// A file was asked for its size, of a descriptor only with this flag.
#[inline(always)]
pub fn examined(descriptor: u64, flags: u64) -> Call {
    if flags & AT_EMPTY_PATH == 0 {
        return Call::Other;
    }
    Call::Source {
        descriptor,
        sign: Sign::Examined,
    }
}

/// The same of a call that takes descriptors only.
#[inline(always)]
pub fn examined_descriptor(descriptor: u64) -> Call {
    examined(descriptor, AT_EMPTY_PATH)
}

/// Where the search for mappings has come.
struct Search {
    next: u64,
    end: u64,
    /// Whether memory without a file counts: a new mapping of it may be one with what was written
    /// beside it.
    anonymous: bool,
    /// No mapping lies there any more.
    finished: bool,
}

/// Looks at each mapping of the current process in a span.
#[inline(always)]
fn look_at(start: u64, length: u64, anonymous: bool) {
    let mut search = Search {
        next: start,
        end: start.saturating_add(length),
        anonymous,
        finished: false,
    };
    // SAFETY: the callback has the prototype that bpf_loop calls, and its context is a search.
    unsafe {
        bpf_loop(
            MAPPINGS_MAX,
            next_mapping as *mut c_void,
            (&raw mut search).cast(),
            0,
        )
    };
    if !search.finished && search.next < search.end {
        maps::count(Hook::Code, Outcome::Unreadable);
    }
}

/// `bpf_loop`'s words for going on and for stopping.
pub const CONTINUE: i64 = 0;
pub const STOP: i64 = 1;

unsafe extern "C" fn next_mapping(_index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `look_at` hands it over.
    let search = unsafe { &mut *context.cast::<Search>() };
    if search.next >= search.end {
        return STOP;
    }
    let before = search.next;
    // SAFETY: the callback has the prototype that bpf_find_vma calls, and its context is a search.
    let found = unsafe {
        bpf_find_vma(
            Pointer::current_task().0.cast_mut().cast(),
            search.next,
            on_mapping as *mut c_void,
            context,
            0,
        )
    };
    if found == 0 && search.next > before {
        return CONTINUE;
    }
    // Nothing is mapped there (ENOENT), or another thread holds the lock of the memory (EBUSY).
    search.finished = found == -2;
    STOP
}

unsafe extern "C" fn on_mapping(_task: *mut c_void, vma: *mut c_void, context: *mut c_void) -> i64 {
    let vma = Pointer(vma.cast_const().cast());
    let mapping = Mapping::of(vma);
    // SAFETY: `next_mapping` hands it over.
    let search = unsafe { &mut *context.cast::<Search>() };
    search.next = mapping.end;
    let file = vma.follow(offset!(vma_file));
    if vma.load::<u64>(offset!(vma_flags)) & VM_EXEC != 0 && (search.anonymous || !file.is_null()) {
        code::observe(file, mapping, HookSet::Tracepoint);
    }
    0
}
