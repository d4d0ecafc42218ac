//! Findings become alerts with a cursor.
//!
//! [`build`] makes the alert of a finding, [`log`] keeps the last of them and gives them to any
//! number of readers.

pub mod build;
pub mod gap;
pub mod log;
mod redact;

pub use build::{NodeFacts, boot_time, build};
pub use log::{AlertLog, AlertReader, Next, Start};
