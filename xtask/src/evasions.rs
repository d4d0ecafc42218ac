//! Writes the document that tells what came of each technique of evasion.

use anyhow::{Result, bail};

use crate::{
    build::{self, Profile},
    guest::{self, Document},
    run, workspace,
};

/// Tells the test on this machine's kernel to write the document.
const RENEW: &str = "MONITOR_RENEW_DOCUMENTS";

/// Carries out all techniques on all kernels.
///
/// # Errors
///
/// Something does not build, or could not be carried out; what came of the others is written.
pub(crate) fn run() -> Result<()> {
    let programs = build::run(Profile::Release)?;
    let mut command = run::cargo();
    command
        .args([
            "test",
            "--release",
            "--package",
            "tests",
            "--test",
            "evasions",
        ])
        .args(build::locked())
        .env(RENEW, "true")
        .current_dir(workspace::root());
    programs.tell(&mut command);
    let native = run::shown("carrying out the techniques here", &mut command);
    let guests = guest::all(None, &programs, Document::Renew)?;
    for line in &guests.skipped {
        eprintln!("xtask: skipped {line}");
    }
    native?;
    if guests.failed > 0 {
        bail!("tests failed");
    }
    Ok(())
}
