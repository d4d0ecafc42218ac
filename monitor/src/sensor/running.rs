//! The processes that ran before the hooks were attached, told as if they had just executed their
//! program and mapped their libraries. Only those outside the host's mount namespace: the others are
//! no container's.
//!
//! `/proc` does not say in which layer of an overlay a file lies, so it is told as one of the upper
//! layer, whose bytes are always compared.

use std::{
    collections::HashSet,
    ffi::OsStr,
    fs::{self, File},
    io::Read as _,
    os::{
        fd::OwnedFd,
        unix::{
            ffi::OsStrExt,
            fs::{MetadataExt, OpenOptionsExt},
        },
    },
    path::{Path, PathBuf},
};

use monitor_common::{
    exec::ARGUMENTS_BYTES_MAX,
    file::{FILE_OVERLAY, FILE_UPPER, OVERLAYFS_MAGIC},
};
use nix::sys::stat::{major, minor};

use super::{
    decode::split_arguments,
    event::{Cgroup, Code, Event, Exec, File as UsedFile, FileFacts, FileUse, Process, Receipt},
    hooks::HookSet,
    link, root,
};
use crate::clock;

/// Bytes read of one file of `/proc`.
const FILE_BYTES_MAX: u64 = 8 << 20;
/// What the kernel calls a file of memfd_create, which lies on a mount of its own.
const MEMORY: &[u8] = b"/memfd:";
/// The root of the cgroup hierarchy, of which no process of a container is a member: these execs
/// are placed by their mount namespace.
const ROOT_CGROUP: u64 = 1;

/// Files told of the mappings of one process; the rest is left out, aloud.
const MAPPED_MAX: usize = 4096;

/// Tells of each process that runs now. One that ends meanwhile is left out.
pub(super) fn scan(host_mount_namespace: u32, mut tell: impl FnMut(Event)) {
    let Ok(entries) = fs::read_dir("/proc") else {
        return;
    };
    for entry in entries.flatten() {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let process = pid.and_then(|pid| Running::read(pid, host_mount_namespace));
        if let Some(process) = process {
            let exec = process.exec();
            let program = exec.as_ref().map(|exec| exec.used.file.facts.inode);
            if let Some(exec) = exec {
                tell(Event::Exec(Box::new(exec)));
            }
            process.mapped(program, |code| tell(Event::Code(Box::new(code))));
        }
    }
}

/// A process that runs now.
struct Running {
    proc: PathBuf,
    mounts: String,
    process: Process,
}

impl Running {
    fn read(pid: u32, host_mount_namespace: u32) -> Option<Self> {
        let proc = Path::new("/proc").join(pid.to_string());
        let mount_namespace = namespace(&proc, "mnt")?;
        if mount_namespace == host_mount_namespace {
            return None;
        }
        let stat = Stat::read(&proc)?;
        let parent = Path::new("/proc").join(stat.parent_pid.to_string());
        Some(Self {
            mounts: text(&proc.join("mountinfo"))?,
            process: Process {
                pid,
                start_boot_ns: stat.start_boot_ns,
                parent_pid: stat.parent_pid,
                parent_mount_namespace: namespace(&parent, "mnt").unwrap_or(0),
                uid: fs::metadata(&proc).ok()?.uid(),
                mount_namespace,
                pid_namespace: namespace(&proc, "pid").unwrap_or(0),
                root_device: 0,
            },
            proc,
        })
    }

    fn exec(&self) -> Option<Exec> {
        let (mut used, program) = self.used(&self.proc.join("exe"))?;
        used.process.root_device = used.file.facts.device;
        let arguments = bytes(&self.proc.join("cmdline"), u64::from(ARGUMENTS_BYTES_MAX))?;
        Some(Exec {
            used,
            script: None,
            arguments: split_arguments(&arguments),
            arguments_truncated: false,
            held: Vec::new(),
            program,
        })
    }

    /// Tells each file that is mapped executable, once, but for the program.
    fn mapped(&self, program: Option<u64>, mut tell: impl FnMut(Code)) {
        let Some(maps) = text(&self.proc.join("maps")) else {
            return;
        };
        // What has executed another program meanwhile was seen by the hooks.
        let exe = self.used(&self.proc.join("exe"));
        if exe.map(|(used, _)| used.file.facts.inode) != program {
            return;
        }
        let mut told = HashSet::new();
        for mapping in maps.lines().filter_map(Mapping::parse) {
            if told.len() >= MAPPED_MAX {
                tracing::warn!(
                    pid = self.process.pid,
                    "more than {MAPPED_MAX} files are mapped executable, the rest is not judged"
                );
                return;
            }
            if !told.insert((mapping.device, mapping.inode)) {
                continue;
            }
            let link = self.proc.join("map_files").join(mapping.range);
            let Some((used, held)) = self.used(&link) else {
                continue;
            };
            if program == Some(used.file.facts.inode) {
                continue;
            }
            tell(Code {
                used,
                written: false,
                is_anonymous: false,
                mapping: (0, 0),
                libraries: Vec::new(),
                held,
            });
        }
    }

    /// The use of the file that a link in `/proc` leads to, and its descriptor.
    fn used(&self, link: &Path) -> Option<(FileUse, Option<OwnedFd>)> {
        let (path, unlinked) = link::read(link).ok()?;
        let filesystem = filesystem_of(&self.mounts, &path);
        // Looking at a file of a remote filesystem may never return.
        let is_local = filesystem
            .as_ref()
            .is_none_or(|filesystem| filesystem.is_local());
        let held = if is_local { open_path(link) } else { None };
        let facts = facts(
            held.as_ref(),
            filesystem.as_ref(),
            self.process.mount_namespace,
            path.starts_with(MEMORY),
        )?;
        let used = FileUse {
            time_boot_ns: clock::boot_ns(),
            // What would have seen it.
            hook: HookSet::Tracepoint,
            cgroup: Cgroup {
                id: ROOT_CGROUP,
                path: b"/".to_vec(),
            },
            process: self.process.clone(),
            file: UsedFile {
                facts,
                path_in_filesystem: path.clone(),
                path,
                path_truncated: false,
                unlinked,
            },
            already_running: true,
            receipt: Receipt::default(),
        };
        Some((used, held.map(Into::into)))
    }
}

/// A line of `/proc/PID/maps` about a file that is mapped executable.
#[derive(Debug, PartialEq, Eq)]
struct Mapping<'a> {
    range: &'a str,
    device: &'a str,
    inode: &'a str,
}

impl<'a> Mapping<'a> {
    /// `7f0e1000-7f0e2000 r-xp 00001000 fe:00 1234    /lib/x.so`
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace();
        let (range, permissions) = (fields.next()?, fields.next()?);
        let (device, inode) = (fields.nth(1)?, fields.next()?);
        (permissions.contains('x') && inode != "0").then_some(Self {
            range,
            device,
            inode,
        })
    }
}

fn facts(
    program: Option<&File>,
    filesystem: Option<&Filesystem>,
    mount_namespace: u32,
    is_memory: bool,
) -> Option<FileFacts> {
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
            facts.device = root::kernel_device(major(metadata.dev()), minor(metadata.dev()))?;
        }
    }
    Some(facts)
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
        let Some(device) = root::kernel_device(major, minor) else {
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
    fn executable_mappings_of_files_are_read() {
        let check = |line: &str, expect: Option<(&str, &str, &str)>| {
            let expect = expect.map(|(range, device, inode)| Mapping {
                range,
                device,
                inode,
            });
            assert_eq!(Mapping::parse(line), expect, "{line}");
        };
        check(
            "7f01-7f02 r-xp 00001000 fe:00 1234    /lib/a b.so",
            Some(("7f01-7f02", "fe:00", "1234")),
        );
        check("7f01-7f02 r--p 00001000 fe:00 1234 /lib/a.so", None);
        check("7f01-7f02 rwxp 00000000 00:00 0 ", None);
        check("7ffc-7ffd r-xp 00000000 00:00 0 [vdso]", None);
        check("broken", None);
    }

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
