//! Manifests, indexes and configs: parsing with bounds, and the arithmetic of digests.

use std::{collections::BTreeMap, env::consts};

use serde::{Deserialize, de::IgnoredAny};

use crate::digest::{Digest, DigestError, Sha256};

/// Bytes of a manifest, an index or a config; what is longer is refused. Registries take 4 MiB.
pub const DOCUMENT_BYTES_MAX: usize = 4 << 20;

/// Layers of a manifest, and diff IDs of a config; more are refused. overlayfs mounts fewer.
pub const LAYERS_MAX: usize = 512;

/// Manifests that an index lists; more are refused.
pub const MANIFESTS_MAX: usize = 1024;

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// The platform an image was built for, as its index says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// Operating system, in Go's spelling (`linux`).
    pub os: String,
    /// Architecture, in Go's spelling (`amd64`).
    pub architecture: String,
    /// Variant of the architecture (`v8`), or empty.
    pub variant: String,
}

/// Points to an object by its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Media type; empty where the document leaves it out.
    pub media_type: String,
    /// Digest of the object's bytes.
    pub digest: Digest,
    /// Length of the object in bytes, as the document claims.
    pub size: u64,
    /// For which platform, in an index.
    pub platform: Option<Platform>,
}

/// A manifest: the config and the layers of an image, bottom layer first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The image config.
    pub config: Descriptor,
    /// The layer blobs, bottom to top.
    pub layers: Vec<Descriptor>,
}

/// What an image reference can point to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// One manifest for each platform.
    Index(Vec<Descriptor>),
    /// The manifest of one platform.
    Manifest(Manifest),
}

/// An image config: what the layers hold unpacked, and what runs by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Architecture, in Go's spelling.
    pub architecture: String,
    /// Operating system, in Go's spelling.
    pub os: String,
    /// Digests of the uncompressed layers, bottom to top.
    pub diff_ids: Vec<Digest>,
    /// `Entrypoint`; empty if there is none.
    pub entrypoint: Vec<String>,
    /// `Cmd`; empty if there is none.
    pub cmd: Vec<String>,
    /// `Env`, each `NAME=value`.
    pub env: Vec<String>,
    /// `User`; empty for root.
    pub user: String,
    /// `WorkingDir`; empty for the root directory.
    pub working_dir: String,
    /// Names in `ExposedPorts`, as `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// Paths in `Volumes`.
    pub volumes: Vec<String>,
    /// `Healthcheck.Test` of Docker: `CMD` or `CMD-SHELL` and what follows; empty if there is none.
    pub healthcheck: Vec<String>,
    /// `StopSignal`, a name or a number; empty for SIGTERM.
    pub stop_signal: String,
}

/// A manifest, an index or a config cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ManifestError {
    /// Longer than [`DOCUMENT_BYTES_MAX`].
    #[error("document of {0} bytes; at most {DOCUMENT_BYTES_MAX} are read")]
    TooLong(usize),
    /// Not JSON, or JSON of another form.
    #[error("not a readable document: {0}")]
    Json(String),
    /// Another kind of document (an artifact, Docker schema 1).
    #[error("media type {0:?} is neither an image manifest nor an index")]
    MediaType(String),
    /// Manifest and index at once, which programs would read differently.
    #[error("document is both a manifest and an index")]
    Both,
    /// Neither manifest nor index.
    #[error("document has neither layers nor manifests")]
    Neither,
    /// A part that every document of this kind has is not there.
    #[error("document has no {0}")]
    Missing(&'static str),
    /// More entries than are read.
    #[error("{seen} {what}; at most {max} are read")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there are.
        seen: usize,
        /// How many are read.
        max: usize,
    },
    /// A digest by another algorithm, or none at all.
    #[error("{what}: {source}")]
    Digest {
        /// Of what.
        what: &'static str,
        /// The reason.
        source: DigestError,
    },
    /// A config of something else than stacked layers.
    #[error("root filesystem of type {0:?}; only \"layers\" is known")]
    RootfsType(String),
}

/// Bytes are not those that their digest names.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("bytes have digest {seen}, expected {expected}")]
pub struct DigestMismatch {
    /// The digest by which the bytes were asked for.
    pub expected: Digest,
    /// The digest of the bytes that came.
    pub seen: Digest,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    media_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
    // Docker schema 1; present in no document that is read here.
    fs_layers: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    media_type: Option<String>,
    digest: String,
    size: u64,
    platform: Option<RawPlatform>,
}

#[derive(Deserialize)]
struct RawPlatform {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
}

#[derive(Deserialize)]
struct RawConfig {
    architecture: Option<String>,
    os: Option<String>,
    rootfs: Option<RawRootfs>,
    config: Option<RawRun>,
}

#[derive(Deserialize)]
struct RawRootfs {
    r#type: Option<String>,
    diff_ids: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawRun {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    exposed_ports: Option<BTreeMap<String, IgnoredAny>>,
    volumes: Option<BTreeMap<String, IgnoredAny>>,
    healthcheck: Option<RawHealthcheck>,
    stop_signal: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawHealthcheck {
    test: Option<Vec<String>>,
}

/// Reads a manifest or an index. The caller has checked the digest of `bytes`.
pub fn parse(bytes: &[u8]) -> Result<Document, ManifestError> {
    let raw: RawDocument = read(bytes)?;
    if raw.manifests.is_some() && (raw.layers.is_some() || raw.config.is_some()) {
        return Err(ManifestError::Both);
    }
    let index = matches!(kind(&raw)?, OCI_INDEX | DOCKER_INDEX);
    if index {
        let manifests = raw.manifests.ok_or(ManifestError::Missing("manifests"))?;
        return Ok(Document::Index(descriptors(
            manifests,
            "manifests",
            MANIFESTS_MAX,
        )?));
    }
    let config = raw.config.ok_or(ManifestError::Missing("config"))?;
    let layers = raw.layers.ok_or(ManifestError::Missing("layers"))?;
    Ok(Document::Manifest(Manifest {
        config: descriptor(config, "config")?,
        layers: descriptors(layers, "layers", LAYERS_MAX)?,
    }))
}

/// The media type of a manifest or an index, also of one that does not name it. The caller has checked the
/// digest of `bytes`.
pub fn media_type(bytes: &[u8]) -> Result<&'static str, ManifestError> {
    kind(&read(bytes)?)
}

fn kind(raw: &RawDocument) -> Result<&'static str, ManifestError> {
    let known = [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST];
    let named = raw.media_type.as_deref().unwrap_or_default();
    if let Some(known) = known.into_iter().find(|known| *known == named) {
        Ok(known)
    } else if !named.is_empty() {
        Err(ManifestError::MediaType(named.chars().take(100).collect()))
    } else if raw.manifests.is_some() {
        Ok(OCI_INDEX)
    } else if raw.layers.is_some() {
        Ok(OCI_MANIFEST)
    } else if raw.fs_layers.is_some() {
        Err(ManifestError::MediaType("docker schema 1".to_owned()))
    } else {
        Err(ManifestError::Neither)
    }
}

/// Reads an image config. The caller has checked the digest of `bytes`.
pub fn parse_config(bytes: &[u8]) -> Result<Config, ManifestError> {
    let raw: RawConfig = read(bytes)?;
    let rootfs = raw.rootfs.ok_or(ManifestError::Missing("rootfs"))?;
    match rootfs.r#type.as_deref() {
        None | Some("" | "layers") => {}
        Some(other) => return Err(ManifestError::RootfsType(other.chars().take(100).collect())),
    }
    // An image without layers has `null` here, written by Go.
    let diff_ids = rootfs.diff_ids.unwrap_or_default();
    bounded("diff IDs", diff_ids.len(), LAYERS_MAX)?;
    let run = raw.config.unwrap_or_default();
    Ok(Config {
        architecture: raw.architecture.unwrap_or_default(),
        os: raw.os.unwrap_or_default(),
        diff_ids: diff_ids
            .iter()
            .map(|text| digest(text, "diff ID"))
            .collect::<Result<_, _>>()?,
        entrypoint: run.entrypoint.unwrap_or_default(),
        cmd: run.cmd.unwrap_or_default(),
        env: run.env.unwrap_or_default(),
        user: run.user.unwrap_or_default(),
        working_dir: run.working_dir.unwrap_or_default(),
        exposed_ports: keys(run.exposed_ports),
        volumes: keys(run.volumes),
        healthcheck: run.healthcheck.and_then(|it| it.test).unwrap_or_default(),
        stop_signal: run.stop_signal.unwrap_or_default(),
    })
}

fn keys(named: Option<BTreeMap<String, IgnoredAny>>) -> Vec<String> {
    named.unwrap_or_default().into_keys().collect()
}

/// The name that containerd gives to the snapshot of these layers stacked bottom to top (OCI image
/// specification, "Layer ChainID"); `None` for no layers.
pub fn chain_id(diff_ids: &[Digest]) -> Option<Digest> {
    chain_ids(diff_ids).last()
}

/// The names of snapshots below and of that one, bottom to top: those of the images that it is built on
/// are among them.
pub fn chain_ids(diff_ids: &[Digest]) -> impl Iterator<Item = Digest> {
    diff_ids
        .iter()
        .scan(None, |below: &mut Option<Digest>, diff_id| {
            let own = match below {
                Some(below) => digest_of(format!("{below} {diff_id}").as_bytes()),
                None => *diff_id,
            };
            *below = Some(own);
            Some(own)
        })
}

/// The manifest that containerd runs on this node: of those that its CPU can run the best match,
/// and the first listed among equals. Those without a platform come last, for the caller to look
/// into their config. Attestations have the platform `unknown/unknown`, which no node matches.
pub fn choose_platform(manifests: &[Descriptor]) -> Option<&Descriptor> {
    choose(manifests, go_architecture(consts::ARCH))
}

/// The architecture of this node, in Go's spelling.
pub fn node_architecture() -> &'static str {
    go_architecture(consts::ARCH)
}

/// Whether an image of this config runs on this node.
pub fn runs_here(config: &Config) -> bool {
    let platform = Platform {
        os: config.os.clone(),
        architecture: config.architecture.clone(),
        variant: String::new(),
    };
    rank(&platform, node_architecture()).is_some()
}

/// The digest of `bytes`.
pub fn digest_of(bytes: &[u8]) -> Digest {
    Digest(Sha256::of(bytes))
}

/// Whether `bytes` are those that `expected` names.
pub fn verify(bytes: &[u8], expected: &Digest) -> Result<(), DigestMismatch> {
    let seen = digest_of(bytes);
    if seen == *expected {
        Ok(())
    } else {
        Err(DigestMismatch {
            expected: *expected,
            seen,
        })
    }
}

fn read<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, ManifestError> {
    if bytes.len() > DOCUMENT_BYTES_MAX {
        return Err(ManifestError::TooLong(bytes.len()));
    }
    serde_json::from_slice(bytes).map_err(|error| {
        // The message may quote the document.
        ManifestError::Json(error.to_string().chars().take(200).collect())
    })
}

fn bounded(what: &'static str, seen: usize, max: usize) -> Result<(), ManifestError> {
    if seen > max {
        Err(ManifestError::TooMany { what, seen, max })
    } else {
        Ok(())
    }
}

fn digest(text: &str, what: &'static str) -> Result<Digest, ManifestError> {
    text.parse()
        .map_err(|source| ManifestError::Digest { what, source })
}

fn descriptor(raw: RawDescriptor, what: &'static str) -> Result<Descriptor, ManifestError> {
    Ok(Descriptor {
        media_type: raw.media_type.unwrap_or_default(),
        digest: digest(&raw.digest, what)?,
        size: raw.size,
        platform: raw.platform.map(|platform| Platform {
            os: platform.os.unwrap_or_default(),
            architecture: platform.architecture.unwrap_or_default(),
            variant: platform.variant.unwrap_or_default(),
        }),
    })
}

fn descriptors(
    raw: Vec<RawDescriptor>,
    what: &'static str,
    max: usize,
) -> Result<Vec<Descriptor>, ManifestError> {
    bounded(what, raw.len(), max)?;
    raw.into_iter().map(|raw| descriptor(raw, what)).collect()
}

/// containerd speaks Go's names.
fn go_architecture(rust: &str) -> &str {
    match rust {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "loongarch64" => "loong64",
        other => other,
    }
}

fn choose<'a>(manifests: &'a [Descriptor], node: &str) -> Option<&'a Descriptor> {
    manifests
        .iter()
        .filter_map(|manifest| {
            let rank = match &manifest.platform {
                Some(platform) => rank(platform, node)?,
                None => u8::MAX,
            };
            Some((rank, manifest))
        })
        // The first of equal ranks, as containerd's stable sort.
        .min_by_key(|(rank, _)| *rank)
        .map(|(_, manifest)| manifest)
}

/// How well a platform fits a node, 0 best; `None` if it does not run there. The order is that of
/// `platforms.Only` in containerd, with its normalisation of names.
fn rank(platform: &Platform, node: &str) -> Option<u8> {
    if !platform.os.eq_ignore_ascii_case("linux") {
        return None;
    }
    let architecture = platform.architecture.to_ascii_lowercase();
    let variant = platform.variant.to_ascii_lowercase();
    let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
        ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
        ("x86_64" | "x86-64", variant) => ("amd64", variant),
        ("i386", _) | ("386", _) => ("386", ""),
        ("aarch64" | "arm64", "8" | "v8") => ("arm64", ""),
        ("aarch64", variant) => ("arm64", variant),
        ("armhf", _) => ("arm", "v7"),
        ("armel", _) => ("arm", "v6"),
        ("arm", "" | "7") => ("arm", "v7"),
        ("arm", "5") => ("arm", "v5"),
        ("arm", "6") => ("arm", "v6"),
        ("arm", "8") => ("arm", "v8"),
        other => other,
    };
    match (node, architecture, variant) {
        ("amd64", "amd64", "") => Some(0),
        ("amd64", "386", "") => Some(1),
        ("arm64", "arm64", "") => Some(0),
        ("arm64", "arm", "v8") => Some(1),
        ("arm64" | "arm", "arm", "v7") => Some(2),
        ("arm64" | "arm", "arm", "v6") => Some(3),
        ("arm64" | "arm", "arm", "v5") => Some(4),
        (node, architecture, "") if node == architecture => Some(0),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
