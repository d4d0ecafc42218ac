//! The sensor against a real kernel, without containerd.
//!
//! The same functions run natively as `#[test]`s (`tests/sensor.rs`) and in a virtual machine for
//! each kernel of `cargo xtask guest`, where this package's program is PID 1 ([`init`]). A test
//! makes a container by hand ([`container`]), runs something in it ([`inside`]) and looks at the
//! events that the sensor gives ([`observer`]).

pub mod container;
pub mod init;
pub mod inside;
pub mod observer;
pub mod prototypes;
pub mod report;
pub mod sensor_tests;
