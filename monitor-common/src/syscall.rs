//! The end of a system call, where more than one program looks at it.

/// What goes on where the first leaves off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Next {
    /// After requests of io_uring were submitted.
    Rings = 0,
    /// After messages were received, with which files may have come, or a descriptor was taken.
    Received = 1,
}

impl Next {
    /// How many there are.
    pub const COUNT: u32 = 2;
}
