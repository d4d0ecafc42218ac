//! The steps of an order, as they are made at containerd. Each looks at what there is first, so that it
//! can be made again after a crash.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::{sleep, timeout};

use super::{
    plan::{Plan, Supply},
    progress::Step,
    record::Record,
    spec,
    supply::Supplier,
};
use crate::{
    containerd::{
        Client, ContainerRecord, ContainerdError, NewContainer, Stdio, TaskState, WriteError,
    },
    registry::Registry,
};

/// On both containers: the order.
pub const LABEL_ORDER: &str = "monitord/rollback.order";
/// On the new container: the manifest that it was rolled back from.
pub const LABEL_FROM: &str = "monitord/rollback.from";
/// On the new container: under which id the old one is kept.
pub const LABEL_KEPT: &str = "monitord/rollback.kept-as";
/// On the kept container: the id that it had.
pub const LABEL_NAME: &str = "monitord/rollback.name";
/// On a container that was put back: the order.
pub const LABEL_UNDONE: &str = "monitord/rollback.undone";
const LABEL_STOP_SIGNAL: &str = "io.containerd.image.config.stop-signal";

const SIGKILL: u32 = 9;
/// How long a container has to end after SIGKILL.
const KILL_TIME_MAX: Duration = Duration::from_secs(10);
/// How long the old container is looked at after it was started again.
const OLD_WATCH_TIME: Duration = Duration::from_secs(1);
/// What keeps the new snapshot until a container has it; containerd clears it away after that by itself.
const LEASE_TIME: SignedDuration = SignedDuration::from_hours(1);
/// How long it is waited for containerd to answer again.
const AWAY_TIME_MAX: Duration = Duration::from_secs(60);
const AWAY_PAUSE: Duration = Duration::from_millis(500);

/// What steps are made with.
pub struct Means<'a> {
    /// containerd.
    pub client: &'a Client,
    /// Where images come from that containerd does not have, if that is configured.
    pub registry: Option<&'a Registry>,
    /// Is told of each piece that came, in bytes; whether the order still stands.
    pub note: &'a (dyn Fn(u64) -> bool + Send + Sync),
}

/// Why a step was not made.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// containerd refused it.
    #[error(transparent)]
    Containerd(#[from] ContainerdError),
    /// It is not as it should be.
    #[error("{0}")]
    Found(String),
}

/// What has the container's id now.
enum Current {
    /// What was there when the plan was made.
    Old(ContainerRecord),
    /// What the order created.
    New(ContainerRecord),
    /// The old one as it was put back.
    Back(ContainerRecord),
    Missing,
}

/// Makes a step, again if containerd went away meanwhile and came back.
///
/// # Errors
///
/// See [`StepError`].
pub async fn make(means: &Means<'_>, record: &Record, step: Step) -> Result<(), StepError> {
    let client = means.client;
    let work = Work {
        client,
        means,
        plan: &record.plan,
        order: &record.id,
        kept: record.kept(),
    };
    loop {
        match work.make(step).await {
            Err(StepError::Containerd(error)) if !is_there(client).await => {
                tracing::warn!(%error, order = record.id, "containerd does not answer; the order waits for it");
                let back = async {
                    while !is_there(client).await {
                        sleep(AWAY_PAUSE).await;
                    }
                };
                if timeout(AWAY_TIME_MAX, back).await.is_err() {
                    return Err(error.into());
                }
            }
            made => return made,
        }
    }
}

async fn is_there(client: &Client) -> bool {
    client.namespaces().await.is_ok()
}

struct Work<'a> {
    client: &'a Client,
    means: &'a Means<'a>,
    plan: &'a Plan,
    order: &'a str,
    kept: String,
}

impl Work<'_> {
    async fn make(&self, step: Step) -> Result<(), StepError> {
        match step {
            Step::Pull => self.pull().await,
            Step::Unpack => self.unpack().await,
            Step::Prepare => self.prepare().await,
            Step::Keep => self.keep().await,
            Step::Stop => self.stop().await,
            Step::Replace => self.replace().await,
            Step::Start => self.start().await,
            Step::Verify => self.verify().await,
            Step::Watch => self.watch().await,
            Step::Discard => self.discard().await,
            Step::Halt => self.end_task().await,
            Step::PutBack => self.put_back().await,
            Step::StartOld => self.start_old().await,
        }
    }

    async fn pull(&self) -> Result<(), StepError> {
        let lease = self.lease().await?;
        match &self.plan.supply {
            Supply::Remote(pull) => self.supplier(&lease).pull(pull).await,
            Supply::Unpacked | Supply::Stored => Ok(()),
        }
    }

    async fn unpack(&self) -> Result<(), StepError> {
        let lease = self.lease().await?;
        self.supplier(&lease).unpack().await
    }

    fn supplier<'a>(&'a self, lease: &'a str) -> Supplier<'a> {
        Supplier {
            client: self.client,
            registry: self.means.registry,
            plan: self.plan,
            lease,
            note: self.means.note,
        }
    }

    /// Keeps what the order brings from being cleared away.
    async fn lease(&self) -> Result<String, StepError> {
        let end = Timestamp::now().saturating_add(LEASE_TIME);
        let end = end.unwrap_or(Timestamp::MAX);
        let lease = lease(self.order);
        self.client.lease(&self.plan.namespace, &lease, end).await?;
        Ok(lease)
    }

    async fn prepare(&self) -> Result<(), StepError> {
        let (client, plan) = (self.client, self.plan);
        let (lease, key) = (self.lease().await?, snapshot_key(self.order));
        let parent = plan.chain_id.to_string();
        let prepared =
            client.prepare_snapshot(&plan.namespace, &plan.snapshotter, &key, &parent, &lease);
        there(prepared.await.map(drop))
    }

    async fn keep(&self) -> Result<(), StepError> {
        let plan = self.plan;
        let Current::Old(old) = self.current().await? else {
            return Err(self.changed());
        };
        let kept = NewContainer {
            id: self.kept.clone(),
            image: old.image,
            snapshot_key: old.snapshot_key,
            spec: self.renamed(&old.spec, &plan.container, &self.kept)?,
            labels: vec![
                (LABEL_ORDER.to_owned(), Some(self.order.to_owned())),
                (LABEL_NAME.to_owned(), Some(plan.container.clone())),
            ],
        };
        let created = self
            .client
            .create_like(&plan.namespace, &plan.container, kept);
        there(created.await)
    }

    async fn stop(&self) -> Result<(), StepError> {
        match self.current().await? {
            Current::Old(_) => self.end_task().await,
            // Made before, and more.
            Current::New(_) | Current::Missing => Ok(()),
            Current::Back(_) => Err(self.changed()),
        }
    }

    async fn replace(&self) -> Result<(), StepError> {
        let (client, plan) = (self.client, self.plan);
        match self.current().await? {
            Current::New(_) => return Ok(()),
            Current::Back(_) => return Err(self.changed()),
            Current::Old(_) => {
                // Whether it is kept is looked at before it goes.
                client.container(&plan.namespace, &self.kept).await?;
                client
                    .delete_container(&plan.namespace, &plan.container)
                    .await?;
            }
            Current::Missing => {}
        }
        // It went if no daemon ran for longer than the lease.
        self.prepare().await?;
        let from = plan.from.map(|digest| digest.to_string());
        let stop_signal = (!plan.new_stop_signal.is_empty()).then(|| plan.new_stop_signal.clone());
        let new = NewContainer {
            id: plan.container.clone(),
            image: plan.to_reference.clone(),
            snapshot_key: snapshot_key(self.order),
            spec: plan.spec.clone().into_bytes(),
            labels: vec![
                (LABEL_ORDER.to_owned(), Some(self.order.to_owned())),
                (LABEL_FROM.to_owned(), from),
                (LABEL_KEPT.to_owned(), Some(self.kept.clone())),
                (LABEL_NAME.to_owned(), None),
                (LABEL_UNDONE.to_owned(), None),
                (LABEL_STOP_SIGNAL.to_owned(), stop_signal),
            ],
        };
        there(client.create_like(&plan.namespace, &self.kept, new).await)
    }

    async fn start(&self) -> Result<(), StepError> {
        let Current::New(new) = self.current().await? else {
            return Err(self.changed());
        };
        let (client, plan) = (self.client, self.plan);
        match client.task(&plan.namespace, &plan.container).await {
            Err(ContainerdError::NotFound(_)) => self.run(&new, &plan.stdio).await,
            Ok(task) if task.state == TaskState::Created => {
                Ok(client.start_task(&plan.namespace, &plan.container).await?)
            }
            Ok(task) if task.state == TaskState::Stopped => Err(exited(task.exit_status)),
            Ok(_) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// That the container's files are those of the approved image is proven by the name of the snapshot
    /// that its own lies on.
    async fn verify(&self) -> Result<(), StepError> {
        let Current::New(new) = self.current().await? else {
            return Err(self.changed());
        };
        let (client, plan) = (self.client, self.plan);
        let snapshot = client.snapshot(&plan.namespace, &new.snapshotter, &new.snapshot_key);
        let parent = snapshot.await?.parent;
        if parent != plan.chain_id.to_string() {
            return Err(StepError::Found(format!(
                "what was created lies on snapshot {parent:?}, not on {}",
                plan.chain_id
            )));
        }
        self.is_up().await
    }

    async fn watch(&self) -> Result<(), StepError> {
        let Current::New(_) = self.current().await? else {
            return Err(self.changed());
        };
        let seconds = self.plan.watch_seconds;
        self.stays_up(Duration::from_secs(seconds.into())).await
    }

    async fn discard(&self) -> Result<(), StepError> {
        let (client, plan) = (self.client, self.plan);
        // Without the old one, what was kept of it is all that there is.
        if let Ok(Current::Old(_)) = self.current().await {
            client.delete_container(&plan.namespace, &self.kept).await?;
        }
        self.remove_new_snapshot().await
    }

    async fn put_back(&self) -> Result<(), StepError> {
        let (client, plan) = (self.client, self.plan);
        match self.current().await? {
            Current::Old(_) => return self.discard().await,
            Current::Back(_) => {}
            Current::New(_) => {
                self.end_task().await?;
                client
                    .delete_container(&plan.namespace, &plan.container)
                    .await?;
                self.recreate_old().await?;
            }
            Current::Missing => self.recreate_old().await?,
        }
        client.delete_container(&plan.namespace, &self.kept).await?;
        self.remove_new_snapshot().await
    }

    async fn start_old(&self) -> Result<(), StepError> {
        let (client, plan) = (self.client, self.plan);
        if !plan.was_running {
            return Ok(());
        }
        let (Current::Old(old) | Current::Back(old)) = self.current().await? else {
            return Err(self.changed());
        };
        match client.task(&plan.namespace, &plan.container).await {
            Err(ContainerdError::NotFound(_)) => self.run(&old, &plan.stdio).await?,
            Ok(task) => match task.state {
                TaskState::Created => {
                    client.start_task(&plan.namespace, &plan.container).await?;
                }
                TaskState::Stopped => {
                    client.delete_task(&plan.namespace, &plan.container).await?;
                    self.run(&old, &plan.stdio).await?;
                }
                TaskState::Running | TaskState::Paused => {}
            },
            Err(error) => return Err(error.into()),
        }
        self.stays_up(OLD_WATCH_TIME).await
    }

    async fn recreate_old(&self) -> Result<(), StepError> {
        let (client, plan) = (self.client, self.plan);
        let kept = client.container(&plan.namespace, &self.kept).await?;
        let old = NewContainer {
            id: plan.container.clone(),
            image: kept.image,
            snapshot_key: kept.snapshot_key,
            spec: self.renamed(&kept.spec, &self.kept, &plan.container)?,
            labels: vec![
                (LABEL_ORDER.to_owned(), None),
                (LABEL_NAME.to_owned(), None),
                (LABEL_UNDONE.to_owned(), Some(self.order.to_owned())),
            ],
        };
        there(client.create_like(&plan.namespace, &self.kept, old).await)
    }

    async fn remove_new_snapshot(&self) -> Result<(), StepError> {
        let (client, plan) = (self.client, self.plan);
        let key = snapshot_key(self.order);
        let removed = client.remove_snapshot(&plan.namespace, &plan.snapshotter, &key);
        Ok(removed.await?)
    }

    async fn run(&self, container: &ContainerRecord, stdio: &Stdio) -> Result<(), StepError> {
        let (client, namespace, id) = (self.client, &self.plan.namespace, &container.id);
        let (snapshotter, key) = (&container.snapshotter, &container.snapshot_key);
        let created = client.create_task(namespace, id, snapshotter, key, stdio);
        there(created.await)?;
        Ok(client.start_task(namespace, id).await?)
    }

    /// Ends the task that the container's id has, whichever it is, and removes it.
    async fn end_task(&self) -> Result<(), StepError> {
        let (client, plan) = (self.client, self.plan);
        let (namespace, id) = (&plan.namespace, &plan.container);
        let task = match client.task(namespace, id).await {
            Err(ContainerdError::NotFound(_)) => return Ok(()),
            task => task?,
        };
        if task.state != TaskState::Stopped {
            let grace = Duration::from_secs(plan.grace_seconds.into());
            let ends = async {
                client
                    .kill_task(namespace, id, plan.stop_signal, false)
                    .await?;
                client.wait_task(namespace, id).await
            };
            if let Ok(ended) = timeout(grace, ends).await {
                ended?;
            } else {
                client.kill_task(namespace, id, SIGKILL, true).await?;
                let killed = timeout(KILL_TIME_MAX, client.wait_task(namespace, id)).await;
                killed.map_err(|_| {
                    let seconds = KILL_TIME_MAX.as_secs();
                    StepError::Found(format!("it did not end within {seconds} s of SIGKILL"))
                })??;
            }
        }
        Ok(client.delete_task(namespace, id).await?)
    }

    async fn is_up(&self) -> Result<(), StepError> {
        let task = self
            .client
            .task(&self.plan.namespace, &self.plan.container)
            .await?;
        match task.state {
            TaskState::Running => Ok(()),
            TaskState::Stopped => Err(exited(task.exit_status)),
            TaskState::Created | TaskState::Paused => {
                Err(StepError::Found("it does not run".to_owned()))
            }
        }
    }

    async fn stays_up(&self, time: Duration) -> Result<(), StepError> {
        let waited = self
            .client
            .wait_task(&self.plan.namespace, &self.plan.container);
        if let Ok(ended) = timeout(time, waited).await {
            ended?;
        }
        self.is_up().await
    }

    async fn current(&self) -> Result<Current, StepError> {
        let plan = self.plan;
        let found = match self
            .client
            .container(&plan.namespace, &plan.container)
            .await
        {
            Err(ContainerdError::NotFound(_)) => return Ok(Current::Missing),
            found => found?,
        };
        let is_ours = |label: &str| found.labels.get(label).is_some_and(|it| it == self.order);
        if is_ours(LABEL_ORDER) {
            Ok(Current::New(found))
        } else if is_ours(LABEL_UNDONE) {
            Ok(Current::Back(found))
        } else if found.created_unix_ns == i128::from(plan.created_unix_ns) {
            Ok(Current::Old(found))
        } else {
            Err(self.changed())
        }
    }

    fn renamed(&self, spec: &[u8], from: &str, to: &str) -> Result<Vec<u8>, StepError> {
        spec::renamed(spec, from, to).map_err(|error| StepError::Found(error.to_string()))
    }

    fn changed(&self) -> StepError {
        StepError::Found(format!(
            "container {} was deleted or replaced by somebody else meanwhile",
            self.plan.container
        ))
    }
}

impl From<WriteError> for StepError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Containerd(error) => Self::Containerd(error),
            error => Self::Found(error.to_string()),
        }
    }
}

/// Lets go of what kept the order's snapshot.
pub async fn finish(client: &Client, record: &Record) {
    let lease = lease(&record.id);
    let ended = client.end_lease(&record.plan.namespace, &lease).await;
    if let Err(error) = ended {
        tracing::warn!(%error, "a lease stays until its time is over");
    }
}

fn snapshot_key(order: &str) -> String {
    format!("monitord-{}", order.to_ascii_lowercase())
}

fn lease(order: &str) -> String {
    snapshot_key(order)
}

/// What was to be made and is there has been made.
fn there(made: Result<(), ContainerdError>) -> Result<(), StepError> {
    match made {
        Ok(()) | Err(ContainerdError::Exists(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn exited(status: u32) -> StepError {
    StepError::Found(format!("it exited with status {status}"))
}
