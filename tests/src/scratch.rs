//! A temporary directory that takes everything with it when it goes: processes, mounts, cgroups,
//! the runtime's state. What a killed run left behind is found by its name, by the next run.

use std::{
    fs, io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    process,
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context as _, Result, bail};
use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::poll::{Deadline, TEARDOWN};

const PREFIX: &str = "monitor-test-";
/// Where runc and containerd's shims keep state outside containerd's own directories.
const RUNTIME_STATE: &str = "/run/containerd";

/// A directory below the system's temporary one, and a prefix of containerd namespaces that
/// belongs to it.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    /// `PREFIX`, the owner's pid, its start time, a serial number. The name of the directory and
    /// of the containerd namespace, so that each is found from the other.
    name: String,
}

impl Scratch {
    /// Makes the directory. The first call in a process removes what dead processes left behind.
    pub fn new() -> Result<Self> {
        static SWEEP: Once = Once::new();
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        SWEEP.call_once(sweep);
        let pid = process::id();
        let start = start_time(pid).context("cannot read this process's own start time")?;
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{pid}-{start}-{serial}");
        let path = std::env::temp_dir().join(&name);
        fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { path, name })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A containerd namespace, and thereby a cgroup, that no other test uses. More can be had by
    /// appending `-` and a word.
    pub fn namespace(&self) -> &str {
        &self.name
    }

    /// What is left of this directory outside itself: one line each.
    pub fn leftovers(&self) -> Vec<String> {
        leftovers(&self.path, &self.name)
    }

    /// Removes everything, or says what remains.
    pub fn remove(&self) -> Result<()> {
        remove(&self.path, &self.name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("cannot clean up {}: {error:#}", self.path.display());
        }
    }
}

/// Removes what earlier runs left behind, if the process that made it is gone.
pub fn sweep() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if owner(name).is_some_and(|(pid, start)| start_time(pid) != Some(start))
            && let Err(error) = remove(&entry.path(), name)
        {
            eprintln!("cannot clean up {}: {error:#}", entry.path().display());
        }
    }
}

fn owner(name: &str) -> Option<(u32, u64)> {
    let mut parts = name.strip_prefix(PREFIX)?.split('-');
    let pid = parts.next()?.parse().ok()?;
    let start = parts.next()?.parse().ok()?;
    parts.next()?.parse::<u32>().ok()?;
    parts.next().is_none().then_some((pid, start))
}

fn remove(path: &Path, name: &str) -> Result<()> {
    // Killing a process can start another (a shim's init), so look again until none is left.
    let deadline = Deadline::after(TEARDOWN);
    loop {
        let processes = processes(path, name);
        if processes.is_empty() {
            break;
        }
        for pid in &processes {
            // It may be gone by now, which is what is wanted.
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        if deadline.passed() {
            bail!("processes {processes:?} do not die");
        }
        deadline.pause();
    }
    for mount in mounts_below(path).iter().rev() {
        umount2(mount, MntFlags::MNT_DETACH)
            .with_context(|| format!("cannot unmount {}", mount.display()))?;
    }
    for socket in shim_sockets(path) {
        let _ = fs::remove_file(socket);
    }
    loop {
        let cgroups = cgroups(name);
        for cgroup in &cgroups {
            remove_cgroup(cgroup);
        }
        if cgroups.is_empty() {
            break;
        }
        if deadline.passed() {
            bail!("cgroups {cgroups:?} cannot be removed");
        }
        deadline.pause();
    }
    for state in runtime_states(name) {
        fs::remove_dir_all(&state).with_context(|| format!("cannot remove {}", state.display()))?;
    }
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn leftovers(path: &Path, name: &str) -> Vec<String> {
    let processes = processes(path, name);
    let processes = processes.iter().map(|pid| format!("process {pid}"));
    let paths = [mounts_below(path), cgroups(name), runtime_states(name)].concat();
    processes
        .chain(paths.iter().map(|path| path.display().to_string()))
        .collect()
}

/// Live processes that were started with the directory's path, or that are in one of its cgroups.
fn processes(path: &Path, name: &str) -> Vec<i32> {
    let own = process::id();
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != own && start_time(*pid).is_some())
        .filter(|pid| {
            let started_with = fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|cmdline| {
                let path = path.as_os_str().as_bytes();
                cmdline.windows(path.len() + 1).any(|window| {
                    window
                        .strip_prefix(path)
                        .is_some_and(|next| matches!(next, b"/" | b"\0"))
                })
            });
            started_with
                || fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|cgroups| {
                    cgroups.lines().any(|line| {
                        line.splitn(3, ':')
                            .nth(2)
                            .and_then(|cgroup| cgroup.split('/').nth(1))
                            .is_some_and(|first| belongs(first, name))
                    })
                })
        })
        .filter_map(|pid| i32::try_from(pid).ok())
        .collect()
}

/// Whether a containerd namespace is `name` or one of its additional ones.
fn belongs(namespace: &str, name: &str) -> bool {
    namespace
        .strip_prefix(name)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// Field 22 of `/proc/PID/stat`, in clock ticks since boot; `None` if the process is gone or only
/// waits to be reaped.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, also parentheses and spaces.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    (state != "Z" && state != "X").then_some(())?;
    fields.nth(18)?.parse().ok()
}

/// Mount points below `path`, parents first.
fn mounts_below(path: &Path) -> Vec<PathBuf> {
    mount_points(|_, mount| mount.starts_with(path) && mount != path)
}

fn mount_points(wanted: impl Fn(&str, &Path) -> bool) -> Vec<PathBuf> {
    let Ok(mountinfo) = fs::read_to_string("/proc/self/mountinfo") else {
        return Vec::new();
    };
    mountinfo
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            // Our own mount points hold no character that the kernel escapes.
            let mount = PathBuf::from(left.split(' ').nth(4)?);
            wanted(right.split(' ').next()?, &mount).then_some(mount)
        })
        .collect()
}

/// The top cgroup of each namespace, in every hierarchy.
fn cgroups(name: &str) -> Vec<PathBuf> {
    mount_points(|kind, _| kind == "cgroup" || kind == "cgroup2")
        .iter()
        .flat_map(|root| children_of(root, name))
        .collect()
}

fn runtime_states(name: &str) -> Vec<PathBuf> {
    children_of(&Path::new(RUNTIME_STATE).join("runc"), name)
}

fn children_of(directory: &Path, name: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| {
            entry
                .file_name()
                .to_str()
                .is_some_and(|child| belongs(child, name))
        })
        .map(|entry| entry.path())
        .collect()
}

/// A cgroup is removed when it is empty, children first. What is still busy is tried again.
fn remove_cgroup(path: &Path) {
    if let Ok(entries) = fs::read_dir(path) {
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove_cgroup(&entry.path());
            }
        }
    }
    let _ = fs::remove_dir(path);
}

/// The sockets of containerd's shims, whose names are hashes; the bundles know them.
fn shim_sockets(path: &Path) -> Vec<PathBuf> {
    let mut sockets = Vec::new();
    let bundles = path.join("state/io.containerd.runtime.v2.task");
    let below = |directory: &Path| -> Vec<PathBuf> {
        fs::read_dir(directory)
            .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_default()
    };
    for bundle in below(&bundles)
        .iter()
        .flat_map(|namespace| below(namespace))
    {
        let Ok(address) = fs::read_to_string(bundle.join("address")) else {
            continue;
        };
        if let Some(socket) = address.trim().strip_prefix("unix://")
            && Path::new(socket).starts_with(RUNTIME_STATE)
        {
            sockets.push(PathBuf::from(socket));
        }
    }
    sockets
}
