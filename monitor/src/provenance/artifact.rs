//! Manifests of artifacts about images, and lists of them.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::document::shortened;
use crate::{
    digest::Digest,
    image::manifest::{self, DOCUMENT_BYTES_MAX, Document, LAYERS_MAX},
};

/// Artifacts about one image that are looked at; further ones are not.
const REFERRERS_MAX: usize = 256;

/// cosign's annotation with the signature of a layer.
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
/// The annotations with the type of a statement: of a layer, and of an artifact with a bundle.
const PREDICATE_TYPES: [&str; 2] = ["predicateType", "dev.sigstore.bundle.predicateType"];

/// A part of an artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layer {
    pub(super) media_type: String,
    pub(super) digest: Digest,
    /// In bytes, as is said.
    pub(super) size: u64,
    pub(super) signature: Option<String>,
    pub(super) predicate_type: Option<String>,
}

/// An artifact about an image, as a list has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Referrer {
    pub(super) digest: Digest,
    /// Its artifact type; empty if that is not told.
    pub(super) kind: String,
    pub(super) predicate_type: Option<String>,
}

/// An artifact's manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Artifact {
    pub(super) kind: String,
    pub(super) predicate_type: Option<String>,
    /// The image that it says it is about.
    pub(super) subject: Option<Digest>,
    pub(super) layers: Vec<Layer>,
}

type Annotations = BTreeMap<String, String>;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    size: u64,
    artifact_type: Option<String>,
    annotations: Option<Annotations>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawManifest {
    artifact_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    subject: Option<RawDescriptor>,
    annotations: Option<Annotations>,
}

#[derive(Deserialize)]
struct RawIndex {
    manifests: Option<Vec<RawDescriptor>>,
}

/// Reads an artifact's manifest.
pub(super) fn artifact(bytes: &[u8]) -> Result<Artifact, String> {
    let raw: RawManifest = json(bytes, "manifest")?;
    let layers = raw.layers.ok_or("the manifest has no layers")?;
    if layers.len() > LAYERS_MAX {
        let seen = layers.len();
        return Err(format!(
            "the manifest has {seen} layers; at most {LAYERS_MAX} are read"
        ));
    }
    let subject = raw.subject.map(|subject| subject.digest.parse());
    let subject = subject.transpose();
    // Before there were artifact types the config's media type stood for them.
    let config = raw.config.map(|config| config.media_type);
    let kind = raw.artifact_type.filter(|kind| !kind.is_empty()).or(config);
    Ok(Artifact {
        kind: shortened(&kind.unwrap_or_default()),
        predicate_type: predicate_type(raw.annotations.as_ref()),
        subject: subject.map_err(|error| format!("the manifest's subject: {error}"))?,
        layers: layers.into_iter().map(layer).collect::<Result<_, _>>()?,
    })
}

fn layer(raw: RawDescriptor) -> Result<Layer, String> {
    let digest = raw.digest.parse();
    Ok(Layer {
        digest: digest.map_err(|error| format!("a layer: {error}"))?,
        media_type: shortened(&raw.media_type),
        size: raw.size,
        predicate_type: predicate_type(raw.annotations.as_ref()),
        signature: raw.annotations.and_then(|mut it| it.remove(SIGNATURE)),
    })
}

/// Reads a list of the artifacts about an image; those that are not named by a SHA-256 are left out.
pub(super) fn referrers(bytes: &[u8]) -> Result<Vec<Referrer>, String> {
    let raw: RawIndex = json(bytes, "index of referrers")?;
    let manifests = raw
        .manifests
        .ok_or("the index of referrers has no manifests")?;
    if manifests.len() > REFERRERS_MAX {
        tracing::warn!(
            seen = manifests.len(),
            limit = REFERRERS_MAX,
            "an image has more referrers than are looked at"
        );
    }
    let manifests = manifests.into_iter().take(REFERRERS_MAX);
    let referrers = manifests.filter_map(|raw| {
        Some(Referrer {
            digest: raw.digest.parse().ok()?,
            kind: shortened(&raw.artifact_type.unwrap_or_default()),
            predicate_type: predicate_type(raw.annotations.as_ref()),
        })
    });
    Ok(referrers.collect())
}

/// The first manifest that an index has with this annotation `kind`.
pub(super) fn of_kind(index: &[u8], kind: &str) -> Option<Digest> {
    let raw: RawIndex = json(index, "index").ok()?;
    let mut manifests = raw.manifests?.into_iter();
    let found = manifests.find(|manifest| {
        let annotations = manifest.annotations.as_ref();
        annotations
            .and_then(|it| it.get("kind"))
            .is_some_and(|it| it == kind)
    });
    found?.digest.parse().ok()
}

/// Whether an index lists a manifest.
pub(super) fn lists(index: &[u8], digest: &Digest) -> bool {
    match manifest::parse(index) {
        Ok(Document::Index(manifests)) => manifests.iter().any(|it| it.digest == *digest),
        _ => false,
    }
}

fn predicate_type(annotations: Option<&Annotations>) -> Option<String> {
    let annotations = annotations?;
    let found = PREDICATE_TYPES.iter().find_map(|key| annotations.get(*key));
    found.map(|text| shortened(text))
}

fn json<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: &str) -> Result<T, String> {
    if bytes.len() > DOCUMENT_BYTES_MAX {
        let seen = bytes.len();
        return Err(format!(
            "the {what} has {seen} bytes; at most {DOCUMENT_BYTES_MAX} are read"
        ));
    }
    serde_json::from_slice(bytes).map_err(|error| {
        // The message may quote the document.
        let error = shortened(&error.to_string());
        format!("the {what} is not of its form: {error}")
    })
}
