//! Reads and hashes files that became code, from the descriptors that were held of them.

use std::{
    fs::{File, Metadata},
    num::NonZeroUsize,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{FileExt, MetadataExt},
    },
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use lru::LruCache;
use monitor_common::file::{FILE_REMEMBERED, FileVersion};
use tokio::sync::Semaphore;

use super::{
    find::{Wanted, open_held},
    state::Creation,
};
use crate::{
    detect::{file::Bytes, participant::Participant, role::Role, script::HEAD_BYTES},
    digest::{Digest, Sha256},
    image::{capability::FileCapability, lower::FILE_BYTES_MAX},
    sensor::{elf, event::FileFacts, link},
};

/// Files hashed at once that may change or go; more wait.
const HASHING_MAX: usize = 2;
/// Files of lower layers hashed at once beside them; more wait.
const HASHING_LAYERS_MAX: usize = 1;
/// Uses of files of one container that wait for their bytes; of more nothing is read.
const QUEUE_MAX: usize = 256;
/// Containers whose queues are kept apart; one that had no use for longest begins anew.
const QUEUES_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");
/// Bytes of the scripts and interpreters of one exec; what is beyond is not hashed.
const PARTICIPANT_BYTES_MAX: u64 = 64 << 20;
/// Hashes remembered of files in image layers; the one that was not used longest is hashed again.
const REMEMBERED_MAX: NonZeroUsize = NonZeroUsize::new(65_536).expect("not zero");
/// What the kernel's timestamps lag behind the clock at most, a tick of 10 ms, and some.
const TICK_NS: i128 = 20_000_000;

/// The files of one use, to be hashed.
pub(super) struct Request {
    /// Whose it is.
    pub(super) container: Creation,
    /// The used file.
    pub(super) wanted: Wanted,
    /// See [`Exec::held`](crate::sensor::event::Exec::held).
    pub(super) held: Vec<OwnedFd>,
    /// The image whose layers the container's root has.
    pub(super) layers: Option<Layers>,
    /// What was used is memory without a file.
    pub(super) is_anonymous: bool,
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
        changed_unix_ns(metadata) + TICK_NS < self.created_unix_ns
    }
}

/// What was read of one use.
pub(super) struct Read {
    /// The used file.
    pub(super) bytes: Bytes,
    /// Its first bytes; empty if they could not be read.
    pub(super) head: Vec<u8>,
    /// See [`UseFacts::capability`](crate::detect::file::UseFacts::capability).
    pub(super) capability: Option<FileCapability>,
    /// It is of a lower layer and did not change while it was hashed, nor just before, so that what
    /// was found holds for this version of it.
    pub(super) is_settled: bool,
    /// What else took part in an exec.
    pub(super) participants: Vec<Participant>,
}

impl Read {
    fn failed(reason: String) -> Self {
        Self {
            bytes: Bytes::Gone(reason),
            head: Vec::new(),
            capability: None,
            is_settled: false,
            participants: Vec::new(),
        }
    }
}

/// A version of a file in a layer on this node's disk.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum LayerFile {
    /// As the kernel side knows it.
    Version(FileVersion),
    /// By what a descriptor tells. The overlay's device differs for each container, so the image's
    /// chain ID stands in for it.
    Held {
        chain_id: Digest,
        inode: u64,
        size: u64,
        modified: (i64, i64),
        changed: (i64, i64),
    },
}

/// Hashes files.
pub(super) struct BytesReader {
    permits: Semaphore,
    layer_permits: Semaphore,
    queues: Mutex<LruCache<Creation, Arc<Queue>>>,
    remembered: Mutex<LruCache<LayerFile, Sha256>>,
}

/// What of one container waits for its bytes.
struct Queue {
    places: Semaphore,
    turn: Semaphore,
    layer_turn: Semaphore,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            places: Semaphore::new(QUEUE_MAX),
            turn: Semaphore::new(1),
            layer_turn: Semaphore::new(1),
        }
    }
}

impl Default for BytesReader {
    fn default() -> Self {
        Self {
            permits: Semaphore::new(HASHING_MAX),
            layer_permits: Semaphore::new(HASHING_LAYERS_MAX),
            queues: Mutex::new(LruCache::new(QUEUES_MAX)),
            remembered: Mutex::new(LruCache::new(REMEMBERED_MAX)),
        }
    }
}

impl BytesReader {
    /// Hashes the files of a use, or says why that is not possible any more. Of one container one
    /// at a time, so that none can keep the others waiting.
    pub(super) async fn read(self: Arc<Self>, mut request: Request) -> Read {
        let queue =
            Arc::clone(lock(&self.queues).get_or_insert(request.container.clone(), Arc::default));
        let Ok(_place) = queue.places.try_acquire() else {
            return Read::failed(format!(
                "{QUEUE_MAX} files of its container waited to be read already"
            ));
        };
        if request.is_anonymous {
            return Read::failed("memory without a file has no bytes to compare".to_owned());
        }
        // Before its turn, when it may be gone.
        if request.held.is_empty() && request.wanted.path_only.is_none() {
            let held = tokio::task::spawn_blocking(move || {
                request.wanted.hold();
                request
            });
            request = match held.await {
                Ok(held) => held,
                Err(error) => return Read::failed(format!("holding it failed: {error}")),
            };
        }
        // What a container wrote may change or go, and does not wait for what stays.
        let (turn, permits) = if request.wanted.facts.lower_version().is_some() {
            (&queue.layer_turn, &self.layer_permits)
        } else {
            (&queue.turn, &self.permits)
        };
        let (Ok(_turn), Ok(_permit)) = (turn.acquire().await, permits.acquire().await) else {
            return Read::failed("the daemon is stopping".to_owned());
        };
        let reader = Arc::clone(&self);
        tokio::task::spawn_blocking(move || reader.read_blocking(&request))
            .await
            .unwrap_or_else(|error| Read::failed(format!("hashing it failed: {error}")))
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
        let is_wanted = |metadata: &Metadata| request.wanted.is(metadata);
        let mut read = if request.wanted.facts.flags & FILE_REMEMBERED != 0 {
            Read {
                bytes: Bytes::Remembered,
                ..Read::failed(String::new())
            }
        } else {
            match files.iter().find(|(_, metadata)| is_wanted(metadata)) {
                Some((file, metadata)) => self.used(&request.wanted.facts, file, metadata),
                None => open_held(&request.wanted).and_then(|(file, metadata)| {
                    self.used(&request.wanted.facts, &file, &metadata)
                }),
            }
            .unwrap_or_else(Read::failed)
        };
        let mut budget = PARTICIPANT_BYTES_MAX;
        read.participants = files
            .iter()
            .filter(|(_, metadata)| !is_wanted(metadata))
            .map(|(file, metadata)| self.participant(request, file, metadata, &mut budget))
            .collect();
        read
    }

    fn used(&self, facts: &FileFacts, file: &File, metadata: &Metadata) -> Result<Read, String> {
        // Copied up since, a file of a lower layer is not what the descriptor leads to any more.
        let version = facts.lower_version();
        let was_changed = |metadata: &Metadata| {
            (metadata.ctime(), metadata.ctime_nsec())
                != (facts.changed_s, i64::from(facts.changed_ns))
        };
        let is_same = metadata.size() == facts.size
            && metadata.mtime() == facts.modified_s
            && metadata.mtime_nsec() == i64::from(facts.modified_ns)
            && (version.is_none() || !was_changed(metadata));
        if !is_same {
            return Err("it was changed after it was used and before it could be read".to_owned());
        }
        let mut head = vec![0; HEAD_BYTES];
        let length = file.read_at(&mut head, 0).unwrap_or(0);
        head.truncate(length);
        let began_unix_ns = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| i128::try_from(time.as_nanos()).unwrap_or(0));
        let sha256 = self.sha256(version.map(LayerFile::Version), file, metadata)?;
        let after = file
            .metadata()
            .map_err(|error| format!("it could not be examined: {error}"))?;
        let capability = FileCapability::of_file(file);
        if version.is_some() && was_changed(&after) {
            return Err("it was changed while it was read".to_owned());
        }
        Ok(Read {
            // Times other than this one can be set back.
            bytes: if was_changed(&after) {
                Bytes::Touched(sha256)
            } else {
                Bytes::Hashed(sha256)
            },
            head,
            capability,
            is_settled: version.is_some() && changed_unix_ns(&after) + TICK_NS < began_unix_ns,
            participants: Vec::new(),
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
            self.sha256(held_in(layers, metadata), file, metadata)
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

    /// The hash of a file, from memory if it is known to be a layer's.
    fn sha256(
        &self,
        known_as: Option<LayerFile>,
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
        if let Some(known_as) = known_as
            && let Some(sha256) = lock(&self.remembered).get(&known_as)
        {
            return Ok(*sha256);
        }
        let sha256 = Sha256::of_file(file, FILE_BYTES_MAX).map_err(|error| error.to_string())?;
        // Copied up while it was read, the file is not the layer's any more.
        let is_unchanged = file.metadata().is_ok_and(|after| {
            changed_unix_ns(&after) == changed_unix_ns(metadata) && after.size() == metadata.size()
        });
        if let Some(known_as) = known_as.filter(|_| is_unchanged) {
            lock(&self.remembered).put(known_as, sha256);
        }
        Ok(sha256)
    }
}

fn held_in(layers: Option<&Layers>, metadata: &Metadata) -> Option<LayerFile> {
    layers
        .filter(|layers| layers.has(metadata))
        .map(|layers| LayerFile::Held {
            chain_id: layers.chain_id,
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
}

fn changed_unix_ns(metadata: &Metadata) -> i128 {
    i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
