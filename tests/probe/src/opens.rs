//! Ways to open a file, and many opens.

use std::{
    arch::asm,
    ffi::{CString, OsStr},
    fs::{self, File, OpenOptions},
    io::{self, IoSliceMut},
    num::NonZeroUsize,
    os::{
        fd::{AsRawFd as _, RawFd},
        unix::{ffi::OsStrExt as _, net::UnixStream},
    },
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    cmsg_space, libc,
    sys::{
        mman::{MapFlags, ProtFlags, mmap_anonymous},
        socket::{ControlMessageOwned, MsgFlags, recvmsg},
    },
};

/// Files of [`at_rate`]: more than the kernel side remembers.
const FILES: usize = 100_000;

/// Opens and closes one file again and again.
pub(crate) fn repeat(path: &OsStr, count: usize) -> Result<()> {
    for _ in 0..count {
        File::open(path).with_context(|| format!("cannot open {path:?}"))?;
    }
    Ok(())
}

/// Makes `files` files in a directory and opens each `rounds` times, one after the other.
pub(crate) fn many(directory: &OsStr, files: usize, rounds: usize) -> Result<()> {
    let directory = Path::new(directory);
    for round in 0..=rounds {
        for file in 0..files {
            let path = directory.join(file.to_string());
            let opened = if round == 0 {
                OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(&path)
            } else {
                File::open(&path)
            };
            opened.with_context(|| format!("cannot open {}", path.display()))?;
        }
    }
    Ok(())
}

/// Opens one file so often, each time under another name that is one of credentials, and so many a
/// second: the cheapest thing of which each is an alert of its own.
pub(crate) fn credentials(directory: &OsStr, count: usize, rate: usize) -> Result<()> {
    /// Opens between two looks at the clock.
    const BATCH: usize = 20;
    let directory = Path::new(directory);
    let home = |number: usize| directory.join(format!("home{number}"));
    fs::create_dir_all(home(0).join(".kube"))?;
    File::create(home(0).join(".kube/config.new"))?;
    // Not under its name: that would be one more.
    fs::rename(
        home(0).join(".kube/config.new"),
        home(0).join(".kube/config"),
    )?;
    let start = Instant::now();
    for number in 1..=count {
        fs::rename(home(number - 1), home(number))?;
        let path = home(number).join(".kube/config");
        File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        if number % BATCH == 0 {
            let due = Duration::from_secs(1) * u32::try_from(number)? / u32::try_from(rate)?;
            thread::sleep(due.saturating_sub(start.elapsed()));
        }
    }
    Ok(())
}

/// Opens so many files a second of a directory for so many seconds, none of them soon again.
pub(crate) fn at_rate(directory: &OsStr, rate: usize, seconds: usize) -> Result<()> {
    /// Opens between two looks at the clock.
    const BATCH: usize = 20;
    many(directory, FILES, 0)?;
    let directory = Path::new(directory);
    let start = Instant::now();
    for batch in 0..rate * seconds / BATCH {
        for file in 0..BATCH {
            let path = directory.join(((batch * BATCH + file) % FILES).to_string());
            File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        }
        let due =
            Duration::from_secs(1) * u32::try_from((batch + 1) * BATCH)? / u32::try_from(rate)?;
        thread::sleep(due.saturating_sub(start.elapsed()));
    }
    Ok(())
}

/// By `openat2`.
pub(crate) fn openat2(path: &OsStr) -> Result<()> {
    let path = CString::new(path.as_bytes())?;
    // SAFETY: plain numbers.
    let how: libc::open_how = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers live as long as the call; the size is that of what is pointed to.
    let descriptor = unsafe {
        libc::syscall(
            libc::SYS_openat2,
            libc::AT_FDCWD,
            path.as_ptr(),
            &raw const how,
            size_of::<libc::open_how>(),
        )
    };
    told(descriptor, "openat2")
}

/// By `creat`, which cuts the file to nothing.
pub(crate) fn creat(path: &OsStr) -> Result<()> {
    let path = CString::new(path.as_bytes())?;
    // SAFETY: the path lives as long as the call.
    let descriptor = unsafe { libc::syscall(libc::SYS_creat, path.as_ptr(), 0o600) };
    told(descriptor, "creat")
}

/// By `open` of the 32-bit system calls.
pub(crate) fn int80(path: &OsStr) -> Result<()> {
    const OPEN: i32 = 5;
    let path = CString::new(path.as_bytes())?;
    let bytes = path.as_bytes_with_nul();
    let length = NonZeroUsize::new(bytes.len()).context("the path is empty")?;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: new memory of this process, which the system call can reach by 32 bits.
    let low = unsafe {
        mmap_anonymous(
            None,
            length,
            protection,
            MapFlags::MAP_PRIVATE | MapFlags::MAP_32BIT,
        )
    }
    .context("no memory below 4 GiB")?;
    // SAFETY: the mapping is as long as what is copied.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), low.as_ptr().cast(), bytes.len()) };
    let mut result: i32 = OPEN;
    // SAFETY: the system call reads the path and gives a descriptor; rbx, which the compiler keeps
    // for itself, is put back.
    unsafe {
        asm!(
            "xchg rbx, {path}",
            "int 0x80",
            "xchg rbx, {path}",
            path = inout(reg) low.as_ptr() as u64 => _,
            inout("eax") result,
            in("rcx") 0u64,
            in("rdx") 0u64,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    ensure!(
        result >= 0,
        "open by int 0x80: {}",
        io::Error::from_raw_os_error(-result)
    );
    Ok(())
}

/// By `name_to_handle_at` and `open_by_handle_at`.
pub(crate) fn by_handle(path: &OsStr) -> Result<()> {
    const HANDLE_BYTES: u32 = 128;
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        handle: [u8; HANDLE_BYTES as usize],
    }
    let directory = File::open(
        Path::new(path)
            .parent()
            .context("a path without a directory")?,
    )?;
    let path = CString::new(path.as_bytes())?;
    let mut handle = Handle {
        bytes: HANDLE_BYTES,
        kind: 0,
        handle: [0; HANDLE_BYTES as usize],
    };
    let mut mount: i32 = 0;
    // SAFETY: the handle has room for as many bytes as it says.
    let named = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            libc::AT_FDCWD,
            path.as_ptr(),
            &raw mut handle,
            &raw mut mount,
            0,
        )
    };
    told(named, "name_to_handle_at")?;
    // SAFETY: the handle is what the kernel made of it.
    let descriptor = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            std::os::fd::AsRawFd::as_raw_fd(&directory),
            &raw mut handle,
            libc::O_RDONLY,
        )
    };
    told(descriptor, "open_by_handle_at")
}

/// Receives an open file over AF_UNIX.
pub(crate) fn receive(path: &OsStr) -> Result<()> {
    let stream =
        UnixStream::connect(path).with_context(|| format!("cannot connect to {path:?}"))?;
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let mut space = cmsg_space!(RawFd);
    let flags = MsgFlags::empty();
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), flags)
        .context("cannot receive")?;
    let received = message.cmsgs()?.next();
    ensure!(
        matches!(received, Some(ControlMessageOwned::ScmRights(_))),
        "no file was received"
    );
    Ok(())
}

/// Takes a descriptor from another process.
pub(crate) fn take(process: &OsStr, descriptor: &OsStr) -> Result<()> {
    let number = |word: &OsStr| -> Result<i64> {
        let word = word.to_str().context("a number is no text")?;
        Ok(word.parse()?)
    };
    let (process, descriptor) = (number(process)?, number(descriptor)?);
    // SAFETY: the call takes numbers only.
    let process = unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) };
    told(process, "pidfd_open")?;
    // SAFETY: likewise.
    let taken = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process, descriptor, 0) };
    told(taken, "pidfd_getfd")
}

fn told(result: i64, call: &str) -> Result<()> {
    ensure!(result >= 0, "{call}: {}", io::Error::last_os_error());
    Ok(())
}
