//! PID 1 of a guest: makes of an initramfs what the tests need, runs them and turns the machine off.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs::{self, File},
    os::unix::fs as unix_fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    kmod::{ModuleInitFlags, finit_module},
    mount::{MsFlags, mount},
    sys::reboot::{RebootMode, reboot},
    unistd::{chdir, chroot},
};

use crate::{container::mount_filesystem, report};

/// The word on the command line by which PID 1 starts the test process.
pub const TESTS: &str = "tests";

/// Where the kernel modules lie, in the order in which they are to be loaded by name.
const MODULES: &str = "/modules";

const MOUNTS: [(&str, &str); 7] = [
    ("devtmpfs", "/dev"),
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("bpf", "/sys/fs/bpf"),
    ("tracefs", "/sys/kernel/tracing"),
    ("tmpfs", "/tmp"),
];

/// A second program of tests, if the initramfs has it: real containers at a real daemon.
const EVASIONS: &str = "/bin/evasions";

/// What it is told: where programs are.
const ENVIRONMENT: [(&str, &str); 3] = [
    ("PATH", "/bin:/usr/bin:/sbin:/usr/sbin"),
    ("MONITORD", "/bin/monitord"),
    ("MONITORCTL", "/bin/monitorctl"),
];

/// Never returns: what it has to tell is on the console.
pub fn run() -> ! {
    match prepare() {
        Err(error) => report::note(&format!("PID 1: {error:#}")),
        Ok(()) => {
            tell("the tests", tests());
            if Path::new(EVASIONS).exists() {
                tell("the evasions", evasions());
            }
        }
    }
    // Returns only if the kernel refuses; the end of PID 1 is then a panic, which is told as well.
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    report::note(&format!("powering off: {error}"));
    std::process::exit(1)
}

fn prepare() -> Result<()> {
    leave_initramfs()?;
    for (kind, at) in MOUNTS {
        fs::create_dir_all(at).with_context(|| format!("making {at}"))?;
        mount_filesystem(kind, Path::new(at), "")?;
    }
    let mut modules = fs::read_dir(MODULES)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<PathBuf>, _>>()?;
    modules.sort();
    for path in modules {
        let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        finit_module(&file, c"", ModuleInitFlags::empty())
            .with_context(|| format!("loading {}", path.display()))?;
    }
    Ok(())
}

/// Moves to a tmpfs: the kernel refuses pivot_root where the root is the initramfs.
fn leave_initramfs() -> Result<()> {
    let root = Path::new("/root");
    fs::create_dir_all(root)?;
    mount_filesystem("tmpfs", root, "mode=0755")?;
    let skipped = [OsStr::new("root"), OsStr::new("dev")];
    for entry in fs::read_dir("/")? {
        let entry = entry?;
        if !skipped.contains(&entry.file_name().as_os_str()) {
            copy(&entry.path(), &root.join(entry.file_name()))?;
        }
    }
    chdir(root).context("changing to the new root")?;
    let none: Option<&str> = None;
    mount(Some("."), "/", none, MsFlags::MS_MOVE, none).context("moving the new root")?;
    chroot(".").context("entering the new root")?;
    chdir("/").context("changing to /")
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let kind = fs::symlink_metadata(from)?.file_type();
    if kind.is_dir() {
        fs::create_dir(to)?;
        for entry in fs::read_dir(from)? {
            let name: OsString = entry?.file_name();
            copy(&from.join(&name), &to.join(&name))?;
        }
    } else if kind.is_symlink() {
        unix_fs::symlink(fs::read_link(from)?, to)?;
    } else {
        fs::copy(from, to).with_context(|| format!("copying {}", from.display()))?;
    }
    Ok(())
}

fn tell(what: &str, outcome: Result<ExitStatus>) {
    match outcome {
        Ok(status) if status.success() => {}
        Ok(status) => report::note(&format!("{what}: {status}")),
        Err(error) => report::note(&format!("PID 1: {error:#}")),
    }
}

/// The techniques are carried out on this kernel as on one whose security module for eBPF is not
/// active, so that the functions of the framework are entered instead.
const WITHOUT_MODULE: &str = "6.1.";

fn hide_module() -> Result<()> {
    let at = Path::new("/sys/kernel/security");
    mount_filesystem("tmpfs", at, "")?;
    fs::write(at.join("lsm"), "lockdown,capability").context("writing the list of modules")
}

fn evasions() -> Result<ExitStatus> {
    let kernel = nix::sys::utsname::uname().context("asking for the kernel's release")?;
    if kernel
        .release()
        .to_string_lossy()
        .starts_with(WITHOUT_MODULE)
    {
        hide_module()?;
    }
    Command::new(EVASIONS)
        .arg("run")
        .envs(ENVIRONMENT)
        .status()
        .context("starting the evasions")
}

fn tests() -> Result<ExitStatus> {
    let own = env::current_exe().context("finding this program")?;
    ensure!(own.exists(), "{} is not in the new root", own.display());
    Command::new(own)
        .arg(TESTS)
        .status()
        .context("starting the tests")
}
