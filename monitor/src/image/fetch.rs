//! Contents of images whose blobs the node does not have any more, from where they came from.

use std::sync::Arc;

use tokio::{runtime::Handle, task};

use super::{
    blobs::{BlobReader, Origin, Part},
    contents::Contents,
    documents::StackLayer,
    error::{Cause, ContentsError},
    layer::Layer,
    store::{ImageStore, Inner, without_index},
};
use crate::containers::ImageId;

/// Images fetched at once, each blob after blob. Apart from builds, so that what is at hand need not
/// wait for a network.
pub(super) const FETCHES_MAX: usize = 2;

impl ImageStore {
    /// The contents of an image, with the blobs that `namespace` lacks read from `origin`; from then
    /// on [`Self::contents`] has them. Layers that came are kept also when others did not. A failure
    /// is not remembered.
    pub async fn fetch(
        &self,
        namespace: &str,
        image: &ImageId,
        origin: &Arc<dyn Origin>,
    ) -> Result<Arc<Contents>, ContentsError> {
        let fetched = self.inner.fetch(namespace, image, origin).await;
        let mut state = self.inner.state();
        fetched
            .map(|contents| state.keep(&without_index(image), contents))
            .map_err(|cause| ContentsError {
                manifest: image.manifest,
                cause: Arc::new(cause),
            })
    }
}

impl Inner {
    async fn fetch(
        self: &Arc<Self>,
        namespace: &str,
        image: &ImageId,
        origin: &Arc<dyn Origin>,
    ) -> Result<Arc<Contents>, Cause> {
        let turn = self.fetches.acquire().await;
        let _turn = turn.map_err(|_| Cause::Interrupted)?;
        let stack = self.stack(namespace, image, Some(&**origin)).await?;
        let mut layers = Vec::with_capacity(stack.layers.len());
        for layer in &stack.layers {
            let here = self.layer(namespace, layer).await;
            layers.push(match here {
                Err(cause) if cause.missing_blob().is_some() => {
                    self.fetch_layer(layer, &**origin).await?
                }
                here => here?,
            });
        }
        Ok(Arc::new(Contents::new(image.clone(), layers)))
    }

    async fn fetch_layer(
        self: &Arc<Self>,
        layer: &StackLayer,
        origin: &dyn Origin,
    ) -> Result<Arc<Layer>, Cause> {
        let StackLayer {
            blob,
            bytes,
            diff_id,
        } = *layer;
        let reader = BlobReader::new(Handle::current(), origin.open(Part::Layer { bytes }, &blob));
        let store = Arc::clone(self);
        let read = task::spawn_blocking(move || {
            store.build_from(reader, &blob, &diff_id, |stats| &mut stats.fetched)
        });
        let read = read.await.map_err(|_| Cause::Interrupted)?;
        read.map_err(|error| Cause::Layer {
            blob,
            diff_id,
            error,
        })
    }
}
