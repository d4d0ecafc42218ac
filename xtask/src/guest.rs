//! Tests on other kernels: each is booted in a virtual machine whose PID 1 is the `guest` package's
//! program, which runs the sensor's tests and then carries out the techniques of evasion.

mod console;
mod initramfs;
mod kernel;

use std::{
    env, fs,
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
    thread::{self, ScopedJoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};

use self::{
    console::Report,
    initramfs::Extra,
    kernel::{Kernel, SERIES},
};
use crate::{
    apt,
    build::{self, Profile, Programs},
    run, setup, toolchain, workspace,
};

/// PID 1, in which the sensor's tests are.
const INIT: &str = "guest";
/// The techniques of evasion, which need containerd.
const EVASIONS: &str = "evasions";

const QEMU: &str = "qemu-system-x86_64";
const QEMU_PACKAGE: &str = "qemu-system-x86";

/// Boot and sensor's tests take a minute on an idle machine, the techniques of evasion some eight;
/// the rest is for a busy one.
const DEADLINE: Duration = Duration::from_secs(1800);

/// PID 1 has a program of tests in it and starts another.
const PROGRAMS: usize = 2;

/// Of a guest, in MiB: a whole containerd with its images lies in it.
const MEMORY: &str = "3072";

/// What is done with the document that tells what came of the techniques of evasion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Document {
    /// A test fails when it is stale.
    Compare,
    /// It is written anew.
    Renew,
}

/// What became of the guests, in the terms of the test runner.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    /// `TEST: REASON` for each kernel that could not be booted.
    pub(crate) skipped: Vec<String>,
}

/// `cargo xtask guest`: builds what the guests need and runs them alone.
///
/// # Errors
///
/// The build or a test fails, the kernel is not one of [`SERIES`], none could be booted, or
/// `CI=true` and one was skipped.
pub(crate) fn run(wanted: Option<&str>) -> Result<()> {
    if let Some(wanted) = wanted
        && !SERIES.contains(&wanted)
    {
        bail!(
            "no tests for a kernel {wanted}; there are {}",
            SERIES.join(" ")
        );
    }
    let programs = build::run(Profile::Release)?;
    let outcome = all(wanted, &programs, Document::Compare)?;
    for line in &outcome.skipped {
        eprintln!("xtask: skipped {line}");
    }
    eprintln!(
        "xtask: {} tests passed in guests, {} failed, kernels skipped: {}",
        outcome.passed,
        outcome.failed,
        outcome.skipped.len()
    );
    if outcome.failed > 0 {
        bail!("tests failed");
    }
    if outcome.passed == 0 {
        bail!("no kernel could be booted");
    }
    if build::in_ci() && !outcome.skipped.is_empty() {
        bail!("CI=true and kernels were skipped: this machine must be able to boot all of them");
    }
    Ok(())
}

/// Boots each kernel, or the wanted one, with the programs that were built.
///
/// # Errors
///
/// The guests' program does not build or its initramfs cannot be written. What goes wrong in a
/// guest is a failed test.
pub(crate) fn all(
    wanted: Option<&str>,
    programs: &Programs,
    document: Document,
) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut kernels = Vec::new();
    for series in SERIES {
        if wanted.is_none_or(|wanted| wanted == series) {
            match find(series) {
                Ok(kernel) => kernels.push(kernel),
                Err(error) => outcome.skipped.push(format!("guest::{series}: {error:#}")),
            }
        }
    }
    if kernels.is_empty() {
        return Ok(outcome);
    }
    let guest = Guest::build(programs)?;
    for (kernel, report) in kernels.iter().zip(guest.boot_all(&kernels)) {
        let mut report = report?;
        if !report.cells().is_empty() {
            let written = guest.take(kernel.series, report.cells(), document);
            report.add_test("the_document_says_what_came_of_the_evasions", written);
        }
        report.show(kernel.series);
        outcome.passed += report.passed();
        outcome.failed += report.failed();
    }
    Ok(outcome)
}

/// Installs and downloads what the guests need, as far as that is possible here.
pub(crate) fn prepare() {
    for series in SERIES {
        if let Err(error) = find(series) {
            eprintln!("xtask: tests in a guest with kernel {series} will be skipped: {error:#}");
        }
    }
}

/// The kernel of a series and a QEMU to boot it, installed if need be.
fn find(series: &'static str) -> Result<Kernel> {
    if env::consts::ARCH != "x86_64" {
        bail!("the guests are x86-64 machines that run this machine's own programs");
    }
    let runs = || run::answer(Command::new(QEMU).arg("--version")).is_some();
    if !runs() {
        if apt::is_here() && nix::unistd::Uid::effective().is_root() {
            // Old lists name versions that the mirror no longer has; a fresh machine has none.
            apt::update();
            apt::install(&[QEMU_PACKAGE.to_owned()].into())?;
        }
        if !runs() {
            bail!("{QEMU} does not run here: install what Debian's {QEMU_PACKAGE} brings");
        }
    }
    let cache = workspace::cache()?;
    let _lock = setup::lock(&cache)?;
    toolchain::remove_unfinished(&cache)?;
    kernel::find(&cache, series)
}

/// What all guests have.
struct Guest {
    /// PID 1, which is also the first program of tests.
    init: PathBuf,
    /// The second one.
    evasions: PathBuf,
    extra: Extra,
}

impl Guest {
    fn build(programs: &Programs) -> Result<Self> {
        build_programs()?;
        let release = workspace::target().join("release");
        let (init, evasions) = (release.join(INIT), release.join(EVASIONS));
        let files = run::answer(Command::new(&evasions).arg("files"))
            .context("what the tests with containers need is not here: run `cargo xtask setup`")?;
        let extra = Extra {
            programs: [&programs.monitord, &programs.monitorctl, &evasions]
                .map(PathBuf::clone)
                .to_vec(),
            files: files.lines().map(PathBuf::from).collect(),
        };
        Ok(Self {
            init,
            evasions,
            extra,
        })
    }

    /// Boots them side by side. With one processor each: the emulation of two, which wait for each
    /// other at each change of a page table, costs a third more than that of one.
    fn boot_all(&self, kernels: &[Kernel]) -> Vec<Result<Report>> {
        thread::scope(|scope| {
            let booted: Vec<_> = kernels
                .iter()
                .map(|kernel| scope.spawn(|| self.boot(kernel)))
                .collect();
            let ended = booted.into_iter().map(ScopedJoinHandle::join);
            ended
                .map(|report| report.unwrap_or_else(|_| Err(anyhow!("its thread panicked"))))
                .collect()
        })
    }

    fn boot(&self, kernel: &Kernel) -> Result<Report> {
        let folder = workspace::target().join("guest");
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let image = folder.join(format!("initramfs-{}.cpio", kernel.series));
        let bytes = initramfs::build(&self.init, &self.extra, kernel)?;
        fs::write(&image, bytes).with_context(|| format!("writing {}", image.display()))?;
        eprintln!("xtask: booting {} ...", kernel.describe());
        let start = Instant::now();
        let mut command = Command::new(QEMU);
        command
            // Copies by bytes, which processors with ERMS are asked for, are emulated one byte at a
            // time.
            .args(["-accel", "tcg", "-cpu", "max,-erms,-fsrm"])
            .args(["-smp", "1", "-m", MEMORY])
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-serial", "stdio", "-no-reboot"])
            .arg("-kernel")
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(&image)
            // A panic ends the machine at once; only what is worse than a warning is printed, so
            // that it does not fall into the middle of the tests' lines.
            .args([
                "-append",
                "console=ttyS0 loglevel=4 panic=-1 mitigations=off",
            ]);
        let report = console::watch(&mut command, PROGRAMS, DEADLINE)?;
        eprintln!(
            "xtask: {}: ended after {:.1} s",
            kernel.describe(),
            start.elapsed().as_secs_f64()
        );
        Ok(report)
    }

    /// Gives what came of the techniques of evasion to the program that knows the document.
    fn take(&self, series: &str, cells: &[String], document: Document) -> Result<()> {
        let command = match document {
            Document::Compare => "compare",
            Document::Renew => "renew",
        };
        let mut child = Command::new(&self.evasions)
            .args([command, series])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", self.evasions.display()))?;
        let mut input = child.stdin.take().context("a child without input")?;
        input.write_all(cells.join("\n").as_bytes())?;
        drop(input);
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim_end());
        }
        Ok(())
    }
}

/// Builds the programs that guests run, as `cargo test` builds them: of the whole workspace, so that
/// their libraries have the same features and are there already.
fn build_programs() -> Result<()> {
    let mut command = run::cargo();
    command
        .args(["build", "--release", "--workspace"])
        .args(["--bin", INIT, "--bin", EVASIONS])
        .args(build::locked())
        .current_dir(workspace::root())
        .env("CARGO_TARGET_DIR", workspace::target());
    run::shown("building the guests' programs", &mut command)
}
