//! What the host does while a container of a technique waits.

use std::{
    fmt,
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    mount::{MntFlags, umount2},
    sys::stat::Mode,
    unistd::mkfifo,
};

use super::FUNCTIONS;
use crate::{
    containerd::Run,
    poll::{PATIENCE, until},
    world::World,
};

/// Where a container that waits has the directory that it shares with the host.
const SHARED: &str = "/stage";

/// What the id of a technique's second container ends with.
pub(super) const OTHER: &str = "-other";

/// A container to be run for a technique, and a directory of its own on the host.
#[derive(Debug)]
pub(super) struct Stage<'a> {
    world: &'a World,
    id: String,
    image: &'static str,
    flags: &'static [&'static str],
    directory: PathBuf,
}

impl<'a> Stage<'a> {
    pub(super) fn new(
        world: &'a World,
        id: &str,
        image: &'static str,
        flags: &'static [&'static str],
    ) -> Result<Self> {
        let directory = world.containerd.directory().join("stages").join(id);
        fs::create_dir_all(&directory)?;
        Ok(Self {
            world,
            id: id.to_owned(),
            image,
            flags,
            directory,
        })
    }

    /// Another container of the same technique.
    pub(super) fn other(&self) -> Result<Self> {
        let id = format!("{}{OTHER}", self.id);
        Self::new(self.world, &id, self.image, &[])
    }

    pub(super) fn world(&self) -> &'a World {
        self.world
    }

    /// The container's id.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// A directory on the host.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The container, to run a line behind [`FUNCTIONS`].
    pub(super) fn shell(&self, line: &str) -> Run {
        Run::new(self.image, &self.id)
            .flags(self.flags.iter().copied())
            .shell(&format!("{FUNCTIONS}{line}"))
    }

    pub(super) fn run(&self, run: &Run) -> Result<()> {
        self.world.containerd.run_ok(run).map(drop)
    }

    /// Runs the container, which goes on only when what it did `before` has been judged.
    pub(super) fn verified(&self, before: &str, after: &str) -> Result<()> {
        self.paused(before, after, |_| self.world.daemon.wait_all_judged())
    }

    /// Runs the container until it has done `before`, then `host`, then lets it do `after` and
    /// waits for its end.
    pub(super) fn paused(
        &self,
        before: &str,
        after: &str,
        host: impl FnOnce(&Paused) -> Result<()>,
    ) -> Result<()> {
        let ready = self.directory.join("ready");
        let go = self.directory.join("go");
        mkfifo(&go, Mode::S_IRWXU)?;
        // Open at both ends, so that neither side waits in vain for the other to open it.
        let mut go = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(go)?;
        let run = self
            .shell(&format!(
                "{before}\n: > {SHARED}/ready\nread go < {SHARED}/go\n{after}"
            ))
            .flags([
                "--mount".to_owned(),
                format!(
                    "type=bind,src={},dst={SHARED},options=rbind:rw",
                    self.directory.display()
                ),
            ]);
        thread::scope(|scope| {
            let container = scope.spawn(|| self.run(&run));
            let waits = until("the container to wait", PATIENCE, || {
                if container.is_finished() {
                    return Ok(false);
                }
                ready.try_exists()?.then_some(true).context("not yet")
            });
            let staged = waits.and_then(|waits| {
                if !waits {
                    return Ok(());
                }
                let pid = self.world.containerd.task_pid(&self.id)?;
                host(&Paused { pid })
            });
            go.write_all(b"\n")?;
            let Ok(ran) = container.join() else {
                bail!("the thread of the container panicked");
            };
            staged.and(ran)
        })
    }
}

/// A container that waits.
pub(super) struct Paused {
    /// Its first process.
    pub(super) pid: u32,
}

impl Paused {
    /// Moves its first process to another cgroup.
    pub(super) fn move_to(&self, cgroup: &Path) -> Result<()> {
        fs::write(cgroup.join("cgroup.procs"), self.pid.to_string())
            .with_context(|| format!("cannot move a process to {}", cgroup.display()))
    }

    /// Where its cgroup is.
    pub(super) fn cgroup(&self) -> Result<PathBuf> {
        let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", self.pid))?;
        let path = cgroups
            .lines()
            .find_map(|line| line.strip_prefix("0::/"))
            .context("the container has no cgroup of version 2")?;
        Ok(cgroup_root()?.join(path))
    }

    /// Where its changes lie.
    pub(super) fn upper(&self) -> Result<PathBuf> {
        self.root_option("upperdir=")
    }

    /// Where its uppermost layer lies.
    pub(super) fn lower(&self) -> Result<PathBuf> {
        self.root_option("lowerdir=")
    }

    fn root_option(&self, name: &str) -> Result<PathBuf> {
        let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", self.pid))?;
        mounts
            .lines()
            .filter(|line| line.split(' ').nth(4) == Some("/"))
            .flat_map(|line| line.split([' ', ',']))
            .find_map(|option| option.strip_prefix(name)?.split(':').next())
            .map(PathBuf::from)
            .with_context(|| format!("the container's root has no {name} in {mounts}"))
    }
}

/// Where the hierarchy of version 2 is mounted.
pub(super) fn cgroup_root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    mounts
        .lines()
        .find_map(|line| {
            let (place, kind) = line.split_once(" - ")?;
            kind.starts_with("cgroup2 ")
                .then(|| place.split(' ').nth(4).map(PathBuf::from))?
        })
        .context("no cgroup hierarchy of version 2 is mounted")
}

/// Unmounts when dropped.
pub(super) struct Mounted(pub(super) PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.0, MntFlags::MNT_DETACH) {
            eprintln!("cannot unmount {}: {error}", self.0.display());
        }
    }
}

/// The technique does not exist on this kernel, and what the kernel answered.
#[derive(Debug)]
pub(super) struct NotHere(pub(super) String);

impl fmt::Display for NotHere {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for NotHere {}
