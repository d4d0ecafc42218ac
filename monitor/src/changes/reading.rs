//! Reads a file in slices, so that the thread can do other things in between.

use std::{
    fs::File,
    io::Read as _,
    os::unix::fs::FileExt as _,
    time::{Duration, Instant},
};

use crate::{
    detect::{file::Bytes, script::HEAD_BYTES},
    digest::Hasher,
};

/// Bytes of a file; a longer one is not hashed, since a sparse file of any length costs nothing to
/// make.
const FILE_BYTES_MAX: u64 = 1 << 30;
/// Bytes read at once.
const CHUNK_BYTES: usize = 128 << 10;
/// Chunks of a slice, some 10 ms.
const SLICE_CHUNKS: usize = 32;

/// A file that is being read.
pub(super) struct Reading {
    file: File,
    head: Vec<u8>,
    hasher: Hasher,
    length: u64,
    chunk: Vec<u8>,
    /// Time spent so far.
    pub(super) spent: Duration,
}

impl Reading {
    pub(super) fn new(file: File) -> Self {
        let mut head = vec![0; HEAD_BYTES];
        let length = file.read_at(&mut head, 0).unwrap_or(0);
        head.truncate(length);
        Self {
            file,
            head,
            hasher: Hasher::new(),
            length: 0,
            chunk: vec![0; CHUNK_BYTES],
            spent: Duration::ZERO,
        }
    }

    /// Reads a slice; gives the bytes and the first of them when there are no more.
    pub(super) fn go_on(&mut self) -> Option<(Bytes, Vec<u8>)> {
        let began = Instant::now();
        let read = self.slice();
        self.spent += began.elapsed();
        read.map(|bytes| (bytes, std::mem::take(&mut self.head)))
    }

    fn slice(&mut self) -> Option<Bytes> {
        for _ in 0..SLICE_CHUNKS {
            let read = match self.file.read(&mut self.chunk) {
                Ok(read) => read,
                Err(error) => return Some(Bytes::Gone(format!("it could not be read: {error}"))),
            };
            let Some(bytes) = self.chunk.get(..read).filter(|bytes| !bytes.is_empty()) else {
                let hasher = std::mem::take(&mut self.hasher);
                return Some(Bytes::Hashed(hasher.finish()));
            };
            self.length += bytes.len() as u64;
            if self.length > FILE_BYTES_MAX {
                let reason =
                    format!("it has more than {FILE_BYTES_MAX} bytes, which is not hashed");
                return Some(Bytes::Gone(reason));
            }
            self.hasher.update(bytes);
        }
        None
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::digest::Sha256;

    #[test]
    fn slices_give_what_the_whole_gives() {
        for size in [0, 1, CHUNK_BYTES, CHUNK_BYTES * SLICE_CHUNKS * 2 + 7] {
            let bytes: Vec<u8> = (0..=250).cycle().take(size).collect();
            let path = std::env::temp_dir().join(format!("reading-{}-{size}", std::process::id()));
            std::fs::write(&path, &bytes).unwrap();
            let mut reading = Reading::new(File::open(&path).unwrap());
            std::fs::remove_file(&path).unwrap();
            let mut slices = 1;
            let (read, head) = loop {
                match reading.go_on() {
                    Some(read) => break read,
                    None => slices += 1,
                }
            };
            let whole = Sha256::of(&bytes);
            assert_eq!(read, Bytes::Hashed(whole), "{size}");
            assert_eq!(
                Some(head.as_slice()),
                bytes.get(..size.min(HEAD_BYTES)),
                "{size}"
            );
            assert_eq!(slices, size / (CHUNK_BYTES * SLICE_CHUNKS) + 1, "{size}");
        }
    }
}
