//! The only module that speaks to containerd: its gRPC services, in types of our own.
//!
//! Measured on containerd 1.6.20: the event stream sends no response headers before the first
//! event, so that nothing tells a subscriber when its subscription is in force; see
//! [`Client::subscribe`].

mod change;
mod content;
mod events;
mod records;
mod supply;

use std::{
    future::Future,
    io,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use containerd_client::services::v1::{
    GetContainerRequest, GetImageRequest, ListContainersRequest, ListImagesRequest,
    ListNamespacesRequest, ListTasksRequest,
    containers_client::ContainersClient,
    images_client::ImagesClient,
    namespaces_client::NamespacesClient,
    snapshots::{MountsRequest, StatSnapshotRequest, snapshots_client::SnapshotsClient},
    tasks_client::TasksClient,
    version_client::VersionClient,
};
use tokio::{net::UnixStream, sync::OnceCell, time::timeout};
use tonic::{
    Code, Request, Status, Streaming,
    metadata::AsciiMetadataValue,
    transport::{Channel, Endpoint},
};

pub use change::{NewContainer, Stdio, TaskDetails, TaskState};
pub use events::{Event, Events};
pub use records::{ContainerRecord, Extension, ImageRecord, SnapshotRecord, TaskRecord};
use records::{container, image, lower_directories, task};
pub use supply::{Blob, NewLayer, WriteError};

use crate::clock::unix_ns;

/// How long containerd may take to answer one question.
pub const CALL_SECONDS_MAX: u64 = 10;
/// Bytes of one message that are taken from containerd.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Containers, tasks, images or namespaces that are taken of one listing; more fail it.
pub const LISTED_MAX: usize = 65_536;

const CALL_TIME_MAX: Duration = Duration::from_secs(CALL_SECONDS_MAX);

/// containerd cannot be reached, or a call to it failed.
#[derive(Debug, thiserror::Error)]
pub enum ContainerdError {
    /// Nothing is at the address.
    #[error(
        "cannot connect to containerd: {} does not exist; start containerd, or give the address of \
         its socket with --containerd",
        .0.display()
    )]
    NoSocket(PathBuf),
    /// Something else is at the address.
    #[error(
        "cannot connect to containerd: {} is not a socket; give the address of containerd's socket \
         with --containerd",
        .0.display()
    )]
    NotASocket(PathBuf),
    /// The socket is another user's.
    #[error(
        "cannot connect to containerd at {}: permission denied; run as root",
        .0.display()
    )]
    Denied(PathBuf),
    /// The socket's owner is gone or does not answer.
    #[error(
        "cannot connect to containerd at {}: {reason}; see whether containerd runs",
        address.display()
    )]
    NobodyAnswers {
        /// The socket.
        address: PathBuf,
        /// What happened instead.
        reason: String,
    },
    /// What was asked for is not there.
    #[error("containerd has no {0}")]
    NotFound(String),
    /// What was to be made is there.
    #[error("containerd already has {0}")]
    Exists(String),
    /// A call failed; the connection may be lost.
    #[error("containerd: {what}: {reason}")]
    Failed {
        /// What was attempted, on what.
        what: String,
        /// What containerd or the transport said.
        reason: String,
    },
    /// A listing is longer than [`LISTED_MAX`].
    #[error("containerd lists more than {LISTED_MAX} {0}; this node cannot be watched")]
    TooMany(&'static str),
}

impl ContainerdError {
    /// Whether containerd answered that there is no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound(_))
    }

    fn of(what: String, status: &Status) -> Self {
        if status.code() == Code::NotFound {
            return Self::NotFound(what);
        }
        if status.code() == Code::AlreadyExists {
            return Self::Exists(what);
        }
        Self::Failed {
            what,
            // containerd's messages quote what it was given.
            reason: format!(
                "{} ({:?})",
                status.message().chars().take(500).collect::<String>(),
                status.code()
            ),
        }
    }
}

/// A connection to one containerd. Cheap to clone; after a restart of containerd it connects again
/// by itself at the next call.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
    address: PathBuf,
    // Asked for once.
    content_root: Arc<OnceCell<Option<PathBuf>>>,
}

impl Client {
    /// Connects to the socket at `address` and makes sure that containerd answers there.
    pub async fn connect(address: &Path) -> Result<Self, ContainerdError> {
        let kind = tokio::fs::metadata(address)
            .await
            .map_err(|error| refused(address, &error))?
            .file_type();
        if !kind.is_socket() {
            return Err(ContainerdError::NotASocket(address.to_owned()));
        }
        // The channel's own error would not say why; this one does.
        timeout(CALL_TIME_MAX, UnixStream::connect(address))
            .await
            .map_err(|_| nobody_answers(address, "no answer in time".to_owned()))?
            .map_err(|error| refused(address, &error))?;
        let client = Self::lazy(address);
        timeout(
            CALL_TIME_MAX,
            VersionClient::new(client.channel.clone()).version(()),
        )
        .await
        .map_err(|_| nobody_answers(address, "no answer in time".to_owned()))?
        .map_err(|status| {
            nobody_answers(address, format!("not answered as by containerd: {status}"))
        })?;
        Ok(client)
    }

    /// A client that connects at its first call.
    pub fn lazy(address: &Path) -> Self {
        let socket = address.to_owned();
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move {
                let stream = UnixStream::connect(socket).await?;
                Ok::<_, io::Error>(hyper_util::rt::TokioIo::new(stream))
            }
        });
        // A host name is needed for the HTTP/2 authority and used for nothing else.
        let channel = Endpoint::from_static("http://localhost")
            .connect_timeout(CALL_TIME_MAX)
            // The stream of events is silent for hours; this tells a dead containerd from a quiet
            // one.
            .http2_keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(20))
            .keep_alive_while_idle(true)
            .connect_with_connector_lazy(connector);
        Self {
            channel,
            address: address.to_owned(),
            content_root: Arc::default(),
        }
    }

    /// The socket it speaks to.
    pub fn address(&self) -> &Path {
        &self.address
    }

    /// The namespaces there are.
    pub async fn namespaces(&self) -> Result<Vec<String>, ContainerdError> {
        let mut client = NamespacesClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX);
        let listed = call(
            || "list namespaces".to_owned(),
            client.list(ListNamespacesRequest::default()),
        )
        .await?;
        bounded("namespaces", listed.namespaces.len())?;
        Ok(listed.namespaces.into_iter().map(|one| one.name).collect())
    }

    /// All containers of a namespace.
    pub async fn containers(
        &self,
        namespace: &str,
    ) -> Result<Vec<ContainerRecord>, ContainerdError> {
        let what = || format!("list containers of namespace {namespace:?}");
        let request = within(namespace, ListContainersRequest::default())?;
        // Streamed, because a few hundred specs would not fit into one message.
        let mut client = ContainersClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX);
        let mut stream = call(what, client.list_stream(request)).await?;
        let mut containers = Vec::new();
        while let Some(message) = next(what, &mut stream).await? {
            bounded("containers", containers.len())?;
            containers.extend(message.container.map(container));
        }
        Ok(containers)
    }

    /// One container.
    pub async fn container(
        &self,
        namespace: &str,
        id: &str,
    ) -> Result<ContainerRecord, ContainerdError> {
        let what = || format!("container {id:?} in namespace {namespace:?}");
        let request = within(namespace, GetContainerRequest { id: id.to_owned() })?;
        let mut client = ContainersClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX);
        let answer = call(what, client.get(request)).await?;
        let found = answer
            .container
            .ok_or_else(|| ContainerdError::NotFound(what()))?;
        Ok(container(found))
    }

    /// All tasks of a namespace.
    pub async fn tasks(&self, namespace: &str) -> Result<Vec<TaskRecord>, ContainerdError> {
        let what = || format!("list tasks of namespace {namespace:?}");
        let request = within(namespace, ListTasksRequest::default())?;
        let mut client =
            TasksClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let listed = call(what, client.list(request)).await?;
        bounded("tasks", listed.tasks.len())?;
        Ok(listed.tasks.into_iter().map(task).collect())
    }

    /// One snapshot.
    pub async fn snapshot(
        &self,
        namespace: &str,
        snapshotter: &str,
        key: &str,
    ) -> Result<SnapshotRecord, ContainerdError> {
        let what = || format!("snapshot {key:?} of {snapshotter:?} in namespace {namespace:?}");
        let request = StatSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
        };
        let mut client =
            SnapshotsClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let answer = call(what, client.stat(within(namespace, request)?)).await?;
        let info = answer
            .info
            .ok_or_else(|| ContainerdError::NotFound(what()))?;
        Ok(SnapshotRecord {
            parent: info.parent,
            labels: info.labels,
            created_unix_ns: unix_ns(info.created_at),
        })
    }

    /// The lower directories of a container's snapshot, from bottom to top.
    pub async fn lower_directories(
        &self,
        namespace: &str,
        snapshotter: &str,
        key: &str,
    ) -> Result<Vec<PathBuf>, ContainerdError> {
        let what =
            || format!("mounts of snapshot {key:?} of {snapshotter:?} in namespace {namespace:?}");
        let request = MountsRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
        };
        let mut client =
            SnapshotsClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let answer = call(what, client.mounts(within(namespace, request)?)).await?;
        lower_directories(&answer.mounts).ok_or_else(|| ContainerdError::Failed {
            what: what(),
            reason: "it is not one overlay with lower directories".to_owned(),
        })
    }

    /// All images of a namespace.
    pub async fn images(&self, namespace: &str) -> Result<Vec<ImageRecord>, ContainerdError> {
        let what = || format!("list images of namespace {namespace:?}");
        let request = within(namespace, ListImagesRequest::default())?;
        let mut client =
            ImagesClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let listed = call(what, client.list(request)).await?;
        bounded("images", listed.images.len())?;
        Ok(listed.images.into_iter().map(image).collect())
    }

    /// What one image reference points to.
    pub async fn image(&self, namespace: &str, name: &str) -> Result<ImageRecord, ContainerdError> {
        let what = || format!("image {name:?} in namespace {namespace:?}");
        let request = GetImageRequest {
            name: name.to_owned(),
        };
        let mut client =
            ImagesClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let answer = call(what, client.get(within(namespace, request)?)).await?;
        let found = answer
            .image
            .ok_or_else(|| ContainerdError::NotFound(what()))?;
        Ok(image(found))
    }

    /// Subscribes to what happens to containers, tasks and images in all namespaces. When this
    /// returns, the subscription is in force: what happens from then on will be told.
    pub async fn subscribe(&self) -> Result<Events, ContainerdError> {
        events::subscribe(self.channel.clone()).await
    }

    /// Publishes a marker that comes back as [`Event::Marker`] after every event before it.
    pub async fn mark(&self, text: &str) -> Result<(), ContainerdError> {
        events::mark(self.channel.clone(), text).await
    }
}

/// Asks, and waits no longer than [`CALL_SECONDS_MAX`].
async fn call<T>(
    what: impl Fn() -> String,
    answer: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, ContainerdError> {
    match timeout(CALL_TIME_MAX, answer).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(ContainerdError::of(what(), &status)),
        Err(_) => Err(late(what())),
    }
}

/// The next message of a listing, waited for no longer than [`CALL_SECONDS_MAX`].
async fn next<T>(
    what: impl Fn() -> String,
    stream: &mut Streaming<T>,
) -> Result<Option<T>, ContainerdError> {
    match timeout(CALL_TIME_MAX, stream.message()).await {
        Ok(Ok(message)) => Ok(message),
        Ok(Err(status)) => Err(ContainerdError::of(what(), &status)),
        Err(_) => Err(late(what())),
    }
}

fn late(what: String) -> ContainerdError {
    ContainerdError::Failed {
        what,
        reason: format!("no answer within {CALL_SECONDS_MAX} s"),
    }
}

fn bounded(what: &'static str, seen: usize) -> Result<(), ContainerdError> {
    if seen > LISTED_MAX {
        Err(ContainerdError::TooMany(what))
    } else {
        Ok(())
    }
}

fn refused(address: &Path, error: &io::Error) -> ContainerdError {
    match error.kind() {
        io::ErrorKind::NotFound => ContainerdError::NoSocket(address.to_owned()),
        io::ErrorKind::PermissionDenied => ContainerdError::Denied(address.to_owned()),
        _ => nobody_answers(address, error.to_string()),
    }
}

fn nobody_answers(address: &Path, reason: String) -> ContainerdError {
    ContainerdError::NobodyAnswers {
        address: address.to_owned(),
        reason,
    }
}

/// A request in a namespace, which containerd takes from a header.
fn within<T>(namespace: &str, message: T) -> Result<Request<T>, ContainerdError> {
    let value = AsciiMetadataValue::try_from(namespace).map_err(|_| ContainerdError::Failed {
        what: format!("namespace {namespace:?}"),
        reason: "not a name that can be sent".to_owned(),
    })?;
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", value);
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn failure(address: &Path) -> String {
        match Client::connect(address).await {
            Ok(_) => "connected".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    #[tokio::test]
    async fn an_address_without_containerd_is_told_by_what_is_there() -> io::Result<()> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("containerd.sock");
        assert!(failure(&path).await.contains("does not exist"));
        std::fs::write(&path, "")?;
        assert!(failure(&path).await.contains("is not a socket"));
        std::fs::remove_file(&path)?;
        // Bound and closed again: the file stays, nobody listens.
        drop(std::os::unix::net::UnixListener::bind(&path)?);
        assert!(failure(&path).await.contains("refused"));
        std::fs::remove_file(&path)?;
        // Somebody who hangs up at once.
        let listener = tokio::net::UnixListener::bind(&path)?;
        let hang_up = async {
            loop {
                drop(listener.accept().await);
            }
        };
        tokio::select! {
            error = failure(&path) => assert!(error.contains("not answered as by containerd"), "{error}"),
            () = hang_up => {}
        }
        Ok(())
    }

    #[test]
    fn a_namespace_that_is_no_header_is_refused() {
        assert!(within("default", ()).is_ok());
        assert!(within("a\nb", ()).is_err());
    }
}
