//! What is changed at containerd: containers, snapshots and tasks of an order of this daemon's.
//!
//! Measured on containerd 1.6.20: an id can be used again as soon as its container was deleted, the
//! key of a snapshot has nothing to do with it, and two containers may name one snapshot.

use std::collections::HashMap;

use containerd_client::{
    services::v1::{
        Container, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest,
        DeleteTaskRequest, GetContainerRequest, GetRequest, KillRequest, StartRequest, WaitRequest,
        containers_client::ContainersClient,
        leases_client::LeasesClient,
        snapshots::{
            MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest,
            snapshots_client::SnapshotsClient,
        },
        tasks_client::TasksClient,
    },
    types::{Mount, v1::Status},
};
use jiff::Timestamp;
use tonic::{Request, metadata::AsciiMetadataValue};

use super::{Client, ContainerdError, MESSAGE_BYTES_MAX, call, within};

/// Label of a lease with the time at which it ends.
const LEASE_END: &str = "containerd.io/gc.expire";

/// How a container is to differ from the one that it is made like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewContainer {
    /// Its id.
    pub id: String,
    /// The image reference.
    pub image: String,
    /// Its snapshot, of the same snapshotter.
    pub snapshot_key: String,
    /// The OCI runtime spec, JSON.
    pub spec: Vec<u8>,
    /// Labels that are set to this, or removed.
    pub labels: Vec<(String, Option<String>)>,
}

/// Where the standard output and error of a task go: URIs, or empty for nowhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Stdio {
    /// Of its output.
    pub stdout: String,
    /// Of its errors.
    pub stderr: String,
}

/// A task as containerd tells it when it is asked for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskDetails {
    /// Process id in the pid namespace of containerd.
    pub pid: u32,
    /// What it does.
    pub state: TaskState,
    /// The status that it exited with, once it has.
    pub exit_status: u32,
    /// Where its output goes; a path where a client reads it.
    pub stdio: Stdio,
}

/// What a task does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskState {
    /// It waits to be started.
    Created,
    /// It runs.
    Running,
    /// It was made to pause.
    Paused,
    /// It has ended.
    Stopped,
}

impl Client {
    /// Creates a container like `model`, with what is told of it.
    ///
    /// # Errors
    ///
    /// [`ContainerdError::Exists`] if there is one of this id.
    pub async fn create_like(
        &self,
        namespace: &str,
        model: &str,
        new: NewContainer,
    ) -> Result<(), ContainerdError> {
        let what = || format!("container {model:?} in namespace {namespace:?}");
        let mut client = ContainersClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX);
        let asked = GetContainerRequest {
            id: model.to_owned(),
        };
        let answer = call(what, client.get(within(namespace, asked)?)).await?;
        let mut container: Container = answer
            .container
            .ok_or_else(|| ContainerdError::NotFound(what()))?;
        container.id = new.id;
        container.image = new.image;
        container.snapshot_key = new.snapshot_key;
        container.spec.get_or_insert_default().value = new.spec;
        for (label, value) in new.labels {
            match value {
                Some(value) => container.labels.insert(label, value),
                None => container.labels.remove(&label),
            };
        }
        // containerd's own.
        container.created_at = None;
        container.updated_at = None;
        let what = format!("container {:?} in namespace {namespace:?}", container.id);
        let request = CreateContainerRequest {
            container: Some(container),
        };
        let created = client.create(within(namespace, request)?);
        call(|| what.clone(), created).await.map(drop)
    }

    /// Deletes a container, without its snapshot; one that is gone is gone.
    ///
    /// # Errors
    ///
    /// Those of the call.
    pub async fn delete_container(&self, namespace: &str, id: &str) -> Result<(), ContainerdError> {
        let what = || format!("delete container {id:?} in namespace {namespace:?}");
        let mut client = ContainersClient::new(self.channel.clone());
        let request = DeleteContainerRequest { id: id.to_owned() };
        gone(call(what, client.delete(within(namespace, request)?)).await)
    }

    /// Prepares a snapshot to be written to, on top of a committed one, and gives how to mount it. Until
    /// `lease` ends nothing of it is cleared away.
    ///
    /// # Errors
    ///
    /// [`ContainerdError::NotFound`] without `parent`, [`ContainerdError::Exists`] if there is one of
    /// this key.
    pub async fn prepare_snapshot(
        &self,
        namespace: &str,
        snapshotter: &str,
        key: &str,
        parent: &str,
        lease: &str,
    ) -> Result<Vec<Mount>, ContainerdError> {
        let what = || format!("snapshot {key:?} of {snapshotter:?} on {parent:?}");
        let request = PrepareSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            ..PrepareSnapshotRequest::default()
        };
        let mut client =
            SnapshotsClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let request = leased(within(namespace, request)?, lease)?;
        Ok(call(what, client.prepare(request)).await?.mounts)
    }

    /// Removes a snapshot; one that is gone is gone.
    ///
    /// # Errors
    ///
    /// Those of the call.
    pub async fn remove_snapshot(
        &self,
        namespace: &str,
        snapshotter: &str,
        key: &str,
    ) -> Result<(), ContainerdError> {
        let what = || format!("remove snapshot {key:?} of {snapshotter:?}");
        let request = RemoveSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
        };
        let mut client = SnapshotsClient::new(self.channel.clone());
        gone(call(what, client.remove(within(namespace, request)?)).await)
    }

    /// Makes a lease that ends by itself, if there is none of this id.
    ///
    /// # Errors
    ///
    /// Those of the call.
    pub async fn lease(
        &self,
        namespace: &str,
        id: &str,
        end: Timestamp,
    ) -> Result<(), ContainerdError> {
        use containerd_client::services::v1::CreateRequest;
        let what = || format!("lease {id:?} in namespace {namespace:?}");
        let request = CreateRequest {
            id: id.to_owned(),
            labels: HashMap::from([(LEASE_END.to_owned(), format!("{end:.0}"))]),
        };
        let mut client = LeasesClient::new(self.channel.clone());
        match call(what, client.create(within(namespace, request)?)).await {
            Err(ContainerdError::Exists(_)) | Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Ends a lease; one that is gone is gone.
    ///
    /// # Errors
    ///
    /// Those of the call.
    pub async fn end_lease(&self, namespace: &str, id: &str) -> Result<(), ContainerdError> {
        use containerd_client::services::v1::DeleteRequest;
        let what = || format!("end lease {id:?} in namespace {namespace:?}");
        let request = DeleteRequest {
            id: id.to_owned(),
            sync: false,
        };
        let mut client = LeasesClient::new(self.channel.clone());
        gone(call(what, client.delete(within(namespace, request)?)).await)
    }

    /// The task of a container.
    ///
    /// # Errors
    ///
    /// [`ContainerdError::NotFound`] if it has none.
    pub async fn task(&self, namespace: &str, id: &str) -> Result<TaskDetails, ContainerdError> {
        let what = || format!("task of container {id:?} in namespace {namespace:?}");
        let request = GetRequest {
            container_id: id.to_owned(),
            ..GetRequest::default()
        };
        let mut client =
            TasksClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let answer = call(what, client.get(within(namespace, request)?)).await?;
        let process = answer
            .process
            .ok_or_else(|| ContainerdError::NotFound(what()))?;
        Ok(TaskDetails {
            pid: process.pid,
            state: match process.status() {
                Status::Created => TaskState::Created,
                Status::Running => TaskState::Running,
                Status::Paused | Status::Pausing => TaskState::Paused,
                Status::Stopped | Status::Unknown => TaskState::Stopped,
            },
            exit_status: process.exit_status,
            stdio: Stdio {
                stdout: process.stdout,
                stderr: process.stderr,
            },
        })
    }

    /// Creates the task of a container on its snapshot; it waits to be started.
    ///
    /// # Errors
    ///
    /// [`ContainerdError::Exists`] if it has one.
    pub async fn create_task(
        &self,
        namespace: &str,
        id: &str,
        snapshotter: &str,
        snapshot_key: &str,
        stdio: &Stdio,
    ) -> Result<(), ContainerdError> {
        let what = || format!("mounts of snapshot {snapshot_key:?} of {snapshotter:?}");
        let request = MountsRequest {
            snapshotter: snapshotter.to_owned(),
            key: snapshot_key.to_owned(),
        };
        let mut client =
            SnapshotsClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let mounts = call(what, client.mounts(within(namespace, request)?)).await?;
        let what = || format!("task of container {id:?} in namespace {namespace:?}");
        let request = CreateTaskRequest {
            container_id: id.to_owned(),
            rootfs: mounts.mounts,
            stdout: stdio.stdout.clone(),
            stderr: stdio.stderr.clone(),
            ..CreateTaskRequest::default()
        };
        let mut client = TasksClient::new(self.channel.clone());
        call(what, client.create(within(namespace, request)?))
            .await
            .map(drop)
    }

    /// Starts the task of a container.
    ///
    /// # Errors
    ///
    /// Those of the call, also if it was started before.
    pub async fn start_task(&self, namespace: &str, id: &str) -> Result<(), ContainerdError> {
        let what = || format!("start container {id:?} in namespace {namespace:?}");
        let request = StartRequest {
            container_id: id.to_owned(),
            ..StartRequest::default()
        };
        let mut client = TasksClient::new(self.channel.clone());
        call(what, client.start(within(namespace, request)?))
            .await
            .map(drop)
    }

    /// Sends a signal to the init of a container, or to `all` its processes; to one that is gone it
    /// does nothing.
    ///
    /// # Errors
    ///
    /// Those of the call.
    pub async fn kill_task(
        &self,
        namespace: &str,
        id: &str,
        signal: u32,
        all: bool,
    ) -> Result<(), ContainerdError> {
        let what = || format!("send signal {signal} to container {id:?}");
        let request = KillRequest {
            container_id: id.to_owned(),
            signal,
            all,
            ..KillRequest::default()
        };
        let mut client = TasksClient::new(self.channel.clone());
        gone(call(what, client.kill(within(namespace, request)?)).await)
    }

    /// Waits until the task of a container has ended, for as long as that takes; one that is gone has.
    ///
    /// # Errors
    ///
    /// Those of the call.
    pub async fn wait_task(&self, namespace: &str, id: &str) -> Result<(), ContainerdError> {
        let what = || format!("wait for container {id:?} in namespace {namespace:?}");
        let request = WaitRequest {
            container_id: id.to_owned(),
            ..WaitRequest::default()
        };
        let mut client = TasksClient::new(self.channel.clone());
        let waited = client.wait(within(namespace, request)?).await;
        gone(waited.map_err(|status| ContainerdError::of(what(), &status)))
    }

    /// Removes a task that has ended; one that is gone is gone.
    ///
    /// # Errors
    ///
    /// Those of the call, also if it runs.
    pub async fn delete_task(&self, namespace: &str, id: &str) -> Result<(), ContainerdError> {
        let what = || format!("remove the task of container {id:?}");
        let request = DeleteTaskRequest {
            container_id: id.to_owned(),
        };
        let mut client = TasksClient::new(self.channel.clone());
        gone(call(what, client.delete(within(namespace, request)?)).await)
    }
}

/// What was to go and is not there has gone.
fn gone<T>(answer: Result<T, ContainerdError>) -> Result<(), ContainerdError> {
    match answer {
        Ok(_) | Err(ContainerdError::NotFound(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// A request whose objects belong to a lease.
pub(super) fn leased<T>(
    mut request: Request<T>,
    lease: &str,
) -> Result<Request<T>, ContainerdError> {
    let value = AsciiMetadataValue::try_from(lease).map_err(|_| ContainerdError::Failed {
        what: format!("lease {lease:?}"),
        reason: "not a name that can be sent".to_owned(),
    })?;
    request.metadata_mut().insert("containerd-lease", value);
    Ok(request)
}
