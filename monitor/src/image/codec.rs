//! A layer as bytes, for the file that keeps it.
//!
//! Magic, version, SHA-256 of all that follows, diff ID, number of entries, then the entries in
//! order; all numbers little-endian. Nothing in it is an offset, so that nothing in it has to be
//! trusted: decoding builds the layer anew, with every check that building has.

use super::{
    capability::FileCapability,
    layer::{BuildError, Entry, EntryKind, Layer, LayerBuilder, Metadata},
};
use crate::digest::{Digest, Sha256};

/// Grows with every change of the format; files of another version are rebuilt.
pub(super) const VERSION: u32 = 2;

/// Bytes of a file; a longer one is no layer. Twice the longest text leaves room for the entries.
pub(super) const FILE_BYTES_MAX: u64 = 512 << 20;

const MAGIC: &[u8; 8] = b"monlayer";

const WHITEOUT: u8 = 0;
const DIRECTORY: u8 = 1;
const FILE: u8 = 2;
const SYMLINK: u8 = 3;
const CHAR_DEVICE: u8 = 4;
const BLOCK_DEVICE: u8 = 5;
const FIFO: u8 = 6;
const HARDLINK: u8 = 7;

const OPAQUE: u8 = 1;
const IMPLIED: u8 = 2;
const CAPABLE: u8 = 1;
const EFFECTIVE: u8 = 2;
const CAPABLE_EFFECTIVE: u8 = CAPABLE | EFFECTIVE;

/// Bytes are not a layer that this version wrote.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum DecodeError {
    #[error("not the index of a layer")]
    Magic,
    #[error("format version {0}; {VERSION} is read")]
    Version(u32),
    #[error("checksum does not match")]
    Checksum,
    #[error("index of layer {0}")]
    OtherLayer(Digest),
    #[error("ends too early")]
    Truncated,
    #[error("{0} bytes after the end")]
    Trailing(usize),
    #[error("unknown kind {0} or flags {1}")]
    Kind(u8, u8),
    #[error(transparent)]
    Build(#[from] BuildError),
}

/// The bytes of a layer.
pub(super) fn encode(layer: &Layer) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend_from_slice(&layer.diff_id().0.0);
    put_length(&mut body, layer.len());
    for (path, entry) in layer.entries() {
        let (kind, flags, metadata) = match entry {
            Entry::Whiteout => (WHITEOUT, 0, None),
            Entry::Hardlink { .. } => (HARDLINK, 0, None),
            Entry::Directory { opaque, metadata } => {
                let implied = if metadata.is_none() { IMPLIED } else { 0 };
                (
                    DIRECTORY,
                    implied | if opaque { OPAQUE } else { 0 },
                    metadata,
                )
            }
            Entry::Node { kind, metadata } => {
                let kind = match kind {
                    EntryKind::File { .. } => FILE,
                    EntryKind::Directory => DIRECTORY,
                    EntryKind::Symlink { .. } => SYMLINK,
                    EntryKind::CharDevice { .. } => CHAR_DEVICE,
                    EntryKind::BlockDevice { .. } => BLOCK_DEVICE,
                    EntryKind::Fifo => FIFO,
                };
                let flags = match metadata.capability {
                    None => 0,
                    Some(FileCapability {
                        effective: true, ..
                    }) => CAPABLE | EFFECTIVE,
                    Some(_) => CAPABLE,
                };
                (kind, flags, Some(metadata))
            }
        };
        body.extend_from_slice(&[kind, flags]);
        put_text(&mut body, path);
        if let Some(metadata) = metadata {
            body.extend_from_slice(&metadata.mode.to_le_bytes());
            body.extend_from_slice(&metadata.uid.to_le_bytes());
            body.extend_from_slice(&metadata.gid.to_le_bytes());
            if let Some(capability) = metadata.capability {
                body.extend_from_slice(&capability.permitted.to_le_bytes());
                body.extend_from_slice(&capability.inheritable.to_le_bytes());
            }
        }
        match entry {
            Entry::Hardlink { target }
            | Entry::Node {
                kind: EntryKind::Symlink { target },
                ..
            } => put_text(&mut body, target),
            Entry::Node {
                kind: EntryKind::File { size, sha256 },
                ..
            } => {
                body.extend_from_slice(&size.to_le_bytes());
                // Layers whose hashes come late are never kept.
                body.extend_from_slice(&sha256.unwrap_or(Sha256([0; 32])).0);
            }
            Entry::Node {
                kind:
                    EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor },
                ..
            } => {
                body.extend_from_slice(&major.to_le_bytes());
                body.extend_from_slice(&minor.to_le_bytes());
            }
            Entry::Whiteout | Entry::Directory { .. } | Entry::Node { .. } => {}
        }
    }
    let mut file = Vec::with_capacity(body.len() + 44);
    file.extend_from_slice(MAGIC);
    file.extend_from_slice(&VERSION.to_le_bytes());
    file.extend_from_slice(&Sha256::of(&body).0);
    file.extend_from_slice(&body);
    file
}

/// The layer of `diff_id` that `bytes` were made of by [`encode`].
pub(super) fn decode(bytes: &[u8], diff_id: &Digest) -> Result<Layer, DecodeError> {
    let mut input = Input(bytes);
    if input.array().as_ref() != Ok(MAGIC) {
        return Err(DecodeError::Magic);
    }
    let version = u32::from_le_bytes(input.array()?);
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    let checksum: [u8; 32] = input.array()?;
    if Sha256::of(input.0).0 != checksum {
        return Err(DecodeError::Checksum);
    }
    let written_for = Digest(Sha256(input.array()?));
    if written_for != *diff_id {
        return Err(DecodeError::OtherLayer(written_for));
    }
    let count = u32::from_le_bytes(input.array()?);
    let mut builder = LayerBuilder::new();
    // The count reserves nothing: each turn takes bytes of the input or ends.
    for _ in 0..count {
        let [kind, flags] = input.array()?;
        let path = input.text()?;
        let entry = input.entry(kind, flags)?;
        builder.push(path, entry)?;
    }
    if !input.0.is_empty() {
        return Err(DecodeError::Trailing(input.0.len()));
    }
    Ok(builder.finish(written_for))
}

// Both lengths are bounded when the layer is built; a longer one would not decode.
fn put_length(into: &mut Vec<u8>, length: usize) {
    into.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
}

fn put_text(into: &mut Vec<u8>, text: &[u8]) {
    into.extend_from_slice(&u16::try_from(text.len()).unwrap_or(u16::MAX).to_le_bytes());
    into.extend_from_slice(text);
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self
            .0
            .split_at_checked(length)
            .ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self.0.split_first_chunk().ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(*head)
    }

    fn text(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = u16::from_le_bytes(self.array()?);
        self.take(usize::from(length))
    }

    fn number(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn metadata(&mut self) -> Result<Metadata, DecodeError> {
        let mode = u16::from_le_bytes(self.array()?);
        Ok(Metadata {
            mode,
            uid: self.number()?,
            gid: self.number()?,
            capability: None,
        })
    }

    fn entry(&mut self, kind: u8, flags: u8) -> Result<Entry<'a>, DecodeError> {
        match (kind, flags) {
            (WHITEOUT, 0) => return Ok(Entry::Whiteout),
            (HARDLINK, 0) => {
                return Ok(Entry::Hardlink {
                    target: self.text()?,
                });
            }
            (DIRECTORY, 0..=3) => {
                let stated = flags & IMPLIED == 0;
                let metadata = if stated { Some(self.metadata()?) } else { None };
                return Ok(Entry::Directory {
                    opaque: flags & OPAQUE != 0,
                    metadata,
                });
            }
            (FILE, 0 | CAPABLE | CAPABLE_EFFECTIVE)
            | (SYMLINK | CHAR_DEVICE | BLOCK_DEVICE | FIFO, 0) => {}
            _ => return Err(DecodeError::Kind(kind, flags)),
        }
        let mut metadata = self.metadata()?;
        if flags & CAPABLE != 0 {
            metadata.capability = Some(FileCapability {
                permitted: u64::from_le_bytes(self.array()?),
                inheritable: u64::from_le_bytes(self.array()?),
                effective: flags & EFFECTIVE != 0,
            });
        }
        let kind = match kind {
            FILE => EntryKind::File {
                size: u64::from_le_bytes(self.array()?),
                sha256: Some(Sha256(self.array()?)),
            },
            SYMLINK => EntryKind::Symlink {
                target: self.text()?,
            },
            CHAR_DEVICE => EntryKind::CharDevice {
                major: self.number()?,
                minor: self.number()?,
            },
            BLOCK_DEVICE => EntryKind::BlockDevice {
                major: self.number()?,
                minor: self.number()?,
            },
            _ => EntryKind::Fifo,
        };
        Ok(Entry::Node { kind, metadata })
    }
}
