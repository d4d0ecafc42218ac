//! The frames of a tar stream, read as Go's `archive/tar` reads them, because that is what
//! unpacks layers in containerd: what another reader would see in the same bytes does not matter.
//!
//! The `tar` crate gives the layout of a header only. Its iterator reads name extensions into
//! memory without a bound and counts a body for links and directories, which Go does not.

use std::io::{self, BufRead, Read};

use tar::Header;

use super::{
    capability::{self, FileCapability},
    layer::PATH_BYTES_MAX,
    sparse::{self, Form},
    unpack::{LAYER_BYTES_MAX, LayerError},
};
use crate::digest::{Hasher, Sha256};

/// Bytes of a pax header or a long name; Go's limit.
const EXTENSION_BYTES_MAX: u64 = 1 << 20;

const BLOCK: u64 = 512;

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File { size: u64, sha256: Sha256 },
    Directory,
    Symlink(Vec<u8>),
    Hardlink(Vec<u8>),
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
}

/// One entry; its name and its target are as they stand in the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TarEntry {
    pub(super) name: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) capability: Option<FileCapability>,
}

/// Reads one entry after the other.
pub(super) struct TarReader<R> {
    input: R,
    // Bytes that fill the last block of the body before the next header.
    padding: u64,
    // Zeros that may still be hashed for the holes of sparse files, which take no bytes.
    holes_left: u64,
}

#[derive(Default)]
struct Pax {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    capability: Option<FileCapability>,
    sparse: sparse::Pax,
}

impl<R: BufRead> TarReader<R> {
    pub(super) fn new(input: R) -> Self {
        Self {
            input,
            padding: 0,
            holes_left: LAYER_BYTES_MAX,
        }
    }

    /// What is left after the end of the archive is for the caller to read.
    pub(super) fn into_inner(self) -> R {
        self.input
    }

    /// The next entry, its body read and hashed; `None` at the end of the archive.
    pub(super) fn next(&mut self) -> Result<Option<TarEntry>, LayerError> {
        let mut pax = Pax::default();
        let mut long_name = None;
        let mut long_link = None;
        loop {
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let fields = header.as_old();
            let stated_size = number(&fields.size)?;
            let [flag] = fields.linkflag;
            match flag {
                b'x' => {
                    pax = parse_pax(&self.extension(stated_size)?)?;
                    continue;
                }
                // containerd ignores what is meant for all entries.
                b'g' => {
                    self.extension(stated_size)?;
                    continue;
                }
                b'L' => {
                    long_name = Some(until_nul(&self.extension(stated_size)?).to_vec());
                    continue;
                }
                b'K' => {
                    long_link = Some(until_nul(&self.extension(stated_size)?).to_vec());
                    continue;
                }
                _ => {}
            }
            let form = pax.sparse.form();
            let sparse_name = form.and_then(|_| pax.sparse.name.take());
            let name = sparse_name
                .or(long_name)
                .or(pax.path)
                .unwrap_or_else(|| name_of(&header));
            let link = long_link
                .or(pax.link)
                .unwrap_or_else(|| until_nul(&fields.linkname).to_vec());
            bounded(&name)?;
            bounded(&link)?;
            let kind = match flag {
                // Archives older than POSIX have directories in this form.
                0 if name.ends_with(b"/") => Kind::Directory,
                b'0' | 0 => {
                    let size = pax.size.unwrap_or(stated_size);
                    match form {
                        None => self.file(size)?,
                        Some(Form::Records) => self.sparse_file(&pax.sparse.map(size)?, size)?,
                        Some(Form::Body) => {
                            let map = pax.sparse.map_in_body(&mut self.input, size)?;
                            self.sparse_file(&map, size)?
                        }
                    }
                }
                b'1' => Kind::Hardlink(link),
                b'2' => Kind::Symlink(link),
                b'3' => {
                    let (major, minor) = device(&header)?;
                    Kind::CharDevice { major, minor }
                }
                b'4' => {
                    let (major, minor) = device(&header)?;
                    Kind::BlockDevice { major, minor }
                }
                b'5' => Kind::Directory,
                b'6' => Kind::Fifo,
                b'S' => {
                    let size = pax.size.unwrap_or(stated_size);
                    let map = sparse::map_of_header(&header, size, &mut self.input)?;
                    self.sparse_file(&map, size)?
                }
                other => return Err(LayerError::EntryType(other)),
            };
            let mode = number(&fields.mode)? & 0o7777;
            return Ok(Some(TarEntry {
                name,
                kind,
                mode: u16::try_from(mode).map_err(|_| LayerError::Header("mode"))?,
                uid: owner(pax.uid, &fields.uid)?,
                gid: owner(pax.gid, &fields.gid)?,
                capability: pax.capability,
            }));
        }
    }

    fn header(&mut self) -> Result<Option<Header>, LayerError> {
        let padding = std::mem::take(&mut self.padding);
        let skipped = io::copy(&mut self.input.by_ref().take(padding), &mut io::sink())?;
        if skipped < padding {
            // Go takes an archive that ends without filling its last block.
            return Ok(None);
        }
        let mut header = Header::new_old();
        if !self.block(header.as_mut_bytes())? {
            return Ok(None);
        }
        if is_zero(&header) {
            // One block of zeros is the end only with a second, or with nothing, after it.
            if self.block(header.as_mut_bytes())? && !is_zero(&header) {
                return Err(LayerError::Header("end"));
            }
            return Ok(None);
        }
        let stated = number(&header.as_old().cksum)?;
        let (mut unsigned, mut signed) = (0_u64, 0_i64);
        for (index, byte) in header.as_bytes().iter().enumerate() {
            // The sum is taken with its own field as spaces.
            let byte = if (148..156).contains(&index) {
                b' '
            } else {
                *byte
            };
            unsigned += u64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        if stated != unsigned && u64::try_from(signed) != Ok(stated) {
            return Err(LayerError::Header("checksum"));
        }
        Ok(Some(header))
    }

    /// Fills a block; false if the stream has ended before it.
    fn block(&mut self, into: &mut [u8; 512]) -> Result<bool, LayerError> {
        if self.input.fill_buf()?.is_empty() {
            return Ok(false);
        }
        self.input.read_exact(into)?;
        Ok(true)
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, LayerError> {
        if size > EXTENSION_BYTES_MAX {
            return Err(LayerError::ExtensionTooLong(size));
        }
        let mut bytes = Vec::new();
        self.input.by_ref().take(size).read_to_end(&mut bytes)?;
        if u64::try_from(bytes.len()) != Ok(size) {
            return Err(LayerError::Truncated);
        }
        self.padding = padding(size);
        Ok(bytes)
    }

    fn file(&mut self, size: u64) -> Result<Kind, LayerError> {
        let mut hash = Hasher::new();
        self.hash(size, &mut hash)?;
        self.padding = padding(size);
        Ok(Kind::File {
            size,
            sha256: hash.finish(),
        })
    }

    /// `body` is the length of all that the archive holds of the file, its map with it.
    fn sparse_file(&mut self, map: &sparse::Map, body: u64) -> Result<Kind, LayerError> {
        let mut hash = Hasher::new();
        let mut end = 0;
        for fragment in &map.fragments {
            self.hole(fragment.offset.saturating_sub(end), &mut hash)?;
            self.hash(fragment.length, &mut hash)?;
            end = fragment.offset.saturating_add(fragment.length);
        }
        self.hole(map.size.saturating_sub(end), &mut hash)?;
        self.padding = padding(body);
        Ok(Kind::File {
            size: map.size,
            sha256: hash.finish(),
        })
    }

    fn hole(&mut self, length: u64, hash: &mut Hasher) -> Result<(), LayerError> {
        const ZEROS: &[u8] = &[0; 32 << 10];
        self.holes_left = self
            .holes_left
            .checked_sub(length)
            .ok_or(LayerError::TooLarge)?;
        let mut left = length;
        while left > 0 {
            let part = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROS.len());
            hash.update(ZEROS.get(..part).unwrap_or_default());
            left = left.saturating_sub(u64::try_from(part).unwrap_or(u64::MAX));
        }
        Ok(())
    }

    fn hash(&mut self, length: u64, hash: &mut Hasher) -> Result<(), LayerError> {
        let mut left = length;
        while left > 0 {
            let buffer = self.input.fill_buf()?;
            if buffer.is_empty() {
                return Err(LayerError::Truncated);
            }
            let part = usize::try_from(left)
                .unwrap_or(usize::MAX)
                .min(buffer.len());
            hash.update(buffer.get(..part).unwrap_or_default());
            self.input.consume(part);
            left = left.saturating_sub(u64::try_from(part).unwrap_or(u64::MAX));
        }
        Ok(())
    }
}

fn padding(size: u64) -> u64 {
    (BLOCK - size % BLOCK) % BLOCK
}

fn is_zero(header: &Header) -> bool {
    header.as_bytes().iter().all(|byte| *byte == 0)
}

fn bounded(path: &[u8]) -> Result<(), LayerError> {
    if path.len() > PATH_BYTES_MAX {
        Err(LayerError::PathTooLong(path.len()))
    } else {
        Ok(())
    }
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn name_of(header: &Header) -> Vec<u8> {
    let name = until_nul(&header.as_old().name);
    match header.as_ustar().map(|ustar| until_nul(&ustar.prefix)) {
        Some(prefix) if !prefix.is_empty() => [prefix, b"/", name].concat(),
        _ => name.to_vec(),
    }
}

fn device(header: &Header) -> Result<(u32, u32), LayerError> {
    let (major, minor) = match (header.as_ustar(), header.as_gnu()) {
        (Some(ustar), _) => (&ustar.dev_major, &ustar.dev_minor),
        (_, Some(gnu)) => (&gnu.dev_major, &gnu.dev_minor),
        (None, None) => return Ok((0, 0)),
    };
    let read = |field| u32::try_from(number(field)?).map_err(|_| LayerError::Header("device"));
    Ok((read(major)?, read(minor)?))
}

fn owner(pax: Option<u64>, field: &[u8]) -> Result<u32, LayerError> {
    let id = pax.map_or_else(|| number(field), Ok)?;
    u32::try_from(id).map_err(|_| LayerError::Header("owner"))
}

/// A number in octal digits, or as big-endian bytes where the first bit is set.
pub(super) fn number(field: &[u8]) -> Result<u64, LayerError> {
    let refused = || LayerError::Header("number");
    if let Some((first, rest)) = field.split_first()
        && first & 0x80 != 0
    {
        // The next bit is the sign; nothing that is read here can be negative.
        if first & 0x40 != 0 {
            return Err(refused());
        }
        return rest
            .iter()
            .try_fold(u64::from(first & 0x3f), |value, byte| {
                if value >> 55 != 0 {
                    Err(refused())
                } else {
                    Ok(value << 8 | u64::from(*byte))
                }
            });
    }
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let digits = field
        .iter()
        .skip_while(|byte| blank(byte))
        .take_while(|byte| **byte != 0);
    let digits: Vec<u8> = digits.copied().collect();
    digits
        .trim_ascii_end()
        .iter()
        .try_fold(0_u64, |value, digit| match digit {
            b'0'..=b'7' if value >> 60 == 0 => Ok(value << 3 | u64::from(digit - b'0')),
            _ => Err(refused()),
        })
}

/// Records of the form `LENGTH KEY=VALUE\n`. The `tar` crate splits them at line ends, which a
/// value may hold.
fn parse_pax(mut records: &[u8]) -> Result<Pax, LayerError> {
    let refused = || LayerError::Header("pax record");
    let mut pax = Pax::default();
    while !records.is_empty() {
        let space = records
            .iter()
            .position(|byte| *byte == b' ')
            .ok_or_else(refused)?;
        let (length, _) = records.split_at_checked(space).ok_or_else(refused)?;
        let length = usize::try_from(decimal(length)?).map_err(|_| refused())?;
        let (record, rest) = records.split_at_checked(length).ok_or_else(refused)?;
        records = rest;
        let record = record
            .get(space + 1..)
            .and_then(|record| record.strip_suffix(b"\n"));
        let record = record.ok_or_else(refused)?;
        let equals = record
            .iter()
            .position(|byte| *byte == b'=')
            .ok_or_else(refused)?;
        let (key, value) = record.split_at_checked(equals).ok_or_else(refused)?;
        let value = value.get(1..).unwrap_or_default();
        if key.is_empty() {
            return Err(refused());
        }
        if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
            pax.sparse.take(key, value)?;
            continue;
        }
        if matches!(key, b"path" | b"linkpath") && value.contains(&0) {
            return Err(LayerError::NulInPath);
        }
        // An empty value takes the record back: the header's own field stands.
        let text = (!value.is_empty()).then(|| value.to_vec());
        let count = || {
            if value.is_empty() {
                Ok(None)
            } else {
                decimal(value).map(Some)
            }
        };
        match key {
            b"path" => pax.path = text,
            b"linkpath" => pax.link = text,
            b"size" => pax.size = count()?,
            b"uid" => pax.uid = count()?,
            b"gid" => pax.gid = count()?,
            // Other attributes change nothing about what a file does.
            key if key.strip_prefix(b"SCHILY.xattr.") == Some(capability::ATTRIBUTE.as_bytes()) => {
                let parsed = FileCapability::parse(value);
                pax.capability = Some(parsed.ok_or(LayerError::Header("file capability"))?);
            }
            _ => {}
        }
    }
    Ok(pax)
}

pub(super) fn decimal(text: &[u8]) -> Result<u64, LayerError> {
    str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or(LayerError::Header("pax record"))
}
