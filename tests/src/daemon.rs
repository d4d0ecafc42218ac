//! monitord and monitorctl as their users have them: programs, options, JSON lines.

use std::{
    env,
    ffi::OsStr,
    fs::{self, File},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{
    alerts::{Alerts, text},
    containerd::Containerd,
    poll::{Deadline, PATIENCE, until},
    process::{Process, output},
};

/// The node name that the daemon is given.
pub const NODE: &str = "test-node";
/// How much of a log an error shows.
const LOG_LINES_MAX: usize = 30;

/// The program to test: from the environment, else as `cargo xtask build` leaves it.
pub fn program(variable: &str, name: &str) -> Result<PathBuf> {
    let path = env::var_os(variable).map_or_else(
        || {
            Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("../target/release")
                .join(name)
        },
        PathBuf::from,
    );
    ensure!(
        path.is_file(),
        "{} does not exist: run `cargo xtask build`, or name the program in {variable}",
        path.display()
    );
    Ok(path)
}

/// A monitord and the directory that holds its socket, state and log.
#[derive(Debug)]
pub struct Daemon {
    process: Process,
    directory: PathBuf,
}

impl Daemon {
    /// Starts monitord at a containerd and waits until it is ready. What it writes goes below
    /// `directory`, which is made if it is not there.
    pub fn start(containerd: &Path, directory: &Path) -> Result<Self> {
        let daemon = Self::spawn(&mut Self::command(containerd, directory)?, directory)?;
        daemon.wait_ready()?;
        Ok(daemon)
    }

    /// The same with hooks that stay in the kernel, in `pins`.
    pub fn start_pinned(containerd: &Path, directory: &Path, pins: &Path) -> Result<Self> {
        let mut command = Self::pinned_command(containerd, directory, pins)?;
        let daemon = Self::spawn(&mut command, directory)?;
        daemon.wait_ready()?;
        Ok(daemon)
    }

    /// The command that [`Daemon::start_pinned`] uses, to be changed.
    pub fn pinned_command(containerd: &Path, directory: &Path, pins: &Path) -> Result<Command> {
        let arguments = Self::arguments(containerd, directory);
        let mut command = Command::new(program("MONITORD", "monitord")?);
        command
            .args(arguments.iter().filter(|word| *word != "--no-pin"))
            .arg("--pin-directory")
            .arg(pins);
        Ok(command)
    }

    /// The command that [`Daemon::start`] uses, to be changed.
    pub fn command(containerd: &Path, directory: &Path) -> Result<Command> {
        let mut command = Command::new(program("MONITORD", "monitord")?);
        command.args(Self::arguments(containerd, directory));
        Ok(command)
    }

    /// The arguments of that command.
    pub fn arguments(containerd: &Path, directory: &Path) -> [String; 10] {
        let shown = |path: &Path| path.display().to_string();
        [
            "run".to_owned(),
            "--containerd".to_owned(),
            shown(containerd),
            "--listen".to_owned(),
            address(directory),
            "--state".to_owned(),
            shown(&directory.join("state")),
            "--node".to_owned(),
            NODE.to_owned(),
            // Hooks that stay would go on seeing what later tests do.
            "--no-pin".to_owned(),
        ]
    }

    /// Starts a command as the daemon, without waiting for it. Its output goes to a log.
    pub fn spawn(command: &mut Command, directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let log = File::create(directory.join("monitord.log"))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let daemon = Self {
            process: Process::default(),
            directory: directory.to_owned(),
        };
        daemon.process.set(child);
        Ok(daemon)
    }

    /// Starts it beside a containerd, with the configuration `config.toml` in that one's directory and
    /// any port for TCP, and waits until it is ready.
    pub fn start_with_tcp(containerd: &Containerd) -> Result<Self> {
        let own = containerd.directory().join("monitord");
        let mut command = Self::command(&containerd.address(), &own)?;
        command
            .arg("--config")
            .arg(containerd.directory().join("config.toml"))
            .args(["--listen", "https://127.0.0.1:0"]);
        let daemon = Self::spawn(&mut command, &own)?;
        daemon.wait_ready()?;
        Ok(daemon)
    }

    /// Waits until it says that it is ready, to clients and in its log.
    pub fn wait_ready(&self) -> Result<()> {
        let deadline = Deadline::after(PATIENCE);
        loop {
            let answer = self.status();
            if let Some(status) = self.process.try_wait()? {
                bail!("monitord ended with {status}:\n{}", self.log());
            }
            match answer {
                Ok(status)
                    if status.get("ready") == Some(&Value::Bool(true))
                        && self.log().contains("ready: ") =>
                {
                    return Ok(());
                }
                answer if deadline.passed() => {
                    bail!("monitord is not ready: {answer:?}\n{}", self.log())
                }
                _ => deadline.pause(),
            }
        }
    }

    /// What `monitorctl status` says.
    pub fn status(&self) -> Result<Value> {
        let mut lines = self.monitorctl(["status"])?;
        lines.pop().context("monitorctl status said nothing")
    }

    /// Runs `monitorctl` at this daemon and reads its JSON lines.
    pub fn monitorctl<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Vec<Value>> {
        let mut command = self.monitorctl_command()?;
        let said = output(command.args(arguments).args(["-o", "json"]));
        let said = said.with_context(|| self.log())?;
        said.lines()
            .map(|line| Ok(serde_json::from_str(line)?))
            .collect()
    }

    /// `monitorctl` at this daemon.
    pub fn monitorctl_command(&self) -> Result<Command> {
        let mut command = Command::new(program("MONITORCTL", "monitorctl")?);
        command.env("MONITOR_ADDRESS", address(&self.directory));
        command.stdin(Stdio::null());
        Ok(command)
    }

    /// Reads all alerts, from the first that the daemon still has, as they come.
    pub fn follow(&self) -> Result<Alerts> {
        let mut command = self.monitorctl_command()?;
        Alerts::read(command.args(["alerts", "--follow", "--since", "0", "-o", "json"]))
    }

    /// Waits until nothing that the hooks saw waits for its container to become known.
    pub fn wait_nothing_waiting(&self) -> Result<()> {
        until("status to say waiting 0", PATIENCE, || {
            let status = self.status()?;
            let waiting = status
                .pointer("/events/waiting")
                .and_then(Value::as_u64)
                .with_context(|| format!("no number /events/waiting in {status}"))?;
            ensure!(waiting == 0, "{waiting} events wait");
            changes_judged(&status)
        })
    }

    /// What the status says of the hook for a kind of event.
    pub fn hook(&self, event: &str) -> Result<Value> {
        let status = self.status()?;
        let hooks = status.pointer("/hooks").and_then(Value::as_array);
        let mut hooks = hooks.into_iter().flatten();
        let hook = hooks.find(|hook| text(hook, "/event") == Some(event));
        hook.cloned()
            .with_context(|| format!("no hook for {event}: {status:#}"))
    }

    /// How many events of a kind the hooks count as lost.
    pub fn lost(&self, event: &str) -> Result<u64> {
        let hook = self.hook(event)?;
        let causes = ["ring_full", "map_full", "unreadable", "recursion_misses"];
        let counts = causes.map(|cause| {
            let count = hook.get(cause).and_then(Value::as_u64);
            count.with_context(|| format!("no {cause} in {hook}"))
        });
        counts.into_iter().sum()
    }

    /// Waits for a moment at which all that the hooks saw has been judged.
    pub fn wait_all_judged(&self) -> Result<()> {
        until("everything to be judged", PATIENCE, || {
            let status = self.status()?;
            let count = |pointer: &str| {
                let count = status.pointer(pointer).and_then(Value::as_u64);
                count.with_context(|| format!("no number {pointer} in {status}"))
            };
            let hooks = status.pointer("/hooks").and_then(Value::as_array);
            let submitted = hooks.into_iter().flatten();
            let submitted: u64 = submitted
                .filter_map(|hook| hook.get("submitted")?.as_u64())
                .sum();
            let received = count("/events/received")?;
            let done = [
                "earlier",
                "judged",
                "expired_unknown",
                "before_coverage",
                "failed",
            ]
            .iter()
            .map(|name| count(&format!("/events/{name}")))
            .sum::<Result<u64>>()?;
            let all = received + count("/events/running")?;
            ensure!(
                received >= submitted && done == all,
                "{submitted} submitted, {received} received, {done} of {all} done"
            );
            changes_judged(&status)
        })
    }

    /// The newest cursor there is.
    pub fn newest_cursor(&self) -> Result<u64> {
        let status = self.status()?;
        let cursor = status
            .pointer("/alerts/newest_cursor")
            .and_then(Value::as_str);
        let cursor = cursor.and_then(|cursor| cursor.parse().ok());
        cursor.with_context(|| format!("no cursor /alerts/newest_cursor in {status}"))
    }

    /// Ends it as a service manager does; its exit status.
    pub fn stop(&self) -> Result<ExitStatus> {
        if let Some(pid) = self.process.id() {
            kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGTERM)?;
        }
        self.wait()
    }

    /// Its process id.
    pub fn pid(&self) -> Result<u32> {
        self.process.id().context("monitord has ended")
    }

    /// Has it do nothing until [`Daemon::go_on`], as a node without processor time would.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// See [`Daemon::pause`].
    pub fn go_on(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.pid()?)?), signal)?)
    }

    /// Ends it without a chance to clean up.
    pub fn kill(&self) -> Result<()> {
        self.process.kill()
    }

    /// Waits for its end.
    pub fn wait(&self) -> Result<ExitStatus> {
        self.process.wait().with_context(|| self.log())
    }

    /// Fails if it has ended.
    pub fn check_alive(&self) -> Result<()> {
        match self.process.try_wait()? {
            None => Ok(()),
            Some(status) => {
                let signal = status.signal();
                bail!(
                    "monitord ended with {status} (signal {signal:?}):\n{}",
                    self.log()
                )
            }
        }
    }

    /// Everything it has logged.
    pub fn full_log(&self) -> String {
        fs::read_to_string(self.directory.join("monitord.log")).unwrap_or_default()
    }

    /// The end of its log.
    pub fn log(&self) -> String {
        let log = self.full_log();
        let lines: Vec<&str> = log.lines().collect();
        let skipped = lines.len().saturating_sub(LOG_LINES_MAX);
        lines
            .into_iter()
            .skip(skipped)
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// Where its socket lies.
    pub fn socket(&self) -> PathBuf {
        socket(&self.directory)
    }
}

fn socket(directory: &Path) -> PathBuf {
    directory.join("monitord.sock")
}

fn address(directory: &Path) -> String {
    format!("unix://{}", socket(directory).display())
}

/// No change of a file of an image waits.
fn changes_judged(status: &Value) -> Result<()> {
    let waiting = status
        .pointer("/changes/waiting")
        .and_then(Value::as_u64)
        .with_context(|| format!("no number /changes/waiting in {status}"))?;
    ensure!(waiting == 0, "{waiting} changes of files of images wait");
    Ok(())
}

/// Whether each run of a hook became something, by what a status says of it.
pub fn check_balance(hook: &Value) -> Result<()> {
    let count = |name: &str| {
        let count = hook.get(name).and_then(Value::as_u64);
        count.with_context(|| format!("no number {name} in {hook}"))
    };
    let became = [
        "unwatched",
        "remembered",
        "submitted",
        "ring_full",
        "map_full",
        "unreadable",
    ];
    let became = became.into_iter().map(count).sum::<Result<u64>>()?;
    ensure!(count("seen")? == became, "{hook:#}");
    Ok(())
}
