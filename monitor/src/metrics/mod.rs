//! The daemon's account of itself for Prometheus, and whether it lives and is ready, by HTTP at a
//! local address.
//!
//! [`table`] says what there is, [`text`] writes it (both pure), [`server`] answers.

mod server;
mod table;
mod text;

use monitor_api::v1;

pub use server::{BindError, Listener, serve};

use crate::alerts::Summary;

/// Images that `monitor_image_running` tells apart. Those with the fewest containers are summed
/// beyond, as repository `other`.
pub const IMAGES_MAX: usize = 256;

/// What metrics are made of.
#[derive(Debug)]
struct Facts {
    status: v1::Status,
    alerts: Summary,
    containers: Vec<v1::Container>,
}
