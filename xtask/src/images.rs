//! Layers of Debian packages for the tests' images, built into the cache. No registry is asked, so
//! the images hold what everyone's images hold: what Debian's packages and their scripts leave.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::Path,
    process::Command,
};

use anyhow::{Result, bail};
use nix::unistd::Uid;

use crate::{apt, cache, run, toolchain, workspace};

/// Debian 12, whatever this machine runs.
const SUITE: &str = "bookworm";
/// For a machine whose own sources do not name one.
const MIRROR: &str = "http://deb.debian.org/debian";

/// Each lies on `base`, a minimal Debian, and holds these packages and what they depend on.
const LAYERS: [&str; 8] = [
    "java=default-jre-headless",
    "nginx=nginx-light,libnginx-mod-http-geoip,curl,wget",
    "node=nodejs",
    "postgres=postgresql,wget",
    "python=python3,wget",
    "redis=redis-server,wget",
    "tools=perl,gawk,xz-utils,procps,file",
    "wrk=wrk",
];

const BUILD: &str = "xtask/src/images/build.sh";
const BUILD_TEXT: &str = include_str!("images/build.sh");
const BUILDER: &str = "mmdebstrap";
const PREFIX: &str = "debian-layers-";

/// Where the tests look, below `target/`: a link into the cache.
const LINK: &str = "debian-layers";

/// Builds the layers unless the cache has them, and lets the tests find them, as far as that is
/// possible here.
pub(crate) fn prepare() {
    if let Err(error) = find() {
        eprintln!("xtask: tests of images of Debian packages will be skipped: {error:#}");
    }
}

fn find() -> Result<()> {
    let built = cache::folder(PREFIX, &version(), build)?;
    cache::link(&built, &workspace::target().join(LINK))
}

/// What is built in this way of these packages. The packages' versions do not matter, so the layers stay
/// until they are removed or others are asked for.
fn version() -> String {
    let mut hasher = DefaultHasher::new();
    (BUILD_TEXT, LAYERS).hash(&mut hasher);
    format!("{SUITE}-{:016x}", hasher.finish())
}

fn build(cache: &Path, folder: &str) -> Result<()> {
    if !Uid::effective().is_root() {
        bail!("only root can unpack packages with their owners and run their scripts");
    }
    let runs = || run::answer(Command::new(BUILDER).arg("--version")).is_some();
    if !runs() {
        if apt::is_here() {
            // A fresh machine has no lists of packages.
            apt::update();
            apt::install(&[BUILDER.to_owned()].into())?;
        }
        if !runs() {
            bail!("{BUILDER} does not run here: install what Debian's {BUILDER} brings");
        }
    }
    toolchain::install_into(cache, folder, |place| {
        run::quiet(
            "building images of Debian packages, a minute or two",
            Command::new("unshare")
                .args(["--mount", "sh"])
                .arg(workspace::root().join(BUILD))
                .args([&mirror(), SUITE])
                .args(LAYERS)
                .current_dir(place),
        )
    })
}

/// The mirror that this machine's own packages come from, if it has the suite.
fn mirror() -> String {
    let targets = run::answer(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(SITE) $(RELEASE) $(COMPONENT)",
    ]));
    targets
        .as_deref()
        .and_then(mirror_among)
        .unwrap_or(MIRROR)
        .to_owned()
}

fn mirror_among(targets: &str) -> Option<&str> {
    targets
        .lines()
        .find_map(|line| line.strip_suffix(" main")?.strip_suffix(SUITE))
        .map(str::trim_end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_the_machines_own() {
        let check = |targets, expect| assert_eq!(mirror_among(targets), expect);
        check(
            "http://security.example/debian-security bookworm-security main\n\
             http://mirror.example/debian bookworm contrib\n\
             http://mirror.example/debian bookworm main\n",
            Some("http://mirror.example/debian"),
        );
        check("http://archive.example/ubuntu noble main\n", None);
        check("", None);
    }
}
