//! What a machine must have for a test. A test that lacks it says so and where
//! `MONITOR_SKIPS` names a file, writes it there, so that no skipped test passes for a run one.

use std::{
    env,
    fs::{self, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use crate::image::BUSYBOX;

/// The file that gets a line `TEST: REASON` for every skipped test.
pub const SKIPS: &str = "MONITOR_SKIPS";

/// Something a test needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Effective user 0.
    Root,
    /// containerd, ctr, its shim and runc on the path, and overlayfs.
    Containerd,
    /// A static busybox to put into images.
    Busybox,
    /// The kernel's type information.
    Btf,
    /// Mount namespaces of one's own.
    Unshare,
    /// User namespaces, for remapped containers.
    UserNamespaces,
}

impl Need {
    /// Why the machine has it not.
    fn missing(self) -> Option<String> {
        match self {
            Self::Root => (!nix::unistd::geteuid().is_root()).then(|| "not run as root".to_owned()),
            Self::Containerd => ["containerd", "ctr", "containerd-shim-runc-v2", "runc"]
                .into_iter()
                .find(|program| on_path(program).is_none())
                .map(|program| format!("{program} is not on the path"))
                .or_else(|| {
                    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
                    (!known.contains("overlay")).then(|| "the kernel has no overlayfs".to_owned())
                }),
            Self::Busybox => absent(BUSYBOX),
            Self::Btf => absent("/sys/kernel/btf/vmlinux"),
            Self::Unshare => {
                let works = Command::new("unshare").args(["--mount", "true"]).output();
                let works = works.is_ok_and(|output| output.status.success());
                (!works).then(|| "unshare --mount does not work".to_owned())
            }
            Self::UserNamespaces => absent("/proc/self/uid_map"),
        }
    }
}

fn absent(path: &str) -> Option<String> {
    (!Path::new(path).exists()).then(|| format!("{path} does not exist"))
}

/// The file that a program's name stands for.
pub fn on_path(program: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

/// Whether the calling test must be skipped; says why and records it.
pub fn skipped(module: &str, needs: &[Need]) -> bool {
    let Some(reason) = needs.iter().find_map(|need| need.missing()) else {
        return false;
    };
    let thread = thread::current();
    let line = format!("{module}::{}: {reason}", thread.name().unwrap_or("unnamed"));
    eprintln!("skipped {line}");
    if let Some(file) = env::var_os(SKIPS) {
        let written = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&file)
            .and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
        if let Err(error) = written {
            eprintln!("cannot record it in {}: {error}", file.display());
        }
    }
    true
}

/// Ends the test with `Ok(())` if the machine lacks something; see [`Need`].
#[macro_export]
macro_rules! require {
    ($($need:ident),+ $(,)?) => {
        if $crate::skip::skipped(module_path!(), &[$($crate::skip::Need::$need),+]) {
            return Ok(());
        }
    };
}
