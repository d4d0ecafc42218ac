//! Two hundred consumers, of which twenty do not read: [`crate::consumers`] at its full size.

use anyhow::Result;

use crate::consumers::{self, Plan};

/// Alerts a second; more than a machine can is not reached, and shows in the delays.
const RATES: [u64; 3] = [200, 500, 2_000];
const SECONDS: u64 = 10;

pub(super) fn run() -> Result<()> {
    for per_second in RATES {
        let figures = consumers::run(Plan {
            reading: 180,
            idle: 20,
            alerts: per_second * SECONDS,
            per_second,
        })?;
        println!("{figures}");
        figures.check()?;
    }
    Ok(())
}
