//! A compressed blob, decompressed and hashed beside whoever reads what comes out.

use std::{
    io::{self, Read},
    sync::mpsc::{self, Receiver},
};

use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use tokio::{runtime::Handle, task::JoinHandle};

use super::{
    blobs::BlobReader,
    buffers::Buffers,
    hashing::{StreamHash, interrupted},
    zstd::ZstdReader,
};

/// Bytes decompressed at once.
const CHUNK_BYTES: usize = 128 << 10;
/// Chunks that wait to be read; decompression waits then.
const CHUNKS_MAX: usize = 4;

/// Decompresses a blob.
pub(super) trait Decoder: Read + Send + 'static {
    /// The blob, as far as it was read.
    fn into_blob(self) -> BlobReader;
}

impl Decoder for MultiGzDecoder<BlobReader> {
    fn into_blob(self) -> BlobReader {
        self.into_inner()
    }
}

impl Decoder for ZstdReader<BlobReader> {
    fn into_blob(self) -> BlobReader {
        self.into_inner()
    }
}

/// See the module. It goes on at most [`CHUNKS_MAX`] ahead, on a blocking thread of the runtime.
pub(super) struct Decompression {
    chunks: Receiver<io::Result<Bytes>>,
    done: JoinHandle<(BlobReader, StreamHash)>,
    runtime: Handle,
}

impl Decompression {
    pub(super) fn start(runtime: &Handle, mut decoder: impl Decoder) -> Self {
        let hash = StreamHash::start(runtime);
        let (send, chunks) = mpsc::sync_channel(CHUNKS_MAX);
        let done = runtime.spawn_blocking(move || {
            let buffers = Buffers::new(CHUNK_BYTES);
            let mut next = || {
                let chunk = buffers.read(&mut decoder)?;
                hash.update(chunk.clone())?;
                Ok(chunk)
            };
            loop {
                let chunk = next();
                let is_last = !matches!(&chunk, Ok(chunk) if !chunk.is_empty());
                // Whoever reads has ended before if it found something wrong.
                if send.send(chunk).is_err() || is_last {
                    break;
                }
            }
            (decoder.into_blob(), hash)
        });
        Self {
            chunks,
            done,
            runtime: runtime.clone(),
        }
    }

    /// The bytes that come next; empty at the end, and where the runtime ends, which
    /// [`Self::finish`] tells.
    pub(super) fn next_chunk(&self) -> io::Result<Bytes> {
        self.chunks.recv().unwrap_or_else(|_| Ok(Bytes::new()))
    }

    /// Stops, and gives the blob and what was hashed of what came out. Not to be called on an async
    /// thread of the runtime.
    pub(super) fn finish(self) -> io::Result<(BlobReader, StreamHash)> {
        drop(self.chunks);
        self.runtime.block_on(self.done).map_err(|_| interrupted())
    }
}
