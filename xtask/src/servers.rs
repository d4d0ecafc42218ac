//! Servers that tests start themselves, unpacked from Debian's packages into the cache: installed,
//! the packages would start services of the machine's own.

use anyhow::{Result, bail};

use crate::{apt, cache, workspace};

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
    let packages = PACKAGES.map(str::to_owned);
    let unpacked = cache::folder("servers-", &packages.join("-"), |cache, folder| {
        if !apt::is_here() {
            bail!("this is no Debian");
        }
        cache::unpack(cache, &packages, folder)
    })?;
    cache::link(&unpacked.join("tree"), &workspace::target().join(LINK))
}
