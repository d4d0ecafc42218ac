//! Where the root of the cgroup v2 hierarchy is mounted: programs for its sockets are attached there.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Inode number of the hierarchy's root; the root that a cgroup namespace shows is another cgroup.
const ROOT_INODE: u64 = 1;

/// No root of a hierarchy could be reached.
#[derive(Debug, thiserror::Error)]
pub enum CgroupRootError {
    /// There is none.
    #[error(
        "no cgroup v2 hierarchy is mounted: events name their cgroup in it. Mount one, also beside v1 (mount -t cgroup2 none /sys/fs/cgroup/unified)"
    )]
    NotMounted,
    /// Only a part of it is to be seen.
    #[error(
        "only a part of the cgroup v2 hierarchy is mounted at {0}: run monitord in the host's cgroup namespace, or in the host's pid namespace with CAP_SYS_PTRACE"
    )]
    Part(PathBuf),
    /// The mounts could not be read.
    #[error("cannot read /proc/self/mountinfo: {0}")]
    Unreadable(io::Error),
}

/// Finds it among the mounts of this process, else among those of init, as the host has them.
pub fn find() -> Result<PathBuf, CgroupRootError> {
    let own = fs::read_to_string("/proc/self/mountinfo").map_err(CgroupRootError::Unreadable)?;
    let of_init = fs::read_to_string("/proc/1/mountinfo").unwrap_or_default();
    let below =
        |root: &'static str| move |place: &str| Path::new(root).join(place.trim_start_matches('/'));
    let mut places: Vec<PathBuf> = mounted(&own).map(below("/")).collect();
    places.extend(mounted(&of_init).map(below("/proc/1/root")));
    let is_root =
        |place: &&PathBuf| fs::metadata(place).is_ok_and(|found| found.ino() == ROOT_INODE);
    match places.iter().find(is_root) {
        Some(place) => Ok(place.clone()),
        None => Err(places
            .into_iter()
            .next()
            .map_or(CgroupRootError::NotMounted, CgroupRootError::Part)),
    }
}

/// The mount points of cgroup v2 in a `mountinfo`.
fn mounted(mounts: &str) -> impl Iterator<Item = &str> {
    mounts.lines().filter_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        kind.starts_with("cgroup2 ")
            .then(|| place.split(' ').nth(4))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_version_2_are_found() {
        let check = |mounts: &str, expect: &[&str]| {
            assert_eq!(mounted(mounts).collect::<Vec<_>>(), expect, "{mounts}");
        };
        check("", &[]);
        check(
            "30 23 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n31 30 0:27 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n32 30 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu",
            &["/sys/fs/cgroup/unified"],
        );
        check("31 30 0:27 / /sys/fs/cgroup rw", &[]);
    }
}
