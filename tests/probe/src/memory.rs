//! What is done to code and files through mappings of memory.

use std::{ffi::OsStr, fs::OpenOptions, num::NonZeroUsize, os::fd::AsFd, ptr::NonNull};

use anyhow::{Context as _, Result};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, mprotect, munmap};

/// One page is enough: it is the mapping that counts.
const LENGTH: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// Maps the first page of a file as a loader maps code.
pub(crate) fn map_executable(file: &impl AsFd) -> Result<()> {
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_EXEC;
    // SAFETY: a new mapping at an address that the kernel chooses; nothing is run from it.
    unsafe { mmap(None, LENGTH, protection, MapFlags::MAP_PRIVATE, file, 0) }
        .context("cannot map the file executable")
        .map(drop)
}

/// Maps the first page of a file as a loader maps code, and unmaps it, `count` times.
pub(crate) fn map_executable_often(file: &impl AsFd, count: usize) -> Result<()> {
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_EXEC;
    for _ in 0..count {
        // SAFETY: a new mapping at an address that the kernel chooses, which nobody else has.
        unsafe {
            mmap(None, LENGTH, protection, MapFlags::MAP_PRIVATE, file, 0)
                .and_then(|memory| munmap(memory, LENGTH.get()))
        }
        .context("cannot map the file executable")?;
    }
    Ok(())
}

/// Maps the first page of a file, writes to the copy that it has of it, and makes that executable.
pub(crate) fn protect_written(file: &impl AsFd) -> Result<()> {
    let writable = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping at an address that the kernel chooses.
    let memory = unsafe { mmap(None, LENGTH, writable, MapFlags::MAP_PRIVATE, file, 0) }
        .context("cannot map the file")?;
    write_return(memory.cast());
    // SAFETY: the mapping above, which nobody else has; nothing is run from it.
    unsafe {
        mprotect(
            memory,
            LENGTH.get(),
            ProtFlags::PROT_READ | ProtFlags::PROT_EXEC,
        )
    }
    .context("cannot make the mapping executable")
}

/// Writes an instruction into memory without a file, makes the memory executable and runs it.
pub(crate) fn execute_written() -> Result<()> {
    let writable = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping at an address that the kernel chooses.
    let memory = unsafe { mmap_anonymous(None, LENGTH, writable, MapFlags::MAP_PRIVATE) }
        .context("cannot map memory")?
        .cast::<u8>();
    write_return(memory);
    // SAFETY: the mapping above, which nobody else has.
    unsafe {
        mprotect(
            memory.cast(),
            LENGTH.get(),
            ProtFlags::PROT_READ | ProtFlags::PROT_EXEC,
        )
    }
    .context("cannot make memory executable")?;
    // SAFETY: it holds a function without arguments that returns at once.
    unsafe { std::mem::transmute::<NonNull<u8>, extern "C" fn()>(memory)() };
    Ok(())
}

/// The instruction that returns from a function.
fn write_return(memory: NonNull<u8>) {
    #[cfg(target_arch = "x86_64")]
    let code = [0xc3_u8];
    #[cfg(target_arch = "aarch64")]
    let code = 0xd65f_03c0_u32.to_le_bytes();
    // SAFETY: a writable page of our own, longer than the instruction.
    unsafe { memory.cast().write(code) };
}

/// Changes the last byte of a file without a write: its times may then stay as they are.
pub(crate) fn flip_last_byte(path: &OsStr) -> Result<()> {
    let opening = || format!("cannot open {path:?} for writing");
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.with_context(opening)?;
    let length = usize::try_from(file.metadata()?.len())?;
    let length = NonZeroUsize::new(length).with_context(|| format!("{path:?} is empty"))?;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping at an address that the kernel chooses, no longer than the file.
    let start = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, &file, 0) }
        .with_context(|| format!("cannot map {path:?}"))?;
    // SAFETY: within the mapping; other processes that map the file expect its bytes to change.
    unsafe {
        let last = start.cast::<u8>().add(length.get() - 1);
        last.write_volatile(!last.read_volatile());
        munmap(start, length.get()).context("cannot unmap")
    }
}
