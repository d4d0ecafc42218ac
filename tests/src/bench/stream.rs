//! Every alert once and in order, whatever is killed: [`crate::stream`] at its full size.

use anyhow::Result;

use crate::stream::{self, Plan};

const PLAN: Plan = Plan {
    alerts: 1_000_000,
    per_second: 4_000,
    client_kills: 100,
    daemon_kills: 10,
    renewals: 2,
};

pub(super) fn run() -> Result<()> {
    let figures = stream::run(PLAN)?;
    println!("{figures}");
    figures.check()
}
