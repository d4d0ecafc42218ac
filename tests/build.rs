//! Builds the programs that run inside containers. The probe must be linked statically: a setting
//! of the compiler that cargo cannot give one package of a workspace. Hence a cargo of its own.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

fn main() -> Result<()> {
    let out = PathBuf::from(env::var_os("OUT_DIR").context("cargo sets OUT_DIR")?).join("probe");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=probe");
    let status = Command::new(env::var_os("CARGO").context("cargo sets CARGO")?)
        .args([
            "build",
            "--quiet",
            "--manifest-path",
            "probe/Cargo.toml",
            "--target-dir",
        ])
        .arg(&out)
        // Both are clippy's when clippy runs us, and would lint instead of build.
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("CARGO_BUILD_TARGET")
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
        // Small, since it is copied and hashed hundreds of times.
        .env("CARGO_PROFILE_DEV_OPT_LEVEL", "1")
        .env("CARGO_PROFILE_DEV_STRIP", "symbols")
        .status()
        .context("cannot start cargo to build the probe")?;
    ensure!(status.success(), "building the probe failed: {status}");
    println!(
        "cargo::rustc-env=PROBE={}",
        out.join("debug/probe").display()
    );
    dynamic(&out)
}

/// The program that loads libraries: one file, linked as the compiler does by default.
fn dynamic(out: &Path) -> Result<()> {
    let program = out.join("dynamic");
    let status = Command::new(env::var_os("RUSTC").context("cargo sets RUSTC")?)
        .args(["--edition=2024", "-O", "-Cstrip=symbols", "-o"])
        .arg(&program)
        .arg("probe/dynamic.rs")
        .status()
        .context("cannot start rustc to build probe/dynamic.rs")?;
    ensure!(
        status.success(),
        "building probe/dynamic.rs failed: {status}"
    );
    println!("cargo::rustc-env=DYNAMIC={}", program.display());
    Ok(())
}
