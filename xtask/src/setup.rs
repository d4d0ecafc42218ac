//! What the build and the tests need, what of it is missing, and how it comes here.

use std::{
    collections::BTreeSet,
    env,
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    unistd::Uid,
};

use crate::{
    apt, run,
    toolchain::{self, Compiler, DebianCompiler, Linker, Toolchain},
    workspace,
};

/// A program that must run here.
struct Tool {
    program: &'static str,
    /// Arguments that make it end at once with status 0.
    probe: &'static [&'static str],
    /// The Debian package that brings it.
    package: &'static str,
}

const TOOLS: [Tool; 12] = [
    tool("containerd", &["--version"], "containerd"),
    tool("containerd-shim-runc-v2", &["-v"], "containerd"),
    tool("ctr", &["--version"], "containerd"),
    tool("runc", &["--version"], "runc"),
    // Runs the containers in guests.
    tool("crun", &["--version"], "crun"),
    // containerd-client's build script runs it.
    tool("protoc", &["--version"], "protobuf-compiler"),
    tool(BUSYBOX, &["--help"], "busybox-static"),
    // Debian's own, wherever another may come first: its files go into images.
    tool(PYTHON, &["--version"], "python3-minimal"),
    // What the client in docs/clients is made of.
    tool(PYTHON, &["-c", "import grpc"], "python3-grpcio"),
    tool(
        PYTHON,
        &["-c", "import google.protobuf"],
        "python3-protobuf",
    ),
    tool(
        "test",
        &["-x", "/usr/bin/grpc_python_plugin"],
        "protobuf-compiler-grpc",
    ),
    tool(
        "test",
        &["-e", "/usr/include/google/protobuf/struct.proto"],
        "libprotobuf-dev",
    ),
];

const PYTHON: &str = "/usr/bin/python3";

/// Goes into the tests' images, which hold no libraries.
pub(crate) const BUSYBOX: &str = "busybox";

/// What bpf-linker is recommended with where no compiler is known yet that could tell.
const ASSUMED_LLVM: u32 = 22;

const fn tool(
    program: &'static str,
    probe: &'static [&'static str],
    package: &'static str,
) -> Tool {
    Tool {
        program,
        probe,
        package,
    }
}

/// What is here.
#[derive(Default)]
struct Found {
    /// Packages of the tools that do not run.
    tools_missing: BTreeSet<String>,
    compilers: Vec<Compiler>,
    linkers: Vec<Linker>,
}

/// What can be had.
#[derive(Default)]
struct Offer {
    compiler: Option<DebianCompiler>,
    /// LLVM versions whose development files apt can install.
    llvm: Vec<u32>,
}

/// What is to be done.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    /// To be installed, of which some may be there already.
    packages: BTreeSet<String>,
    /// To be unpacked into the cache.
    compiler: Option<DebianCompiler>,
    /// To be built into the cache, with this LLVM.
    linker: Option<u32>,
    /// What setup cannot do and a person has to, one sentence each.
    by_hand: Vec<String>,
}

/// Finds what is missing and installs it.
///
/// # Errors
///
/// Something is missing that cannot be installed here; the error says what to do by hand.
pub(crate) fn run() -> Result<Toolchain> {
    let cache = workspace::cache()?;
    let found = look(&cache);
    let toolchain = match found.toolchain() {
        Some(toolchain) if found.tools_missing.is_empty() => toolchain,
        _ => {
            install(&cache)?;
            let found = look(&cache);
            if !found.tools_missing.is_empty() {
                bail!(
                    "installed, but what they bring does not run: {}",
                    words(&found.tools_missing)
                );
            }
            found
                .toolchain()
                .context("the eBPF compiler and linker are installed but do not fit each other")?
        }
    };
    eprintln!("xtask: eBPF toolchain: {}", toolchain.describe());
    Ok(toolchain)
}

fn install(cache: &Path) -> Result<()> {
    let _lock = lock(cache)?;
    toolchain::remove_unfinished(cache)?;
    let has_apt = apt::is_here();
    let root = Uid::effective().is_root();
    let mut plan = plan(cache, has_apt);
    if has_apt && root && plan.needs_package_lists() {
        // Old lists name versions that the mirror no longer has; a fresh machine has none.
        apt::update();
        plan = self::plan(cache, has_apt);
    }
    if !plan.by_hand.is_empty() || !(plan.packages.is_empty() || has_apt && root) {
        bail!(instructions(&plan, has_apt));
    }
    if !plan.packages.is_empty() {
        apt::install(&plan.packages)?;
    }
    if let Some(compiler) = &plan.compiler {
        compiler.unpack(cache)?;
    }
    if let Some(llvm) = plan.linker {
        toolchain::build_linker(cache, llvm)?;
    }
    Ok(())
}

fn plan(cache: &Path, has_apt: bool) -> Plan {
    let offer = if has_apt {
        Offer {
            compiler: DebianCompiler::offered(),
            llvm: toolchain::offered_llvm(),
        }
    } else {
        Offer::default()
    };
    let mut plan = missing(&look(cache), &offer);
    if has_apt {
        let installed = apt::installed(&plan.packages);
        // A package of a tool that does not run is installed anew, whatever dpkg believes.
        plan.packages.retain(|name| {
            !installed.contains(name) || TOOLS.iter().any(|tool| tool.package == name)
        });
    }
    plan
}

impl Found {
    fn toolchain(&self) -> Option<Toolchain> {
        toolchain::fit(&self.compilers, &self.linkers)
    }
}

impl Plan {
    fn needs_package_lists(&self) -> bool {
        !self.packages.is_empty() || self.compiler.is_some() || !self.by_hand.is_empty()
    }

    /// Adds a linker for a compiler with this LLVM, unless one is there. False if none can be had.
    fn add_linker(&mut self, compiler_llvm: u32, found: &Found, offer: &Offer) -> bool {
        if found
            .linkers
            .iter()
            .any(|linker| linker.llvm >= compiler_llvm)
        {
            return true;
        }
        let Some(llvm) = toolchain::linker_llvm(compiler_llvm, &offer.llvm) else {
            return false;
        };
        self.packages.extend(toolchain::linker_packages(llvm));
        self.linker = Some(llvm);
        true
    }
}

fn missing(found: &Found, offer: &Offer) -> Plan {
    let mut plan = Plan {
        packages: found.tools_missing.clone(),
        ..Plan::default()
    };
    if found.toolchain().is_some() {
        return plan;
    }
    for compiler in &found.compilers {
        if plan.add_linker(compiler.llvm, found, offer) {
            return plan;
        }
    }
    if let Some(compiler) = &offer.compiler
        && plan.add_linker(compiler.llvm, found, offer)
    {
        plan.packages.insert(compiler.library());
        plan.compiler = Some(compiler.clone());
        return plan;
    }
    if found.compilers.is_empty() {
        plan.by_hand.push(
            "a Rust compiler for eBPF: rustup toolchain install nightly --component rust-src"
                .to_owned(),
        );
    }
    let llvm = found
        .compilers
        .first()
        .map_or(ASSUMED_LLVM, |compiler| compiler.llvm);
    plan.by_hand.push(format!(
        "LLVM {llvm} with its development files (https://apt.llvm.org has packages), then: {}",
        toolchain::linker_by_hand(llvm)
    ));
    plan
}

/// What a person has to do, on a machine where setup may not or cannot.
fn instructions(plan: &Plan, has_apt: bool) -> String {
    let mut text = String::from("the build and the tests need what is missing on this machine:");
    if !plan.packages.is_empty() {
        let packages = words(&plan.packages);
        text += &if has_apt {
            format!(
                "\n  as root: apt-get update && apt-get install -y --no-install-recommends {packages}"
            )
        } else {
            format!("\n  what Debian's packages of these names bring, on PATH: {packages}")
        };
    }
    for step in &plan.by_hand {
        text += "\n  ";
        text += step;
    }
    text + "\nthen run `cargo xtask setup` again"
}

fn words(names: &BTreeSet<String>) -> String {
    names
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(" ")
}

fn look(cache: &Path) -> Found {
    Found {
        tools_missing: TOOLS
            .iter()
            .filter(|tool| !tool.runs())
            .map(|tool| tool.package.to_owned())
            .collect(),
        compilers: toolchain::compilers(cache),
        linkers: toolchain::linkers(cache),
    }
}

impl Tool {
    fn runs(&self) -> bool {
        run::answer(Command::new(self.program).args(self.probe)).is_some()
            && (self.program != BUSYBOX || is_static(self.program))
    }
}

/// The file that a program's name stands for.
pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// Whether a program on `PATH` runs without libraries.
fn is_static(program: &str) -> bool {
    on_path(program)
        .and_then(|file| File::open(file).ok())
        .is_some_and(|file| {
            // The name of the dynamic loader, if there is one, stands right behind the headers.
            let mut head = Vec::new();
            file.take(4096).read_to_end(&mut head).is_ok() && !contains(&head, b"/ld-")
        })
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Keeps a second setup from working in the cache at the same time.
pub(crate) fn lock(cache: &Path) -> Result<Flock<File>> {
    fs::create_dir_all(cache).with_context(|| format!("making the cache {}", cache.display()))?;
    let path = cache.join("lock");
    let file = File::create(&path).with_context(|| format!("opening {}", path.display()))?;
    let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(held) => return Ok(held),
        Err((file, Errno::EWOULDBLOCK)) => file,
        Err((_, error)) => {
            return Err(error).with_context(|| format!("locking {}", path.display()));
        }
    };
    eprintln!(
        "xtask: waiting for another setup that holds {}",
        path.display()
    );
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .with_context(|| format!("locking {}", path.display()))
}

#[cfg(test)]
mod tests;
