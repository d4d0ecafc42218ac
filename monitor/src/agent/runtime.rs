//! Finds the container runtime's own programs on the host, so that its steps inside a container's
//! cgroup can be told from an escape.

use std::{fs::File, io, os::unix::fs::MetadataExt, path::Path};

use sha2::Digest as _;

use crate::{detect::file::RuntimeFiles, digest::Sha256};

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

/// Looks below `/proc/1/root`, which is the host's root also for a daemon in a container, and below
/// `/` where init's root may not be entered.
pub(super) fn find() -> RuntimeFiles {
    let host = Path::new("/proc/1/root");
    let root = if host.join("usr").exists() {
        host
    } else {
        Path::new("/")
    };
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
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    let mut hasher = sha2::Sha256::new();
    io::copy(&mut file, &mut HashWriter(&mut hasher))?;
    let (major, minor) = (
        nix::sys::stat::major(metadata.dev()),
        nix::sys::stat::minor(metadata.dev()),
    );
    if let (Ok(major), Ok(minor)) = (u32::try_from(major), u32::try_from(minor)) {
        found.versions.insert((
            major << 20 | minor,
            metadata.ino(),
            metadata.size(),
            metadata.ctime(),
            u32::try_from(metadata.ctime_nsec()).unwrap_or(0),
        ));
    }
    found.hashes.insert(Sha256(hasher.finalize().into()));
    Ok(())
}

struct HashWriter<'a>(&'a mut sha2::Sha256);

impl io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
