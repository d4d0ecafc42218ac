//! A filesystem that a test can fill.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};

use crate::process::output;

/// A tmpfs of a few bytes, until it is dropped.
#[derive(Debug)]
pub struct Small(PathBuf);

impl Small {
    /// Mounts it at a directory, which is made if it is not there.
    pub fn mount(path: &Path, bytes: u32) -> Result<Self> {
        fs::create_dir_all(path)?;
        let size = format!("size={bytes},mode=0700");
        output(
            Command::new("mount")
                .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
                .arg(path),
        )?;
        Ok(Self(path.to_owned()))
    }

    /// Writes into a file until there is no more room, and gives the file.
    pub fn fill(&self) -> Result<PathBuf> {
        let filler = self.0.join("filler");
        let room = fs::write(&filler, vec![0; 16 << 20]);
        ensure!(room.is_err(), "{} has room for 16 MiB", self.0.display());
        Ok(filler)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Lazily: a killed daemon may not be gone yet.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}
