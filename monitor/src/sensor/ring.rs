//! The ring buffer, read ahead of what is let go: a record stays in the ring until its events were
//! judged, so that a daemon that is killed leaves it to its successor. aya's reader lets go of each
//! record when the next one is read.

use std::{
    io,
    num::NonZeroUsize,
    os::fd::AsFd,
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use aya::maps::{Array, Map, MapData, MapError};
use monitor_common::Mark;
use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        mman::{MapFlags, ProtFlags, mmap, munmap},
    },
    unistd::{SysconfVar, sysconf},
};

/// What the kernel writes before each record (`BPF_RINGBUF_HDR_SZ`).
const HEADER_BYTES: usize = 8;
/// Bits of the length in that header: still being written, and not to be read.
const BUSY: u32 = 1 << 31;
const DISCARDED: u32 = 1 << 30;

/// [`Mark`] as a map value.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct KernelMark(Mark);

// SAFETY: plain integers without padding, as `Mark` proves by deriving `FromBytes`.
unsafe impl aya::Pod for KernelMark {}

/// The ring buffer of the programs, and up to where it was let go.
pub(super) struct Ring {
    /// One page: up to where the kernel may write again.
    consumer: Mapping,
    /// A page that says up to where the kernel has written, then the records, twice in a row.
    producer: Mapping,
    page_bytes: usize,
    data_bytes: u64,
    kept: Array<MapData, KernelMark>,
    let_go: Mark,
    /// Up to where it was read.
    read: Mark,
    epoll: Epoll,
}

impl Ring {
    /// Opens the ring of `records`, from where its last reader let go of it by `kept`.
    pub(super) fn open(records: Map, kept: Map) -> io::Result<Self> {
        let Map::RingBuf(records) = records else {
            return Err(io::Error::other("RECORDS is no ring buffer"));
        };
        let kept: Array<MapData, KernelMark> = Array::try_from(kept).map_err(io::Error::other)?;
        let KernelMark(let_go) = kept.get(&0, 0).map_err(io::Error::other)?;
        let data_bytes = records.info().map_err(io::Error::other)?.max_entries();
        let page_bytes = sysconf(SysconfVar::PAGE_SIZE)?
            .and_then(|bytes| usize::try_from(bytes).ok())
            .ok_or(Errno::EINVAL)?;
        let producer_bytes =
            page_bytes + 2 * usize::try_from(data_bytes).map_err(io::Error::other)?;
        let all = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let consumer = Mapping::new(&records, page_bytes, all, 0)?;
        let producer = Mapping::new(&records, producer_bytes, ProtFlags::PROT_READ, page_bytes)?;
        // Woken, not asked whether there is something: what is held is there all the time.
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let woken = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0);
        epoll.add(records.fd().as_fd(), woken)?;
        // Its last reader writes the mark first, so one that was killed in between has let go of
        // what is before the mark.
        let position = consumer.number(0).load(Ordering::Acquire);
        if let_go.position < position {
            return Err(io::Error::other("another program reads the ring buffer"));
        }
        consumer.number(0).store(let_go.position, Ordering::Release);
        Ok(Self {
            consumer,
            producer,
            page_bytes,
            data_bytes: u64::from(data_bytes),
            kept,
            let_go,
            read: let_go,
            epoll,
        })
    }

    /// Up to where it was let go.
    pub(super) fn let_go_mark(&self) -> Mark {
        self.let_go
    }

    /// Up to where it was read.
    pub(super) fn read_mark(&self) -> Mark {
        self.read
    }

    /// Bytes that the kernel has written and nobody has read.
    pub(super) fn unread_bytes(&self) -> u64 {
        let written = self.producer.number(0).load(Ordering::Acquire);
        written.saturating_sub(self.read.position)
    }

    /// The next record that is complete.
    pub(super) fn next(&mut self) -> Option<&[u8]> {
        loop {
            let written = self.producer.number(0).load(Ordering::Acquire);
            let unread = written.checked_sub(self.read.position)?;
            let in_data = self.read.position & (self.data_bytes - 1);
            let offset = self.page_bytes + usize::try_from(in_data).ok()?;
            if unread < HEADER_BYTES as u64 {
                return None;
            }
            let header = self.producer.length(offset).load(Ordering::Acquire);
            let length = header & !(BUSY | DISCARDED);
            let whole = (HEADER_BYTES as u64 + u64::from(length)).next_multiple_of(8);
            if header & BUSY != 0 || whole > unread {
                return None;
            }
            self.read.position += whole;
            if header & DISCARDED == 0 {
                self.read.records += 1;
                let start = offset + HEADER_BYTES;
                return Some(self.producer.bytes(start, length as usize));
            }
        }
    }

    /// Lets the kernel write over what is before `mark`, which was read.
    pub(super) fn let_go(&mut self, mark: Mark) -> Result<(), MapError> {
        if mark.position > self.let_go.position && mark.position <= self.read.position {
            // In this order: see `open`.
            self.kept.set(0, KernelMark(mark), 0)?;
            let consumer = self.consumer.number(0);
            consumer.store(mark.position, Ordering::Release);
            self.let_go = mark;
        }
        Ok(())
    }

    /// Sleeps until the kernel side wakes, or for so long.
    pub(super) fn wait(&self, milliseconds: u16) -> nix::Result<()> {
        let mut events = [EpollEvent::empty()];
        match self
            .epoll
            .wait(&mut events, EpollTimeout::from(milliseconds))
        {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Pages that are shared with the kernel.
struct Mapping {
    start: NonNull<u8>,
    bytes: NonZeroUsize,
}

// SAFETY: the pages belong to the process, not to a thread.
unsafe impl Send for Mapping {}

impl Mapping {
    fn new(map: &MapData, bytes: usize, access: ProtFlags, offset: usize) -> nix::Result<Self> {
        let bytes = NonZeroUsize::new(bytes).ok_or(Errno::EINVAL)?;
        let offset = i64::try_from(offset).map_err(|_| Errno::EINVAL)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing else.
        let start = unsafe {
            mmap(
                None,
                bytes,
                access,
                MapFlags::MAP_SHARED,
                map.fd().as_fd(),
                offset,
            )
        }?;
        Ok(Self {
            start: start.cast(),
            bytes,
        })
    }

    /// Where `length` bytes at `offset` lie; the first bytes instead of what is beyond the end.
    fn at(&self, offset: usize, length: usize) -> NonNull<u8> {
        let inside = offset
            .checked_add(length)
            .is_some_and(|end| end <= self.bytes.get());
        // SAFETY: the offset is inside of the mapping.
        unsafe { self.start.add(if inside { offset } else { 0 }) }
    }

    fn number(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: inside of the mapping, which is a page at least and aligned; both sides of the ring
        // read and write its positions as one number.
        unsafe { self.at(offset, size_of::<u64>()).cast().as_ref() }
    }

    fn length(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: inside of the mapping; records begin at multiples of 8.
        unsafe { self.at(offset, size_of::<u32>()).cast().as_ref() }
    }

    fn bytes(&self, offset: usize, length: usize) -> &[u8] {
        let length = length.min(self.bytes.get());
        // SAFETY: inside of the mapping. The kernel writes there again only after it was let go,
        // which needs the ring as mutable.
        unsafe { std::slice::from_raw_parts(self.at(offset, length).as_ptr(), length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this object's own; its references cannot outlive it.
        if let Err(error) = unsafe { munmap(self.start.cast(), self.bytes.get()) } {
            tracing::error!(%error, "cannot unmap the ring buffer");
        }
    }
}
