//! The same through io_uring, without the system calls.

use std::{
    ffi::{CString, OsStr},
    net::Ipv4Addr,
    os::{fd::AsRawFd as _, unix::ffi::OsStrExt as _},
};

use anyhow::{Context as _, Result, bail, ensure};
use io_uring::{
    IoUring, opcode,
    squeue::{Entry, Flags},
    types::{DestinationSlot, Fd, Fixed, OpenHow},
};
use nix::{
    libc,
    sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket},
};

/// Slots for files of the ring's own.
const SLOTS: u32 = 2;
/// The one that is used.
const SLOT: u32 = 1;

/// How a request is made, and carried out.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct How {
    /// By `openat2`.
    second: bool,
    /// By a worker of the kernel.
    aside: bool,
    /// What comes of it is a file of the ring's, without a descriptor.
    slot: bool,
    /// No completion is written.
    silent: bool,
    /// A thread of the kernel takes the requests.
    polled: bool,
    /// Requests behind it read the file in the slot and close it.
    used: bool,
}

impl How {
    /// Words with commas between them: `openat2`, `async`, `slot`, `skip`, `poll`, `used`; `plain` for
    /// none.
    pub(crate) fn parse(words: &OsStr) -> Result<Self> {
        let mut how = Self::default();
        for word in words.as_bytes().split(|byte| *byte == b',') {
            match word {
                b"plain" => {}
                b"openat2" => how.second = true,
                b"async" => how.aside = true,
                b"slot" => how.slot = true,
                b"skip" => how.silent = true,
                b"poll" => how.polled = true,
                b"used" => how.used = true,
                _ => bail!("{words:?} is no way to use an io_uring"),
            }
        }
        Ok(how)
    }

    fn slot(self) -> Result<Option<DestinationSlot>> {
        let slot = self
            .slot
            .then(|| DestinationSlot::try_from_slot_target(SLOT));
        slot.transpose()
            .map_err(|_| anyhow::anyhow!("the slot is refused"))
    }

    /// Carries out a request; what it points to must live on. Gives what came of it.
    fn carry_out(self, entry: Entry) -> Result<i32> {
        let mut builder = IoUring::builder();
        if self.polled {
            builder.setup_sqpoll(1_000);
        }
        let mut ring: IoUring = builder.build(4).context("cannot set up an io_uring")?;
        ring.submitter()
            .register_files_sparse(SLOTS)
            .context("cannot make room for files")?;
        let mut flags = Flags::empty();
        flags.set(Flags::ASYNC, self.aside);
        // The request after it says when it is over.
        flags.set(Flags::SKIP_SUCCESS | Flags::IO_LINK, self.silent);
        let mut entries = vec![entry.flags(flags)];
        let mut bytes = [0; 64];
        if self.used {
            let read = opcode::Read::new(Fixed(SLOT), bytes.as_mut_ptr(), 64).build();
            entries.push(read.flags(flags));
            entries.push(opcode::Close::new(Fixed(SLOT)).build());
        } else if self.silent {
            entries.push(opcode::Nop::new().build());
        }
        // SAFETY: by this function's contract.
        unsafe { ring.submission().push_multiple(&entries) }.context("the io_uring is full")?;
        ring.submit_and_wait(1)
            .context("cannot submit to the io_uring")?;
        let completion = ring.completion().next().context("nothing was completed")?;
        Ok(completion.result())
    }
}

/// Opens a file.
pub(crate) fn open(how: How, path: &OsStr) -> Result<()> {
    let path = CString::new(path.as_bytes())?;
    let directory = Fd(libc::AT_FDCWD);
    let second = OpenHow::new();
    let entry = if how.second {
        opcode::OpenAt2::new(directory, path.as_ptr(), &raw const second)
            .file_index(how.slot()?)
            .build()
    } else {
        opcode::OpenAt::new(directory, path.as_ptr())
            .file_index(how.slot()?)
            .build()
    };
    told(how.carry_out(entry)?, "open")
}

/// Connects to a socket of AF_UNIX that is there.
pub(crate) fn connect_unix(how: How, path: &OsStr) -> Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)
        .context("cannot make a socket")?;
    // SAFETY: zeros are an address, without a name.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = u16::try_from(libc::AF_UNIX)?;
    let bytes = path.as_bytes();
    ensure!(bytes.len() < address.sun_path.len(), "the path is too long");
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = from.cast_signed();
    }
    let length = u32::try_from(size_of_val(&address))?;
    let descriptor = Fd(socket.as_raw_fd());
    let entry = opcode::Connect::new(descriptor, (&raw const address).cast(), length).build();
    told(how.carry_out(entry)?, "connect")
}

/// Connects by TCP.
pub(crate) fn connect_tcp(how: How, address: &libc::sockaddr_in) -> Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None)
        .context("cannot make a socket")?;
    let length = u32::try_from(size_of_val(address))?;
    let descriptor = Fd(socket.as_raw_fd());
    let entry =
        opcode::Connect::new(descriptor, std::ptr::from_ref(address).cast(), length).build();
    // An error is as good as an answer.
    how.carry_out(entry).map(drop)
}

/// Sends an echo request by a raw socket.
pub(crate) fn send_raw(how: How, address: Ipv4Addr, bytes: &[u8]) -> Result<()> {
    let (flags, protocol) = (SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp);
    let socket = socket(AddressFamily::Inet, SockType::Raw, flags, protocol)
        .context("cannot make a raw socket")?;
    let mut address = libc::sockaddr_in {
        sin_family: u16::try_from(libc::AF_INET)?,
        sin_port: 0,
        sin_addr: libc::in_addr {
            s_addr: u32::from_ne_bytes(address.octets()),
        },
        sin_zero: [0; 8],
    };
    let mut part = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: zeros are a message, of nothing to nobody.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = (&raw mut address).cast();
    message.msg_namelen = u32::try_from(size_of_val(&address))?;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    let entry = opcode::SendMsg::new(Fd(socket.as_raw_fd()), &raw const message).build();
    // An error is as good as an answer.
    how.carry_out(entry).map(drop)
}

/// Makes a packet socket.
pub(crate) fn packet_socket(how: How) -> Result<()> {
    let entry = opcode::Socket::new(libc::AF_PACKET, libc::SOCK_RAW, 0)
        .file_index(how.slot()?)
        .build();
    told(how.carry_out(entry)?, "socket")
}

fn told(result: i32, request: &str) -> Result<()> {
    ensure!(
        result >= 0,
        "{request} through io_uring: {}",
        std::io::Error::from_raw_os_error(-result)
    );
    Ok(())
}
