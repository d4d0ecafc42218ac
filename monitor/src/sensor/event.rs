//! What the sensor gives: checked, owned, and without any trace of how it was transported.

use std::{net::IpAddr, os::fd::OwnedFd};

use monitor_common::Hook;
pub use monitor_common::{connect::Peer, file::FileFacts, open::Sign};

use super::hooks::HookSet;
pub use super::unsettled::{Owed, Receipt};

/// Something happened.
#[derive(Debug)]
pub enum Event {
    /// A program was executed.
    Exec(Box<Exec>),
    /// A file was mapped executable.
    Code(Box<Code>),
    /// A file was opened.
    Open(Box<Open>),
    /// A shell treats a file as commands, or as data.
    Source(Source),
    /// A process made another.
    Fork(Fork),
    /// A process ended.
    Exit(Exit),
    /// A process reached for a peer.
    Connect(Box<Connect>),
    /// What came of it.
    Answer(Answer),
}

/// A process used a file, so that it may have become code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileUse {
    /// When, in nanoseconds since boot.
    pub time_boot_ns: u64,
    /// Which kind of hook saw it.
    pub hook: HookSet,
    /// The cgroup of the task.
    pub cgroup: Cgroup,
    /// The process.
    pub process: Process,
    /// The file.
    pub file: File,
    /// It happened before the hooks were attached; told by a look at `/proc`.
    pub already_running: bool,
    /// As long as it is kept, a daemon that is started again after this one was killed is told again.
    pub receipt: Receipt,
}

/// A program was executed. The file is the program; of a script, the interpreter.
#[derive(Debug)]
pub struct Exec {
    /// Who, when and what.
    pub used: FileUse,
    /// The script's name as it was given to execve, if there is one.
    pub script: Option<Vec<u8>>,
    /// Arguments.
    pub arguments: Vec<Vec<u8>>,
    /// Arguments were cut at their bound or could not be read.
    pub arguments_truncated: bool,
    /// What fanotify held of this exec, in the order of opening: scripts, the program, the ELF
    /// interpreter; empty where nothing was held.
    pub held: Vec<OwnedFd>,
    /// The program where fanotify does not cover it (memory, volumes), as an `O_PATH` descriptor;
    /// `None` if the process had gone.
    pub program: Option<OwnedFd>,
}

/// A file was mapped executable, a mapping of it was made executable, or memory without a file was
/// after it had been written.
#[derive(Debug)]
pub struct Code {
    /// Who, when and what.
    pub used: FileUse,
    /// Pages of the mapping were written before: what runs is not what the file holds.
    pub written: bool,
    /// Memory without a file: the file has no facts and its path is `[anonymous]`.
    pub is_anonymous: bool,
    /// Where the mapping begins and ends; zeros where the hook runs before the kernel has chosen.
    pub mapping: (u64, u64),
    /// Of memory without a file, the files that the process has mapped executable.
    pub libraries: Vec<Vec<u8>>,
    /// The file, as an `O_PATH` descriptor; `None` if it was no longer to be found.
    pub held: Option<OwnedFd>,
}

/// What a file was opened for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// To be read.
    pub read: bool,
    /// To be written.
    pub write: bool,
}

/// A file was opened.
#[derive(Debug)]
pub struct Open {
    /// Who, when and what.
    pub used: FileUse,
    /// What for.
    pub access: Access,
    /// By an interpreter and for reading only, so that it may become code.
    pub is_interpreted: bool,
    /// It was the standard input of the interpreter when that was executed.
    pub is_standard_input: bool,
    /// Another process opened it and handed it over.
    pub is_received: bool,
    /// The descriptor, where the hook runs when there is one.
    pub descriptor: Option<u32>,
    /// The file, as an `O_PATH` descriptor; `None` if it was no longer to be found.
    pub held: Option<OwnedFd>,
}

/// What a shell did with an open file tells whether it takes it for commands or for data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Which process.
    pub process: ProcessId,
    /// [`FileFacts::inode`] of the file.
    pub inode: u64,
    /// [`FileFacts::device`] of the file.
    pub device: u32,
    /// What it did.
    pub sign: Sign,
}

/// A process connected to a peer, or sent to it without connecting, or made a packet socket.
#[derive(Clone, Debug)]
pub struct Connect {
    /// Who, when, and the file of a peer's AF_UNIX socket; without one the facts are zero and the
    /// paths empty.
    pub used: FileUse,
    /// The peer as the kernel side remembers it.
    pub peer: Peer,
    /// What the socket speaks.
    pub protocol: Protocol,
    /// Where the peer is.
    pub address: Address,
    /// Its port, where it has one.
    pub port: Option<u16>,
}

/// What a socket speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP, also over several paths.
    Tcp,
    /// UDP and UDP-Lite.
    Udp,
    /// AF_UNIX.
    Unix,
    /// IP, with headers of the process's own making.
    Raw,
    /// Frames of a link.
    Packet,
    /// Another protocol of IP (`IPPROTO_*`).
    Other(u16),
}

/// Where a peer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// On the network. IPv4 mapped to IPv6 is IPv4.
    Ip(IpAddr),
    /// The file of the socket, see [`Connect::used`].
    File,
    /// A path as the process wrote it: no hook led to the socket behind it.
    Named(Vec<u8>),
    /// A name that is no path, without the NUL that it begins with.
    Abstract(Vec<u8>),
    /// Not told.
    None,
}

/// What came of a connect of TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// [`Process::pid`] of the connect.
    pub pid: u32,
    /// [`FileUse::time_boot_ns`] of the connect.
    pub connect_boot_ns: u64,
    /// What came of it.
    pub outcome: Outcome,
}

/// How a connect ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The peer took it.
    Connected,
    /// The peer refused it.
    Refused,
    /// Nobody answered.
    TimedOut,
    /// The network said that there is no way to the peer.
    Unreachable,
    /// The process closed the socket before.
    Abandoned,
    /// For another reason.
    Failed,
}

/// A process made another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fork {
    /// The one.
    pub parent: ProcessId,
    /// The other.
    pub child: ProcessId,
}

/// A process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Which.
    pub process: ProcessId,
}

/// What tells a process from every other of this boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProcessId {
    /// Process id in the initial pid namespace.
    pub pid: u32,
    /// When it started, in nanoseconds since boot.
    pub start_boot_ns: u64,
}

/// A cgroup of the v2 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// Its id; not reused during a boot.
    pub id: u64,
    /// Its path from the root of the hierarchy, beginning with `/`; begins with `…/` if it was cut.
    pub path: Vec<u8>,
}

/// A process when the hook ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Process id in the initial pid namespace.
    pub pid: u32,
    /// When it started, in nanoseconds since boot: with `pid` its identity.
    pub start_boot_ns: u64,
    /// Process id of its parent.
    pub parent_pid: u32,
    /// Inode number of its parent's mount namespace; 0 if the parent was exiting.
    pub parent_mount_namespace: u32,
    /// User id in the initial user namespace.
    pub uid: u32,
    /// Inode number of its mount namespace.
    pub mount_namespace: u32,
    /// Inode number of its pid namespace.
    pub pid_namespace: u32,
    /// Kernel device number of the superblock of its root directory.
    pub root_device: u32,
}

impl Process {
    /// What tells it from every other of this boot.
    pub fn id(&self) -> ProcessId {
        ProcessId {
            pid: self.pid,
            start_boot_ns: self.start_boot_ns,
        }
    }
}

/// A file when it was used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// What the kernel says of it.
    pub facts: FileFacts,
    /// Its path from the root of the mount namespace.
    pub path: Vec<u8>,
    /// Its path from the root of its superblock, which no mount can change.
    pub path_in_filesystem: Vec<u8>,
    /// The paths were cut: the components nearest to the file are there.
    pub path_truncated: bool,
    /// Its name was no longer in its directory.
    pub unlinked: bool,
}

impl Event {
    /// The use of a file that it is, if it is one.
    pub fn used(&self) -> Option<&FileUse> {
        match self {
            Self::Exec(exec) => Some(&exec.used),
            Self::Code(code) => Some(&code.used),
            Self::Open(open) => Some(&open.used),
            Self::Connect(connect) => Some(&connect.used),
            Self::Source(_) | Self::Fork(_) | Self::Exit(_) | Self::Answer(_) => None,
        }
    }

    /// Which kind of hook saw it.
    pub fn kind(&self) -> Hook {
        match self {
            Self::Exec(_) => Hook::Exec,
            Self::Code(_) => Hook::Code,
            Self::Open(_) => Hook::Open,
            Self::Source(_) => Hook::Source,
            Self::Fork(_) => Hook::Fork,
            Self::Exit(_) => Hook::Exit,
            Self::Connect(_) | Self::Answer(_) => Hook::Connect,
        }
    }

    /// The same, to be changed.
    pub(super) fn used_mut(&mut self) -> Option<&mut FileUse> {
        match self {
            Self::Exec(exec) => Some(&mut exec.used),
            Self::Code(code) => Some(&mut code.used),
            Self::Open(open) => Some(&mut open.used),
            Self::Connect(connect) => Some(&mut connect.used),
            Self::Source(_) | Self::Fork(_) | Self::Exit(_) | Self::Answer(_) => None,
        }
    }
}
