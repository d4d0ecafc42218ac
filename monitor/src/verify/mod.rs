//! What a container's root filesystem differs in from its image, path by path.
//!
//! [`walk`] reads the filesystem, [`mounts`] says what was mounted on it, and [`compare`] (pure)
//! goes through both sides in the order of their paths, so that neither is held as a whole.

mod compare;
mod mounts;
mod owners;
#[cfg(test)]
mod tests;
mod walk;

pub use compare::{Difference, Step, Summary, Verdict, compare};
pub use mounts::MountPoints;
pub use owners::Owners;
pub use walk::{Kind, Node, Seen, Walk};
