//! The main job once, on real containers, for people to see.

use anyhow::Result;

use crate::{
    build::{self, Profile},
    run,
};

/// Builds, then runs the demo of the `tests` package, which starts a containerd and the daemon of
/// its own and ends them.
///
/// # Errors
///
/// The build fails, or the demo does not show what it should.
pub(crate) fn run() -> Result<()> {
    let programs = build::run(Profile::Release)?;
    run::shown("running the demo", &mut programs.of_tests("demo"))
}
