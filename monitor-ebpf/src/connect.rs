//! A process reached for a peer.

use aya_ebpf::{bindings::bpf_sock_addr, helpers::generated::bpf_ktime_get_boot_ns};
use monitor_common::{
    Hook, HookSet, RecordKind,
    connect::{
        ADDRESS_BYTES_MAX, AnswerRecord, ConnectRecord, FAMILY_IPV4, FAMILY_IPV6, FAMILY_PACKET,
        FAMILY_UNIX, Peer, PeerAddress, PeerState, REPEAT_NS, SOCKET_RAW, SocketFile,
    },
    file::FileFacts,
    path::PathLengths,
};

use zerocopy::IntoBytes as _;

use crate::{
    file::Opened,
    kernel::{Memory, Pointer, offset},
    maps::{self, Connecting, Outcome, Whose},
    open,
    record::{self, Begun},
    scratch::{Claim, bounded},
    task::Watched,
};

const FAMILY_NONE: u16 = 0;
/// Where a `struct sockaddr_in` has its address, and a `struct sockaddr_in6`; both have the port
/// behind the family.
const IPV4_ADDRESS: usize = 4;
const IPV6_ADDRESS: usize = 8;
const PORT: usize = 2;
/// Where a `struct sockaddr_un` has its name.
const UNIX_NAME: usize = 2;
/// Bytes of that name.
const UNIX_NAME_BYTES_MAX: usize = 108;
/// `SOCKFS_MAGIC` of `include/uapi/linux/magic.h`.
const SOCKFS_MAGIC: u32 = 0x534f_434b;

/// `IPPROTO_TCP` of `include/uapi/linux/in.h`.
const TCP: u16 = 6;
/// States of TCP in `include/net/tcp_states.h`.
const ESTABLISHED: u64 = 1;
const SYN_SENT: u64 = 2;
/// No answer is told of it.
const NO_SOCKET: u64 = 0;

/// What a peer turned out to be; its address is then in the scratch.
enum Reached {
    Peer,
    /// A socket of AF_UNIX with a file.
    File(Opened),
    /// Nobody that could be told of.
    Nobody,
}

/// Runs before a socket of IPv4 connects or sends to an address without connecting.
#[inline(always)]
pub fn observe_ipv4(context: *mut bpf_sock_addr) {
    let Some(run) = Run::begin(HookSet::Tracepoint) else {
        return;
    };
    let peer = run.claim.peer();
    // SAFETY: the kernel hands over a valid context, of which any of these fields may be read.
    let address = unsafe { (&raw const (*context).user_ip4).read_volatile() };
    peer.address[..4].copy_from_slice(&address.to_ne_bytes());
    describe(peer, FAMILY_IPV4, context);
    peer.length = 4;
    run.end_of(sock_of(context), Some(Reached::Peer));
}

/// The same of IPv6.
#[inline(always)]
pub fn observe_ipv6(context: *mut bpf_sock_addr) {
    let Some(run) = Run::begin(HookSet::Tracepoint) else {
        return;
    };
    let peer = run.claim.peer();
    // SAFETY: as above; word by word, as the verifier wants it.
    let words = unsafe {
        let address = (&raw const (*context).user_ip6).cast::<u32>();
        [
            address.read_volatile(),
            address.add(1).read_volatile(),
            address.add(2).read_volatile(),
            address.add(3).read_volatile(),
        ]
    };
    peer.address[..4].copy_from_slice(&words[0].to_ne_bytes());
    peer.address[4..8].copy_from_slice(&words[1].to_ne_bytes());
    peer.address[8..12].copy_from_slice(&words[2].to_ne_bytes());
    peer.address[12..16].copy_from_slice(&words[3].to_ne_bytes());
    describe(peer, FAMILY_IPV6, context);
    peer.length = 16;
    run.end_of(sock_of(context), Some(Reached::Peer));
}

#[inline(always)]
fn describe(peer: &mut Peer, family: u16, context: *mut bpf_sock_addr) {
    // SAFETY: as above.
    unsafe {
        peer.port = u16::from_be((&raw const (*context).user_port).read_volatile() as u16);
        peer.socket_type = (&raw const (*context).type_).read_volatile() as u16;
        peer.protocol = (&raw const (*context).protocol).read_volatile() as u16;
    }
    peer.family = family;
    peer.address_kind = PeerAddress::Ip as u16;
}

/// The socket (`struct sock`) that a program of the cgroup runs for, as a number.
#[inline(always)]
fn sock_of(context: *mut bpf_sock_addr) -> u64 {
    // SAFETY: as above; the union has the one member.
    unsafe { (&raw const (*context).__bindgen_anon_1.sk).read_volatile() as u64 }
}

/// What the kernel is about to do with an address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Connect,
    Send,
}

/// Runs before `socket` connects or sends to an address that lies in the kernel already. Peers of
/// AF_UNIX are told by [`observe_unix`].
#[inline(always)]
pub fn observe_address(socket: Pointer, address: Pointer, purpose: Purpose, hook: HookSet) {
    let Some(socket) = (!address.is_null()).then(|| Socket::of(socket)).flatten() else {
        return;
    };
    if socket.family != FAMILY_IPV4 && socket.family != FAMILY_IPV6 {
        return;
    }
    if let Some(run) = Run::begin(hook) {
        let reached = socket.reach_given(run.claim.peer(), address, purpose);
        run.end_of(socket.sock.0 as u64, reached);
    }
}

/// Runs before a message is sent.
#[inline(always)]
pub fn observe_message(socket: Pointer, message: Pointer, hook: HookSet) {
    if let Some(address) = message.probe_follow(offset!(msghdr_name)) {
        observe_address(socket, address, Purpose::Send, hook);
    }
}

/// Runs before a socket of AF_UNIX connects or sends to another (`struct sock`).
#[inline(always)]
pub fn observe_unix(socket_type: u16, other: Pointer, hook: HookSet) {
    if let Some(run) = Run::begin(hook) {
        let reached = reach_unix(run.claim, socket_type, other);
        run.end(reached);
    }
}

/// The same of `struct socket`.
#[inline(always)]
pub fn observe_unix_socket(socket: Pointer, other: Pointer, hook: HookSet) {
    if let (Some(socket_type), Some(other)) = (
        socket.probe(offset!(socket_type)),
        other.probe_follow(offset!(socket_sk)),
    ) {
        observe_unix(socket_type, other, hook);
    }
}

/// Runs when a process has made a socket.
#[inline(always)]
pub fn observe_creation(family: u64, socket_type: u64, hook: HookSet) {
    if family != u64::from(FAMILY_PACKET) {
        return;
    }
    if let Some(run) = Run::begin(hook) {
        let peer = run.claim.peer();
        peer.family = FAMILY_PACKET;
        // Without the flags that socket(2) takes beside the type.
        peer.socket_type = socket_type as u16 & 0xf;
        run.end(Some(Reached::Peer));
    }
}

/// Where a process has an address.
#[derive(Clone, Copy)]
pub struct Address {
    pub at: u64,
    pub length: u64,
}

/// Runs at the end of a system call by which a process connected the socket behind `descriptor`, or
/// sent to an address. Told of are the sockets that programs of the cgroup do not see; false of
/// others.
#[inline(always)]
pub fn observe_call(descriptor: u64, address: Address, purpose: Purpose) -> bool {
    // Nothing more is looked at of the host's tasks: that is every send of the machine.
    if address.at == 0 || Watched::current(HookSet::Tracepoint).is_none() {
        return false;
    }
    let Some(socket) = socket_of(descriptor) else {
        return false;
    };
    let is_raw = socket.is_raw();
    if !socket.is_unseen() {
        return false;
    }
    if let Some(run) = Run::begin(HookSet::Tracepoint) {
        let peer = run.claim.peer();
        let reached = match purpose {
            _ if is_raw => socket.reach(peer, socket.family, Memory::Process(address.at)),
            Purpose::Send => {
                let name = Memory::Process(address.at);
                reach_named(peer, socket.socket_type, name, address.length)
            }
            Purpose::Connect => reach_connected(run.claim, socket),
        };
        run.end(reached);
    }
    true
}

/// Runs when the socket of a file may have been connected. Told of are those that programs of the
/// cgroup do not see.
#[inline(always)]
pub fn observe_connected(file: Pointer) {
    let Some(socket) = socket_of_file(file) else {
        return;
    };
    if !socket.is_unseen() {
        return;
    }
    if let Some(run) = Run::begin(HookSet::Tracepoint) {
        let reached = if socket.is_raw() {
            socket.reach_raw(run.claim.peer())
        } else {
            reach_connected(run.claim, socket)
        };
        run.end(reached);
    }
}

/// Runs before the socket of a file sends to an address of this length. Told of are those that
/// programs of the cgroup do not see.
#[inline(always)]
pub fn observe_send(file: Pointer, address: Memory, length: u64) {
    let Some(socket) = socket_of_file(file) else {
        return;
    };
    if !socket.is_unseen() {
        return;
    }
    if let Some(run) = Run::begin(HookSet::Tracepoint) {
        let peer = run.claim.peer();
        let reached = if socket.is_raw() {
            socket.reach(peer, socket.family, address)
        } else {
            reach_named(peer, socket.socket_type, address, length)
        };
        run.end(reached);
    }
}

/// Runs when a socket of TCP (`struct sock`) goes from one state to another, in whatever task.
#[inline(always)]
pub fn observe_state(socket: Pointer, before: u64, now: u64) {
    if before & 0xff != SYN_SENT {
        return;
    }
    let Some(connecting) = maps::take_connecting(socket.0 as u64) else {
        return;
    };
    let record = AnswerRecord {
        header: record::header(
            RecordKind::Answer,
            HookSet::Tracepoint,
            size_of::<AnswerRecord>(),
        ),
        connect_boot_ns: connecting.connect_boot_ns,
        pid: connecting.pid,
        error: socket.load(offset!(sock_error)),
        is_connected: u32::from(now & 0xff == ESTABLISHED),
        reserved: 0,
    };
    let outcome = if maps::submit(record.as_bytes()) {
        Outcome::Submitted { truncated: false }
    } else {
        Outcome::RingFull
    };
    maps::count_of(Hook::Connect, outcome, || Whose {
        cgroup_id: connecting.cgroup_id,
        mount_namespace: connecting.mount_namespace,
    });
}

#[derive(Clone, Copy)]
struct Socket {
    sock: Pointer,
    family: u16,
    socket_type: u16,
    protocol: u16,
}

impl Socket {
    /// Reads a `struct socket`.
    #[inline(always)]
    fn of(socket: Pointer) -> Option<Self> {
        let sock = socket.probe_follow(offset!(socket_sk))?;
        Some(Self {
            sock,
            family: sock.probe(offset!(sock_family))?,
            socket_type: socket.probe(offset!(socket_type))?,
            protocol: sock.probe(offset!(sock_protocol))?,
        })
    }

    #[inline(always)]
    fn is_raw(&self) -> bool {
        self.socket_type == SOCKET_RAW && (self.family == FAMILY_IPV4 || self.family == FAMILY_IPV6)
    }

    /// Whether programs of the cgroup do not see it.
    #[inline(always)]
    fn is_unseen(&self) -> bool {
        self.family == FAMILY_UNIX || self.is_raw()
    }

    /// Tells the address that a raw one is connected to.
    #[inline(always)]
    fn reach_raw(&self, peer: &mut Peer) -> Option<Reached> {
        peer.socket_type = self.socket_type;
        peer.protocol = self.protocol;
        peer.family = self.family;
        peer.address_kind = PeerAddress::Ip as u16;
        if self.family == FAMILY_IPV4 {
            peer.length = 4;
            let bytes: u32 = self.sock.probe(offset!(sock_peer_ipv4))?;
            peer.address[..4].copy_from_slice(&bytes.to_ne_bytes());
        } else {
            peer.length = 16;
            let high: u64 = self.sock.probe(offset!(sock_peer_ipv6))?;
            let low: u64 = self.sock.probe(offset!(sock_peer_ipv6) + 8)?;
            peer.address[..8].copy_from_slice(&high.to_ne_bytes());
            peer.address[8..16].copy_from_slice(&low.to_ne_bytes());
        }
        Some(Reached::Peer)
    }

    /// Reads an address that may be of another family than the socket.
    #[inline(always)]
    fn reach_given(&self, peer: &mut Peer, address: Pointer, purpose: Purpose) -> Option<Reached> {
        let mut family = address.probe::<u16>(0)?;
        // udp_sendmsg takes such for IPv4; to connect to such is to disconnect.
        if family == FAMILY_NONE && purpose == Purpose::Send && self.family == FAMILY_IPV4 {
            family = FAMILY_IPV4;
        }
        self.reach(peer, family, Memory::Kernel(address))
    }

    /// Reads a `struct sockaddr_in` or `struct sockaddr_in6`.
    #[inline(always)]
    fn reach(&self, peer: &mut Peer, family: u16, address: Memory) -> Option<Reached> {
        peer.socket_type = self.socket_type;
        peer.protocol = self.protocol;
        peer.family = family;
        peer.address_kind = PeerAddress::Ip as u16;
        // A raw socket takes no notice of it.
        if self.socket_type != SOCKET_RAW {
            peer.port = u16::from_be(address.get(PORT)?);
        }
        match family {
            FAMILY_IPV4 => {
                peer.length = 4;
                let bytes: u32 = address.get(IPV4_ADDRESS)?;
                peer.address[..4].copy_from_slice(&bytes.to_ne_bytes());
            }
            FAMILY_IPV6 => {
                peer.length = 16;
                let high: u64 = address.get(IPV6_ADDRESS)?;
                let low: u64 = address.get(IPV6_ADDRESS + 8)?;
                peer.address[..8].copy_from_slice(&high.to_ne_bytes());
                peer.address[8..16].copy_from_slice(&low.to_ne_bytes());
            }
            _ => return Some(Reached::Nobody),
        }
        Some(Reached::Peer)
    }
}

/// The socket behind a descriptor of the current task.
#[inline(always)]
fn socket_of(descriptor: u64) -> Option<Socket> {
    socket_of_file(open::file_of(Pointer::current_task(), descriptor)?)
}

/// The socket of a file.
#[inline(always)]
fn socket_of_file(file: Pointer) -> Option<Socket> {
    let magic: u32 = file
        .probe_follow(offset!(file_inode))?
        .probe_follow(offset!(inode_sb))?
        .probe(offset!(super_block_magic))?;
    if magic != SOCKFS_MAGIC {
        return None;
    }
    Socket::of(file.probe_follow(offset!(file_private_data))?)
}

/// Tells the socket that one of AF_UNIX is connected to.
#[inline(always)]
fn reach_connected(claim: Claim, socket: Socket) -> Option<Reached> {
    let other = socket.sock.probe_follow(offset!(unix_sock_peer))?;
    if other.is_null() {
        return Some(Reached::Nobody);
    }
    reach_unix(claim, socket.socket_type, other)
}

/// Tells a socket of AF_UNIX by its file, or by its name where it has none.
#[inline(always)]
fn reach_unix(claim: Claim, socket_type: u16, other: Pointer) -> Option<Reached> {
    let peer = claim.peer();
    peer.family = FAMILY_UNIX;
    peer.socket_type = socket_type;
    let path = offset!(unix_sock_path);
    let dentry = other.probe_follow(path + offset!(path_dentry))?;
    if !dentry.is_null() {
        let opened = Opened::at(other.probe_follow(path + offset!(path_mnt))?, dentry)?;
        opened.write_facts(claim.file())?;
        let facts = claim.file();
        let file = SocketFile {
            inode: facts.real_inode,
            changed_s: facts.changed_s,
            changed_ns: facts.changed_ns,
            device: facts.real_device,
            generation: facts.generation,
            reserved: 0,
        };
        peer.address_kind = PeerAddress::File as u16;
        peer.length = size_of::<SocketFile>() as u16;
        // SAFETY: the address is longer than that, and lies at a multiple of 8.
        unsafe { peer.address.as_mut_ptr().cast::<SocketFile>().write(file) };
        return Some(Reached::File(opened));
    }
    let address = other.probe_follow(offset!(unix_sock_address))?;
    if address.is_null() {
        return Some(Reached::Nobody);
    }
    let length: u32 = address.probe(offset!(unix_address_length))?;
    let name = Pointer(
        address
            .0
            .wrapping_add(offset!(unix_address_name) + UNIX_NAME),
    );
    let length = (length as usize).saturating_sub(UNIX_NAME);
    read_name(peer, Memory::Kernel(name), length)
}

/// Tells a socket of AF_UNIX by the address that the process gave.
#[inline(always)]
fn reach_named(peer: &mut Peer, socket_type: u16, address: Memory, length: u64) -> Option<Reached> {
    peer.family = FAMILY_UNIX;
    peer.socket_type = socket_type;
    let length = (length as usize).saturating_sub(UNIX_NAME);
    read_name(peer, address.from(UNIX_NAME), length)
}

/// Reads a name of AF_UNIX, of which abstract ones begin with NUL.
#[inline(always)]
fn read_name(peer: &mut Peer, name: Memory, length: usize) -> Option<Reached> {
    let length = bounded(length, UNIX_NAME_BYTES_MAX)?;
    // SAFETY: the address is longer than the bound.
    if !unsafe { name.read(peer.address.as_mut_ptr(), length as u32) } {
        return None;
    }
    peer.length = length as u16;
    peer.address_kind = if peer.address[0] == 0 {
        PeerAddress::Abstract as u16
    } else {
        PeerAddress::Named as u16
    };
    Some(Reached::Peer)
}

const _: () = assert!(UNIX_NAME_BYTES_MAX <= ADDRESS_BYTES_MAX);

/// A run of a hook for a task that is watched, with an empty peer in the scratch.
struct Run {
    watched: Watched,
    claim: Claim,
}

impl Run {
    /// `None`, once it is counted, if nothing can come of it.
    #[inline(always)]
    fn begin(hook: HookSet) -> Option<Self> {
        let Some(watched) = Watched::current(hook) else {
            maps::count(Hook::Connect, Outcome::Unwatched);
            return None;
        };
        let Some(claim) = Claim::take() else {
            maps::count(Hook::Connect, Outcome::MapFull);
            return None;
        };
        *claim.peer() = Peer {
            cgroup_id: watched.cgroup_id,
            ..Peer::ZERO
        };
        *claim.file() = FileFacts::ZERO;
        Some(Self { watched, claim })
    }

    /// Tells of the peer, unless it is remembered.
    #[inline(always)]
    fn end(self, reached: Option<Reached>) {
        self.end_of(NO_SOCKET, reached);
    }

    /// The same of a socket whose answer is to be told, if it speaks TCP.
    #[inline(always)]
    fn end_of(self, socket: u64, reached: Option<Reached>) {
        let outcome = match reached {
            Some(reached) => self.send(socket, reached).unwrap_or(Outcome::Unreadable),
            None => Outcome::Unreadable,
        };
        self.claim.release();
        maps::count(Hook::Connect, outcome);
    }

    #[inline(always)]
    fn send(&self, socket: u64, reached: Reached) -> Option<Outcome> {
        const FIXED: usize = size_of::<ConnectRecord>();
        let (claim, watched) = (self.claim, &self.watched);
        if let Reached::Nobody = reached {
            return Some(Outcome::Unwatched);
        }
        let told = PeerState {
            // SAFETY: a helper without arguments.
            told_boot_ns: unsafe { bpf_ktime_get_boot_ns() },
            pid: watched.task.load(offset!(task_tgid)),
            is_good: 0,
        };
        let before = maps::peer(claim.peer());
        let is_repeat = before.pid == told.pid
            && told.told_boot_ns.wrapping_sub(before.told_boot_ns) < REPEAT_NS;
        if before.is_good != 0 || is_repeat {
            return Some(Outcome::Remembered);
        }
        if !maps::has_room() {
            return Some(Outcome::RingFull);
        }
        let begun = match reached {
            Reached::File(file) => Begun::new(claim, watched, &file, FIXED)?,
            Reached::Peer | Reached::Nobody => {
                Begun::behind(claim, watched, PathLengths::default(), FIXED)?
            }
        };
        // Member by member: as a whole it would not fit on the stack.
        // SAFETY: the scratch is longer, aligned to 8 and this run's alone, and any bytes are a record.
        let record = unsafe { &mut *claim.bytes().cast::<ConnectRecord>() };
        record.header = record::header(RecordKind::Connect, watched.hook, begun.end);
        record.task = *claim.task();
        record.file = *claim.file();
        record.path = begun.path;
        record.peer = *claim.peer();
        let connecting = Connecting {
            connect_boot_ns: record.header.time_boot_ns,
            cgroup_id: watched.cgroup_id,
            pid: told.pid,
            mount_namespace: record.task.mount_namespace,
        };
        let outcome = record::hand_over(claim, begun.end, begun.is_truncated(), maps::submit)?;
        if let Outcome::Submitted { .. } = outcome {
            maps::set_peer(claim.peer(), &told);
            if socket != NO_SOCKET && claim.peer().protocol == TCP {
                maps::set_connecting(socket, &connecting);
            }
        }
        Some(outcome)
    }
}
