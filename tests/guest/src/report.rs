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

use monitor::sensor::hooks::{SETS, kind_name, set_name};

use crate::{observer::Observer, sensor_tests::SENSOR_TESTS};

/// Prints something for people.
pub fn note(text: &str) {
    println!("GUEST note {}", one_line(text));
}

/// Runs all tests one after the other, with each set of hooks, and prints how each ended.
///
/// # Errors
///
/// The sensor does not start.
pub fn run_all() -> Result<ExitCode> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("reading the version")?;
    note(&format!("kernel {}", kernel.trim_end()));
    let (mut ran, mut failed) = (0, 0);
    for set in SETS {
        let observer = Observer::start(&env::current_exe()?, &[set])?;
        let set = set_name(set);
        for choice in observer.sensor().choices() {
            let kind = kind_name(choice.kind);
            let in_force = choice.set.map_or("no hook", set_name);
            note(&format!("{set}: {kind} by {in_force} {:?}", choice.refused));
        }
        for (name, instructions) in observer.sensor().verified_instructions() {
            note(&format!(
                "{set}: program {name}: {instructions} instructions verified"
            ));
        }
        for (name, test) in SENSOR_TESTS {
            ran += 1;
            match test(&observer) {
                Ok(()) => println!("GUEST test {set}::{name} ok"),
                Err(error) => {
                    failed += 1;
                    println!(
                        "GUEST test {set}::{name} FAILED: {}",
                        one_line(&format!("{error:#}"))
                    );
                }
            }
        }
    }
    println!("GUEST end {ran} {failed}");
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn one_line(text: &str) -> String {
    text.trim_end().replace('\n', "; ")
}
