//! Every test that this machine can run, and which it could not and why.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    io::{self, BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    build::{self, Profile},
    guest::{self, Document},
    hung, images, run, servers, workspace,
};

/// Names the file to which a test that cannot run on this machine appends `TEST: REASON`.
const SKIPS: &str = "MONITOR_SKIPS";
/// Names the kubeconfig of the cluster that tests of Kubernetes speak to; without it they start an
/// API server of their own.
const KUBECONFIG: &str = "MONITOR_KUBECONFIG";
/// How long tests may print nothing. One that is not done says so once, after a minute, and a command
/// that a test waits for is killed after four.
const SILENCE_MAX: Duration = Duration::from_secs(360);
/// Files of tests of Kubernetes begin so.
const KUBERNETES: [&str; 2] = ["controller", "kubernetes"];

/// Builds the programs and runs the tests whose names contain one of the filters, all if there are
/// none. With a kubeconfig those of Kubernetes alone, in the cluster that it names.
///
/// The tests are built as the programs are, in release: the hundred dependencies are then compiled
/// once. A debug build beside it costs 198 s of processor time from nothing, the release tests on
/// top of the release programs 109 s (2 cores, measured), and hashing images unoptimised costs more
/// again.
///
/// # Errors
///
/// The kubeconfig cannot be read, the build or a test fails, or `CI=true` and a test was skipped.
pub(crate) fn run(kubeconfig: Option<&Path>, filters: &[String]) -> Result<()> {
    let kubeconfig = kubeconfig
        .map(|path| fs::canonicalize(path).with_context(|| format!("reading {}", path.display())))
        .transpose()?;
    let programs = build::run(Profile::Release)?;
    servers::prepare();
    images::prepare();
    let skips = workspace::target().join("skipped-tests");
    if skips.exists() {
        fs::remove_file(&skips).with_context(|| format!("removing {}", skips.display()))?;
    }
    let mut command = run::cargo();
    // One failure must not hide the next.
    command.args(["test", "--workspace", "--release", "--no-fail-fast"]);
    if let Some(path) = &kubeconfig {
        for name in kubernetes_tests()? {
            command.args(["--test", &name]);
        }
        command.env(KUBECONFIG, path);
    }
    command
        .args(build::locked())
        .arg("--")
        .args(filters)
        .env(SKIPS, &skips)
        .current_dir(workspace::root());
    programs.tell(&mut command);
    let (outcome, mut counts) = pass_through(&mut command, SILENCE_MAX, &mut io::stdout())?;
    let skipped = fs::read_to_string(&skips).unwrap_or_default();
    let mut skipped: BTreeSet<&str> = skipped.lines().filter(|line| !line.is_empty()).collect();
    // A filter is for one's own next try; the guests are asked for by `cargo xtask guest`.
    let guests = if filters.is_empty() && kubeconfig.is_none() {
        guest::all(None, &programs, Document::Compare)?
    } else {
        guest::Outcome::default()
    };
    counts.add_guests(&guests);
    skipped.extend(guests.skipped.iter().map(String::as_str));
    eprint!("{}", summary(&counts, &skipped));
    if !outcome || guests.failed > 0 {
        bail!("tests failed");
    }
    // No real cluster can do all that the tests' own API server can.
    if build::in_ci() && kubeconfig.is_none() && !skipped.is_empty() {
        bail!("CI=true and tests were skipped: this machine must be able to run all of them");
    }
    if counts.passed == 0 {
        bail!("no test matches {}", filters.join(" "));
    }
    Ok(())
}

/// The files of tests that speak to an API server.
fn kubernetes_tests() -> Result<Vec<String>> {
    let folder = workspace::root().join("tests/tests");
    let entries = fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_stem().and_then(OsStr::to_str).unwrap_or_default();
        if KUBERNETES.iter().any(|prefix| name.starts_with(prefix)) {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// What the tests' closing lines say, added up.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Counts {
    /// `test result: ok. 12 passed; 0 failed; 0 ignored; ...`
    fn add(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else {
            return;
        };
        let parts = result.split(['.', ';']).map(str::trim);
        for (count, kind) in parts.filter_map(|part| part.split_once(' ')) {
            let Ok(count) = count.parse::<u64>() else {
                continue;
            };
            match kind {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                "ignored" => self.ignored += count,
                _ => {}
            }
        }
    }
}

impl Counts {
    /// A skipped guest is counted as a skipped test is: as passed, see [`summary`].
    fn add_guests(&mut self, guests: &guest::Outcome) {
        self.passed += guests.passed + u64::try_from(guests.skipped.len()).unwrap_or(u64::MAX);
        self.failed += guests.failed;
    }
}

/// Runs the tests, hands on each line of theirs as it is, and counts. Tests that print nothing for
/// longer than `silence_max` hang: it is told where, and their program is killed.
fn pass_through(
    command: &mut Command,
    silence_max: Duration,
    to: &mut impl io::Write,
) -> Result<(bool, Counts)> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("starting cargo test")?;
    let output = child.stdout.take().context("cargo test has no output")?;
    let (lines_tx, lines) = mpsc::channel();
    let reader = thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n') {
            if lines_tx.send(line).is_err() {
                break;
            }
        }
    });
    let mut counts = Counts::default();
    // Until the first, nothing runs: the tests are built.
    let mut line = lines.recv().map_err(|_| RecvTimeoutError::Disconnected);
    loop {
        match line {
            Ok(line) => {
                let mut line = line.context("reading what cargo test prints")?;
                counts.add(&String::from_utf8_lossy(&line));
                line.push(b'\n');
                to.write_all(&line)
                    .context("handing on what cargo test prints")?;
            }
            Err(RecvTimeoutError::Timeout) => eprintln!(
                "xtask: nothing was printed for {} s; these are killed:\n{}",
                silence_max.as_secs(),
                hung::end_children(child.id())
            ),
            Err(RecvTimeoutError::Disconnected) => break,
        }
        line = lines.recv_timeout(silence_max);
    }
    let status = child.wait().context("waiting for cargo test")?;
    if reader.join().is_err() {
        bail!("reading what cargo test prints failed");
    }
    Ok((status.success(), counts))
}

/// A test that skips itself ends well, so cargo counts it as passed; here it is not.
fn summary(counts: &Counts, skipped: &BTreeSet<&str>) -> String {
    let many = u64::try_from(skipped.len()).unwrap_or(u64::MAX);
    let mut text = format!(
        "xtask: {} tests passed, {} failed, {many} skipped on this machine, {} ignored\n",
        counts.passed.saturating_sub(many),
        counts.failed,
        counts.ignored,
    );
    for line in skipped {
        text += &format!("  skipped {line}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_added_up() {
        let mut counts = Counts::default();
        for line in [
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s",
            "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s",
            "test exec::a_test_result ... ok",
            "a line that says test result: ok. 5 passed",
        ] {
            counts.add(line);
        }
        let expect = Counts {
            passed: 14,
            failed: 1,
            ignored: 1,
        };
        assert_eq!(counts, expect);
    }

    #[test]
    fn a_skipped_test_is_not_counted_as_passed() {
        let counts = Counts {
            passed: 14,
            failed: 0,
            ignored: 0,
        };
        let skipped = BTreeSet::from(["a: not run as root", "b: no BTF"]);
        assert_eq!(
            summary(&counts, &skipped),
            "xtask: 12 tests passed, 0 failed, 2 skipped on this machine, 0 ignored\n  \
             skipped a: not run as root\n  skipped b: no BTF\n"
        );
    }

    #[test]
    fn output_is_handed_on_and_the_outcome_is_cargos() -> Result<()> {
        let check = |script: &str, expect: bool| -> Result<()> {
            let mut shown = Vec::new();
            let mut command = Command::new("sh");
            let command = command.args(["-c", script]);
            let (outcome, counts) = pass_through(command, Duration::from_millis(300), &mut shown)?;
            assert_eq!((outcome, counts.passed), (expect, 3));
            assert_eq!(shown, b"test result: ok. 3 passed; 0 failed\n");
            Ok(())
        };
        let line = "echo 'test result: ok. 3 passed; 0 failed'";
        check(line, true)?;
        check(&format!("{line}; exit 101"), false)?;
        // A test that hangs is ended, and what comes behind it is not.
        check(&format!("sleep 1; {line}; sleep 600; exit 101"), false)?;
        check(&format!("{line}; sleep 600; exit 0"), true)?;
        Ok(())
    }
}
