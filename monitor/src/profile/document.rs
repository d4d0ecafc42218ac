//! The profile as a document: what people read, review and edit, and what nodes exchange.

use std::net::IpAddr;

use jiff::Timestamp;

use crate::digest::{Digest, Sha256};

/// Kind of document.
pub const KIND: &str = "Profile";

/// Bytes of a document that are read; what is longer is refused.
pub const DOCUMENT_BYTES_MAX: usize = 8 << 20;

/// Which image a profile is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The reference by which the image was run.
    pub reference: String,
    /// Its repository, by which the next digest finds the profile of its predecessor.
    pub repository: String,
    /// Digest of the manifest: what the profile belongs to.
    pub manifest: Digest,
    /// Digest of the image config.
    pub config: Digest,
    /// Chain ID of its layers.
    pub chain_id: Digest,
}

/// How far a profile is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// It has what the image says of itself; nothing has run yet.
    Seeded,
    /// It is compared with what happens, and learns no more.
    Frozen,
    /// It takes up what its containers do. Of two documents that are merged the one that still
    /// learns decides.
    Learning,
}

impl State {
    /// As documents and the API name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Seeded => "seeded",
            Self::Frozen => "frozen",
            Self::Learning => "learning",
        }
    }
}

/// A profile as it is written down. Lists are sorted and without doubles, so that two profiles that
/// say the same are equal and have the same text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Of which image.
    pub image: Subject,
    /// How far it is.
    pub state: State,
    /// Why it may not have everything; empty of one that is complete.
    pub reasons: Vec<String>,
    /// Manifest digest of the image whose profile it began with.
    pub inherited_from: Option<Digest>,
    /// Who froze it and when, if it is.
    pub frozen: Option<Frozen>,
    /// The user that the image runs as; empty for root.
    pub user: String,
    /// Ports on which it says that it listens, each `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// What processes that descend from the container's own may do.
    pub main: Part,
    /// Libraries that programs of the image are linked with, as the image says.
    pub libraries: Vec<Library>,
    /// What processes put in from outside may do, by the command that was put in.
    pub put_in: Vec<PutIn>,
}

/// Who froze a profile.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Frozen {
    /// When.
    pub at: Timestamp,
    /// Who; `quiet time` where nobody asked for it.
    pub by: String,
}

/// What processes may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// What they may execute.
    pub executables: Vec<Executable>,
    /// What they may open.
    pub files: Vec<FileRule>,
    /// Directories with so many entries that any is meant: patterns.
    pub collapsed: Vec<String>,
    /// Whom they may reach.
    pub peers: Vec<PeerRule>,
    /// Paths and abstract names of AF_UNIX sockets that they may reach: patterns.
    pub sockets: Vec<String>,
    /// What grew above its bound, and so is coarser or is missing.
    pub overflowed: Vec<String>,
}

/// A program that may be executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executable {
    /// Where it lies in the root filesystem.
    pub path: Vec<u8>,
    /// Its hash, where it is known.
    pub sha256: Option<Sha256>,
    /// Who may execute it; `None` stands for anybody.
    pub parents: Option<Vec<Vec<u8>>>,
    /// Shapes of its arguments; `None` stands for any.
    pub arguments: Option<Vec<String>>,
}

/// A library of the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Library {
    /// Where it lies in the root filesystem.
    pub path: Vec<u8>,
    /// Its hash, where it is known.
    pub sha256: Option<Sha256>,
}

/// Files that may be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileRule {
    /// `*` stands for a segment or a part of one, `**` at the end for whatever lies below.
    pub pattern: String,
    /// For reading.
    pub read: bool,
    /// For writing.
    pub write: bool,
}

/// Peers that may be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerRule {
    /// Network address.
    pub address: IpAddr,
    /// Bits of it that count.
    pub prefix: u8,
    /// `None` stands for any port, and for protocols without.
    pub port: Option<u16>,
    /// `tcp`, `udp`, `raw` or the number of another.
    pub protocol: String,
}

/// What a command may do that was put in from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutIn {
    /// The program and the shape of its arguments.
    pub command: String,
    /// How often it was seen, up to the number at which it counts; `None` of one that the image names.
    pub seen: Option<u8>,
    /// What it may do beside what every process of the container may.
    pub part: Part,
}

/// A document cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DocumentError {
    /// It is longer than [`DOCUMENT_BYTES_MAX`].
    #[error("a profile of {0} bytes: at most {DOCUMENT_BYTES_MAX} are read")]
    TooLong(usize),
    /// Something in it is not as it is to be.
    #[error("line {line}, column {column}: {message}")]
    At {
        /// From 1.
        line: u64,
        /// From 1.
        column: u64,
        /// What it is, and what is allowed.
        message: String,
    },
    /// Likewise, of a document that was not text.
    #[error("{0}")]
    Invalid(String),
}
