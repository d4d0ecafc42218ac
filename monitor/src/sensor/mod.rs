//! From the kernel to [`event::Exec`]: loading, offsets, the ring buffer, held files, the account.

pub mod event;
