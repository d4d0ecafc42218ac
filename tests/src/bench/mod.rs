//! Figures, as ratios measured by turns in one run. `cargo xtask bench` runs them.

mod figures;
mod image;
mod latency;
mod opens;
mod tracer;

use anyhow::{Result, bail};

/// Measures one, and prints its figures: `opens`, `latency` or `image`.
///
/// # Errors
///
/// There is none of that name, or something that it needs does not do its work.
pub fn run(name: &str) -> Result<()> {
    match name {
        "opens" => opens::run(),
        "latency" => latency::run(),
        "image" => image::run(),
        _ => bail!("there are no figures of that name"),
    }
}
