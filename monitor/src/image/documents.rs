//! The documents that name the layers of an image, and what of them is remembered: containers go on
//! when their image is removed, and its documents with it.

use std::{num::NonZeroUsize, sync::Arc};

use lru::LruCache;

use super::{
    blobs::{BlobError, DocumentError, Origin, Part, read_document},
    error::Cause,
    manifest::{self, Document, Manifest},
    store::{ImageStore, Inner, without_index},
};
use crate::{containers::ImageId, digest::Digest};

/// Images whose layers are remembered, each with at most [`manifest::LAYERS_MAX`]; of more, the
/// documents of the least recently used are read again.
const STACKS_MAX: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// The layers of an image, as its documents name them.
pub(super) struct Stack {
    /// Bottom to top.
    pub(super) layers: Vec<StackLayer>,
}

impl Stack {
    /// `None` if the documents name different numbers of layers.
    fn new(manifest: &Manifest, config: &manifest::Config) -> Option<Self> {
        let (layers, diff_ids) = (&manifest.layers, &config.diff_ids);
        if layers.len() != diff_ids.len() {
            return None;
        }
        let layers = layers.iter().zip(diff_ids);
        let layers = layers.map(|(layer, diff_id)| StackLayer {
            blob: layer.digest,
            bytes: layer.size,
            diff_id: *diff_id,
        });
        Some(Self {
            layers: layers.collect(),
        })
    }
}

/// One of them.
pub(super) struct StackLayer {
    pub(super) blob: Digest,
    /// Of the blob, as the manifest says.
    pub(super) bytes: u64,
    pub(super) diff_id: Digest,
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

    fn put(&mut self, image: &ImageId, stack: &Arc<Stack>) {
        self.0.put(without_index(image), Arc::clone(stack));
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

impl ImageStore {
    /// Takes note of the documents of `image`, which somebody has read and compared with their digests,
    /// so that they need not be read for its contents again.
    pub fn documents_read(&self, image: &ImageId, manifest: &Manifest, config: &manifest::Config) {
        // What does not fit together is found by who asks for the contents.
        let Some(stack) = Stack::new(manifest, config) else {
            return;
        };
        let mut state = self.inner.state();
        // Images that containers use are not driven out by those that are only there.
        if state.stacks.0.len() < STACKS_MAX.get() {
            state.stacks.put(image, &Arc::new(stack));
        }
    }
}

impl Inner {
    /// Which layers an image has, as it was read once, or by its documents; those that the node does
    /// not have are read from `origin`.
    pub(super) async fn stack(
        &self,
        namespace: &str,
        image: &ImageId,
        origin: Option<&dyn Origin>,
    ) -> Result<Arc<Stack>, Cause> {
        let known = self.state().stacks.get(image);
        if let Some(known) = known {
            return Ok(known);
        }
        let (manifest, config) = tokio::try_join!(
            self.manifest(namespace, image, origin),
            self.config(namespace, image, origin)
        )?;
        let stack = Stack::new(&manifest, &config).ok_or(Cause::LayerCount {
            layers: manifest.layers.len(),
            diff_ids: config.diff_ids.len(),
        })?;
        let stack = Arc::new(stack);
        self.state().stacks.put(image, &stack);
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
            Some(stack) => Ok(stack.layers.iter().map(|layer| layer.diff_id).collect()),
            None => Ok(self.config(namespace, image, None).await?.diff_ids),
        }
    }

    /// The manifest, which names the image's config.
    pub(super) async fn manifest(
        &self,
        namespace: &str,
        image: &ImageId,
        origin: Option<&dyn Origin>,
    ) -> Result<Manifest, Cause> {
        let digest = image.manifest;
        let bytes = self
            .document(namespace, Part::Manifest, &digest, origin)
            .await?;
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
        origin: Option<&dyn Origin>,
    ) -> Result<manifest::Config, Cause> {
        let config = self
            .document(namespace, Part::Config, &image.config, origin)
            .await?;
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
        part: Part,
        digest: &Digest,
        origin: Option<&dyn Origin>,
    ) -> Result<Vec<u8>, Cause> {
        let mut document = read_document(self.blobs.open(namespace, digest), digest).await;
        if let (Err(DocumentError::Blob(BlobError::NotFound(_))), Some(origin)) =
            (&document, origin)
        {
            document = read_document(origin.open(part, digest), digest).await;
        }
        document.map_err(|error| Cause::Document {
            what: match part {
                Part::Manifest => "manifest",
                Part::Config => "config",
                Part::Layer { .. } => "layer",
            },
            digest: *digest,
            error,
        })
    }
}
