//! What a guest prints for `cargo xtask guest` to read, one line each:
//!
//! ```text
//! GUEST note TEXT
//! GUEST test NAME ok
//! GUEST test NAME FAILED: REASON
//! GUEST end RAN FAILED
//! ```

use std::{env, fs, process::ExitCode};

use anyhow::{Context as _, Result};

use crate::{observer::Observer, sensor_tests::SENSOR_TESTS};

/// Prints something for people.
pub fn note(text: &str) {
    println!("GUEST note {}", one_line(text));
}

/// Runs all tests one after the other and prints how each ended.
///
/// # Errors
///
/// The sensor does not start.
pub fn run_all() -> Result<ExitCode> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("reading the version")?;
    note(&format!("kernel {}", kernel.trim_end()));
    let observer = Observer::start(&env::current_exe()?)?;
    for (name, instructions) in observer.sensor().verified_instructions() {
        note(&format!(
            "program {name}: {instructions} instructions verified"
        ));
    }
    let mut failed = 0;
    for (name, test) in SENSOR_TESTS {
        match test(&observer) {
            Ok(()) => println!("GUEST test {name} ok"),
            Err(error) => {
                failed += 1;
                println!(
                    "GUEST test {name} FAILED: {}",
                    one_line(&format!("{error:#}"))
                );
            }
        }
    }
    println!("GUEST end {} {failed}", SENSOR_TESTS.len());
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn one_line(text: &str) -> String {
    text.trim_end().replace('\n', "; ")
}
