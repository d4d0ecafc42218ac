//! Whom a container reaches, as networks. Where many addresses are reached by one protocol and port
//! the networks become larger: as large as it takes to have few of them, so that it does not matter
//! in which order they came. Private addresses are never united with public ones.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::sensor::event::Protocol;

/// Networks that are told apart for one protocol, port and block.
const NETWORKS_MAX: usize = 32;
/// Ports that are told apart for one protocol and block.
const PORTS_MAX: usize = 64;
/// Bits of the networks, from the finest; the coarsest is the block itself.
const LEVELS_V4: [u8; 3] = [32, 24, 16];
const LEVELS_V6: [u8; 3] = [128, 64, 48];

/// What [`Protocol::Raw`] and [`Protocol::Packet`] are among the protocols' numbers.
const RAW: u16 = u16::MAX;
const PACKET: u16 = u16::MAX - 1;
const TCP: u16 = 6;
const UDP: u16 = 17;

/// Addresses that belong together: loopback, private ones, the public ones. An address lies in the
/// first of its family that has it.
const BLOCKS: [Network; 11] = [
    v4([127, 0, 0, 0], 8),
    v4([10, 0, 0, 0], 8),
    v4([172, 16, 0, 0], 12),
    v4([192, 168, 0, 0], 16),
    v4([169, 254, 0, 0], 16),
    v4([100, 64, 0, 0], 10),
    v4([0, 0, 0, 0], 0),
    v6(Ipv6Addr::LOCALHOST, 128),
    v6(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7),
    v6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
    v6(Ipv6Addr::UNSPECIFIED, 0),
];

/// Addresses that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Network {
    is_v6: bool,
    /// From the highest bit on; those that do not count are 0.
    bits: u128,
    prefix: u8,
}

/// What was reached for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Peer {
    pub(super) protocol: u16,
    /// `None` stands for any, and for protocols without.
    pub(super) port: Option<u16>,
    pub(super) network: Network,
}

/// Peers that were reached.
#[derive(Clone, Debug, Default)]
pub(super) struct Peers(BTreeMap<(u16, usize), Ports>);

/// Of one protocol and block.
#[derive(Clone, Debug, Default)]
struct Ports {
    /// There were too many; what is left is `None`.
    is_any: bool,
    by_port: BTreeMap<Option<u16>, Group>,
}

/// Of one port.
#[derive(Clone, Debug, Default)]
struct Group {
    level: usize,
    /// Sorted.
    networks: Vec<Network>,
}

const fn v4([a, b, c, d]: [u8; 4], prefix: u8) -> Network {
    Network {
        is_v6: false,
        bits: (u32::from_be_bytes([a, b, c, d]) as u128) << 96,
        prefix,
    }
}

const fn v6(address: Ipv6Addr, prefix: u8) -> Network {
    Network {
        is_v6: true,
        bits: address.to_bits(),
        prefix,
    }
}

impl Network {
    /// The network of one address.
    pub(super) fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => v4(address.octets(), 32),
            IpAddr::V6(address) => v6(address, 128),
        }
    }

    /// The network of the first `prefix` bits of an address; `None` where it has fewer.
    pub(super) fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let all = Self::of(address);
        (prefix <= all.prefix).then(|| all.widened(prefix))
    }

    pub(super) fn address(self) -> IpAddr {
        if self.is_v6 {
            return Ipv6Addr::from_bits(self.bits).into();
        }
        let [a, b, c, d, ..] = self.bits.to_be_bytes();
        Ipv4Addr::new(a, b, c, d).into()
    }

    pub(super) fn prefix(self) -> u8 {
        self.prefix
    }

    fn widened(self, prefix: u8) -> Self {
        let prefix = prefix.min(self.prefix);
        let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
        Self {
            bits: self.bits & mask,
            prefix,
            ..self
        }
    }

    fn has(self, other: Self) -> bool {
        self.is_v6 == other.is_v6
            && self.prefix <= other.prefix
            && other.widened(self.prefix) == self
    }

    /// The number of the block that it lies in.
    fn block(self) -> usize {
        let own = BLOCKS.iter().position(|block| block.has(self));
        own.unwrap_or(BLOCKS.len())
    }

    /// The block that a network reaches into and does not lie in.
    pub(super) fn straddled(self) -> Option<Self> {
        let is_public = |block: &Self| block.prefix == 0;
        let mut blocks = BLOCKS.into_iter().filter(|block| !is_public(block));
        // What is written as all addresses means the public ones.
        blocks.find(|block| self.prefix > 0 && self.prefix < block.prefix && self.has(*block))
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address(), self.prefix)
    }
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", protocol_name(self.protocol), self.network)?;
        self.port.map_or(Ok(()), |port| write!(f, " port {port}"))
    }
}

impl Peers {
    pub(super) fn has(&self, peer: Peer) -> bool {
        let Some((ports, block)) = self.ports(peer) else {
            return false;
        };
        let port = if ports.is_any { None } else { peer.port };
        let group = ports.by_port.get(&port);
        group.is_some_and(|group| {
            let network = peer.network.widened(group.prefix(block));
            group.networks.binary_search(&network).is_ok()
        })
    }

    pub(super) fn learn(&mut self, peer: Peer) {
        let block = peer.network.block();
        let ports = self.0.entry((peer.protocol, block)).or_default();
        let port = if ports.is_any { None } else { peer.port };
        ports
            .by_port
            .entry(port)
            .or_default()
            .learn(peer.network, block);
        ports.settle(block);
    }

    pub(super) fn allows(&self, peer: Peer) -> bool {
        self.ports(peer).is_some_and(|(ports, _)| {
            let own = ports.by_port.get(&peer.port);
            let any = ports.by_port.get(&None);
            [own, any].into_iter().flatten().any(|group| {
                group
                    .networks
                    .iter()
                    .any(|network| network.has(peer.network))
            })
        })
    }

    pub(super) fn join(&mut self, other: &Self) {
        for ((protocol, block), theirs) in &other.0 {
            let ports = self.0.entry((*protocol, *block)).or_default();
            if theirs.is_any {
                ports.unite(*block);
            }
            for (port, theirs) in &theirs.by_port {
                let port = if ports.is_any { None } else { *port };
                let group = ports.by_port.entry(port).or_default();
                group.coarsen(theirs.level, *block);
                for network in &theirs.networks {
                    group.learn(*network, *block);
                }
            }
            ports.settle(*block);
        }
    }

    /// Each network.
    pub(super) fn rules(&self) -> impl Iterator<Item = Peer> {
        self.0.iter().flat_map(|((protocol, _), ports)| {
            ports.by_port.iter().flat_map(|(port, group)| {
                group.networks.iter().map(|network| Peer {
                    protocol: *protocol,
                    port: *port,
                    network: *network,
                })
            })
        })
    }

    /// What was made coarser: the network has the block's address, and as many bits as its networks
    /// have now. Without a port also where the ports are no longer told apart.
    pub(super) fn coarser(&self) -> impl Iterator<Item = (Peer, bool)> {
        self.0.iter().flat_map(|((protocol, block), ports)| {
            let groups = ports.by_port.iter();
            let coarse = groups.filter(|(_, group)| ports.is_any || group.level > 0);
            coarse.filter_map(|(port, group)| {
                let mut network = *BLOCKS.get(*block)?;
                network.prefix = group.prefix(*block);
                let peer = Peer {
                    protocol: *protocol,
                    port: *port,
                    network,
                };
                Some((peer, ports.is_any))
            })
        })
    }

    /// Makes networks coarser, as [`Peers::coarser`] told.
    pub(super) fn coarsen(&mut self, to: Peer, is_any: bool) {
        let block = to.network.block();
        let ports = self.0.entry((to.protocol, block)).or_default();
        if is_any {
            ports.unite(block);
        }
        let port = if ports.is_any { None } else { to.port };
        let group = ports.by_port.entry(port).or_default();
        let level = (0..=3).find(|level| prefix_of(*level, block) <= to.network.prefix);
        group.coarsen(level.unwrap_or(3), block);
    }

    /// What is allowed of the same address, else by the same port, at most `max`.
    pub(super) fn nearby(&self, peer: Peer, max: usize) -> Vec<String> {
        let same_address = self.rules().filter(|rule| rule.network.has(peer.network));
        let same_port = self.rules().filter(|rule| rule.port == peer.port);
        let any = self.rules();
        let mut found: Vec<String> = Vec::new();
        for rule in same_address.chain(same_port).chain(any) {
            let text = rule.to_string();
            if found.len() < max && !found.contains(&text) {
                found.push(text);
            }
        }
        found
    }

    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        let ports = self.0.values().flat_map(|ports| ports.by_port.values());
        let used = ports.map(|group| 64 + group.networks.capacity() * size_of::<Network>());
        used.sum::<usize>() + self.0.len() * 64
    }

    fn ports(&self, peer: Peer) -> Option<(&Ports, usize)> {
        let block = peer.network.block();
        Some((self.0.get(&(peer.protocol, block))?, block))
    }
}

impl Ports {
    /// Tells ports no longer apart if there are too many.
    fn settle(&mut self, block: usize) {
        if self.by_port.len() > PORTS_MAX {
            self.unite(block);
        }
    }

    fn unite(&mut self, block: usize) {
        if self.is_any {
            return;
        }
        self.is_any = true;
        let mut united = Group::default();
        for group in std::mem::take(&mut self.by_port).into_values() {
            united.coarsen(group.level, block);
            for network in group.networks {
                united.learn(network, block);
            }
        }
        self.by_port.insert(None, united);
    }
}

impl Group {
    fn prefix(&self, block: usize) -> u8 {
        prefix_of(self.level, block)
    }

    fn learn(&mut self, network: Network, block: usize) {
        let network = network.widened(self.prefix(block));
        if let Err(at) = self.networks.binary_search(&network) {
            self.networks.insert(at, network);
        }
        while self.networks.len() > NETWORKS_MAX && self.level < 3 {
            self.coarsen(self.level + 1, block);
        }
    }

    fn coarsen(&mut self, level: usize, block: usize) {
        if level <= self.level {
            return;
        }
        self.level = level;
        let prefix = self.prefix(block);
        for network in &mut self.networks {
            *network = network.widened(prefix);
        }
        self.networks.sort_unstable();
        self.networks.dedup();
    }
}

/// Bits of the networks of a level in a block.
fn prefix_of(level: usize, block: usize) -> u8 {
    let Some(block) = BLOCKS.get(block) else {
        return 0;
    };
    let levels = if block.is_v6 { LEVELS_V6 } else { LEVELS_V4 };
    let own = levels.get(level).copied().unwrap_or_default();
    own.max(block.prefix)
}

/// The number of a protocol.
pub(super) fn protocol_number(protocol: Protocol) -> u16 {
    match protocol {
        Protocol::Tcp => TCP,
        Protocol::Udp => UDP,
        Protocol::Raw => RAW,
        Protocol::Packet | Protocol::Unix => PACKET,
        Protocol::Other(number) => number,
    }
}

/// What a protocol is called in documents.
pub(super) fn protocol_name(number: u16) -> String {
    match number {
        TCP => "tcp".to_owned(),
        UDP => "udp".to_owned(),
        RAW => "raw".to_owned(),
        PACKET => "packet".to_owned(),
        number => number.to_string(),
    }
}

/// The protocol that [`protocol_name`] gave the name.
pub(super) fn protocol_named(name: &str) -> Option<u16> {
    match name {
        "tcp" => Some(TCP),
        "udp" => Some(UDP),
        "raw" => Some(RAW),
        "packet" => Some(PACKET),
        number => number
            .parse()
            .ok()
            .filter(|it| protocol_name(*it) == number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(address: &str, port: u16) -> Peer {
        Peer {
            protocol: TCP,
            port: Some(port),
            network: Network::of(address.parse().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))),
        }
    }

    #[test]
    fn many_addresses_become_networks() {
        let check = |addresses: &mut dyn Iterator<Item = String>, expect: &[&str]| {
            let mut peers = Peers::default();
            for address in addresses {
                peers.learn(peer(&address, 443));
                assert!(peers.has(peer(&address, 443)));
                assert!(peers.allows(peer(&address, 443)));
                assert!(!peers.allows(peer(&address, 444)));
            }
            let seen: Vec<String> = peers.rules().map(|rule| rule.network.to_string()).collect();
            assert_eq!(seen, expect);
        };
        let text =
            |texts: &[&str]| -> Vec<String> { texts.iter().map(|it| (*it).to_owned()).collect() };
        check(
            &mut text(&["8.8.8.8", "8.8.8.8"]).into_iter(),
            &["8.8.8.8/32"],
        );
        check(
            &mut (0..40).map(|it| format!("10.0.0.{it}")),
            &["10.0.0.0/24"],
        );
        check(
            &mut (0..40).map(|it| format!("10.0.{it}.1")),
            &["10.0.0.0/16"],
        );
        check(
            &mut (0..40).map(|it| format!("10.{it}.0.1")),
            &["10.0.0.0/8"],
        );
        check(
            &mut (1..40).map(|it| format!("{}.0.0.1", it + 10)),
            &["0.0.0.0/0"],
        );
        check(
            &mut (0..40).map(|it| format!("2001:db8::{it}")),
            &["2001:db8::/64"],
        );
        check(&mut (0..40).map(|it| format!("2001:{it}::1")), &["::/0"]);
    }

    #[test]
    fn private_addresses_are_kept_apart_from_public_ones() {
        let mut peers = Peers::default();
        for it in 11..90u8 {
            peers.learn(peer(&format!("{it}.1.1.1"), 443));
        }
        let check = |address: &str, expect: bool| {
            assert_eq!(peers.allows(peer(address, 443)), expect, "{address}");
        };
        check("99.9.9.9", true);
        for private in [
            "10.0.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "192.168.1.1",
            "::1",
            "2001::1",
        ] {
            check(private, false);
        }
    }

    #[test]
    fn many_ports_become_any() {
        let mut peers = Peers::default();
        for port in 0..1000 {
            peers.learn(peer("8.8.8.8", port));
        }
        assert!(peers.allows(peer("8.8.8.8", 5000)));
        assert!(!peers.allows(peer("8.8.8.9", 5000)));
        assert_eq!(peers.rules().count(), 1);
    }
}
