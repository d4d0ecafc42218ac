//! Named consumers of the alerts, and how far each has acknowledged.
//!
//! Acknowledgements are kept in one small file that is replaced as a whole, for all consumers at
//! once. A file that is lost or damaged makes consumers start at the oldest alert again: they get
//! alerts twice rather than not at all.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::warn;

use crate::files;

/// Consumers whose acknowledgements are kept; one more is refused.
pub const CONSUMERS_MAX: usize = 256;

/// Most bytes of a consumer's name.
pub const NAME_BYTES_MAX: usize = 64;

/// Bytes of the file; a longer one is none of ours.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Pause between two writes of the file, also after one failed.
const SAVE_INTERVAL: Duration = Duration::from_millis(50);

/// How far a consumer is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledged {
    /// The journal of the cursor.
    pub journal: String,
    /// The last that it does not need again.
    pub cursor: u64,
}

/// Whether a consumer can be called so: letters, digits, `.`, `_` and `-`.
pub fn is_name(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_allowed)
}

/// There are too many consumers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("acknowledgements of {CONSUMERS_MAX} consumers are kept, which is the limit")]
pub struct TooMany;

/// All named consumers.
#[derive(Debug)]
pub struct Consumers {
    /// `None`: kept in memory.
    path: Option<PathBuf>,
    state: Mutex<State>,
    /// Counts acknowledgements.
    changed: watch::Sender<u64>,
    /// How many of them are on disk.
    saved: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    acknowledged: BTreeMap<String, Acknowledged>,
    /// Who reads under a name now.
    reading: HashMap<String, watch::Sender<()>>,
}

impl Consumers {
    pub(super) fn in_memory() -> Self {
        Self::with(None, BTreeMap::new())
    }

    pub(super) fn open(path: PathBuf) -> Self {
        let acknowledged = match read(&path) {
            Ok(found) => found,
            Err(error) => {
                warn!(%error, path = %path.display(), "cannot read what consumers acknowledged; they start at the oldest alert");
                BTreeMap::new()
            }
        };
        Self::with(Some(path), acknowledged)
    }

    fn with(path: Option<PathBuf>, acknowledged: BTreeMap<String, Acknowledged>) -> Self {
        Self {
            path,
            state: Mutex::new(State {
                acknowledged,
                reading: HashMap::new(),
            }),
            changed: watch::Sender::new(0),
            saved: watch::Sender::new(0),
        }
    }

    /// How far `name` is, if it ever acknowledged.
    pub fn get(&self, name: &str) -> Option<Acknowledged> {
        self.state().acknowledged.get(name).cloned()
    }

    /// How far each is.
    pub fn all(&self) -> BTreeMap<String, Acknowledged> {
        self.state().acknowledged.clone()
    }

    /// Begins to read under `name`. What is returned ends, by an error, when another begins.
    pub fn begin(&self, name: &str) -> watch::Receiver<()> {
        let (sender, receiver) = watch::channel(());
        let mut state = self.state();
        // Those of names that nobody reads under any more.
        state
            .reading
            .retain(|_, sender| sender.receiver_count() > 0);
        state.reading.insert(name.to_owned(), sender);
        receiver
    }

    /// Keeps that `name` has all up to `cursor`; what to wait for in [`Self::saved`].
    ///
    /// # Errors
    ///
    /// [`TooMany`] for a new name.
    pub fn acknowledge(&self, name: &str, journal: &str, cursor: u64) -> Result<u64, TooMany> {
        let mut state = self.state();
        let is_full = state.acknowledged.len() >= CONSUMERS_MAX;
        match state.acknowledged.get_mut(name) {
            Some(before) if before.journal == journal => before.cursor = before.cursor.max(cursor),
            None if is_full => return Err(TooMany),
            _ => {
                let acknowledged = Acknowledged {
                    journal: journal.to_owned(),
                    cursor,
                };
                state.acknowledged.insert(name.to_owned(), acknowledged);
            }
        }
        let mut number = 0;
        self.changed.send_modify(|count| {
            *count += 1;
            number = *count;
        });
        if self.path.is_none() {
            self.saved.send_replace(number);
        }
        Ok(number)
    }

    /// How many acknowledgements are on disk.
    pub fn saved(&self) -> watch::Receiver<u64> {
        self.saved.subscribe()
    }

    /// Writes acknowledgements as they come, until it is dropped.
    pub async fn run(&self) {
        let mut changed = self.changed.subscribe();
        let mut has_failed = false;
        loop {
            if *changed.borrow_and_update() == *self.saved.borrow() {
                // The sender is in `self`, so this cannot fail.
                let _ = changed.changed().await;
                continue;
            }
            match self.save().await {
                Ok(()) => has_failed = false,
                Err(error) if !has_failed => {
                    has_failed = true;
                    warn!(%error, "cannot write what consumers acknowledged; trying again");
                }
                Err(_) => {}
            }
            tokio::time::sleep(SAVE_INTERVAL).await;
        }
    }

    /// Writes what is acknowledged now.
    ///
    /// # Errors
    ///
    /// The system's.
    pub async fn save(&self) -> io::Result<()> {
        let Some(path) = self.path.clone() else {
            return Ok(());
        };
        let (number, acknowledged) = {
            let state = self.state();
            (*self.changed.borrow(), state.acknowledged.clone())
        };
        if number == *self.saved.borrow() {
            return Ok(());
        }
        let writing = tokio::task::spawn_blocking(move || write(&path, &acknowledged));
        writing.await.map_err(io::Error::other)??;
        self.saved.send_replace(number);
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(path: &Path) -> io::Result<BTreeMap<String, Acknowledged>> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error),
        Ok(found) if found.len() > FILE_BYTES_MAX => {
            return Err(io::Error::other("it is too long"));
        }
        Ok(_) => {}
    }
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

fn write(path: &Path, acknowledged: &BTreeMap<String, Acknowledged>) -> io::Result<()> {
    files::replace(path, &serde_json::to_vec(acknowledged)?)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[tokio::test]
    async fn what_was_acknowledged_is_kept_over_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("consumers.json");
        let consumers = Consumers::open(path.clone());
        assert_eq!(consumers.get("soc"), None);
        consumers.acknowledge("soc", "a", 7).unwrap();
        let number = consumers.acknowledge("soc", "a", 5).unwrap();
        let mut saved = consumers.saved();
        tokio::select! {
            () = consumers.run() => {}
            done = saved.wait_for(|saved| *saved >= number) => { done.unwrap(); }
        }
        let soc = |journal: &str, cursor| {
            let journal = journal.to_owned();
            Some(Acknowledged { journal, cursor })
        };
        let again = Consumers::open(path.clone());
        assert_eq!(again.get("soc"), soc("a", 7), "the greatest");
        again.acknowledge("soc", "b", 1).unwrap();
        assert_eq!(again.get("soc"), soc("b", 1), "of another journal");

        fs::write(&path, "damaged").unwrap();
        assert_eq!(Consumers::open(path).all().len(), 0);
    }

    #[test]
    fn consumers_are_bounded_and_one_of_a_name_reads() {
        let consumers = Consumers::in_memory();
        for n in 0..CONSUMERS_MAX {
            consumers.acknowledge(&n.to_string(), "a", 1).unwrap();
        }
        assert_eq!(consumers.acknowledge("one more", "a", 1), Err(TooMany));
        assert!(consumers.acknowledge("7", "a", 2).is_ok());
        let first = consumers.begin("7");
        assert!(first.has_changed().is_ok());
        let second = consumers.begin("7");
        assert!(first.has_changed().is_err() && second.has_changed().is_ok());
    }
}
