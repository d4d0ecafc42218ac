//! The cgroup in which the daemon does something known to itself, and how it is done.

use std::{
    fs::{self, File},
    io,
    net::{Ipv4Addr, UdpSocket},
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};

use crate::{
    containers::hierarchy::Hierarchy,
    sensor::hooks::{self, Choice},
};

/// What the probe's cgroups are called, before the daemon's process id.
const PREFIX: &str = "monitord-self-check-";
/// The daemon's own subcommand that carries out a check.
const SUBCOMMAND: &str = "self-check";
const OWN_PROGRAM: &str = "/proc/self/exe";

/// Something that a check does, and the kind of event that must be seen of it.
struct Check {
    kind: &'static str,
    act: fn() -> anyhow::Result<()>,
}

/// A kind of event is added by a line.
const CHECKS: [Check; 3] = [
    Check {
        kind: "exec",
        // Carried out by being executed.
        act: || Ok(()),
    },
    Check {
        kind: "open",
        act: || {
            let opened = File::open(OWN_PROGRAM);
            opened
                .map(drop)
                .with_context(|| format!("cannot open {OWN_PROGRAM}"))
        },
    },
    Check {
        kind: "connect",
        // Of UDP, so that nothing is sent.
        act: || {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0));
            let connected =
                socket.and_then(|socket| socket.connect((Ipv4Addr::LOCALHOST, DISCARD)));
            connected.context("cannot connect a socket of UDP to the loopback address")
        },
    },
];
/// The port whose service throws away what it gets (RFC 863).
const DISCARD: u16 = 9;

/// The kinds of events that a check must give with these hooks.
pub(super) fn kinds(choices: &[Choice]) -> Vec<&'static str> {
    let is_seen = |kind: &str| {
        choices
            .iter()
            .any(|choice| choice.set.is_some() && hooks::kind_name(choice.kind) == kind)
    };
    let kinds = CHECKS.iter().map(|check| check.kind);
    kinds.filter(|kind| is_seen(kind)).collect()
}

/// The probe's cgroup; removed when dropped.
#[derive(Debug)]
pub(super) struct Probe {
    path: PathBuf,
    /// Id of the cgroup.
    pub(super) cgroup_id: u64,
}

impl Probe {
    /// Makes the cgroup below the daemon's own, and removes those of daemons that were killed.
    pub(super) fn new(hierarchy: &Hierarchy) -> anyhow::Result<Self> {
        let own =
            fs::read_to_string("/proc/self/cgroup").context("cannot read /proc/self/cgroup")?;
        let own = own
            .lines()
            .find_map(|line| line.strip_prefix("0::/"))
            .context("this process is in no cgroup of the v2 hierarchy")?;
        let parent = hierarchy.place.join(own);
        remove_old(&parent);
        let path = parent.join(format!("{PREFIX}{}", std::process::id()));
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| format!("cannot make {}", path.display()));
            }
            _ => {}
        }
        let cgroup_id = fs::metadata(&path)
            .with_context(|| format!("cannot look at {}", path.display()))?
            .ino();
        Ok(Self { path, cgroup_id })
    }

    /// The process that carries out a check.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(OWN_PROGRAM);
        command.arg(SUBCOMMAND).arg("--cgroup").arg(&self.path);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "cannot remove the cgroup of the self-check");
        }
    }
}

/// A cgroup with a process in it is not removed, nor is that of a daemon that runs.
fn remove_old(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if let Some(pid) = pid.and_then(|pid| pid.parse::<u32>().ok())
            && !Path::new(&format!("/proc/{pid}")).exists()
        {
            // The next daemon tries again.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Starts the process of a check and waits for its end.
pub(super) fn carry_out(mut command: Command) -> Result<(), String> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("it ended with {status}")),
        Err(error) => Err(format!("cannot execute {OWN_PROGRAM}: {error}")),
    }
}

/// What the process of a check does: with a cgroup it goes there and executes itself again, without
/// one it is there and does what must be seen.
///
/// # Errors
///
/// What could not be done.
pub fn self_check(cgroup: Option<&Path>) -> anyhow::Result<()> {
    let Some(cgroup) = cgroup else {
        return CHECKS.iter().try_for_each(|check| (check.act)());
    };
    let name = cgroup.file_name().and_then(|name| name.to_str());
    ensure!(
        name.is_some_and(|name| name.starts_with(PREFIX)),
        "{} is no cgroup of a self-check",
        cgroup.display()
    );
    let processes = cgroup.join("cgroup.procs");
    fs::write(&processes, "0").with_context(|| format!("cannot write {}", processes.display()))?;
    let error = Command::new(OWN_PROGRAM).arg(SUBCOMMAND).exec();
    Err(error).with_context(|| format!("cannot execute {OWN_PROGRAM}"))
}
