//! Other programs: run to their end, or kept until they are dropped. None is waited for without end.

use std::{
    fs,
    io::Write as _,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{
        Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::poll::{TEARDOWN, until};

/// How long a command may take. What takes longer hangs, and says where when it is killed.
const COMMAND_TIME_MAX: Duration = Duration::from_secs(240);

/// Runs a command to its end; its standard output, or an error with all it said.
pub fn output(command: &mut Command) -> Result<String> {
    succeeded(command, None)
}

/// Runs a command to its end with `input` as its standard input; fails as [`output`] does.
pub fn feed(command: &mut Command, input: &[u8]) -> Result<()> {
    succeeded(command, Some(input)).map(drop)
}

/// Runs a command to its end and gives what it said, however it ended.
pub fn finish(command: &mut Command) -> Result<Output> {
    finish_with(command, None)
}

fn succeeded(command: &mut Command, input: Option<&[u8]>) -> Result<String> {
    let output = finish_with(command, input)?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{command:?} ended with {}: {stdout}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(stdout)
}

fn finish_with(command: &mut Command, input: Option<&[u8]>) -> Result<Output> {
    if input.is_some() {
        command.stdin(Stdio::piped());
    }
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {command:?}"))?;
    let pid = child.id();
    let (ended, end) = mpsc::channel::<()>();
    let watcher = thread::spawn(move || watch(pid, &end));
    // Dropped when it is written, which ends the input. An error shows in how the command ends.
    let written = match (child.stdin.take(), input) {
        (Some(mut stdin), Some(input)) => stdin.write_all(input),
        _ => Ok(()),
    };
    let output = child.wait_with_output()?;
    drop(ended);
    if let Ok(Some(place)) = watcher.join() {
        bail!(
            "{command:?} did not end within {} s and was killed; it was in\n{place}{}{}",
            COMMAND_TIME_MAX.as_secs(),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    if output.status.success() {
        written.with_context(|| format!("cannot write to {command:?}"))?;
    }
    Ok(output)
}

/// Kills a process that has not ended in time; where its threads were.
fn watch(pid: u32, end: &mpsc::Receiver<()>) -> Option<String> {
    if end.recv_timeout(COMMAND_TIME_MAX) != Err(RecvTimeoutError::Timeout) {
        return None;
    }
    let threads = fs::read_dir(format!("/proc/{pid}/task"));
    let threads = threads.into_iter().flatten().flatten();
    let place = threads
        .map(|thread| {
            let read = |name| fs::read_to_string(thread.path().join(name)).unwrap_or_default();
            format!("{}{}", read("comm"), read("stack"))
        })
        .collect();
    // It may have ended just now, which is as late.
    let _ = kill(Pid::from_raw(i32::try_from(pid).ok()?), Signal::SIGKILL);
    Some(place)
}

/// A child process that is never left unreaped.
#[derive(Debug, Default)]
pub struct Process(Mutex<Option<Child>>);

impl Process {
    /// Takes over a child; one that was held before is killed.
    pub fn set(&self, child: Child) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mut old) = held.replace(child) {
            let _ = old.kill();
            let _ = old.wait();
        }
    }

    /// Its process id, if there is one.
    pub fn id(&self) -> Option<u32> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .map(Child::id)
    }

    /// Its end, if it has ended.
    pub fn try_wait(&self) -> Result<Option<ExitStatus>> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(match held.as_mut() {
            Some(child) => child.try_wait()?,
            None => None,
        })
    }

    /// Waits for its end, up to [`TEARDOWN`].
    pub fn wait(&self) -> Result<ExitStatus> {
        until("a process to end", TEARDOWN, || {
            self.try_wait()?.context("it still runs")
        })
    }

    /// Kills and reaps it.
    pub fn kill(&self) -> Result<()> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut child) = held {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}
