//! The harness of the tests that cross crates: real containerd, real images, the real daemon.

pub mod alerts;
pub mod authority;
pub mod bench;
pub mod bpffs;
pub mod cgroup;
pub mod collector;
pub mod consumers;
pub mod containerd;
pub mod cri;
pub mod daemon;
pub mod evasions;
pub mod flood;
pub mod http;
pub mod image;
pub mod layer;
pub mod nats;
pub mod orders;
pub mod poll;
pub mod programs;
pub mod registry;
pub mod scratch;
pub mod skip;
pub mod sleeper;
pub mod small;
pub mod stream;
pub mod world;
