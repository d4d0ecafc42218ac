//! What `/proc` says of a container's init process.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::File,
    io::{self, Read},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use super::{Task, inventory::TaskFacts};
use crate::{detect::open, sensor::root};

/// Bytes of one file of `/proc` that are read; a node with ten thousand mounts stays below.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// The mounts of a mount namespace.
#[derive(Debug, Default)]
pub(super) struct Mounts(Vec<u8>);

impl Mounts {
    /// Those that the process `pid` sees; none if it is gone.
    fn of(pid: u32) -> Self {
        Self(read(&format!("/proc/{pid}/mountinfo")).unwrap_or_default())
    }

    /// Those of the host, where the runtime mounts root filesystems: of process 1 if it may be
    /// read, else this program's own.
    pub(super) fn of_host() -> Self {
        read("/proc/1/mountinfo")
            .or_else(|_| read("/proc/self/mountinfo"))
            .map(Self)
            .unwrap_or_default()
    }

    /// The newest first, because a newer one covers an older one at the same place.
    fn newest_first(&self) -> impl Iterator<Item = Mount> {
        self.0.rsplit(|byte| *byte == b'\n').filter_map(|line| {
            // ID PARENT MAJOR:MINOR ROOT MOUNTPOINT …
            let mut fields = line.split(|byte| *byte == b' ').skip(2);
            Some(Mount {
                device: device(fields.next()?)?,
                root: unescaped(fields.next()?),
                point: unescaped(fields.next()?),
            })
        })
    }

    fn at(&self, point: &[u8]) -> Option<Mount> {
        self.newest_first().find(|mount| mount.point == point)
    }

    /// Where an overlay keeps what is written to it.
    fn upper_of(&self, of: u32) -> Option<PathBuf> {
        self.0.rsplit(|byte| *byte == b'\n').find_map(|line| {
            let mut fields = line.split(|byte| *byte == b' ');
            if device(fields.nth(2)?)? != of {
                return None;
            }
            // … - TYPE SOURCE OPTIONS, whose values have commas written as digits too.
            fields.find(|field| *field == b"-")?;
            let mut options = fields.nth(2)?.split(|byte| *byte == b',');
            let upper = options.find_map(|option| option.strip_prefix(b"upperdir="))?;
            Some(PathBuf::from(OsStr::from_bytes(&unescaped(upper))))
        })
    }

    /// The runtime's `…/NAMESPACE/ID/rootfs`.
    fn rootfs_of(&self, namespace: &str, id: &str) -> Option<Mount> {
        let end = format!("/{namespace}/{id}/rootfs");
        self.newest_first()
            .find(|mount| mount.point.ends_with(end.as_bytes()))
    }
}

/// One mount.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    /// Kernel device number of its filesystem.
    device: u32,
    /// The directory of that filesystem which it shows.
    root: Vec<u8>,
    /// Where it shows it.
    point: Vec<u8>,
}

/// `major << 20 | minor`, as the kernel has it in `s_dev`.
fn device(text: &[u8]) -> Option<u32> {
    let (major, minor) = str::from_utf8(text).ok()?.split_once(':')?;
    let (major, minor): (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
    root::kernel_device(major.into(), minor.into())
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
pub fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((byte, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| *byte == b'\\');
        let value = digits
            .and_then(|digits| str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match value {
            Some(value) => {
                out.push(value);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                out.push(*byte);
                rest = after;
            }
        }
    }
    out
}

/// The path in the v2 hierarchy, from the content of `/proc/PID/cgroup`.
fn unified(cgroups: &[u8]) -> Option<Vec<u8>> {
    cgroups
        .split(|byte| *byte == b'\n')
        .find_map(|line| line.strip_prefix(b"0::"))
        // A process whose cgroup was removed under it.
        .map(|path| path.strip_suffix(b" (deleted)").unwrap_or(path).to_vec())
}

fn read(path: &str) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(FILE_BYTES_MAX)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Inode number of the mount namespace of `process` (a process id, or `self`); `None` if it is
/// gone or may not be looked at.
pub fn mount_namespace(process: &str) -> Option<u32> {
    let inode = std::fs::metadata(format!("/proc/{process}/ns/mnt")).ok()?;
    u32::try_from(inode.ino()).ok()
}

/// Where the overlay with this kernel device number keeps what is written to it, as the host sees it;
/// `None` for one that is not mounted any more, cannot be written, or is none.
pub fn upper_directory(device: u32) -> Option<PathBuf> {
    Mounts::of_host().upper_of(device)
}

/// What can be read of the task with init process `pid`, some 0.1 ms. `bundle` is told when a task
/// is created; of one that ran before, the host's mounts tell where its root filesystem is.
///
/// Measured on containerd 1.6.20 and runc 1.1.5: when `/tasks/create` is told, init is in its
/// cgroup, has pivoted into its root filesystem and waits for the start.
pub(super) fn task(
    namespace: &str,
    id: &str,
    pid: u32,
    bundle: Option<&str>,
    host: &mut Option<Mounts>,
) -> TaskFacts {
    // 0 would be read as this program's own namespace by some kernels' error paths; and a task
    // without a process has nothing to read.
    let alive = pid != 0;
    let mount_namespace = alive.then(|| mount_namespace(&pid.to_string())).flatten();
    let own_root = || alive.then(|| Mounts::of(pid).at(b"/")).flatten();
    let bundle = bundle
        .filter(|bundle| !bundle.is_empty())
        .map(|bundle| Path::new(bundle).join("rootfs"));
    let (rootfs, root) = match bundle {
        // Just created: nothing of the container has run that could have mounted over its root.
        Some(path) => {
            let root = own_root().or_else(|| {
                let host = host.get_or_insert_with(Mounts::of_host);
                host.at(path.as_os_str().as_bytes())
            });
            (Some(path), root)
        }
        None => {
            let host = host.get_or_insert_with(Mounts::of_host);
            match host.rootfs_of(namespace, id) {
                Some(mount) => (
                    Some(PathBuf::from(OsStr::from_bytes(&mount.point))),
                    Some(mount),
                ),
                None => (None, own_root()),
            }
        }
    };
    let root_device = root.as_ref().map(|mount| mount.device);
    let root_path = root.map(|mount| mount.root).filter(|path| path != b"/");
    let cgroup_path = alive
        .then(|| read(&format!("/proc/{pid}/cgroup")).ok())
        .flatten()
        .and_then(|cgroups| unified(&cgroups));
    let named = match (&rootfs, root_device) {
        (Some(rootfs), Some(device)) => root::inodes(rootfs, device, open::names()),
        _ => BTreeMap::new(),
    };
    TaskFacts {
        task: Task {
            pid,
            mount_namespace,
            root_device,
            root_path: root_path.unwrap_or_default(),
            rootfs,
            named,
        },
        cgroup_path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_place_and_by_end() {
        let mounts = Mounts(
            b"22 1 0:20 / / rw - overlay overlay rw\n\
              23 22 0:21 / /run/c/io.containerd.runtime.v2.task/default/web/rootfs rw - overlay o rw\n\
              24 22 0:22 / /run/c/default/a\\040b/rootfs rw - overlay o rw\n\
              25 22 254:1 /a\\040b /data rw - ext4 /dev/vda1 rw\n\
              26 22 0:30 / / rw - overlay overlay rw\n\
              short\n\
              27 22 x:y / /bad rw\n"
                .to_vec(),
        );
        let upper = Mounts(
            b"24 22 0:22 / /a shared:5 - overlay overlay rw,lowerdir=/l1:/l2,upperdir=/u\\054\\040x/fs,workdir=/w\n\
              25 22 0:23 / /b rw - overlay overlay ro,lowerdir=/l1:/l2\n"
                .to_vec(),
        );
        assert_eq!(upper.upper_of(22), Some(PathBuf::from("/u, x/fs")));
        assert_eq!((upper.upper_of(23), upper.upper_of(24)), (None, None));
        let check = |found: Option<Mount>, expect: Option<(u32, &str, &str)>| {
            let expect = expect.map(|(device, root, point)| Mount {
                device,
                root: root.as_bytes().to_vec(),
                point: point.as_bytes().to_vec(),
            });
            assert_eq!(found, expect);
        };
        check(mounts.at(b"/"), Some((30, "/", "/")));
        check(mounts.at(b"/data"), Some((254 << 20 | 1, "/a b", "/data")));
        check(mounts.at(b"/bad"), None);
        let spaced = "/run/c/default/a b/rootfs";
        check(mounts.at(spaced.as_bytes()), Some((22, "/", spaced)));
        let web = "/run/c/io.containerd.runtime.v2.task/default/web/rootfs";
        check(mounts.rootfs_of("default", "web"), Some((21, "/", web)));
        check(mounts.rootfs_of("default", "eb"), None);
    }

    #[test]
    fn fields_are_read_as_the_kernel_writes_them() {
        assert_eq!(device(b"8:17"), Some(8 << 20 | 17));
        for text in [
            &b"8"[..],
            b"8:",
            b"-1:0",
            b"4096:0",
            b"0:1048576",
            b"\xff:1",
        ] {
            assert_eq!(device(text), None, "{text:?}");
        }
        assert_eq!(unescaped(b"a\\134b\\040"), b"a\\b ");
        assert_eq!(unescaped(b"\\04"), b"\\04");
        assert_eq!(unescaped(b"\\999"), b"\\999");
        let hybrid = b"9:name=systemd:/\n0::/default/web\n";
        assert_eq!(unified(hybrid), Some(b"/default/web".to_vec()));
        assert_eq!(unified(b"0::/a (deleted)\n"), Some(b"/a".to_vec()));
        assert_eq!(unified(b"1:cpu:/x\n"), None);
    }

    #[test]
    fn a_process_that_is_gone_leaves_what_the_event_said() {
        let facts = task("default", "web", 0, Some("/run/b"), &mut None);
        assert_eq!(facts.task.rootfs, Some(PathBuf::from("/run/b/rootfs")));
        assert_eq!(facts.task.mount_namespace, None);
        assert_eq!(facts.cgroup_path, None);
        let own = task("default", "web", std::process::id(), None, &mut None);
        assert_eq!(own.task.mount_namespace, mount_namespace("self"));
    }
}
