//! What a guest prints on its serial console, and what that means (see `report.rs` of the `guest`
//! package for the lines).

use std::{
    collections::VecDeque,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

/// Lines of the console that are shown when a guest does not come to its end.
const LAST_LINES: usize = 40;

/// What a guest has told.
#[derive(Debug, Default)]
pub(crate) struct Report {
    notes: Vec<String>,
    /// Each test and why it failed, if it did.
    tests: Vec<(String, Option<String>)>,
    /// What came of techniques of evasion: lines of a name, a tab and a cell of the document.
    cells: Vec<String>,
    /// The closing line of each program of tests: tests run, and failed.
    ends: Vec<(usize, usize)>,
    /// Lines, the last [`LAST_LINES`] of them.
    last: VecDeque<String>,
    /// Ended by force.
    late: bool,
    /// Programs of tests in the guest.
    programs: usize,
}

impl Report {
    fn add(&mut self, line: &str) {
        // The kernel may have printed something without an end of line before.
        if let Some((_, told)) = line.split_once("GUEST ") {
            self.add_told(told);
        }
        if self.last.len() == LAST_LINES {
            self.last.pop_front();
        }
        self.last.push_back(line.to_owned());
    }

    fn add_told(&mut self, told: &str) {
        if let Some(note) = told.strip_prefix("note ") {
            self.notes.push(note.to_owned());
        } else if let Some(test) = told.strip_prefix("test ") {
            if let Some(name) = test.strip_suffix(" ok") {
                self.tests.push((name.to_owned(), None));
            } else if let Some((name, reason)) = test.split_once(" FAILED: ") {
                self.tests.push((name.to_owned(), Some(reason.to_owned())));
            }
        } else if let Some(cell) = told.strip_prefix("cell ") {
            self.cells.push(cell.to_owned());
        } else if let Some(end) = told.strip_prefix("end ") {
            let mut numbers = end.split(' ').map(|number| number.parse().ok());
            let end = numbers.next().flatten().zip(numbers.next().flatten());
            self.ends.extend(end);
        }
    }

    /// What came of techniques of evasion, see `tests/src/bin/evasions.rs`.
    pub(crate) fn cells(&self) -> &[String] {
        &self.cells
    }

    /// Adds a test that is not the guest's own.
    pub(crate) fn add_test(&mut self, name: &str, outcome: Result<()>) {
        let reason = outcome.err().map(|error| format!("{error:#}"));
        let end = (1, usize::from(reason.is_some()));
        self.tests.push((name.to_owned(), reason));
        self.ends.push(end);
        self.programs += 1;
    }

    /// Why what was told is not all there is to tell, if so.
    fn incomplete(&self) -> Option<String> {
        if self.late {
            return Some("the guest did not end in time".to_owned());
        }
        let failed = self.tests.iter().filter(|(_, reason)| reason.is_some());
        let told = (self.tests.len(), failed.count());
        let sum = self
            .ends
            .iter()
            .fold((0, 0), |sum, end| (sum.0 + end.0, sum.1 + end.1));
        if self.ends.len() < self.programs {
            Some("the guest ended before its tests did".to_owned())
        } else if self.ends.iter().any(|(ran, _)| *ran == 0) {
            Some("the guest ran no tests".to_owned())
        } else if sum != told {
            Some(format!(
                "the guest's closing lines tell of {} tests, {} failed, its other lines of {} and {}",
                sum.0, sum.1, told.0, told.1
            ))
        } else {
            None
        }
    }

    pub(crate) fn passed(&self) -> u64 {
        let passed = self.tests.iter().filter(|(_, reason)| reason.is_none());
        u64::try_from(passed.count()).unwrap_or(u64::MAX)
    }

    /// Failed tests, and one more if the guest did not come to its end.
    pub(crate) fn failed(&self) -> u64 {
        let all = u64::try_from(self.tests.len()).unwrap_or(u64::MAX);
        all - self.passed() + u64::from(self.incomplete().is_some())
    }

    /// Prints the tests as cargo does, and what went wrong.
    pub(crate) fn show(&self, series: &str) {
        for note in &self.notes {
            println!("guest {series}: {note}");
        }
        for (name, reason) in &self.tests {
            match reason {
                None => println!("test guest::{series}::{name} ... ok"),
                Some(reason) => println!("test guest::{series}::{name} ... FAILED\n    {reason}"),
            }
        }
        if let Some(reason) = self.incomplete() {
            println!("test guest::{series} ... FAILED\n    {reason}; its console's last lines:");
            for line in &self.last {
                println!("    | {line}");
            }
        }
    }
}

/// Runs a guest with some programs of tests and reads its console until it ends, or ends it at the
/// deadline.
///
/// # Errors
///
/// It cannot be started.
pub(crate) fn watch(command: &mut Command, programs: usize, deadline: Duration) -> Result<Report> {
    let (console, writer) = std::io::pipe().context("making a pipe")?;
    let errors = writer.try_clone().context("making a pipe")?;
    command.stdin(Stdio::null()).stdout(writer).stderr(errors);
    let mut child = command.spawn().context("starting the guest")?;
    // The command owns the write ends, and the pipe ends only when the last of them is closed.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let (sender, lines) = mpsc::channel();
    let reader = thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let mut report = Report {
        programs,
        ..Report::default()
    };
    let end = Instant::now() + deadline;
    loop {
        match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => report.add(&line),
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                report.late = true;
                child.kill().context("ending the guest")?;
                break;
            }
        }
    }
    child.wait().context("waiting for the guest")?;
    drop(lines);
    if reader.join().is_err() {
        report.add("xtask: the reader of the console has panicked");
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a shell line as the guest; expects these numbers of passed and failed tests, and this
    /// in the reason if the report is not complete.
    fn check(line: &str, expect: (u64, u64), reason: Option<&str>) -> Result<()> {
        let mut command = Command::new("sh");
        command.args(["-c", line]);
        let report = watch(&mut command, 1, Duration::from_secs(2))?;
        assert_eq!((report.passed(), report.failed()), expect, "{line}");
        let incomplete = report.incomplete();
        match reason {
            None => assert_eq!(incomplete, None, "{line}"),
            Some(reason) => assert!(
                incomplete
                    .as_ref()
                    .is_some_and(|text| text.contains(reason)),
                "{line}: {incomplete:?}"
            ),
        }
        Ok(())
    }

    #[test]
    fn a_guest_that_ends_as_it_should_is_believed() -> Result<()> {
        check("echo GUEST test a ok; echo 'GUEST end 1 0'", (1, 0), None)?;
        check(
            "echo 'GUEST test a FAILED: b is 1, not 2'; echo '[ 1.0] GUEST test c ok'; echo GUEST end 2 1",
            (1, 1),
            None,
        )
    }

    #[test]
    fn a_guest_that_does_not_end_as_it_should_has_failed() -> Result<()> {
        let ok = "echo GUEST test a ok";
        check("echo Kernel panic", (0, 1), Some("before its tests did"))?;
        check(
            &format!("{ok}; exit 1"),
            (1, 1),
            Some("before its tests did"),
        )?;
        check("echo GUEST end 0 0", (0, 1), Some("ran no tests"))?;
        check(
            &format!("{ok}; echo GUEST end 2 0"),
            (1, 1),
            Some("tell of 2"),
        )?;
        check(&format!("{ok}; exec sleep 60"), (1, 1), Some("in time"))
    }

    #[test]
    fn the_last_lines_are_kept() -> Result<()> {
        let mut command = Command::new("sh");
        command.args(["-c", "seq 1 100; echo why >&2"]);
        let report = watch(&mut command, 1, Duration::from_secs(10))?;
        assert_eq!(report.last.len(), LAST_LINES);
        assert_eq!(report.last.back().map(String::as_str), Some("why"));
        Ok(())
    }
}
