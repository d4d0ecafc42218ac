//! One peer a line, and what is said of it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use crate::detect::file::tests as sample;
use monitor_common::connect::Peer;

const HOST_NAMESPACE: u32 = 1;
const OWN_NAMESPACE: u32 = 2;
const RUNTIME: (u32, u64) = (8, 77);

fn connect(protocol: Protocol, address: Address, port: Option<u16>) -> Connect {
    Connect {
        used: sample::exec("", |_| {}).used,
        peer: Peer::ZERO,
        protocol,
        address,
        port,
    }
}

fn judged(connect: &Connect) -> Option<Finding> {
    judge(&ConnectFacts {
        connect,
        container: &sample::container(),
        host_mount_namespace: HOST_NAMESPACE,
        sockets: &RuntimeSockets(HashSet::from([RUNTIME])),
        program: None,
        origin: Origin::Unknown,
        ancestors: Vec::new(),
        hook: "tracepoint",
    })
}

/// What is said, as an alert shows it.
fn said(connect: &Connect) -> Option<String> {
    let finding = judged(connect)?;
    let peer = finding.connection.unwrap();
    Some(format!(
        "{:?} {:?} {} {} {} {:?}",
        finding.severity,
        peer.sensitive?,
        peer.protocol,
        peer.family,
        String::from_utf8(peer.address).unwrap(),
        peer.port
    ))
}

#[test]
fn addresses_that_serve_credentials_are_told() {
    let check = |address: &str, port: u16, expect: Option<&str>| {
        let address = Address::Ip(address.parse().unwrap());
        let connect = connect(Protocol::Tcp, address, Some(port));
        let expect = expect.map(|rest| format!("High Metadata tcp {rest} Some({port})"));
        assert_eq!(said(&connect), expect, "{connect:?}");
    };
    check("169.254.169.254", 80, Some("ipv4 169.254.169.254"));
    check("169.254.170.2", 80, Some("ipv4 169.254.170.2"));
    check("100.100.100.200", 8080, Some("ipv4 100.100.100.200"));
    check("fd00:ec2::254", 80, Some("ipv6 fd00:ec2::254"));
    check("64:ff9b::a9fe:a9fe", 80, Some("ipv6 64:ff9b::a9fe:a9fe"));
    check("169.254.169.254", 53, None);
    check("169.254.169.254", 123, None);
    check("169.254.169.253", 80, None);
    check("127.0.0.1", 80, None);
    check("fd00:ec2::255", 80, None);
}

#[test]
fn sockets_of_the_runtime_are_told() {
    let check = |path: &str, namespace: u32, key: (u32, u64), is_told: bool| {
        let mut connect = connect(Protocol::Unix, Address::File, None);
        let file = &mut connect.used.file;
        file.path = path.as_bytes().to_vec();
        file.facts.mount_namespace = namespace;
        (file.facts.real_device, file.facts.real_inode) = key;
        let expect = format!("High Runtime unix unix {path} None");
        assert_eq!(said(&connect), is_told.then_some(expect), "{path}");
    };
    let other = (8, 78);
    check(
        "/run/containerd/containerd.sock",
        HOST_NAMESPACE,
        other,
        true,
    );
    check("/var/run/docker.sock", HOST_NAMESPACE, other, true);
    check("/run/crio/crio.sock", HOST_NAMESPACE, other, true);
    check("/run/containerd/s/0123", HOST_NAMESPACE, other, true);
    check("/elsewhere.sock", OWN_NAMESPACE, RUNTIME, true);
    // A runtime in the container, and what only begins alike.
    check("/run/docker.sock", OWN_NAMESPACE, other, false);
    check("/run/docker.sock.old", HOST_NAMESPACE, other, false);
    check("/run/dbus/system_bus_socket", HOST_NAMESPACE, other, false);
}

#[test]
fn names_and_frames_are_told() {
    let check = |protocol: Protocol, address: Address, expect: Option<&str>| {
        let connect = connect(protocol, address, None);
        assert_eq!(said(&connect).as_deref(), expect, "{connect:?}");
    };
    let unix = Protocol::Unix;
    check(
        unix,
        Address::Abstract(b"/containerd-shim/x".to_vec()),
        Some("High Runtime unix unix @/containerd-shim/x None"),
    );
    check(unix, Address::Abstract(b"/tmp/.X11-unix/X0".to_vec()), None);
    check(
        unix,
        Address::Named(b"/run/docker.sock".to_vec()),
        Some("High Runtime unix unix /run/docker.sock None"),
    );
    check(unix, Address::Named(b"/dev/log".to_vec()), None);
    check(unix, Address::None, None);
    check(
        Protocol::Packet,
        Address::None,
        Some("Medium Frames packet packet  None"),
    );
}
