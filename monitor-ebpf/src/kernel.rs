//! The only place that follows pointers into the kernel.
//!
//! `load_*` dereferences a pointer that the verifier trusts (a hook's argument, and what is
//! reached from one by loads): one instruction, and a fault reads as zero. `probe_*` calls
//! `bpf_probe_read_kernel` and works for any address.

use core::arch::asm;

use aya_ebpf::helpers::generated::{
    bpf_get_current_task_btf, bpf_probe_read_kernel, bpf_probe_read_kernel_str, bpf_probe_read_user,
};
use monitor_common::offsets::KernelOffsets;

/// Set by the agent before loading; the map is frozen, so the verifier knows the values.
#[unsafe(no_mangle)]
pub static OFFSETS: KernelOffsets = KernelOffsets::ZERO;

/// One offset.
macro_rules! offset {
    ($field:ident) => {{
        // SAFETY: a static of this program; volatile, since its value here is not what it will be
        // when the program runs.
        unsafe { core::ptr::read_volatile(&raw const $crate::kernel::OFFSETS.$field) as usize }
    }};
}
pub(crate) use offset;

/// The same number, of which the compiler does not know where it comes from. It cannot fold a check of
/// it into another, as it does into sums of pointers or tests of differences that the verifier of
/// older kernels refuses.
#[inline(always)]
pub fn opaque(number: u64) -> u64 {
    let mut number = number;
    // One instruction, since older kernels refuse line information of none.
    // SAFETY: it moves the register to itself.
    unsafe { asm!("{number} = {number}", number = inout(reg) number) };
    number
}

/// A pointer into the kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Pointer(pub *const u8);

impl Pointer {
    pub const NULL: Self = Self(core::ptr::null());

    /// The task that runs now; trusted.
    #[inline(always)]
    pub fn current_task() -> Self {
        // SAFETY: a helper without arguments.
        Self(unsafe { bpf_get_current_task_btf() }.cast())
    }

    #[inline(always)]
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// An error in the disguise of a pointer (`IS_ERR`).
    #[inline(always)]
    pub fn is_error(self) -> bool {
        self.0 as u64 >= -4095i64 as u64
    }

    #[inline(always)]
    pub fn back(self, offset: usize) -> Self {
        Self(self.0.wrapping_sub(offset))
    }

    /// Loads a member through a trusted pointer.
    #[inline(always)]
    pub fn load<T: Copy>(self, offset: usize) -> T {
        // SAFETY: the verifier accepts the load only if the address is a kernel object of a type
        // that has this member.
        unsafe { core::ptr::read_volatile(self.0.wrapping_add(offset).cast::<T>()) }
    }

    /// Loads a pointer member through a trusted pointer.
    #[inline(always)]
    pub fn follow(self, offset: usize) -> Self {
        Self(self.load::<*const u8>(offset))
    }

    /// Reads a member at any address; `None` on a fault.
    #[inline(always)]
    pub fn probe<T: Copy + Default>(self, offset: usize) -> Option<T> {
        let mut value = T::default();
        self.probe_to(&mut value, offset)?;
        Some(value)
    }

    /// Reads a member at any address to where it is wanted, which spares the stack; `None` on a
    /// fault.
    #[inline(always)]
    pub fn probe_to<T: Copy>(self, value: &mut T, offset: usize) -> Option<()> {
        // SAFETY: the destination is as long as the size says; the helper checks the source.
        let status = unsafe {
            bpf_probe_read_kernel(
                (&raw mut *value).cast(),
                size_of::<T>() as u32,
                self.0.wrapping_add(offset).cast(),
            )
        };
        (status == 0).then_some(())
    }

    /// Reads a pointer member at any address; `None` on a fault.
    #[inline(always)]
    pub fn probe_follow(self, offset: usize) -> Option<Self> {
        self.probe::<u64>(offset)
            .map(|address| Self(address as *const u8))
    }

    /// Copies the NUL-terminated string at this address; gives its length with the NUL, or an
    /// error below zero.
    ///
    /// # Safety
    ///
    /// `destination` must be writable for `bytes_max` bytes.
    #[inline(always)]
    pub unsafe fn probe_string(self, destination: *mut u8, bytes_max: u32) -> i64 {
        // SAFETY: by this function's contract; the helper checks the source.
        unsafe { bpf_probe_read_kernel_str(destination.cast(), bytes_max, self.0.cast()) }
    }
}

/// Copies from the memory of the current process; false on a fault.
///
/// # Safety
///
/// `destination` must be writable for `bytes` bytes.
#[inline(always)]
pub unsafe fn read_user(destination: *mut u8, bytes: u32, address: u64) -> bool {
    // SAFETY: by this function's contract; the helper checks the source.
    unsafe { bpf_probe_read_user(destination.cast(), bytes, address as *const _) == 0 }
}

/// Bytes of the kernel's or of the current process.
#[derive(Clone, Copy)]
pub enum Memory {
    Kernel(Pointer),
    Process(u64),
}

impl Memory {
    /// Reads what lies there at `offset`; `None` on a fault.
    #[inline(always)]
    pub fn get<T: Copy + Default>(self, offset: usize) -> Option<T> {
        match self {
            Self::Kernel(pointer) => pointer.probe(offset),
            Self::Process(address) => {
                let mut value = T::default();
                // SAFETY: the destination is as long as the size says.
                let read = unsafe {
                    read_user(
                        (&raw mut value).cast(),
                        size_of::<T>() as u32,
                        address.wrapping_add(offset as u64),
                    )
                };
                read.then_some(value)
            }
        }
    }

    /// What lies there from `offset` on.
    #[inline(always)]
    pub fn from(self, offset: usize) -> Self {
        match self {
            Self::Kernel(pointer) => Self::Kernel(Pointer(pointer.0.wrapping_add(offset))),
            Self::Process(address) => Self::Process(address.wrapping_add(offset as u64)),
        }
    }

    /// Copies what lies there; false on a fault.
    ///
    /// # Safety
    ///
    /// `destination` must be writable for `bytes` bytes.
    #[inline(always)]
    pub unsafe fn read(self, destination: *mut u8, bytes: u32) -> bool {
        match self {
            // SAFETY: by this function's contract; the helper checks the source.
            Self::Kernel(pointer) => unsafe {
                bpf_probe_read_kernel(destination.cast(), bytes, pointer.0.cast()) == 0
            },
            // SAFETY: likewise.
            Self::Process(address) => unsafe { read_user(destination, bytes, address) },
        }
    }
}
