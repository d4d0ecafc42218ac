//! What a flood of one container costs another: [`crate::flood`] with enough execs for a p99.

use anyhow::Result;

use crate::flood;

const EXECS: usize = 200;

pub(super) fn run() -> Result<()> {
    println!("{}", flood::run(EXECS)?);
    Ok(())
}
