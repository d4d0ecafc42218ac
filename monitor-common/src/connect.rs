//! A process reached for a peer: by connecting to it, or by sending to it without connecting.
//!
//! Behind the fixed part follow the three runs of the path of a peer's AF_UNIX socket, which are
//! empty for every other peer, and the cgroup's path, as in [`crate::exec`].

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{RecordHeader, file::FileFacts, path::PathLengths, task::TaskFacts};

/// Bytes of an address: the longest is a name of AF_UNIX.
pub const ADDRESS_BYTES_MAX: usize = 112;
/// How many peers the kernel side remembers as judged good; the least recently used one is
/// forgotten and told again.
pub const PEERS_MAX: u32 = 16_384;
/// For how long a peer is not told of the same process again, in nanoseconds: until it is judged, a process could otherwise fill the ring with one peer.
pub const REPEAT_NS: u64 = 100_000_000;
/// Messages looked at of one `sendmmsg` of a socket whose messages no hook sees one by one; of a
/// call that has more, the rest is counted as unreadable.
pub const MESSAGES_MAX: u32 = 64;

/// How many sockets of TCP are remembered whose connect was told and not answered yet; of the one
/// whose connect was told longest ago it is not told what came of it.
pub const CONNECTING_MAX: u32 = 8_192;

/// `AF_*` of `include/linux/socket.h`.
pub const FAMILY_UNIX: u16 = 1;
/// See [`FAMILY_UNIX`].
pub const FAMILY_IPV4: u16 = 2;
/// See [`FAMILY_UNIX`].
pub const FAMILY_IPV6: u16 = 10;
/// See [`FAMILY_UNIX`].
pub const FAMILY_PACKET: u16 = 17;
/// `SOCK_*` of `include/linux/net.h`.
pub const SOCKET_STREAM: u16 = 1;
/// See [`SOCKET_STREAM`].
pub const SOCKET_DATAGRAM: u16 = 2;
/// See [`SOCKET_STREAM`].
pub const SOCKET_RAW: u16 = 3;

/// A peer of a container's: the key of what the kernel side remembers as judged good.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct Peer {
    /// The cgroup that reached for it.
    pub cgroup_id: u64,
    /// `FAMILY_*`, or another of the kernel's.
    pub family: u16,
    /// `SOCK_*` of `include/linux/net.h`.
    pub socket_type: u16,
    /// `IPPROTO_*` of `include/uapi/linux/in.h`; 0 for families without.
    pub protocol: u16,
    /// In the host's order of bytes; 0 where there is none.
    pub port: u16,
    /// What `address` is, a [`PeerAddress`].
    pub address_kind: u16,
    /// Bytes of `address` that are the address; the others are zero.
    pub length: u16,
    /// Zero; keeps the layout without padding.
    pub reserved: u32,
    /// The address.
    pub address: [u8; ADDRESS_BYTES_MAX],
}

/// What the address of a [`Peer`] is.
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerAddress {
    /// None is known: a packet socket, or a socket of AF_UNIX without a name.
    None = 0,
    /// Of IPv4 or IPv6, in the network's order of bytes.
    Ip = 1,
    /// A socket of AF_UNIX that has a file: its [`SocketFile`]. The record has the path.
    File = 2,
    /// A name of AF_UNIX that is no file, with the NUL that it begins with.
    Abstract = 3,
    /// A path of AF_UNIX as the process wrote it: no hook led to the socket behind it.
    Named = 4,
}

/// The file of a socket of AF_UNIX, as the address of a [`Peer`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct SocketFile {
    /// See [`FileFacts::real_inode`].
    pub inode: u64,
    /// See [`FileFacts::changed_s`].
    pub changed_s: i64,
    /// See [`FileFacts::changed_ns`].
    pub changed_ns: u32,
    /// See [`FileFacts::real_device`].
    pub device: u32,
    /// See [`FileFacts::generation`].
    pub generation: u32,
    /// Zero; keeps the layout without padding.
    pub reserved: u32,
}

impl Peer {
    /// No peer.
    pub const ZERO: Self = Self {
        cgroup_id: 0,
        family: 0,
        socket_type: 0,
        protocol: 0,
        port: 0,
        address_kind: 0,
        length: 0,
        reserved: 0,
        address: [0; ADDRESS_BYTES_MAX],
    };
}

/// What the kernel side remembers of a peer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct PeerState {
    /// When it was told last, in nanoseconds since boot.
    pub told_boot_ns: u64,
    /// Of which process.
    pub pid: u32,
    /// Not zero once the agent has judged it good: then it is not told at all.
    pub is_good: u32,
}

impl PeerState {
    /// Judged good.
    pub const GOOD: Self = Self {
        told_boot_ns: 0,
        pid: 0,
        is_good: 1,
    };
}

/// The fixed part of a connect record.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct ConnectRecord {
    /// Kind [`crate::RecordKind::Connect`].
    pub header: RecordHeader,
    /// Who reached for the peer.
    pub task: TaskFacts,
    /// The file of a peer's AF_UNIX socket; zeros where there is none.
    pub file: FileFacts,
    /// Lengths of its path.
    pub path: PathLengths,
    /// The peer.
    pub peer: Peer,
}

/// What came of a connect of TCP that was told.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct AnswerRecord {
    /// Kind [`crate::RecordKind::Answer`].
    pub header: RecordHeader,
    /// [`RecordHeader::time_boot_ns`] of the connect.
    pub connect_boot_ns: u64,
    /// [`TaskFacts::pid`] of the connect.
    pub pid: u32,
    /// `errno` of the socket when it gave up; 0 if it is connected, or was closed before.
    pub error: u32,
    /// Not zero if it is connected.
    pub is_connected: u32,
    /// Zero; keeps the layout without padding.
    pub reserved: u32,
}

const _: () = assert!(size_of::<AnswerRecord>() == 16 + 24);
const _: () = assert!(size_of::<SocketFile>() == 32);
const _: () = assert!(size_of::<SocketFile>() <= ADDRESS_BYTES_MAX);
const _: () = assert!(size_of::<Peer>() == 24 + ADDRESS_BYTES_MAX);
const _: () = assert!(size_of::<ConnectRecord>() == 16 + 48 + 88 + 8 + 136);
