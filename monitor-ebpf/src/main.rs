//! The kernel side of `monitord`: hooks that write fixed-layout records into a ring buffer.
//!
//! Each entry function is one line; what it does is in the module of its event. Pointers into the
//! kernel are followed in [`kernel`] and nowhere else.
#![no_std]
#![no_main]
// One instruction that rustc does not offer, see `scratch`.
#![feature(asm_experimental_arch)]

mod code;
mod connect;
mod exec;
mod file;
mod interpreter;
mod kernel;
mod maps;
mod open;
mod path;
mod process;
mod receive;
mod record;
mod ring;
mod scratch;
mod socket_call;
mod syscall;
mod task;

use aya_ebpf::{
    macros::{btf_tracepoint, cgroup_sock_addr, fentry, lsm},
    programs::{BtfTracePointContext, FEntryContext, LsmContext, SockAddrContext},
};
use code::{Mapping, PROT_EXEC};
use connect::Purpose;
use exec::Arguments;
use kernel::{Pointer, offset};
use monitor_common::{HookSet, connect::SOCKET_STREAM, open::NO_DESCRIPTOR};

/// What a program of the security framework says that only observes.
const ALLOW: i32 = 0;
/// What a program of a cgroup says that only observes.
const GO_ON: i32 = 1;

/// Kernel prototype: `void bprm_committed_creds(const struct linux_binprm *bprm)` or
/// `void bprm_committed_creds(struct linux_binprm *bprm)`.
#[lsm(hook = "bprm_committed_creds")]
pub fn exec_lsm(ctx: LsmContext) -> i32 {
    exec::observe(ctx.arg(0), Arguments::OnStack, HookSet::Lsm);
    ALLOW
}

/// Kernel prototype: `void security_bprm_committed_creds(const struct linux_binprm *bprm)` or
/// `void security_bprm_committed_creds(struct linux_binprm *bprm)`.
#[fentry(function = "security_bprm_committed_creds")]
pub fn exec_fentry(ctx: FEntryContext) -> i32 {
    exec::observe(ctx.arg(0), Arguments::OnStack, HookSet::Fentry);
    0
}

/// Kernel prototype: `void sched_process_exec(struct task_struct *p, pid_t old_pid,
/// struct linux_binprm *bprm)`.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn exec_tracepoint(ctx: BtfTracePointContext) -> i32 {
    exec::observe(ctx.arg(2), Arguments::Placed, HookSet::Tracepoint);
    0
}

/// Kernel prototype: `int mmap_file(struct file *file, long unsigned int reqprot, long unsigned int prot,
/// long unsigned int flags)`.
#[lsm(hook = "mmap_file")]
pub fn code_lsm(ctx: LsmContext) -> i32 {
    if ctx.arg::<u64>(2) & PROT_EXEC != 0 {
        code::observe(Pointer(ctx.arg(0)), Mapping::NEW, HookSet::Lsm);
    }
    ALLOW
}

/// Kernel prototype: `int file_mprotect(struct vm_area_struct *vma, long unsigned int reqprot,
/// long unsigned int prot)`.
#[lsm(hook = "file_mprotect")]
pub fn code_protect_lsm(ctx: LsmContext) -> i32 {
    if ctx.arg::<u64>(2) & PROT_EXEC != 0 {
        let vma = Pointer(ctx.arg(0));
        code::observe(
            vma.follow(offset!(vma_file)),
            Mapping::of(vma),
            HookSet::Lsm,
        );
    }
    ALLOW
}

/// Kernel prototype: `int security_mmap_file(struct file *file, long unsigned int prot,
/// long unsigned int flags)`.
#[fentry(function = "security_mmap_file")]
pub fn code_fentry(ctx: FEntryContext) -> i32 {
    if code::is_executable(ctx.arg(1)) {
        code::observe(Pointer(ctx.arg(0)), Mapping::NEW, HookSet::Fentry);
    }
    0
}

/// Kernel prototype: `int security_file_mprotect(struct vm_area_struct *vma, long unsigned int reqprot,
/// long unsigned int prot)`.
#[fentry(function = "security_file_mprotect")]
pub fn code_protect_fentry(ctx: FEntryContext) -> i32 {
    if ctx.arg::<u64>(2) & PROT_EXEC != 0 {
        let vma = Pointer(ctx.arg(0));
        code::observe(
            vma.follow(offset!(vma_file)),
            Mapping::of(vma),
            HookSet::Fentry,
        );
    }
    0
}

/// Kernel prototype: `int file_open(struct file *file)`.
#[lsm(hook = "file_open")]
pub fn open_lsm(ctx: LsmContext) -> i32 {
    open::observe(Pointer(ctx.arg(0)), NO_DESCRIPTOR, HookSet::Lsm);
    ALLOW
}

/// Kernel prototype: `int security_file_open(struct file *file)`.
#[fentry(function = "security_file_open")]
pub fn open_fentry(ctx: FEntryContext) -> i32 {
    open::observe(Pointer(ctx.arg(0)), NO_DESCRIPTOR, HookSet::Fentry);
    0
}

/// Kernel prototype: `int file_receive(struct file *file)`.
#[lsm(hook = "file_receive")]
pub fn open_receive_lsm(ctx: LsmContext) -> i32 {
    open::observe_received(Pointer(ctx.arg(0)), NO_DESCRIPTOR, HookSet::Lsm);
    ALLOW
}

/// Kernel prototype: `int security_file_receive(struct file *file)`.
#[fentry(function = "security_file_receive")]
pub fn open_receive_fentry(ctx: FEntryContext) -> i32 {
    open::observe_received(Pointer(ctx.arg(0)), NO_DESCRIPTOR, HookSet::Fentry);
    0
}

/// Kernel prototype: `long int __x64_sys_dup2(const struct pt_regs *regs)`.
#[fentry(function = "__x64_sys_dup2")]
pub fn source_dup2_fentry(ctx: FEntryContext) -> i32 {
    let registers = Pointer(ctx.arg(0));
    let first = registers.load(offset!(regs_di));
    let second = registers.load(offset!(regs_si));
    syscall::observe_source(syscall::moved(first, second));
    0
}

/// Kernel prototype: `long int __x64_sys_dup3(const struct pt_regs *regs)`.
#[fentry(function = "__x64_sys_dup3")]
pub fn source_dup3_fentry(ctx: FEntryContext) -> i32 {
    let registers = Pointer(ctx.arg(0));
    let first = registers.load(offset!(regs_di));
    let second = registers.load(offset!(regs_si));
    syscall::observe_source(syscall::moved(first, second));
    0
}

/// Kernel prototype: `long int __x64_sys_fcntl(const struct pt_regs *regs)`.
#[fentry(function = "__x64_sys_fcntl")]
pub fn source_fcntl_fentry(ctx: FEntryContext) -> i32 {
    let registers = Pointer(ctx.arg(0));
    let first = registers.load(offset!(regs_di));
    let second = registers.load(offset!(regs_si));
    syscall::observe_source(syscall::duplicated(
        first,
        second,
        registers.load(offset!(regs_dx)),
    ));
    0
}

/// Kernel prototype: `long int __x64_sys_newfstat(const struct pt_regs *regs)`.
#[fentry(function = "__x64_sys_newfstat")]
pub fn source_fstat_fentry(ctx: FEntryContext) -> i32 {
    let registers = Pointer(ctx.arg(0));
    let first = registers.load(offset!(regs_di));
    syscall::observe_source(syscall::examined_descriptor(first));
    0
}

/// Kernel prototype: `long int __x64_sys_newfstatat(const struct pt_regs *regs)`.
#[fentry(function = "__x64_sys_newfstatat")]
pub fn source_fstatat_fentry(ctx: FEntryContext) -> i32 {
    let registers = Pointer(ctx.arg(0));
    let first = registers.load(offset!(regs_di));
    syscall::observe_source(syscall::examined(first, registers.load(offset!(regs_r10))));
    0
}

/// Kernel prototype: `int socket_connect(struct socket *sock, struct sockaddr *address, int addrlen)`.
#[lsm(hook = "socket_connect")]
pub fn connect_lsm(ctx: LsmContext) -> i32 {
    let (socket, address) = (Pointer(ctx.arg(0)), Pointer(ctx.arg(1)));
    connect::observe_address(socket, address, Purpose::Connect, HookSet::Lsm);
    ALLOW
}

/// Kernel prototype: `int socket_sendmsg(struct socket *sock, struct msghdr *msg, int size)`.
#[lsm(hook = "socket_sendmsg")]
pub fn connect_send_lsm(ctx: LsmContext) -> i32 {
    connect::observe_message(Pointer(ctx.arg(0)), Pointer(ctx.arg(1)), HookSet::Lsm);
    ALLOW
}

/// Kernel prototype: `int unix_stream_connect(struct sock *sock, struct sock *other, struct sock *newsk)`.
#[lsm(hook = "unix_stream_connect")]
pub fn connect_unix_lsm(ctx: LsmContext) -> i32 {
    connect::observe_unix(SOCKET_STREAM, Pointer(ctx.arg(1)), HookSet::Lsm);
    ALLOW
}

/// Kernel prototype: `int unix_may_send(struct socket *sock, struct socket *other)`.
#[lsm(hook = "unix_may_send")]
pub fn connect_unix_send_lsm(ctx: LsmContext) -> i32 {
    connect::observe_unix_socket(Pointer(ctx.arg(0)), Pointer(ctx.arg(1)), HookSet::Lsm);
    ALLOW
}

/// Kernel prototype: `int socket_post_create(struct socket *sock, int family, int type, int protocol, int kern)`.
#[lsm(hook = "socket_post_create")]
pub fn connect_create_lsm(ctx: LsmContext) -> i32 {
    if ctx.arg::<i32>(4) == 0 {
        connect::observe_creation(ctx.arg(1), ctx.arg(2), HookSet::Lsm);
    }
    ALLOW
}

/// Kernel prototype: `int security_socket_connect(struct socket *sock, struct sockaddr *address, int addrlen)`.
#[fentry(function = "security_socket_connect")]
pub fn connect_fentry(ctx: FEntryContext) -> i32 {
    let (socket, address) = (Pointer(ctx.arg(0)), Pointer(ctx.arg(1)));
    connect::observe_address(socket, address, Purpose::Connect, HookSet::Fentry);
    0
}

/// Kernel prototype: `int security_socket_sendmsg(struct socket *sock, struct msghdr *msg, int size)`.
#[fentry(function = "security_socket_sendmsg")]
pub fn connect_send_fentry(ctx: FEntryContext) -> i32 {
    connect::observe_message(Pointer(ctx.arg(0)), Pointer(ctx.arg(1)), HookSet::Fentry);
    0
}

/// Kernel prototype: `int security_unix_stream_connect(struct sock *sock, struct sock *other, struct sock *newsk)`.
#[fentry(function = "security_unix_stream_connect")]
pub fn connect_unix_fentry(ctx: FEntryContext) -> i32 {
    connect::observe_unix(SOCKET_STREAM, Pointer(ctx.arg(1)), HookSet::Fentry);
    0
}

/// Kernel prototype: `int security_unix_may_send(struct socket *sock, struct socket *other)`.
#[fentry(function = "security_unix_may_send")]
pub fn connect_unix_send_fentry(ctx: FEntryContext) -> i32 {
    connect::observe_unix_socket(Pointer(ctx.arg(0)), Pointer(ctx.arg(1)), HookSet::Fentry);
    0
}

/// Kernel prototype: `int security_socket_post_create(struct socket *sock, int family, int type, int protocol, int kern)`.
#[fentry(function = "security_socket_post_create")]
pub fn connect_create_fentry(ctx: FEntryContext) -> i32 {
    if ctx.arg::<i32>(4) == 0 {
        connect::observe_creation(ctx.arg(1), ctx.arg(2), HookSet::Fentry);
    }
    0
}

#[cgroup_sock_addr(connect4)]
pub fn connect_ipv4_cgroup(ctx: SockAddrContext) -> i32 {
    connect::observe_ipv4(ctx.sock_addr);
    GO_ON
}

#[cgroup_sock_addr(connect6)]
pub fn connect_ipv6_cgroup(ctx: SockAddrContext) -> i32 {
    connect::observe_ipv6(ctx.sock_addr);
    GO_ON
}

#[cgroup_sock_addr(sendmsg4)]
pub fn connect_send_ipv4_cgroup(ctx: SockAddrContext) -> i32 {
    connect::observe_ipv4(ctx.sock_addr);
    GO_ON
}

#[cgroup_sock_addr(sendmsg6)]
pub fn connect_send_ipv6_cgroup(ctx: SockAddrContext) -> i32 {
    connect::observe_ipv6(ctx.sock_addr);
    GO_ON
}

/// Kernel prototype: `void inet_sock_set_state(const struct sock *sk, const int oldstate, const int newstate)`.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn connect_answer_tracepoint(ctx: BtfTracePointContext) -> i32 {
    connect::observe_state(Pointer(ctx.arg(0)), ctx.arg(1), ctx.arg(2));
    0
}

/// Kernel prototype: `void sys_exit(struct pt_regs *regs, long int ret)`.
#[btf_tracepoint(function = "sys_exit")]
pub fn syscall_tracepoint(ctx: BtfTracePointContext) -> i32 {
    if let Some(next) = syscall::observe(ctx.arg(0), ctx.arg(1)) {
        maps::go_on(&ctx, next);
    }
    0
}

/// Runs behind the one above, where that says so.
///
/// Kernel prototype: `void sys_exit(struct pt_regs *regs, long int ret)`.
#[btf_tracepoint(function = "sys_exit")]
pub fn ring_enter_tracepoint(_ctx: BtfTracePointContext) -> i32 {
    ring::observe_occasion();
    0
}

/// Likewise.
///
/// Kernel prototype: `void sys_exit(struct pt_regs *regs, long int ret)`.
#[btf_tracepoint(function = "sys_exit")]
pub fn open_receive_tracepoint(ctx: BtfTracePointContext) -> i32 {
    receive::observe(Pointer(ctx.arg(0)), ctx.arg(1));
    0
}

/// Kernel prototype: `void io_uring_submit_req(struct io_kiocb *req)`, or none.
#[btf_tracepoint(function = "io_uring_submit_req")]
pub fn ring_submit_tracepoint(ctx: BtfTracePointContext) -> i32 {
    ring::observe_submission(Pointer(ctx.arg(0)));
    0
}

/// Kernel prototype: `void io_uring_complete(struct io_ring_ctx *ctx, void *req,
/// struct io_uring_cqe *cqe)`, or none.
#[btf_tracepoint(function = "io_uring_complete")]
pub fn ring_complete_tracepoint(ctx: BtfTracePointContext) -> i32 {
    ring::observe_completion(ctx.arg(1));
    0
}

/// Kernel prototype: `void io_uring_task_work_run(void *tctx, unsigned int count)`, or none.
#[btf_tracepoint(function = "io_uring_task_work_run")]
pub fn ring_work_tracepoint(_ctx: BtfTracePointContext) -> i32 {
    ring::observe_occasion();
    0
}

/// Kernel prototype: `void io_uring_local_work_run(void *ctx, int count, unsigned int loops)`, or
/// none.
#[btf_tracepoint(function = "io_uring_local_work_run")]
pub fn ring_local_tracepoint(_ctx: BtfTracePointContext) -> i32 {
    ring::observe_occasion();
    0
}

/// Kernel prototype: `void sched_process_fork(struct task_struct *parent,
/// struct task_struct *child)`.
#[btf_tracepoint(function = "sched_process_fork")]
pub fn fork_tracepoint(ctx: BtfTracePointContext) -> i32 {
    process::observe_fork(ctx.arg(1));
    0
}

/// Kernel prototype: `void sched_process_exit(struct task_struct *p, bool group_dead)` or
/// `void sched_process_exit(struct task_struct *p)`.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn exit_tracepoint(_ctx: BtfTracePointContext) -> i32 {
    process::observe_exit();
    0
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
