//! Layers of Debian packages for the tests' images, built into the cache. No registry is asked, so
//! the images hold what everyone's images hold: what Debian's packages and their scripts leave.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::ErrorKind,
    os::unix::fs::symlink,
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use nix::unistd::Uid;

use crate::{apt, run, setup, toolchain, workspace};

/// Debian 12, whatever this machine runs.
const SUITE: &str = "bookworm";
/// For a machine whose own sources do not name one.
const MIRROR: &str = "http://deb.debian.org/debian";

/// Each lies on `base`, a minimal Debian, and holds these packages and what they depend on.
const LAYERS: [&str; 7] = [
    "java=default-jre-headless",
    "nginx=nginx-light,libnginx-mod-http-geoip,curl",
    "node=nodejs",
    "postgres=postgresql",
    "python=python3",
    "redis=redis-server",
    "tools=perl,gawk,xz-utils,procps,file",
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
    let cache = workspace::cache()?;
    let folder = folder();
    let built = cache.join(&folder);
    if !built.is_dir() {
        let _lock = setup::lock(&cache)?;
        toolchain::remove_unfinished(&cache)?;
        // Another setup may have built them meanwhile.
        if !built.is_dir() {
            build(&cache, &folder)?;
        }
    }
    link(&built, &workspace::target().join(LINK))
}

/// A folder for what is built in this way of these packages. Their versions do not matter, so the
/// layers stay until they are removed or others are asked for.
fn folder() -> String {
    let mut hasher = DefaultHasher::new();
    (BUILD_TEXT, LAYERS).hash(&mut hasher);
    format!("{PREFIX}{SUITE}-{:016x}", hasher.finish())
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
    let old = toolchain::folders(cache, PREFIX);
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
    })?;
    for old in old {
        fs::remove_dir_all(&old).with_context(|| format!("removing {}", old.display()))?;
    }
    Ok(())
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
