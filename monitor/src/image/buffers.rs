//! Buffers for the chunks of a stream.

use std::{
    io::{self, Read},
    mem,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;

/// Gives a buffer again once nothing uses what was read into it: the kernel has to clear each page
/// of a fresh one first. There are as many as are used at once.
#[derive(Clone)]
pub struct Buffers {
    capacity: usize,
    free: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Buffers {
    /// Buffers of `capacity` bytes.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            free: Arc::default(),
        }
    }

    /// Reads until a buffer is full or the input ends, which is when fewer bytes come than it holds.
    pub fn read(&self, from: &mut impl Read) -> io::Result<Bytes> {
        let free = self
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        let mut chunk = Chunk {
            bytes: free.unwrap_or_else(|| Vec::with_capacity(self.capacity)),
            free: Arc::clone(&self.free),
        };
        let limit = u64::try_from(self.capacity).unwrap_or(u64::MAX);
        from.take(limit).read_to_end(&mut chunk.bytes)?;
        Ok(Bytes::from_owner(chunk))
    }
}

struct Chunk {
    bytes: Vec<u8>,
    free: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let mut bytes = mem::take(&mut self.bytes);
        bytes.clear();
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_given_again_once_nothing_uses_it() -> io::Result<()> {
        let buffers = Buffers::new(4);
        let mut input: &[u8] = b"abcdefghij";
        let first = buffers.read(&mut input)?;
        let second = buffers.read(&mut input)?;
        assert_eq!((&*first, &*second), (&b"abcd"[..], &b"efgh"[..]));
        let place = first.as_ptr();
        let part = first.slice(1..3);
        drop(first);
        let third = buffers.read(&mut input)?;
        assert_eq!((&*part, &*third), (&b"bc"[..], &b"ij"[..]));
        assert_ne!(third.as_ptr(), place);
        drop(part);
        assert!(buffers.read(&mut input)?.is_empty());
        assert_eq!(second, "efgh");
        Ok(())
    }
}
