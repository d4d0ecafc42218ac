//! A container made by hand: an overlay of one lower and one upper directory, and a cgroup.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::unix::{fs::MetadataExt as _, fs::symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result, ensure};
use monitor::sensor::event::Event;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::{major, minor},
    unistd::mkdtemp,
};

use crate::{
    inside::{Entry, INSIDE},
    observer::Observer,
};

/// What the lower directory holds as a program, natively and in the guests. Copies of it must have
/// names that begin like it: by another name it is another program.
const BUSYBOX: &str = "/bin/busybox";

/// Directories of the lower directory.
const DIRECTORIES: [&str; 6] = ["bin", "proc", "tmp", "volume", "mount", "jail"];

/// Goes with everything in it when dropped.
pub struct Container<'a> {
    observer: &'a Observer,
    /// A tmpfs of its own, so that all layers lie on one filesystem and `stat` tells true numbers.
    directory: PathBuf,
    cgroup: PathBuf,
    cgroup_id: u64,
}

impl<'a> Container<'a> {
    /// Mounts the overlay, has the sensor hold what is executed from it, and makes the cgroup.
    ///
    /// # Errors
    ///
    /// The machine refuses one of these.
    pub fn new(observer: &'a Observer) -> Result<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "{}{}",
            Observer::cgroup_prefix(),
            MADE.fetch_add(1, Ordering::Relaxed)
        );
        let directory = mkdtemp("/tmp/monitord-test-XXXXXX").context("making a directory")?;
        let cgroup = cgroup_root()?.join(&name);
        let mut made = Self {
            observer,
            directory,
            cgroup,
            cgroup_id: 0,
        };
        made.fill().context("making a container")?;
        Ok(made)
    }

    fn fill(&mut self) -> Result<()> {
        mount_filesystem("tmpfs", &self.directory, "mode=0755")?;
        for directory in ["lower", "upper", "work", "merged"] {
            fs::create_dir(self.directory.join(directory))?;
        }
        let lower = self.directory.join("lower");
        for directory in DIRECTORIES {
            fs::create_dir(lower.join(directory))?;
        }
        fs::copy(busybox()?, lower.join("bin/busybox"))?;
        symlink("busybox", lower.join("bin/sh"))?;
        let options = format!(
            "lowerdir={0}/lower,upperdir={0}/upper,workdir={0}/work",
            self.directory.display()
        );
        mount_filesystem("overlay", &self.root(), &options)?;
        let device = fs::metadata(self.root())?.dev();
        let device = u32::try_from(major(device) << 20 | minor(device))?;
        self.observer.sensor().hold(&self.root(), device)?;
        fs::create_dir(&self.cgroup)
            .with_context(|| format!("making the cgroup {}", self.cgroup.display()))?;
        self.cgroup_id = fs::metadata(&self.cgroup)?.ino();
        Ok(())
    }

    /// Its root directory on the host.
    pub fn root(&self) -> PathBuf {
        self.directory.join("merged")
    }

    /// Where the files of its image lie.
    pub fn lower(&self) -> PathBuf {
        self.directory.join("lower")
    }

    /// Where its changed files lie.
    pub fn upper(&self) -> PathBuf {
        self.directory.join("upper")
    }

    /// The id of its cgroup.
    pub fn cgroup_id(&self) -> u64 {
        self.cgroup_id
    }

    /// The path of its cgroup in the hierarchy.
    pub fn cgroup_path(&self) -> Vec<u8> {
        let name = self.cgroup.file_name().unwrap_or_default();
        format!("/{}", name.display()).into_bytes()
    }

    /// Runs a step (see [`crate::inside`]) in it, waits for its end and gives all events in it.
    ///
    /// # Errors
    ///
    /// The step cannot be run, or events are missing.
    pub fn run(&self, entry: Entry, step: &[&OsStr]) -> Result<Vec<Event>> {
        static RUNS: AtomicU32 = AtomicU32::new(0);
        self.enter(entry, step)?;
        // The ring keeps the order of what happened one after the other: once this exec is there,
        // every earlier one is.
        let mark = format!("end-{}", RUNS.fetch_add(1, Ordering::Relaxed));
        let last = ["run", BUSYBOX, "true", &mark].map(OsStr::new);
        self.enter(Entry::Direct, &last)?;
        self.observer.take_until(self.cgroup_id, |exec| {
            exec.arguments
                .last()
                .is_some_and(|last| last == mark.as_bytes())
        })
    }

    /// [`Self::run`] of a line for the shell, in namespaces of its own.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn shell(&self, line: &str) -> Result<Vec<Event>> {
        let step = ["run", BUSYBOX, "sh", "-e", "-c", line].map(OsStr::new);
        self.run(Entry::Isolated, &step)
    }

    fn enter(&self, entry: Entry, step: &[&OsStr]) -> Result<()> {
        let output = Command::new(self.observer.helper())
            .arg(INSIDE)
            .arg(self.root())
            .arg(self.cgroup.join("cgroup.procs"))
            .arg(entry.word())
            .args(step)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("starting {}", self.observer.helper().display()))?;
        ensure!(
            output.status.success(),
            "{:?}: {}: {}",
            step.iter().take(6).collect::<Vec<_>>(),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
        Ok(())
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        let say = |what: &str, error: &dyn std::fmt::Display| eprintln!("removing {what}: {error}");
        for mounted in [self.root(), self.directory.clone()] {
            if let Err(error) = umount2(&mounted, MntFlags::MNT_DETACH) {
                say(&mounted.display().to_string(), &error);
            }
        }
        for directory in [&self.directory, &self.cgroup] {
            if let Err(error) = fs::remove_dir(directory)
                && error.kind() != io::ErrorKind::NotFound
            {
                say(&directory.display().to_string(), &error);
            }
        }
    }
}

/// Mounts a filesystem that needs no device.
///
/// # Errors
///
/// The kernel refuses; the error names the filesystem and the place.
pub fn mount_filesystem(kind: &str, at: &Path, options: &str) -> Result<()> {
    mount(Some(kind), at, Some(kind), MsFlags::empty(), Some(options))
        .with_context(|| format!("mounting {kind} at {} with {options:?}", at.display()))
}

/// The program that containers hold: static, so that it needs no libraries.
fn busybox() -> Result<PathBuf> {
    let file = fs::canonicalize(BUSYBOX).with_context(|| format!("finding {BUSYBOX}"))?;
    File::open(&file).with_context(|| format!("opening {}", file.display()))?;
    Ok(file)
}

/// Where the v2 hierarchy is mounted.
fn cgroup_root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("reading the mounts")?;
    mounts
        .lines()
        .find_map(|line| {
            let (place, kind) = line.split_once(" - ")?;
            kind.starts_with("cgroup2 ")
                .then(|| place.split(' ').nth(4).map(PathBuf::from))?
        })
        .context("no cgroup v2 hierarchy is mounted")
}
