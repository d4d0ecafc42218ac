//! What the owner gathers while it runs.

use std::{
    collections::{HashSet, VecDeque},
    num::NonZeroUsize,
    sync::Arc,
    time::Instant,
};

use lru::LruCache;
use tokio::task::{Id, JoinSet};

use super::{bytes::Read, query::Connection};
use crate::{
    containers::{
        Container,
        inventory::Key,
        processes::{Origin, Processes},
    },
    image::{contents::Contents, error::ContentsError},
    sensor::event::Exec,
};

/// Containers of which it is remembered what was said as a whole and how many findings they had; of
/// more, the one that had none for longest.
const CONTAINERS_MAX: NonZeroUsize = NonZeroUsize::new(16_384).expect("not zero");
/// What became of the events that were received: `received = judged + host + expired_unknown +
/// before_coverage + failed`, and what waits or is in flight.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct EventCounts {
    /// Taken from the sensor.
    pub(super) received: u64,
    /// Judged.
    pub(super) judged: u64,
    /// Found to be the host's.
    pub(super) host: u64,
    /// Of the judged, the runtime's own steps.
    pub(super) runtime: u64,
    /// Of the judged, with the image's bytes in one of its layers.
    pub(super) image: u64,
    /// Of the judged, with the image's bytes and another mode or owner.
    pub(super) metadata_changed: u64,
    /// Of the judged, not comparable, which was said of the container as a whole.
    pub(super) unverifiable: u64,
    /// Given up because it never became known whose they were.
    pub(super) expired_unknown: u64,
    /// Given up because they were seen before containerd told of its containers.
    pub(super) before_coverage: u64,
    /// Given up because of a defect of this program.
    pub(super) failed: u64,
}

/// What the owner gathers while it runs.
pub(super) struct State {
    pub(super) processes: Processes,
    pub(super) waiting: VecDeque<(Instant, Exec)>,
    pub(super) in_flight: JoinSet<Done>,
    /// Containers of which it was said as a whole that they cannot be compared.
    pub(super) told: LruCache<Creation, ()>,
    pub(super) findings: LruCache<Creation, u64>,
    pub(super) execs_in_flight: HashSet<Id>,
    pub(super) counts: EventCounts,
    pub(super) connection: Connection,
    pub(super) listed: bool,
}

impl Default for State {
    fn default() -> Self {
        Self {
            processes: Processes::default(),
            waiting: VecDeque::new(),
            in_flight: JoinSet::new(),
            told: LruCache::new(CONTAINERS_MAX),
            findings: LruCache::new(CONTAINERS_MAX),
            execs_in_flight: HashSet::new(),
            counts: EventCounts::default(),
            connection: Connection::default(),
            listed: false,
        }
    }
}

/// A container, told from a later one of the same name.
pub(super) type Creation = (Key, i128);

pub(super) fn creation(container: &Container) -> Creation {
    (Key::of(container), container.created_unix_ns)
}

/// What a task brings back.
pub(super) enum Done {
    Exec(Box<ReadExec>),
    Contents {
        container: Arc<Container>,
        result: Result<Arc<Contents>, ContentsError>,
    },
}

/// An exec with all that its verdict depends on.
pub(super) struct ReadExec {
    pub(super) exec: Exec,
    pub(super) container: Arc<Container>,
    pub(super) origin: Origin,
    pub(super) ancestors: Vec<Vec<u8>>,
    pub(super) files: Read,
    pub(super) contents: Option<Result<Arc<Contents>, ContentsError>>,
}
