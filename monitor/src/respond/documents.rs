//! The documents of the image that an order goes to: read from containerd, or from a registry what
//! containerd does not have, and compared with their digests.

use std::{collections::HashMap, sync::Arc};

use super::plan::Pull;
use crate::{
    containerd::{Blob, Client, ContainerdError},
    containers::{ImageId, catalog::Image},
    digest::Digest,
    image::{
        blobs::{BlobError, Blobs, DocumentError, Origin, Part, read_document},
        manifest::{self, Descriptor, Document, Manifest, ManifestError, choose_platform},
    },
};

/// Bytes of all blobs of an image that is pulled; a larger one is refused.
pub const IMAGE_BYTES_MAX: u64 = 64 << 30;

const LABEL_CONFIG: &str = "containerd.io/gc.ref.content.config";
const LABEL_LAYER: &str = "containerd.io/gc.ref.content.l.";
const LABEL_MANIFEST: &str = "containerd.io/gc.ref.content.m.";

/// An image's documents cannot be had or used.
#[derive(Debug, thiserror::Error)]
pub enum DocumentsError {
    /// One cannot be read.
    #[error("{0}: {1}")]
    Read(Digest, DocumentError),
    /// One is not what it should be.
    #[error("{0}: {1}")]
    Malformed(Digest, ManifestError),
    /// The image has no part for this node.
    #[error("index {0} has nothing for this platform")]
    Platform(Digest),
    /// An index within an index.
    #[error("index {0} leads to another index")]
    Nested(Digest),
    /// The config and the manifest are of different images.
    #[error("manifest {0} has another number of layers than its config, or none")]
    Layers(Digest),
    /// Another length than the document that names it says.
    #[error("{digest} has {seen} bytes, not {stated} as is said where it is named")]
    Size {
        /// What.
        digest: Digest,
        /// How long it is.
        seen: u64,
        /// How long it is said to be.
        stated: u64,
    },
    /// Larger than an order may bring here.
    #[error("manifest {0} names more than {IMAGE_BYTES_MAX} bytes")]
    TooLarge(Digest),
}

/// A document and what it holds.
#[derive(Clone, Debug)]
pub struct Text {
    /// How it is stored.
    pub blob: Blob,
    /// Its bytes, which have the blob's digest.
    pub bytes: Vec<u8>,
    /// The labels that keep what it names from being cleared away by containerd.
    pub labels: HashMap<String, String>,
}

/// The documents of one image of this platform.
#[derive(Clone, Debug)]
pub struct Documents {
    /// The index that leads to the manifest, if that is what was asked for.
    pub index: Option<Text>,
    /// The manifest.
    pub manifest: Text,
    /// The config.
    pub config: Text,
    /// The layers, bottom to top.
    pub layers: Vec<Blob>,
    /// What the container is created from.
    pub image: Arc<Image>,
}

/// Where documents come from.
pub struct Reader<'a> {
    /// containerd's blobs, asked first.
    pub blobs: &'a dyn Blobs,
    /// containerd's namespace.
    pub namespace: &'a str,
    /// Asked for what containerd does not have.
    pub origin: Option<&'a dyn Origin>,
}

impl Reader<'_> {
    /// The documents that an index or a manifest leads to.
    ///
    /// # Errors
    ///
    /// See [`DocumentsError`].
    pub async fn read(&self, target: &Digest) -> Result<Documents, DocumentsError> {
        let bytes = self.document(Part::Manifest, target).await?;
        let (index, (digest, bytes, manifest)) = match parsed(target, &bytes)? {
            Document::Manifest(manifest) => (None, (*target, bytes, manifest)),
            Document::Index(manifests) => {
                let chosen = choose_platform(&manifests);
                let chosen = chosen.ok_or(DocumentsError::Platform(*target))?;
                let below = self.document(Part::Manifest, &chosen.digest).await?;
                is_as_stated(chosen, &below)?;
                let Document::Manifest(manifest) = parsed(&chosen.digest, &below)? else {
                    return Err(DocumentsError::Nested(*target));
                };
                let names = [(format!("{LABEL_MANIFEST}0"), chosen.digest)];
                let index = text(target, bytes, names)?;
                (Some(index), (chosen.digest, below, manifest))
            }
        };
        let named = &manifest.config;
        let config_bytes = self.document(Part::Config, &named.digest).await?;
        is_as_stated(named, &config_bytes)?;
        let config = manifest::parse_config(&config_bytes)
            .map_err(|error| DocumentsError::Malformed(named.digest, error))?;
        let chain_id = manifest::chain_id(&config.diff_ids)
            .filter(|_| config.diff_ids.len() == manifest.layers.len())
            .ok_or(DocumentsError::Layers(digest))?;
        let layers: Vec<Blob> = manifest.layers.iter().map(blob).collect();
        let bytes_all = layers
            .iter()
            .try_fold(0_u64, |sum, it| sum.checked_add(it.size));
        if bytes_all.is_none_or(|bytes| bytes > IMAGE_BYTES_MAX) {
            return Err(DocumentsError::TooLarge(digest));
        }
        let id = ImageId {
            manifest: digest,
            config: named.digest,
            chain_id,
            index: None,
        };
        let config_text = Text {
            blob: blob(named),
            bytes: config_bytes,
            labels: HashMap::new(),
        };
        Ok(Documents {
            index,
            manifest: text(&digest, bytes, names(&manifest))?,
            config: config_text,
            layers,
            image: Arc::new(Image { id, config }),
        })
    }

    async fn document(&self, part: Part, digest: &Digest) -> Result<Vec<u8>, DocumentsError> {
        let mut read = read_document(self.blobs.open(self.namespace, digest), digest).await;
        if let (Err(DocumentError::Blob(BlobError::NotFound(_))), Some(origin)) =
            (&read, self.origin)
        {
            read = read_document(origin.open(part, digest), digest).await;
        }
        read.map_err(|error| DocumentsError::Read(*digest, error))
    }
}

impl Documents {
    /// The documents, each before those that name it.
    pub fn texts(&self) -> impl Iterator<Item = &Text> {
        [&self.config, &self.manifest]
            .into_iter()
            .chain(&self.index)
    }

    /// What of the image containerd does not have, of which `target` is the digest that is approved.
    ///
    /// # Errors
    ///
    /// Those of the calls.
    pub async fn lacking(
        &self,
        client: &Client,
        namespace: &str,
        target: Digest,
    ) -> Result<Pull, ContainerdError> {
        let mut pull = Pull {
            target,
            blobs: 0,
            bytes: 0,
        };
        let mut all: Vec<&Blob> = self.texts().map(|text| &text.blob).collect();
        all.extend(&self.layers);
        all.sort_unstable_by_key(|blob| blob.digest);
        all.dedup_by_key(|blob| blob.digest);
        for blob in all {
            if !client.has_blob(namespace, &blob.digest).await? {
                pull.blobs += 1;
                pull.bytes = pull.bytes.saturating_add(blob.size);
            }
        }
        Ok(pull)
    }
}

fn parsed(digest: &Digest, bytes: &[u8]) -> Result<Document, DocumentsError> {
    manifest::parse(bytes).map_err(|error| DocumentsError::Malformed(*digest, error))
}

fn text(
    digest: &Digest,
    bytes: Vec<u8>,
    names: impl IntoIterator<Item = (String, Digest)>,
) -> Result<Text, DocumentsError> {
    let kind = manifest::media_type(&bytes);
    let kind = kind.map_err(|error| DocumentsError::Malformed(*digest, error))?;
    let labels = names.into_iter();
    Ok(Text {
        blob: Blob {
            media_type: kind.to_owned(),
            digest: *digest,
            size: length(&bytes),
        },
        labels: labels.map(|(label, it)| (label, it.to_string())).collect(),
        bytes,
    })
}

fn names(manifest: &Manifest) -> Vec<(String, Digest)> {
    let layers = manifest.layers.iter().enumerate();
    let layers = layers.map(|(at, layer)| (format!("{LABEL_LAYER}{at}"), layer.digest));
    let config = (LABEL_CONFIG.to_owned(), manifest.config.digest);
    layers.chain([config]).collect()
}

fn blob(named: &Descriptor) -> Blob {
    Blob {
        media_type: named.media_type.clone(),
        digest: named.digest,
        size: named.size,
    }
}

fn is_as_stated(named: &Descriptor, bytes: &[u8]) -> Result<(), DocumentsError> {
    let seen = length(bytes);
    if seen == named.size {
        return Ok(());
    }
    Err(DocumentsError::Size {
        digest: named.digest,
        seen,
        stated: named.size,
    })
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::image::{blobs::BlobStream, manifest::digest_of};

    #[derive(Default)]
    struct Stored(HashMap<Digest, Vec<u8>>);

    impl Stored {
        /// Stores a document, and gives what names it.
        fn put(&mut self, document: &Value) -> Value {
            let bytes = serde_json::to_vec(document).unwrap();
            let (digest, size) = (digest_of(&bytes), bytes.len());
            self.0.insert(digest, bytes);
            json!({"digest": digest.to_string(), "size": size})
        }
    }

    impl Blobs for Stored {
        fn open(&self, _namespace: &str, digest: &Digest) -> BlobStream {
            let found = self.0.get(digest).cloned();
            let found = found.ok_or(BlobError::NotFound(*digest));
            Box::pin(tokio_stream::once(found.map(Into::into)))
        }
    }

    fn config(layers: usize) -> Value {
        let diff_ids: Vec<String> = (0..layers)
            .map(|at| digest_of(&[u8::try_from(at).unwrap()]).to_string())
            .collect();
        json!({"os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}})
    }

    fn layer(size: u64) -> Value {
        json!({"digest": digest_of(b"layer").to_string(), "size": size})
    }

    /// A manifest with an index, both as they are after `change`.
    async fn check(change: impl FnOnce(&mut Value, &mut Value), words: &str) {
        let mut stored = Stored::default();
        let config = stored.put(&config(2));
        let layers = [layer(5), layer(7)];
        let mut manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
        let mut entry = json!({});
        change(&mut manifest, &mut entry);
        let mut named = stored.put(&manifest);
        let fields = named.as_object_mut().unwrap();
        fields.extend(entry.as_object().unwrap().clone());
        let index = stored.put(&json!({"schemaVersion": 2, "manifests": [named]}));
        let target = index.get("digest").and_then(Value::as_str).unwrap();
        let reader = Reader {
            blobs: &stored,
            namespace: "default",
            origin: None,
        };
        let said = match reader.read(&target.parse().unwrap()).await {
            Ok(documents) => {
                let labels = &documents.manifest.labels;
                let layers = labels.keys().filter(|it| it.starts_with(LABEL_LAYER));
                assert_eq!(layers.count(), 2);
                assert!(labels.contains_key(LABEL_CONFIG));
                let index = documents.index.as_ref().unwrap();
                let below = index.labels.get("containerd.io/gc.ref.content.m.0");
                assert_eq!(below, Some(&documents.image.id.manifest.to_string()));
                let kinds = documents.texts().map(|text| text.blob.media_type.as_str());
                let kinds: Vec<&str> = kinds.collect();
                assert_eq!(
                    kinds.last(),
                    Some(&"application/vnd.oci.image.index.v1+json")
                );
                "read".to_owned()
            }
            Err(error) => error.to_string(),
        };
        assert!(said.contains(words), "{words}: {said}");
    }

    #[tokio::test]
    async fn documents_fit_together_or_are_refused() {
        let set = |at: &'static str, value: Value| {
            move |manifest: &mut Value, _: &mut Value| {
                *manifest.pointer_mut(at).unwrap() = value;
            }
        };
        check(|_, _| {}, "read").await;
        check(
            set("/layers", json!([layer(5)])),
            "another number of layers",
        )
        .await;
        check(set("/config/size", json!(1)), "bytes, not 1 as is said").await;
        let large = json!([layer(IMAGE_BYTES_MAX), layer(1)]);
        check(set("/layers", large), "names more than").await;
        let endless = json!([layer(u64::MAX), layer(1)]);
        check(set("/layers", endless), "names more than").await;
        let absent = json!(digest_of(b"absent").to_string());
        check(set("/config/digest", absent), "not in the content store").await;
        let nested = |manifest: &mut Value, _: &mut Value| {
            *manifest = json!({"schemaVersion": 2, "manifests": []});
        };
        check(nested, "leads to another index").await;
        let sized = |_: &mut Value, entry: &mut Value| *entry = json!({"size": 3});
        check(sized, "bytes, not 3 as is said").await;
        let foreign = |_: &mut Value, entry: &mut Value| {
            *entry = json!({"platform": {"os": "linux", "architecture": "s390x"}});
        };
        check(foreign, "nothing for this platform").await;
    }
}
