//! From the stream of a layer blob to a [`Layer`]: what containerd's overlay unpacker would leave
//! in the directory of this layer, without writing it.

use std::io::{self, BufRead, Read};

use bytes::{Buf as _, Bytes};
use flate2::bufread::MultiGzDecoder;

use super::{
    blobs::{BlobError, BlobReader},
    decompress::Decompression,
    hashing::StreamHash,
    layer::{BuildError, ENTRIES_MAX, Layer, PATH_BYTES_MAX, TEXT_BYTES_MAX},
    manifest::DigestMismatch,
    tar::TarReader,
    tree::{LINKS_MAX, Tree},
    zstd::ZstdReader,
};
use crate::digest::Digest;

/// Bytes of an uncompressed layer; a longer one is refused.
pub const LAYER_BYTES_MAX: u64 = 64 << 30;

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
// The last four bits of the first byte are free; containerd knows this one as well.
const ZSTD_SKIPPABLE: &[u8] = &[0x50, 0x2a, 0x4d, 0x18];

/// A layer blob cannot be read as a layer.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The bytes could not be had.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The blob is not the one that the manifest names.
    #[error("layer blob is not the one that the manifest names: {0}")]
    BlobDigest(DigestMismatch),
    /// The uncompressed blob is not the one that the config names.
    #[error("uncompressed layer is not the one that the config names: {0}")]
    DiffId(DigestMismatch),
    /// Not what its compression says.
    #[error("cannot decompress: {0}")]
    Decompress(String),
    /// Ends within an entry or within compressed data.
    #[error("truncated layer")]
    Truncated,
    /// Longer than [`LAYER_BYTES_MAX`], or its sparse files are.
    #[error(
        "uncompressed layer, or the holes of its sparse files, of more than {LAYER_BYTES_MAX} bytes"
    )]
    TooLarge,
    /// A tar header holds something that cannot be read.
    #[error("malformed tar header: {0}")]
    Header(&'static str),
    /// A pax header or long name longer than Go reads.
    #[error("tar name extension of {0} bytes")]
    ExtensionTooLong(u64),
    /// An entry that containerd does not unpack.
    #[error("tar entry of unknown type {0:#04x}")]
    EntryType(u8),
    /// A path longer than [`PATH_BYTES_MAX`].
    #[error("path of {0} bytes; at most {PATH_BYTES_MAX} are read")]
    PathTooLong(usize),
    /// A path that holds a NUL.
    #[error("path with a NUL")]
    NulInPath,
    /// A path that leads out of its directory.
    #[error("path {0:?} has a `..` component")]
    ParentInPath(String),
    /// A whiteout that names no file.
    #[error("whiteout {0:?} names no file")]
    Whiteout(String),
    /// An entry in something that is no directory.
    #[error("path {0:?} lies in something that is not a directory")]
    NotADirectory(String),
    /// A hard link to a directory.
    #[error("hard link {0:?} to a directory")]
    DirectoryLink(String),
    /// Symlinks that lead to each other.
    #[error("path {0:?} leads through more than {LINKS_MAX} symlinks")]
    Links(String),
    /// More than [`ENTRIES_MAX`].
    #[error("more than {ENTRIES_MAX} entries")]
    TooManyEntries,
    /// More than [`TEXT_BYTES_MAX`].
    #[error("paths and link targets of more than {TEXT_BYTES_MAX} bytes together")]
    TooMuchText,
    /// The entries do not make a layer; a defect of this program.
    #[error("inconsistent layer: {0}")]
    Inconsistent(String),
}

impl From<io::Error> for LayerError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return Self::Truncated;
        }
        let error = match error.downcast::<BlobError>() {
            Ok(blob) => return Self::Blob(blob),
            Err(error) => error,
        };
        match error.downcast::<Self>() {
            Ok(own) => own,
            Err(error) => Self::Decompress(error.to_string()),
        }
    }
}

impl From<BuildError> for LayerError {
    fn from(error: BuildError) -> Self {
        match error {
            BuildError::TooManyEntries => Self::TooManyEntries,
            BuildError::TooMuchText => Self::TooMuchText,
            other => Self::Inconsistent(other.to_string()),
        }
    }
}

/// Reads a layer to its end and checks both digests. Blocks; memory does not depend on the size of
/// the files in it.
///
/// The files are hashed here, and the stream is decompressed and hashed by other threads, so that a
/// layer takes the time of the longest of these. A plain layer is its blob, which is hashed once.
pub(super) fn read_layer(
    blob: BlobReader,
    blob_digest: &Digest,
    diff_id: &Digest,
) -> Result<Layer, LayerError> {
    let mut reader = TarReader::new(Uncompressed {
        source: Source::new(blob)?,
        chunk: Bytes::new(),
        total: 0,
    });
    let outcome = read_entries(&mut reader);
    let mut stream = reader.into_inner();
    let outcome = outcome.and_then(|tree| Ok(stream.drain().map(|()| tree)?));
    if let Err(LayerError::Blob(error)) = outcome {
        return Err(LayerError::Blob(error));
    }

    // Bytes that are not those of the manifest explain any other fault, so they are looked for
    // first, to the end of the blob.
    let (seen, uncompressed) = stream.source.finish()?;
    if seen != *blob_digest {
        return Err(LayerError::BlobDigest(DigestMismatch {
            expected: *blob_digest,
            seen,
        }));
    }
    let tree = outcome?;
    let seen = uncompressed.map_or(Ok(seen), StreamHash::finish)?;
    if seen != *diff_id {
        return Err(LayerError::DiffId(DigestMismatch {
            expected: *diff_id,
            seen,
        }));
    }
    tree.into_layer(seen)
}

fn read_entries<R: BufRead>(reader: &mut TarReader<R>) -> Result<Tree, LayerError> {
    let mut tree = Tree::new();
    while let Some(entry) = reader.next()? {
        tree.apply(entry)?;
    }
    Ok(tree)
}

enum Source {
    Plain(Box<BlobReader>),
    Compressed(Decompression),
}

impl Source {
    fn new(mut blob: BlobReader) -> io::Result<Self> {
        let runtime = blob.runtime().clone();
        Ok(if blob.starts_with(GZIP)? {
            Self::Compressed(Decompression::start(&runtime, MultiGzDecoder::new(blob)))
        } else if blob.starts_with(ZSTD)? || blob.starts_with(ZSTD_SKIPPABLE)? {
            Self::Compressed(Decompression::start(&runtime, ZstdReader::new(blob)?))
        } else {
            Self::Plain(Box::new(blob))
        })
    }

    fn next_chunk(&mut self) -> io::Result<Bytes> {
        match self {
            Self::Plain(blob) => blob.next_chunk(),
            Self::Compressed(decompression) => decompression.next_chunk(),
        }
    }

    /// Reads the blob to its end and gives its digest and, where that is another, what was hashed
    /// of the uncompressed stream.
    fn finish(self) -> io::Result<(Digest, Option<StreamHash>)> {
        Ok(match self {
            Self::Plain(blob) => (blob.finish()?, None),
            Self::Compressed(decompression) => {
                let (blob, hash) = decompression.finish()?;
                (blob.finish()?, Some(hash))
            }
        })
    }
}

/// The uncompressed stream, a chunk at a time.
struct Uncompressed {
    source: Source,
    chunk: Bytes,
    total: u64,
}

impl Uncompressed {
    /// Reads what is left.
    fn drain(&mut self) -> io::Result<()> {
        while !self.fill_buf()?.is_empty() {
            self.chunk.clear();
        }
        Ok(())
    }
}

impl BufRead for Uncompressed {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.chunk.is_empty() {
            self.chunk = self.source.next_chunk()?;
            let length = u64::try_from(self.chunk.len()).unwrap_or(u64::MAX);
            self.total = self.total.saturating_add(length);
            if self.total > LAYER_BYTES_MAX {
                return Err(io::Error::other(LayerError::TooLarge));
            }
        }
        Ok(&self.chunk)
    }

    fn consume(&mut self, amount: usize) {
        self.chunk.advance(amount.min(self.chunk.len()));
    }
}

impl Read for Uncompressed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(into)?;
        self.consume(read);
        Ok(read)
    }
}
