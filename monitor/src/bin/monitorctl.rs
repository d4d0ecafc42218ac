//! The client of monitord.

use std::{
    env,
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
};

use comfy_table::Table;
use monitor::ctl::{
    self, Failure, Terminal,
    args::{Parsed, parse},
};

fn main() -> ExitCode {
    let Err(failure) = run() else {
        return ExitCode::SUCCESS;
    };
    if failure.exit_status() != 0 {
        // Without stderr there is still the exit status.
        let _ = writeln!(io::stderr(), "monitorctl: {failure}");
    }
    ExitCode::from(failure.exit_status())
}

fn run() -> Result<(), Failure> {
    let mut stdout = io::stdout();
    let arguments = match parse(env::args_os())? {
        Parsed::Run(arguments) => arguments,
        Parsed::Print(text) => {
            stdout.write_all(text.as_bytes())?;
            return Ok(stdout.flush()?);
        }
    };
    let colour = env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let terminal = stdout.is_terminal().then(|| Terminal {
        width: Table::new().width(),
        colour,
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(format!("cannot start: {error}")))?;
    runtime.block_on(ctl::run(arguments, &mut stdout, terminal))
}
