//! Notes which images run ready in which workload: what an order without `--to` may go back to.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use monitor_api::v1;
use serde_json::Value;

use super::{
    cluster::POD,
    orders::Controller,
    owners,
    plan::Owner,
    workload::{Name, Target},
};
use crate::{approval::Standing, containers::repository, digest::Digest};

/// How often it is looked.
const INTERVAL: Duration = Duration::from_secs(10);
/// How long a container must have run: one that crashes at once has not run.
const RAN_MIN: SignedDuration = SignedDuration::from_secs(10);
/// Pods that are asked for in one look; the others wait for the next.
const PODS_PER_LOOK_MAX: usize = 50;

/// A container of a pod: node, namespace, pod, uid, container and image.
type Seen = (String, String, String, String, String, String);

impl Controller {
    /// Looks at what runs, for as long as this controller leads.
    pub(super) async fn observe(self: Arc<Self>) {
        let mut interval = tokio::time::interval(INTERVAL);
        let mut known: HashSet<Seen> = HashSet::new();
        loop {
            interval.tick().await;
            self.nodes.forget_silent();
            let now = Timestamp::now();
            let running = self.nodes.containers();
            let candidates: HashMap<Seen, v1::Container> = (running.into_iter())
                .filter(|(_, container)| self.has_run(container, now))
                .filter_map(|(node, container)| Some((seen(node, &container)?, container)))
                .collect();
            known.retain(|it| candidates.contains_key(it));
            let new = candidates.iter().filter(|(seen, _)| !known.contains(*seen));
            let new: Vec<_> = new.take(PODS_PER_LOOK_MAX).collect();
            for (seen, container) in new {
                if self.note(seen, container).await {
                    known.insert(seen.clone());
                }
            }
        }
    }

    /// Whether a container may be what a rollback goes back to: of an approved image, which is proven.
    fn has_run(&self, container: &v1::Container, now: Timestamp) -> bool {
        let image = container.image.clone().unwrap_or_default();
        let started = container.started_at.as_ref();
        let started = started.and_then(|at| Timestamp::new(at.seconds, at.nanos).ok());
        let approvals = self.approvals.in_force();
        let digests = digests(&image);
        image.identity == "proven"
            && started.is_some_and(|at| now.duration_since(at) >= RAN_MIN)
            && matches!(
                approvals.standing(repository(&image.reference), &digests, now),
                Standing::Approved(_)
            )
    }

    /// Notes what runs in a pod that is ready; whether that is done.
    async fn note(&self, seen: &Seen, container: &v1::Container) -> bool {
        let (node, namespace, pod, uid, name, _) = seen;
        let Ok(object) = self.cluster.get(POD, namespace, pod).await else {
            return false;
        };
        let text = |pointer| object.pointer(pointer).and_then(Value::as_str);
        // A node speaks of its own pods alone.
        let is_it = text("/metadata/uid") == Some(uid) && text("/spec/nodeName") == Some(node);
        if !is_it || !is_ready(&object, name) {
            return false;
        }
        let target = Target::Pod {
            namespace: namespace.clone(),
            name: pod.clone(),
        };
        let workload: Name = match owners::owner(&self.cluster, &target).await {
            Ok(Owner::Workload(workload)) => workload.name,
            // It has none that could be rolled back.
            Ok(Owner::Nothing(_)) => return true,
            Err(_) => return false,
        };
        let image = container.image.clone().unwrap_or_default();
        let own = repository(&image.reference);
        let noted = self
            .approvals
            .note_ran(own, &workload, &digests(&image))
            .await;
        if let Err(error) = &noted {
            tracing::warn!(%error, %workload, "what ran ready is not noted yet");
        }
        noted.is_ok()
    }
}

fn seen(node: String, container: &v1::Container) -> Option<Seen> {
    let who = container.container.as_ref()?;
    let pod = who.pod.as_ref()?;
    let image = container.image.as_ref()?;
    Some((
        node,
        pod.namespace.clone(),
        pod.name.clone(),
        pod.uid.clone(),
        who.name.clone(),
        image.manifest_digest.clone(),
    ))
}

fn digests(image: &v1::alert::Image) -> Vec<Digest> {
    let digests = [&image.manifest_digest, &image.index_digest];
    digests.iter().filter_map(|it| it.parse().ok()).collect()
}

/// Whether a container of a pod is ready, as its kubelet says.
fn is_ready(pod: &Value, container: &str) -> bool {
    let statuses = pod.pointer("/status/containerStatuses");
    let mut statuses = statuses.and_then(Value::as_array).into_iter().flatten();
    statuses.any(|it| {
        it.get("name").and_then(Value::as_str) == Some(container)
            && it.get("ready") == Some(&Value::Bool(true))
    })
}
