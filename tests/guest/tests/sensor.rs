//! The sensor's tests on the kernel of this machine; `cargo xtask guest` runs them on others.

use std::{
    path::Path,
    sync::{Mutex, PoisonError},
};

use anyhow::Result;
use guest::{
    for_each_sensor_test,
    observer::Observer,
    sensor_tests::{self, SensorTest},
};
use monitor::sensor::hooks::SETS;
use tests::require;

/// Runs a test with the one sensor of this process: hooks see the whole machine, so each sensor
/// more is paid for by every process of it.
fn run(test: SensorTest) -> Result<()> {
    static OBSERVER: Mutex<Option<&'static Observer>> = Mutex::new(None);
    let observer = {
        let mut started = OBSERVER.lock().unwrap_or_else(PoisonError::into_inner);
        match *started {
            Some(observer) => observer,
            None => {
                let observer = Observer::start(Path::new(env!("CARGO_BIN_EXE_guest")), &SETS)?;
                started.insert(Box::leak(Box::new(observer)))
            }
        }
    };
    test(observer)
}

macro_rules! native {
    ($($name:ident)+) => {$(
        #[test]
        fn $name() -> Result<()> {
            require!(Root, Btf, Busybox, Unshare, UserNamespaces);
            run(sensor_tests::$name)
        }
    )+};
}
for_each_sensor_test!(native);
