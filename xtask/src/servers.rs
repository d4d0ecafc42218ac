//! Servers that tests start themselves, unpacked from Debian's packages into the cache: installed,
//! the packages would start services of the machine's own.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};

use crate::{apt, images, setup, toolchain, workspace};

const PACKAGES: [&str; 2] = ["docker-registry", "nats-server"];

/// Where the tests look, below `target/`: a link into the cache.
const LINK: &str = "servers";

/// Unpacks the packages unless the cache has them, and lets the tests find them, as far as that is
/// possible here.
pub(crate) fn prepare() {
    if let Err(error) = find() {
        eprintln!(
            "xtask: tests of {} will be skipped unless they are on PATH: {error:#}",
            PACKAGES.join(" and ")
        );
    }
}

fn find() -> Result<()> {
    let cache = workspace::cache()?;
    let folder = format!("servers-{}", PACKAGES.join("-"));
    let unpacked = cache.join(&folder);
    if !unpacked.is_dir() {
        let _lock = setup::lock(&cache)?;
        toolchain::remove_unfinished(&cache)?;
        // Another setup may have unpacked them meanwhile.
        if !unpacked.is_dir() {
            unpack(&cache, &folder)?;
        }
    }
    images::link(&unpacked.join("tree"), &workspace::target().join(LINK))
}

fn unpack(cache: &Path, folder: &str) -> Result<()> {
    if !apt::is_here() {
        bail!("this is no Debian");
    }
    let packages = PACKAGES.map(str::to_owned);
    let fill = |place: &Path| apt::unpack(&packages, place);
    if toolchain::install_into(cache, folder, fill).is_err() {
        // Old lists name files that the mirror no longer has; a fresh machine has none.
        apt::update();
        toolchain::install_into(cache, folder, fill)?;
    }
    for old in toolchain::folders(cache, "servers-") {
        if !old.ends_with(folder) {
            fs::remove_dir_all(&old).with_context(|| format!("removing {}", old.display()))?;
        }
    }
    Ok(())
}
