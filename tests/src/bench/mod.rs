//! Figures, as ratios measured by turns in one run. `cargo xtask bench` runs them.

mod figures;
mod latency;
mod opens;
mod tracer;

use anyhow::{Result, bail};

/// The names of what can be measured, each with what it is.
pub const TABLE: [(&str, &str); 2] = [
    (
        "opens",
        "cost and loss of a burst of opens, beside opensnoop and bpftrace",
    ),
    (
        "latency",
        "from an exec in a container to its alert at a client",
    ),
];

/// Measures one, and prints its figures.
///
/// # Errors
///
/// There is none of that name, or something that it needs does not do its work.
pub fn run(name: &str) -> Result<()> {
    match name {
        "opens" => opens::run(),
        "latency" => latency::run(),
        _ => bail!(
            "no figures {name}; there are {}",
            TABLE.map(|(name, _)| name).join(" ")
        ),
    }
}
