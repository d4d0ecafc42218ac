//! Which layers are kept on disk: written when they are read from their blobs, tried again when
//! that failed, removed when no image has them any more.

use std::{
    collections::HashSet,
    mem,
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{runtime::Handle, task, time};

use super::{
    layer::Layer,
    store::{ImageStore, Inner},
};
use crate::digest::Digest;

/// How long a layer that could not be written waits for the next try. Until then it is served from
/// memory while anything uses it.
const AGAIN: Duration = if cfg!(test) {
    Duration::from_millis(20)
} else {
    Duration::from_secs(10)
};

/// What is still to be written.
#[derive(Default)]
pub(super) struct Unsaved {
    layers: HashSet<Digest>,
    is_retrying: bool,
}

impl Unsaved {
    pub(super) fn len(&self) -> usize {
        self.layers.len()
    }
}

impl ImageStore {
    /// Lets go of images, by their manifests, and of these of their layers on disk. Blocks.
    pub fn forget(&self, manifests: &[Digest], layers: &[Digest]) {
        self.inner.state().forget(manifests);
        for diff_id in layers {
            match self.inner.files.remove(diff_id) {
                Ok(true) => {
                    tracing::info!(%diff_id, "index of a layer removed with the last image of it");
                    self.inner.state().stats.removed += 1;
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%diff_id, %error, "index of a layer that no image has cannot be removed; it goes when its room is needed");
                }
            }
        }
    }
}

impl Inner {
    /// Writes a layer, and again later if that fails. Blocks.
    pub(super) fn save(self: &Arc<Self>, runtime: &Handle, layer: &Layer) {
        let diff_id = layer.diff_id();
        let Err(error) = self.files.save(layer, &self.in_memory()) else {
            return;
        };
        tracing::warn!(%diff_id, %error, "layer cannot be kept on disk; this is tried every {} s while it is in use, and its blob is read again at the next start", AGAIN.as_secs());
        let mut state = self.state();
        state.stats.not_saved += 1;
        state.unsaved.layers.insert(diff_id);
        if !mem::replace(&mut state.unsaved.is_retrying, true) {
            runtime.spawn(save_again(Arc::downgrade(self)));
        }
    }

    /// Whether nothing is left to be written.
    fn save_waiting(&self) -> bool {
        let waiting: Vec<Arc<Layer>> = {
            let mut state = self.state();
            let alive: Vec<Arc<Layer>> = state
                .unsaved
                .layers
                .iter()
                .filter_map(|diff_id| state.layers.get(diff_id)?.upgrade())
                .collect();
            state.unsaved.layers = alive.iter().map(|layer| layer.diff_id()).collect();
            alive
        };
        let in_memory = self.in_memory();
        for layer in waiting {
            let diff_id = layer.diff_id();
            if let Err(error) = self.files.save(&layer, &in_memory) {
                tracing::debug!(%diff_id, %error, "layer still cannot be kept on disk");
                break;
            }
            tracing::info!(%diff_id, "layer is kept on disk now");
            self.state().unsaved.layers.remove(&diff_id);
        }
        let mut state = self.state();
        state.unsaved.is_retrying = !state.unsaved.layers.is_empty();
        !state.unsaved.is_retrying
    }

    fn in_memory(&self) -> HashSet<Digest> {
        let state = self.state();
        let alive = state.layers.iter();
        alive
            .filter(|(_, layer)| layer.strong_count() > 0)
            .map(|(diff_id, _)| *diff_id)
            .collect()
    }
}

async fn save_again(store: Weak<Inner>) {
    loop {
        time::sleep(AGAIN).await;
        let Some(store) = store.upgrade() else { return };
        let done = task::spawn_blocking(move || store.save_waiting()).await;
        if done.unwrap_or(false) {
            return;
        }
    }
}
