//! Figures, as ratios measured by turns in one run. `cargo xtask bench` runs them.

mod consumers;
mod figures;
mod flood;
mod image;
mod latency;
mod opens;
mod profile;
mod start;
mod stream;
mod tracer;

use anyhow::{Result, bail};

pub(crate) use figures::quantile;

/// Measures one, and prints its figures: `opens`, `latency`, `image`, `start`, `stream`,
/// `consumers`, `flood` or `profile`.
///
/// # Errors
///
/// There is none of that name, or something that it needs does not do its work.
pub fn run(name: &str) -> Result<()> {
    match name {
        "opens" => opens::run(),
        "latency" => latency::run(),
        "image" => image::run(),
        "start" => start::run(),
        "stream" => stream::run(),
        "consumers" => consumers::run(),
        "flood" => flood::run(),
        "profile" => profile::run(),
        _ => bail!("there are no figures of that name"),
    }
}
