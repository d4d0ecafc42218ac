//! Prototypes of functions and tracepoints as C writes them.

use super::{
    Btf, BtfError, DEPTH_MAX, KIND_CONST, KIND_ENUM, KIND_ENUM64, KIND_FUNC_PROTO, KIND_INT,
    KIND_STRUCT, KIND_TYPEDEF, KIND_UNION, KIND_VOLATILE, u32_at,
};

const KIND_POINTER: u32 = 2;
const KIND_FORWARD: u32 = 7;

/// What a function takes and gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prototype {
    /// The type of its value.
    pub returns: String,
    /// The types of its parameters, such as `const struct path *`.
    pub parameters: Vec<String>,
}

impl Btf<'_> {
    /// The prototype of a function of the kernel.
    pub fn function_prototype(&self, name: &str) -> Result<Prototype, BtfError> {
        self.find(name, |btf| &btf.functions)
            .and_then(|id| self.prototype(self.type_at(id)?.value))
            .ok_or_else(|| BtfError::NoPrototype(name.to_owned()))
    }

    /// The prototype of a tracepoint, without the data of who registered the probe, which programs
    /// are not given.
    pub fn tracepoint_prototype(&self, name: &str) -> Result<Prototype, BtfError> {
        self.find_tracepoint(name)
            .ok_or_else(|| BtfError::NoPrototype(name.to_owned()))
    }

    fn find_tracepoint(&self, name: &str) -> Option<Prototype> {
        let typedef = format!("btf_trace_{name}");
        let found = (self.first_type..self.next_type())
            .filter_map(|id| self.type_at(id))
            .find(|found| {
                found.kind == KIND_TYPEDEF
                    && self.string(found.name as usize) == Some(typedef.as_bytes())
            })?;
        let pointer = self.type_at(found.value)?;
        if pointer.kind != KIND_POINTER {
            return None;
        }
        let mut prototype = self.prototype(pointer.value)?;
        if prototype.parameters.is_empty() {
            return None;
        }
        prototype.parameters.remove(0);
        Some(prototype)
    }

    fn prototype(&self, id: u32) -> Option<Prototype> {
        let found = self.type_at(id)?;
        if found.kind != KIND_FUNC_PROTO {
            return None;
        }
        let parameters = found.members.chunks_exact(8);
        Some(Prototype {
            returns: self.type_name(found.value, DEPTH_MAX)?,
            parameters: parameters
                .map(|parameter| self.type_name(u32_at(parameter, 4)?, DEPTH_MAX))
                .collect::<Option<_>>()?,
        })
    }

    /// A type as C writes it; `None` for what a parameter of a hook cannot be.
    fn type_name(&self, id: u32, depth: usize) -> Option<String> {
        if id == 0 {
            return Some("void".to_owned());
        }
        if depth == 0 {
            return None;
        }
        let found = self.type_at(id)?;
        let named = |prefix: &str| {
            let name = String::from_utf8_lossy(self.string(found.name as usize)?);
            Some(format!("{prefix}{name}"))
        };
        let inner = || self.type_name(found.value, depth - 1);
        match found.kind {
            KIND_INT | KIND_TYPEDEF => named(""),
            KIND_STRUCT => named("struct "),
            KIND_UNION => named("union "),
            KIND_FORWARD if found.flag => named("union "),
            KIND_FORWARD => named("struct "),
            KIND_ENUM | KIND_ENUM64 => named("enum "),
            KIND_POINTER => {
                let inner = inner()?;
                let blank = if inner.ends_with('*') { "" } else { " " };
                Some(format!("{inner}{blank}*"))
            }
            KIND_CONST => Some(qualified("const", &inner()?)),
            KIND_VOLATILE => Some(qualified("volatile", &inner()?)),
            // Of a pointer to a function or an array only that it is one matters to a program.
            KIND_FUNC_PROTO => Some("function".to_owned()),
            _ => None,
        }
    }
}

/// A qualifier stands before a plain type and behind a pointer.
fn qualified(qualifier: &str, inner: &str) -> String {
    if inner.ends_with('*') {
        format!("{inner}{qualifier}")
    } else {
        format!("{qualifier} {inner}")
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::sensor::btf::{KIND_FUNC, MAGIC};

    /// `typedef void (*btf_trace_event)(void *, const struct s **, int)`, and `f` of that type.
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0s\0btf_trace_event\0f\0";
        let at = |name: &str| {
            let name = format!("\0{name}\0");
            let found = strings
                .windows(name.len())
                .position(|window| window == name.as_bytes());
            u32::try_from(found.unwrap() + 1).unwrap()
        };
        let types: &[u32] = &[
            // 1: int
            at("int"),
            KIND_INT << 24,
            4,
            32,
            // 2: struct s
            at("s"),
            KIND_STRUCT << 24,
            0,
            // 3 to 5: const struct s **
            0,
            KIND_CONST << 24,
            2,
            0,
            KIND_POINTER << 24,
            3,
            0,
            KIND_POINTER << 24,
            4,
            // 6: void *
            0,
            KIND_POINTER << 24,
            0,
            // 7: the prototype
            0,
            KIND_FUNC_PROTO << 24 | 3,
            0,
            0,
            6,
            0,
            5,
            0,
            1,
            // 8 to 10: a pointer to it, the tracepoint, the function
            0,
            KIND_POINTER << 24,
            7,
            at("btf_trace_event"),
            KIND_TYPEDEF << 24,
            8,
            at("f"),
            KIND_FUNC << 24,
            7,
            // 11 and 12: what is no prototype
            0,
            KIND_POINTER << 24,
            11,
            0,
            KIND_CONST << 24,
            11,
        ];
        let data: Vec<u8> = types.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut bytes = MAGIC.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        for word in [24, 0, data.len(), data.len(), strings.len()] {
            bytes.extend(u32::try_from(word).unwrap().to_ne_bytes());
        }
        bytes.extend(data);
        bytes.extend_from_slice(strings);
        bytes
    }

    #[test]
    fn prototypes_are_told_as_c_writes_them() {
        let bytes = sample();
        let btf = Btf::parse(&bytes, None).unwrap();
        let prototype = |parameters: &[&str]| Prototype {
            returns: "void".to_owned(),
            parameters: parameters.iter().map(|&name| name.to_owned()).collect(),
        };
        assert_eq!(
            btf.function_prototype("f").unwrap(),
            prototype(&["void *", "const struct s **", "int"])
        );
        assert_eq!(
            btf.tracepoint_prototype("event").unwrap(),
            prototype(&["const struct s **", "int"])
        );
        for absent in [
            btf.function_prototype("event"),
            btf.tracepoint_prototype("f"),
        ] {
            assert!(
                matches!(absent, Err(BtfError::NoPrototype(_))),
                "{absent:?}"
            );
        }
    }

    #[test]
    fn a_type_that_refers_to_itself_has_no_name() {
        let bytes = sample();
        let btf = Btf::parse(&bytes, None).unwrap();
        assert_eq!(btf.type_name(12, DEPTH_MAX), None);
    }
}
