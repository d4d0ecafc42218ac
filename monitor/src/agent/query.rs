//! What the API may ask the owner.

use std::sync::Arc;

use monitor_api::v1::{self, verify_container_response::Executed};
use tokio::sync::{broadcast, oneshot};

use super::{
    state::{ChangeCounts, EventCounts},
    usage::Usage,
};
use crate::{
    api::{
        ApprovalCall, ApprovalCallError, CoverageError, PolicyCall, PolicyCallError, ProfileCall,
        ProfileError,
    },
    approval::{Approvals, cluster::ClusterApprovals},
    changes,
    containers::Container,
    digest::Digest,
    sensor::{account::Account, hooks::Choice},
};

/// A question, and where the answer goes.
pub(super) enum Query {
    /// What the owner knows now.
    Snapshot(oneshot::Sender<Snapshot>),
    /// When a container was watched.
    Coverage(
        CoverageQuestion,
        oneshot::Sender<Result<v1::CoverageResponse, CoverageError>>,
    ),
    /// What ran in a container.
    Executed(Arc<Container>, oneshot::Sender<Executed>),
    /// Policies.
    Policies(
        PolicyCall,
        oneshot::Sender<Result<v1::ListPoliciesResponse, PolicyCallError>>,
    ),
    /// Approvals.
    Approvals(
        ApprovalCall,
        oneshot::Sender<Result<v1::ListApprovalsResponse, ApprovalCallError>>,
    ),
    /// What the cluster's controller told of images.
    ClusterApprovals(
        ClusterApprovals,
        oneshot::Sender<Result<(), ApprovalCallError>>,
    ),
    /// Whether an image may run.
    ApprovalOf(Digest, oneshot::Sender<v1::VerifyApprovalResponse>),
    /// What is said of images.
    Statements(oneshot::Sender<Approvals>),
    /// What happens, from now on.
    Record(oneshot::Sender<broadcast::Receiver<Arc<str>>>),
    /// Policies are to be read now.
    ReadAnew,
    /// What is expected of containers.
    Profiles(
        ProfileCall,
        oneshot::Sender<Result<Vec<v1::Profile>, ProfileError>>,
    ),
}

/// When a container was watched, between two times.
pub(super) struct CoverageQuestion {
    /// Its id, a unique beginning of it, or its name.
    pub(super) container: String,
    /// Since it was created, if left out.
    pub(super) from: Option<jiff::Timestamp>,
    /// Until now, if left out.
    pub(super) to: Option<jiff::Timestamp>,
}

/// What the owner knows now.
pub(super) struct Snapshot {
    /// Containers, whether each is running, and its findings.
    pub(super) containers: Vec<(Arc<Container>, bool, u64)>,
    /// Images by manifest digest, and what is known of their containers.
    pub(super) usage: Vec<(Digest, Usage)>,
    pub(super) counts: EventCounts,
    pub(super) changes: ChangeCounts,
    pub(super) changes_account: changes::Counters,
    /// Execs received and not judged yet.
    pub(super) waiting: u64,
    pub(super) account: Account,
    pub(super) choices: Vec<Choice>,
    pub(super) connection: Connection,
    pub(super) coverage: v1::status::Coverage,
    pub(super) behaviour: v1::status::Behaviour,
    pub(super) policies: v1::status::Policies,
    pub(super) approvals: v1::status::Approvals,
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
