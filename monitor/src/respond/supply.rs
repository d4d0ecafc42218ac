//! The steps that bring an order's image to the node: its blobs from their registry to containerd, and
//! its layers unpacked for the container's snapshotter. Nothing of the container changes by them.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::timeout;

use super::{
    documents::{Documents, DocumentsError, Reader},
    execute::StepError,
    plan::{Plan, Pull},
};
use crate::{
    containerd::{Client, ContainerdError, NewLayer},
    digest::Digest,
    image::{
        blobs::{Origin, Part},
        manifest,
    },
    registry::{Registry, Repository},
};

/// How long an order may pull. With [`UNPACK_TIME_MAX`] it is less than the order's lease lasts.
const PULL_TIME_MAX: Duration = Duration::from_secs(30 * 60);
/// How long an order may unpack.
const UNPACK_TIME_MAX: Duration = Duration::from_secs(20 * 60);

/// On the config of an image that is unpacked: the snapshot, so that it is kept as long as the image.
const LABEL_SNAPSHOT: &str = "containerd.io/gc.ref.snapshot.";

/// What the steps are made with.
pub(super) struct Supplier<'a> {
    pub(super) client: &'a Client,
    pub(super) registry: Option<&'a Registry>,
    pub(super) plan: &'a Plan,
    /// Keeps what was brought until a container has it.
    pub(super) lease: &'a str,
    /// Is told of each piece that came from a registry, in bytes; whether the order still stands.
    pub(super) note: &'a (dyn Fn(u64) -> bool + Send + Sync),
}

impl Supplier<'_> {
    /// Brings what is missing of the image, and gives it a name.
    pub(super) async fn pull(&self, pull: &Pull) -> Result<(), StepError> {
        within(PULL_TIME_MAX, "pulled", self.fetch(pull)).await
    }

    /// Makes the snapshots of the layers that have none.
    pub(super) async fn unpack(&self) -> Result<(), StepError> {
        within(UNPACK_TIME_MAX, "unpacked", self.unpack_layers()).await
    }

    async fn fetch(&self, pull: &Pull) -> Result<(), StepError> {
        let (client, namespace) = (self.client, &self.plan.namespace);
        let registry = self.registry.ok_or_else(|| {
            StepError::Found("no registry is asked any more: `registry.enabled` is off".to_owned())
        })?;
        let repository = Repository::of(&self.plan.to_reference);
        let repository = repository.map_err(|error| StepError::Found(error.to_string()))?;
        let origin: Arc<dyn Origin> = registry.origin(repository);
        let documents = self.documents(Some(&*origin), &pull.target).await?;
        for layer in &documents.layers {
            let part = Part::Layer { bytes: layer.size };
            let open = || origin.open(part, &layer.digest);
            let none = HashMap::new();
            let written = client.write_blob(namespace, self.lease, layer, none, open, self.note);
            written.await?;
        }
        for text in documents.texts() {
            let bytes = Bytes::from(text.bytes.clone());
            let open = || Box::pin(tokio_stream::once(Ok(bytes))) as _;
            let labels = text.labels.clone();
            let written =
                client.write_blob(namespace, self.lease, &text.blob, labels, open, self.note);
            written.await?;
        }
        let target = documents.index.as_ref().unwrap_or(&documents.manifest);
        let name = &self.plan.to_reference;
        match client.create_image(namespace, name, &target.blob).await {
            // Nothing in a name keeps it from being given to something else.
            Err(ContainerdError::Exists(_)) => {
                let found = client.image(namespace, name).await?;
                if found.target == Some(target.blob.digest) {
                    return Ok(());
                }
                Err(StepError::Found(format!(
                    "the image {name} of containerd is another one; remove it"
                )))
            }
            created => Ok(created?),
        }
    }

    async fn unpack_layers(&self) -> Result<(), StepError> {
        let (client, plan) = (self.client, self.plan);
        let (namespace, snapshotter) = (&plan.namespace, &plan.snapshotter);
        let documents = self.documents(None, &plan.to).await?;
        let diff_ids = &documents.image.config.diff_ids;
        let layers = documents.layers.iter().zip(diff_ids);
        let mut parent = String::new();
        for ((blob, diff_id), chain_id) in layers.zip(manifest::chain_ids(diff_ids)) {
            let name = chain_id.to_string();
            let found = client.snapshot(namespace, snapshotter, &name).await;
            match found {
                Ok(_) => {}
                Err(ContainerdError::NotFound(_)) => {
                    let now = Timestamp::now().as_nanosecond();
                    let layer = NewLayer {
                        blob: blob.clone(),
                        diff_id: *diff_id,
                        parent,
                        chain_id,
                        // What a daemon left that was killed has another one.
                        key: format!("extract-{now}-{} {chain_id}", self.lease),
                    };
                    let unpacked = client.unpack_layer(namespace, snapshotter, self.lease, &layer);
                    unpacked.await?;
                }
                Err(error) => return Err(error.into()),
            }
            parent = name;
        }
        let label = (format!("{LABEL_SNAPSHOT}{snapshotter}"), parent);
        let config = documents.image.id.config;
        let labels = HashMap::from([label]);
        Ok(client.label_blob(namespace, &config, labels).await?)
    }

    /// The documents of the image that the plan was made for.
    async fn documents(
        &self,
        origin: Option<&dyn Origin>,
        target: &Digest,
    ) -> Result<Documents, StepError> {
        let reader = Reader {
            blobs: self.client,
            namespace: &self.plan.namespace,
            origin,
        };
        let documents = reader.read(target).await?;
        let id = &documents.image.id;
        if (id.manifest, id.chain_id) == (self.plan.to, self.plan.chain_id) {
            return Ok(documents);
        }
        Err(StepError::Found(format!(
            "{target} leads to {} here, not to {}",
            id.manifest, self.plan.to
        )))
    }
}

async fn within(
    time_max: Duration,
    done: &str,
    work: impl Future<Output = Result<(), StepError>>,
) -> Result<(), StepError> {
    timeout(time_max, work).await.unwrap_or_else(|_| {
        let minutes = time_max.as_secs() / 60;
        Err(StepError::Found(format!(
            "the image was not {done} within {minutes} minutes"
        )))
    })
}

impl From<DocumentsError> for StepError {
    fn from(error: DocumentsError) -> Self {
        Self::Found(error.to_string())
    }
}
