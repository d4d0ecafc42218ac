//! Asks registries for blobs that containerd does not have, where that is configured, while what was
//! unpacked is good enough to judge by.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lru::LruCache;
use monitor_api::v1;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use crate::{
    containers::{Container, ImageId},
    digest::Digest,
    image::{contents::Contents, error::ContentsError, store::ImageStore},
    registry::{Registry, Repository},
};

/// Images that are fetched or wait for it; of more, the next use asks again.
const FETCHING_MAX: usize = 64;

/// Images of which it is remembered that they could not be fetched; of more, the longest not asked
/// for are tried again early.
const REMEMBERED_MAX: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// How long the first verdict on an image waits for it. Then it is judged by what was unpacked, until
/// all has come.
const WAITING_TIME_MAX: Duration = Duration::from_secs(5);

/// How long an image that could not be fetched is left alone; doubled each time.
const PAUSE_MIN: Duration = Duration::from_secs(10);
/// See [`PAUSE_MIN`].
const PAUSE_MAX: Duration = Duration::from_secs(600);

/// See the module.
pub(super) struct Fetcher {
    images: ImageStore,
    registry: Registry,
    state: Mutex<State>,
}

/// An image of a namespace of containerd.
type Key = (String, Digest);

struct State {
    known: LruCache<Key, Progress>,
    fetching: usize,
    /// Images that could not be fetched, each time.
    failed: u64,
    /// Why the last one could not.
    error: String,
}

#[derive(Clone)]
enum Progress {
    Fetching {
        /// Ends when it does.
        ended: watch::Receiver<()>,
        wait_until: Instant,
    },
    Failed {
        again: Instant,
        pause: Duration,
    },
}

impl Fetcher {
    pub(super) fn new(images: ImageStore, registry: Registry) -> Arc<Self> {
        Arc::new(Self {
            images,
            registry,
            state: Mutex::new(State {
                known: LruCache::new(REMEMBERED_MAX),
                fetching: 0,
                failed: 0,
                error: String::new(),
            }),
        })
    }

    /// What the image of `container` holds, if its registry tells in time; else that goes on.
    pub(super) async fn fetch(
        self: &Arc<Self>,
        container: &Container,
        image: &ImageId,
    ) -> Option<Arc<Contents>> {
        let (mut ended, wait_until) = self.begin(container, image)?;
        // Either way it is asked what came of it.
        let _ = timeout_at(wait_until, ended.changed()).await;
        let found = self.images.peek(&container.runtime_namespace, image)?;
        found.ok()
    }

    fn begin(
        self: &Arc<Self>,
        container: &Container,
        image: &ImageId,
    ) -> Option<(watch::Receiver<()>, Instant)> {
        let key = (container.runtime_namespace.clone(), image.manifest);
        let now = Instant::now();
        let mut state = self.state();
        let (wait_until, pause) = match state.known.get(&key).cloned() {
            Some(Progress::Fetching { ended, wait_until }) => return Some((ended, wait_until)),
            Some(Progress::Failed { again, .. }) if now < again => return None,
            // What was not there in time once need not be waited for again.
            Some(Progress::Failed { pause, .. }) => (now, pause.saturating_mul(2).min(PAUSE_MAX)),
            None => (now + WAITING_TIME_MAX, PAUSE_MIN),
        };
        if state.fetching >= FETCHING_MAX {
            return None;
        }
        let reference = container.image_reference.as_deref().unwrap_or_default();
        let repository = match Repository::of(reference) {
            Ok(repository) => repository,
            Err(error) => {
                state.failed(key, pause, &error.to_string());
                return None;
            }
        };
        let (end, ended) = watch::channel(());
        let progress = Progress::Fetching {
            ended: ended.clone(),
            wait_until,
        };
        state.known.put(key.clone(), progress);
        state.fetching += 1;
        drop(state);
        let (fetcher, image) = (Arc::clone(self), image.clone());
        tokio::spawn(async move {
            let registry = repository.registry().to_owned();
            let origin = fetcher.registry.origin(repository);
            let fetched = fetcher.images.fetch(&key.0, &image, &origin).await;
            fetcher.ended(key, &registry, pause, fetched);
            drop(end);
        });
        Some((ended, wait_until))
    }

    fn ended(
        &self,
        key: Key,
        registry: &str,
        pause: Duration,
        fetched: Result<Arc<Contents>, ContentsError>,
    ) {
        let mut state = self.state();
        state.fetching = state.fetching.saturating_sub(1);
        match fetched {
            Ok(_) => {
                tracing::info!(registry, manifest = %key.1, "image is known by blobs from its registry");
                state.known.pop(&key);
            }
            Err(error) => state.failed(key, pause, &format!("from registry {registry}: {error}")),
        }
    }

    /// What became of it so far.
    pub(super) fn status(&self) -> v1::status::Registry {
        let layers = self.images.stats().fetched;
        let state = self.state();
        v1::status::Registry {
            layers,
            bytes: self.registry.bytes(),
            fetching: u64::try_from(state.fetching).unwrap_or(u64::MAX),
            failed: state.failed,
            error: state.error.clone(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that is done under the lock can leave it half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn failed(&mut self, key: Key, pause: Duration, error: &str) {
        tracing::warn!(
            manifest = %key.1,
            error,
            again_in_seconds = pause.as_secs(),
            "image cannot be read from its registry, and is judged by what was unpacked"
        );
        self.failed += 1;
        error.clone_into(&mut self.error);
        let again = Instant::now() + pause;
        self.known.put(key, Progress::Failed { again, pause });
    }
}
