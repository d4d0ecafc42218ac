//! Programs that turn other files into code.

/// What the file names of shells begin with. A name here is at most [`NAME_BYTES_MAX`] bytes long.
/// The kernel side goes by this prefix, which lets too much through; the agent decides.
pub const SHELLS: &[&[u8]] = &[
    b"sh", b"ash", b"bash", b"dash", b"zsh", b"ksh", b"mksh", b"rbash", b"busybox", b"toybox",
];

/// The same of other interpreters.
pub const OTHERS: &[&[u8]] = &[
    b"python", b"pypy", b"perl", b"ruby", b"node", b"deno", b"bun", b"php", b"lua", b"tclsh",
    b"java", b"awk", b"gawk", b"mawk", b"guile", b"Rscript",
];

/// Bytes of a name.
pub const NAME_BYTES_MAX: usize = 8;

/// What a program is.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interpreter {
    /// Not known to be one.
    None = 0,
    /// By its name, or since the kernel came to it by a `#!` line.
    Other = 1,
    /// By its name.
    Shell = 2,
}

/// Which interpreter a program is, of those that the kernel side remembers: the key is the inode
/// that processes see.
pub const INTERPRETERS_MAX: u32 = 4096;
