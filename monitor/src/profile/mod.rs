//! What an image's containers do: seeded from the image, learned from its containers, compared with
//! what they do. Pure: it reads neither files nor clocks.

mod arguments;
mod behaviour;
mod convert;
pub mod difference;
pub mod document;
mod elf;
mod generalise;
mod learning;
pub mod merge;
mod pattern;
mod peers;
mod reasons;
pub mod seed;
mod tree;
mod whole;
mod words;
mod written;
mod yaml;

use std::net::IpAddr;

pub use difference::{Change, difference};
pub use document::{DOCUMENT_BYTES_MAX, Document, DocumentError, State, Subject};
pub use learning::{Ending, Profile};
pub use merge::{MergeError, merge};
pub use seed::{FileKind, ImageConfig, ImageFiles, Seed};

use crate::{
    digest::Sha256,
    sensor::event::{Access, Protocol},
};

/// Names one container: a number of the caller's that is never used again.
pub type ContainerNumber = u64;

/// What a process did.
#[derive(Clone, Copy, Debug)]
pub struct Act<'a> {
    /// The command line by which it, or the ancestor that it descends from, was put in from outside;
    /// `None` of what descends from the container's own init.
    pub command: Option<&'a [Vec<u8>]>,
    /// What it did.
    pub what: What<'a>,
}

/// See [`Act`].
#[derive(Clone, Copy, Debug)]
pub enum What<'a> {
    /// It executed a program.
    Exec {
        /// The program's path.
        path: &'a [u8],
        /// Its hash, where it is known.
        sha256: Option<Sha256>,
        /// The program that executed it, where it is known.
        parent: Option<&'a [u8]>,
        /// Its arguments, the first of which is its name.
        arguments: &'a [Vec<u8>],
        /// The image or an exception vouches for the program.
        is_learnable: bool,
    },
    /// It opened a file.
    Open {
        /// The file's path.
        path: &'a [u8],
        /// What for.
        access: Access,
    },
    /// It reached for a peer.
    Peer {
        /// The peer's address.
        address: IpAddr,
        /// Its port, where it has one.
        port: Option<u16>,
        /// What the socket speaks.
        protocol: Protocol,
    },
    /// It reached for a socket of AF_UNIX.
    Socket {
        /// Its path; abstract names begin with `@`.
        path: &'a [u8],
    },
}

/// What came of comparing an act with a profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Weighed {
    /// The profile has it.
    Expected,
    /// It was new, and the profile has it now.
    Learned,
    /// Nothing is said of it: while the profile learns it may be anything, but not from this container
    /// or not by this command.
    Ignored,
    /// The profile does not have it.
    Deviation(Box<Deviation>),
}

/// What is outside of a profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deviation {
    /// What was done, and what of it the profile does not have.
    pub message: String,
    /// What the profile allows nearby, at most [`NEARBY_MAX`].
    pub nearby: Vec<String>,
    /// The profile may not have everything.
    pub is_partial: bool,
}

/// How much of what the profile allows nearby is told.
pub const NEARBY_MAX: usize = 3;

#[cfg(test)]
mod tests;
