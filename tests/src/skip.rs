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

use crate::{
    evasions::PYTHON,
    image::{BUSYBOX, debian_layers},
};

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
    /// Debian's interpreter for Python, to put into images.
    Python,
    /// The kernel's type information.
    Btf,
    /// Mount namespaces of one's own.
    Unshare,
    /// User namespaces, for remapped containers.
    UserNamespaces,
    /// Layers of Debian packages.
    DebianLayers,
    /// Debian's registry for images.
    DockerRegistry,
    /// Debian's NATS server.
    NatsServer,
    /// gRPC for Python, and what makes stubs for it.
    PythonGrpc,
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
            Self::Python => absent(PYTHON),
            Self::Btf => absent("/sys/kernel/btf/vmlinux"),
            Self::Unshare => {
                let works = Command::new("unshare").args(["--mount", "true"]).output();
                let works = works.is_ok_and(|output| output.status.success());
                (!works).then(|| "unshare --mount does not work".to_owned())
            }
            Self::UserNamespaces => absent("/proc/self/uid_map"),
            Self::DebianLayers => absent(&debian_layers().to_string_lossy()),
            Self::DockerRegistry => no_server("docker-registry"),
            Self::NatsServer => no_server("nats-server"),
            Self::PythonGrpc => [
                "/usr/lib/python3/dist-packages/grpc",
                "/usr/lib/python3/dist-packages/google/protobuf",
                "/usr/bin/grpc_python_plugin",
                "/usr/include/google/protobuf/struct.proto",
            ]
            .into_iter()
            .find_map(absent),
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

/// A server that `cargo xtask setup` unpacked, or that is on the path.
pub fn server(program: &str) -> Option<PathBuf> {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/servers/usr");
    let mut files = ["bin", "sbin"]
        .map(|folder| unpacked.join(folder).join(program))
        .into_iter();
    files
        .find(|file| file.is_file())
        .or_else(|| on_path(program))
}

fn no_server(program: &str) -> Option<String> {
    let is_absent = server(program).is_none();
    is_absent.then(|| format!("{program} is neither in target/servers nor on the path"))
}

/// Whether the calling test must be skipped; says why and records it.
pub fn skipped(module: &str, needs: &[Need]) -> bool {
    let reason = needs.iter().find_map(|need| need.missing());
    if let Some(reason) = &reason {
        record(module, reason);
    }
    reason.is_some()
}

/// Says and records that the calling test is skipped, and why.
pub fn record(module: &str, reason: &str) {
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
