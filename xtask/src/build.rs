//! From source to `target/release/monitord`, with the eBPF object inside.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    run, setup,
    toolchain::{BPF_TARGET, Toolchain},
    workspace,
};

/// Separates flags in `CARGO_ENCODED_RUSTFLAGS`.
const FLAG_SEPARATOR: &str = "\x1f";

/// How much the compiler does for speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    Debug,
    Release,
}

impl Profile {
    /// From the command line's `--debug`.
    pub(crate) fn from_debug(debug: bool) -> Self {
        if debug { Self::Debug } else { Self::Release }
    }
}

/// The programs that a build leaves.
pub(crate) struct Programs {
    pub(crate) monitord: PathBuf,
    pub(crate) monitorctl: PathBuf,
}

impl Programs {
    /// Tells a command where they lie.
    pub(crate) fn tell(&self, command: &mut Command) {
        command
            .env("MONITORD", &self.monitord)
            .env("MONITORCTL", &self.monitorctl);
    }

    /// Runs a program of the `tests` package with them.
    pub(crate) fn of_tests(&self, program: &str) -> Command {
        let mut command = run::cargo();
        command
            .args(["run", "--quiet", "--release", "--package", "tests"])
            .args(["--bin", program])
            .args(locked())
            .current_dir(workspace::root());
        self.tell(&mut command);
        command
    }
}

/// Sets up, then builds the eBPF object and the programs.
///
/// # Errors
///
/// Setup fails, or the code does not compile.
pub(crate) fn run(profile: Profile) -> Result<Programs> {
    let toolchain = setup::run()?;
    object(&toolchain)?;
    let mut command = run::cargo();
    command.args(["build", "--package", "monitor"]);
    command.args(locked());
    if profile == Profile::Release {
        command.arg("--release");
    }
    command
        .current_dir(workspace::root())
        .env("CARGO_TARGET_DIR", workspace::target());
    run::shown("building monitord and monitorctl", &mut command)?;
    let folder = workspace::target().join(match profile {
        Profile::Debug => "debug",
        Profile::Release => "release",
    });
    Ok(Programs {
        monitord: folder.join("monitord"),
        monitorctl: folder.join("monitorctl"),
    })
}

/// In CI a lock file that does not fit its manifest is an error, not something to mend in passing.
pub(crate) fn locked() -> Option<&'static str> {
    in_ci().then_some("--locked")
}

/// Whether this runs where nobody looks at the output as it comes.
pub(crate) fn in_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| value == "true")
}

/// Builds the eBPF object and puts it to where `monitor/build.rs` embeds it from.
///
/// # Errors
///
/// It does not compile.
pub(crate) fn object(toolchain: &Toolchain) -> Result<()> {
    let target = workspace::target().join("bpf-build");
    let mut command = toolchain.cargo("build");
    command
        .args(["--release"])
        .args(locked())
        .arg("--target-dir")
        .arg(&target)
        // BTF is what the loader reads map layouts and the kernel verifies line information from.
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            ["-Cdebuginfo=2", "-Clink-arg=--btf"].join(FLAG_SEPARATOR),
        )
        .current_dir(workspace::root().join("monitor-ebpf"));
    run::shown("building the eBPF object", &mut command)?;
    let built = target.join(BPF_TARGET).join("release/monitor");
    copy_if_different(&built, &workspace::target().join("bpf/monitor.o"))
}

/// An equal file keeps its time, so that cargo does not build `monitor` again for nothing.
fn copy_if_different(from: &Path, to: &Path) -> Result<()> {
    let new = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    let folder = to.parent().context("a file without a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    // In two steps, so that a build that is killed leaves no half object to be embedded.
    let unfinished = to.with_extension("unfinished");
    fs::write(&unfinished, new).with_context(|| format!("writing {}", unfinished.display()))?;
    fs::rename(&unfinished, to).with_context(|| format!("writing {}", to.display()))
}
