//! The kernel side of `monitord`: hooks that write fixed-layout records into a ring buffer.
//!
//! Each entry function is one line; what it does is in the module of its event. Pointers into the
//! kernel are followed in [`kernel`] and nowhere else.
#![no_std]
#![no_main]

mod exec;
mod kernel;
mod maps;
mod path;
mod scratch;

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

/// Kernel prototype: `void sched_process_exec(struct task_struct *p, pid_t old_pid,
/// struct linux_binprm *bprm)`.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn exec_tracepoint(ctx: BtfTracePointContext) -> i32 {
    exec::observe(ctx.arg(0), ctx.arg(2))
}

/// The programs have no way to panic: the verifier refuses one that could. rustc wants a handler.
#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

// SAFETY: the kernel reads the licence from this section; nothing else links against it.
#[unsafe(link_section = "license")]
// SAFETY: the name is this object's own.
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
