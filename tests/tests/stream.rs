//! The stream of alerts under what happens to clients, daemons and certificates. `cargo xtask bench
//! stream` does the same with a million.

use anyhow::Result;
use tests::{
    consumers, require,
    stream::{self, Plan},
};

#[test]
fn a_client_that_is_killed_gets_every_alert_once_whatever_else_happens() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let figures = stream::run(Plan {
        alerts: 6_000,
        per_second: 2_000,
        client_kills: 6,
        daemon_kills: 3,
        renewals: 2,
    })?;
    println!("{figures}");
    figures.check()
}

#[test]
fn two_hundred_consumers_of_which_twenty_do_not_read_cost_nobody_an_alert() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let figures = consumers::run(consumers::Plan {
        reading: 180,
        idle: 20,
        alerts: 200,
        per_second: 200,
    })?;
    println!("{figures}");
    figures.check()?;
    figures.check_memory()
}
