#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot set itself up has failed"
)]
#![expect(clippy::indexing_slicing, reason = "likewise")]
#![expect(clippy::panic, reason = "a check that fails panics")]

mod codec;
pub(crate) mod contents;
mod disk;
mod store;
mod unpack;
mod unpacked;

use std::{
    collections::HashMap,
    io::Write as _,
    sync::{Mutex, OnceLock},
};

use bytes::Bytes;
use tokio::runtime::{self, Runtime};

use super::{
    blobs::{BlobError, BlobReader, BlobStream, Blobs},
    layer::{Entry, EntryKind, Layer},
    manifest::digest_of,
    unpack::{LayerError, read_layer},
};
use crate::digest::{Digest, Sha256};

/// A tar stream, with names and fields that no honest program would write.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tar(Vec<u8>);

impl Tar {
    fn raw(mut self, flag: u8, name: &[u8], link: &[u8], size: u64, body: &[u8]) -> Self {
        let mut header = tar::Header::new_ustar();
        header.set_size(size);
        header.set_mode(if flag == b'5' { 0o755 } else { 0o644 });
        header.set_uid(7);
        header.set_gid(8);
        header.set_device_major(3).unwrap();
        header.set_device_minor(4).unwrap();
        let fields = header.as_old_mut();
        fields.linkflag = [flag];
        fields.name[..name.len()].copy_from_slice(name);
        fields.linkname[..link.len()].copy_from_slice(link);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(body);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// The mode of the last entry, which has a body of one block or none.
    pub(crate) fn with_mode(mut self, mode: u32) -> Self {
        let blocks = self.0.len() / 512;
        let is_header = |index: &usize| self.0[index * 512 + 257..].starts_with(b"ustar");
        let last = (0..blocks).rev().find(is_header).unwrap() * 512;
        let mut header = tar::Header::from_byte_slice(&self.0[last..last + 512]).clone();
        header.set_mode(mode);
        header.set_cksum();
        self.0[last..last + 512].copy_from_slice(header.as_bytes());
        self
    }

    fn entry(self, flag: u8, name: &str, link: &str, body: &[u8]) -> Self {
        let size = u64::try_from(body.len()).unwrap();
        self.raw(flag, name.as_bytes(), link.as_bytes(), size, body)
    }

    pub(crate) fn file(self, name: &str, body: &str) -> Self {
        self.entry(b'0', name, "", body.as_bytes())
    }

    fn directory(self, name: &str) -> Self {
        self.entry(b'5', name, "", b"")
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(b'2', name, target, b"")
    }

    fn hardlink(self, name: &str, target: &str) -> Self {
        self.entry(b'1', name, target, b"")
    }

    fn pax(self, key: &str, value: &[u8]) -> Self {
        let length = key.len() + value.len() + 3;
        let mut total = length;
        while length + total.to_string().len() != total {
            total = length + total.to_string().len();
        }
        let record = [
            total.to_string().as_bytes(),
            b" ",
            key.as_bytes(),
            b"=",
            value,
            b"\n",
        ]
        .concat();
        self.entry(b'x', "pax", "", &record)
    }

    /// A further record of the pax header before.
    fn pax_more(mut self, key: &str, value: &[u8]) -> Self {
        let more = Self::default().pax(key, value).0;
        let start = self.0.len() - 1024;
        let header = self.0.get(start..start + 512).unwrap();
        let sizes = [header, &more[..512]].map(|header| {
            let header = tar::Header::from_byte_slice(header);
            usize::try_from(header.size().unwrap()).unwrap()
        });
        let body = [
            &self.0[start + 512..start + 512 + sizes[0]],
            &more[512..512 + sizes[1]],
        ]
        .concat();
        assert!(body.len() <= 512, "one block");
        self.0.truncate(start);
        self.entry(b'x', "pax", "", &body)
    }

    fn gnu_sparse(
        mut self,
        name: &str,
        size: usize,
        parts: &[(usize, usize)],
        body: &[u8],
    ) -> Self {
        fn octal(field: &mut [u8; 12], number: usize) {
            field.copy_from_slice(format!("{number:011o}\0").as_bytes());
        }
        let mut header = tar::Header::new_gnu();
        header.set_size(u64::try_from(body.len()).unwrap());
        header.set_mode(0o644);
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(0);
        header.set_path(name).unwrap();
        header.set_entry_type(tar::EntryType::GNUSparse);
        let gnu = header.as_gnu_mut().unwrap();
        octal(&mut gnu.realsize, size);
        let (first, rest) = parts.split_at(parts.len().min(4));
        for (entry, part) in gnu.sparse.iter_mut().zip(first) {
            octal(&mut entry.offset, part.0);
            octal(&mut entry.numbytes, part.1);
        }
        gnu.isextended = [u8::from(!rest.is_empty())];
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        let blocks: Vec<_> = rest.chunks(21).collect();
        for (index, parts) in blocks.iter().enumerate() {
            let mut block = tar::GnuExtSparseHeader::new();
            for (entry, part) in block.sparse.iter_mut().zip(*parts) {
                octal(&mut entry.offset, part.0);
                octal(&mut entry.numbytes, part.1);
            }
            block.isextended = [u8::from(index + 1 < blocks.len())];
            self.0.extend_from_slice(block.as_bytes());
        }
        self.0.extend_from_slice(body);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    let level = ruzstd::encoding::CompressionLevel::Fastest;
    // Frames as lazily pulled images have them: several, and one to skip.
    let (start, rest) = bytes.split_at(bytes.len() / 2);
    [
        ruzstd::encoding::compress_to_vec(start, level).as_slice(),
        b"\x53\x2a\x4d\x18\x05\0\0\0table",
        &ruzstd::encoding::compress_to_vec(rest, level),
    ]
    .concat()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Blobs in memory. Counts how often each was opened.
#[derive(Default)]
struct MemoryBlobs {
    blobs: Mutex<HashMap<Digest, Result<Vec<u8>, BlobError>>>,
    opened: Mutex<HashMap<Digest, usize>>,
}

impl MemoryBlobs {
    fn add(&self, bytes: &[u8]) -> Digest {
        let digest = digest_of(bytes);
        self.put(digest, Ok(bytes.to_vec()));
        digest
    }

    fn put(&self, digest: Digest, blob: Result<Vec<u8>, BlobError>) {
        self.blobs.lock().unwrap().insert(digest, blob);
    }

    fn opened(&self, digest: &Digest) -> usize {
        self.opened
            .lock()
            .unwrap()
            .get(digest)
            .copied()
            .unwrap_or(0)
    }
}

impl Blobs for MemoryBlobs {
    fn open(&self, _namespace: &str, digest: &Digest) -> BlobStream {
        *self.opened.lock().unwrap().entry(*digest).or_default() += 1;
        let blob = self.blobs.lock().unwrap().get(digest).cloned();
        in_chunks(blob.unwrap_or(Err(BlobError::NotFound(*digest))), 1000)
    }
}

fn in_chunks(blob: Result<Vec<u8>, BlobError>, length: usize) -> BlobStream {
    let chunks = match blob {
        Ok(bytes) => bytes
            .chunks(length)
            .map(|chunk| Ok(Bytes::copy_from_slice(chunk)))
            .collect(),
        Err(error) => vec![Err(error)],
    };
    Box::pin(tokio_stream::iter(chunks))
}

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_time()
            .build()
            .unwrap()
    })
}

/// Reads a blob as the layer of `tar`.
fn read(blob: &[u8], tar: &[u8], chunk: usize) -> Result<Layer, LayerError> {
    let stream = in_chunks(Ok(blob.to_vec()), chunk);
    let reader = BlobReader::new(runtime().handle().clone(), stream);
    read_layer(reader, &digest_of(blob), &digest_of(tar))
}

pub(crate) fn layer(tar: Tar) -> Result<Layer, LayerError> {
    let tar = tar.end();
    read(&tar, &tar, 1000)
}

/// The entries of a layer, one a line. Bodies of up to one letter are told from their hash.
fn listing(layer: &Layer) -> String {
    let mut text = String::new();
    for (path, entry) in layer.entries() {
        text.push_str(&format!("{} {}\n", path.escape_ascii(), shown(entry)));
    }
    text
}

fn shown(entry: Entry<'_>) -> String {
    match entry {
        Entry::Whiteout => "whiteout".to_owned(),
        Entry::Hardlink { target } => format!("link {}", target.escape_ascii()),
        Entry::Directory { opaque, metadata } => format!(
            "directory{}{}",
            if opaque { " opaque" } else { "" },
            if metadata.is_none() { " implied" } else { "" },
        ),
        Entry::Node { kind, .. } => shown_kind(kind),
    }
}

fn shown_kind(kind: EntryKind<'_>) -> String {
    match kind {
        EntryKind::File { sha256, size } => format!("file {size} {}", body_of(&sha256.unwrap())),
        EntryKind::Directory => "directory".to_owned(),
        EntryKind::Symlink { target } => format!("-> {}", target.escape_ascii()),
        EntryKind::CharDevice { major, minor } => format!("char {major}:{minor}"),
        EntryKind::BlockDevice { major, minor } => format!("block {major}:{minor}"),
        EntryKind::Fifo => "fifo".to_owned(),
    }
}

fn body_of(sha256: &Sha256) -> String {
    if digest_of(b"").0 == *sha256 {
        return "nothing".to_owned();
    }
    let letter = (b'a'..=b'z').find(|letter| digest_of(&[*letter]).0 == *sha256);
    letter.map_or_else(
        || sha256.to_string(),
        |letter| char::from(letter).to_string(),
    )
}
