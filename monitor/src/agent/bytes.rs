//! Reads and hashes the bytes of an executed file, from the descriptors that were held of it.

use std::{
    fs::File,
    io::Read,
    num::NonZeroUsize,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lru::LruCache;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use sha2::Digest as _;
use tokio::sync::Semaphore;

use crate::{
    detect::exec::Bytes,
    digest::{Digest, Sha256},
    sensor::event::FileFacts,
};

/// Files hashed at once; more wait.
const HASHING_MAX: usize = 2;
/// Bytes of a file; a longer one is not hashed, since a sparse file of any length costs nothing
/// to make.
const FILE_BYTES_MAX: u64 = 1 << 30;
/// Bytes read at once.
const CHUNK_BYTES: usize = 128 << 10;
/// Hashes remembered of files in image layers; the one that was not used longest is hashed again.
const REMEMBERED_MAX: NonZeroUsize = NonZeroUsize::new(65_536).expect("not zero");
/// A file that changed less than this before it was hashed may change again without its times
/// telling: the kernel's timestamps advance by ticks of at most 10 ms.
const TICK: Duration = Duration::from_millis(20);

/// A file to be hashed.
pub(super) struct Request {
    /// What the kernel said of it when it was executed.
    pub(super) facts: FileFacts,
    /// What was held.
    pub(super) held: Vec<OwnedFd>,
    /// Chain ID of the image, if the file lies in one of its layers: its hash is remembered.
    pub(super) layers: Option<Digest>,
}

/// A version of a file in a layer on this node's disk. The overlay's device differs for each
/// container, so the image's chain ID stands in for it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct LayerFile {
    layers: Digest,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Hashes files.
pub(super) struct BytesReader {
    permits: Semaphore,
    remembered: Mutex<LruCache<LayerFile, Sha256>>,
}

impl Default for BytesReader {
    fn default() -> Self {
        Self {
            permits: Semaphore::new(HASHING_MAX),
            remembered: Mutex::new(LruCache::new(REMEMBERED_MAX)),
        }
    }
}

impl BytesReader {
    /// Hashes the file that was executed, or says why that is not possible any more.
    pub(super) async fn read(self: Arc<Self>, request: Request) -> Bytes {
        let Ok(_permit) = self.permits.acquire().await else {
            return Bytes::Gone("the daemon is stopping".to_owned());
        };
        let reader = Arc::clone(&self);
        let read = tokio::task::spawn_blocking(move || reader.read_blocking(&request)).await;
        match read {
            Ok(Ok(sha256)) => Bytes::Hashed(sha256),
            Ok(Err(reason)) => Bytes::Gone(reason),
            Err(error) => Bytes::Gone(format!("hashing it failed: {error}")),
        }
    }

    fn read_blocking(&self, request: &Request) -> Result<Sha256, String> {
        let (file, metadata) = find(request)?;
        let key = request.layers.map(|layers| LayerFile {
            layers,
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        });
        if let Some(key) = key
            && let Some(sha256) = self.remembered().get(&key)
        {
            return Ok(*sha256);
        }
        let began = SystemTime::now();
        let sha256 = hash(file)?;
        if let Some(key) = key
            && is_settled(key.changed, began)
        {
            self.remembered().put(key, sha256);
        }
        Ok(sha256)
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, LruCache<LayerFile, Sha256>> {
        self.remembered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of what was held, the file that was executed and still is what it was then.
fn find(request: &Request) -> Result<(File, std::fs::Metadata), String> {
    let facts = &request.facts;
    let mut reason = "no descriptor of it was held and the process had gone".to_owned();
    for held in &request.held {
        let file = match readable(held) {
            Ok(file) => file,
            Err(error) => {
                reason = format!("it could not be opened for reading: {error}");
                continue;
            }
        };
        let metadata = file
            .metadata()
            .map_err(|error| format!("it could not be examined: {error}"))?;
        if metadata.ino() != facts.inode && metadata.ino() != facts.real_inode {
            continue;
        }
        if !metadata.is_file() {
            return Err("it is not a regular file".to_owned());
        }
        if metadata.size() > FILE_BYTES_MAX {
            return Err(format!(
                "it has {} bytes, at most {FILE_BYTES_MAX} are hashed",
                metadata.size()
            ));
        }
        // In a lower layer the kernel's facts are the overlay inode's and may be stale.
        let same = request.layers.is_some()
            || (metadata.size() == facts.size
                && metadata.mtime() == facts.modified_s
                && metadata.mtime_nsec() == i64::from(facts.modified_ns));
        if !same {
            return Err(
                "it was changed after it was executed and before it could be read".to_owned(),
            );
        }
        return Ok((file, metadata));
    }
    Err(reason)
}

/// fanotify's descriptors can be read; one of `/proc/PID/exe` is a path only, since opening a
/// container's file may block.
fn readable(held: &OwnedFd) -> std::io::Result<File> {
    let flags = OFlag::from_bits_retain(fcntl(held.as_fd(), FcntlArg::F_GETFL)?);
    if flags.contains(OFlag::O_PATH) {
        File::open(format!("/proc/self/fd/{}", held.as_raw_fd()))
    } else {
        Ok(File::from(held.try_clone()?))
    }
}

fn hash(mut file: File) -> Result<Sha256, String> {
    let mut hasher = sha2::Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut total = 0;
    loop {
        let read = file
            .read(&mut chunk)
            .map_err(|error| format!("it could not be read: {error}"))?;
        let Some(bytes) = chunk.get(..read).filter(|bytes| !bytes.is_empty()) else {
            break;
        };
        total += bytes.len() as u64;
        if total > FILE_BYTES_MAX {
            return Err(format!(
                "it grew above {FILE_BYTES_MAX} bytes while it was hashed"
            ));
        }
        hasher.update(bytes);
    }
    Ok(Sha256(hasher.finalize().into()))
}

fn is_settled(changed: (i64, i64), began: SystemTime) -> bool {
    let Ok(began) = began.duration_since(UNIX_EPOCH) else {
        return false;
    };
    let (Ok(seconds), Ok(nanoseconds)) = (u64::try_from(changed.0), u32::try_from(changed.1))
    else {
        return false;
    };
    Duration::new(seconds, nanoseconds) + TICK < began
}
