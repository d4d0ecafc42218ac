//! Contents by image: from memory, from disk, or read from the layer blobs.

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use lru::LruCache;
use tokio::{runtime::Handle, sync::Semaphore, task};

use super::{
    blobs::{BlobReader, Blobs},
    contents::Contents,
    disk::LayerFiles,
    documents::{self, StackLayer, Stacks},
    error::{Cause, ContentsError, StoreError},
    fetch::FETCHES_MAX,
    layer::Layer,
    manifest::{self, Manifest},
    saving::Unsaved,
    unpack::{LayerError, read_layer},
    unpacked::{Layers, Snapshot},
};
use crate::{containers::ImageId, digest::Digest};

/// Images whose contents stay in memory while nothing uses them; beyond, and beyond
/// [`MEMORY_BYTES_MAX`], the least recently used go first. Running containers hold theirs.
const IMAGES_MAX: NonZeroUsize = NonZeroUsize::new(64).unwrap();

/// Bytes of the layers of those images; one shared by several counts for each.
const MEMORY_BYTES_MAX: usize = 256 << 20;

/// Layers read from blobs at once; each takes a core. Others wait their turn, in order.
const BUILDS_MAX: usize = 1;

/// Layers read from disk at once. Apart from builds, so that what is at hand need not wait for one.
const LOADS_MAX: usize = 1;

/// Failures remembered; of more, the least recently asked for are tried again early.
const FAILURES_MAX: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// Snapshots whose unpacked contents are remembered; of more, the least recently used are read again,
/// and with them the bytes of their files.
const UNPACKED_MAX: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// How long an image whose bytes are wrong is not read again.
const PERMANENT_FAILURE: Duration = Duration::from_secs(600);

/// How long an image of which a blob is missing or that containerd did not give is not asked for
/// again.
const PASSING_FAILURE: Duration = Duration::from_secs(5);

/// Counters since the start, and what is held now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Images whose contents are kept in memory.
    pub images_in_memory: usize,
    /// Layers in memory.
    pub layers_in_memory: usize,
    /// Bytes that they take.
    pub memory_bytes: usize,
    /// Layers on disk.
    pub layers_on_disk: usize,
    /// Layers read from disk.
    pub loaded: u64,
    /// Layers read from blobs.
    pub built: u64,
    /// Layers read from blobs that the node did not have.
    pub fetched: u64,
    /// Layers read from the directories they were unpacked into.
    pub unpacked: u64,
    /// Files on disk that were corrupt or of another version; their layers are read from blobs.
    pub rebuilt: u64,
    /// Layers that could not be written to disk at first; this is tried again while they are used.
    pub not_saved: u64,
    /// Layers that wait for that.
    pub unsaved: usize,
    /// Images whose contents could not be told, not counting answers from memory.
    pub failed: u64,
    /// Answers that repeated a remembered failure.
    pub failures_repeated: u64,
    /// Layers removed from disk since no image has them any more.
    pub removed: u64,
    /// Images dropped from memory to stay within its bounds.
    pub evicted: u64,
}

/// See the module.
#[derive(Clone)]
pub struct ImageStore {
    pub(super) inner: Arc<Inner>,
}

/// Blobs belong to a namespace, so that the same image can be whole in one and not in another.
type Key = (String, ImageId);

pub(super) struct Inner {
    pub(super) blobs: Arc<dyn Blobs>,
    pub(super) files: LayerFiles,
    pub(super) loads: Arc<Semaphore>,
    builds: Arc<Semaphore>,
    pub(super) fetches: Semaphore,
    state: Mutex<State>,
}

pub(super) struct State {
    images: LruCache<ImageId, Arc<Contents>>,
    image_bytes: usize,
    // All layers that anything holds, so that images share them.
    pub(super) layers: HashMap<Digest, Weak<Layer>>,
    // By the directory that holds it and its diff ID, likewise.
    pub(super) lower_layers: HashMap<(PathBuf, Digest), Weak<Layer>>,
    pub(super) stacks: Stacks,
    pub(super) unpacked: LruCache<(Layers, Snapshot), Arc<Contents>>,
    pub(super) unsaved: Unsaved,
    failures: LruCache<Key, Failure>,
    reading: HashMap<Key, Weak<tokio::sync::Mutex<()>>>,
    pub(super) stats: Stats,
}

struct Failure {
    error: ContentsError,
    until: Instant,
}

impl ImageStore {
    /// Keeps layers in `directory`, which it makes if needed, and reads what is missing from
    /// `blobs`.
    pub fn open(directory: &Path, blobs: Arc<dyn Blobs>) -> Result<Self, StoreError> {
        let files = LayerFiles::open(directory).map_err(|source| StoreError {
            directory: directory.to_owned(),
            source,
        })?;
        Ok(Self {
            inner: Arc::new(Inner {
                blobs,
                files,
                loads: Arc::new(Semaphore::new(LOADS_MAX)),
                builds: Arc::new(Semaphore::new(BUILDS_MAX)),
                fetches: Semaphore::new(FETCHES_MAX),
                state: Mutex::new(State {
                    images: LruCache::new(IMAGES_MAX),
                    image_bytes: 0,
                    layers: HashMap::new(),
                    lower_layers: HashMap::new(),
                    stacks: Stacks::new(),
                    unpacked: LruCache::new(UNPACKED_MAX),
                    unsaved: Unsaved::default(),
                    failures: LruCache::new(FAILURES_MAX),
                    reading: HashMap::new(),
                    stats: Stats::default(),
                }),
            }),
        })
    }

    /// The contents of an image whose blobs are in `namespace`. A failure is remembered: for 600 s
    /// if the bytes are wrong, for 5 s if containerd did not give them.
    pub async fn contents(
        &self,
        namespace: &str,
        image: &ImageId,
    ) -> Result<Arc<Contents>, ContentsError> {
        let key = (namespace.to_owned(), without_index(image));
        if let Some(known) = self.inner.known(&key) {
            return known;
        }
        // Of calls at the same time one reads and the others find what it found.
        let reading = self.inner.state().reading(&key);
        let _turn = reading.lock().await;
        if let Some(known) = self.inner.known(&key) {
            return known;
        }
        let outcome = self.inner.read(namespace, image).await;
        self.inner.remember(key, outcome)
    }

    /// An image's manifest, read now.
    pub async fn read_manifest(&self, namespace: &str, image: &ImageId) -> Result<Manifest, Cause> {
        self.inner.manifest(namespace, image, None).await
    }

    /// An image's config, read now.
    pub async fn read_config(
        &self,
        namespace: &str,
        image: &ImageId,
    ) -> Result<manifest::Config, Cause> {
        self.inner.config(namespace, image, None).await
    }

    /// Reads a layer blob now, whatever is known of it, and checks both its digests.
    pub async fn read_layer_again(
        &self,
        namespace: &str,
        blob: &Digest,
        diff_id: &Digest,
    ) -> Result<(), Cause> {
        let (blob, diff_id, namespace) = (*blob, *diff_id, namespace.to_owned());
        let runtime = Handle::current();
        let read = self.inner.blocking(&self.inner.builds, move |store| {
            let reader = BlobReader::new(runtime, store.blobs.open(&namespace, &blob));
            read_layer(reader, &blob, &diff_id).map(drop)
        });
        read.await?.map_err(|error| Cause::Layer {
            blob,
            diff_id,
            error,
        })
    }

    /// What [`Self::contents`] would answer without reading anything.
    pub fn peek(
        &self,
        namespace: &str,
        image: &ImageId,
    ) -> Option<Result<Arc<Contents>, ContentsError>> {
        let image = without_index(image);
        let state = self.inner.state();
        if let Some(contents) = state.images.peek(&image) {
            return Some(Ok(Arc::clone(contents)));
        }
        let key = (namespace.to_owned(), image);
        state
            .failures
            .peek(&key)
            .map(|failure| Err(failure.error.clone()))
    }

    /// Counters. Lists the directory, so that it blocks for a moment.
    pub fn stats(&self) -> Stats {
        let layers_on_disk = self.inner.files.count().unwrap_or(0);
        let state = self.inner.state();
        let layers = || state.layers.values().filter_map(Weak::upgrade);
        Stats {
            images_in_memory: state.images.len(),
            layers_in_memory: layers().count(),
            memory_bytes: layers().map(|layer| layer.memory_bytes()).sum(),
            layers_on_disk,
            unsaved: state.unsaved.len(),
            ..state.stats
        }
    }
}

/// The image itself: the index depends on the reference that led to it.
pub(super) fn without_index(image: &ImageId) -> ImageId {
    ImageId {
        index: None,
        ..image.clone()
    }
}

impl Inner {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that is done under the lock can leave it half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self, key: &Key) -> Option<Result<Arc<Contents>, ContentsError>> {
        let mut state = self.state();
        if let Some(contents) = state.images.get(&key.1) {
            return Some(Ok(Arc::clone(contents)));
        }
        let failure = state.failures.get(key)?;
        if failure.until <= Instant::now() {
            state.failures.pop(key);
            return None;
        }
        let error = failure.error.clone();
        state.stats.failures_repeated += 1;
        Some(Err(error))
    }

    fn remember(
        &self,
        key: Key,
        outcome: Result<Arc<Contents>, Cause>,
    ) -> Result<Arc<Contents>, ContentsError> {
        let mut state = self.state();
        match outcome {
            Ok(contents) => Ok(state.keep(&key.1, contents)),
            Err(cause) => {
                let error = ContentsError {
                    manifest: key.1.manifest,
                    cause: Arc::new(cause),
                };
                let permanent = error.is_permanent();
                let span = if permanent {
                    PERMANENT_FAILURE
                } else {
                    PASSING_FAILURE
                };
                let failure = Failure {
                    error: error.clone(),
                    until: Instant::now() + span,
                };
                state.failures.put(key, failure);
                state.stats.failed += 1;
                Err(error)
            }
        }
    }

    async fn read(
        self: &Arc<Self>,
        namespace: &str,
        image: &ImageId,
    ) -> Result<Arc<Contents>, Cause> {
        let stack = self.stack(namespace, image, None).await?;
        let mut layers = Vec::with_capacity(stack.layers.len());
        for layer in &stack.layers {
            layers.push(self.layer(namespace, layer).await?);
        }
        Ok(Arc::new(Contents::new(image.clone(), layers)))
    }

    /// A layer from memory, else from disk, else from its blob.
    pub(super) async fn layer(
        self: &Arc<Self>,
        namespace: &str,
        layer: &StackLayer,
    ) -> Result<Arc<Layer>, Cause> {
        let (blob, diff_id, namespace) = (layer.blob, layer.diff_id, namespace.to_owned());
        if let Some(layer) = self.shared(&diff_id) {
            return Ok(layer);
        }
        let loaded = self
            .blocking(&self.loads, move |store| store.load(&diff_id))
            .await?;
        if let Some(layer) = loaded {
            return Ok(layer);
        }
        let runtime = Handle::current();
        let built = self.blocking(&self.builds, move |store| {
            store.build(runtime, &namespace, &blob, &diff_id)
        });
        built.await?.map_err(|error| Cause::Layer {
            blob,
            diff_id,
            error,
        })
    }

    pub(super) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        turns: &Arc<Semaphore>,
        work: impl FnOnce(&Arc<Self>) -> T + Send + 'static,
    ) -> Result<T, Cause> {
        let turn = Arc::clone(turns)
            .acquire_owned()
            .await
            .map_err(|_| Cause::Interrupted)?;
        let store = Arc::clone(self);
        let done = task::spawn_blocking(move || {
            // Held to the end also when the caller goes away, so that the bound holds.
            let _turn = turn;
            work(&store)
        });
        done.await.map_err(|_| Cause::Interrupted)
    }

    fn load(&self, diff_id: &Digest) -> Option<Arc<Layer>> {
        if let Some(layer) = self.shared(diff_id) {
            return Some(layer);
        }
        match self.files.load(diff_id) {
            Ok(layer) => {
                let layer = layer?;
                let mut state = self.state();
                state.stats.loaded += 1;
                Some(state.share(layer))
            }
            Err(error) => {
                let path = self.files.path(diff_id);
                let path = path.display();
                tracing::warn!(%path, %error, "kept layer is unusable, reading its blob again");
                if let Err(error) = self.files.remove(diff_id) {
                    tracing::warn!(%path, %error, "unusable layer cannot be removed");
                }
                self.state().stats.rebuilt += 1;
                None
            }
        }
    }

    fn build(
        self: &Arc<Self>,
        runtime: Handle,
        namespace: &str,
        blob: &Digest,
        diff_id: &Digest,
    ) -> Result<Arc<Layer>, LayerError> {
        // Another image of the same layer may have been first.
        if let Some(layer) = self.shared(diff_id) {
            return Ok(layer);
        }
        let reader = BlobReader::new(runtime, self.blobs.open(namespace, blob));
        self.build_from(reader, blob, diff_id, |stats| &mut stats.built)
    }

    pub(super) fn build_from(
        self: &Arc<Self>,
        reader: BlobReader,
        blob: &Digest,
        diff_id: &Digest,
        count: fn(&mut Stats) -> &mut u64,
    ) -> Result<Arc<Layer>, LayerError> {
        let runtime = reader.runtime().clone();
        let layer = read_layer(reader, blob, diff_id)?;
        let layer = {
            let mut state = self.state();
            *count(&mut state.stats) += 1;
            state.share(layer)
        };
        self.save(&runtime, &layer);
        Ok(layer)
    }

    fn shared(&self, diff_id: &Digest) -> Option<Arc<Layer>> {
        self.state().layers.get(diff_id)?.upgrade()
    }
}

impl State {
    fn share(&mut self, layer: Layer) -> Arc<Layer> {
        let layer = Arc::new(layer);
        self.layers.retain(|_, layer| layer.strong_count() > 0);
        self.layers.insert(layer.diff_id(), Arc::downgrade(&layer));
        layer
    }

    fn reading(&mut self, key: &Key) -> Arc<tokio::sync::Mutex<()>> {
        if let Some(reading) = self.reading.get(key).and_then(Weak::upgrade) {
            return reading;
        }
        let reading = Arc::default();
        self.reading.retain(|_, reading| reading.strong_count() > 0);
        self.reading.insert(key.clone(), Arc::downgrade(&reading));
        reading
    }

    pub(super) fn keep(&mut self, image: &ImageId, contents: Arc<Contents>) -> Arc<Contents> {
        // Of calls at the same time the first one's stays, so that all hold the same.
        if let Some(first) = self.images.get(image) {
            return Arc::clone(first);
        }
        self.image_bytes += bytes_of(&contents);
        if let Some((_, dropped)) = self.images.push(image.clone(), Arc::clone(&contents)) {
            self.drop_image(&dropped);
        }
        while self.image_bytes > MEMORY_BYTES_MAX && self.images.len() > 1 {
            let Some((_, dropped)) = self.images.pop_lru() else {
                break;
            };
            self.drop_image(&dropped);
        }
        contents
    }

    pub(super) fn forget(&mut self, manifests: &[Digest]) {
        self.stacks.forget(manifests);
        for contents in documents::remove(&mut self.images, manifests) {
            self.image_bytes = self.image_bytes.saturating_sub(bytes_of(&contents));
        }
    }

    fn drop_image(&mut self, contents: &Contents) {
        self.image_bytes = self.image_bytes.saturating_sub(bytes_of(contents));
        self.stats.evicted += 1;
    }
}

fn bytes_of(contents: &Contents) -> usize {
    contents
        .layers()
        .iter()
        .map(|layer| layer.memory_bytes())
        .sum()
}
