//! Images, made from a description, with all their digests known.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tar::{EntryType, Header};

use crate::layer::{self, Layer, digest};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// The program for containers, see `tests/probe`.
pub const PROBE: &[u8] = include_bytes!(env!("PROBE"));
/// The program that loads the libraries that are its arguments, see `tests/probe/dynamic.rs`.
pub const DYNAMIC: &[u8] = include_bytes!(env!("DYNAMIC"));
/// Where [`base`] has [`PROBE`].
pub const PROBE_PATH: &str = "/bin/probe";
/// Where Debian's package busybox-static installs it.
pub const BUSYBOX: &str = "/bin/busybox";
const APPLETS: &[&str] = &[
    "cat", "chmod", "chown", "chroot", "cp", "echo", "env", "id", "ln", "ls", "mkdir", "mount",
    "mv", "rm", "sh", "sleep", "touch", "true", "wget",
];

/// What the image's config says.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// First words of the command.
    pub entrypoint: Vec<String>,
    /// The rest of it, which a user may replace.
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// User, empty for root.
    pub user: String,
    /// Working directory, empty for `/`.
    pub cwd: String,
}

/// An image and its digests, each with its `sha256:`.
#[derive(Clone, Debug)]
pub struct Image {
    /// The name it is imported as.
    pub reference: String,
    /// Digest of the index that the name points to.
    pub index_digest: String,
    /// Digest of the manifest.
    pub manifest_digest: String,
    /// Digest of the config.
    pub config_digest: String,
    /// Name of the snapshot that holds all layers.
    pub chain_id: String,
    /// Digests of the layers, lowest first.
    pub layers: Vec<LayerDigests>,
    index_size: usize,
    blobs: Vec<Blob>,
}

/// Media type, digest and bytes.
type Blob = (String, String, Vec<u8>);

/// The digests of a layer.
#[derive(Clone, Debug)]
pub struct LayerDigests {
    /// Of the blob, as it lies in the content store.
    pub blob: String,
    /// Of the tar in it.
    pub diff_id: String,
}

impl Image {
    /// Makes an image for this machine's platform: index, manifest, config and layers.
    pub fn build(reference: &str, layers: &[Layer], config: &Config) -> Result<Self> {
        let mut blobs = Vec::new();
        let mut digests = Vec::new();
        let mut descriptors = Vec::new();
        for layer in layers {
            let diff_id = digest(&layer.tar()?);
            let (bytes, compression) = layer.blob()?;
            let suffix = compression.suffix();
            let (blob, descriptor) = put(&mut blobs, &format!("{LAYER}{suffix}"), bytes);
            descriptors.push(descriptor);
            digests.push(LayerDigests { blob, diff_id });
        }
        let diff_ids: Vec<String> = digests.iter().map(|layer| layer.diff_id.clone()).collect();
        let chain_id = layer::chain_id(&diff_ids).context("an image without layers")?;
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let platform = json!({"architecture": architecture, "os": "linux"});
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "config": {
                "Entrypoint": config.entrypoint,
                "Cmd": config.cmd,
                "Env": config.env,
                "User": config.user,
                "WorkingDir": config.cwd,
            },
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let (config_digest, config) = put(&mut blobs, CONFIG, serde_json::to_vec(&config)?);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": descriptors,
        });
        // With white space, so that a test can change the bytes and not the meaning.
        let manifest = serde_json::to_vec_pretty(&manifest)?;
        let (manifest_digest, mut manifest) = put(&mut blobs, MANIFEST, manifest);
        if let Some(descriptor) = manifest.as_object_mut() {
            descriptor.insert("platform".to_owned(), platform);
        }
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [manifest]});
        let index = serde_json::to_vec(&index)?;
        let index_size = index.len();
        let (index_digest, _) = put(&mut blobs, INDEX, index);
        Ok(Self {
            reference: reference.to_owned(),
            index_digest,
            manifest_digest,
            config_digest,
            chain_id,
            layers: digests,
            index_size,
            blobs,
        })
    }

    /// Media type, digest and bytes of all its blobs, each before those that name it.
    pub fn blobs(&self) -> impl Iterator<Item = (&str, &str, &[u8])> {
        let blobs = self.blobs.iter();
        blobs.map(|(kind, digest, bytes)| (kind.as_str(), digest.as_str(), bytes.as_slice()))
    }

    /// The OCI layout as one tar, as `ctr images import` reads it.
    pub fn archive(&self) -> Result<Vec<u8>> {
        let top = json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": INDEX,
                "digest": self.index_digest,
                "size": self.index_size,
                "annotations": {"io.containerd.image.name": self.reference},
            }],
        });
        let mut tar = tar::Builder::new(Vec::new());
        let mut add = |path: &str, bytes: &[u8]| -> Result<()> {
            let mut header = Header::new_gnu();
            header.set_entry_type(EntryType::Regular);
            header.set_mode(0o644);
            header.set_size(u64::try_from(bytes.len())?);
            tar.append_data(&mut header, path, bytes)?;
            Ok(())
        };
        add("oci-layout", br#"{"imageLayoutVersion": "1.0.0"}"#)?;
        for (_, digest, bytes) in &self.blobs {
            add(&format!("blobs/{}", digest.replacen(':', "/", 1)), bytes)?;
        }
        add("index.json", &serde_json::to_vec(&top)?)?;
        Ok(tar.into_inner()?)
    }
}

fn put(blobs: &mut Vec<Blob>, kind: &str, bytes: Vec<u8>) -> (String, Value) {
    let digest = digest(&bytes);
    let descriptor = json!({"mediaType": kind, "digest": digest, "size": bytes.len()});
    // Two equal layers are one blob.
    if !blobs.iter().any(|(_, known, _)| *known == digest) {
        blobs.push((kind.to_owned(), digest.clone(), bytes));
    }
    (digest, descriptor)
}

/// A layer with busybox, a shell's usual commands and the probe.
pub fn base_layer() -> Result<Layer> {
    let busybox = fs::read(BUSYBOX)
        .with_context(|| format!("cannot read {BUSYBOX}; install the package busybox-static"))?;
    let mut layer = Layer::new();
    for directory in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
        layer = layer.dir(directory);
    }
    layer = layer
        .program("bin/busybox", &busybox)
        .program("bin/probe", PROBE);
    for applet in APPLETS {
        layer = layer.symlink(&format!("bin/{applet}"), "busybox");
    }
    Ok(layer)
}

/// The config of most test images: a shell.
pub fn base_config() -> Config {
    Config {
        cmd: vec!["/bin/sh".to_owned()],
        env: vec!["PATH=/bin".to_owned()],
        ..Config::default()
    }
}

/// An image with [`base_layer`] alone.
pub fn base(reference: &str) -> Result<Image> {
    Image::build(reference, &[base_layer()?], &base_config())
}

/// Where `cargo xtask setup` links the layers of Debian packages.
pub fn debian_layers() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/debian-layers")
}

/// A layer of Debian packages: `base`, or what `cargo xtask setup` knows to lie on it.
pub fn debian_layer(name: &str) -> Result<Layer> {
    let file = debian_layers().join(format!("{name}.tar.gz"));
    let blob = fs::read(&file)
        .with_context(|| format!("cannot read {}: run `cargo xtask setup`", file.display()))?;
    Ok(Layer::made(blob))
}
