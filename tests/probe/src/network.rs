//! Ways to reach for a peer. Whether it answers is of no interest: most have no route.

use std::{
    ffi::OsStr,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsRawFd, OwnedFd},
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr as UnixAddress, UnixListener, UnixStream},
        },
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    libc,
    sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket},
};

use crate::rings::{self, How};

/// What is sent: eight bytes, as an ICMP echo request has at least.
const BYTES: [u8; 8] = [8, 0, 0xf7, 0xff, 0, 0, 0, 0];
const PATIENCE: Duration = Duration::from_millis(200);

/// Connects by TCP.
pub(crate) fn connect_tcp(address: &OsStr, port: &OsStr) -> Result<()> {
    // An error is as good as an answer.
    let _ = TcpStream::connect_timeout(&parse(address, port)?, PATIENCE);
    Ok(())
}

/// Listens at an address of its own, and connects to itself.
pub(crate) fn connect_itself(address: &OsStr, port: &OsStr) -> Result<()> {
    let address = parse(address, port)?;
    let _listener = TcpListener::bind(address).context("cannot listen")?;
    TcpStream::connect_timeout(&address, PATIENCE)
        .context("cannot connect")
        .map(drop)
}

/// Connects by TCP through io_uring.
pub(crate) fn connect_by_ring(how: &OsStr, address: &OsStr, port: &OsStr) -> Result<()> {
    rings::connect_tcp(How::parse(how)?, &ipv4(address, port)?)
}

/// Sends an echo request by a raw socket through io_uring.
pub(crate) fn send_raw_by_ring(how: &OsStr, address: &OsStr) -> Result<()> {
    let IpAddr::V4(address) = parse(address, OsStr::new("0"))?.ip() else {
        bail!("{address:?} is no address of IPv4");
    };
    rings::send_raw(How::parse(how)?, address, &BYTES)
}

/// Sends data with the first packet of a TCP connection, without connecting.
pub(crate) fn send_fast_open(address: &OsStr, port: &OsStr) -> Result<()> {
    send_to(&stream()?, &ipv4(address, port)?, libc::MSG_FASTOPEN);
    Ok(())
}

fn stream() -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    socket(AddressFamily::Inet, SockType::Stream, flags, None).context("cannot make a socket")
}

/// Sends by UDP without connecting.
pub(crate) fn send_udp(address: &OsStr, port: &OsStr) -> Result<()> {
    let address = parse(address, port)?;
    let any = if address.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let _ = UdpSocket::bind(any)
        .context("cannot bind")?
        .send_to(&BYTES, address);
    Ok(())
}

/// Sends by UDP without connecting, again and again to the same peer.
pub(crate) fn send_often(count: usize, address: &OsStr, port: &OsStr) -> Result<()> {
    let address = parse(address, port)?;
    let socket = UdpSocket::bind("0.0.0.0:0").context("cannot bind")?;
    for _ in 0..count {
        let _ = socket.send_to(&BYTES, address);
    }
    Ok(())
}

/// Sends by UDP to each port of an address.
pub(crate) fn send_ports(address: &OsStr) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0").context("cannot bind")?;
    let SocketAddr::V4(mut peer) = parse(address, OsStr::new("0"))? else {
        bail!("{address:?} is no address of IPv4");
    };
    for port in 1..=u16::MAX {
        peer.set_port(port);
        let _ = socket.send_to(&BYTES, peer);
    }
    Ok(())
}

/// Sends two messages in one call.
pub(crate) fn send_many(address: &OsStr, port: &OsStr) -> Result<()> {
    let mut address = ipv4(address, port)?;
    let socket = UdpSocket::bind("0.0.0.0:0").context("cannot bind")?;
    let mut bytes = libc::iovec {
        iov_base: BYTES.as_ptr().cast_mut().cast(),
        iov_len: BYTES.len(),
    };
    // SAFETY: zeros are a message, of nothing to nobody.
    let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
    header.msg_hdr.msg_name = (&raw mut address).cast();
    header.msg_hdr.msg_namelen = LENGTH;
    header.msg_hdr.msg_iov = &raw mut bytes;
    header.msg_hdr.msg_iovlen = 1;
    let mut headers = [header; 2];
    // SAFETY: what the messages point to lives on.
    unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), 2, 0) };
    Ok(())
}

/// Sends by UDP to an address that names no family, which the kernel takes for IPv4.
pub(crate) fn send_without_family(address: &OsStr, port: &OsStr) -> Result<()> {
    let mut address = ipv4(address, port)?;
    address.sin_family = 0;
    let socket = UdpSocket::bind("0.0.0.0:0").context("cannot bind")?;
    send_to(&socket, &address, 0);
    Ok(())
}

/// Sends an echo request by a raw socket.
pub(crate) fn send_raw(address: &OsStr) -> Result<()> {
    let address = ipv4(address, OsStr::new("0"))?;
    let (flags, protocol) = (SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp);
    let socket = socket(AddressFamily::Inet, SockType::Raw, flags, protocol)
        .context("cannot make a raw socket")?;
    send_to(&socket, &address, 0);
    Ok(())
}

/// Bytes of an address of IPv4.
#[expect(clippy::cast_possible_truncation, reason = "sixteen")]
const LENGTH: u32 = size_of::<libc::sockaddr_in>() as u32;

fn ipv4(address: &OsStr, port: &OsStr) -> Result<libc::sockaddr_in> {
    let address = parse(address, port)?;
    let IpAddr::V4(ip) = address.ip() else {
        bail!("{address} is no address of IPv4");
    };
    Ok(libc::sockaddr_in {
        sin_family: u16::try_from(libc::AF_INET)?,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from_ne_bytes(ip.octets()),
        },
        sin_zero: [0; 8],
    })
}

fn send_to(socket: &impl AsRawFd, address: &libc::sockaddr_in, flags: i32) {
    // SAFETY: both buffers are as long as is said, and live on. An error is as good as an answer.
    unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            BYTES.as_ptr().cast(),
            BYTES.len(),
            flags | libc::MSG_DONTWAIT,
            std::ptr::from_ref(address).cast(),
            LENGTH,
        )
    };
}

/// Makes a packet socket.
pub(crate) fn make_packet_socket() -> Result<()> {
    socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .context("cannot make a packet socket")
    .map(drop)
}

/// Connects to a socket of AF_UNIX that is there.
pub(crate) fn connect_unix(path: &OsStr) -> Result<()> {
    UnixStream::connect(path)
        .with_context(|| format!("cannot connect to {path:?}"))
        .map(drop)
}

/// Listens at a name that is no path, and connects to itself.
pub(crate) fn connect_abstract(name: &OsStr) -> Result<()> {
    let address = UnixAddress::from_abstract_name(name.as_bytes())?;
    let _listener = UnixListener::bind_addr(&address).context("cannot listen")?;
    UnixStream::connect_addr(&address)
        .context("cannot connect")
        .map(drop)
}

fn parse(address: &OsStr, port: &OsStr) -> Result<SocketAddr> {
    let number = |text: &OsStr| text.to_str()?.parse().ok();
    let ip: Option<IpAddr> = address.to_str().and_then(|text| text.parse().ok());
    match (ip, number(port)) {
        (Some(ip), Some(port)) => Ok(SocketAddr::new(ip, port)),
        _ => bail!("{address:?} and {port:?} are no address and port"),
    }
}
