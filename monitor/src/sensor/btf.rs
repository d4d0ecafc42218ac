//! Reads member offsets from the kernel's BTF (`Documentation/bpf/btf.rst`).
//!
//! aya parses BTF as well but shows none of it; this reads what the programs need and nothing
//! else. A module's BTF is split: its types and strings go on where the kernel's end.

mod prototype;

use std::collections::HashMap;

pub use prototype::Prototype;

const MAGIC: u16 = 0xeb9f;
const KIND_INT: u32 = 1;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_ENUM64: u32 = 19;
const KIND_MAX: u32 = KIND_ENUM64;

/// How deep anonymous structs and typedefs may nest; the kernel's do not reach ten.
const DEPTH_MAX: usize = 32;

/// BTF could not be read, or does not say what is asked for.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BtfError {
    /// The bytes are not BTF that this program understands.
    #[error("BTF is damaged or of an unknown form: {0}")]
    Malformed(&'static str),
    /// The kernel has no such struct.
    #[error("this kernel's BTF has no struct {0}")]
    NoStruct(String),
    /// The struct has no such member.
    #[error("this kernel's BTF has no member {member} in struct {structure}")]
    NoMember {
        /// The struct.
        structure: String,
        /// The member, by each name that was tried.
        member: String,
    },
    /// The kernel has no such enumerator.
    #[error("this kernel's BTF has no enumerator {0}")]
    NoEnumerator(String),
    /// The kernel has no such function or tracepoint, or not as one that can be hooked.
    #[error("this kernel's BTF has no function or tracepoint {0}")]
    NoPrototype(String),
}

/// Parsed BTF: where each type lies, and the structs and functions by name.
#[derive(Debug)]
pub struct Btf<'a> {
    base: Option<&'a Btf<'a>>,
    data: &'a [u8],
    strings: &'a [u8],
    /// Strings and types of the base come first.
    first_string: usize,
    first_type: u32,
    types: Vec<usize>,
    structs: HashMap<&'a [u8], u32>,
    functions: HashMap<&'a [u8], u32>,
}

#[derive(Clone, Copy)]
struct Type<'a> {
    /// Offset in the strings.
    name: u32,
    kind: u32,
    /// Of a struct: some members are bit fields. Of a forward declaration: it is a union.
    flag: bool,
    /// Size or type id, as the kind says.
    value: u32,
    members: &'a [u8],
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let bytes = bytes.get(offset..offset.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

impl<'a> Btf<'a> {
    /// Parses the kernel's BTF, or with `base` a module's.
    pub fn parse(bytes: &'a [u8], base: Option<&'a Self>) -> Result<Self, BtfError> {
        use BtfError::Malformed;
        let header = |offset| {
            u32_at(bytes, offset)
                .map(|value| value as usize)
                .ok_or(Malformed("the header is cut"))
        };
        if bytes.get(..2) != Some(&MAGIC.to_ne_bytes()) {
            return Err(Malformed("the magic number is not 0xeb9f"));
        }
        let length = header(4)?;
        let section = |offset: usize, size: usize| {
            let start = length.checked_add(offset)?;
            bytes.get(start..start.checked_add(size)?)
        };
        let data = section(header(8)?, header(12)?).ok_or(Malformed("the types are cut"))?;
        let strings = section(header(16)?, header(20)?).ok_or(Malformed("the strings are cut"))?;
        let mut btf = Self {
            base,
            data,
            strings,
            first_string: base.map_or(0, |base| base.first_string + base.strings.len()),
            first_type: base.map_or(1, Self::next_type),
            types: Vec::new(),
            structs: HashMap::new(),
            functions: HashMap::new(),
        };
        btf.index()?;
        Ok(btf)
    }

    fn next_type(&self) -> u32 {
        // As many types as bytes at most, and the sections' lengths are 32 bit.
        self.first_type + u32::try_from(self.types.len()).unwrap_or(u32::MAX - self.first_type)
    }

    fn index(&mut self) -> Result<(), BtfError> {
        let cut = BtfError::Malformed("a type is cut");
        let mut offset = 0;
        while offset < self.data.len() {
            let id = self.next_type();
            let (Some(name), Some(info)) =
                (u32_at(self.data, offset), u32_at(self.data, offset + 4))
            else {
                return Err(cut);
            };
            let kind = (info >> 24) & 0x1f;
            if kind > KIND_MAX {
                return Err(BtfError::Malformed("a type has an unknown kind"));
            }
            let name = self
                .string(name as usize)
                .ok_or(BtfError::Malformed("a name is outside the strings"))?;
            match kind {
                KIND_STRUCT if !name.is_empty() => {
                    self.structs.entry(name).or_insert(id);
                }
                KIND_FUNC => {
                    self.functions.entry(name).or_insert(id);
                }
                _ => {}
            }
            self.types.push(offset);
            offset += 12 + trailing_bytes(kind, info & 0xffff);
        }
        if offset != self.data.len() {
            return Err(cut);
        }
        Ok(())
    }

    fn string(&self, offset: usize) -> Option<&'a [u8]> {
        let Some(own) = offset.checked_sub(self.first_string) else {
            return self.base?.string(offset);
        };
        let rest = self.strings.get(own..)?;
        rest.split(|byte| *byte == 0).next()
    }

    fn type_at(&self, id: u32) -> Option<Type<'a>> {
        let Some(own) = id.checked_sub(self.first_type) else {
            return self.base?.type_at(id);
        };
        let offset = *self.types.get(own as usize)?;
        let info = u32_at(self.data, offset + 4)?;
        let kind = (info >> 24) & 0x1f;
        let members = offset + 12;
        Some(Type {
            name: u32_at(self.data, offset)?,
            kind,
            flag: info >> 31 == 1,
            value: u32_at(self.data, offset + 8)?,
            members: self
                .data
                .get(members..members + trailing_bytes(kind, info & 0xffff))?,
        })
    }

    fn find(&self, name: &str, table: fn(&Self) -> &HashMap<&'a [u8], u32>) -> Option<u32> {
        table(self)
            .get(name.as_bytes())
            .copied()
            .or_else(|| self.base.and_then(|base| base.find(name, table)))
    }

    /// Whether the kernel has a function of this name that a program can name.
    pub fn has_function(&self, name: &str) -> bool {
        self.find(name, |btf| &btf.functions).is_some()
    }

    /// The value of an enumerator, of whatever enum.
    pub fn enumerator(&self, name: &str) -> Result<u32, BtfError> {
        let own = (self.first_type..self.next_type()).filter_map(|id| self.type_at(id));
        own.filter(|of| of.kind == KIND_ENUM)
            .flat_map(|of| of.members.chunks_exact(8))
            .find_map(|member| {
                let at = u32_at(member, 0)? as usize;
                (self.string(at)? == name.as_bytes()).then(|| u32_at(member, 4))?
            })
            .ok_or_else(|| BtfError::NoEnumerator(name.to_owned()))
    }

    /// Byte offset of a member; `path` descends with `.`, and through anonymous members by itself.
    pub fn member_offset(&self, structure: &str, path: &str) -> Result<u32, BtfError> {
        let mut id = self
            .find(structure, |btf| &btf.structs)
            .ok_or_else(|| BtfError::NoStruct(structure.to_owned()))?;
        let mut bits = 0;
        for name in path.split('.') {
            let (offset, member) =
                self.member(id, name.as_bytes(), DEPTH_MAX)
                    .ok_or_else(|| BtfError::NoMember {
                        structure: structure.to_owned(),
                        member: path.to_owned(),
                    })?;
            bits += offset;
            id = member;
        }
        Ok(bits / 8)
    }

    /// Bit offset and type id of a member.
    fn member(&self, id: u32, name: &[u8], depth: usize) -> Option<(u32, u32)> {
        let found = self.without_qualifiers(id)?;
        if depth == 0 || !matches!(found.kind, KIND_STRUCT | KIND_UNION) {
            return None;
        }
        for member in found.members.chunks_exact(12) {
            let own_name = self.string(u32_at(member, 0)? as usize)?;
            let member_type = u32_at(member, 4)?;
            let mut bits = u32_at(member, 8)?;
            if found.flag {
                bits &= 0x00ff_ffff;
            }
            if own_name == name {
                return Some((bits, member_type));
            }
            if own_name.is_empty()
                && let Some((inner, inner_type)) = self.member(member_type, name, depth - 1)
            {
                return Some((bits.checked_add(inner)?, inner_type));
            }
        }
        None
    }

    fn without_qualifiers(&self, mut id: u32) -> Option<Type<'a>> {
        for _ in 0..DEPTH_MAX {
            let found = self.type_at(id)?;
            if !matches!(found.kind, KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST) {
                return Some(found);
            }
            id = found.value;
        }
        None
    }
}

/// Bytes behind the twelve that each type has.
fn trailing_bytes(kind: u32, members: u32) -> usize {
    let members = members as usize;
    match kind {
        KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
        KIND_ARRAY => 12,
        KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => members * 12,
        KIND_ENUM | KIND_FUNC_PROTO => members * 8,
        _ => 0,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `struct outer { int a; union { struct inner b; int c; }; }`, `struct inner { int x; int y; }`.
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0outer\0a\0inner\0b\0c\0x\0y\0";
        let at = |name: &str| {
            let name = format!("\0{name}\0");
            let found = strings
                .windows(name.len())
                .position(|window| window == name.as_bytes());
            u32::try_from(found.unwrap() + 1).unwrap()
        };
        let mut types: Vec<u32> = Vec::new();
        types.extend([at("int"), KIND_INT << 24, 4, 32]);
        types.extend([
            at("inner"),
            KIND_STRUCT << 24 | 2,
            8,
            at("x"),
            1,
            0,
            at("y"),
            1,
            32,
        ]);
        types.extend([0, KIND_UNION << 24 | 2, 8, at("b"), 2, 0, at("c"), 1, 0]);
        types.extend([
            at("outer"),
            KIND_STRUCT << 24 | 2,
            12,
            at("a"),
            1,
            0,
            0,
            3,
            32,
        ]);
        let data: Vec<u8> = types.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut bytes = MAGIC.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        let lengths = [24, 0, data.len(), data.len(), strings.len()];
        bytes.extend(
            lengths
                .iter()
                .flat_map(|word| u32::try_from(*word).unwrap().to_ne_bytes()),
        );
        bytes.extend(data);
        bytes.extend_from_slice(strings);
        bytes
    }

    #[test]
    fn members_are_found_through_anonymous_unions() {
        let bytes = sample();
        let btf = Btf::parse(&bytes, None).unwrap();
        let check = |structure: &str, path: &str, expect: Result<u32, &str>| {
            let found = btf
                .member_offset(structure, path)
                .map_err(|error| error.to_string());
            assert_eq!(found, expect.map_err(str::to_owned), "{structure}.{path}");
        };
        check("outer", "a", Ok(0));
        check("outer", "b", Ok(4));
        check("outer", "c", Ok(4));
        check("outer", "b.y", Ok(8));
        check(
            "outer",
            "z",
            Err("this kernel's BTF has no member z in struct outer"),
        );
        check(
            "outer",
            "a.x",
            Err("this kernel's BTF has no member a.x in struct outer"),
        );
        check("other", "a", Err("this kernel's BTF has no struct other"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]
        #[test]
        fn damaged_bytes_never_panic(at in 0usize..200, value: u8, cut in 0usize..260) {
            let mut bytes = sample();
            let length = bytes.len();
            if let Some(byte) = bytes.get_mut(at % length) { *byte = value; }
            bytes.truncate(length.saturating_sub(cut % 7));
            if let Ok(btf) = Btf::parse(&bytes, None) {
                let _ = btf.member_offset("outer", "b.y");
            }
        }
    }
}
