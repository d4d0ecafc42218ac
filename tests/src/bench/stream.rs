//! Every alert once and in order, whatever is killed: [`crate::stream`] at its full size.

use anyhow::{Result, ensure};

use crate::stream::{self, Plan};

const ALERTS: u64 = 1_000_000;

const PLAN: Plan = Plan {
    // Some are lost while no daemon reads the ring.
    alerts: ALERTS + ALERTS / 20,
    per_second: 4_000,
    client_kills: 100,
    daemon_kills: 10,
    renewals: 2,
};

pub(super) fn run() -> Result<()> {
    let figures = stream::run(PLAN)?;
    println!("{figures}");
    figures.check()?;
    ensure!(figures.received >= ALERTS, "fewer than {ALERTS} alerts");
    Ok(())
}
