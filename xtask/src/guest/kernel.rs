//! Debian's cloud kernels: the newest of each series, unpacked into the cache.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{apt, cache, run, setup, toolchain};

/// The series that are tested, oldest first: Debian 12's own and its backport of a later one.
pub(crate) const SERIES: [&str; 2] = ["6.1", "6.12"];

const PREFIX: &str = "linux-image-";
const SUFFIX: &str = "-cloud-amd64-unsigned";

/// Modules that the tests need and that are not built in.
const MODULES: [&str; 2] = ["overlay", "binfmt_misc"];

/// A kernel that can be booted.
pub(crate) struct Kernel {
    pub(crate) series: &'static str,
    /// Its package and the package's version.
    folder: String,
    /// What QEMU loads.
    pub(crate) image: PathBuf,
    /// [`MODULES`] and what they need, in the order in which they are to be loaded.
    pub(crate) modules: Vec<Vec<u8>>,
}

impl Kernel {
    /// For people.
    pub(crate) fn describe(&self) -> String {
        self.folder.replace('_', " ")
    }
}

/// Finds the newest kernel of a series, in the cache or from Debian. The cache's lock must be held.
///
/// # Errors
///
/// There is none here and none can be downloaded, or the package is not as expected.
pub(crate) fn find(cache: &Path, series: &'static str) -> Result<Kernel> {
    let here = cached(cache, series);
    let mut offered = newest(series);
    if offered.is_none() && here.is_none() && apt::is_here() {
        // A fresh machine has no lists of packages.
        apt::update();
        offered = newest(series);
    }
    let folder = match (offered, here) {
        (Some((package, version)), here) => {
            let folder = format!("{package}_{version}");
            if here.as_ref() != Some(&folder) {
                cache::unpack(cache, &[format!("{package}={version}")], &folder)?;
                // They would only pile up: a new one comes every few weeks.
                if let Some(old) = here {
                    let old = cache.join(old);
                    fs::remove_dir_all(&old)
                        .with_context(|| format!("removing {}", old.display()))?;
                }
            }
            folder
        }
        (None, Some(here)) => here,
        (None, None) => bail!(
            "Debian's package {PREFIX}{series}.*{SUFFIX} is neither in {} nor known to apt",
            cache.display()
        ),
    };
    load(cache, series, folder)
}

/// The newest package of a series that apt can download, and its version.
fn newest(series: &str) -> Option<(String, String)> {
    let names =
        run::answer(Command::new("apt-cache").args(["pkgnames", &format!("{PREFIX}{series}.")]))?;
    let mut names: Vec<&str> = names
        .lines()
        .filter(|name| name.ends_with(SUFFIX))
        .collect();
    names.sort_by_key(|name| numbers(name));
    // apt also knows names of packages that are gone.
    names.into_iter().rev().find_map(|name| {
        let version = apt::field(name, "Version")?;
        Some((name.to_owned(), version))
    })
}

/// All numbers in a name, which is how kernels' package names are ordered: `6.1.0-9` before
/// `6.1.0-10`.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|letter: char| !letter.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

/// The newest folder of a series in the cache.
fn cached(cache: &Path, series: &str) -> Option<String> {
    toolchain::folders(cache, &format!("{PREFIX}{series}."))
        .into_iter()
        .filter_map(|folder| Some(folder.file_name()?.to_str()?.to_owned()))
        .max_by_key(|name| numbers(name))
}

fn load(cache: &Path, series: &'static str, folder: String) -> Result<Kernel> {
    let tree = cache.join(&folder).join("tree");
    let image = files(&tree.join("boot"))?
        .into_iter()
        .find(|path| stem(path).starts_with("vmlinuz-"))
        .with_context(|| format!("no vmlinuz below {}", tree.display()))?;
    let available = files(&tree.join("lib/modules"))?;
    let mut modules = Modules {
        available: &available,
        loaded: Vec::new(),
        contents: Vec::new(),
    };
    for name in MODULES {
        modules.add(name)?;
    }
    let modules = modules.contents;
    Ok(Kernel {
        series,
        folder,
        image,
        modules,
    })
}

/// Modules in the order in which they are to be loaded. The package brings no `modules.dep`; each
/// module says itself what it needs.
struct Modules<'a> {
    available: &'a [PathBuf],
    loaded: Vec<String>,
    contents: Vec<Vec<u8>>,
}

impl Modules<'_> {
    fn add(&mut self, name: &str) -> Result<()> {
        let name = name.replace('-', "_");
        if self.loaded.contains(&name) {
            return Ok(());
        }
        self.loaded.push(name.clone());
        let file = self
            .available
            .iter()
            .find(|path| stem(path).replace('-', "_") == name)
            .with_context(|| format!("the package has no module {name}"))?;
        let module = uncompressed(file)?;
        for needed in depends(&module) {
            self.add(&needed)?;
        }
        self.contents.push(module);
        Ok(())
    }
}

/// The names in a module's `depends=` line.
fn depends(module: &[u8]) -> Vec<String> {
    let line = module
        .split(|byte| *byte == 0)
        .find_map(|line| line.strip_prefix(b"depends="))
        .unwrap_or_default();
    String::from_utf8_lossy(line)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

fn uncompressed(module: &Path) -> Result<Vec<u8>> {
    if module.extension().is_some_and(|name| name == "ko") {
        return fs::read(module).with_context(|| format!("reading {}", module.display()));
    }
    let output = Command::new(setup::BUSYBOX)
        .arg("xzcat")
        .arg(module)
        .output()
        .context("starting busybox xzcat")?;
    if !output.status.success() {
        bail!(
            "uncompressing {}: {}",
            module.display(),
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    Ok(output.stdout)
}

/// The name of a file up to `.ko`, if that is in it.
fn stem(path: &Path) -> &str {
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.unwrap_or_default();
    name.split(".ko").next().unwrap_or(name)
}

/// All files below a folder.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let reading = || format!("reading {}", folder.display());
        for entry in fs::read_dir(&folder).with_context(reading)? {
            let entry = entry.with_context(reading)?;
            if entry.file_type().with_context(reading)?.is_dir() {
                folders.push(entry.path());
            } else {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_ordered_by_their_numbers() {
        let check = |older: &str, newer: &str| assert!(numbers(older) < numbers(newer));
        check("linux-image-6.1.0-9-cloud", "linux-image-6.1.0-10-cloud");
        check(
            "linux-image-6.12.9+deb12-cloud",
            "linux-image-6.12.107+deb12-cloud",
        );
        check("a-6.1.0-56_6.1.192-2", "a-6.1.0-56_6.1.192-3");
    }

    #[test]
    fn a_module_says_what_it_needs() {
        let check = |module: &[u8], expect: &[&str]| assert_eq!(depends(module), expect);
        check(b"\x7fELF\0license=GPL\0depends=\0name=overlay\0", &[]);
        check(b"\0depends=fscrypto,nls-base\0", &["fscrypto", "nls-base"]);
        check(b"", &[]);
    }
}
