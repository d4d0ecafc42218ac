//! Outputs of alerts beside the API: files, standard output and NATS JetStream.
//!
//! Each is a consumer of the log with a name and a thread of its own: it reads at its own pace,
//! writes, syncs and only then acknowledges, so that what it had not synced when the daemon was
//! killed is written again. Copies have the same journal and cursor. One that cannot write tries
//! again and again, and what expires meanwhile it tells in its place; nobody else waits for it.

mod batch;
pub mod nats;
mod sink;
mod worker;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use jiff::Timestamp;
use monitor_api::v1;
use serde::Deserialize;
use tokio::{
    runtime::Handle,
    sync::{oneshot, watch},
    time::{Instant, timeout_at},
};

use crate::alerts::{AlertLog, build::timestamp, consumers};
use worker::{Stop, Worker};

/// Most outputs.
pub const OUTPUTS_MAX: usize = 8;

/// What a consumer is called before the output's name; no client of the API can have such a name.
const CONSUMER_PREFIX: &str = "output:";

/// How long outputs have at the end to write what there is.
const END_TIME_MAX: Duration = Duration::from_secs(2);

/// The path that means standard output.
const STDOUT: &str = "-";

/// An output, as it is configured.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Its name: how far it has come is kept under it.
    pub name: String,
    /// How alerts are written.
    pub kind: Kind,
    /// The file to append to, or `-` for standard output.
    pub path: Option<PathBuf>,
    /// Or a stream of a NATS server.
    pub nats: Option<nats::Settings>,
}

/// Where an output writes to.
#[derive(Clone, Copy, Debug)]
enum Place<'a> {
    File(&'a Path),
    Nats(&'a nats::Settings),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(formatter, "{}", path.display()),
            Self::Nats(nats) => write!(formatter, "{} {}", nats.url, nats.subject),
        }
    }
}

impl Settings {
    fn place(&self) -> Place<'_> {
        match &self.nats {
            Some(nats) => Place::Nats(nats),
            None => Place::File(self.path.as_deref().unwrap_or(Path::new(""))),
        }
    }
}

/// How alerts are written: one JSON object per line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// As `monitorctl alerts -o json` does.
    Jsonl,
    /// As OCSF Detection Findings.
    Ocsf,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Jsonl => "jsonl",
            Self::Ocsf => "ocsf",
        }
    }
}

/// Outputs that make no sense.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// Too many.
    #[error("there are {0}; at most {OUTPUTS_MAX} are allowed")]
    TooMany(usize),
    /// Not a name.
    #[error(
        "the name {0:?} must have 1 to {max} letters, digits, `.`, `_` and `-`",
        max = consumers::NAME_BYTES_MAX
    )]
    Name(String),
    /// Not a path that means the same from everywhere.
    #[error("the path {0:?} is neither absolute nor `-`")]
    Path(PathBuf),
    /// Nowhere to write to, or more than one place.
    #[error("{0} needs either path or nats")]
    Place(String),
    /// A stream that makes no sense.
    #[error(transparent)]
    Nats(#[from] nats::SettingsError),
    /// Two would write into each other, or share how far they have come.
    #[error("two have the name or place {0:?}")]
    Twice(String),
}

/// Whether outputs make sense together.
///
/// # Errors
///
/// What does not.
pub fn check(outputs: &[Settings]) -> Result<(), SettingsError> {
    if outputs.len() > OUTPUTS_MAX {
        return Err(SettingsError::TooMany(outputs.len()));
    }
    for (index, output) in outputs.iter().enumerate() {
        if !consumers::is_name(&output.name) {
            return Err(SettingsError::Name(output.name.clone()));
        }
        match (&output.path, &output.nats) {
            (Some(path), None) if path.is_absolute() || path == Path::new(STDOUT) => {}
            (Some(path), None) => return Err(SettingsError::Path(path.clone())),
            (None, Some(nats)) => nats.check()?,
            _ => return Err(SettingsError::Place(output.name.clone())),
        }
        let mut others = outputs.iter().take(index);
        if others.any(|other| other.name == output.name) {
            return Err(SettingsError::Twice(output.name.clone()));
        }
        let place = output.place().to_string();
        let mut others = outputs.iter().take(index);
        if others.any(|other| other.place().to_string() == place) {
            return Err(SettingsError::Twice(place));
        }
    }
    Ok(())
}

/// The outputs of a daemon.
#[derive(Debug, Default)]
pub struct Outputs {
    accounts: Vec<Arc<Account>>,
    stop: watch::Sender<Stop>,
    ended: Mutex<Vec<oneshot::Receiver<()>>>,
}

impl Outputs {
    /// Starts a thread for each, on this node of this cluster. They read with the runtime that
    /// this is called in.
    ///
    /// # Errors
    ///
    /// The system's, when it has no more threads.
    pub fn start(
        outputs: &[Settings],
        log: &AlertLog,
        cluster: &str,
        node: &str,
    ) -> io::Result<Self> {
        let mut started = Self::default();
        for settings in outputs {
            let account = Arc::new(Account::new(settings.clone()));
            let worker = Worker::new(
                Arc::clone(&account),
                log.clone(),
                Handle::current(),
                started.stop.subscribe(),
                (cluster, node),
            );
            let (alive, ended) = oneshot::channel();
            thread::Builder::new()
                .name("output".to_owned())
                .spawn(move || {
                    worker.run();
                    drop(alive);
                })?;
            started.accounts.push(account);
            started.lock_ended().push(ended);
        }
        Ok(started)
    }

    /// What each says of itself.
    pub fn status(&self) -> Vec<v1::status::Output> {
        self.accounts
            .iter()
            .map(|account| account.status())
            .collect()
    }

    /// Has each write what there is, and waits for that, though not for long: what is left is
    /// written by the next daemon.
    pub async fn stop(&self) {
        self.stop.send_replace(Stop::WhenDone);
        let deadline = Instant::now() + END_TIME_MAX;
        let all = std::mem::take(&mut *self.lock_ended());
        for ended in all {
            // Either way it ends: nothing is ever sent.
            let _ = timeout_at(deadline, ended).await;
        }
        self.stop.send_replace(Stop::Now);
    }

    fn lock_ended(&self) -> MutexGuard<'_, Vec<oneshot::Receiver<()>>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is told of an output.
#[derive(Debug)]
struct Account {
    settings: Settings,
    counts: Mutex<Counts>,
}

#[derive(Clone, Debug, Default)]
struct Counts {
    /// The newest cursor that is written.
    cursor: u64,
    written: u64,
    missing: u64,
    failures: u64,
    failing: Option<(Timestamp, String)>,
}

impl Account {
    fn new(settings: Settings) -> Self {
        Self {
            settings,
            counts: Mutex::default(),
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn status(&self) -> v1::status::Output {
        let counts = self.counts().clone();
        let (since, error) = counts.failing.unzip();
        v1::status::Output {
            name: self.settings.name.clone(),
            kind: self.settings.kind.name().to_owned(),
            path: self.settings.place().to_string(),
            cursor: counts.cursor,
            written: counts.written,
            missing: counts.missing,
            failures: counts.failures,
            failing_since: since.map(timestamp),
            error: error.unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests;
