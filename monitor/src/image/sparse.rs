//! Where the bytes of a sparse file lie: the maps of GNU tar, in its own header (`S`) and in its
//! three pax forms, read as Go's `archive/tar` reads them.

use std::io;

use super::{
    tar::{decimal, number},
    unpack::LayerError,
};

/// Bytes of a map; Go's limit.
const MAP_BYTES_MAX: usize = 1 << 20;

/// A part of the file that the archive holds; what lies between is zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fragment {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// What a sparse file is made of.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Map {
    /// Bytes of the file.
    pub(super) size: u64,
    /// In order, and not beyond `size`.
    pub(super) fragments: Vec<Fragment>,
}

impl Map {
    /// `stored` is what the archive holds of it, which must be all of the fragments and no more.
    fn new(size: u64, stored: u64, fragments: Vec<Fragment>) -> Result<Self, LayerError> {
        let mut end = 0;
        let mut total = 0_u64;
        for fragment in &fragments {
            if fragment.offset < end {
                return Err(refused());
            }
            end = fragment
                .offset
                .checked_add(fragment.length)
                .filter(|end| *end <= size)
                .ok_or_else(refused)?;
            total += fragment.length;
        }
        if total != stored {
            return Err(refused());
        }
        Ok(Self { size, fragments })
    }
}

/// The pax records about a sparse file. Records that name no version that Go knows mean nothing.
#[derive(Default)]
pub(super) struct Pax {
    pub(super) major: Option<Vec<u8>>,
    pub(super) minor: Option<Vec<u8>>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) real_size: Option<u64>,
    pub(super) blocks: Option<u64>,
    pub(super) map: Option<Vec<u8>>,
    // Version 0.0 spells the map as pairs of records.
    pairs: Vec<u64>,
}

/// Where the map of a file is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// In the records.
    Records,
    /// Before the bytes of the file.
    Body,
}

impl Pax {
    /// Takes a record whose key starts with `GNU.sparse.`.
    pub(super) fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), LayerError> {
        let text = (!value.is_empty()).then(|| value.to_vec());
        let count = || text.as_deref().map(decimal).transpose();
        match key {
            b"offset" | b"numbytes" => {
                let is_offset = self.pairs.len().is_multiple_of(2);
                if is_offset != (key == b"offset") {
                    return Err(refused());
                }
                self.pairs.push(decimal(value)?);
            }
            b"major" => self.major = text,
            b"minor" => self.minor = text,
            b"name" => self.name = text,
            b"size" => self.size = count()?,
            b"realsize" => self.real_size = count()?,
            b"numblocks" => self.blocks = count()?,
            b"map" => self.map = text,
            _ => {}
        }
        Ok(())
    }

    pub(super) fn form(&self) -> Option<Form> {
        let version = (
            self.major.as_deref().unwrap_or_default(),
            self.minor.as_deref().unwrap_or_default(),
        );
        match version {
            (b"0", b"0" | b"1") => Some(Form::Records),
            (b"1", b"0") => Some(Form::Body),
            (b"", b"") if self.map.is_some() || !self.pairs.is_empty() => Some(Form::Records),
            _ => None,
        }
    }

    /// The map of a file of which `stored` bytes are in the archive.
    pub(super) fn map(&self, stored: u64) -> Result<Map, LayerError> {
        let numbers = if self.pairs.is_empty() {
            let map = self.map.as_deref().unwrap_or_default();
            map.split(|byte| *byte == b',')
                .filter(|number| !number.is_empty())
                .map(decimal)
                .collect::<Result<_, _>>()?
        } else {
            self.pairs.clone()
        };
        let fragments = paired(&numbers)?;
        if self.blocks != u64::try_from(fragments.len()).ok() {
            return Err(refused());
        }
        Map::new(self.full_size(stored), stored, fragments)
    }

    /// The map that stands in the first blocks of a body of `length` bytes.
    pub(super) fn map_in_body(
        &self,
        input: &mut impl io::BufRead,
        length: u64,
    ) -> Result<Map, LayerError> {
        let mut text = Vec::new();
        let mut numbers = Vec::new();
        let mut wanted = None;
        let mut start = 0;
        while wanted.is_none_or(|wanted| numbers.len() < wanted) {
            let Some(line) = text
                .get(start..)
                .and_then(|rest: &[u8]| rest.split_inclusive(|byte| *byte == b'\n').next())
                .and_then(|line| line.strip_suffix(b"\n"))
            else {
                if text.len() >= MAP_BYTES_MAX {
                    return Err(refused());
                }
                let mut block = [0; 512];
                input.read_exact(&mut block)?;
                text.extend_from_slice(&block);
                continue;
            };
            start += line.len() + 1;
            let number = decimal(line)?;
            if wanted.is_some() {
                numbers.push(number);
            } else {
                // Each number takes two bytes at least.
                let count = usize::try_from(number)
                    .ok()
                    .filter(|count| *count <= MAP_BYTES_MAX / 4);
                wanted = Some(count.ok_or_else(refused)? * 2);
            }
        }
        let stored = u64::try_from(text.len())
            .ok()
            .and_then(|map| length.checked_sub(map))
            .ok_or_else(refused)?;
        Map::new(self.full_size(length), stored, paired(&numbers)?)
    }

    fn full_size(&self, stored: u64) -> u64 {
        self.size.or(self.real_size).unwrap_or(stored)
    }
}

/// The map in the header of an entry of type `S`, and in the blocks that follow it.
pub(super) fn map_of_header(
    header: &tar::Header,
    stored: u64,
    input: &mut impl io::BufRead,
) -> Result<Map, LayerError> {
    let header = header.as_gnu().ok_or_else(refused)?;
    let size = number(&header.realsize)?;
    let mut fragments = Vec::new();
    let mut take = |entries: &[tar::GnuSparseHeader]| -> Result<(), LayerError> {
        for entry in entries {
            if entry.offset.first() == Some(&0) {
                break;
            }
            fragments.push(Fragment {
                offset: number(&entry.offset)?,
                length: number(&entry.numbytes)?,
            });
        }
        Ok(())
    };
    take(&header.sparse)?;
    let mut is_extended = header.is_extended();
    let mut left = MAP_BYTES_MAX;
    while is_extended {
        let mut more = tar::GnuExtSparseHeader::new();
        left = left
            .checked_sub(more.as_bytes().len())
            .ok_or_else(refused)?;
        input.read_exact(more.as_mut_bytes())?;
        take(&more.sparse)?;
        is_extended = more.is_extended();
    }
    Map::new(size, stored, fragments)
}

fn paired(numbers: &[u64]) -> Result<Vec<Fragment>, LayerError> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(refused());
    }
    let pairs = pairs.iter();
    Ok(pairs
        .map(|[offset, length]| Fragment {
            offset: *offset,
            length: *length,
        })
        .collect())
}

fn refused() -> LayerError {
    LayerError::Header("map of a sparse file")
}
