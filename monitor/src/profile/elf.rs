//! What an ELF file is linked with (ELF-64 Object File Format, chapters 6 and 7; ELF-32 likewise).
//! Every number in it is a stranger's.

/// Program headers looked at.
const HEADERS_MAX: u64 = 128;
/// Bytes of the dynamic section that are read.
const DYNAMIC_BYTES_MAX: u64 = 64 << 10;
/// Bytes of a name.
const NAME_BYTES_MAX: u64 = 4096;
/// Libraries of one file.
const NEEDED_MAX: usize = 256;

const MAGIC: &[u8] = b"\x7fELF";
const CLASS_32: u8 = 1;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;

const PT_LOAD: u64 = 1;
const PT_DYNAMIC: u64 = 2;
const PT_INTERP: u64 = 3;

const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_RPATH: u64 = 15;
const DT_RUNPATH: u64 = 29;

/// What a file is linked with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Linked {
    /// The dynamic loader; `None` of static programs and of most libraries.
    pub(super) interpreter: Option<Vec<u8>>,
    /// Names of libraries.
    pub(super) needed: Vec<Vec<u8>>,
    /// Directories where they are looked for first, separated by colons.
    pub(super) rpath: Option<Vec<u8>>,
    /// Likewise; `rpath` does not count then.
    pub(super) runpath: Option<Vec<u8>>,
    /// A file of 64 bits.
    pub(super) is_64: bool,
}

/// Reads some bytes of the file: `length` from `offset` on, or as many as there are.
type Read<'a> = dyn FnMut(u64, usize) -> Option<Vec<u8>> + 'a;

struct Form {
    is_64: bool,
    is_little: bool,
}

struct Segment {
    kind: u64,
    offset: u64,
    address: u64,
    size: u64,
}

impl Form {
    fn number(&self, bytes: &[u8], at: usize, width: usize) -> Option<u64> {
        let bytes = bytes.get(at..at.checked_add(width)?)?;
        let add = |sum: u64, byte: &u8| (sum << 8) | u64::from(*byte);
        Some(if self.is_little {
            bytes.iter().rev().fold(0, add)
        } else {
            bytes.iter().fold(0, add)
        })
    }

    /// A number that is as wide as an address.
    fn word(&self, bytes: &[u8], at: usize) -> Option<u64> {
        self.number(bytes, at, if self.is_64 { 8 } else { 4 })
    }

    fn segment(&self, bytes: &[u8]) -> Option<Segment> {
        let (offset, address, size) = if self.is_64 { (8, 16, 32) } else { (4, 8, 16) };
        Some(Segment {
            kind: self.number(bytes, 0, 4)?,
            offset: self.word(bytes, offset)?,
            address: self.word(bytes, address)?,
            size: self.word(bytes, size)?,
        })
    }
}

/// What a file is linked with; `None` if it is no ELF file.
pub(super) fn linked(read: &mut Read<'_>) -> Option<Linked> {
    let header = read(0, 64)?;
    if !header.starts_with(MAGIC) {
        return None;
    }
    let form = Form {
        is_64: match *header.get(4)? {
            CLASS_64 => true,
            CLASS_32 => false,
            _ => return None,
        },
        is_little: *header.get(5)? == LITTLE_ENDIAN,
    };
    let (at, entry, count) = if form.is_64 {
        (32, 54, 56)
    } else {
        (28, 42, 44)
    };
    let table = form.word(&header, at)?;
    let entry = form.number(&header, entry, 2)?;
    let count = form.number(&header, count, 2)?.min(HEADERS_MAX);
    let least = if form.is_64 { 56 } else { 32 };
    if entry < least || entry > 4096 {
        return None;
    }
    let table = read(table, usize::try_from(entry * count).ok()?)?;
    let segments: Vec<Segment> = table
        .chunks_exact(usize::try_from(entry).ok()?)
        .filter_map(|bytes| form.segment(bytes))
        .collect();
    let mut linked = Linked {
        is_64: form.is_64,
        ..Linked::default()
    };
    let of_kind = |kind| segments.iter().find(move |segment| segment.kind == kind);
    if let Some(segment) = of_kind(PT_INTERP) {
        linked.interpreter = name(read, segment.offset, segment.size);
    }
    if let Some(segment) = of_kind(PT_DYNAMIC) {
        // Without its parts a file is not linked with anything.
        let _ = dynamic(&form, &segments, segment, read, &mut linked);
    }
    Some(linked)
}

fn dynamic(
    form: &Form,
    segments: &[Segment],
    segment: &Segment,
    read: &mut Read<'_>,
    linked: &mut Linked,
) -> Option<()> {
    let size = usize::try_from(segment.size.min(DYNAMIC_BYTES_MAX)).ok()?;
    let bytes = read(segment.offset, size)?;
    let width = if form.is_64 { 8 } else { 4 };
    let entries: Vec<(u64, u64)> = bytes
        .chunks_exact(2 * width)
        .filter_map(|entry| Some((form.word(entry, 0)?, form.word(entry, width)?)))
        .take_while(|(tag, _)| *tag != 0)
        .collect();
    let value = |wanted: u64| {
        entries
            .iter()
            .find(|(tag, _)| *tag == wanted)
            .map(|it| it.1)
    };
    let address = value(DT_STRTAB)?;
    let load = segments.iter().find(|segment| {
        let end = segment.address.checked_add(segment.size);
        segment.kind == PT_LOAD
            && segment.address <= address
            && end.is_some_and(|end| address < end)
    })?;
    let names = load.offset.checked_add(address - load.address)?;
    let mut text = |offset: u64| name(read, names.checked_add(offset)?, NAME_BYTES_MAX);
    linked.rpath = value(DT_RPATH).and_then(&mut text);
    linked.runpath = value(DT_RUNPATH).and_then(&mut text);
    let needed = entries
        .iter()
        .filter(|(tag, _)| *tag == DT_NEEDED)
        .take(NEEDED_MAX);
    linked.needed = needed.filter_map(|(_, offset)| text(*offset)).collect();
    Some(())
}

/// A name that ends with a NUL, of at most `size` bytes.
fn name(read: &mut Read<'_>, offset: u64, size: u64) -> Option<Vec<u8>> {
    let mut bytes = read(offset, usize::try_from(size.min(NAME_BYTES_MAX)).ok()?)?;
    let end = bytes.iter().position(|byte| *byte == 0)?;
    bytes.truncate(end);
    (!bytes.is_empty()).then_some(bytes)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A file of 64 bits that is linked with libraries.
    pub(in super::super) fn file(
        interpreter: Option<&str>,
        needed: &[&str],
        runpath: Option<&str>,
    ) -> Vec<u8> {
        const TABLE: u64 = 64;
        const ENTRY: u64 = 56;
        let start = TABLE + 3 * ENTRY;
        let mut names = vec![0];
        let mut put = |text: &str| {
            let at = names.len() as u64;
            names.extend(text.as_bytes());
            names.push(0);
            at
        };
        let interpreter_at = interpreter.map(&mut put);
        let mut entries: Vec<(u64, u64)> =
            needed.iter().map(|text| (DT_NEEDED, put(text))).collect();
        entries.extend(runpath.map(|text| (DT_RUNPATH, put(text))));
        entries.push((DT_STRTAB, 0x1000 + start));
        entries.push((0, 0));
        let dynamic_at = start + names.len() as u64;
        let mut bytes = vec![0; 64];
        let mut set = |at: usize, value: &[u8]| {
            bytes
                .get_mut(at..at + value.len())
                .unwrap()
                .copy_from_slice(value);
        };
        set(0, MAGIC);
        set(4, &[CLASS_64, LITTLE_ENDIAN]);
        set(32, &TABLE.to_le_bytes());
        set(54, &56u16.to_le_bytes());
        set(56, &3u16.to_le_bytes());
        let mut segment = |kind: u64, offset: u64, address: u64, size: u64| {
            let numbers = [offset, address, address, size, size, 0];
            bytes.extend(kind.to_le_bytes());
            bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        };
        segment(PT_LOAD, 0, 0x1000, 1 << 20);
        segment(PT_DYNAMIC, dynamic_at, 0, entries.len() as u64 * 16);
        match (interpreter, interpreter_at) {
            (Some(text), Some(at)) => segment(PT_INTERP, start + at, 0, text.len() as u64 + 1),
            _ => segment(0, 0, 0, 0),
        }
        bytes.extend(names);
        bytes.extend(
            entries
                .iter()
                .flat_map(|(tag, value)| [tag.to_le_bytes(), value.to_le_bytes()].concat()),
        );
        bytes
    }

    fn of(file: &[u8]) -> Option<Linked> {
        linked(&mut |offset, length| {
            let rest = file.get(usize::try_from(offset).ok()?..)?;
            Some(rest.get(..length).unwrap_or(rest).to_vec())
        })
    }

    #[test]
    fn a_file_tells_what_it_is_linked_with() {
        let file = file(
            Some("/lib/ld.so"),
            &["libc.so.6", "libm.so.6"],
            Some("$ORIGIN"),
        );
        let linked = of(&file).unwrap();
        assert_eq!(linked.interpreter.as_deref(), Some(&b"/lib/ld.so"[..]));
        assert_eq!(linked.needed, [&b"libc.so.6"[..], b"libm.so.6"]);
        assert_eq!(linked.runpath.as_deref(), Some(&b"$ORIGIN"[..]));
        assert_eq!(of(b"#!/bin/sh"), None);
        assert_eq!(of(b""), None);
    }

    proptest! {
        #[test]
        fn damaged_files_never_panic(
            changes in proptest::collection::vec((0usize..600, any::<u8>()), 0..20),
            cut in 0usize..600,
        ) {
            let mut file = file(Some("/lib/ld.so"), &["libc.so.6"], Some("/x"));
            for (at, value) in changes {
                if let Some(byte) = file.get_mut(at) {
                    *byte = value;
                }
            }
            file.truncate(cut);
            of(&file);
        }
    }
}
