//! The only file that speaks to containerd.
