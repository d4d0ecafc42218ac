//! Embeds the eBPF object that `cargo xtask build` leaves in `target/bpf/monitor.o`.
//!
//! Where there is none, an empty file stands in, so that everything but the sensor can be built and
//! tested on a machine without the eBPF toolchain. `CARGO_TARGET_DIR` is not honoured, neither here
//! nor by xtask: the object has one place, relative to the workspace.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
};

fn main() -> Result<(), Box<dyn Error>> {
    let own = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("not run by cargo")?);
    let workspace = own.parent().ok_or("monitor lies outside its workspace")?;
    let object = workspace.join("target/bpf/monitor.o");
    let embedded = Path::new(&env::var_os("OUT_DIR").ok_or("not run by cargo")?).join("monitor.o");

    let bytes = if object.exists() {
        println!("cargo::rerun-if-changed={}", object.display());
        fs::read(&object).map_err(|error| format!("reading {}: {error}", object.display()))?
    } else {
        // Cargo runs a script at every build whose named file does not exist; the folder exists
        // and changes when the object arrives.
        let folder = workspace.join("target/bpf");
        fs::create_dir_all(&folder)
            .map_err(|error| format!("making {}: {error}", folder.display()))?;
        println!("cargo::rerun-if-changed={}", folder.display());
        Vec::new()
    };
    fs::write(&embedded, bytes)
        .map_err(|error| format!("writing {}: {error}", embedded.display()))?;
    println!(
        "cargo::rustc-env=MONITOR_EBPF_OBJECT={}",
        embedded.display()
    );
    Ok(())
}
