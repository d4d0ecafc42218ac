//! What is built or unpacked once and kept in the cache, for every clone.

use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{apt, setup, toolchain, workspace};

/// The folder whose name is `prefix` and `rest`. If it is not there `make` makes it of the cache and the
/// name, and what else begins with `prefix` is removed, which would only pile up.
pub(crate) fn folder(
    prefix: &str,
    rest: &str,
    make: impl FnOnce(&Path, &str) -> Result<()>,
) -> Result<PathBuf> {
    let cache = workspace::cache()?;
    let name = format!("{prefix}{rest}");
    let folder = cache.join(&name);
    if folder.is_dir() {
        return Ok(folder);
    }
    let _lock = setup::lock(&cache)?;
    toolchain::remove_unfinished(&cache)?;
    // Another setup may have made it meanwhile.
    if !folder.is_dir() {
        make(&cache, &name)?;
        let others = toolchain::folders(&cache, prefix).into_iter();
        for old in others.filter(|other| *other != folder) {
            fs::remove_dir_all(&old).with_context(|| format!("removing {}", old.display()))?;
        }
    }
    Ok(folder)
}

/// Unpacks Debian's packages into a folder of the cache, below `tree`.
pub(crate) fn unpack(cache: &Path, packages: &[String], folder: &str) -> Result<()> {
    let fill = |place: &Path| apt::unpack(packages, place);
    if toolchain::install_into(cache, folder, fill).is_ok() {
        return Ok(());
    }
    // Old lists name files that the mirror no longer has; a fresh machine has none.
    apt::update();
    toolchain::install_into(cache, folder, fill)
}

/// Makes the link `link` to `built`, or changes it.
pub(crate) fn link(built: &Path, link: &Path) -> Result<()> {
    let linking = || format!("linking {} to {}", link.display(), built.display());
    if fs::read_link(link).is_ok_and(|target| target == built) {
        return Ok(());
    }
    match fs::remove_file(link) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).with_context(linking)?,
        _ => {}
    }
    symlink(built, link).with_context(linking)
}
