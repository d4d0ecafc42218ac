//! The processes that ran before the hooks were attached, told as if they had just executed their
//! program. Only those outside the host's mount namespace: the others are no container's.
//!
//! `/proc` does not say in which layer of an overlay a file lies, so it is told as one of the upper
//! layer, whose bytes are always compared.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::Read as _,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, OpenOptionsExt},
    },
    path::Path,
};

use monitor_common::exec::{ARGUMENTS_BYTES_MAX, FILE_OVERLAY, FILE_UPPER, OVERLAYFS_MAGIC};
use nix::sys::stat::{major, minor};

use super::{
    decode::split_arguments,
    event::{Cgroup, Exec, File as ExecutedFile, FileFacts, Process},
    link,
};
use crate::clock;

/// Bytes read of one file of `/proc`.
const FILE_BYTES_MAX: u64 = 8 << 20;
/// What the kernel calls a file of memfd_create, which lies on a mount of its own.
const MEMORY: &[u8] = b"/memfd:";
/// The root of the cgroup hierarchy, of which no process of a container is a member: these execs
/// are placed by their mount namespace.
const ROOT_CGROUP: u64 = 1;

/// Tells of each process that runs now. One that ends meanwhile is left out.
pub(super) fn scan(host_mount_namespace: u32, mut tell: impl FnMut(Exec)) {
    let Ok(entries) = fs::read_dir("/proc") else {
        return;
    };
    for entry in entries.flatten() {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        if let Some(exec) = pid.and_then(|pid| read(pid, host_mount_namespace)) {
            tell(exec);
        }
    }
}

fn read(pid: u32, host_mount_namespace: u32) -> Option<Exec> {
    let proc = Path::new("/proc").join(pid.to_string());
    let mount_namespace = namespace(&proc, "mnt")?;
    if mount_namespace == host_mount_namespace {
        return None;
    }
    let (path, unlinked) = link::read(&proc.join("exe")).ok()?;
    let stat = Stat::read(&proc)?;
    let filesystem = filesystem_of(&text(&proc.join("mountinfo"))?, &path);
    // Looking at a file of a remote filesystem may never return.
    let is_local = filesystem
        .as_ref()
        .is_none_or(|filesystem| filesystem.is_local());
    let program = if is_local {
        open_path(&proc.join("exe"))
    } else {
        None
    };
    let (facts, uid) = facts(
        program.as_ref(),
        filesystem.as_ref(),
        mount_namespace,
        &proc,
        path.starts_with(MEMORY),
    )?;
    Some(Exec {
        time_boot_ns: clock::boot_ns(),
        cgroup: Cgroup {
            id: ROOT_CGROUP,
            path: b"/".to_vec(),
        },
        process: Process {
            pid,
            start_boot_ns: stat.start_boot_ns,
            parent_pid: stat.parent_pid,
            parent_mount_namespace: namespace(
                &Path::new("/proc").join(stat.parent_pid.to_string()),
                "mnt",
            )
            .unwrap_or(0),
            uid,
            mount_namespace,
            pid_namespace: namespace(&proc, "pid").unwrap_or(0),
            root_device: facts.device,
        },
        file: ExecutedFile {
            facts,
            path_in_filesystem: path.clone(),
            path,
            path_truncated: false,
            unlinked,
        },
        script: None,
        arguments: split_arguments(&bytes(
            &proc.join("cmdline"),
            u64::from(ARGUMENTS_BYTES_MAX),
        )?),
        arguments_truncated: false,
        already_running: true,
        held: Vec::new(),
        program: program.map(Into::into),
    })
}

fn facts(
    program: Option<&File>,
    filesystem: Option<&Filesystem>,
    mount_namespace: u32,
    proc: &Path,
    is_memory: bool,
) -> Option<(FileFacts, u32)> {
    let uid = fs::metadata(proc).ok()?.uid();
    let mut facts = FileFacts {
        mount_namespace,
        link_count: 1,
        ..FileFacts::default()
    };
    if let Some(filesystem) = filesystem {
        facts.device = filesystem.device;
        facts.real_device = filesystem.device;
        if filesystem.is_overlay {
            facts.filesystem_magic = OVERLAYFS_MAGIC;
            facts.flags = FILE_OVERLAY | FILE_UPPER;
        }
    } else if is_memory {
        facts.mount_namespace = 0;
    }
    if let Some(metadata) = program.and_then(|program| program.metadata().ok()) {
        facts.inode = metadata.ino();
        facts.real_inode = metadata.ino();
        facts.size = metadata.size();
        facts.modified_s = metadata.mtime();
        facts.modified_ns = u32::try_from(metadata.mtime_nsec()).unwrap_or(0);
        facts.changed_s = metadata.ctime();
        facts.changed_ns = u32::try_from(metadata.ctime_nsec()).unwrap_or(0);
        facts.link_count = u32::try_from(metadata.nlink()).unwrap_or(u32::MAX);
        facts.mode = metadata.mode();
        if filesystem.is_none() {
            facts.device = device(major(metadata.dev()), minor(metadata.dev()))?;
        }
    }
    Some((facts, uid))
}

fn device(major: u64, minor: u64) -> Option<u32> {
    Some(u32::try_from(major).ok()? << 20 | u32::try_from(minor).ok()?)
}

/// The filesystem that a path lies on.
#[derive(Debug, PartialEq, Eq)]
struct Filesystem {
    device: u32,
    is_overlay: bool,
    kind: String,
}

impl Filesystem {
    fn is_local(&self) -> bool {
        const REMOTE: [&str; 7] = ["fuse", "nfs", "9p", "cifs", "smb", "ceph", "virtiofs"];
        !REMOTE.iter().any(|name| self.kind.starts_with(name))
    }
}

/// Of the mounts of a process, the newest one with the longest mount point above `path`;
/// `Documentation/filesystems/proc.rst`, section 3.5.
fn filesystem_of(mounts: &str, path: &[u8]) -> Option<Filesystem> {
    let mut found: Option<(usize, Filesystem)> = None;
    for line in mounts.lines() {
        let Some((fields, rest)) = line.split_once(" - ") else {
            continue;
        };
        let mut fields = fields.split(' ').skip(2);
        let (Some(numbers), Some(_root), Some(point)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let kind = rest.split(' ').next().unwrap_or_default();
        let Some((major, minor)) = numbers.split_once(':') else {
            continue;
        };
        let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else {
            continue;
        };
        let Some(device) = device(major, minor) else {
            continue;
        };
        let point = point.trim_end_matches('/');
        let below = path
            .strip_prefix(point.as_bytes())
            .is_some_and(|rest| rest.first() == Some(&b'/'));
        if below
            && found
                .as_ref()
                .is_none_or(|(length, _)| *length <= point.len())
        {
            let is_overlay = kind == "overlay";
            found = Some((
                point.len(),
                Filesystem {
                    device,
                    is_overlay,
                    kind: kind.to_owned(),
                },
            ));
        }
    }
    found
        .map(|(_, filesystem)| filesystem)
        .filter(|_| !path.starts_with(MEMORY))
}

/// Of `/proc/PID/stat`.
struct Stat {
    parent_pid: u32,
    start_boot_ns: u64,
}

impl Stat {
    fn read(proc: &Path) -> Option<Self> {
        let text = text(&proc.join("stat"))?;
        // The name in parentheses may hold anything, also parentheses.
        let mut fields = text.rsplit_once(')')?.1.split_whitespace();
        let parent_pid = fields.nth(1)?.parse().ok()?;
        let ticks: u64 = fields.nth(17)?.parse().ok()?;
        // The kernel tells these times in hundredths of a second whatever its own tick is.
        Some(Self {
            parent_pid,
            start_boot_ns: ticks.checked_mul(10_000_000)?,
        })
    }
}

fn namespace(proc: &Path, kind: &str) -> Option<u32> {
    let inode = fs::metadata(proc.join("ns").join(kind)).ok()?.ino();
    u32::try_from(inode).ok()
}

fn open_path(path: &Path) -> Option<File> {
    fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(path)
        .ok()
}

fn bytes(path: &Path, bytes_max: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)
        .ok()?
        .take(bytes_max)
        .read_to_end(&mut bytes)
        .ok()?;
    Some(bytes)
}

fn text(path: &Path) -> Option<String> {
    let bytes = bytes(path, FILE_BYTES_MAX)?;
    Some(OsStr::from_bytes(&bytes).to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_lies_on_the_nearest_and_newest_mount() {
        let mounts = "1 0 0:30 / / rw - overlay overlay rw\n\
                      2 1 0:31 / /dev/shm rw,x - tmpfs shm rw\n\
                      3 1 8:1 /data /srv rw - ext4 /dev/sda1 rw\n\
                      4 1 0:40 / /srv rw master:1 - fuse.sshfs x rw\n\
                      broken line\n";
        let check = |path: &str, expect: Option<(u32, &str)>| {
            let found = filesystem_of(mounts, path.as_bytes());
            let found = found.map(|filesystem| (filesystem.device, filesystem.kind));
            assert_eq!(
                found,
                expect.map(|(device, kind)| (device, kind.to_owned())),
                "{path}"
            );
        };
        check("/bin/sh", Some((30, "overlay")));
        check("/dev/shm/x", Some((31, "tmpfs")));
        check("/dev/shmx", Some((30, "overlay")));
        check("/srv/x", Some((40, "fuse.sshfs")));
        check("/memfd:x", None);
    }
}
