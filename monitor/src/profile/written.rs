//! Values that a document writes as texts. What is not as it is to be says what is.

use std::{fmt, marker::PhantomData};

use jiff::Timestamp;
use monitor_api::bytes::{escape, unescape};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, SeqAccess, Visitor},
};

use super::{
    arguments,
    convert::{self, network},
    document::{KIND, State},
    pattern::{self, PATH_BYTES_MAX},
    peers::{self, Network},
    tree::{READ, WRITE},
};
use crate::{
    digest::{Digest, Sha256},
    yaml::API_VERSION,
};

/// Something that is written as a text.
pub(super) trait Text: Sized {
    fn text(&self) -> String;
    /// What it is, or what is allowed instead.
    fn of(text: &str) -> Result<Self, String>;
}

/// See [`Text`].
pub(super) struct Written<T>(pub(super) T);

impl<T: Text> Serialize for Written<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.text())
    }
}

impl<'de, T: Text> Deserialize<'de> for Written<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        T::of(&text).map(Self).map_err(de::Error::custom)
    }
}

impl Text for Sha256 {
    fn text(&self) -> String {
        self.to_string()
    }

    fn of(text: &str) -> Result<Self, String> {
        let digest: Result<Digest, _> = format!("sha256:{text}").parse();
        digest
            .map(|digest| digest.0)
            .map_err(|_| "a SHA-256 is 64 lowercase hex digits".to_owned())
    }
}

impl Text for Digest {
    fn text(&self) -> String {
        self.to_string()
    }

    fn of(text: &str) -> Result<Self, String> {
        text.parse()
            .map_err(|error: crate::digest::DigestError| error.to_string())
    }
}

impl Text for Timestamp {
    fn text(&self) -> String {
        self.to_string()
    }

    fn of(text: &str) -> Result<Self, String> {
        text.parse()
            .map_err(|_| "a time is written as 2026-11-27T12:00:00Z".to_owned())
    }
}

impl Text for State {
    fn text(&self) -> String {
        self.name().to_owned()
    }

    fn of(text: &str) -> Result<Self, String> {
        [Self::Seeded, Self::Learning, Self::Frozen]
            .into_iter()
            .find(|state| state.name() == text)
            .ok_or_else(|| "a state is seeded, learning or frozen".to_owned())
    }
}

/// A path without patterns.
pub(super) struct Path(pub(super) Vec<u8>);

impl Text for Path {
    fn text(&self) -> String {
        escape(&self.0)
    }

    fn of(text: &str) -> Result<Self, String> {
        let bytes = unescape(text).filter(|bytes| (1..=PATH_BYTES_MAX).contains(&bytes.len()));
        bytes.map(Self).ok_or_else(|| {
            format!("a path has 1 to {PATH_BYTES_MAX} bytes, \\\\ for a backslash and \\xNN for what is not UTF-8")
        })
    }
}

pub(super) struct Pattern(pub(super) String);

impl Text for Pattern {
    fn text(&self) -> String {
        self.0.clone()
    }

    fn of(text: &str) -> Result<Self, String> {
        pattern::parse(text)
            .map(|_| Self(text.to_owned()))
            .map_err(|error| error.to_string())
    }
}

pub(super) struct FileAccess(pub(super) u8);

impl Text for FileAccess {
    fn text(&self) -> String {
        pattern::access_name(self.0).to_owned()
    }

    fn of(text: &str) -> Result<Self, String> {
        [READ, WRITE, READ | WRITE]
            .into_iter()
            .find(|access| pattern::access_name(*access) == text)
            .map(Self)
            .ok_or_else(|| "an access is read, write or readwrite".to_owned())
    }
}

impl Text for Network {
    fn text(&self) -> String {
        self.to_string()
    }

    fn of(text: &str) -> Result<Self, String> {
        let network =
            network(text).ok_or("a network is written as 192.0.2.0/24 or 2001:db8::/64")?;
        match network.straddled() {
            None => Ok(network),
            Some(block) => Err(format!(
                "{network} has the addresses of {block}, which are written apart, as private ones are from public ones"
            )),
        }
    }
}

pub(super) struct ProtocolName(pub(super) String);

impl Text for ProtocolName {
    fn text(&self) -> String {
        self.0.clone()
    }

    fn of(text: &str) -> Result<Self, String> {
        peers::protocol_named(text)
            .map(|_| Self(text.to_owned()))
            .ok_or_else(|| "a protocol is tcp, udp, raw, packet or a number".to_owned())
    }
}

pub(super) struct Shape(pub(super) String);

impl Text for Shape {
    fn text(&self) -> String {
        self.0.clone()
    }

    fn of(text: &str) -> Result<Self, String> {
        if arguments::is_shape(text) {
            return Ok(Self(text.to_owned()));
        }
        Err("a shape of arguments is a short line".to_owned())
    }
}

/// One line.
pub(super) struct Line<const MAX: usize>(pub(super) String);

impl<const MAX: usize> Text for Line<MAX> {
    fn text(&self) -> String {
        self.0.clone()
    }

    fn of(text: &str) -> Result<Self, String> {
        if text.len() <= MAX && !text.chars().any(char::is_control) {
            return Ok(Self(text.to_owned()));
        }
        Err(format!("a line of at most {MAX} bytes"))
    }
}

pub(super) struct Overflow(pub(super) String);

impl Text for Overflow {
    fn text(&self) -> String {
        self.0.clone()
    }

    fn of(text: &str) -> Result<Self, String> {
        convert::is_overflow(text).map_err(|error| error.to_string())?;
        Ok(Self(text.to_owned()))
    }
}

/// The one text that may stand in a place.
pub(super) struct Fixed<T: Constant>(pub(super) PhantomData<T>);

pub(super) trait Constant {
    const TEXT: &'static str;
}

impl<T: Constant> Text for Fixed<T> {
    fn text(&self) -> String {
        T::TEXT.to_owned()
    }

    fn of(text: &str) -> Result<Self, String> {
        if text == T::TEXT {
            return Ok(Self(PhantomData));
        }
        Err(format!("only {} is known here", T::TEXT))
    }
}

pub(super) struct Version;

impl Constant for Version {
    const TEXT: &'static str = API_VERSION;
}

pub(super) struct Kind;

impl Constant for Kind {
    const TEXT: &'static str = KIND;
}

/// A list, or `any`.
pub(super) enum AnyOr<T> {
    Any,
    These(Vec<T>),
}

impl<T> AnyOr<T> {
    pub(super) fn of<U>(these: Option<&Vec<U>>, write: impl Fn(&U) -> T) -> Self {
        these.map_or(Self::Any, |these| {
            Self::These(these.iter().map(write).collect())
        })
    }

    pub(super) fn these<U>(self, read: impl Fn(T) -> U) -> Option<Vec<U>> {
        match self {
            Self::Any => None,
            Self::These(these) => Some(these.into_iter().map(read).collect()),
        }
    }
}

impl<T> Default for AnyOr<T> {
    fn default() -> Self {
        Self::These(Vec::new())
    }
}

impl<T: Serialize> Serialize for AnyOr<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Any => serializer.serialize_str("any"),
            Self::These(these) => these.serialize(serializer),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for AnyOr<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Seen<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Seen<T> {
            type Value = AnyOr<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list, or `any`")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                if text == "any" {
                    return Ok(AnyOr::Any);
                }
                Err(E::custom("a list, or `any`"))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut these = Vec::new();
                while let Some(next) = seq.next_element()? {
                    these.push(next);
                }
                Ok(AnyOr::These(these))
            }
        }
        deserializer.deserialize_any(Seen(PhantomData))
    }
}
