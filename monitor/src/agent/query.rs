//! What the API may ask the owner.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::state::EventCounts;
use crate::{
    containers::Container,
    sensor::{account::Account, hooks::Choice},
};

/// Asks for a [`Snapshot`].
pub(super) struct Query(pub(super) oneshot::Sender<Snapshot>);

/// What the owner knows now.
pub(super) struct Snapshot {
    /// Containers, whether each is running, and its findings.
    pub(super) containers: Vec<(Arc<Container>, bool, u64)>,
    pub(super) counts: EventCounts,
    /// Execs received and not judged yet.
    pub(super) waiting: u64,
    pub(super) account: Account,
    pub(super) choices: Vec<Choice>,
    pub(super) connection: Connection,
}

/// Whether containerd tells what happens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Connection {
    pub(super) connected: bool,
    pub(super) since: jiff::Timestamp,
}

impl Connection {
    pub(super) fn now(connected: bool) -> Self {
        Self {
            connected,
            since: jiff::Timestamp::now(),
        }
    }
}

impl Default for Connection {
    fn default() -> Self {
        Self::now(false)
    }
}
