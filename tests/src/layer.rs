//! Layers of images, described entry by entry.

use std::{
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use anyhow::{Context as _, Result};
use flate2::{read::GzDecoder, write::GzEncoder};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

/// `sha256:` and the hash of some bytes.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", sha256(bytes))
}

/// The hash of some bytes as alerts give it: lowercase hex without a prefix.
pub fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// How a layer's blob is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    #[default]
    Gzip,
    Zstd,
}

impl Compression {
    /// What it adds to the media type.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Gzip => "+gzip",
            Self::Zstd => "+zstd",
        }
    }
}

/// One layer.
#[derive(Clone, Debug, Default)]
pub struct Layer {
    entries: Vec<Entry>,
    compression: Compression,
    blob_tar: Option<Vec<u8>>,
    /// The whole layer, made elsewhere.
    made: Option<Vec<u8>>,
}

#[derive(Clone, Debug)]
struct Entry {
    /// Relative, as tars of images have it.
    path: String,
    kind: EntryType,
    link: String,
    bytes: Vec<u8>,
    attributes: Attributes,
}

/// Mode, owner and extended attributes of an entry.
#[derive(Clone, Debug)]
pub struct Attributes {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Names and values.
    pub xattrs: Vec<(String, Vec<u8>)>,
}

impl Default for Attributes {
    /// A program of root's.
    fn default() -> Self {
        Self {
            mode: 0o755,
            uid: 0,
            gid: 0,
            xattrs: Vec::new(),
        }
    }
}

impl Layer {
    /// An empty layer, compressed by gzip.
    pub fn new() -> Self {
        Self::default()
    }

    /// A layer that was made elsewhere, as a tar compressed by gzip.
    pub fn made(blob: Vec<u8>) -> Self {
        Self {
            made: Some(blob),
            ..Self::default()
        }
    }

    /// The files below a directory of the host, with their modes, as root's.
    pub fn copy(directory: &Path) -> Result<Self> {
        let mut layer = Self::new();
        let mut waiting = vec![directory.to_owned()];
        while let Some(path) = waiting.pop() {
            let name = path.strip_prefix(directory)?;
            let name = name.to_str().context("not UTF-8")?;
            if path.is_dir() {
                let entries = fs::read_dir(&path)?.map(|entry| Ok(entry?.path()));
                waiting.extend(entries.collect::<Result<Vec<_>>>()?);
                if !name.is_empty() {
                    layer = layer.dir(name);
                }
            } else {
                let attributes = Attributes {
                    mode: fs::metadata(&path)?.permissions().mode() & 0o777,
                    ..Attributes::default()
                };
                layer = layer.file(name, &fs::read(&path)?, attributes);
            }
        }
        Ok(layer)
    }

    /// A directory.
    #[must_use]
    pub fn dir(self, path: &str) -> Self {
        self.entry(path, EntryType::Directory, "", b"", Attributes::default())
    }

    /// A file that root may execute.
    #[must_use]
    pub fn program(self, path: &str, bytes: &[u8]) -> Self {
        self.file(path, bytes, Attributes::default())
    }

    /// A file.
    #[must_use]
    pub fn file(self, path: &str, bytes: &[u8], attributes: Attributes) -> Self {
        self.entry(path, EntryType::Regular, "", bytes, attributes)
    }

    /// A symbolic link.
    #[must_use]
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(path, EntryType::Symlink, target, b"", Attributes::default())
    }

    /// A hard link to an earlier entry of this layer.
    #[must_use]
    pub fn hard_link(self, path: &str, target: &str) -> Self {
        // Unpacking applies a link's attributes to the file; real tars repeat the file's own.
        let attributes = self
            .entries
            .iter()
            .rev()
            .find(|entry| entry.path == target)
            .map_or_else(Attributes::default, |entry| entry.attributes.clone());
        self.entry(path, EntryType::Link, target, b"", attributes)
    }

    /// Removes what lower layers have at `path`.
    #[must_use]
    pub fn whiteout(self, path: &str) -> Self {
        let marker = match path.rsplit_once('/') {
            Some((parent, name)) => format!("{parent}/.wh.{name}"),
            None => format!(".wh.{path}"),
        };
        self.file(&marker, b"", Attributes::default())
    }

    /// Removes all that lower layers have below `directory`.
    #[must_use]
    pub fn opaque(self, directory: &str) -> Self {
        self.file(
            &format!("{directory}/.wh..wh..opq"),
            b"",
            Attributes::default(),
        )
    }

    /// Leaves the blob uncompressed.
    #[must_use]
    pub fn plain(mut self) -> Self {
        self.compression = Compression::None;
        self
    }

    /// Compresses the blob by zstd.
    #[must_use]
    pub fn zstd(mut self) -> Self {
        self.compression = Compression::Zstd;
        self
    }

    /// Puts other bytes into the blob than the diff ID in the config says, as a forger would.
    #[must_use]
    pub fn forged(mut self, tar: Vec<u8>) -> Self {
        self.blob_tar = Some(tar);
        self
    }

    fn entry(
        mut self,
        path: &str,
        kind: EntryType,
        link: &str,
        bytes: &[u8],
        attributes: Attributes,
    ) -> Self {
        self.entries.push(Entry {
            path: path.to_owned(),
            kind,
            link: link.to_owned(),
            bytes: bytes.to_vec(),
            attributes,
        });
        self
    }

    /// The layer's tar, whose hash is its diff ID.
    pub fn tar(&self) -> Result<Vec<u8>> {
        if let Some(blob) = &self.made {
            let mut tar = Vec::new();
            GzDecoder::new(blob.as_slice()).read_to_end(&mut tar)?;
            return Ok(tar);
        }
        let mut tar = tar::Builder::new(Vec::new());
        for entry in &self.entries {
            append(&mut tar, entry)
                .with_context(|| format!("cannot put {} into a layer", entry.path))?;
        }
        Ok(tar.into_inner()?)
    }

    /// The layer's blob and how it is compressed.
    pub(crate) fn blob(&self) -> Result<(Vec<u8>, Compression)> {
        if let (Some(blob), Compression::Gzip) = (&self.made, self.compression) {
            return Ok((blob.clone(), Compression::Gzip));
        }
        let tar = match &self.blob_tar {
            Some(forged) => forged.clone(),
            None => self.tar()?,
        };
        let blob = match self.compression {
            Compression::None => tar,
            Compression::Gzip => {
                let mut gzip = GzEncoder::new(Vec::new(), flate2::Compression::fast());
                gzip.write_all(&tar)?;
                gzip.finish()?
            }
            Compression::Zstd => compress_to_vec(tar.as_slice(), CompressionLevel::Fastest),
        };
        Ok((blob, self.compression))
    }
}

fn append(tar: &mut tar::Builder<Vec<u8>>, entry: &Entry) -> Result<()> {
    let attributes = &entry.attributes;
    let xattrs: Vec<(String, &[u8])> = attributes
        .xattrs
        .iter()
        .map(|(name, value)| (format!("SCHILY.xattr.{name}"), value.as_slice()))
        .collect();
    tar.append_pax_extensions(xattrs.iter().map(|(key, value)| (key.as_str(), *value)))?;
    let mut header = Header::new_gnu();
    header.set_entry_type(entry.kind);
    header.set_mode(attributes.mode);
    header.set_uid(attributes.uid);
    header.set_gid(attributes.gid);
    header.set_mtime(1_700_000_000);
    header.set_size(u64::try_from(entry.bytes.len())?);
    if !entry.link.is_empty() {
        header.set_link_name(&entry.link)?;
    }
    // Written as they are, since the crate refuses the `../` that a hostile image has.
    let name = &mut header.as_old_mut().name;
    name.get_mut(..entry.path.len())
        .context("longer than a plain tar header holds")?
        .copy_from_slice(entry.path.as_bytes());
    header.set_cksum();
    tar.append(&header, entry.bytes.as_slice())?;
    Ok(())
}

/// The digest over a chain of layers that names their snapshot.
pub(crate) fn chain_id(diff_ids: &[String]) -> Option<String> {
    let (first, rest) = diff_ids.split_first()?;
    Some(rest.iter().fold(first.clone(), |mut chain, diff_id| {
        let _ = write!(chain, " {diff_id}");
        digest(chain.as_bytes())
    }))
}
