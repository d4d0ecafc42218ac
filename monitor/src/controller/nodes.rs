//! What the nodes report to run, and what that proves.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use monitor_api::v1;
use tokio::sync::watch;

use super::record::Expected;
use crate::digest::Digest;

/// Nodes whose reports are kept; those of further ones are refused, which their status tells.
pub const NODES_MAX: usize = 5000;
/// Containers of one report.
pub const REPORT_MAX: usize = 4096;
/// Containers of all reports; a report that would make more is refused, which its node's status tells.
pub const CONTAINERS_MAX: usize = 200_000;
/// Bytes of one report, as it is sent.
pub const REPORT_BYTES_MAX: usize = 8 << 20;
/// Bytes of all reports, likewise.
pub const BYTES_MAX: usize = 256 << 20;
/// Age at which a report is no evidence any more; a node makes one every 10 s.
pub const REPORT_AGE_MAX: Duration = Duration::from_secs(30);

/// The identity that the node's chain ID proves.
const PROVEN: &str = "proven";

/// A report was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// [`NODES_MAX`].
    #[error("{NODES_MAX} nodes report, which is the limit")]
    Nodes,
    /// [`REPORT_MAX`] or [`CONTAINERS_MAX`].
    #[error("a report has at most {REPORT_MAX} containers, and all together {CONTAINERS_MAX}")]
    Containers,
    /// [`REPORT_BYTES_MAX`] or [`BYTES_MAX`].
    #[error("a report has at most {REPORT_BYTES_MAX} bytes, and all together {BYTES_MAX}")]
    Bytes,
}

/// Whether a report of so many containers and bytes is taken, as far as it is alone.
///
/// # Errors
///
/// See [`ReportError`].
pub fn bounded(containers: usize, bytes: usize) -> Result<(), ReportError> {
    if containers > REPORT_MAX {
        Err(ReportError::Containers)
    } else if bytes > REPORT_BYTES_MAX {
        Err(ReportError::Bytes)
    } else {
        Ok(())
    }
}

/// What one node reported last.
struct Report {
    at: Instant,
    bytes: usize,
    containers: Vec<v1::Container>,
}

#[derive(Default)]
struct State {
    reports: HashMap<String, Report>,
    containers: usize,
    bytes: usize,
}

/// What the nodes report.
pub struct Nodes {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

impl Default for Nodes {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            changed: watch::channel(0).0,
        }
    }
}

impl Nodes {
    /// Takes a whole report of a node, in place of its last one.
    ///
    /// # Errors
    ///
    /// See [`ReportError`]; then its last one stands, and ages.
    pub fn report(
        &self,
        node: &str,
        containers: Vec<v1::Container>,
        bytes: usize,
    ) -> Result<(), ReportError> {
        bounded(containers.len(), bytes)?;
        let mut state = self.state();
        let before = state.reports.get(node);
        let is_new = before.is_none();
        let (count, size) = before.map_or((0, 0), |it| (it.containers.len(), it.bytes));
        let (count, size) = (
            state.containers - count + containers.len(),
            state.bytes - size + bytes,
        );
        if is_new && state.reports.len() >= NODES_MAX {
            return Err(ReportError::Nodes);
        }
        if count > CONTAINERS_MAX {
            return Err(ReportError::Containers);
        }
        if size > BYTES_MAX {
            return Err(ReportError::Bytes);
        }
        (state.containers, state.bytes) = (count, size);
        let report = Report {
            at: Instant::now(),
            bytes,
            containers,
        };
        state.reports.insert(node.to_owned(), report);
        drop(state);
        self.changed.send_modify(|count| *count += 1);
        Ok(())
    }

    /// Forgets nodes that have not reported for long.
    pub fn forget_silent(&self) {
        let mut state = self.state();
        state
            .reports
            .retain(|_, it| it.at.elapsed() < REPORT_AGE_MAX);
        state.containers = state.reports.values().map(|it| it.containers.len()).sum();
        state.bytes = state.reports.values().map(|it| it.bytes).sum();
    }

    /// Changes with each report.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// What `look` makes of each container that is reported, and of its node. No report is taken
    /// meanwhile.
    pub fn each<T>(&self, look: impl Fn(&str, &v1::Container) -> Option<T>) -> Vec<T> {
        let state = self.state();
        let all = state.reports.iter().flat_map(|(node, report)| {
            let containers = report.containers.iter();
            containers.filter_map(|it| look(node, it))
        });
        all.collect()
    }

    /// The containers of one name in a pod, of which `node` alone may speak. Restarts may have left
    /// several. `None` if it has not reported of late.
    pub fn of_pod(&self, node: &str, uid: &str, name: &str) -> Option<Vec<v1::Container>> {
        let state = self.state();
        let report = state.reports.get(node)?;
        if report.at.elapsed() >= REPORT_AGE_MAX {
            return None;
        }
        let is_it = |it: &&v1::Container| {
            let container = it.container.as_ref();
            container.is_some_and(|it| {
                it.name == name && it.pod.as_ref().is_some_and(|pod| pod.uid == uid)
            })
        };
        Some(report.containers.iter().filter(is_it).cloned().collect())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The digests by which a reported image is known: its manifest's, and then its index's.
pub fn digests(image: &v1::alert::Image) -> Vec<Digest> {
    let digests = [&image.manifest_digest, &image.index_digest];
    digests.iter().filter_map(|it| it.parse().ok()).collect()
}

/// What reports say of a pod's container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// It runs what it should.
    Given,
    /// Nothing is known yet; what is missing.
    Missing(String),
    /// It runs something else; what.
    Against(String),
}

/// What the reports about a container, as [`Nodes::of_pod`] has them, prove.
pub fn judge(reported: Option<&[v1::Container]>, expected: &Expected) -> Proof {
    let Some(reported) = reported else {
        return Proof::Missing("its node does not report".to_owned());
    };
    let Some(newest) = reported.iter().max_by_key(|it| {
        let started = it.started_at.as_ref();
        started.map(|at| (at.seconds, at.nanos))
    }) else {
        return Proof::Missing("its node does not report it yet".to_owned());
    };
    let image = newest.image.clone().unwrap_or_default();
    if image.identity != PROVEN {
        let identity = match image.identity.as_str() {
            "" => "pending",
            graded => graded,
        };
        return Proof::Missing(format!(
            "the identity of its image is {identity}, not proven"
        ));
    }
    let has = |text: &str, all: &std::collections::BTreeSet<Digest>| {
        text.parse().is_ok_and(|digest| all.contains(&digest))
    };
    let is_manifest = has(&image.manifest_digest, &expected.manifests)
        || has(&image.index_digest, &expected.manifests);
    let is_chain = expected.chain_ids.is_empty() || has(&image.chain_id, &expected.chain_ids);
    let seen = format!(
        "it is proven to run {} with chain ID {}",
        image.manifest_digest, image.chain_id
    );
    match (is_manifest && is_chain, expected.chain_ids.is_empty()) {
        (true, _) => Proof::Given,
        (false, false) => Proof::Against(seen),
        // Without a registry it is not known what an index leads to, until its node says so.
        (false, true) => Proof::Missing(seen),
    }
}
