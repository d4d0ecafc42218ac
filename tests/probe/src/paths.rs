//! Places to execute from that a shell cannot make.

use std::{
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    unistd::{getgid, getuid},
};

/// Makes directories below one another and enters each, since their path is longer than any call
/// takes.
pub(crate) fn enter_deep(count: usize, length: usize) -> Result<()> {
    let name = "d".repeat(length);
    for level in 0..count {
        fs::create_dir(&name).with_context(|| format!("cannot make directory {level}"))?;
        env::set_current_dir(&name).with_context(|| format!("cannot enter directory {level}"))?;
    }
    Ok(())
}

/// Becomes the root of a user namespace, mounts an overlay there over the image's programs, and
/// copies a file into it.
pub(crate) fn copy_into_user_overlay(source: &OsStr) -> Result<PathBuf> {
    let (user, group) = (getuid(), getgid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)
        .context("cannot make a user namespace")?;
    fs::write("/proc/self/setgroups", "deny").context("cannot refuse setgroups")?;
    fs::write("/proc/self/uid_map", format!("0 {user} 1")).context("cannot map the user")?;
    fs::write("/proc/self/gid_map", format!("0 {group} 1")).context("cannot map the group")?;
    // An overlay cannot be the upper directory of another.
    let place = Path::new("/tmp/overlay");
    fs::create_dir(place)?;
    mount_at("tmpfs", place, "mode=0755")?;
    for directory in ["upper", "work", "merged"] {
        fs::create_dir(place.join(directory))?;
    }
    let merged = place.join("merged");
    let options = format!(
        "lowerdir=/bin,upperdir={0}/upper,workdir={0}/work,userxattr",
        place.display()
    );
    mount_at("overlay", &merged, &options)?;
    let copy = merged.join("copy");
    fs::copy(source, &copy).with_context(|| format!("cannot copy {source:?}"))?;
    Ok(copy)
}

fn mount_at(kind: &str, at: &Path, options: &str) -> Result<()> {
    mount(Some(kind), at, Some(kind), MsFlags::empty(), Some(options))
        .with_context(|| format!("cannot mount {kind} at {}", at.display()))
}
