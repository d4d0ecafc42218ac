//! Who watches while opens are measured, and what it has seen of them.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    containerd::Containerd,
    daemon::Daemon,
    poll::{PATIENCE, until},
    process::{Process, output as output_of},
};

/// Who watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tracer {
    /// Nobody.
    Nobody,
    /// The daemon of this project.
    Monitord,
    /// Debian's libbpf-tools.
    Opensnoop,
    /// Two probes that print what opensnoop prints.
    Bpftrace,
}

/// A tracer that has printed nothing for so long has printed all.
const QUIET: Duration = Duration::from_secs(1);
/// What bpftrace is to do.
const BPFTRACE: &str = r#"
tracepoint:syscalls:sys_enter_openat /comm == "probe"/ { @path[tid] = args->filename; }
tracepoint:syscalls:sys_exit_openat /@path[tid]/ {
    printf("%d %s %d %s\n", pid, comm, args->ret, str(@path[tid])); delete(@path[tid]);
}"#;

impl Tracer {
    pub(super) const ALL: [Self; 4] = [
        Self::Nobody,
        Self::Monitord,
        Self::Opensnoop,
        Self::Bpftrace,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::Monitord => "monitord",
            Self::Opensnoop => "opensnoop",
            Self::Bpftrace => "bpftrace",
        }
    }

    /// Begins to watch.
    pub(super) fn start(self, containerd: &Containerd) -> Result<Watching> {
        let file = containerd.directory().join(self.name());
        match self {
            Self::Nobody => Ok(Watching::Nobody),
            Self::Monitord => {
                let daemon = Daemon::start(&containerd.address(), &file)?;
                Ok(Watching::Monitord(daemon))
            }
            Self::Opensnoop => Printing::start(file, "opensnoop", &["-n", "probe"]),
            Self::Bpftrace => Printing::start(file, "bpftrace", &["-e", BPFTRACE]),
        }
    }
}

/// Somebody who watches.
pub(super) enum Watching {
    Nobody,
    Monitord(Daemon),
    Printing(Printing),
}

impl Watching {
    /// How many opens were lost, of `opens` of paths that have `part` in them. Ends it.
    pub(super) fn lost(self, opens: u64, part: &str) -> Result<u64> {
        match self {
            Self::Nobody => Ok(0),
            Self::Monitord(daemon) => {
                daemon.wait_all_judged()?;
                let lost = daemon.lost("open")?;
                daemon.stop()?;
                Ok(lost)
            }
            Self::Printing(printing) => Ok(opens.saturating_sub(printing.seen(part)?)),
        }
    }
}

/// A program that prints a line per open to a file.
pub(super) struct Printing {
    process: Process,
    file: PathBuf,
}

impl Printing {
    /// Starts it and waits until it has seen an open.
    fn start(file: PathBuf, program: &str, arguments: &[&str]) -> Result<Watching> {
        // Both read the numbers of tracepoints from tracefs, which need not be mounted here.
        let script = "mount -t tracefs none /sys/kernel/tracing && exec \"$0\" \"$@\"";
        let output = File::create(&file)?;
        let child = Command::new("unshare")
            .args(["--mount", "sh", "-c", script, program])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("cannot start unshare")?;
        let process = Process::default();
        process.set(child);
        let printing = Self { process, file };
        until(&format!("{program} to watch"), PATIENCE, || {
            if printing.process.try_wait()?.is_some() {
                bail!("it ended: {}", fs::read_to_string(&printing.file)?);
            }
            // More than the buffer of its output, which is written when it is full.
            let opens = ["open-repeat", "500", "/etc/hostname"];
            output_of(Command::new(env!("PROBE")).args(opens))?;
            (lines(&printing.file, "/etc/hostname")? > 0)
                .then_some(())
                .context("it has printed nothing")
        })?;
        Ok(Watching::Printing(printing))
    }

    /// How many lines have `part` in them when it has printed all that it will.
    fn seen(self, part: &str) -> Result<u64> {
        let mut printed = (0, Instant::now());
        until("a tracer to print what it has seen", PATIENCE, || {
            let length = fs::metadata(&self.file)?.len();
            if length != printed.0 {
                printed = (length, Instant::now());
            }
            (printed.1.elapsed() > QUIET)
                .then_some(())
                .context("it prints")
        })?;
        if let Some(pid) = self.process.id() {
            kill(Pid::from_raw(pid.try_into()?), Signal::SIGINT)?;
        }
        self.process.wait()?;
        lines(&self.file, part)
    }
}

fn lines(file: &Path, part: &str) -> Result<u64> {
    let mut count = 0;
    for line in BufReader::new(File::open(file)?).split(b'\n') {
        count += u64::from(String::from_utf8_lossy(&line?).contains(part));
    }
    Ok(count)
}
