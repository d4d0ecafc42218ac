//! Figures of the daemon as it is built for release, beside other tools.

use anyhow::{Result, bail};

use crate::{
    apt,
    build::{self, Profile},
    run,
};

/// What can be measured, see `tests/src/bench`.
const NAMES: [&str; 8] = [
    "opens",
    "latency",
    "image",
    "start",
    "stream",
    "consumers",
    "flood",
    "profile",
];
/// Debian's packages with the tracers that `opens` is compared with.
const TRACERS: [&str; 2] = ["libbpf-tools", "bpftrace"];

/// Builds, then prints the wanted figures, all if none is named.
///
/// # Errors
///
/// There are none of that name, a tracer cannot be installed, the build fails, or what is measured
/// does not work.
pub(crate) fn run(wanted: &[String]) -> Result<()> {
    if let Some(unknown) = wanted.iter().find(|name| !NAMES.contains(&name.as_str())) {
        bail!("no figures named {unknown}; there are {}", NAMES.join(" "));
    }
    let names = NAMES
        .into_iter()
        .filter(|name| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name));
    let names: Vec<&str> = names.collect();
    if names.contains(&"opens") {
        install_tracers()?;
    }
    let programs = build::run(Profile::Release)?;
    let mut command = programs.of_tests("bench");
    run::shown("measuring", command.arg("--").args(names))
}

fn install_tracers() -> Result<()> {
    let wanted = TRACERS.map(str::to_owned).into();
    if apt::installed(&wanted) == wanted {
        return Ok(());
    }
    if !apt::is_here() {
        bail!("opensnoop and bpftrace are to be measured beside: install them");
    }
    apt::update();
    apt::install(&wanted)
}
