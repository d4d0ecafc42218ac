//! Reads and hashes the files of an exec, from the descriptors that were held of them.

use std::{
    fs::{File, Metadata},
    io::Read as _,
    num::NonZeroUsize,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{FileExt, MetadataExt},
    },
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use lru::LruCache;
use monitor_common::exec::{FILE_OVERLAY, FILE_UPPER, OVERLAYFS_MAGIC};
use sha2::Digest as _;
use tokio::sync::Semaphore;

use crate::{
    detect::{
        exec::Bytes,
        participant::{Participant, Role},
    },
    digest::{Digest, Sha256},
    sensor::{elf, event::FileFacts, link},
};

/// Files hashed at once; more wait.
const HASHING_MAX: usize = 2;
/// Bytes of a file; a longer one is not hashed, since a sparse file of any length costs nothing
/// to make.
const FILE_BYTES_MAX: u64 = 1 << 30;
/// Bytes of the scripts and interpreters of one exec; what is beyond is not hashed.
const PARTICIPANT_BYTES_MAX: u64 = 64 << 20;
/// Bytes read at once.
const CHUNK_BYTES: usize = 128 << 10;
/// Hashes remembered of files in image layers; the one that was not used longest is hashed again.
const REMEMBERED_MAX: NonZeroUsize = NonZeroUsize::new(65_536).expect("not zero");
/// What the kernel's timestamps lag behind the clock at most, a tick of 10 ms, and some.
const TICK_NS: i128 = 20_000_000;

/// The files of an exec, to be hashed.
pub(super) struct Request {
    /// What the kernel said of the program when it was executed.
    pub(super) facts: FileFacts,
    /// See [`Exec::held`](crate::sensor::event::Exec::held).
    pub(super) held: Vec<OwnedFd>,
    /// See [`Exec::program`](crate::sensor::event::Exec::program).
    pub(super) program: Option<OwnedFd>,
    /// Kernel device number of the container's root.
    pub(super) root_device: Option<u32>,
    /// The image whose layers the container's root has.
    pub(super) layers: Option<Layers>,
}

/// Tells files in the layers of a container's root from those that the container wrote.
#[derive(Clone, Copy)]
pub(super) struct Layers {
    /// Chain ID of the image.
    pub(super) chain_id: Digest,
    /// When the container was created, in nanoseconds since 1970. What it writes has a later change
    /// time, which cannot be set.
    pub(super) created_unix_ns: i128,
}

impl Layers {
    /// Whether the file has not changed since before the container was created.
    fn has(&self, metadata: &Metadata) -> bool {
        let changed_ns =
            i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec());
        changed_ns + TICK_NS < self.created_unix_ns
    }
}

/// What was read of an exec.
pub(super) struct Read {
    pub(super) program: Bytes,
    pub(super) participants: Vec<Participant>,
}

/// A version of a file in a layer on this node's disk. The overlay's device differs for each
/// container, so the image's chain ID stands in for it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct LayerFile {
    chain_id: Digest,
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
    /// Hashes the files of an exec, or says why that is not possible any more.
    pub(super) async fn read(self: Arc<Self>, request: Request) -> Read {
        let failed = |reason: String| Read {
            program: Bytes::Gone(reason),
            participants: Vec::new(),
        };
        let Ok(_permit) = self.permits.acquire().await else {
            return failed("the daemon is stopping".to_owned());
        };
        let reader = Arc::clone(&self);
        tokio::task::spawn_blocking(move || reader.read_blocking(&request))
            .await
            .unwrap_or_else(|error| failed(format!("hashing it failed: {error}")))
    }

    fn read_blocking(&self, request: &Request) -> Read {
        let files: Vec<(File, Metadata)> = request
            .held
            .iter()
            .filter_map(|held| {
                let file = File::from(held.try_clone().ok()?);
                let metadata = file.metadata().ok()?;
                Some((file, metadata))
            })
            .collect();
        let inodes = [request.facts.inode, request.facts.real_inode];
        let is_program = |metadata: &Metadata| inodes.contains(&metadata.ino());
        let program = match files.iter().find(|(_, metadata)| is_program(metadata)) {
            Some((file, metadata)) => self.program(request, file, metadata),
            None => reopened(request)
                .and_then(|(file, metadata)| self.program(request, &file, &metadata)),
        };
        let mut budget = PARTICIPANT_BYTES_MAX;
        let participants = files
            .iter()
            .filter(|(_, metadata)| !is_program(metadata))
            .map(|(file, metadata)| self.participant(request, file, metadata, &mut budget))
            .collect();
        Read {
            program: program.unwrap_or_else(Bytes::Gone),
            participants,
        }
    }

    fn program(
        &self,
        request: &Request,
        file: &File,
        metadata: &Metadata,
    ) -> Result<Bytes, String> {
        let facts = &request.facts;
        // In a lower layer the kernel's facts are the overlay inode's and may be stale.
        let is_layer = facts.flags & (FILE_OVERLAY | FILE_UPPER) == FILE_OVERLAY;
        let same = is_layer
            || (metadata.size() == facts.size
                && metadata.mtime() == facts.modified_s
                && metadata.mtime_nsec() == i64::from(facts.modified_ns));
        if !same {
            return Err(
                "it was changed after it was executed and before it could be read".to_owned(),
            );
        }
        let sha256 = self.sha256(request.layers.as_ref(), file, metadata)?;
        let after = file
            .metadata()
            .map_err(|error| format!("it could not be examined: {error}"))?;
        // Times other than this one can be set back.
        let untouched = is_layer
            || (after.ctime(), after.ctime_nsec())
                == (facts.changed_s, i64::from(facts.changed_ns));
        Ok(if untouched {
            Bytes::Hashed(sha256)
        } else {
            Bytes::Touched(sha256)
        })
    }

    fn participant(
        &self,
        request: &Request,
        file: &File,
        metadata: &Metadata,
        budget: &mut u64,
    ) -> Participant {
        let link = format!("/proc/self/fd/{}", file.as_raw_fd());
        let (path, unlinked) = link::read(Path::new(&link)).unwrap_or_default();
        let mut start = [0; elf::MAGIC.len()];
        let is_elf = file.read_exact_at(&mut start, 0).is_ok() && start == elf::MAGIC;
        let layers = request.layers.as_ref();
        let bytes = if metadata.size() > *budget {
            Err(format!(
                "the files beside the program exceed {PARTICIPANT_BYTES_MAX} bytes"
            ))
        } else {
            *budget -= metadata.size();
            self.sha256(layers, file, metadata)
        };
        Participant {
            role: if is_elf {
                Role::ElfInterpreter
            } else {
                Role::Script
            },
            path,
            unlinked,
            size: metadata.size(),
            is_layer: layers.is_some_and(|layers| layers.has(metadata)),
            bytes: bytes.map_or_else(Bytes::Gone, Bytes::Hashed),
        }
    }

    /// The hash of a file, from memory where its inode is a layer's.
    fn sha256(
        &self,
        layers: Option<&Layers>,
        file: &File,
        metadata: &Metadata,
    ) -> Result<Sha256, String> {
        if !metadata.is_file() {
            return Err("it is not a regular file".to_owned());
        }
        if metadata.size() > FILE_BYTES_MAX {
            return Err(format!(
                "it has {} bytes, at most {FILE_BYTES_MAX} are hashed",
                metadata.size()
            ));
        }
        let key = layers
            .filter(|layers| layers.has(metadata))
            .map(|layers| LayerFile {
                chain_id: layers.chain_id,
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
        let sha256 = hash(file)?;
        if let Some(key) = key {
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

/// The program by the descriptor of `/proc/PID/exe`, which is a path only and may by now be of
/// another file.
fn reopened(request: &Request) -> Result<(File, Metadata), String> {
    let Some(program) = &request.program else {
        return Err("no descriptor of it was held and the process had gone".to_owned());
    };
    // An overlay of the container's own making may have any server below it.
    if request.facts.filesystem_magic == OVERLAYFS_MAGIC
        && request.root_device != Some(request.facts.device)
    {
        return Err("it lies on an overlay that the container mounted".to_owned());
    }
    let file = File::open(format!("/proc/self/fd/{}", program.as_raw_fd()))
        .map_err(|error| format!("it could not be opened for reading: {error}"))?;
    let metadata = file
        .metadata()
        .map_err(|error| format!("it could not be examined: {error}"))?;
    if [request.facts.inode, request.facts.real_inode].contains(&metadata.ino()) {
        Ok((file, metadata))
    } else {
        Err("no descriptor of it was held and the process had executed something else".to_owned())
    }
}

fn hash(mut file: &File) -> Result<Sha256, String> {
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
