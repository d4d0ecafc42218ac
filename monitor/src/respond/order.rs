//! Orders, and why one is refused. Pure.

use serde::{Deserialize, Serialize};

use super::spec::SpecError;
use crate::{audit::Who, containerd::ContainerdError, digest::Digest};

/// Bytes of the reason of an order.
pub const REASON_BYTES_MAX: usize = 512;

/// What a responder may order of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Shows what a rollback would do. Nothing is done; the plan is kept under its id for a while.
    Plan(Request),
    /// Carries out a plan, if all is still as it was when it was made.
    Apply {
        /// Its id, which becomes the order's.
        plan: String,
    },
    /// Gives up a plan, or an order that has not begun to stop its container.
    Abort {
        /// Its id.
        order: String,
    },
}

/// What is to be rolled back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Id of a container, a unique beginning of one, or a name.
    pub target: String,
    /// Digest of the manifest or index to roll back to; the last approved one that ran here before if
    /// left out.
    pub to: Option<Digest>,
    /// What becomes of it if the new container does not run.
    pub on_failure: OnFailure,
    /// Why; at most [`REASON_BYTES_MAX`].
    pub reason: String,
    /// Also a StatefulSet.
    pub allow_stateful: bool,
    /// Which container of a workload's pods; the only one if left out.
    pub container: Option<String>,
}

/// What becomes of a rollback whose new container does not run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// All stays as it is then, for people to look at.
    #[default]
    Hold,
    /// The old container is put back and started again.
    Undo,
    /// Neither runs: the new one is stopped as well.
    Stop,
}

impl OnFailure {
    /// Its name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hold => "hold",
            Self::Undo => "undo",
            Self::Stop => "stop",
        }
    }
}

/// Who gave an order, as it is kept with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct By {
    /// See [`Who`].
    pub name: String,
    /// See [`Who`].
    pub roles: Vec<String>,
    /// See [`Who`].
    pub peer: String,
}

impl From<Who> for By {
    fn from(who: Who) -> Self {
        Self {
            name: who.name,
            roles: who.roles,
            peer: who.peer,
        }
    }
}

impl From<By> for Who {
    fn from(by: By) -> Self {
        Self {
            name: by.name,
            roles: by.roles,
            peer: by.peer,
        }
    }
}

/// Why an order is not carried out. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such container.
    #[error("no container {0:?} on this node; `monitorctl container list` lists them")]
    NoContainer(String),
    /// The name means several.
    #[error("{container:?} means {count} containers; give more of the id")]
    Ambiguous {
        /// What was asked for.
        container: String,
        /// How many.
        count: usize,
    },
    /// No such plan or order.
    #[error(
        "no plan {0:?} is known; a plan is kept for 10 minutes and not over a restart: make it again with `monitorctl rollback plan`"
    )]
    NoPlan(String),
    /// Something else has to do it.
    #[error(
        "container {container} is not rolled back here: {who} owns it and would undo that. {how}"
    )]
    Supervised {
        /// Its id.
        container: String,
        /// Who owns it.
        who: &'static str,
        /// What to do instead.
        how: String,
    },
    /// It is of a kind that this node cannot replace.
    #[error("container {container} cannot be replaced: {reason}")]
    Unfit {
        /// Its id.
        container: String,
        /// Why, and what to do.
        reason: &'static str,
    },
    /// Its process cannot be carried over to the image.
    #[error("container {container} cannot be created from {image}: {reason}")]
    Spec {
        /// Its id.
        container: String,
        /// Digest of the image.
        image: Digest,
        /// Why.
        reason: SpecError,
    },
    /// It has no reference of an image.
    #[error("container {0} was created without the name of an image, so it has no repository")]
    NoRepository(String),
    /// Nothing tells what to roll back to.
    #[error(
        "no approved image of {repository} is known to have run as this container before the one that runs; name one with --to, of those that `monitorctl approval list` has"
    )]
    NoTarget {
        /// Its repository.
        repository: String,
    },
    /// It may not run.
    #[error(
        "{digest} is {standing} in {repository}; approve it with `monitorctl approval approve {repository}@{digest} --reason TEXT` if it may run"
    )]
    NotApproved {
        /// The image.
        digest: Digest,
        /// Its repository.
        repository: String,
        /// What is said of it.
        standing: &'static str,
    },
    /// It is not signed as required.
    #[error("{digest} is refused for its signature: {reason}")]
    Signature {
        /// The image.
        digest: Digest,
        /// Why.
        reason: String,
    },
    /// It is another program's.
    #[error("{digest} is an image of {found}, the container is of {repository}")]
    OtherRepository {
        /// The image.
        digest: Digest,
        /// The repository of the container.
        repository: String,
        /// That of the image.
        found: String,
    },
    /// It runs already.
    #[error("container {container} was created from {digest} already")]
    Same {
        /// Its id.
        container: String,
        /// The image.
        digest: Digest,
    },
    /// containerd does not have it.
    #[error(
        "containerd has no image {digest} that runs on this platform; pull it: `ctr -n {namespace} images pull {repository}@{digest}`"
    )]
    NotPresent {
        /// The image.
        digest: Digest,
        /// containerd's namespace.
        namespace: String,
        /// Its repository.
        repository: String,
    },
    /// Its registry was asked for it in vain.
    #[error(
        "containerd has no image {digest}, and it cannot be pulled: {reason}; see to that, or bring it to the node: `ctr -n {namespace} images pull {repository}@{digest}`"
    )]
    NotPullable {
        /// The image.
        digest: Digest,
        /// Why.
        reason: String,
        /// containerd's namespace.
        namespace: String,
        /// Its repository.
        repository: String,
    },
    /// It was built for another machine.
    #[error("{digest} is built for {found}, this node is {node}")]
    Platform {
        /// The image.
        digest: Digest,
        /// What its config says.
        found: String,
        /// What this node is.
        node: String,
    },
    /// Its layers are not unpacked.
    #[error(
        "{digest} is not unpacked for snapshotter {snapshotter}; do so: `ctr -n {namespace} images pull --snapshotter {snapshotter} {repository}@{digest}`"
    )]
    NotUnpacked {
        /// The image.
        digest: Digest,
        /// The container's.
        snapshotter: String,
        /// containerd's namespace.
        namespace: String,
        /// Its repository.
        repository: String,
    },
    /// A workload cannot be rolled back.
    #[error("{workload} is not rolled back: {reason}")]
    Workload {
        /// Which.
        workload: String,
        /// Why, and what to do.
        reason: String,
    },
    /// There is no such workload.
    #[error(
        "the cluster has no {0}; give KIND/NAMESPACE/NAME with deployment, daemonset, statefulset, cronjob or pod"
    )]
    NoWorkload(String),
    /// The API server did not answer a question.
    #[error("{0}")]
    Cluster(String),
    /// There is no number of pods that could be made 0.
    #[error(
        "--on-failure stop: a DaemonSet cannot be stopped but by deleting it; give hold or undo"
    )]
    NoWayToStop,
    /// An order about it ends with the change.
    #[error(
        "a CronJob is changed for what it runs from then on, of which nothing is watched: --on-failure can only be hold"
    )]
    NothingWatched,
    /// What runs must not be started again.
    #[error("--on-failure undo would start again what {0}; give hold or stop")]
    NoWayBack(&'static str),
    /// It is not as it was when the plan was made.
    #[error("the plan is outdated: {0}; make it again with `monitorctl rollback plan`")]
    Outdated(String),
    /// Another order of this container is under way.
    #[error("order {0} of this container is under way; `monitorctl rollback status` shows it")]
    InFlight(String),
    /// It can no longer be given up.
    #[error("order {order} cannot be given up: {reason}")]
    TooLate {
        /// Its id.
        order: String,
        /// Why.
        reason: &'static str,
    },
    /// Too many at once, or within the hour.
    #[error("{0}")]
    Limit(String),
    /// containerd did not answer a question.
    #[error("{0}")]
    Containerd(String),
    /// It cannot be kept.
    #[error("nothing was changed: {0}")]
    Failed(String),
    /// The daemon stops.
    #[error("the daemon is stopping; ask it again once it has started")]
    Stopping,
}

impl Refusal {
    /// containerd said otherwise than expected.
    pub fn of_containerd(error: &ContainerdError) -> Self {
        Self::Containerd(error.to_string())
    }
}

/// A plan that was made, and by whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned<P> {
    /// What is to be done.
    pub plan: P,
    /// What was asked for.
    pub request: Request,
    /// Who asked.
    pub by: By,
    /// When.
    pub at: jiff::Timestamp,
}
