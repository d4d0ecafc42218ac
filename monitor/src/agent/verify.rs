//! Compares a container as a whole with its image, and reads the blobs of an image again, on behalf
//! of clients of the API.

use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use monitor_api::v1::{
    self, VerifyContainerResponse, VerifyImageResponse,
    verify_container_response::{Begun, Executed, Progress, Response, Verified},
};
use tokio::sync::{mpsc, oneshot};

use super::{node::NodeView, query::Query};
use crate::{
    alerts::build,
    api::{ContentsError, VerifyError},
    containers::{Container, ImageId, meant},
    digest::Digest,
    image::{contents::Contents, error::Cause},
    sensor::root,
    verify::{Difference, MountPoints, Owners, Step, Summary, Walk, compare},
};

/// Comparisons at once; each reads as much as the disk gives.
pub(super) const COMPARISONS_MAX: usize = 1;
/// Messages made ahead of what the client reads; at the bound the comparison waits.
const AHEAD_MAX: usize = 64;
/// How often it is told how far a comparison is.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

impl NodeView {
    /// See [`Node::verify_container`](crate::api::Node::verify_container).
    pub(super) async fn compare(
        &self,
        wanted: &str,
    ) -> Result<mpsc::Receiver<VerifyContainerResponse>, VerifyError> {
        let container = self.container_named(wanted).await?;
        let impossible = |reason: String| VerifyError::Impossible {
            container: container.id.clone(),
            reason,
        };
        let turn = Arc::clone(&self.comparisons)
            .try_acquire_owned()
            .map_err(|_| VerifyError::Busy)?;
        let executed = self.executed(&container).await;
        let executed = executed.ok_or_else(|| impossible("the daemon is stopping".to_owned()))?;
        let contents = self.contents.of_container(&container).await;
        let contents = contents.ok_or_else(|| impossible("no image accounts for it".to_owned()))?;
        let contents = contents.map_err(|error| impossible(error.to_string()))?;
        let looked_at = Arc::clone(&container);
        let place = tokio::task::spawn_blocking(move || Place::of(&looked_at))
            .await
            .map_err(|error| impossible(error.to_string()))?
            .map_err(impossible)?;
        let (told_in, told) = mpsc::channel(AHEAD_MAX);
        tokio::task::spawn_blocking(move || {
            let _turn = turn;
            place.compare(&container, &contents, executed, &told_in);
        });
        Ok(told)
    }

    async fn executed(&self, container: &Arc<Container>) -> Option<Executed> {
        let (answer_in, answer) = oneshot::channel();
        let query = Query::Executed(Arc::clone(container), answer_in);
        self.queries.send(query).await.ok()?;
        answer.await.ok()
    }

    async fn container_named(&self, wanted: &str) -> Result<Arc<Container>, VerifyError> {
        let known = self.snapshot().await.map(|snapshot| snapshot.containers);
        let known: Vec<Arc<Container>> = known
            .into_iter()
            .flatten()
            .map(|(container, _, _)| container)
            .collect();
        let known: Vec<&Arc<Container>> = known.iter().collect();
        let found = meant(&known, wanted, |one| Some((&one.id, &one.name)));
        match found.as_slice() {
            [one] => Ok(Arc::clone(one)),
            [] => Err(VerifyError::NoContainer(wanted.to_owned())),
            several => Err(VerifyError::Ambiguous {
                container: wanted.to_owned(),
                count: several.len(),
            }),
        }
    }

    /// See [`Node::verify_image`](crate::api::Node::verify_image).
    pub(super) async fn check_blobs(
        &self,
        image: &str,
    ) -> Result<mpsc::Receiver<VerifyImageResponse>, ContentsError> {
        let (namespace, id) = self.find(image).await?;
        let (told_in, told) = mpsc::channel(AHEAD_MAX);
        let contents = Arc::clone(&self.contents);
        tokio::spawn(async move {
            let images = contents.images();
            let manifest = images.read_manifest(&namespace, &id).await;
            let config = images.read_config(&namespace, &id).await;
            let first = [
                blob(&id, "manifest", id.manifest, None, manifest.as_ref().err()),
                blob(&id, "config", id.config, None, config.as_ref().err()),
            ];
            for told in first {
                // A client that went away needs no answer.
                if told_in.send(told).await.is_err() {
                    return;
                }
            }
            let (Ok(manifest), Ok(config)) = (manifest, config) else {
                return;
            };
            for (descriptor, diff_id) in manifest.layers.iter().zip(config.diff_ids) {
                let digest = descriptor.digest;
                let read = images.read_layer_again(&namespace, &digest, &diff_id).await;
                let told = blob(&id, "layer", digest, Some(diff_id), read.as_ref().err());
                if told_in.send(told).await.is_err() {
                    return;
                }
            }
        });
        Ok(told)
    }
}

fn blob(
    image: &ImageId,
    kind: &str,
    digest: Digest,
    diff_id: Option<Digest>,
    error: Option<&Cause>,
) -> VerifyImageResponse {
    VerifyImageResponse {
        manifest_digest: image.manifest.to_string(),
        r#type: kind.to_owned(),
        digest: digest.to_string(),
        diff_id: diff_id.map(|digest| digest.to_string()).unwrap_or_default(),
        state: match error {
            None => "verified",
            Some(error) if error.missing_blob().is_some() => "missing",
            Some(_) => "failed",
        }
        .to_owned(),
        error: error.map(Cause::to_string).unwrap_or_default(),
    }
}

/// Where a container's root filesystem is, and how it is to be read.
struct Place {
    root: OwnedFd,
    owners: Owners,
    mounts: MountPoints,
}

impl Place {
    fn of(container: &Container) -> Result<Self, String> {
        let task = container.task.as_ref().ok_or("it does not run")?;
        let gone = |error| format!("its process {} cannot be looked at: {error}", task.pid);
        let (rootfs, device) = task
            .rootfs
            .as_deref()
            .zip(task.root_device)
            .ok_or("where its root filesystem is mounted is not known")?;
        Ok(Self {
            root: root::detached(rootfs, device).ok_or("its root filesystem is gone")?,
            owners: Owners::of(task.pid).map_err(gone)?,
            mounts: MountPoints::of(task.pid).map_err(gone)?,
        })
    }

    fn compare(
        self,
        container: &Container,
        contents: &Contents,
        executed: Executed,
        told: &mpsc::Sender<VerifyContainerResponse>,
    ) {
        let tell = |response| {
            let response = VerifyContainerResponse {
                response: Some(response),
            };
            // A client that went away ends the comparison.
            match told.blocking_send(response) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        };
        let begun = Begun {
            container: Some(build::container_of(container)),
            image: Some(build::image_of(container, Some(contents.evidence().name()))),
            entries: contents.entries().count() as u64,
        };
        if tell(Response::Begun(Box::new(begun))).is_break()
            || tell(Response::Executed(executed)).is_break()
        {
            return;
        }
        let walk = match Walk::new(self.root, self.owners) {
            Ok(walk) => walk,
            Err(error) => {
                tracing::warn!(error, id = container.id, "root filesystem cannot be read");
                return;
            }
        };
        let mut differences: BTreeMap<&str, u64> = BTreeMap::new();
        let mut last = Instant::now();
        let compared = compare(walk, contents, &self.mounts, |step| match step {
            Step::Difference(difference) => {
                *differences.entry(difference.verdict.name()).or_default() += 1;
                tell(Response::Difference(shown(difference)))
            }
            Step::Compared(Summary { paths, bytes, .. }) => {
                if last.elapsed() < PROGRESS_INTERVAL {
                    return ControlFlow::Continue(());
                }
                last = Instant::now();
                tell(Response::Progress(Progress { paths, bytes }))
            }
        });
        if let Some(summary) = compared {
            let differences = differences.into_iter();
            // If the client is gone, nobody misses it.
            let _ = tell(Response::Verified(Verified {
                paths: summary.paths,
                bytes: summary.bytes,
                differences: differences
                    .map(|(verdict, count)| (verdict.to_owned(), count))
                    .collect(),
                mount_points: summary.mount_points,
            }));
        }
    }
}

fn shown(difference: Difference) -> v1::Difference {
    let text =
        |hash: Option<crate::digest::Sha256>| hash.map(|hash| hash.to_string()).unwrap_or_default();
    v1::Difference {
        verdict: difference.verdict.name().to_owned(),
        r#type: difference.seen_type.unwrap_or_default().to_owned(),
        expected_type: difference.expected_type.unwrap_or_default().to_owned(),
        seen_sha256: text(difference.seen),
        expected_sha256: text(difference.expected),
        layer: difference
            .layer
            .map(|layer| layer.to_string())
            .unwrap_or_default(),
        details: difference.details,
        path: difference.path,
    }
}
