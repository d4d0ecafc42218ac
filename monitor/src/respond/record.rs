//! Orders as they are kept, in one file each: written, and on disk, before each step is made.

use std::{
    io,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    ledger::{Kept, ORDERS_MAX},
    order::By,
    plan::Plan,
    progress::{State, Step},
};
use crate::files;

/// Bytes of the file of an order; most of it is a container's OCI spec.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// Files that are read at the start.
const FILES_MAX: usize = 4 * ORDERS_MAX;

/// An order, and how it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The plan's id.
    pub id: String,
    /// What is done.
    pub plan: Plan,
    /// Who ordered it.
    pub by: By,
    /// When it began.
    pub began_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// How it stands.
    pub state: State,
    /// The step that is made, or was made last.
    pub step: Step,
    /// Bytes that were written of the image since the step `pull` was begun.
    #[serde(default)]
    pub pulled_bytes: u64,
    /// When each step was begun, the last time.
    pub begun: Vec<(Step, Timestamp)>,
    /// What went wrong first; empty if nothing did.
    pub failure: String,
    /// It is to be given up.
    pub is_aborted: bool,
    /// How many daemons went on with it that had not begun it.
    pub resumed: u32,
}

impl Record {
    /// An order that begins now.
    pub fn new(id: String, plan: Plan, by: By, now: Timestamp) -> Self {
        Self {
            id,
            step: plan.first_step(),
            plan,
            by,
            began_at: now,
            ended_at: None,
            state: State::Running,
            pulled_bytes: 0,
            begun: Vec::new(),
            failure: String::new(),
            is_aborted: false,
            resumed: 0,
        }
    }

    /// Id under which the old container is kept.
    pub fn kept(&self) -> String {
        self.plan.kept(&self.id)
    }

    /// When a step was begun.
    pub fn begun_at(&self, step: Step) -> Option<Timestamp> {
        let found = self.begun.iter().find(|(begun, _)| *begun == step);
        found.map(|(_, at)| *at)
    }

    /// A step begins.
    pub fn begin(&mut self, step: Step, now: Timestamp) {
        self.step = step;
        if step == Step::Pull {
            self.pulled_bytes = 0;
        }
        self.begun.retain(|(begun, _)| *begun != step);
        self.begun.push((step, now));
    }
}

impl Kept for Record {
    type Plan = Plan;

    fn id(&self) -> &str {
        &self.id
    }

    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn state(&self) -> State {
        self.state
    }

    fn began_at(&self) -> Timestamp {
        self.began_at
    }

    fn ended_at(&self) -> Option<Timestamp> {
        self.ended_at
    }
}

/// The directory of orders.
#[derive(Clone, Debug)]
pub struct Store {
    directory: PathBuf,
}

impl Store {
    /// Opens the directory, or makes it, and reads what is there. What cannot be read is told and left
    /// alone. Blocks.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn open(directory: PathBuf) -> io::Result<(Self, Vec<Record>)> {
        files::open_directory(&directory)?;
        let mut records = Vec::new();
        for entry in std::fs::read_dir(&directory)?.take(FILES_MAX) {
            let path = entry?.path();
            match read::<Record>(&path) {
                Ok(record) => records.push(record),
                Err(reason) => {
                    tracing::error!(path = %path.display(), reason, "an order cannot be read; look at its containers by hand, then remove the file");
                }
            }
        }
        records.sort_by_key(|record| record.began_at);
        Ok((Self { directory }, records))
    }

    /// Keeps an order as it is now. Blocks until it is on disk.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn save(&self, record: &Record) -> io::Result<()> {
        files::replace(&self.path(&record.id), &serde_json::to_vec(record)?)
    }

    /// Forgets an order. Blocks.
    pub fn forget(&self, id: &str) {
        if let Err(error) = std::fs::remove_file(self.path(id)) {
            tracing::warn!(%error, id, "the file of an old order stays");
        }
    }

    fn path(&self, id: &str) -> PathBuf {
        self.directory.join(format!("{id}.json"))
    }
}

/// What a file of ours holds.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, String> {
    let bytes = files::read(path, FILE_BYTES_MAX).map_err(|error| error.to_string())?;
    serde_json::from_slice(&bytes).map_err(|error| error.to_string())
}
