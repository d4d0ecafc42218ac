//! Finds the container runtime's own programs on the host, so that its steps inside a container's
//! cgroup can be told from an escape.

use std::{
    fs::{self, File, Metadata},
    io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

use nix::sys::stat::{major, minor};

use crate::{
    detect::{connect::RuntimeSockets, file::RuntimeFiles},
    digest::Sha256,
    sensor::root,
};

/// Where distributions and node images install programs, on the host.
const DIRECTORIES: [&str; 7] = [
    "usr/local/sbin",
    "usr/local/bin",
    "usr/sbin",
    "usr/bin",
    "opt/bin",
    "var/lib/rancher/k3s/data/current/bin",
    "var/lib/rancher/rke2/bin",
];
/// OCI runtimes that containerd drives, and the shim that executes them.
const PROGRAMS: [&str; 6] = [
    "runc",
    "crun",
    "youki",
    "containerd-shim-runc-v2",
    "nvidia-container-runtime",
    "nvidia-container-cli",
];

/// Where runtimes have the sockets by which they are told what to start, on the host.
const SOCKETS: [&str; 8] = [
    "run/containerd/containerd.sock",
    "run/containerd/containerd.sock.ttrpc",
    "run/k3s/containerd/containerd.sock",
    "run/docker.sock",
    "run/cri-dockerd.sock",
    "run/crio/crio.sock",
    "run/podman/podman.sock",
    "run/nri/nri.sock",
];

/// The sockets of the host's runtimes that there are, with those of the containerd at `containerd`.
pub(super) fn sockets(containerd: &Path) -> RuntimeSockets {
    let mut ttrpc = containerd.as_os_str().to_owned();
    ttrpc.push(".ttrpc");
    let paths = SOCKETS.iter().map(|path| host_root().join(path));
    let paths = paths.chain([containerd.to_owned(), ttrpc.into()]);
    let keys = paths.filter_map(|path| {
        let metadata = fs::metadata(path).ok()?;
        let is_socket = metadata.file_type().is_socket();
        Some((device(&metadata)?, metadata.ino())).filter(|_| is_socket)
    });
    RuntimeSockets(keys.collect())
}

/// As the kernel has it in a superblock.
fn device(metadata: &Metadata) -> Option<u32> {
    root::kernel_device(major(metadata.dev()), minor(metadata.dev()))
}

fn host_root() -> &'static Path {
    let host = Path::new("/proc/1/root");
    if host.join("usr").exists() {
        host
    } else {
        Path::new("/")
    }
}

/// Looks below `/proc/1/root`, which is the host's root also for a daemon in a container, and below
/// `/` where init's root may not be entered.
pub(super) fn find() -> RuntimeFiles {
    let root = host_root();
    let mut found = RuntimeFiles::default();
    let programs = DIRECTORIES
        .iter()
        .flat_map(|directory| PROGRAMS.iter().map(move |name| (directory, name)));
    for (directory, name) in programs {
        let path = root.join(directory).join(name);
        match add(&mut found, &path) {
            Ok(()) => tracing::debug!(path = %path.display(), "a container runtime's program"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot read a container runtime's program; its own steps in containers may raise alerts")
            }
        }
    }
    found
}

fn add(found: &mut RuntimeFiles, path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let sha256 = Sha256::of_file(&file, u64::MAX).map_err(io::Error::other)?;
    if let Some(device) = device(&metadata) {
        found.versions.insert((
            device,
            metadata.ino(),
            metadata.size(),
            metadata.ctime(),
            u32::try_from(metadata.ctime_nsec()).unwrap_or(0),
        ));
    }
    found.hashes.insert(sha256);
    Ok(())
}
