//! Alerts as a client gets them, while they come.

use std::{
    io::{BufRead as _, BufReader},
    process::{ChildStdout, Command, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};
use jiff::Timestamp;
use serde_json::Value;

use crate::{
    poll::{Deadline, PATIENCE},
    process::Process,
};

/// How many alerts an error shows.
const SHOWN_MAX: usize = 20;

/// An alert, and when its first revision came.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// By the clock that the alert's own times are of.
    pub at: SystemTime,
    /// The cursor of its first revision.
    pub cursor: Option<u64>,
    /// Its last revision.
    pub alert: Value,
}

impl Arrival {
    /// Milliseconds from what it is about, by the alert's own time.
    pub fn delay_ms(&self) -> Result<f64> {
        let time: Timestamp = text(&self.alert, "/time")
            .context("an alert without a time")?
            .parse()
            .context("an alert's time is not RFC 3339")?;
        let delay = self.at.duration_since(SystemTime::from(time));
        Ok(delay.unwrap_or_default().as_secs_f64() * 1000.0)
    }
}

/// The alerts that have come so far, in order. Dropping it ends the client.
#[derive(Debug)]
pub struct Alerts {
    process: Process,
    received: Arc<Received>,
}

#[derive(Debug, Default)]
struct Received {
    arrivals: Mutex<Vec<Arrival>>,
    changed: Condvar,
}

impl Received {
    fn lock(&self) -> MutexGuard<'_, Vec<Arrival>> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, stdout: ChildStdout) -> Result<()> {
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            let alert = serde_json::from_str(&line).with_context(|| format!("not JSON: {line}"))?;
            self.lock().push(Arrival {
                at: SystemTime::now(),
                cursor: cursor(&alert),
                alert,
            });
            self.changed.notify_all();
        }
        Ok(())
    }
}

impl Alerts {
    /// Starts a command that prints alerts, one JSON object per line.
    pub fn read(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let stdout = child.stdout.take().context("its output was not piped")?;
        let process = Process::default();
        process.set(child);
        let received = Arc::new(Received::default());
        let writer = Arc::clone(&received);
        // Ends with the pipe, when the process is killed.
        thread::spawn(move || {
            if let Err(error) = writer.read(stdout) {
                eprintln!("reading alerts: {error:#}");
            }
        });
        Ok(Self { process, received })
    }

    /// The first alert that is wanted, among those that came and those that come.
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let deadline = Deadline::after(PATIENCE);
        let mut looked_at = 0;
        let mut arrivals = self.received.lock();
        loop {
            let mut new = arrivals
                .iter()
                .skip(looked_at)
                .map(|arrival| &arrival.alert);
            if let Some(found) = new.find(|alert| wanted(alert)) {
                return Ok(found.clone());
            }
            looked_at = arrivals.len();
            if deadline.passed() {
                let last = arrivals.iter().rev().take(SHOWN_MAX);
                let last: Vec<String> = last.map(|arrival| summary(&arrival.alert)).collect();
                bail!("no alert {what}; the last that came:\n{}", last.join("\n"));
            }
            ensure!(
                self.process.try_wait()?.is_none(),
                "the client of alerts has ended"
            );
            // Wakes now and then, to notice the client's end.
            let pause = deadline.left().min(Duration::from_millis(200));
            (arrivals, _) = self
                .received
                .changed
                .wait_timeout(arrivals, pause)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The alerts so far, each in its last revision, in the order of their first.
    pub fn arrivals(&self) -> Vec<Arrival> {
        let mut latest: Vec<Arrival> = Vec::new();
        for arrival in self.received.lock().iter() {
            let id = arrival.alert.get("id");
            match latest.iter_mut().find(|other| other.alert.get("id") == id) {
                Some(older) => older.alert = arrival.alert.clone(),
                None => latest.push(arrival.clone()),
            }
        }
        latest
    }

    /// The same without times.
    pub fn all(&self) -> Vec<Value> {
        self.arrivals()
            .into_iter()
            .map(|arrival| arrival.alert)
            .collect()
    }

    /// Those of one container.
    pub fn of(&self, container: &str) -> Vec<Value> {
        let mut alerts = self.all();
        alerts.retain(|alert| text(alert, "/container/id") == Some(container));
        alerts
    }
}

/// The text at a JSON pointer; `None` if there is none.
pub fn text<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer).and_then(Value::as_str)
}

/// The cursor of a revision of an alert.
pub fn cursor(alert: &Value) -> Option<u64> {
    text(alert, "/cursor")?.parse().ok()
}

/// What each of the alerts says at these places, sorted; empty where it says nothing.
pub fn words<'a, const N: usize>(alerts: &'a [Value], pointers: [&str; N]) -> Vec<[&'a str; N]> {
    let alerts = alerts.iter();
    let mut words: Vec<_> = alerts
        .map(|alert| pointers.map(|pointer| text(alert, pointer).unwrap_or_default()))
        .collect();
    words.sort_unstable();
    words
}

/// One line about an alert: kind, container, path.
pub fn summary(alert: &Value) -> String {
    let field = |pointer| text(alert, pointer).unwrap_or("-");
    format!(
        "{} {} {}",
        field("/kind"),
        field("/container/id"),
        field("/file/path")
    )
}
