//! The initramfs of a guest: its program, busybox and the modules, as a cpio archive in the `newc`
//! form (`Documentation/driver-api/early-userspace/buffer-format.rst` of the kernel).

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use super::kernel::Kernel;
use crate::setup;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
/// Ends an archive.
const TRAILER: &str = "TRAILER!!!";

/// Makes the archive; its first program is `init`.
///
/// # Errors
///
/// A file of it cannot be read.
pub(crate) fn build(init: &Path, kernel: &Kernel) -> Result<Vec<u8>> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("reading {}", path.display()));
    let busybox = setup::on_path(setup::BUSYBOX).context("busybox is not on PATH")?;
    let mut archive = Archive::default();
    archive.add("bin", DIRECTORY, &[])?;
    archive.add("bin/busybox", PROGRAM, &read(&busybox)?)?;
    archive.add("init", PROGRAM, &read(init)?)?;
    archive.add("modules", DIRECTORY, &[])?;
    // PID 1 loads them by the order of their names.
    for (number, module) in kernel.modules.iter().enumerate() {
        archive.add(&format!("modules/{number:03}.ko"), FILE, module)?;
    }
    archive.finish()
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    inodes: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, contents: &[u8]) -> Result<()> {
        self.inodes += 1;
        self.entry(name, mode, self.inodes, contents)
    }

    fn finish(mut self) -> Result<Vec<u8>> {
        self.entry(TRAILER, 0, 0, &[])?;
        Ok(self.bytes)
    }

    fn entry(&mut self, name: &str, mode: u32, inode: u32, contents: &[u8]) -> Result<()> {
        let size = u32::try_from(contents.len()).with_context(|| format!("{name} is too big"))?;
        let name_size = u32::try_from(name.len() + 1).context("a name is too long")?;
        let links = 1;
        // User, group, time and the numbers of devices are 0, and so is the checksum.
        let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn cpio_reads_what_is_written() -> Result<()> {
        let mut archive = Archive::default();
        archive.add("folder", DIRECTORY, &[])?;
        archive.add("folder/odd", PROGRAM, b"12345")?;
        archive.add("empty", FILE, &[])?;
        let bytes = archive.finish()?;
        assert_eq!(bytes.len() % 4, 0);
        // Setup has seen to it that busybox is here.
        let mut child = Command::new(setup::BUSYBOX)
            .args(["cpio", "-t", "-v"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        child.stdin.take().context("no input")?.write_all(&bytes)?;
        let output = child.wait_with_output()?;
        let listed = String::from_utf8(output.stdout)?;
        let shape: Vec<(&str, &str, &str)> = listed
            .lines()
            .map(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                match words[..] {
                    [mode, _, size, .., name] => (mode, size, name),
                    _ => ("", "", line),
                }
            })
            .collect();
        assert_eq!(
            shape,
            [
                ("drwxr-xr-x", "0", "folder"),
                ("-rwxr-xr-x", "5", "folder/odd"),
                ("-rw-r--r--", "0", "empty"),
            ]
        );
        Ok(())
    }
}
