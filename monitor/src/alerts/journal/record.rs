//! The bytes of a segment: a header, then records. Pure, so that each cut and each flipped bit can
//! be tried.
//!
//! A record is `length u32, checksum of the payload u32, cursor u64, checksum of these u32`, then
//! the alert in protobuf. The record's header has a checksum of its own: bytes that rotted in one
//! alert then lose that alert alone, since the length can still be trusted. It also covers the
//! segment's identity, so that what an older file left on the disk is no record of this one.

use std::io::{self, Read, Seek};

use monitor_api::v1::Alert;
use prost::Message as _;
use ulid::Ulid;

use super::GapReason;

const MAGIC: [u8; 8] = *b"monjrnl1";

/// Bytes of a segment's header.
pub(super) const HEADER_BYTES: usize = 48;

/// Bytes before each alert.
pub(super) const RECORD_HEADER_BYTES: usize = 20;

/// Most bytes of one alert. Ones that are built have less than 64 KiB.
pub(super) const PAYLOAD_BYTES_MAX: usize = 1 << 20;

/// What a segment says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) journal: Ulid,
    /// The least cursor that can be in it.
    pub(super) first: u64,
    /// When it was begun, by the wall clock.
    pub(super) created_unix_ms: i64,
    /// Why cursors before `first` are in no segment, if some are not.
    pub(super) gap: Option<GapReason>,
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(self.journal.to_bytes());
        bytes.extend(self.first.to_le_bytes());
        bytes.extend(self.created_unix_ms.to_le_bytes());
        bytes.extend([self.gap.map_or(0, GapReason::code), 0, 0, 0]);
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        let mut header = [0; HEADER_BYTES];
        header.copy_from_slice(&bytes);
        header
    }

    pub(super) fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let mut rest = bytes.as_slice();
        let checked = bytes.first_chunk::<{ HEADER_BYTES - 4 }>()?;
        let magic = take::<8>(&mut rest)?;
        let header = Self {
            journal: Ulid::from_bytes(take(&mut rest)?),
            first: u64::from_le_bytes(take(&mut rest)?),
            created_unix_ms: i64::from_le_bytes(take(&mut rest)?),
            gap: match take::<4>(&mut rest)? {
                [0, 0, 0, 0] => None,
                [code, 0, 0, 0] => Some(GapReason::from_code(code)?),
                _ => return None,
            },
        };
        let checksum = u32::from_le_bytes(take(&mut rest)?);
        (magic == MAGIC && crc32fast::hash(checked) == checksum).then_some(header)
    }

    fn seed(&self) -> u32 {
        crc32fast::hash(&self.encode())
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (chunk, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*chunk)
}

fn checksum(seed: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(bytes);
    hasher.finalize()
}

/// Writes the record of `alert` behind `into`.
pub(super) fn encode(header: &Header, alert: &Alert, into: &mut Vec<u8>) {
    let payload = alert.encode_to_vec();
    let mut head = Vec::with_capacity(RECORD_HEADER_BYTES);
    head.extend(
        u32::try_from(payload.len())
            .unwrap_or(u32::MAX)
            .to_le_bytes(),
    );
    head.extend(crc32fast::hash(&payload).to_le_bytes());
    head.extend(alert.cursor.to_le_bytes());
    head.extend(checksum(header.seed(), &head).to_le_bytes());
    into.extend(head);
    into.extend(payload);
}

/// A record that was found; its alert is missing if its bytes are not what was written.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::alerts) struct Record {
    pub(in crate::alerts) cursor: u64,
    pub(in crate::alerts) alert: Option<Alert>,
}

/// Reads a segment forward.
#[derive(Debug)]
pub(super) struct Segment<R> {
    source: R,
    header: Header,
    seed: u32,
    offset: u64,
    /// The cursor of the record before; they only grow.
    last: Option<u64>,
}

impl<R: Read + Seek> Segment<R> {
    /// From the beginning of a segment; `None` if it has no whole header.
    pub(super) fn open(mut source: R) -> io::Result<Option<Self>> {
        let mut bytes = [0; HEADER_BYTES];
        if read_full(&mut source, &mut bytes)? < HEADER_BYTES {
            return Ok(None);
        }
        Ok(Header::decode(&bytes).map(|header| Self {
            source,
            header,
            seed: header.seed(),
            offset: HEADER_BYTES as u64,
            last: None,
        }))
    }

    pub(super) fn header(&self) -> &Header {
        &self.header
    }

    /// The end of the last record that was given.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Goes to the end of a record that was read before.
    pub(super) fn seek(&mut self, offset: u64) -> io::Result<()> {
        self.source.seek(io::SeekFrom::Start(offset))?;
        self.offset = offset;
        Ok(())
    }

    /// The next record with a cursor of at least `wanted`; `None` where no whole record follows.
    pub(super) fn next_from(&mut self, wanted: u64) -> io::Result<Option<Record>> {
        loop {
            let mut head = [0; RECORD_HEADER_BYTES];
            if read_full(&mut self.source, &mut head)? < RECORD_HEADER_BYTES {
                return Ok(None);
            }
            let Some((length, payload_checksum, cursor)) = self.decode_head(&head) else {
                return Ok(None);
            };
            let mut payload = vec![0; length];
            if read_full(&mut self.source, &mut payload)? < length {
                return Ok(None);
            }
            self.offset += (RECORD_HEADER_BYTES + length) as u64;
            self.last = Some(cursor);
            if cursor < wanted {
                continue;
            }
            let alert = (crc32fast::hash(&payload) == payload_checksum)
                .then(|| Alert::decode(payload.as_slice()).ok())
                .flatten()
                .filter(|alert| alert.cursor == cursor);
            return Ok(Some(Record { cursor, alert }));
        }
    }

    fn decode_head(&self, head: &[u8; RECORD_HEADER_BYTES]) -> Option<(usize, u32, u64)> {
        let checked = head.first_chunk::<{ RECORD_HEADER_BYTES - 4 }>()?;
        let mut rest = head.as_slice();
        let length = usize::try_from(u32::from_le_bytes(take(&mut rest)?)).ok()?;
        let payload = u32::from_le_bytes(take(&mut rest)?);
        let cursor = u64::from_le_bytes(take(&mut rest)?);
        let is_whole = u32::from_le_bytes(take(&mut rest)?) == checksum(self.seed, checked);
        let grows = cursor >= self.header.first && self.last.is_none_or(|last| cursor > last);
        (is_whole && grows && length <= PAYLOAD_BYTES_MAX).then_some((length, payload, cursor))
    }
}

/// Fills `buffer` as far as there are bytes.
fn read_full(source: &mut impl Read, mut buffer: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while !buffer.is_empty() {
        match source.read(buffer) {
            Ok(0) => break,
            Ok(count) => {
                read += count;
                buffer = buffer.get_mut(count..).unwrap_or_default();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}
