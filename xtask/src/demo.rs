//! The main job once, on real containers, for people to see.

use anyhow::Result;

use crate::{
    build::{self, Profile},
    run, workspace,
};

/// Builds, then runs the demo of the `tests` package, which starts a containerd and the daemon of
/// its own and ends them.
///
/// # Errors
///
/// The build fails, or the demo does not show what it should.
pub(crate) fn run() -> Result<()> {
    let programs = build::run(Profile::Release)?;
    let mut command = run::cargo();
    command
        .args(["run", "--quiet", "--release", "--package", "tests"])
        .args(["--bin", "demo"])
        .args(build::locked())
        .current_dir(workspace::root());
    programs.tell(&mut command);
    run::shown("running the demo", &mut command)
}
