//! What an image holds, path by path, read from layer blobs whose digests were checked, or where
//! those are gone from the directories that they were unpacked into ([`lower`]).
//!
//! [`manifest`] reads the documents that name the layers and [`documents`] remembers what they say;
//! [`tar`], [`sparse`] and [`unpack`] turn the stream of a blob into a [`layer::Layer`], [`codec`] and
//! [`disk`] keep it, [`contents`] answers for a stack of layers, and [`store`] brings them together,
//! with [`saving`] for what stays on disk and
//! [`fetch`] for blobs that the node does not have any more.

pub mod blobs;
pub mod buffers;
pub mod capability;
mod codec;
pub mod contents;
mod decompress;
mod disk;
mod documents;
pub mod error;
mod fetch;
mod hashing;
pub mod layer;
pub mod lower;
pub mod manifest;
mod saving;
mod sparse;
pub mod store;
mod tar;
mod tree;
pub mod unpack;
pub mod unpacked;
mod zstd;

#[cfg(test)]
pub(crate) mod tests;
