//! The first process of a test's container: enters it, then takes one step.
//!
//! A program of its own rather than a fork of the test process, which has threads.

use std::{
    convert::Infallible,
    env,
    ffi::{CString, OsStr, OsString, c_void},
    fs::{self, File},
    io::Write as _,
    num::NonZeroUsize,
    os::{
        fd::AsFd,
        unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    },
    path::Path,
    process::ExitCode,
    ptr::NonNull,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    fcntl::AtFlags,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::{
        memfd::{MFdFlags, memfd_create},
        mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, mprotect},
        wait::{WaitStatus, waitpid},
    },
    unistd::{ForkResult, chdir, execv, execveat, fork, getgid, getuid, pivot_root},
};

use crate::container::mount_filesystem;

/// The word on the command line that leads here.
pub const INSIDE: &str = "inside";

const PAGE_BYTES: usize = 4096;

const USAGE: &str = "usage: guest inside ROOT CGROUP_PROCS isolated|direct|host STEP, where STEP is
  run PATH ARGUMENT...       execute PATH
  memfd PATH ARGUMENT...     execute a copy of PATH in memory
  deleted PATH ARGUMENT...   execute a copy of PATH that was removed while open
  deep COUNT LENGTH PATH ARGUMENT...
                             execute a copy of PATH below COUNT directories with names that long
  user-overlay PATH ARGUMENT...
                             execute PATH in an overlay mounted in a user namespace
  map HOW PATH               map PATH executable, HOW is one of
                             mapped      mmap with PROT_EXEC
                             protected   mmap without, then mprotect over it and the page before
                             written     the same of a private mapping that was written
                             memory      a copy of PATH in memory, shared";

/// How a container is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// As the first process of namespaces of its own, and as their child.
    Isolated,
    /// As a child of the host's, with a mount namespace of its own only: what an exec from outside
    /// looks like.
    Direct,
    /// Not at all but for its cgroup: the root stays the host's.
    Host,
}

impl Entry {
    /// Its word on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Isolated => "isolated",
            Self::Direct => "direct",
            Self::Host => "host",
        }
    }
}

/// Enters the container and takes the step; returns only the end of an isolated one.
///
/// # Errors
///
/// A call fails, or the arguments are not as the usage says.
pub fn run(arguments: &[OsString]) -> Result<ExitCode> {
    let [root, cgroup, entry, step @ ..] = arguments else {
        bail!("{USAGE}");
    };
    fs::write(cgroup, "0").with_context(|| format!("entering the cgroup of {cgroup:?}"))?;
    if entry == Entry::Host.word() {
        match take(step)? {}
    }
    if entry == Entry::Direct.word() {
        unshare(CloneFlags::CLONE_NEWNS).context("making a mount namespace")?;
        enter_root(Path::new(root))?;
        match take(step)? {}
    }
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWNET;
    unshare(namespaces).context("making namespaces")?;
    // SAFETY: this process has one thread.
    match unsafe { fork() }.context("forking")? {
        ForkResult::Child => {
            enter_root(Path::new(root))?;
            mount_filesystem("proc", Path::new("/proc"), "")?;
            mount_filesystem("tmpfs", Path::new("/volume"), "mode=0755")?;
            match take(step)? {}
        }
        ForkResult::Parent { child } => match waitpid(child, None)? {
            WaitStatus::Exited(_, 0) => Ok(ExitCode::SUCCESS),
            status => bail!("the step ended with {status:?}"),
        },
    }
}

fn enter_root(root: &Path) -> Result<()> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("making the mounts private")?;
    chdir(root).with_context(|| format!("changing to {}", root.display()))?;
    // The old root comes to lie on top of the new one.
    pivot_root(".", ".").with_context(|| format!("making {} the root", root.display()))?;
    umount2(".", MntFlags::MNT_DETACH).context("unmounting the old root")?;
    chdir("/").context("changing to the root")
}

fn take(step: &[OsString]) -> Result<Infallible> {
    let (name, step) = step.split_first().context(USAGE)?;
    match (name.as_bytes(), step) {
        (b"run", [path, ..]) => execute(path, step),
        (b"memfd", [path, ..]) => {
            let bytes = fs::read(path).with_context(|| format!("reading {path:?}"))?;
            let mut file = File::from(memfd_create(c"program", MFdFlags::MFD_CLOEXEC)?);
            file.write_all(&bytes)?;
            execute_open(&file, step)
        }
        (b"deleted", [path, ..]) => {
            fs::copy(path, "/tmp/deleted").with_context(|| format!("copying {path:?}"))?;
            let file = File::open("/tmp/deleted")?;
            fs::remove_file("/tmp/deleted")?;
            execute_open(&file, step)
        }
        (b"deep", [count, length, step @ ..]) => deep(number(count)?, number(length)?, step),
        (b"user-overlay", [_, ..]) => user_overlay(step),
        (b"map", [how, path]) => {
            map(how, path)?;
            std::process::exit(0)
        }
        _ => bail!("{USAGE}"),
    }
}

fn map(how: &OsStr, path: &OsStr) -> Result<()> {
    let mut file = File::open(path).with_context(|| format!("opening {path:?}"))?;
    let (execute, read) = (ProtFlags::PROT_EXEC, ProtFlags::PROT_READ);
    match how.as_bytes() {
        b"mapped" => mapping(&file, read | execute, MapFlags::MAP_PRIVATE).map(drop),
        b"memory" => {
            let bytes = fs::read(path).with_context(|| format!("reading {path:?}"))?;
            file = File::from(memfd_create(c"code", MFdFlags::MFD_CLOEXEC)?);
            file.write_all(&bytes)?;
            mapping(&file, read | execute, MapFlags::MAP_SHARED).map(drop)
        }
        b"protected" => {
            let at = mapping(&file, read, MapFlags::MAP_PRIVATE)?;
            protect(at, read | execute)
        }
        b"written" => {
            let at = mapping(&file, read | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE)?;
            // SAFETY: the second page is the file's and writable.
            unsafe { at.add(PAGE_BYTES).cast::<u8>().write_volatile(1) };
            protect(at, read | execute)
        }
        _ => bail!("{USAGE}"),
    }
}

/// Maps the first page of a file behind a page of memory that has no file; gives where that is.
fn mapping(file: &File, protection: ProtFlags, flags: MapFlags) -> Result<NonNull<c_void>> {
    let two = NonZeroUsize::MIN.saturating_add(2 * PAGE_BYTES - 1);
    let one = NonZeroUsize::MIN.saturating_add(PAGE_BYTES - 1);
    // SAFETY: the kernel chooses the place of the first, and the second replaces its second half.
    unsafe {
        let at = mmap_anonymous(None, two, ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE)
            .context("mapping memory")?;
        let place = at.add(PAGE_BYTES).addr();
        mmap(
            Some(place),
            one,
            protection,
            flags | MapFlags::MAP_FIXED,
            file,
            0,
        )
        .context("mapping the file")?;
        Ok(at)
    }
}

fn protect(at: NonNull<c_void>, protection: ProtFlags) -> Result<()> {
    // SAFETY: nothing of this program lies there.
    unsafe { mprotect(at, 2 * PAGE_BYTES, protection) }.context("changing the protection")
}

fn deep(count: usize, length: usize, step: &[OsString]) -> Result<Infallible> {
    let (path, _) = step.split_first().context(USAGE)?;
    let bytes = fs::read(path).with_context(|| format!("reading {path:?}"))?;
    env::set_current_dir("/tmp")?;
    for level in 0..count {
        let name = "d".repeat(length);
        fs::create_dir(&name).with_context(|| format!("making directory {level}"))?;
        env::set_current_dir(&name)?;
    }
    fs::write("program", bytes)?;
    fs::set_permissions("program", fs::Permissions::from_mode(0o755))?;
    execute(OsStr::new("./program"), step)
}

fn user_overlay(step: &[OsString]) -> Result<Infallible> {
    let (user, group) = (getuid(), getgid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)
        .context("making a user namespace")?;
    fs::write("/proc/self/setgroups", "deny").context("refusing setgroups")?;
    fs::write("/proc/self/uid_map", format!("0 {user} 1")).context("mapping the user")?;
    fs::write("/proc/self/gid_map", format!("0 {group} 1")).context("mapping the group")?;
    // An overlay cannot be the upper directory of another.
    mount_filesystem("tmpfs", Path::new("/volume"), "mode=0755")?;
    for directory in ["upper", "work"] {
        fs::create_dir(Path::new("/volume").join(directory))?;
    }
    mount_filesystem(
        "overlay",
        Path::new("/mount"),
        "lowerdir=/bin,upperdir=/volume/upper,workdir=/volume/work,userxattr",
    )?;
    fs::copy("/bin/busybox", "/mount/busybox-copy").context("copying into the overlay")?;
    let (path, _) = step.split_first().context(USAGE)?;
    execute(path, step)
}

fn number(text: &OsStr) -> Result<usize> {
    let parsed = text.to_str().and_then(|text| text.parse().ok());
    parsed.with_context(|| format!("not a number: {text:?}"))
}

/// Executes `path` with the rest of the words behind the first as arguments; its name is `path`.
fn execute(path: &OsStr, words: &[OsString]) -> Result<Infallible> {
    let arguments = arguments(words)?;
    let path = CString::new(path.as_bytes())?;
    execv(&path, &arguments).with_context(|| format!("executing {path:?}"))
}

fn execute_open(file: &impl AsFd, words: &[OsString]) -> Result<Infallible> {
    let environment: [CString; 0] = [];
    let arguments = arguments(words)?;
    execveat(file, c"", &arguments, &environment, AtFlags::AT_EMPTY_PATH)
        .context("executing an open file")
}

fn arguments(words: &[OsString]) -> Result<Vec<CString>> {
    words
        .iter()
        .map(|word| CString::new(word.as_bytes()).context("a NUL in an argument"))
        .collect()
}
