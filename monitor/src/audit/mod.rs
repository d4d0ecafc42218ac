//! Who changed what by the API, in a [`chain`] of records that shows what was removed or altered.
//!
//! One thread owns the [`store`]. A change has a record before it is made and one with what came of
//! it; a change that cannot be recorded is not made. What may repeat often is [folded](fold) into
//! counts.

pub mod chain;
mod fold;
mod store;

use std::{
    fmt::Display,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tracing::{error, info, warn};

pub use chain::{Break, Entry, Link, Record, Report};
use fold::Fold;
use store::{FILE_BYTES, Store};

/// Calls that wait for the thread; one more waits for room.
const COMMANDS_MAX: usize = 64;

/// How often it is looked for repeats that are due.
const TICK: Duration = Duration::from_secs(5);

/// Bytes of each text of a record; longer ones are cut.
const TEXT_BYTES_MAX: usize = 512;

/// Roles of a record.
const ROLES_MAX: usize = 8;

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    /// `user 0`, or the names of a certificate.
    pub name: String,
    /// What the caller may do.
    pub roles: Vec<String>,
    /// From where: `pid 4242`, or an address.
    pub peer: String,
}

/// What was called.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Its name in the service.
    pub method: &'a str,
    /// What it is about: `consumer/soc`; empty if it is not known.
    pub object: &'a str,
    /// What more there is to say.
    pub detail: &'a str,
}

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A change is about to be made; another record tells what came of it. Without one, the daemon
    /// ended before it knew.
    Begun,
    /// It is done.
    Done,
    /// It was not done, or not wholly.
    Failed,
    /// The caller has no role for it.
    Refused,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Self::Begun => "begun",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Refused => "refused",
        }
    }
}

/// Why the audit log does not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuditError {
    /// It cannot be written, so nothing may be changed.
    #[error(
        "the audit log at {path} cannot be written: {reason}. Nothing was changed; make room or repair the disk, then try again"
    )]
    Unwritable {
        /// Its directory.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The change was made, and that cannot be written.
    #[error(
        "it was done, but the audit log at {path} could not be told so: {reason}. It says that it was begun"
    )]
    OutcomeUnwritten {
        /// Its directory.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// It cannot be read.
    #[error("the audit log at {path} cannot be read: {reason}")]
    Unreadable {
        /// Its directory.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Its thread has ended, or the change ended by a defect.
    #[error("the audit log has ended, or what was begun has; look at the daemon's log")]
    Ended,
}

/// How the audit log stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The oldest record kept.
    pub first: u64,
    /// The newest; worth noting elsewhere.
    pub head: Link,
    /// Why it cannot be written; `None` while it can.
    pub fault: Option<String>,
    /// Records that could not be written at once.
    pub failures: u64,
}

enum Command {
    Append(Entry, oneshot::Sender<io::Result<()>>),
    Note(Entry, oneshot::Sender<()>),
    Page(u64, usize, oneshot::Sender<io::Result<Vec<Record>>>),
    Check(Option<Link>, oneshot::Sender<io::Result<Report>>),
    Flush(oneshot::Sender<()>),
}

/// A command, and its right to wait for the thread.
type Waiting = (Command, OwnedSemaphorePermit);

/// The audit log. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Audit {
    path: PathBuf,
    room: Arc<Semaphore>,
    commands: SyncSender<Waiting>,
    summary: watch::Receiver<Summary>,
}

impl Audit {
    /// Opens the log below `directory`, or makes it. One that cannot be opened refuses changes until
    /// it can.
    ///
    /// # Errors
    ///
    /// The system's, if there can be no thread.
    pub fn start(directory: &Path) -> io::Result<Self> {
        let (commands, received) = sync_channel(COMMANDS_MAX);
        let (told, summary) = watch::channel(Summary {
            first: 1,
            head: chain::Head::EMPTY.last,
            fault: None,
            failures: 0,
        });
        let mut writer = Writer {
            directory: directory.to_owned(),
            store: None,
            fold: Fold::default(),
            summary: told,
        };
        writer.attempt();
        thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || writer.run(&received))?;
        Ok(Self {
            path: directory.to_owned(),
            room: Arc::new(Semaphore::new(COMMANDS_MAX)),
            commands,
            summary,
        })
    }

    /// How it stands.
    pub fn summary(&self) -> Summary {
        self.summary.borrow().clone()
    }

    /// Makes a change, with a record before it and one of what came of it, both on disk. The change
    /// runs to its end even if its caller goes.
    ///
    /// # Errors
    ///
    /// Those of the change; [`AuditError`], before anything is changed but for
    /// [`AuditError::OutcomeUnwritten`].
    pub async fn change<T, E>(
        &self,
        who: &Who,
        call: Call<'_>,
        change: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: Display + From<AuditError> + Send + 'static,
    {
        let begun = entry(who, call, Outcome::Begun);
        let method = call.method.to_owned();
        let (who, object) = (who.clone(), call.object.to_owned());
        let audit = self.clone();
        let whole = async move {
            let path = audit.path.clone();
            audit
                .append(begun)
                .await?
                .map_err(|reason| AuditError::Unwritable { path, reason })?;
            let result = change.await;
            let detail = result.as_ref().err().map(ToString::to_string);
            let call = Call {
                method: &method,
                object: &object,
                detail: detail.as_deref().unwrap_or_default(),
            };
            let outcome = if detail.is_none() {
                Outcome::Done
            } else {
                Outcome::Failed
            };
            let path = audit.path.clone();
            let told = audit.append(entry(&who, call, outcome)).await?;
            match told {
                Err(reason) if result.is_ok() => {
                    Err(AuditError::OutcomeUnwritten { path, reason }.into())
                }
                _ => result,
            }
        };
        let ended = tokio::spawn(whole).await;
        ended.unwrap_or_else(|_| Err(AuditError::Ended.into()))
    }

    /// Records what may repeat often, and is done or refused whether or not it can be recorded. The
    /// first of its kind is on disk when this returns; of repeats the number will be. What cannot
    /// be written waits until it can.
    pub async fn note(&self, who: &Who, call: Call<'_>, outcome: Outcome) {
        let (told, written) = oneshot::channel();
        let command = Command::Note(entry(who, call, outcome), told);
        match self.send(command).await {
            // An error says that the thread has ended, which is told as the daemon's failure.
            Ok(()) => drop(written.await),
            Err(error) => warn!(%error, who.name, call.method, "a call has no audit record"),
        }
    }

    /// At most `count` records after a sequence.
    ///
    /// # Errors
    ///
    /// See [`AuditError`].
    pub async fn page(&self, after: u64, count: usize) -> Result<Vec<Record>, AuditError> {
        let (told, page) = oneshot::channel();
        self.send(Command::Page(after, count, told)).await?;
        self.read(page.await)
    }

    /// Looks at every record. `noted` is a link that somebody wrote down elsewhere.
    ///
    /// # Errors
    ///
    /// See [`AuditError`]; that the chain is broken is none.
    pub async fn check(&self, noted: Option<Link>) -> Result<Report, AuditError> {
        let (told, report) = oneshot::channel();
        self.send(Command::Check(noted, told)).await?;
        self.read(report.await)
    }

    /// Writes what was counted and has no record yet.
    pub async fn flush(&self) {
        let (told, flushed) = oneshot::channel();
        if self.send(Command::Flush(told)).await.is_ok() {
            // An error says that the thread has ended; there is nothing more to write.
            drop(flushed.await);
        }
    }

    async fn append(&self, entry: Entry) -> Result<Result<(), String>, AuditError> {
        let (told, written) = oneshot::channel();
        self.send(Command::Append(entry, told)).await?;
        let written = written.await.map_err(|_| AuditError::Ended)?;
        Ok(written.map_err(|error| error.to_string()))
    }

    async fn send(&self, command: Command) -> Result<(), AuditError> {
        let permit = Arc::clone(&self.room).acquire_owned().await;
        let permit = permit.map_err(|_| AuditError::Ended)?;
        // There is as much room as there are permits.
        let sent = self.commands.try_send((command, permit));
        sent.map_err(|_| AuditError::Ended)
    }

    fn read<T>(
        &self,
        answer: Result<io::Result<T>, oneshot::error::RecvError>,
    ) -> Result<T, AuditError> {
        let answer = answer.map_err(|_| AuditError::Ended)?;
        answer.map_err(|error| AuditError::Unreadable {
            path: self.path.clone(),
            reason: error.to_string(),
        })
    }
}

fn entry(who: &Who, call: Call<'_>, outcome: Outcome) -> Entry {
    Entry {
        caller: cut(&who.name),
        roles: who
            .roles
            .iter()
            .take(ROLES_MAX)
            .map(|role| cut(role))
            .collect(),
        peer: cut(&who.peer),
        method: cut(call.method),
        object: cut(call.object),
        outcome: outcome.name().to_owned(),
        detail: cut(call.detail),
        count: 1,
        since: None,
    }
}

fn cut(text: &str) -> String {
    if text.len() <= TEXT_BYTES_MAX {
        return text.to_owned();
    }
    let ends = (0..=TEXT_BYTES_MAX).rev();
    let fits = ends.into_iter().find_map(|end| text.get(..end));
    format!("{}…", fits.unwrap_or_default())
}

/// The thread.
struct Writer {
    directory: PathBuf,
    /// `None` until it can be opened.
    store: Option<Store>,
    fold: Fold,
    summary: watch::Sender<Summary>,
}

impl Writer {
    /// Until every [`Audit`] is gone.
    fn run(mut self, commands: &Receiver<Waiting>) {
        let mut due = Instant::now() + TICK;
        loop {
            let wait = due.saturating_duration_since(Instant::now());
            match commands.recv_timeout(wait) {
                Ok((command, _permit)) => self.carry_out(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    let rest = self.fold.rest();
                    return self.write(rest);
                }
            }
            if Instant::now() >= due {
                let entries = self.fold.due(Instant::now());
                self.write(entries);
                due = Instant::now() + TICK;
            }
        }
    }

    fn carry_out(&mut self, command: Command) {
        // That nobody waits for an answer any more changes nothing.
        match command {
            Command::Append(entry, told) => drop(told.send(self.append(&entry))),
            Command::Note(entry, told) => {
                self.note(entry);
                let _ = told.send(());
            }
            Command::Page(after, count, told) => {
                let page = self.opened().and_then(|store| store.page(after, count));
                drop(told.send(page));
            }
            Command::Check(noted, told) => {
                drop(told.send(self.opened().and_then(|store| store.check(noted))));
            }
            Command::Flush(told) => {
                let rest = self.fold.rest();
                self.write(rest);
                let _ = told.send(());
            }
        }
    }

    /// Opens the store, if that was not possible before; what it tells has a record of its own.
    fn opened(&mut self) -> io::Result<&mut Store> {
        if self.store.is_none() {
            let (store, told) = Store::open(&self.directory, FILE_BYTES)?;
            let head = store.head().last;
            info!(sequence = head.sequence, hash = %head.hash, "the audit log begins behind this record");
            let store = self.store.insert(store);
            for detail in told {
                error!(directory = %self.directory.display(), detail, "the audit log is not as it was left");
                let own = Who {
                    name: "monitord".to_owned(),
                    roles: Vec::new(),
                    peer: String::new(),
                };
                let call = Call {
                    method: "audit",
                    object: "",
                    detail: &detail,
                };
                store.append(
                    Timestamp::now().to_string(),
                    entry(&own, call, Outcome::Failed),
                )?;
            }
        }
        self.store
            .as_mut()
            .ok_or_else(|| io::Error::other("it is not open"))
    }

    fn attempt(&mut self) {
        if let Err(error) = self.opened() {
            error!(%error, directory = %self.directory.display(), "the audit log cannot be opened; changes by the API are refused until it can");
            self.fault(&error);
        }
        self.tell();
    }

    fn append(&mut self, entry: &Entry) -> io::Result<()> {
        let time = Timestamp::now().to_string();
        let result = self
            .opened()
            .and_then(|store| store.append(time, entry.clone()));
        match &result {
            Ok(()) => self.summary.send_modify(|summary| summary.fault = None),
            Err(error) => {
                error!(%error, caller = entry.caller, method = entry.method, object = entry.object, "an audit record cannot be written");
                self.fault(error);
            }
        }
        self.tell();
        if result.is_ok() {
            let head = self.summary.borrow().head;
            info!(sequence = head.sequence, hash = %head.hash, caller = entry.caller, peer = entry.peer, method = entry.method, object = entry.object, outcome = entry.outcome, detail = entry.detail, count = entry.count, "audit");
        }
        result
    }

    fn note(&mut self, entry: Entry) {
        let time = Timestamp::now().to_string();
        let first = self.fold.take(entry, &time, Instant::now());
        self.write(Vec::from_iter(first));
    }

    fn write(&mut self, entries: Vec<Entry>) {
        for entry in entries {
            if self.append(&entry).is_err() {
                self.fold.put_back(entry, Instant::now());
            }
        }
    }

    fn fault(&self, error: &io::Error) {
        self.summary.send_modify(|summary| {
            summary.fault = Some(error.to_string());
            summary.failures += 1;
        });
    }

    fn tell(&self) {
        if let Some(store) = &self.store {
            let head = store.head();
            self.summary.send_modify(|summary| {
                summary.first = head.first;
                summary.head = head.last;
            });
        }
    }
}

#[cfg(test)]
pub(crate) mod fixture {
    use super::{Call, Entry, Outcome, Who, entry as make};

    pub(crate) fn who() -> Who {
        Who {
            name: "soc.example".to_owned(),
            roles: vec!["observer".to_owned()],
            peer: "192.0.2.1:4711".to_owned(),
        }
    }

    pub(crate) fn entry(method: &str) -> Entry {
        let call = Call {
            method,
            object: "consumer/soc",
            detail: "",
        };
        make(&who(), call, Outcome::Done)
    }
}

#[cfg(test)]
mod tests;
