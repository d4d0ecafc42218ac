//! PID 1 of the guests, their test process, and the first process of the tests' containers.

use std::{
    env,
    ffi::OsString,
    process::{self, ExitCode},
};

use anyhow::{Result, bail};
use guest::{init, inside, report};

fn main() -> ExitCode {
    if process::id() == 1 {
        init::run();
    }
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("guest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[OsString]) -> Result<ExitCode> {
    match arguments {
        [command] if command == init::TESTS => report::run_all(),
        [command, rest @ ..] if command == inside::INSIDE => inside::run(rest),
        _ => bail!("run by the tests only: see `cargo xtask guest`"),
    }
}
