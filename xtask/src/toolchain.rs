//! The compiler and the linker for eBPF: which there are, which serve, and how they are had.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{apt, run, workspace};

/// Newer ones default to an LLVM that no distribution has yet; older ones know no LLVM 22.
const BPF_LINKER_VERSION: &str = "0.13.0";

/// The LLVM versions that this bpf-linker can be built with, oldest first.
const BPF_LINKER_LLVM: [u32; 3] = [21, 22, 23];

/// The target that the eBPF object is built for.
pub(crate) const BPF_TARGET: &str = "bpfel-unknown-none";

/// A compiler for eBPF that was seen to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Compiler {
    pub(crate) source: Source,
    /// What rustc calls itself.
    pub(crate) version: String,
    /// The major version of its LLVM.
    pub(crate) llvm: u32,
}

/// Where a compiler comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// rustup's nightly with the source of `core`, which is then built along.
    Nightly,
    /// Debian's `rustc-web`, unpacked below this folder of the cache, with a `core` for eBPF.
    Debian(PathBuf),
}

/// A bpf-linker that was seen to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Linker {
    /// The folder of the program, for `PATH`.
    pub(crate) folder: PathBuf,
    /// The major version of its LLVM.
    pub(crate) llvm: u32,
}

/// A compiler and a linker that fit each other.
#[derive(Clone, Debug)]
pub(crate) struct Toolchain {
    pub(crate) compiler: Compiler,
    pub(crate) linker: Linker,
}

impl Toolchain {
    /// A cargo command that builds for eBPF with this toolchain.
    pub(crate) fn cargo(&self, subcommand: &str) -> Command {
        let mut command = match &self.compiler.source {
            Source::Nightly => {
                let mut command = Command::new("cargo");
                run::forget_own_package(&mut command);
                command.arg("+nightly").arg(subcommand);
                command.args(["-Z", "build-std=core"]);
                command
            }
            Source::Debian(tree) => {
                let mut command = run::cargo();
                command.arg(subcommand);
                command.env("RUSTC", debian_rustc(tree));
                command.env("LD_LIBRARY_PATH", debian_libraries(tree));
                // A release compiler takes the unstable features of aya-ebpf only so.
                command.env("RUSTC_BOOTSTRAP", "1");
                command
            }
        };
        command.args(["--target", BPF_TARGET]);
        let mut path = self.linker.folder.clone().into_os_string();
        if let Some(rest) = std::env::var_os("PATH") {
            path.push(":");
            path.push(rest);
        }
        command.env("PATH", path);
        command
    }

    /// One line for people: what builds the eBPF object.
    pub(crate) fn describe(&self) -> String {
        let source = match &self.compiler.source {
            Source::Nightly => "rustup's nightly with rust-src".to_owned(),
            Source::Debian(tree) => format!("Debian's rustc-web in {}", tree.display()),
        };
        format!(
            "{source} ({}, LLVM {}), bpf-linker {BPF_LINKER_VERSION} with LLVM {}",
            self.compiler.version, self.compiler.llvm, self.linker.llvm
        )
    }
}

/// The compilers that are here and run, the preferred one first: rustup's nightly is what its
/// user keeps up to date.
pub(crate) fn compilers(cache: &Path) -> Vec<Compiler> {
    let mut found: Vec<Compiler> = nightly().into_iter().collect();
    let mut trees = folders(cache, "rustc-web-");
    // Only the newest can be wanted; by name is good enough among few.
    trees.sort();
    found.extend(trees.into_iter().rev().filter_map(debian));
    found
}

fn nightly() -> Option<Compiler> {
    let rustc = || {
        let mut command = Command::new("rustc");
        // A question must not start a download.
        command.arg("+nightly").env("RUSTUP_AUTO_INSTALL", "0");
        command
    };
    let sysroot = run::answer(rustc().args(["--print", "sysroot"]))?;
    Path::new(sysroot.trim())
        .join("lib/rustlib/src/rust/library")
        .is_dir()
        .then_some(())?;
    let (version, llvm) = parse_version(&run::answer(rustc().arg("-vV"))?)?;
    Some(Compiler {
        source: Source::Nightly,
        version,
        llvm,
    })
}

fn debian(folder: PathBuf) -> Option<Compiler> {
    let answer = run::answer(
        Command::new(debian_rustc(&folder))
            .arg("-vV")
            .env("LD_LIBRARY_PATH", debian_libraries(&folder)),
    )?;
    let (version, llvm) = parse_version(&answer)?;
    Some(Compiler {
        source: Source::Debian(folder),
        version,
        llvm,
    })
}

fn debian_rustc(folder: &Path) -> PathBuf {
    folder.join("tree/usr/bin/rustc")
}

fn debian_libraries(folder: &Path) -> PathBuf {
    folder.join(format!("tree/usr/lib/{}-linux-gnu", std::env::consts::ARCH))
}

/// `rustc -vV`: its release, and the major version of its LLVM.
fn parse_version(answer: &str) -> Option<(String, u32)> {
    let value = |key: &str| {
        answer
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(": "))
    };
    let llvm = value("LLVM version")?.split('.').next()?.parse().ok()?;
    Some((format!("rustc {}", value("release")?), llvm))
}

/// The bpf-linkers in the cache that run.
pub(crate) fn linkers(cache: &Path) -> Vec<Linker> {
    BPF_LINKER_LLVM
        .into_iter()
        .filter_map(|llvm| {
            let folder = cache.join(linker_folder(llvm)).join("bin");
            run::answer(Command::new(folder.join("bpf-linker")).arg("--version"))?;
            Some(Linker { folder, llvm })
        })
        .collect()
}

/// The first compiler for which there is a linker, and that linker. A linker reads what the
/// compiler writes only if its LLVM is not older.
pub(crate) fn fit(compilers: &[Compiler], linkers: &[Linker]) -> Option<Toolchain> {
    compilers.iter().find_map(|compiler| {
        let linker = linkers.iter().find(|linker| linker.llvm >= compiler.llvm)?;
        Some(Toolchain {
            compiler: compiler.clone(),
            linker: linker.clone(),
        })
    })
}

/// The oldest LLVM that bpf-linker can be built with for a compiler, out of those on offer.
pub(crate) fn linker_llvm(compiler_llvm: u32, offered: &[u32]) -> Option<u32> {
    BPF_LINKER_LLVM
        .into_iter()
        .find(|llvm| *llvm >= compiler_llvm && offered.contains(llvm))
}

/// The LLVM versions whose development files apt can install.
pub(crate) fn offered_llvm() -> Vec<u32> {
    BPF_LINKER_LLVM
        .into_iter()
        .filter(|llvm| apt::field(&format!("llvm-{llvm}-dev"), "Version").is_some())
        .collect()
}

/// What bpf-linker needs from the system to be built and to run.
pub(crate) fn linker_packages(llvm: u32) -> Vec<String> {
    vec![
        format!("llvm-{llvm}-dev"),
        format!("libpolly-{llvm}-dev"),
        // By name, so that it stays when the development files are removed again.
        format!("libllvm{llvm}"),
        "zlib1g-dev".to_owned(),
        "libzstd-dev".to_owned(),
        "libxml2-dev".to_owned(),
    ]
}

fn linker_arguments(llvm: u32) -> String {
    format!(
        "install bpf-linker --version {BPF_LINKER_VERSION} --locked --no-default-features \
         --features llvm-{llvm}"
    )
}

/// The command by which a person puts bpf-linker to where it is looked for.
pub(crate) fn linker_by_hand(llvm: u32) -> String {
    let folder = workspace::cache()
        .unwrap_or_default()
        .join(linker_folder(llvm));
    format!(
        "LLVM_PREFIX=/usr/lib/llvm-{llvm} cargo {} --root {}",
        linker_arguments(llvm),
        folder.display()
    )
}

/// Builds bpf-linker into the cache, unless it is there and runs, now that its libraries are
/// installed.
///
/// # Errors
///
/// It does not build, or the result does not run.
pub(crate) fn build_linker(cache: &Path, llvm: u32) -> Result<()> {
    let runs = || linkers(cache).iter().any(|linker| linker.llvm == llvm);
    if runs() {
        return Ok(());
    }
    install_into(cache, &linker_folder(llvm), |folder| {
        run::quiet(
            &format!("building bpf-linker {BPF_LINKER_VERSION} for LLVM {llvm}, about a minute"),
            run::cargo()
                .args(linker_arguments(llvm).split(' '))
                .arg("--root")
                .arg(folder)
                .arg("--target-dir")
                .arg(folder.join("target"))
                // Meant for this repository's crates, if set at all.
                .env_remove("RUSTFLAGS")
                .env_remove("CARGO_ENCODED_RUSTFLAGS")
                .env("LLVM_PREFIX", format!("/usr/lib/llvm-{llvm}"))
                .current_dir(folder),
        )?;
        let built = folder.join("target");
        fs::remove_dir_all(&built).with_context(|| format!("removing {}", built.display()))
    })?;
    if !runs() {
        bail!(
            "bpf-linker was built into {} but does not run: try `ldd` on it",
            cache.join(linker_folder(llvm)).display()
        );
    }
    Ok(())
}

fn linker_folder(llvm: u32) -> String {
    format!("bpf-linker-{BPF_LINKER_VERSION}-llvm-{llvm}")
}

/// The compiler that apt can download.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DebianCompiler {
    /// The version of the packages.
    pub(crate) version: String,
    /// The major version of the LLVM they are linked to.
    pub(crate) llvm: u32,
}

impl DebianCompiler {
    /// The newest one that apt knows, with a `core` for eBPF.
    pub(crate) fn offered() -> Option<Self> {
        let version = apt::field("libstd-rust-web-dev-bpf", "Version")?;
        let depends = apt::field(&standard_library(&version)?, "Depends")?;
        Some(Self {
            llvm: linked_llvm(&depends)?,
            version,
        })
    }

    /// The library it is linked to.
    pub(crate) fn library(&self) -> String {
        format!("libllvm{}", self.llvm)
    }

    /// Unpacks it into the cache, unless it is there and runs. Its packages conflict with those of Debian's ordinary `rustc`,
    /// so they are not installed.
    ///
    /// # Errors
    ///
    /// The packages cannot be downloaded or unpacked, or the compiler does not run.
    pub(crate) fn unpack(&self, cache: &Path) -> Result<()> {
        let name = format!("rustc-web-{}", self.version);
        if debian(cache.join(&name)).is_some() {
            return Ok(());
        }
        let packages: Vec<String> = [
            "rustc-web",
            &standard_library(&self.version).context("no version number")?,
            "libstd-rust-web-dev",
            "libstd-rust-web-dev-bpf",
        ]
        .iter()
        .map(|name| format!("{name}={}", self.version))
        .collect();
        install_into(cache, &name, |folder| apt::unpack(&packages, folder))?;
        if debian(cache.join(&name)).is_none() {
            bail!(
                "the compiler in {} does not run: try `ldd` on tree/usr/bin/rustc there",
                cache.join(&name).display()
            );
        }
        Ok(())
    }
}

/// `1.96.0+dfsg1-1~deb12u2` has its library in `libstd-rust-web-1.96`.
fn standard_library(version: &str) -> Option<String> {
    let mut parts = version.split('.');
    Some(format!(
        "libstd-rust-web-{}.{}",
        parts.next()?,
        parts.next()?
    ))
}

/// The LLVM among a package's dependencies.
fn linked_llvm(depends: &str) -> Option<u32> {
    depends.split(',').find_map(|dependency| {
        let digits = dependency.trim().strip_prefix("libllvm")?;
        digits.split(' ').next()?.parse().ok()
    })
}

/// Prefix of what is not finished. A setup that was killed leaves such a folder; the next one
/// removes it, which is safe because it holds the cache's lock.
const UNFINISHED: &str = "unfinished-";

/// Makes a folder of the cache whole or not at all.
pub(crate) fn install_into(
    cache: &Path,
    name: &str,
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let unfinished = cache.join(format!("{UNFINISHED}{name}"));
    fs::create_dir_all(&unfinished).with_context(|| format!("making {}", unfinished.display()))?;
    let outcome = fill(&unfinished).and_then(|()| {
        let whole = cache.join(name);
        if whole.exists() {
            fs::remove_dir_all(&whole)
                .with_context(|| format!("removing the broken {}", whole.display()))?;
        }
        fs::rename(&unfinished, &whole).with_context(|| format!("making {}", whole.display()))
    });
    if outcome.is_err() {
        // The failure to build is the one to report.
        let _ = fs::remove_dir_all(&unfinished);
    }
    outcome
}

/// Removes what a killed setup left.
///
/// # Errors
///
/// A left-over cannot be removed.
pub(crate) fn remove_unfinished(cache: &Path) -> Result<()> {
    for folder in folders(cache, UNFINISHED) {
        fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    Ok(())
}

pub(crate) fn folders(cache: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(cache) else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .collect()
}

#[cfg(test)]
mod tests;
