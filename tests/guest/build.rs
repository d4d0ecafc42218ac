//! Gathers the sources of the eBPF programs, whose comments name the kernel's prototypes.

use std::{env, fs, path::Path};

use anyhow::{Context as _, Result};

const SOURCES: &str = "../../monitor-ebpf/src";

fn main() -> Result<()> {
    println!("cargo::rerun-if-changed={SOURCES}");
    let mut files = fs::read_dir(SOURCES)
        .with_context(|| format!("reading {SOURCES}"))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()?;
    files.retain(|file| file.extension().is_some_and(|name| name == "rs"));
    files.sort();
    let mut text = String::new();
    for file in files {
        text +=
            &fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    }
    let out = env::var_os("OUT_DIR").context("cargo sets OUT_DIR")?;
    fs::write(Path::new(&out).join("programs.rs"), text).context("writing the sources")
}
