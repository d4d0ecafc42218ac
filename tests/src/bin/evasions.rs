//! The techniques of [`tests::evasions`] where there is no cargo: carried out in a guest, and what
//! came of them taken into the document by `cargo xtask guest`.

use std::{
    env, fs,
    io::{self, BufRead as _},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};
use tests::evasions::{self, document};

const USAGE: &str = "usage: evasions COMMAND
  files            list the files of this machine that a run needs, one per line
  run              carry out all techniques and print what came of them, as guests do
  compare COLUMN   compare a run's cells, TECHNIQUE<tab>CELL per line of the input, with the document
  renew COLUMN     put them into the document";

fn main() -> ExitCode {
    match command() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("evasions: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn command() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["files"] => {
            for file in evasions::files()? {
                println!("{}", file.display());
            }
            Ok(())
        }
        ["run"] => run(),
        ["compare", column] => take(column, false),
        ["renew", column] => take(column, true),
        _ => bail!("{USAGE}"),
    }
}

/// Prints lines as the `guest` package's `report` describes them.
fn run() -> Result<()> {
    let start = Instant::now();
    let outcomes = evasions::run(evasions::GUEST_RUNTIME)?;
    println!(
        "GUEST note {} techniques carried out in {} s",
        outcomes.len(),
        start.elapsed().as_secs()
    );
    let mut failed = 0;
    for outcome in &outcomes {
        let name = outcome.technique.name;
        println!("GUEST cell {name}\t{}", outcome.cell);
        match &outcome.failure {
            None => println!("GUEST test evasion: {name} ok"),
            Some(failure) => {
                failed += 1;
                println!(
                    "GUEST test evasion: {name} FAILED: {}",
                    failure.trim_end().replace('\n', "; ")
                );
            }
        }
    }
    println!("GUEST end {} {failed}", outcomes.len());
    Ok(())
}

fn take(column: &str, renew: bool) -> Result<()> {
    let lines = io::stdin().lock().lines().collect::<Result<Vec<_>, _>>()?;
    let cells = lines
        .iter()
        .map(|line| {
            line.split_once('\t')
                .with_context(|| format!("no cell: {line}"))
        })
        .collect::<Result<Vec<_>>>()?;
    let path = document::path();
    let old = if renew {
        fs::read_to_string(&path).unwrap_or_default()
    } else {
        document::read(&path)?
    };
    let new = document::renewed(&old, column, cells.into_iter());
    if renew {
        return fs::write(&path, new).with_context(|| format!("cannot write {}", path.display()));
    }
    ensure!(old == new, "{}", document::stale(&path));
    Ok(())
}
