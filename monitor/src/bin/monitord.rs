//! `monitord`, the daemon on each node.

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use monitor::{agent, config::Config, controller, doctor, provenance::Provenance};
use tracing_subscriber::{EnvFilter, fmt, prelude::*};

/// Checks that what containers do follows from the image they came from.
#[derive(Parser)]
#[command(name = "monitord", version, about, arg_required_else_help = true)]
struct Command {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Watch the containers of this node until SIGTERM.
    Run(Run),
    /// Act for a cluster until SIGTERM: roll workloads back when told to, keep its approvals, and hear
    /// from the nodes what runs. Of several one acts, by a Lease.
    Controller(Controller),
    /// Say what this node lets monitord see and what not, each with its reason; status 1 if it
    /// cannot watch.
    Doctor(Doctor),
    /// Remove the hooks that a stopped monitord has left in the kernel, and what they have seen.
    Unpin(Unpin),
    /// Read a configuration file and say whether it would be taken.
    CheckConfig {
        /// It is the controller's.
        #[arg(long)]
        controller: bool,
        /// The file, TOML.
        file: PathBuf,
    },
    /// Carry out a check of the daemon that started this.
    #[command(hide = true)]
    SelfCheck {
        /// The cgroup to do it in; it is done here if left out.
        #[arg(long)]
        cgroup: Option<PathBuf>,
    },
}

#[derive(Args)]
#[command(
    after_help = "Options override the file. Without either, monitord watches every namespace of the containerd at \
/run/containerd/containerd.sock, listens on unix:///run/monitord/monitord.sock and keeps its state in /var/lib/monitord.\n\n\
Log level: RUST_LOG=debug"
)]
struct Run {
    /// Configuration file, TOML.
    #[arg(long, env = "MONITORD_CONFIG")]
    config: Option<PathBuf>,
    /// Path of containerd's socket.
    #[arg(long, value_name = "ADDRESS")]
    containerd: Option<PathBuf>,
    /// Address to serve the API on, unix:///PATH; may be given more than once.
    #[arg(long, value_name = "ADDRESS")]
    listen: Vec<String>,
    /// Directory of the daemon's state.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Name of this node in alerts; the host's name if left out.
    #[arg(long)]
    node: Option<String>,
    /// Let hooks go with the process: what happens until it is started again is not seen.
    #[arg(long)]
    no_pin: bool,
    /// Directory on a bpffs where hooks are kept until monitord is started again.
    #[arg(long, value_name = "DIR")]
    pin_directory: Option<PathBuf>,
}

#[derive(Args)]
#[command(after_help = "Log level: RUST_LOG=debug")]
struct Controller {
    /// Configuration file, TOML.
    #[arg(long, env = "MONITORD_CONFIG")]
    config: Option<PathBuf>,
}

impl Controller {
    fn run(self) -> anyhow::Result<()> {
        let config = self.config.as_deref();
        let config = config.map_or_else(
            || Ok(controller::Config::default()),
            controller::Config::read,
        );
        controller::run(config?)
    }
}

#[derive(Args)]
struct Unpin {
    /// Configuration file, TOML.
    #[arg(long, env = "MONITORD_CONFIG")]
    config: Option<PathBuf>,
    /// Directory on a bpffs where hooks are kept.
    #[arg(long, value_name = "DIR")]
    pin_directory: Option<PathBuf>,
}

impl Unpin {
    fn run(self) -> anyhow::Result<()> {
        let mut config = read_config(self.config.as_deref())?;
        config.pin_directory = self.pin_directory.unwrap_or(config.pin_directory);
        agent::unpin(&config)
    }
}

#[derive(Args)]
#[command(
    after_help = "The hooks are attached for a moment and detached again; nothing is sent or kept."
)]
struct Doctor {
    /// Configuration file, TOML.
    #[arg(long, env = "MONITORD_CONFIG")]
    config: Option<PathBuf>,
    /// Path of containerd's socket.
    #[arg(long, value_name = "ADDRESS")]
    containerd: Option<PathBuf>,
    /// How to print: a table, or JSON with one object per line.
    #[arg(short, long, value_enum, default_value_t = Form::Table)]
    output: Form,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    Table,
    Json,
}

impl Doctor {
    /// Prints the report; false if this node cannot be watched.
    fn run(self) -> anyhow::Result<bool> {
        let mut config = read_config(self.config.as_deref())?;
        config.containerd = self.containerd.unwrap_or(config.containerd);
        let report = doctor::examine(&config)?;
        let mut stdout = std::io::stdout();
        match self.output {
            Form::Json => report.print_json(&mut stdout)?,
            Form::Table => {
                let colour = stdout.is_terminal() && std::env::var_os("NO_COLOR").is_none();
                report.print(&mut stdout, colour)?;
            }
        }
        Ok(report.can_watch())
    }
}

fn read_config(file: Option<&Path>) -> anyhow::Result<Config> {
    Ok(file.map_or_else(|| Ok(Config::default()), Config::read)?)
}

impl Run {
    fn config(self) -> anyhow::Result<Config> {
        let mut config = read_config(self.config.as_deref())?;
        if let Some(containerd) = self.containerd {
            config.containerd = containerd;
        }
        if !self.listen.is_empty() {
            config.listen = self.listen;
        }
        if let Some(state) = self.state {
            config.state = state;
        }
        config.node = self.node.or(config.node);
        config.pin &= !self.no_pin;
        config.pin_directory = self.pin_directory.unwrap_or(config.pin_directory);
        config.check()?;
        Ok(config)
    }
}

fn main() -> ExitCode {
    let command = Command::parse();
    let is_run = matches!(command.action, Action::Run(_) | Action::Controller(_));
    let done = match command.action {
        Action::Run(run) => {
            log_to_stderr();
            run.config().and_then(agent::run).map(|()| true)
        }
        Action::Controller(controller) => {
            log_to_stderr();
            controller.run().map(|()| true)
        }
        Action::Doctor(doctor) => doctor.run(),
        Action::Unpin(unpin) => unpin.run().map(|()| true),
        Action::CheckConfig {
            controller: true,
            file,
        } => check_controller_config(&file).map(|()| true),
        Action::CheckConfig { file, .. } => check_config(&file).map(|()| true),
        Action::SelfCheck { cgroup } => agent::self_check(cgroup.as_deref()).map(|()| true),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // Whoever collects the log gets the reason in its form.
            if is_run && !std::io::stderr().is_terminal() {
                tracing::error!("{error:#}");
            } else {
                eprintln!("monitord: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

/// Checks a configuration, and the policies, approvals and keys that it names.
fn check_config(file: &Path) -> anyhow::Result<()> {
    let config = Config::read(file)?;
    agent::check_policies(&config.policy)
        .map_err(|error| anyhow::anyhow!("the policies are refused: {error}"))?;
    agent::check_approvals(&config.approval)
        .map_err(|error| anyhow::anyhow!("the approvals are refused: {error}"))?;
    Provenance::new(&config.provenance, None, None)?;
    println!("{config:#?}");
    Ok(())
}

/// The same of the controller's.
fn check_controller_config(file: &Path) -> anyhow::Result<()> {
    let config = controller::Config::read(file)?;
    Provenance::new(&config.provenance, None, None)?;
    println!("{config:#?}");
    Ok(())
}

/// Text on a terminal, JSON otherwise.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(filter);
    if std::io::stderr().is_terminal() {
        registry
            .with(fmt::layer().with_writer(std::io::stderr))
            .init();
    } else {
        registry
            .with(fmt::layer().json().with_writer(std::io::stderr))
            .init();
    }
}
