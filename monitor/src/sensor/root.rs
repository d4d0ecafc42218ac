//! Files below a container's root, found by name from the host without getting into the runtime's
//! way.

use std::{
    collections::BTreeMap,
    ffi::{CString, OsStr},
    io,
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    sys::stat::{fstat, major, minor},
};

/// A file by its path below a directory, as a path only and never through a symbolic link.
pub fn named(root: &OwnedFd, path: &[u8]) -> Option<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_SYMLINKS);
    openat2(root, Path::new(OsStr::from_bytes(path)), how).ok()
}

/// A file by its path in the filesystem `device` (kernel device number) that is mounted at
/// `rootfs`, as a path only. `None` if it is not there, or another filesystem is by now: of a
/// container that has ended `rootfs` is a directory of the host.
pub fn file(rootfs: &Path, device: u32, path: &[u8]) -> Option<OwnedFd> {
    named(&detached(rootfs, device)?, path)
}

/// The root of the filesystem `device` (kernel device number) that is mounted at `rootfs`, without
/// what is mounted on it; it stays when the container goes. `None` if another filesystem is there by
/// now.
pub fn detached(rootfs: &Path, device: u32) -> Option<OwnedFd> {
    let root = clone_mount(rootfs)?;
    is_device(&root, device).ok()?.then_some(root)
}

/// The inode numbers of those of `names` that are files of the filesystem `device` mounted at
/// `rootfs`, each with its name.
pub fn inodes(
    rootfs: &Path,
    device: u32,
    names: impl Iterator<Item = Vec<u8>>,
) -> BTreeMap<u64, Vec<u8>> {
    let root = clone_mount(rootfs).filter(|root| is_device(root, device) == Ok(true));
    let Some(root) = root else {
        return BTreeMap::new();
    };
    names
        .filter_map(|name| Some((fstat(named(&root, &name)?).ok()?.st_ino, name)))
        .collect()
}

/// Whether a file lies on the filesystem with this kernel device number.
pub fn is_device(file: &OwnedFd, device: u32) -> nix::Result<bool> {
    let seen = fstat(file)?.st_dev;
    Ok((major(seen), minor(seen)) == (u64::from(device >> 20), u64::from(device & 0xf_ffff)))
}

/// The kernel device number (`major << 20 | minor`) of the filesystem that a file lies on.
pub fn device(file: &OwnedFd) -> Option<u32> {
    let seen = fstat(file).ok()?.st_dev;
    kernel_device(major(seen), minor(seen))
}

/// A device number as the kernel has it in `s_dev` (`major << 20 | minor`).
pub fn kernel_device(major: u64, minor: u64) -> Option<u32> {
    let device = (major << 20 | minor).try_into().ok()?;
    (minor < 1 << 20).then_some(device)
}

/// The root of a detached copy of a mount: a descriptor below the mount itself would keep the
/// runtime from unmounting it (`EBUSY`).
fn clone_mount(path: &Path) -> Option<OwnedFd> {
    const FLAGS: u32 = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    // SAFETY: the path ends with a NUL and lives on; the call keeps no pointer.
    let opened =
        unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), FLAGS) };
    descriptor(opened).ok()
}

/// The descriptor that a system call has just given, or its error.
pub(super) fn descriptor(given: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(given) {
        // SAFETY: the kernel has just given it to nobody else.
        Ok(number) if number >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(number) }),
        _ => Err(io::Error::last_os_error()),
    }
}
