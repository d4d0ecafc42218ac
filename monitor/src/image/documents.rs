//! The documents that name the layers of an image, and what of them is remembered: containers go on
//! when their image is removed, and its documents with it.

use std::{num::NonZeroUsize, sync::Arc};

use lru::LruCache;

use super::{
    blobs::read_document,
    error::Cause,
    manifest::{self, Document, Manifest},
    store::{Inner, without_index},
};
use crate::{containers::ImageId, digest::Digest};

/// Images whose layers are remembered, each with at most [`manifest::LAYERS_MAX`]; of more, the
/// documents of the least recently used are read again.
const STACKS_MAX: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// The layers of an image, as its documents name them.
pub(super) struct Stack {
    /// Blob and diff ID of each, bottom to top.
    pub(super) layers: Vec<(Digest, Digest)>,
}

/// Of images without their index.
pub(super) struct Stacks(LruCache<ImageId, Arc<Stack>>);

impl Stacks {
    pub(super) fn new() -> Self {
        Self(LruCache::new(STACKS_MAX))
    }

    fn get(&mut self, image: &ImageId) -> Option<Arc<Stack>> {
        self.0.get(&without_index(image)).map(Arc::clone)
    }

    pub(super) fn forget(&mut self, manifests: &[Digest]) {
        remove(&mut self.0, manifests);
    }
}

/// Takes out what is held of images with these manifests.
pub(super) fn remove<V>(cache: &mut LruCache<ImageId, V>, manifests: &[Digest]) -> Vec<V> {
    let held = cache.iter().map(|(image, _)| image);
    let gone: Vec<ImageId> = held
        .filter(|image| manifests.contains(&image.manifest))
        .cloned()
        .collect();
    gone.iter().filter_map(|image| cache.pop(image)).collect()
}

impl Inner {
    /// Which layers an image has, as it was read once, or by its documents.
    pub(super) async fn stack(
        &self,
        namespace: &str,
        image: &ImageId,
    ) -> Result<Arc<Stack>, Cause> {
        let known = self.state().stacks.get(image);
        if let Some(known) = known {
            return Ok(known);
        }
        let (manifest, config) = tokio::try_join!(
            self.manifest(namespace, image),
            self.config(namespace, image)
        )?;
        if manifest.layers.len() != config.diff_ids.len() {
            let (layers, diff_ids) = (manifest.layers.len(), config.diff_ids.len());
            return Err(Cause::LayerCount { layers, diff_ids });
        }
        let blobs = manifest.layers.iter().map(|layer| layer.digest);
        let stack = Arc::new(Stack {
            layers: blobs.zip(config.diff_ids).collect(),
        });
        let mut state = self.state();
        let key = without_index(image);
        state.stacks.0.put(key, Arc::clone(&stack));
        Ok(stack)
    }

    /// Diff IDs of an image, for which its config is enough.
    pub(super) async fn diff_ids(
        &self,
        namespace: &str,
        image: &ImageId,
    ) -> Result<Vec<Digest>, Cause> {
        let known = self.state().stacks.get(image);
        match known {
            Some(stack) => Ok(stack.layers.iter().map(|(_, diff_id)| *diff_id).collect()),
            None => Ok(self.config(namespace, image).await?.diff_ids),
        }
    }

    /// The manifest, which names the image's config.
    pub(super) async fn manifest(
        &self,
        namespace: &str,
        image: &ImageId,
    ) -> Result<Manifest, Cause> {
        let digest = image.manifest;
        let bytes = self.document(namespace, "manifest", &digest).await?;
        let document = manifest::parse(&bytes);
        let what = "manifest";
        match document.map_err(|error| Cause::Malformed {
            what,
            digest,
            error,
        })? {
            Document::Index(_) => Err(Cause::Index),
            Document::Manifest(manifest) if manifest.config.digest != image.config => {
                Err(Cause::Config {
                    expected: image.config,
                    seen: manifest.config.digest,
                })
            }
            Document::Manifest(manifest) => Ok(manifest),
        }
    }

    /// The config, whose layers are those of the image's chain ID.
    pub(super) async fn config(
        &self,
        namespace: &str,
        image: &ImageId,
    ) -> Result<manifest::Config, Cause> {
        let config = self.document(namespace, "config", &image.config).await?;
        let config = manifest::parse_config(&config).map_err(|error| Cause::Malformed {
            what: "config",
            digest: image.config,
            error,
        })?;
        let seen = manifest::chain_id(&config.diff_ids);
        if seen != Some(image.chain_id) {
            return Err(Cause::ChainId {
                expected: image.chain_id,
                seen,
            });
        }
        Ok(config)
    }

    async fn document(
        &self,
        namespace: &str,
        what: &'static str,
        digest: &Digest,
    ) -> Result<Vec<u8>, Cause> {
        let document = read_document(&*self.blobs, namespace, digest).await;
        document.map_err(|error| Cause::Document {
            what,
            digest: *digest,
            error,
        })
    }
}
