//! System calls that are about sockets: how they carry their arguments.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use monitor_common::{Hook, connect::MESSAGES_MAX, syscall::Next};

use crate::{
    connect::{self, Address, Purpose},
    kernel::Memory,
    maps::{self, Outcome},
    syscall::{CONTINUE, Call, STOP},
};

/// Bytes of a pointer in a message, and from one `struct mmsghdr` to the next.
#[derive(Clone, Copy)]
pub struct Layout {
    pub is_compatible: bool,
    pub stride: u64,
}

pub const WIDE: Layout = Layout {
    is_compatible: false,
    stride: 64,
};
pub const COMPATIBLE: Layout = Layout {
    is_compatible: true,
    stride: 32,
};

/// The number of [`call`].
pub const NUMBER: u64 = 102;

/// The one system call that older 32-bit programs have for all that sockets do: its arguments lie
/// in memory.
#[inline(always)]
pub fn call(number: u64, arguments: u64) -> Call {
    let argument = |index| argument(arguments, index);
    // `SYS_*` of `include/uapi/linux/net.h`.
    match number {
        1 => Call::Socket {
            family: argument(0),
            kind: argument(1),
        },
        3 => Call::Address {
            descriptor: argument(0),
            address: Address {
                at: argument(1),
                length: argument(2),
            },
            purpose: Purpose::Connect,
        },
        11 => Call::Address {
            descriptor: argument(0),
            address: Address {
                at: argument(4),
                length: argument(5),
            },
            purpose: Purpose::Send,
        },
        17 | 19 => Call::Next(Next::Received),
        16 => Call::Messages {
            descriptor: argument(0),
            headers: argument(1),
            count: 1,
            layout: COMPATIBLE,
        },
        20 => Call::Messages {
            descriptor: argument(0),
            headers: argument(1),
            count: argument(2),
            layout: COMPATIBLE,
        },
        _ => Call::Other,
    }
}

/// One argument of such a call.
#[inline(always)]
pub fn argument(arguments: u64, index: usize) -> u64 {
    let value: Option<u32> = Memory::Process(arguments).get(index * size_of::<u32>());
    u64::from(value.unwrap_or(0))
}

/// Messages of which the address is looked at next.
struct Messages {
    descriptor: u64,
    header: u64,
    left: u64,
    layout: Layout,
    /// They are told here, and by no other hook.
    are_told: bool,
}

/// Looks at the address of each message, if it has one.
#[inline(always)]
pub fn look_at(descriptor: u64, headers: u64, count: u64, layout: Layout) {
    let mut messages = Messages {
        descriptor,
        header: headers,
        left: count,
        layout,
        are_told: false,
    };
    // SAFETY: the callback has the prototype that bpf_loop calls, and its context are messages.
    unsafe {
        bpf_loop(
            MESSAGES_MAX,
            next_message as *mut c_void,
            (&raw mut messages).cast(),
            0,
        )
    };
    if messages.are_told && messages.left > 0 {
        maps::count(Hook::Connect, Outcome::Unreadable);
    }
}

unsafe extern "C" fn next_message(_index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `look_at` hands it over.
    let messages = unsafe { &mut *context.cast::<Messages>() };
    if messages.left == 0 {
        return STOP;
    }
    let header = Memory::Process(messages.header);
    let address = if messages.layout.is_compatible {
        let read = (header.get::<u32>(0), header.get::<u32>(4));
        (read.0.map(u64::from), read.1)
    } else {
        (header.get::<u64>(0), header.get::<u32>(8))
    };
    let (Some(at), Some(length)) = address else {
        return STOP;
    };
    let length = u64::from(length);
    messages.are_told |=
        connect::observe_call(messages.descriptor, Address { at, length }, Purpose::Send);
    messages.header += messages.layout.stride;
    messages.left -= 1;
    CONTINUE
}
