//! The node's side of the gRPC API.
//!
//! [`listener`] makes the sockets and tells who calls, [`server`] runs tonic on it, [`service`] answers; what it answers
//! from is behind [`Node`], which the owner of the inventory implements.

mod account;
pub mod address;
mod alerts;
mod approvals;
mod audit;
pub mod caller;
mod cluster;
mod fanout;
#[cfg(test)]
pub(crate) mod fixture;
mod frames;
mod guard;
mod join;
pub mod listener;
mod pages;
mod policies;
mod process;
mod profiles;
mod publish;
mod rollbacks;
pub mod server;
mod service;
#[cfg(test)]
mod tests;
pub mod tls;
mod unix;
pub mod upstream;

use std::{sync::Arc, time::Duration};

use monitor_api::v1;
use tokio::sync::{broadcast, mpsc};

use crate::{
    audit::Who,
    respond::{Order, Refusal},
};

pub use account::Account;
pub use address::Address;
pub use approvals::{ApprovalCall, ApprovalCallError};
pub use caller::Roles;
pub use cluster::Members;
pub use join::{Controller, Joiner, Member};
pub use listener::{BindError, Listener, Security};
pub use publish::Collector;
pub use server::{ServeError, serve};
pub use tls::{Tls, TlsFiles};
/// What an implementation of [`Node`] is marked with.
pub use tonic::async_trait;

/// Connections open at once; of a controller beside those of nodes
/// ([`NODES_MAX`](crate::controller::nodes::NODES_MAX)). One more is accepted and closed at once,
/// counted as `connections_refused`.
pub const CONNECTIONS_MAX: usize = 512;

/// Requests and streams at once on one connection. HTTP/2 makes the client wait beyond it.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 32;

/// Alert streams open at once. One more is refused with RESOURCE_EXHAUSTED, counted as
/// `alert_streams_refused`.
pub const ALERT_STREAMS_MAX: usize = 256;

/// Pieces of some alerts each, of 32 KiB and one alert at most, that wait for the client of one alert
/// stream. At the bound the stream waits; what expires meanwhile, its client is told.
pub const STREAM_AHEAD_MAX: usize = 2;

/// Entries in one message of an image's contents: with two paths of 4 KiB each they stay below
/// [`monitor_api::MESSAGE_BYTES_MAX`].
pub const ENTRIES_PER_MESSAGE_MAX: usize = 128;

const _: () = assert!(ENTRIES_PER_MESSAGE_MAX * (2 * 4096 + 512) < monitor_api::MESSAGE_BYTES_MAX);

/// Longest time for an answer, or for the head of one that streams; DEADLINE_EXCEEDED beyond.
pub const REQUEST_TIME_MAX: Duration = Duration::from_secs(10);

/// Longest silence on an alert stream.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);

/// Silence on a connection after which its client is asked whether it is there, and the time it has
/// to answer.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);

/// Longest time that open streams are given to take what is there when the daemon stops.
pub const DRAIN_TIME_MAX: Duration = Duration::from_secs(5);

/// What the API answers from.
#[tonic::async_trait]
pub trait Node: Send + Sync + 'static {
    /// The containers of this node, sorted by namespace and id.
    async fn containers(&self) -> Vec<v1::Container>;

    /// The images of this node, sorted by manifest digest.
    async fn images(&self) -> Vec<v1::Image>;

    /// What `image` (a reference, a manifest or config digest) holds: everything, or what `path`
    /// resolves to inside it.
    async fn image_contents(
        &self,
        image: &str,
        path: Option<&[u8]>,
    ) -> Result<ImageContents, ContentsError>;

    /// Compares the root filesystem of `container` (an id, a unique beginning of one, or a name) with
    /// its image. The receiver is closed when all was told; dropping it ends the comparison.
    async fn verify_container(
        &self,
        container: &str,
    ) -> Result<mpsc::Receiver<v1::VerifyContainerResponse>, VerifyError>;

    /// Reads the blobs of `image` again and checks their digests, in the same way.
    async fn verify_image(
        &self,
        image: &str,
    ) -> Result<mpsc::Receiver<v1::VerifyImageResponse>, ContentsError>;

    /// Which image ran here and when, sorted by manifest digest.
    async fn image_usage(&self) -> Vec<v1::ImageUsageResponse>;

    /// When `container` (an id, a unique beginning of one, or a name) was watched between two times;
    /// since it was created and until now if they are left out.
    async fn coverage(
        &self,
        container: &str,
        from: Option<jiff::Timestamp>,
        to: Option<jiff::Timestamp>,
    ) -> Result<v1::CoverageResponse, CoverageError>;

    /// Carries out a call about policies: all that is in force, or the exception that was made.
    async fn policies(&self, call: PolicyCall)
    -> Result<v1::ListPoliciesResponse, PolicyCallError>;

    /// Lines of what happens from now on, for trying policies; `None` if the daemon stops.
    async fn record(&self) -> Option<broadcast::Receiver<Arc<str>>>;

    /// Carries out a call about profiles: those that it is about, with their documents unless it lists
    /// all.
    async fn profiles(&self, call: ProfileCall) -> Result<Vec<v1::Profile>, ProfileError>;

    /// Carries out a call about approvals: all that was said, or what was said by it.
    async fn approvals(
        &self,
        call: ApprovalCall,
    ) -> Result<v1::ListApprovalsResponse, ApprovalCallError>;

    /// Whether `image` (a reference, a manifest or config digest) may run.
    async fn approval_of(
        &self,
        image: &str,
    ) -> Result<v1::VerifyApprovalResponse, ApprovalCallError>;

    /// Takes an order about rollbacks; who gives it may.
    async fn rollback(&self, order: Order, who: Who) -> Result<v1::Rollback, Refusal>;

    /// Plans and orders, oldest first.
    async fn rollbacks(&self) -> Vec<v1::Rollback>;

    /// The node's account of itself. `version`, `started_at`, `ready`, `alerts`, `audit`, `api` and
    /// `memory_resident_bytes` are filled in by the API.
    async fn status(&self) -> v1::Status;
}

/// What was asked for is known on nodes alone; FAILED_PRECONDITION.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is the controller of the cluster; ask the daemon of the node, at its own address")]
pub struct Elsewhere;

/// What an image holds.
pub struct ImageContents {
    /// Digest of the manifest that was meant.
    pub manifest_digest: String,
    /// What the contents were read from (`verified`).
    pub evidence: String,
    /// Sorted by path. Pulled as the client reads, so it may be long; it must not block.
    pub entries: Box<dyn Iterator<Item = v1::ImageEntry> + Send>,
}

/// A call about policies.
#[derive(Clone, Debug, PartialEq)]
pub enum PolicyCall {
    /// What is in force.
    List,
    /// Makes an exception of findings like an alert's.
    AddException {
        /// The alert.
        alert: Box<v1::Alert>,
        /// Until when it holds.
        until: jiff::Timestamp,
        /// Why.
        reason: String,
        /// Who answers for it.
        owner: String,
    },
    /// Removes one.
    RemoveException {
        /// Its id.
        id: String,
    },
}

/// Why a call about policies was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyCallError {
    /// No such exception that the API made; NOT_FOUND.
    #[error(
        "no exception {0:?} was made by `monitorctl exception add`; `monitorctl exception list` lists them"
    )]
    NoException(String),
    /// It would hold for too long, or not at all; INVALID_ARGUMENT.
    #[error("until: give a time between now and a year from now")]
    Until,
    /// RESOURCE_EXHAUSTED.
    #[error("there are {0} exceptions, which is the limit; remove some")]
    Full(usize),
    /// It could not be put in force or kept; INTERNAL.
    #[error("nothing was changed: {0}")]
    Failed(String),
    /// The daemon stops; UNAVAILABLE.
    #[error("the daemon is stopping; ask it again once it has started")]
    Stopping,
    /// The controller was asked; FAILED_PRECONDITION.
    #[error(transparent)]
    Elsewhere(#[from] Elsewhere),
}

/// A call about profiles. Images are named by a reference or a digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProfileCall {
    /// All of them, without their documents.
    List,
    /// One.
    Get {
        /// Of which image.
        image: String,
    },
    /// Puts one in force.
    Import {
        /// The document in YAML.
        document: String,
    },
    /// Has one learn again.
    Learn {
        /// Of which image.
        image: String,
    },
    /// Ends learning.
    Freeze {
        /// Of which image.
        image: String,
        /// Who calls.
        by: String,
    },
}

/// Why a call about profiles was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// No such profile; NOT_FOUND.
    #[error(
        "no profile of {0:?} on this node; `monitorctl profile list` lists those that are there"
    )]
    NoProfile(String),
    /// The name means several; FAILED_PRECONDITION.
    #[error("{image:?} means several profiles, name one by its digest: {digests}")]
    Ambiguous {
        /// What was asked for.
        image: String,
        /// The manifest digests it may mean.
        digests: String,
    },
    /// A document that is none; INVALID_ARGUMENT.
    #[error("the profile is refused: {0}")]
    Refused(String),
    /// It is changed where it lies; FAILED_PRECONDITION.
    #[error("the profile of {0} comes from the folder of profiles; change it there")]
    InFolder(String),
    /// RESOURCE_EXHAUSTED.
    #[error("there are {0} profiles of images that run, which is the limit")]
    Full(usize),
    /// The daemon stops; UNAVAILABLE.
    #[error("the daemon is stopping; ask it again once it has started")]
    Stopping,
    /// The controller was asked; FAILED_PRECONDITION.
    #[error(transparent)]
    Elsewhere(#[from] Elsewhere),
}

/// Why it cannot be said when a container was watched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CoverageError {
    /// No such container, or it went too long ago; NOT_FOUND.
    #[error(
        "no container {0:?} is known on this node; `monitorctl container list` lists those that are there"
    )]
    NoContainer(String),
    /// The name means several; FAILED_PRECONDITION.
    #[error("{container:?} means {count} containers; give more of the id")]
    Ambiguous {
        /// What was asked for.
        container: String,
        /// How many.
        count: usize,
    },
    /// The daemon stops; UNAVAILABLE.
    #[error("the daemon is stopping; ask it again once it has started")]
    Stopping,
    /// The controller was asked; FAILED_PRECONDITION.
    #[error(transparent)]
    Elsewhere(#[from] Elsewhere),
}

/// Why a container cannot be compared with its image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// No such container; NOT_FOUND.
    #[error("no container {0:?} on this node; `monitorctl container list` lists them")]
    NoContainer(String),
    /// The name means several; FAILED_PRECONDITION.
    #[error("{container:?} means {count} containers; give more of the id")]
    Ambiguous {
        /// What was asked for.
        container: String,
        /// How many.
        count: usize,
    },
    /// It does not run, its root filesystem cannot be read, or what its image holds is not known;
    /// FAILED_PRECONDITION.
    #[error("container {container} cannot be compared with its image: {reason}")]
    Impossible {
        /// Its id.
        container: String,
        /// Why.
        reason: String,
    },
    /// Another comparison runs; RESOURCE_EXHAUSTED.
    #[error("another container is being compared with its image; try again when that is done")]
    Busy,
    /// The controller was asked; FAILED_PRECONDITION.
    #[error(transparent)]
    Elsewhere(#[from] Elsewhere),
}

/// Why there are no contents.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContentsError {
    /// No such image; NOT_FOUND.
    #[error("no image {0:?} on this node; `monitorctl image list` lists them")]
    NoImage(String),
    /// No such path in the image; NOT_FOUND.
    #[error("no path {path:?} in image {image}")]
    NoPath {
        /// The image.
        image: String,
        /// The path as text.
        path: String,
    },
    /// The name means several images; FAILED_PRECONDITION.
    #[error("{image:?} means several images, name one by its digest: {digests}")]
    Ambiguous {
        /// What was asked for.
        image: String,
        /// The manifest digests it may mean.
        digests: String,
    },
    /// Its contents are not known, or not yet; FAILED_PRECONDITION.
    #[error("the contents of {image} are not known: {reason}")]
    NotIndexed {
        /// The image.
        image: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The controller was asked; FAILED_PRECONDITION.
    #[error(transparent)]
    Elsewhere(#[from] Elsewhere),
}
