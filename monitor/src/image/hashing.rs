//! The digest of a stream, made beside whoever reads it.

use std::{
    io,
    sync::mpsc::{self, SyncSender},
};

use bytes::Bytes;
use tokio::{runtime::Handle, task::JoinHandle};

use super::blobs::BlobError;
use crate::digest::{Digest, Hasher, Sha256};

/// Chunks that wait to be hashed; whoever sends more waits. containerd gives 1 MiB at once.
const CHUNKS_MAX: usize = 4;

/// Hashes what it is given on a blocking thread of the runtime.
pub(super) struct StreamHash {
    chunks: SyncSender<Bytes>,
    done: JoinHandle<Sha256>,
    runtime: Handle,
}

impl StreamHash {
    pub(super) fn start(runtime: &Handle) -> Self {
        let (chunks, waiting) = mpsc::sync_channel::<Bytes>(CHUNKS_MAX);
        let done = runtime.spawn_blocking(move || {
            let mut hasher = Hasher::new();
            for chunk in waiting {
                hasher.update(&chunk);
            }
            hasher.finish()
        });
        Self {
            chunks,
            done,
            runtime: runtime.clone(),
        }
    }

    /// Adds what follows; waits while [`CHUNKS_MAX`] wait.
    pub(super) fn update(&self, chunk: Bytes) -> io::Result<()> {
        self.chunks.send(chunk).map_err(|_| interrupted())
    }

    /// The digest of all of it. Not to be called on an async thread of the runtime.
    pub(super) fn finish(self) -> io::Result<Digest> {
        drop(self.chunks);
        let done = self.runtime.block_on(self.done);
        done.map(Digest).map_err(|_| interrupted())
    }
}

/// Threads that have not begun are let go when the runtime ends.
pub(super) fn interrupted() -> io::Error {
    io::Error::other(BlobError::Unavailable("monitord is ending".to_owned()))
}
