//! A peer, from its record.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use monitor_common::connect::{
    AnswerRecord, ConnectRecord, FAMILY_PACKET, FAMILY_UNIX, Peer, PeerAddress, SOCKET_DATAGRAM,
    SOCKET_RAW, SOCKET_STREAM,
};
use nix::errno::Errno;
use zerocopy::FromBytes;

use super::{Tail, file_use};
use crate::sensor::{
    event::{Address, Answer, Connect, Event, Outcome, Protocol},
    hooks::HookSet,
};

/// `IPPROTO_*` of `include/uapi/linux/in.h`.
const TCP: u16 = 6;
const UDP: u16 = 17;
const UDP_LITE: u16 = 136;
const MULTIPATH_TCP: u16 = 262;

pub(super) fn connect(bytes: &[u8], hook: HookSet) -> Option<Event> {
    let (record, tail) = ConnectRecord::read_from_prefix(bytes).ok()?;
    let mut tail = Tail(tail);
    let (header, task) = (record.header, &record.task);
    let mut used = file_use(header, hook, task, record.file, &record.path, &mut tail)?;
    let peer = record.peer;
    let address = address(&peer)?;
    if address != Address::File {
        used.file.path.clear();
        used.file.path_in_filesystem.clear();
    }
    let protocol = protocol(&peer);
    let has_port = matches!(protocol, Protocol::Tcp | Protocol::Udp) || peer.port != 0;
    Some(Event::Connect(Box::new(Connect {
        used,
        port: (matches!(address, Address::Ip(_)) && has_port).then_some(peer.port),
        peer,
        protocol,
        address,
    })))
}

pub(super) fn answer(bytes: &[u8]) -> Option<Event> {
    let (record, _) = AnswerRecord::read_from_prefix(bytes).ok()?;
    let outcome = match i32::try_from(record.error).map(Errno::from_raw) {
        _ if record.is_connected != 0 => Outcome::Connected,
        _ if record.error == 0 => Outcome::Abandoned,
        Ok(Errno::ECONNREFUSED) => Outcome::Refused,
        Ok(Errno::ETIMEDOUT) => Outcome::TimedOut,
        Ok(Errno::EHOSTUNREACH | Errno::ENETUNREACH) => Outcome::Unreachable,
        _ => Outcome::Failed,
    };
    Some(Event::Answer(Answer {
        pid: record.pid,
        connect_boot_ns: record.connect_boot_ns,
        outcome,
    }))
}

fn protocol(peer: &Peer) -> Protocol {
    match (peer.family, peer.socket_type, peer.protocol) {
        (FAMILY_UNIX, ..) => Protocol::Unix,
        (FAMILY_PACKET, ..) => Protocol::Packet,
        (_, SOCKET_RAW, _) => Protocol::Raw,
        (_, SOCKET_STREAM, TCP | MULTIPATH_TCP) => Protocol::Tcp,
        (_, SOCKET_DATAGRAM, UDP | UDP_LITE) => Protocol::Udp,
        (.., other) => Protocol::Other(other),
    }
}

/// `None` if the kind and the length of the address do not fit each other.
fn address(peer: &Peer) -> Option<Address> {
    let bytes = peer.address.get(..usize::from(peer.length))?;
    let is = |kind: PeerAddress| peer.address_kind == kind as u16;
    if is(PeerAddress::None) {
        return Some(Address::None);
    }
    if is(PeerAddress::File) {
        return Some(Address::File);
    }
    if is(PeerAddress::Ip) {
        return ip(bytes).map(Address::Ip);
    }
    if is(PeerAddress::Abstract) {
        return Some(Address::Abstract(bytes.get(1..)?.to_vec()));
    }
    let path = bytes.split(|byte| *byte == 0).next()?;
    is(PeerAddress::Named).then(|| Address::Named(path.to_vec()))
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(octets).into());
    }
    let octets = <[u8; 16]>::try_from(bytes).ok()?;
    Some(Ipv6Addr::from(octets).to_canonical())
}

#[cfg(test)]
#[expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
mod tests {
    use super::*;
    use crate::sensor::decode::decode;
    use monitor_common::{
        LAYOUT_VERSION, RecordHeader, RecordKind,
        connect::{FAMILY_IPV4, FAMILY_IPV6},
        file::FileFacts,
        path::PathLengths,
        task::TaskFacts,
    };
    use zerocopy::IntoBytes;

    fn peer(family: u16, types: (u16, u16), kind: PeerAddress, address: &[u8]) -> Peer {
        let mut peer = Peer {
            family,
            socket_type: types.0,
            protocol: types.1,
            port: 80,
            address_kind: kind as u16,
            length: u16::try_from(address.len()).unwrap(),
            ..Peer::ZERO
        };
        peer.address[..address.len()].copy_from_slice(address);
        peer
    }

    fn decoded(peer: Peer, path: &[u8]) -> Option<(Protocol, Address, Option<u16>, Vec<u8>)> {
        let length = size_of::<ConnectRecord>() + path.len();
        let record = ConnectRecord {
            header: RecordHeader {
                kind: RecordKind::Connect as u8,
                hook: HookSet::Tracepoint as u8,
                version: LAYOUT_VERSION,
                length: u32::try_from(length).unwrap(),
                time_boot_ns: 1,
            },
            task: TaskFacts::default(),
            file: FileFacts::default(),
            path: PathLengths {
                below_mount: u16::try_from(path.len()).unwrap(),
                ..PathLengths::default()
            },
            peer,
        };
        let bytes = [record.as_bytes(), path].concat();
        match decode(&bytes) {
            Ok(Event::Connect(connect)) => Some((
                connect.protocol,
                connect.address,
                connect.port,
                connect.used.file.path,
            )),
            _ => None,
        }
    }

    #[test]
    fn a_peer_is_told_by_protocol_and_address() {
        let check = |peer: Peer, path: &[u8], expect: (Protocol, Address, Option<u16>)| {
            let (protocol, address, port, shown) = decoded(peer, path).unwrap();
            assert_eq!((protocol, address, port), expect, "{peer:?}");
            assert_eq!(shown.is_empty(), path.is_empty());
        };
        let ip = |text: &str| Address::Ip(text.parse().unwrap());
        let tcp = (SOCKET_STREAM, TCP);
        let metadata = [169, 254, 169, 254];
        check(
            peer(FAMILY_IPV4, tcp, PeerAddress::Ip, &metadata),
            b"",
            (Protocol::Tcp, ip("169.254.169.254"), Some(80)),
        );
        let mapped = [&[0; 10][..], &[0xff, 0xff], &metadata].concat();
        check(
            peer(
                FAMILY_IPV6,
                (SOCKET_DATAGRAM, UDP),
                PeerAddress::Ip,
                &mapped,
            ),
            b"",
            (Protocol::Udp, ip("169.254.169.254"), Some(80)),
        );
        check(
            Peer {
                port: 0,
                ..peer(FAMILY_IPV4, (SOCKET_RAW, 1), PeerAddress::Ip, &metadata)
            },
            b"",
            (Protocol::Raw, ip("169.254.169.254"), None),
        );
        check(
            peer(FAMILY_UNIX, (SOCKET_STREAM, 0), PeerAddress::File, &[1; 32]),
            b"sock\0run\0",
            (Protocol::Unix, Address::File, None),
        );
        check(
            peer(
                FAMILY_UNIX,
                (SOCKET_STREAM, 0),
                PeerAddress::Abstract,
                b"\0a\0b",
            ),
            b"",
            (Protocol::Unix, Address::Abstract(b"a\0b".to_vec()), None),
        );
        check(
            peer(
                FAMILY_UNIX,
                (SOCKET_DATAGRAM, 0),
                PeerAddress::Named,
                b"/dev/log\0x",
            ),
            b"",
            (Protocol::Unix, Address::Named(b"/dev/log".to_vec()), None),
        );
        check(
            peer(FAMILY_PACKET, (SOCKET_RAW, 0), PeerAddress::None, b""),
            b"",
            (Protocol::Packet, Address::None, None),
        );
    }

    #[test]
    fn an_address_that_does_not_fit_its_kind_is_refused() {
        let check = |peer: Peer| assert!(decoded(peer, b"").is_none(), "{peer:?}");
        let tcp = (SOCKET_STREAM, TCP);
        check(peer(FAMILY_IPV4, tcp, PeerAddress::Ip, &[1; 5]));
        check(Peer {
            length: u16::MAX,
            ..peer(FAMILY_IPV4, tcp, PeerAddress::Ip, &[1; 4])
        });
        check(Peer {
            address_kind: 99,
            ..peer(FAMILY_IPV4, tcp, PeerAddress::Ip, &[1; 4])
        });
        check(peer(FAMILY_UNIX, tcp, PeerAddress::Abstract, b""));
    }

    #[test]
    fn an_answer_is_told_by_what_the_socket_says() {
        let check = |is_connected: u32, error: u32, expect: Outcome| {
            let record = AnswerRecord {
                header: RecordHeader {
                    kind: RecordKind::Answer as u8,
                    hook: HookSet::Tracepoint as u8,
                    version: LAYOUT_VERSION,
                    length: u32::try_from(size_of::<AnswerRecord>()).unwrap(),
                    time_boot_ns: 9,
                },
                connect_boot_ns: 7,
                pid: 3,
                error,
                is_connected,
                reserved: 0,
            };
            let decoded = match decode(record.as_bytes()) {
                Ok(Event::Answer(answer)) => Some(answer),
                _ => None,
            };
            let expect = Answer {
                pid: 3,
                connect_boot_ns: 7,
                outcome: expect,
            };
            assert_eq!(decoded, Some(expect), "{is_connected} {error}");
        };
        check(1, 0, Outcome::Connected);
        check(0, 0, Outcome::Abandoned);
        check(0, 111, Outcome::Refused);
        check(0, 110, Outcome::TimedOut);
        check(0, 113, Outcome::Unreachable);
        check(0, 101, Outcome::Unreachable);
        check(0, 104, Outcome::Failed);
        check(0, u32::MAX, Outcome::Failed);
    }
}
