//! What the image of a container holds, by the strongest evidence there is.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use monitor_api::v1;
use tokio::sync::Semaphore;

use super::{bytes::Read, fetching::Fetcher};
use crate::{
    containerd::Client,
    containers::{Container, ImageId},
    detect::file,
    digest::Sha256,
    image::{
        contents::{Contents, Evidence},
        error::ContentsError,
        layer::EntryKind,
        store::ImageStore,
        unpacked::{Layers, Snapshot},
    },
    registry::Registry,
    sensor::event::FileUse,
};

/// How long contents are waited for that containerd does not give.
const WAITING_TIME_MAX: Duration = Duration::from_secs(60);
/// Pause before the contents of an image are asked for again.
const PAUSE: Duration = Duration::from_millis(500);
/// Uses for which files of unpacked layers are hashed at once; more wait.
const HASHING_MAX: usize = 1;

/// Reads contents from layer blobs, and where those are gone from a container's snapshot.
pub(super) struct ContentsReader {
    images: ImageStore,
    containerd: Client,
    fetcher: Option<Arc<Fetcher>>,
    hashing: Semaphore,
}

impl ContentsReader {
    /// `registry` is asked for blobs that containerd does not have.
    pub(super) fn new(images: ImageStore, containerd: Client, registry: Option<Registry>) -> Self {
        Self {
            fetcher: registry.map(|registry| Fetcher::new(images.clone(), registry)),
            images,
            containerd,
            hashing: Semaphore::new(HASHING_MAX),
        }
    }

    /// What became of asking registries, where that is configured.
    pub(super) fn registry(&self) -> Option<v1::status::Registry> {
        Some(self.fetcher.as_ref()?.status())
    }

    /// Contents by image, from blobs alone.
    pub(super) fn images(&self) -> &ImageStore {
        &self.images
    }

    /// What `image` holds, as the image of `container`; asks again while containerd does not answer.
    /// Blobs that are missing are asked for again after a while, so that the evidence is the
    /// stronger one once they are back.
    pub(super) async fn of(
        &self,
        container: &Container,
        image: &ImageId,
    ) -> Result<Arc<Contents>, ContentsError> {
        let began = Instant::now();
        loop {
            let namespace = &container.runtime_namespace;
            match self.images.contents(namespace, image).await {
                Err(error) if error.missing_blob().is_some() => {
                    if let Some(fetcher) = &self.fetcher
                        && let Some(contents) = fetcher.fetch(container, image).await
                    {
                        return Ok(contents);
                    }
                    let layers = Layers::of(image);
                    let unpacked = self.unpacked(container, &layers).await;
                    return unpacked.map_err(|unpacked| error.and(unpacked));
                }
                Err(error) if !error.is_permanent() && began.elapsed() < WAITING_TIME_MAX => {
                    tokio::time::sleep(PAUSE).await;
                }
                result => return result,
            }
        }
    }

    /// What the files of `container` are compared with; `None` if nothing is known of its layers.
    pub(super) async fn of_container(
        &self,
        container: &Container,
    ) -> Option<Result<Arc<Contents>, ContentsError>> {
        if let Some(image) = container.identity.contents_of() {
            return Some(self.of(container, image).await);
        }
        let layers = Layers::Unread(container.unread_layers()?);
        Some(self.unpacked(container, &layers).await)
    }

    async fn unpacked(
        &self,
        container: &Container,
        layers: &Layers,
    ) -> Result<Arc<Contents>, ContentsError> {
        let directories = self.directories(container);
        let snapshot = snapshot(container);
        self.images.unpacked(layers, &snapshot, directories).await
    }

    /// The lower directories of a container's snapshot, from bottom to top.
    pub(super) async fn directories(&self, container: &Container) -> Result<Vec<PathBuf>, String> {
        if container.snapshot_key.is_empty() {
            return Err("its container has none".to_owned());
        }
        let asked = self.containerd.lower_directories(
            &container.runtime_namespace,
            &container.snapshotter,
            &container.snapshot_key,
        );
        asked.await.map_err(|error| error.to_string())
    }

    /// What [`Self::of_container`] would answer without reading anything.
    pub(super) fn peek(&self, container: &Container) -> Option<Arc<Contents>> {
        let Some(image) = container.identity.contents_of() else {
            let layers = Layers::Unread(container.unread_layers()?);
            return self.images.peek_unpacked(&layers, &snapshot(container));
        };
        match self.images.peek(&container.runtime_namespace, image) {
            Some(Ok(contents)) => Some(contents),
            _ => self.peek_unpacked(container, image),
        }
    }

    /// How strong the evidence of a container's image is, as far as that is known.
    pub(super) fn evidence(&self, container: &Container) -> Option<Evidence> {
        self.peek(container).map(|contents| contents.evidence())
    }

    /// What `image` was found to hold by the snapshot of `container`, if it was read.
    pub(super) fn peek_unpacked(
        &self,
        container: &Container,
        image: &ImageId,
    ) -> Option<Arc<Contents>> {
        let layers = Layers::of(image);
        self.images.peek_unpacked(&layers, &snapshot(container))
    }

    /// Reads of unpacked layers what the verdict on a use may ask for: the files at the paths of
    /// what was used, and those that may have the same bytes.
    pub(super) async fn read_for(&self, contents: &Arc<Contents>, used: &FileUse, files: &Read) {
        if contents.evidence() != Evidence::Unpacked {
            return;
        }
        let own = (
            file::path_in_image(used).to_vec(),
            used.file.facts.size,
            files.bytes.sha256(),
        );
        let others = files.participants.iter();
        let others = others.map(|other| (other.path.clone(), other.size, other.bytes.sha256()));
        let wanted: Vec<(Vec<u8>, u64, Option<Sha256>)> = others.chain([own]).collect();
        // Closed by nobody.
        let Ok(_turn) = self.hashing.acquire().await else {
            return;
        };
        let contents = Arc::clone(contents);
        let read = move || {
            for (path, size, seen) in wanted {
                contents.read(&path);
                let is_same = contents.lookup(&path).is_some_and(
                    |found| matches!(found.kind, EntryKind::File { sha256, .. } if sha256 == seen),
                );
                if seen.is_some() && !is_same {
                    contents.read_of_size(size);
                }
            }
        };
        if let Err(error) = tokio::task::spawn_blocking(read).await {
            tracing::error!(%error, "a defect of monitord: unpacked layers could not be read");
        }
    }
}

fn snapshot(container: &Container) -> Snapshot {
    Snapshot {
        namespace: container.runtime_namespace.clone(),
        snapshotter: container.snapshotter.clone(),
        key: container.snapshot_key.clone(),
        created_unix_ns: container.created_unix_ns,
    }
}
