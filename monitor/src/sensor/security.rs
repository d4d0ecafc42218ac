//! Which security modules are active: programs of the kernel's security framework load and attach
//! as well where theirs is not, and then never run.

use std::{
    ffi::CStr,
    fs::{self, File},
    io::{self, Read as _},
    os::fd::{AsRawFd as _, OwnedFd},
    ptr,
};

use nix::{
    fcntl::{OFlag, openat},
    sys::stat::Mode,
};

use super::root::descriptor;

/// Where the list is, if securityfs is mounted where it should be.
const LIST: &str = "/sys/kernel/security/lsm";

/// The module that runs eBPF programs, as the list names it.
const MODULE: &str = "bpf";

/// Bytes of the list: some twenty names.
const LIST_BYTES_MAX: u64 = 4096;

/// `FSCONFIG_CMD_CREATE`, `FSOPEN_CLOEXEC` and `FSMOUNT_CLOEXEC` of `include/uapi/linux/mount.h`.
const CREATE: libc::c_uint = 6;
const CLOEXEC: libc::c_uint = 1;

/// Whether the kernel runs eBPF programs of its security framework.
///
/// # Errors
///
/// Says why not, or why that is not known.
pub(super) fn runs_programs() -> Result<(), String> {
    match list() {
        Ok(list) if names(&list).any(|name| name == MODULE) => Ok(()),
        Ok(list) => Err(format!(
            "the security module `{MODULE}` is not active, only {}: programs would be attached and never run; to have it, boot with `lsm=` and this list with `,{MODULE}`",
            list.trim_end()
        )),
        Err(error) => Err(format!(
            "which security modules are active cannot be read from securityfs: {error}"
        )),
    }
}

fn names(list: &str) -> impl Iterator<Item = &str> {
    list.trim_end().split(',')
}

fn list() -> io::Result<String> {
    match fs::read_to_string(LIST) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => read_detached(),
        read => read,
    }
}

/// By a mount of its own that nobody else sees: in a container there may be none.
fn read_detached() -> io::Result<String> {
    let mut text = String::new();
    let file = openat(
        &mount()?,
        "lsm",
        OFlag::O_RDONLY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    File::from(file)
        .take(LIST_BYTES_MAX)
        .read_to_string(&mut text)?;
    Ok(text)
}

/// The root of securityfs.
fn mount() -> io::Result<OwnedFd> {
    const NAME: &CStr = c"securityfs";
    // SAFETY: the name ends with a NUL and lives on; the call keeps no pointer.
    let context = descriptor(unsafe { libc::syscall(libc::SYS_fsopen, NAME.as_ptr(), CLOEXEC) })?;
    let none = ptr::null::<libc::c_char>();
    // SAFETY: this command takes neither name nor value.
    let created = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            CREATE,
            none,
            none,
            0,
        )
    };
    if created < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: numbers only.
    descriptor(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), CLOEXEC, 0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_active_by_its_whole_name() {
        let check = |list: &str, expect: bool| {
            let is_active = names(list).any(|name| name == MODULE);
            assert_eq!(is_active, expect, "{list}");
        };
        check("lockdown,capability,landlock,bpf", true);
        check("bpf\n", true);
        check("lockdown,bpfilter,nobpf", false);
        check("", false);
    }
}
