//! `cargo xtask bench` runs this: figures of the daemon, see [`tests::bench`].

use std::{env, process::ExitCode};

use tests::bench;

fn main() -> ExitCode {
    let names: Vec<String> = env::args().skip(1).collect();
    for name in &names {
        if let Err(error) = bench::run(name) {
            eprintln!("bench: {name}: {error:#}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
