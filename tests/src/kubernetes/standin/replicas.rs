//! `Deployment` and `ReplicaSet`.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{Event, Seen, Worker, array, change, has, is_going, is_owned, number, owner, text};
use crate::kubernetes::metadata::seconds_of;

/// Label of pods and replica sets that tells templates apart.
const HASH_LABEL: &str = "pod-template-hash";
/// Annotation that counts templates.
const REVISION: &str = "deployment.kubernetes.io/revision";
/// Seconds that a rollout may go without progress, if it does not say.
const PROGRESS_SECONDS: u64 = 600;

/// Tells templates apart.
pub(super) fn hash(template: &Value) -> String {
    let mut hash = hex::encode(Sha256::digest(template.to_string()));
    hash.truncate(10);
    hash
}

pub(super) fn is_ready(pod: &Value) -> bool {
    has(pod, "Ready") && !is_going(pod)
}

pub(super) fn count<T>(items: impl Iterator<Item = T>) -> u64 {
    u64::try_from(items.count()).unwrap_or(u64::MAX)
}

fn revision(object: &Value) -> u64 {
    let pointer = format!("/metadata/annotations/{}", REVISION.replace('/', "~1"));
    text(object, &pointer).parse().unwrap_or_default()
}

impl<H: FnMut(&Event)> Worker<H> {
    pub(super) async fn deployment(&mut self, deployment: &Value, seen: &Seen) -> Result<()> {
        if is_going(deployment) || deployment.pointer("/spec/paused") == Some(&json!(true)) {
            return Ok(());
        }
        let own = seen
            .replica_sets
            .iter()
            .filter(|set| is_owned(set, deployment));
        let own: Vec<&Value> = own.filter(|set| !is_going(set)).collect();
        let template = deployment
            .pointer("/spec/template")
            .cloned()
            .unwrap_or_default();
        let newest = own
            .iter()
            .map(|set| revision(set))
            .max()
            .unwrap_or_default();
        let current = own.iter().find(|set| {
            let mut own = set.pointer("/spec/template").cloned().unwrap_or_default();
            if let Some(labels) = own
                .pointer_mut("/metadata/labels")
                .and_then(Value::as_object_mut)
            {
                labels.remove(HASH_LABEL);
            }
            own == template
        });
        let Some(current) = current else {
            let set = replica_set(deployment, &template, newest + 1);
            // That is progress; to want again what was wanted before is none.
            self.progress.remove(text(deployment, "/metadata/uid"));
            return self.objects.create(&set).await.map(drop);
        };
        if revision(current) != newest {
            // An old template that is wanted again.
            return self.say_revision(current, newest + 1).await;
        }
        if revision(deployment) != newest {
            self.say_revision(deployment, newest).await?;
        }
        let wanted = number(deployment, "/spec/replicas");
        self.scale(current, wanted).await?;
        let pods_of = |set: &Value| {
            let pods = seen.pods.iter().filter(move |pod| !is_going(pod));
            let set = set.clone();
            pods.filter(move |pod| is_owned(pod, &set))
        };
        let ready = count(pods_of(current).filter(|pod| is_ready(pod)));
        let mut left = wanted.saturating_sub(ready);
        for old in own.iter().filter(|set| revision(set) != newest) {
            let kept = number(old, "/spec/replicas").min(left);
            left -= kept;
            self.scale(old, kept).await?;
        }
        let all: Vec<&Value> = own.iter().flat_map(|set| pods_of(set)).collect();
        let available = count(all.iter().filter(|pod| is_ready(pod)));
        let counts = json!({
            "replicas": count(all.iter()), "updatedReplicas": count(pods_of(current)),
            "readyReplicas": available, "availableReplicas": available,
            "unavailableReplicas": wanted.saturating_sub(available),
        });
        self.say_rollout(deployment, counts).await
    }

    /// Writes what a rollout has come to.
    async fn say_rollout(&mut self, deployment: &Value, mut counts: Value) -> Result<()> {
        let uid = text(deployment, "/metadata/uid").to_owned();
        let generation = number(deployment, "/metadata/generation");
        let wanted = number(deployment, "/spec/replicas");
        let now = Instant::now();
        let mut comes_on = !self.progress.contains_key(&uid);
        let (last, since) = self
            .progress
            .entry(uid)
            .or_insert_with(|| (counts.clone(), now));
        if *last != counts {
            (*last, *since) = (counts.clone(), now);
            comes_on = true;
        }
        let mut said = array(deployment, "/status/conditions");
        let said = said.find(|it| text(it, "/type") == "Progressing");
        let said = said.map_or("", |it| text(it, "/reason"));
        let seconds = match number(deployment, "/spec/progressDeadlineSeconds") {
            0 => PROGRESS_SECONDS,
            seconds => seconds,
        };
        let is_whole = |field: &str| number(&counts, field) == wanted;
        let is_done =
            is_whole("/replicas") && is_whole("/updatedReplicas") && is_whole("/availableReplicas");
        let (holds, reason) = match () {
            () if is_done => ("True", "NewReplicaSetAvailable"),
            () if comes_on => ("True", "ReplicaSetUpdated"),
            // Both stay until something comes on.
            () if said == "NewReplicaSetAvailable" => ("True", "NewReplicaSetAvailable"),
            () if said == "ProgressDeadlineExceeded" => ("False", "ProgressDeadlineExceeded"),
            () if since.elapsed() > Duration::from_secs(seconds) => {
                ("False", "ProgressDeadlineExceeded")
            }
            () => ("True", "ReplicaSetUpdated"),
        };
        // A quarter may be unavailable, by default.
        let is_available = number(&counts, "/availableReplicas") + wanted / 4 >= wanted;
        let (is_available, why) = match is_available {
            true => ("True", "MinimumReplicasAvailable"),
            false => ("False", "MinimumReplicasUnavailable"),
        };
        counts["observedGeneration"] = json!(generation);
        let conditions = [
            ("Progressing", holds, reason),
            ("Available", is_available, why),
        ];
        self.say(deployment, counts, &conditions).await
    }

    /// Writes a status unless it is there.
    pub(super) async fn say(
        &self,
        object: &Value,
        counts: Value,
        conditions: &[(&str, &str, &str)],
    ) -> Result<()> {
        let before = object.get("status").cloned().unwrap_or_default();
        let is_same = |(field, value): (&String, &Value)| {
            let before = before.get(field).cloned().unwrap_or_else(|| json!(0));
            before == *value
        };
        let is_said = |(kind, holds, reason): &(&str, &str, &str)| {
            array(object, "/status/conditions").any(|it| {
                text(it, "/type") == *kind
                    && text(it, "/status") == *holds
                    && text(it, "/reason") == *reason
            })
        };
        let mut fields = counts.as_object().into_iter().flatten();
        if fields.all(is_same) && conditions.iter().all(is_said) {
            return Ok(());
        }
        let now = seconds_of(jiff::Timestamp::now());
        let mut patch = change(object);
        patch["status"] = counts;
        if !conditions.is_empty() {
            let conditions = conditions.iter().map(|(kind, holds, reason)| {
                json!({
                    "type": kind, "status": holds, "reason": reason, "message": "",
                    "lastUpdateTime": now, "lastTransitionTime": now,
                })
            });
            patch["status"]["conditions"] = conditions.collect();
        }
        self.objects.merge_status(&patch).await.map(drop)
    }

    async fn say_revision(&self, object: &Value, revision: u64) -> Result<()> {
        let mut patch = change(object);
        patch["metadata"]["annotations"] = json!({REVISION: revision.to_string()});
        self.objects.merge(&patch).await.map(drop)
    }

    async fn scale(&self, set: &Value, replicas: u64) -> Result<()> {
        if number(set, "/spec/replicas") == replicas {
            return Ok(());
        }
        let mut patch = change(set);
        patch["spec"] = json!({"replicas": replicas});
        self.objects.merge(&patch).await.map(drop)
    }

    pub(super) async fn replica_set(&self, set: &Value, seen: &Seen) -> Result<()> {
        if is_going(set) {
            return Ok(());
        }
        let mut pods: Vec<&Value> = seen
            .pods
            .iter()
            .filter(|pod| is_owned(pod, set) && !is_going(pod))
            .collect();
        // Those that are not ready go first.
        pods.sort_by_key(|pod| !is_ready(pod));
        let (wanted, present) = (number(set, "/spec/replicas"), count(pods.iter()));
        for _ in present..wanted {
            self.objects
                .create(&pod(set, &json!({"generateName": true}), &json!({})))
                .await?;
        }
        let surplus = usize::try_from(present.saturating_sub(wanted)).unwrap_or_default();
        for pod in pods.iter().rev().take(surplus) {
            self.objects.delete(pod, None).await?;
        }
        let ready = count(pods.iter().filter(|pod| is_ready(pod)));
        let counts = json!({
            "replicas": present, "fullyLabeledReplicas": present, "readyReplicas": ready,
            "availableReplicas": ready, "observedGeneration": number(set, "/metadata/generation"),
        });
        self.say(set, counts, &[]).await
    }
}

fn replica_set(deployment: &Value, template: &Value, revision: u64) -> Value {
    let hash = hash(template);
    let mut template = template.clone();
    template["metadata"]["labels"][HASH_LABEL] = json!(hash);
    let mut selector = deployment
        .pointer("/spec/selector")
        .cloned()
        .unwrap_or_default();
    selector["matchLabels"][HASH_LABEL] = json!(hash);
    json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet",
        "metadata": {
            "name": format!("{}-{hash}", text(deployment, "/metadata/name")),
            "namespace": deployment.pointer("/metadata/namespace"),
            "labels": template.pointer("/metadata/labels"),
            "annotations": {REVISION: revision.to_string()},
            "ownerReferences": owner(deployment),
        },
        "spec": {"replicas": 0, "selector": selector, "template": template},
    })
}

/// A pod as the template of a workload says, with labels beside its.
pub(super) fn pod(workload: &Value, name: &Value, labels: &Value) -> Value {
    let template = workload
        .pointer("/spec/template")
        .cloned()
        .unwrap_or_default();
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": template.get("metadata").cloned().unwrap_or_else(|| json!({})),
        "spec": template.get("spec"),
    });
    pod["metadata"]["namespace"] = workload
        .pointer("/metadata/namespace")
        .cloned()
        .unwrap_or_default();
    pod["metadata"]["ownerReferences"] = owner(workload);
    match name {
        Value::String(_) => pod["metadata"]["name"] = name.clone(),
        _ => {
            let prefix = format!("{}-", text(workload, "/metadata/name"));
            pod["metadata"]["generateName"] = json!(prefix);
        }
    }
    for (label, value) in labels.as_object().into_iter().flatten() {
        pod["metadata"]["labels"][label] = value.clone();
    }
    pod
}
