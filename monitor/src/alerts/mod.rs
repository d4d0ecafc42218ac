//! Findings become alerts with a cursor.
//!
//! [`build`] makes the alert of a finding, [`aggregate`] counts its repeats, [`log`] gives alerts to any number of readers, and
//! [`journal`] keeps them on disk.

pub mod aggregate;
pub mod build;
pub mod consumers;
pub mod filter;
pub mod gap;
pub mod id;
pub mod journal;
pub mod log;
pub(crate) mod redact;
pub mod rollback;

pub use aggregate::Aggregator;
pub use build::{NodeFacts, boot_time, build};
pub use filter::{Filter, FilterError};
pub use journal::{GapReason, Retention, boot_id};
pub use log::{AlertLog, AlertReader, Delivery, Next, Start, Summary};
