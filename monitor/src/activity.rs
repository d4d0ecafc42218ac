//! What a container did, as it was judged: what behaviour profiles learn and policies look at.

use std::sync::Arc;

use crate::{
    containers::{
        Container,
        processes::{Origin, Program},
    },
    detect::FileVerdict,
    digest::Sha256,
    sensor::event::{Connect, Exec, Open, Process},
};

/// What a process of a container did, and what is known of both.
#[derive(Clone, Copy, Debug)]
pub struct Activity<'a> {
    /// When, in nanoseconds since boot.
    pub time_boot_ns: u64,
    /// The container, as it was known then.
    pub container: &'a Arc<Container>,
    /// The process.
    pub process: &'a Process,
    /// How it came into the container.
    pub origin: Origin,
    /// What it executes, of an exec the new program; `None` if it did not execute anything since it is
    /// watched.
    pub program: Option<&'a Program>,
    /// Executables of its ancestors, nearest first.
    pub ancestors: &'a [Vec<u8>],
    /// Of a process that was put into the container, what it was put in for, if that was seen.
    pub command: Option<&'a Program>,
    /// Which hook saw it.
    pub hook: &'static str,
    /// What it did.
    pub act: Act<'a>,
}

/// What a process did.
#[derive(Clone, Copy, Debug)]
pub enum Act<'a> {
    /// It executed a program.
    Exec {
        /// As the sensor saw it.
        exec: &'a Exec,
        /// The program's path, in the root of the container if it lies there.
        path: &'a [u8],
        /// What came of comparing it with the image; `None` of the runtime's own steps.
        verdict: Option<FileVerdict>,
        /// SHA-256 of the program, where it was read or is the image's.
        sha256: Option<Sha256>,
    },
    /// It opened a file.
    Open {
        /// As the sensor saw it.
        open: &'a Open,
        /// The file's path, in the root of the container if it lies there.
        path: &'a [u8],
        /// The file lies in the root of the container, not on a volume.
        is_in_root: bool,
    },
    /// It connected to a peer, or sent to one.
    Connect(&'a Connect),
}
