//! `monitord`: checks on every node that what containers do follows from the image they came from.
//!
//! One module per room, data flows one way; see `ARCHITECTURE.md` for the map.

pub mod activity;
pub mod agent;
pub mod alerts;
pub mod api;
pub mod approval;
pub mod audit;
pub mod changes;
pub mod clock;
pub mod config;
pub mod containerd;
pub mod containers;
pub mod controller;
pub mod coverage;
pub mod ctl;
pub mod detect;
pub mod digest;
pub mod doctor;
pub mod expression;
pub(crate) mod files;
pub mod image;
pub mod metrics;
pub mod outputs;
mod pattern;
pub mod policy;
pub mod profile;
pub mod provenance;
pub mod registry;
pub mod respond;
pub mod sensor;
mod startup;
mod tls;
pub mod verify;
pub mod yaml;
