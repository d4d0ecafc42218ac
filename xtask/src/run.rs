//! Running other programs: one printed line per long step, its time, and what it said last when it
//! fails.

use std::{
    collections::VecDeque,
    ffi::OsStr,
    io::{BufRead as _, BufReader},
    process::{Command, ExitStatus, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// Lines of a failed step's output that are shown; the cause stands at the end.
const LAST_LINES: usize = 30;

/// A step that is silent for longer than this looks hung.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);

/// Runs a step whose output matters only when it fails.
///
/// # Errors
///
/// The program cannot be started, or it ends with another status than 0; the error then holds its
/// last lines.
pub(crate) fn quiet(what: &str, command: &mut Command) -> Result<()> {
    eprintln!("xtask: {what} ...");
    let start = Instant::now();
    // One pipe for both streams keeps their lines in order.
    let (reader, writer) = std::io::pipe().context("making a pipe")?;
    let errors = writer.try_clone().context("making a pipe")?;
    command.stdin(Stdio::null()).stdout(writer).stderr(errors);
    let mut child = command
        .spawn()
        .with_context(|| format!("{what}: starting `{}`", line(command)))?;
    // The command owns the write ends, and the pipe ends only when the last of them is closed.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let (lines_tx, lines) = mpsc::channel();
    let collector = thread::spawn(move || {
        for text in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            let text = String::from_utf8_lossy(&text).trim_end().to_owned();
            if lines_tx.send(text).is_err() {
                break;
            }
        }
    });
    let mut last = VecDeque::with_capacity(LAST_LINES);
    let mut shown = Instant::now();
    loop {
        match lines.recv_timeout(SIGN_OF_LIFE) {
            Ok(text) => {
                if last.len() == LAST_LINES {
                    last.pop_front();
                }
                last.push_back(text);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if shown.elapsed() >= SIGN_OF_LIFE {
            shown = Instant::now();
            let now = last.back().map_or("", |text| text.trim());
            eprintln!("xtask: {what}: {} s: {now}", start.elapsed().as_secs());
        }
    }
    let status = child
        .wait()
        .with_context(|| format!("{what}: waiting for `{}`", line(command)))?;
    if collector.join().is_err() {
        bail!("{what}: reading the output of `{}` failed", line(command));
    }
    if !status.success() {
        let last: Vec<String> = last.into_iter().collect();
        bail!(
            "{what}: `{}` {}; its last lines:\n{}",
            line(command),
            ending(status),
            last.join("\n")
        );
    }
    eprintln!("xtask: {what}: done in {}", elapsed(start));
    Ok(())
}

/// Runs a step that speaks for itself: its output goes straight to the caller's.
///
/// # Errors
///
/// The program cannot be started, or it ends with another status than 0.
pub(crate) fn shown(what: &str, command: &mut Command) -> Result<()> {
    eprintln!("xtask: {what} ...");
    let start = Instant::now();
    let status = command
        .status()
        .with_context(|| format!("{what}: starting `{}`", line(command)))?;
    if !status.success() {
        bail!("{what}: `{}` {}", line(command), ending(status));
    }
    eprintln!("xtask: {what}: done in {}", elapsed(start));
    Ok(())
}

/// What a program answers to a short question on its standard output, or `None` when it cannot be
/// started or does not succeed: for a probe both mean that the thing is not there.
pub(crate) fn answer(command: &mut Command) -> Option<String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A cargo that knows nothing of the cargo that started xtask: what `cargo run` tells about xtask's
/// own package would make build scripts of others run again.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    forget_own_package(&mut command);
    command
}

/// See [`cargo`].
pub(crate) fn forget_own_package(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(describes_own_package) {
            command.env_remove(name);
        }
    }
}

fn describes_own_package(name: &str) -> bool {
    name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
}

fn line(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(
        command
            .get_args()
            .map(OsStr::to_string_lossy)
            .map(String::from),
    );
    words.join(" ")
}

fn ending(status: ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("failed with status {code}"),
        None => format!("was ended by a signal ({status})"),
    }
}

fn elapsed(start: Instant) -> String {
    format!("{:.1} s", start.elapsed().as_secs_f64())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may end by panic")]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_failure_shows_the_last_lines_of_both_streams_and_the_status() {
        let script =
            "i=0; while [ $i -lt 50 ]; do i=$((i+1)); echo out $i; done; echo why >&2; exit 3";
        let error = quiet("counting", &mut shell(script))
            .unwrap_err()
            .to_string();
        assert!(error.contains("failed with status 3"), "{error}");
        assert!(error.ends_with("out 50\nwhy"), "{error}");
        assert!(
            error.contains("\nout 22\n") && !error.contains("\nout 21\n"),
            "{error}"
        );
    }

    #[test]
    fn a_death_by_signal_is_told() {
        let error = quiet("dying", &mut shell("kill -9 $$"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("ended by a signal"), "{error}");
    }

    #[test]
    fn a_probe_of_what_is_not_there_has_no_answer() {
        assert_eq!(answer(&mut Command::new("/nonexistent/program")), None);
        assert_eq!(answer(&mut shell("echo half; exit 1")), None);
        assert_eq!(answer(&mut shell("echo yes")), Some("yes\n".to_owned()));
    }
}
