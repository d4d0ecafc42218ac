//! A bpffs for the pins of one test.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::process::output;

/// A bpffs of its own: what is pinned there goes with it.
#[derive(Debug)]
pub struct Bpffs(PathBuf);

impl Bpffs {
    /// Mounts it at a path that is made for it.
    pub fn mount(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path)?;
        output(Command::new("mount").args(["-t", "bpf", "bpf"]).arg(&path))?;
        Ok(Self(path))
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        // Lazily: a killed daemon may not be gone yet.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}
