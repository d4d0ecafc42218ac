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
    nodes::digests,
    orders::Controller,
    owners,
    plan::Owner,
    pods,
    workload::{Name, Target},
};
use crate::{
    approval::{Approvals, Standing},
    registry::full_name,
};

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
            let approvals = self.approvals.in_force();
            let candidates = self.nodes.each(|node, container| {
                let image = container.image.as_ref()?;
                let may = has_run(container, image, &approvals, now);
                may.then(|| Some((seen(node, container)?, image.clone())))?
            });
            let candidates: HashMap<Seen, v1::alert::Image> = candidates.into_iter().collect();
            known.retain(|it| candidates.contains_key(it));
            let new = candidates.iter().filter(|(seen, _)| !known.contains(*seen));
            let new: Vec<_> = new.take(PODS_PER_LOOK_MAX).collect();
            for (seen, image) in new {
                if self.note(seen, image).await {
                    known.insert(seen.clone());
                }
            }
        }
    }

    /// Notes what runs in a pod that is ready; whether that is done.
    async fn note(&self, seen: &Seen, image: &v1::alert::Image) -> bool {
        let (node, namespace, pod, uid, name, _) = seen;
        let Ok(object) = self.cluster.get(POD, namespace, pod).await else {
            return false;
        };
        // A node speaks of its own pods alone.
        if !pods::is_on(&object, uid, node) || !is_ready(&object, name) {
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
        let (own, digests) = (full_name(&image.reference), digests(image));
        let noted = self.approvals.note_ran(&own, &workload, &digests);
        let noted = noted.await;
        if let Err(error) = &noted {
            tracing::warn!(%error, %workload, "what ran ready is not noted yet");
        }
        noted.is_ok()
    }
}

fn seen(node: &str, container: &v1::Container) -> Option<Seen> {
    let who = container.container.as_ref()?;
    let pod = who.pod.as_ref()?;
    let image = container.image.as_ref()?;
    Some((
        node.to_owned(),
        pod.namespace.clone(),
        pod.name.clone(),
        pod.uid.clone(),
        who.name.clone(),
        image.manifest_digest.clone(),
    ))
}

/// Whether a container may be what a rollback goes back to: of an approved image, which is proven.
fn has_run(
    container: &v1::Container,
    image: &v1::alert::Image,
    approvals: &Approvals,
    now: Timestamp,
) -> bool {
    let started = container.started_at.as_ref();
    let started = started.and_then(|at| Timestamp::new(at.seconds, at.nanos).ok());
    image.identity == "proven"
        && started.is_some_and(|at| now.duration_since(at) >= RAN_MIN)
        && matches!(
            approvals.standing(&full_name(&image.reference), &digests(image), now),
            Standing::Approved(_)
        )
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
