//! The initramfs of a guest: its program, busybox and the modules, as a cpio archive in the `newc`
//! form (`Documentation/driver-api/early-userspace/buffer-format.rst` of the kernel).

use std::{
    collections::BTreeSet,
    fs,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::kernel::Kernel;
use crate::{run, setup};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const LINK: u32 = 0o120_777;
/// Knows which libraries a program needs.
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";
/// Ends an archive.
const TRAILER: &str = "TRAILER!!!";

/// Makes the archive; its first program is `init`.
///
/// # Errors
///
/// A file of it cannot be read.
pub(crate) fn build(init: &Path, extra: &Extra, kernel: &Kernel) -> Result<Vec<u8>> {
    let busybox = setup::on_path(setup::BUSYBOX).context("busybox is not on PATH")?;
    let mut archive = Archive::default();
    archive.add_at(Path::new("/bin/busybox"), &read(&busybox)?)?;
    archive.add_at(Path::new("/init"), &read(init)?)?;
    for program in &extra.programs {
        let name = program.file_name().context("a program without a name")?;
        archive.add_at(&Path::new("/bin").join(name), &read(program)?)?;
    }
    let programs = extra.programs.iter().chain(&extra.files);
    let libraries = libraries(programs.map(PathBuf::as_path).chain([init]));
    for file in extra.files.iter().chain(&libraries) {
        archive.add_file(file)?;
    }
    archive.add("modules", DIRECTORY, &[])?;
    // PID 1 loads them by the order of their names.
    for (number, module) in kernel.modules.iter().enumerate() {
        archive.add(&format!("modules/{number:03}.ko"), FILE, module)?;
    }
    archive.finish()
}

/// What a guest holds beside its own program.
#[derive(Debug, Default)]
pub(crate) struct Extra {
    /// Go to `/bin`.
    pub(crate) programs: Vec<PathBuf>,
    /// Keep their paths.
    pub(crate) files: Vec<PathBuf>,
}

/// The libraries that programs among these are linked to, as the loader finds them.
fn libraries<'a>(programs: impl Iterator<Item = &'a Path>) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for program in programs {
        // It refuses what is linked statically or is no program: those need none.
        let listed = run::answer(Command::new(LOADER).arg("--list").arg(program));
        let listed = listed.unwrap_or_default();
        let paths = listed
            .split_whitespace()
            .filter(|word| word.starts_with('/'));
        found.extend(paths.map(PathBuf::from));
    }
    found
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    inodes: u32,
    added: BTreeSet<PathBuf>,
}

impl Archive {
    /// Adds a file of this machine under its own path, and what it leads to if it is a link.
    fn add_file(&mut self, path: &Path) -> Result<()> {
        if self.added.contains(path) {
            return Ok(());
        }
        let Ok(target) = fs::read_link(path) else {
            return self.add_at(path, &read(path)?);
        };
        self.add_parents(path)?;
        self.added.insert(path.to_owned());
        self.add(relative(path)?, LINK, target.as_os_str().as_bytes())?;
        let parent = path.parent().context("a link without a folder")?;
        self.add_file(&parent.join(target))
    }

    /// Adds a program at an absolute path, and the folders above it.
    fn add_at(&mut self, path: &Path, contents: &[u8]) -> Result<()> {
        if !self.added.insert(path.to_owned()) {
            return Ok(());
        }
        self.add_parents(path)?;
        self.add(relative(path)?, PROGRAM, contents)
    }

    fn add_parents(&mut self, path: &Path) -> Result<()> {
        let mut parents: Vec<&Path> = path.ancestors().skip(1).collect();
        parents.pop();
        for parent in parents.into_iter().rev() {
            if self.added.insert(parent.to_owned()) {
                self.add(relative(parent)?, DIRECTORY, &[])?;
            }
        }
        Ok(())
    }

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

/// As archives have it.
fn relative(path: &Path) -> Result<&str> {
    let name = path.strip_prefix("/").ok().and_then(Path::to_str);
    name.with_context(|| format!("{} cannot be put into an archive", path.display()))
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
