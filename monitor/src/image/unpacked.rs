//! Contents of images whose layer blobs are gone, from the lower directories of a snapshot.

use std::{
    future::Future,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
};

use super::{
    contents::Contents,
    error::{Cause, ContentsError},
    layer::Layer,
    lower::{self, LowerError},
    store::{ImageStore, Inner, without_index},
};
use crate::{
    containers::{ImageId, SnapshotLayers},
    digest::Digest,
};

/// A container's snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Snapshot {
    /// containerd's namespace.
    pub namespace: String,
    /// The snapshotter that has it.
    pub snapshotter: String,
    /// Its name there.
    pub key: String,
    /// When its container was created, in nanoseconds since 1970: tells it from another of the same
    /// name.
    pub created_unix_ns: i128,
}

/// Which layers a snapshot has.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Layers {
    /// Those of an image.
    Image(ImageId),
    /// Those of an image that cannot be read, as the snapshot's name tells.
    Unread(SnapshotLayers),
}

impl Layers {
    /// Those of an image, whatever index led to it.
    pub fn of(image: &ImageId) -> Self {
        Self::Image(without_index(image))
    }
}

impl ImageStore {
    /// The contents of an image as they were unpacked, for a container with `snapshot`, whose
    /// lower `directories` are given from bottom to top. What was read once is remembered while
    /// anything holds it.
    pub async fn unpacked(
        &self,
        layers: &Layers,
        snapshot: &Snapshot,
        directories: impl Future<Output = Result<Vec<PathBuf>, String>>,
    ) -> Result<Arc<Contents>, ContentsError> {
        if let Some(known) = self.peek_unpacked(layers, snapshot) {
            return Ok(known);
        }
        // Of calls at the same time each reads, and they share the layers that the first reads.
        let read = self
            .inner
            .read_unpacked(layers, snapshot, directories)
            .await;
        let contents = read.map_err(|cause| ContentsError {
            manifest: match layers {
                Layers::Image(image) => image.manifest,
                Layers::Unread(layers) => layers.chain_id,
            },
            cause: Arc::new(cause),
        })?;
        let mut state = self.inner.state();
        state
            .unpacked
            .put((layers.clone(), snapshot.clone()), Arc::clone(&contents));
        Ok(contents)
    }

    /// What [`Self::unpacked`] would answer without reading anything.
    pub fn peek_unpacked(&self, layers: &Layers, snapshot: &Snapshot) -> Option<Arc<Contents>> {
        let mut state = self.inner.state();
        let key = (layers.clone(), snapshot.clone());
        state.unpacked.get(&key).map(Arc::clone)
    }
}

impl Inner {
    async fn read_unpacked(
        self: &Arc<Self>,
        of: &Layers,
        snapshot: &Snapshot,
        directories: impl Future<Output = Result<Vec<PathBuf>, String>>,
    ) -> Result<Arc<Contents>, Cause> {
        let (diff_ids, is_remapped) = match of {
            Layers::Image(image) => {
                let diff_ids = self.diff_ids(&snapshot.namespace, image).await?;
                (Some(diff_ids), false)
            }
            Layers::Unread(layers) => (None, layers.is_remapped),
        };
        let mut directories = directories.await.map_err(Cause::Snapshot)?;
        let is_one_more = |diff_ids: &Vec<Digest>| directories.len() == diff_ids.len() + 1;
        // Remapped users have a snapshot of their own above the image's: the same files with other
        // owners.
        if is_remapped || diff_ids.as_ref().is_some_and(is_one_more) {
            directories.pop();
        }
        let names = match of {
            Layers::Image(_) => diff_ids.unwrap_or_default(),
            // No diff ID can be told from a chain ID; `Contents::layer_of` tells none.
            Layers::Unread(layers) => vec![layers.chain_id; directories.len()],
        };
        if directories.len() != names.len() || directories.is_empty() {
            return Err(Cause::Snapshot(format!(
                "it has {} lower directories, and the image {} layers",
                directories.len(),
                names.len()
            )));
        }
        let mut layers = Vec::with_capacity(directories.len());
        for (directory, name) in directories.iter().zip(&names) {
            let layer = self.lower_layer(directory.clone(), *name).await?;
            layers.push(layer.map_err(Cause::Lower)?);
        }
        let image = match of {
            Layers::Image(image) => Some(image.clone()),
            Layers::Unread(_) => None,
        };
        Ok(Arc::new(Contents::unpacked(image, layers, directories)))
    }

    async fn lower_layer(
        self: &Arc<Self>,
        directory: PathBuf,
        diff_id: Digest,
    ) -> Result<Result<Arc<Layer>, LowerError>, Cause> {
        self.blocking(&self.loads, move |store| {
            store.read_lower(&directory, diff_id)
        })
        .await
    }

    fn read_lower(&self, directory: &Path, diff_id: Digest) -> Result<Arc<Layer>, LowerError> {
        let key = (directory.to_owned(), diff_id);
        let known = self.state().lower_layers.get(&key).and_then(Weak::upgrade);
        if let Some(layer) = known {
            return Ok(layer);
        }
        let layer = Arc::new(lower::read_directory(directory, diff_id)?);
        let mut state = self.state();
        state
            .lower_layers
            .retain(|_, layer| layer.strong_count() > 0);
        state.lower_layers.insert(key, Arc::downgrade(&layer));
        state.stats.unpacked += 1;
        Ok(layer)
    }
}
