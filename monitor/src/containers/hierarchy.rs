//! The cgroup v2 hierarchy: events name their cgroup in it, so that without it containers cannot
//! be told apart.

use std::{
    ffi::OsStr,
    fs, io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
};

use super::procfs::unescaped;

const MOUNTS: &str = "/proc/self/mountinfo";
const INIT_MOUNTS: &str = "/proc/1/mountinfo";
const INIT_ROOT: &str = "/proc/1/root";
/// `FILEID_KERNFS` of `include/linux/exportfs.h`: a handle that is the cgroup's id.
const FILEID_KERNFS: i32 = 0xfe;
const ID_BYTES: u32 = 8;

/// There is no cgroup v2 hierarchy to watch.
#[derive(Debug, thiserror::Error)]
pub enum HierarchyError {
    /// Only version 1.
    #[error(
        "this node has cgroup v1 only ({0}): events name their cgroup in the v2 hierarchy, so that containers cannot be told apart; boot with systemd.unified_cgroup_hierarchy=1, or in hybrid mode (systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=0)"
    )]
    OnlyV1(String),
    /// None at all.
    #[error(
        "no cgroup v2 hierarchy is mounted: events name their cgroup in it; mount it where monitord sees it (mount -t cgroup2 none /sys/fs/cgroup)"
    )]
    None,
    /// `/proc` cannot be read.
    #[error("cannot read {MOUNTS}: {0}; mount proc on /proc")]
    Mounts(io::Error),
}

/// Where the v2 hierarchy is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// The mount point.
    pub place: PathBuf,
    /// Controllers of version 1 are mounted as well.
    pub is_hybrid: bool,
}

impl Hierarchy {
    /// The hierarchy that this process sees, else that which init sees: a container on a node with
    /// both versions may have been given version 1 only.
    ///
    /// # Errors
    ///
    /// See [`HierarchyError`].
    pub fn find() -> Result<Self, HierarchyError> {
        let own = Self::of_mounts(&fs::read(MOUNTS).map_err(HierarchyError::Mounts)?);
        own.or_else(|error| {
            let of_init = fs::read(INIT_MOUNTS).map_err(|_| error)?;
            let found = Self::of_mounts(&of_init)?;
            let below = found.place.strip_prefix("/").unwrap_or(&found.place);
            Ok(Self {
                place: Path::new(INIT_ROOT).join(below),
                ..found
            })
        })
    }

    /// The hierarchy by the content of a `mountinfo`: of several mounts the whole hierarchy rather
    /// than a part of it, else the first.
    ///
    /// # Errors
    ///
    /// See [`HierarchyError`].
    pub fn of_mounts(mounts: &[u8]) -> Result<Self, HierarchyError> {
        let (mut whole, mut part, mut v1) = (None, None, Vec::new());
        for line in mounts.split(|byte| *byte == b'\n') {
            // ID PARENT MAJOR:MINOR ROOT MOUNTPOINT OPTIONS … - TYPE SOURCE OPTIONS
            let mut fields = line.split(|byte| *byte == b' ');
            let (Some(root), Some(place)) = (fields.nth(3), fields.next()) else {
                continue;
            };
            let kind = fields.skip_while(|field| *field != b"-").nth(1);
            let place = unescaped(place);
            match kind {
                Some(b"cgroup2") if root == b"/" => whole = whole.or(Some(place)),
                Some(b"cgroup2") => part = part.or(Some(place)),
                Some(b"cgroup") => v1.push(String::from_utf8_lossy(&place).into_owned()),
                _ => {}
            }
        }
        match whole.or(part) {
            Some(place) => Ok(Self {
                place: PathBuf::from(OsStr::from_bytes(&place)),
                is_hybrid: !v1.is_empty(),
            }),
            None if v1.is_empty() => Err(HierarchyError::None),
            None => Err(HierarchyError::OnlyV1(v1.join(", "))),
        }
    }

    /// The path of the cgroup with this id, from the root of the mount; `None` if it is gone.
    pub fn path_of(&self, id: u64) -> Option<Vec<u8>> {
        let cgroup = self.open(id)?;
        let path = fs::read_link(format!("/proc/self/fd/{}", cgroup.as_raw_fd())).ok()?;
        if path.as_os_str().as_bytes().ends_with(b" (deleted)") {
            return None;
        }
        // The link shows the mount's own path, through whatever it was reached.
        let place = self.place.strip_prefix(INIT_ROOT);
        let place = place.map_or_else(|_| self.place.clone(), |place| Path::new("/").join(place));
        let below = path.strip_prefix(place).ok()?;
        Some(Path::new("/").join(below).into_os_string().into_vec())
    }

    fn open(&self, id: u64) -> Option<OwnedFd> {
        #[repr(C)]
        struct Handle {
            bytes: u32,
            kind: i32,
            id: u64,
        }
        let mount = fs::File::open(&self.place).ok()?;
        let mut handle = Handle {
            bytes: ID_BYTES,
            kind: FILEID_KERNFS,
            id,
        };
        // SAFETY: the handle is laid out as `struct file_handle` and says how long it is; the
        // kernel only reads it.
        let descriptor = unsafe {
            libc::open_by_handle_at(
                mount.as_raw_fd(),
                (&raw mut handle).cast(),
                libc::O_PATH | libc::O_CLOEXEC,
            )
        };
        // SAFETY: the call gave a descriptor that nothing else owns.
        (descriptor >= 0).then(|| unsafe { OwnedFd::from_raw_fd(descriptor) })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    const ROOT: &str = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n";

    #[test]
    fn a_node_without_the_v2_hierarchy_is_refused() {
        let check = |mounts: &str, expect: Result<(&str, bool), &str>| {
            let found = Hierarchy::of_mounts(format!("{ROOT}{mounts}").as_bytes());
            let found = found.map_err(|error| error.to_string());
            match expect {
                Ok((place, is_hybrid)) => {
                    let place = PathBuf::from(place);
                    assert_eq!(found, Ok(Hierarchy { place, is_hybrid }), "{mounts}");
                }
                Err(reason) => {
                    let error = found.unwrap_err();
                    assert!(error.contains(reason), "{mounts}: {error}");
                }
            }
        };
        let v1 = "31 22 0:27 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n\
                  32 22 0:28 / /sys/fs/cgroup/pids rw shared:10 - cgroup cgroup rw,pids\n";
        let v2 = "30 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
        let unified = "30 22 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let part = "40 22 0:26 /kubepods /srv/part rw - cgroup2 cgroup2 rw\n";
        check(v2, Ok(("/sys/fs/cgroup", false)));
        check(
            &format!("{v1}{unified}"),
            Ok(("/sys/fs/cgroup/unified", true)),
        );
        check(&format!("{part}{v2}"), Ok(("/sys/fs/cgroup", false)));
        check(part, Ok(("/srv/part", false)));
        check(
            "30 22 0:26 / /a\\040b rw - cgroup2 none rw\n",
            Ok(("/a b", false)),
        );
        check(
            v1,
            Err("cgroup v1 only (/sys/fs/cgroup/memory, /sys/fs/cgroup/pids)"),
        );
        check("", Err("no cgroup v2 hierarchy is mounted"));
        // A name that looks like the type, and lines that are none.
        check(
            "30 22 0:26 / /cgroup2 rw - tmpfs cgroup2 rw\n\n- cgroup2\nx\n",
            Err("no cgroup v2"),
        );
    }

    #[test]
    fn a_cgroup_is_found_by_its_id() {
        let Ok(hierarchy) = Hierarchy::find() else {
            return;
        };
        let id = fs::metadata(&hierarchy.place).unwrap().ino();
        let found = hierarchy.path_of(id);
        // Opening by id needs CAP_DAC_READ_SEARCH.
        if nix::unistd::geteuid().is_root() {
            assert_eq!(found, Some(b"/".to_vec()));
            assert_eq!(hierarchy.path_of(u64::MAX), None);
        }
    }
}
