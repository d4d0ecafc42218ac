//! Bounds of what is remembered of io_uring.

/// Requests of one thread that have not been told of; beyond it they are lost and counted.
pub const REQUESTS_MAX: u32 = 32;

/// Threads with such requests, and requests of all threads; those that were submitted longest ago are
/// forgotten.
pub const SUBMITTERS_MAX: u32 = 1_024;
/// Likewise.
pub const ALL_REQUESTS_MAX: u32 = 8_192;
