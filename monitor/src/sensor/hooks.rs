//! Where the kernel lets events be seen: which hooks there are for each kind of event, which of
//! them the running kernel accepts, and what each does not see.

pub use monitor_common::HookSet;
use monitor_common::{Hook, syscall::Next};

/// All sets, best first.
pub const SETS: [HookSet; 3] = [HookSet::Lsm, HookSet::Fentry, HookSet::Tracepoint];

/// As alerts and documents name a set.
pub fn set_name(set: HookSet) -> &'static str {
    match set {
        HookSet::Lsm => "lsm",
        HookSet::Fentry => "fentry",
        HookSet::Tracepoint => "tracepoint",
    }
}

/// Where a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Lsm(&'static str),
    Function(&'static str),
    Tracepoint(&'static str),
    /// The root of the cgroup v2 hierarchy, for what the program's section says.
    RootCgroup,
    /// Where the program at the end of system calls leaves off.
    Next(Next),
}

/// A program of the object, and where it goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Program {
    pub(super) name: &'static str,
    pub(super) place: Place,
}

/// One way to see a kind of event: all of its programs, or it is none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    pub(super) set: HookSet,
    pub(super) programs: &'static [Program],
}

const fn program(name: &'static str, place: Place) -> Program {
    Program { name, place }
}

/// What sees the end of system calls, for whatever is set in `AT_SYSCALLS`.
pub(super) const AT_SYSCALLS: &str = "syscall_tracepoint";
/// Its tracepoint, and that of what goes on where it leaves off.
pub(super) const SYSCALL_EXIT: &str = "sys_exit";
const SYSCALLS: Program = program(AT_SYSCALLS, Place::Tracepoint(SYSCALL_EXIT));

/// What sees how connects of TCP end.
const ANSWERS: Program = program(
    "connect_answer_tracepoint",
    Place::Tracepoint("inet_sock_set_state"),
);

/// What sees requests of io_uring, for whatever is set in `AT_SYSCALLS`.
const RINGS: &[Program] = &[
    program("ring_enter_tracepoint", Place::Next(Next::Rings)),
    program(
        "ring_work_tracepoint",
        Place::Tracepoint("io_uring_task_work_run"),
    ),
    program(
        "ring_local_tracepoint",
        Place::Tracepoint("io_uring_local_work_run"),
    ),
    program(
        "ring_complete_tracepoint",
        Place::Tracepoint("io_uring_complete"),
    ),
    program(
        "ring_submit_tracepoint",
        Place::Tracepoint("io_uring_submit_req"),
    ),
];

/// The kinds of events in the order in which they are attached: whoever is told of an open knows
/// the exec.
pub const KINDS: [Hook; 7] = [
    Hook::Fork,
    Hook::Exit,
    Hook::Exec,
    Hook::Source,
    Hook::Code,
    Hook::Open,
    Hook::Connect,
];

/// As documents and the API name a kind of event.
pub fn kind_name(kind: Hook) -> &'static str {
    match kind {
        Hook::Exec => "exec",
        Hook::Code => "code",
        Hook::Open => "open",
        Hook::Source => "source",
        Hook::Fork => "fork",
        Hook::Exit => "exit",
        Hook::Connect => "connect",
    }
}

/// The ways to see each kind of event, best first. No hook of the security framework sees
/// what becomes of a descriptor, and none of the better sets sees more of processes than the tracepoints do.
static WAYS: &[(Hook, &[Way])] = &[
    (
        Hook::Exec,
        &[
            Way {
                set: HookSet::Lsm,
                programs: &[program("exec_lsm", Place::Lsm("bprm_committed_creds"))],
            },
            Way {
                set: HookSet::Fentry,
                programs: &[program(
                    "exec_fentry",
                    Place::Function("security_bprm_committed_creds"),
                )],
            },
            Way {
                set: HookSet::Tracepoint,
                programs: &[program(
                    "exec_tracepoint",
                    Place::Tracepoint("sched_process_exec"),
                )],
            },
        ],
    ),
    (
        Hook::Code,
        &[
            Way {
                set: HookSet::Lsm,
                programs: &[
                    program("code_lsm", Place::Lsm("mmap_file")),
                    program("code_protect_lsm", Place::Lsm("file_mprotect")),
                ],
            },
            Way {
                set: HookSet::Fentry,
                programs: &[
                    program("code_fentry", Place::Function("security_mmap_file")),
                    program(
                        "code_protect_fentry",
                        Place::Function("security_file_mprotect"),
                    ),
                ],
            },
            Way {
                set: HookSet::Tracepoint,
                programs: &[SYSCALLS],
            },
        ],
    ),
    (
        Hook::Open,
        &[
            Way {
                set: HookSet::Lsm,
                programs: &[
                    program("open_lsm", Place::Lsm("file_open")),
                    program("open_receive_lsm", Place::Lsm("file_receive")),
                ],
            },
            Way {
                set: HookSet::Fentry,
                programs: &[
                    program("open_fentry", Place::Function("security_file_open")),
                    program(
                        "open_receive_fentry",
                        Place::Function("security_file_receive"),
                    ),
                ],
            },
            Way {
                set: HookSet::Tracepoint,
                programs: &[
                    program("open_receive_tracepoint", Place::Next(Next::Received)),
                    SYSCALLS,
                ],
            },
        ],
    ),
    (
        Hook::Source,
        &[
            Way {
                set: HookSet::Fentry,
                programs: &[
                    program("source_dup2_fentry", Place::Function("__x64_sys_dup2")),
                    program("source_dup3_fentry", Place::Function("__x64_sys_dup3")),
                    program("source_fcntl_fentry", Place::Function("__x64_sys_fcntl")),
                    program("source_fstat_fentry", Place::Function("__x64_sys_newfstat")),
                    program(
                        "source_fstatat_fentry",
                        Place::Function("__x64_sys_newfstatat"),
                    ),
                ],
            },
            Way {
                set: HookSet::Tracepoint,
                programs: &[SYSCALLS],
            },
        ],
    ),
    (
        Hook::Fork,
        &[Way {
            set: HookSet::Tracepoint,
            programs: &[program(
                "fork_tracepoint",
                Place::Tracepoint("sched_process_fork"),
            )],
        }],
    ),
    (
        Hook::Exit,
        &[Way {
            set: HookSet::Tracepoint,
            programs: &[program(
                "exit_tracepoint",
                Place::Tracepoint("sched_process_exit"),
            )],
        }],
    ),
    (
        Hook::Connect,
        &[
            Way {
                set: HookSet::Lsm,
                programs: &[
                    program("connect_lsm", Place::Lsm("socket_connect")),
                    program("connect_send_lsm", Place::Lsm("socket_sendmsg")),
                    program("connect_unix_lsm", Place::Lsm("unix_stream_connect")),
                    program("connect_unix_send_lsm", Place::Lsm("unix_may_send")),
                    program("connect_create_lsm", Place::Lsm("socket_post_create")),
                    ANSWERS,
                ],
            },
            Way {
                set: HookSet::Fentry,
                programs: &[
                    program("connect_fentry", Place::Function("security_socket_connect")),
                    program(
                        "connect_send_fentry",
                        Place::Function("security_socket_sendmsg"),
                    ),
                    program(
                        "connect_unix_fentry",
                        Place::Function("security_unix_stream_connect"),
                    ),
                    program(
                        "connect_unix_send_fentry",
                        Place::Function("security_unix_may_send"),
                    ),
                    program(
                        "connect_create_fentry",
                        Place::Function("security_socket_post_create"),
                    ),
                    ANSWERS,
                ],
            },
            Way {
                set: HookSet::Tracepoint,
                programs: &[
                    program("connect_ipv4_cgroup", Place::RootCgroup),
                    program("connect_ipv6_cgroup", Place::RootCgroup),
                    program("connect_send_ipv4_cgroup", Place::RootCgroup),
                    program("connect_send_ipv6_cgroup", Place::RootCgroup),
                    ANSWERS,
                    SYSCALLS,
                ],
            },
        ],
    ),
];

/// The ways to see a kind of event, best first.
pub(super) fn ways(kind: Hook) -> &'static [Way] {
    WAYS.iter()
        .find(|(of, _)| *of == kind)
        .map_or(&[], |(_, ways)| ways)
}

/// Those of `allowed` sets, if there is a choice.
pub(super) fn allowed_ways(kind: Hook, allowed: &[HookSet]) -> impl Iterator<Item = &'static Way> {
    let ways = ways(kind);
    let may = move |way: &&Way| allowed.contains(&way.set) || ways.len() == 1;
    ways.iter().filter(may)
}

/// What a way sees more of where the kernel takes all of these.
pub(super) fn additions(kind: Hook, set: HookSet) -> &'static [Program] {
    match (kind, set) {
        (Hook::Open | Hook::Connect, HookSet::Tracepoint) => RINGS,
        _ => &[],
    }
}

/// What is in force for a kind of event, and why nothing better is.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The kind.
    pub kind: Hook,
    /// The set; `None` if the kernel accepts none.
    pub set: Option<HookSet>,
    /// The better ones that the kernel refused, and why.
    pub refused: Vec<Refusal>,
    /// Why what io_uring does is not seen, where that takes hooks of its own.
    pub refused_addition: Option<String>,
}

/// A set that the kernel refused.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// Which.
    pub set: HookSet,
    /// Why, by the kernel.
    pub reason: String,
}

impl Refusal {
    /// The reason without the verifier's log, which follows it.
    pub fn without_log(&self) -> &str {
        without_log(&self.reason)
    }
}

fn without_log(reason: &str) -> &str {
    let reason = reason.split(" Verifier output:").next();
    reason.unwrap_or_default().trim_end_matches('.')
}

impl Choice {
    /// What is not seen of this kind of event by what is in force, one sentence each.
    pub fn blind_spots(&self) -> Vec<String> {
        let Some(set) = self.set else {
            return vec!["no event of this kind is seen".to_owned()];
        };
        let of_set: &[&str] = match (self.kind, set) {
            (Hook::Code, HookSet::Tracepoint) => &[
                "a mapping is looked for when the system call ends: one whose memory another thread holds locked or has unmapped by then is counted as unreadable",
                "of one mprotect over more than 64 mappings the rest is counted as unreadable",
            ],
            (Hook::Open, HookSet::Tracepoint) => &[
                "open files that come with a message received through io_uring, or by a seccomp notifier; those of other messages are told by what the process's memory says when the system call ends, and beyond a thousand in one call are counted as unreadable",
            ],
            (Hook::Connect, HookSet::Tracepoint) => &[
                "an AF_UNIX connect that fails, or whose descriptor another thread replaces before the system call ends",
                "the socket behind the path that an AF_UNIX datagram is sent to: the path is told as the process wrote it",
                "the address that a raw socket sends to is read from the process's memory when the system call ends; of one sendmmsg over more than 64 messages the rest is counted as unreadable",
            ],
            (Hook::Source, HookSet::Fentry) => &["what 32-bit shells run by `source`"],
            _ => &[],
        };
        let of_kind: &[&str] = match self.kind {
            Hook::Code => &[
                "memory without a file that is made executable: compilers at run time do the same",
            ],
            Hook::Open => &[
                "open files that another process puts into a ring of io_uring (`IORING_MSG_SEND_FD`)",
                "files that the kernel writes itself (proc, sysfs, cgroup), directories, devices and pipes",
                "commands that a shell reads from where it has redirected its own standard input to",
                "scripts that come by a pipe, a socket or an argument, which are no file",
                "data that a program reads and chooses to execute",
            ],
            Hook::Connect => &[
                "what a packet socket sends, and what a raw socket writes into a header of its own: that there is a packet socket is told",
                "sockets of other families (vsock, netlink, Bluetooth)",
                "whether a peer answered that is not of TCP, over several paths, or to which there is no route",
            ],
            Hook::Exec | Hook::Source | Hook::Fork | Hook::Exit => &[],
        };
        let of_rings = self.refused_addition.iter().map(|reason| {
            let reason = without_log(reason);
            match self.kind {
                Hook::Connect => format!(
                    "AF_UNIX, raw and packet sockets that are used through io_uring: {reason}"
                ),
                _ => format!("files that are opened through io_uring: {reason}"),
            }
        });
        let of_rings_seen: &[&str] = match (self.kind, set) {
            (Hook::Open, HookSet::Tracepoint) if self.refused_addition.is_none() => &[
                "of files that are opened through io_uring without a completion, one that is closed again before the kernel tells of its thread, and those of one thread beyond 32 at once, are lost and counted",
            ],
            (Hook::Connect, HookSet::Tracepoint) if self.refused_addition.is_none() => &[
                "whether a packet socket that is made through io_uring was refused: it is told when it is asked for",
                "what AF_UNIX and raw sockets send through io_uring is told by the descriptor as it is when the request is submitted; one that is not there yet is counted as unreadable",
            ],
            _ => &[],
        };
        let known = of_set
            .iter()
            .chain(of_rings_seen)
            .chain(of_kind)
            .map(|&spot| spot.to_owned());
        of_rings.chain(known).collect()
    }
}
