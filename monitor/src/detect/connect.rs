//! The peers that hand out credentials or rule over containers: a connect to one is told whoever
//! connects. Every other peer is good until there are profiles.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use super::{Finding, Kind, Severity, draft};
use crate::{
    containers::{
        Container,
        processes::{Origin, Program},
    },
    sensor::event::{Address, Connect, Outcome, Protocol},
};

/// Where clouds serve credentials to whoever asks from a node: AWS and most others, also by IPv6;
/// ECS; Alibaba.
const METADATA: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
];
/// The same address serves names and the time of day in some clouds.
const NAMES_PORT: u16 = 53;
const TIME_PORT: u16 = 123;
/// What IPv4 addresses follow that a gateway translates (RFC 6052).
const TRANSLATED: [u8; 12] = [0x00, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0];
/// Where container runtimes of the host have their sockets, each with what lies below it.
const RUNTIME_PATHS: [&[u8]; 9] = [
    b"/run/containerd/",
    b"/run/docker.sock",
    b"/run/docker/",
    b"/run/crio/",
    b"/run/cri-dockerd.sock",
    b"/run/dockershim.sock",
    b"/run/k3s/containerd/",
    b"/run/podman/",
    b"/run/nri/",
];
/// What abstract names of containerd's shims begin with.
const SHIM_NAME: &[u8] = b"/containerd-shim/";

/// What is sensitive about a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sensitive {
    /// It serves a cloud's credentials.
    Metadata,
    /// It is a container runtime, which starts whatever it is told to.
    Runtime,
    /// None is known: the frames of the socket bear whatever address the process writes.
    Frames,
}

/// What an alert says of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionFinding {
    /// As the contract names it.
    pub protocol: &'static str,
    /// Likewise.
    pub family: &'static str,
    /// An address as text, a path, or `@` and an abstract name; empty where there is none.
    pub address: Vec<u8>,
    /// The port, where there is one.
    pub port: Option<u16>,
    /// What is sensitive about it, if that is why it is told.
    pub sensitive: Option<Sensitive>,
    /// What came of it, once that is known.
    pub outcome: Option<Outcome>,
}

impl ConnectionFinding {
    /// What there is to say of any peer.
    pub fn of(connect: &Connect) -> Self {
        Self {
            protocol: protocol(connect.protocol),
            family: family(connect),
            address: address(connect),
            port: connect.port,
            sensitive: None,
            outcome: None,
        }
    }
}

/// The files of the runtime's sockets on this host, by kernel device and inode number: who has one
/// mounted elsewhere or reaches it from another namespace has the same file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeSockets(pub HashSet<(u32, u64)>);

/// Everything that a verdict on a connect depends on.
#[derive(Clone)]
pub struct ConnectFacts<'a> {
    /// The connect.
    pub connect: &'a Connect,
    /// The container that it happened in.
    pub container: &'a Arc<Container>,
    /// Inode number of the host's mount namespace.
    pub host_mount_namespace: u32,
    /// The runtime's sockets.
    pub sockets: &'a RuntimeSockets,
    /// What the process executes; `None` if it did not execute anything since it is watched.
    pub program: Option<&'a Program>,
    /// How the process came into the container.
    pub origin: Origin,
    /// Executables of its ancestors, nearest first.
    pub ancestors: Vec<Vec<u8>>,
    /// Which hook saw it.
    pub hook: &'static str,
}

/// Judges one connect; `None` if nothing is to be said of the peer.
pub fn judge(facts: &ConnectFacts<'_>) -> Option<Finding> {
    let sensitive = sensitive(facts)?;
    let connect = facts.connect;
    let connection = ConnectionFinding {
        sensitive: Some(sensitive),
        ..ConnectionFinding::of(connect)
    };
    let shown = monitor_api::bytes::escape(&connection.address);
    let (severity, message) = match sensitive {
        Sensitive::Metadata => (
            Severity::High,
            format!("{shown}, where the cloud serves the node's credentials, was reached for"),
        ),
        Sensitive::Runtime => (
            Severity::High,
            format!("{shown}, a socket of the container runtime, was connected to"),
        ),
        Sensitive::Frames => (
            Severity::Medium,
            "a packet socket was made: what is sent through it to whom, and what is overheard, no hook sees".to_owned(),
        ),
    };
    Some(Finding {
        kind: Kind::ConnectSensitive,
        severity,
        time_boot_ns: connect.used.time_boot_ns,
        container: Arc::clone(facts.container),
        evidence: None,
        message,
        process: Some(draft::process_of(
            &connect.used.process,
            facts.origin,
            facts.program,
            &facts.ancestors,
        )),
        file: None,
        connection: Some(connection),
        details: None,
        hook: Some(facts.hook),
        rule: None,
    })
}

fn sensitive(facts: &ConnectFacts<'_>) -> Option<Sensitive> {
    let connect = facts.connect;
    let is_runtime = match &connect.address {
        Address::Ip(address) => {
            let is_other_service = matches!(connect.port, Some(NAMES_PORT | TIME_PORT));
            let is_metadata = METADATA.contains(&translated(*address)) && !is_other_service;
            return is_metadata.then_some(Sensitive::Metadata);
        }
        Address::File => {
            let file = &connect.used.file;
            let key = (file.facts.real_device, file.facts.real_inode);
            // A runtime in the container has the same paths, and rules over nothing else.
            let is_host = file.facts.mount_namespace == facts.host_mount_namespace;
            facts.sockets.0.contains(&key) || (is_host && is_runtime_path(&file.path))
        }
        Address::Named(path) => is_runtime_path(path),
        Address::Abstract(name) => name.starts_with(SHIM_NAME),
        Address::None => {
            return (connect.protocol == Protocol::Packet).then_some(Sensitive::Frames);
        }
    };
    is_runtime.then_some(Sensitive::Runtime)
}

fn is_runtime_path(path: &[u8]) -> bool {
    let path = path.strip_prefix(b"/var").unwrap_or(path);
    RUNTIME_PATHS.iter().any(|runtime| {
        let is_directory = runtime.ends_with(b"/");
        path == *runtime || (is_directory && path.starts_with(runtime))
    })
}

/// The IPv4 address that a gateway would send on to.
fn translated(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else {
        return address;
    };
    match v6.octets().strip_prefix(&TRANSLATED) {
        Some(&[a, b, c, d]) => Ipv4Addr::new(a, b, c, d).into(),
        _ => address,
    }
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Unix => "unix",
        Protocol::Raw => "raw",
        Protocol::Packet => "packet",
        Protocol::Other(1) => "icmp",
        Protocol::Other(58) => "icmpv6",
        Protocol::Other(132) => "sctp",
        Protocol::Other(_) => "other",
    }
}

fn family(connect: &Connect) -> &'static str {
    match (&connect.address, connect.protocol) {
        (Address::Ip(IpAddr::V4(_)), _) => "ipv4",
        (Address::Ip(IpAddr::V6(_)), _) => "ipv6",
        (_, Protocol::Packet) => "packet",
        _ => "unix",
    }
}

fn address(connect: &Connect) -> Vec<u8> {
    match &connect.address {
        Address::Ip(address) => address.to_string().into_bytes(),
        Address::File => connect.used.file.path.clone(),
        Address::Named(path) => path.clone(),
        Address::Abstract(name) => [b"@", name.as_slice()].concat(),
        Address::None => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
