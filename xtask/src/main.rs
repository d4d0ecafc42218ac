//! `cargo xtask`: everything that is done to this repository more than once.

mod apt;
mod bench;
mod build;
mod cache;
mod demo;
mod evasions;
mod guest;
mod hung;
mod images;
mod lint;
mod run;
mod servers;
mod setup;
mod test;
mod toolchain;
mod workspace;

use std::{path::PathBuf, process::ExitCode};

use clap::{CommandFactory as _, Parser, Subcommand};

/// Sets up, builds, shows and tests monitord
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Option<Task>,
}

#[derive(Subcommand)]
enum Task {
    /// Find what the build and the tests need and is missing, and install it
    Setup,
    /// Build monitord and monitorctl, with the eBPF object inside, into target/release
    Build {
        /// Without optimisation, into target/debug
        #[arg(long)]
        debug: bool,
    },
    /// Build, then run the main job once on real containers and print its alerts
    Demo,
    /// Build, then run every test that this machine can run, here and on other kernels in virtual
    /// machines, and say what was skipped and why
    Test {
        /// Only the tests of Kubernetes, in the cluster that this kubeconfig names, as one who may do
        /// everything there. They leave what deploy/controller.yaml holds; use a cluster for tests
        #[arg(long, value_name = "FILE")]
        kubeconfig: Option<PathBuf>,
        /// Only tests on this machine's kernel whose names contain one of these
        filters: Vec<String>,
    },
    /// Boot other kernels in virtual machines and run the sensor's tests on them
    Guest {
        /// Only this one, such as 6.1
        kernel: Option<String>,
    },
    /// Carry out all techniques of evasion, here and on other kernels, and write docs/evasions.md
    Evasions,
    /// Build, then print figures: cost and loss beside other tracers, time to an alert
    Bench {
        /// Only these: opens, latency
        names: Vec<String>,
    },
    /// Check format, warnings and layering
    Lint,
    /// Format all packages
    Fmt,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Some(Task::Setup) => setup::run().map(|_| {
            guest::prepare();
            servers::prepare();
            images::prepare();
        }),
        Some(Task::Build { debug }) => build::run(build::Profile::from_debug(debug)).map(|_| ()),
        Some(Task::Demo) => demo::run(),
        Some(Task::Test {
            kubeconfig,
            filters,
        }) => test::run(kubeconfig.as_deref(), &filters),
        Some(Task::Guest { kernel }) => guest::run(kernel.as_deref()),
        Some(Task::Evasions) => evasions::run(),
        Some(Task::Bench { names }) => bench::run(&names),
        Some(Task::Lint) => lint::check(),
        Some(Task::Fmt) => lint::format(),
        None => Arguments::command().print_help().map_err(Into::into),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
