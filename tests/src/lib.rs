//! The harness of the tests that cross crates: real containerd, real images, the real daemon.

pub mod alerts;
pub mod bench;
pub mod containerd;
pub mod daemon;
pub mod evasions;
pub mod image;
pub mod layer;
pub mod poll;
pub mod scratch;
pub mod skip;
pub mod small;
pub mod world;
