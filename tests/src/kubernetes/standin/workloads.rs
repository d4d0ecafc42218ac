//! `DaemonSet` and `StatefulSet`.

use anyhow::Result;
use serde_json::{Value, json};

use super::{
    Event, Seen, Worker, is_going, is_owned, number,
    replicas::{count, hash, is_ready, pod},
    text,
};

/// Label of pods that tells templates apart.
const HASH_LABEL: &str = "controller-revision-hash";

fn is_of(pod: &Value, hash: &str) -> bool {
    text(pod, "/metadata/labels/controller-revision-hash") == hash
}

fn rolls(set: &Value) -> bool {
    text(set, "/spec/updateStrategy/type") != "OnDelete"
}

impl<H: FnMut(&Event)> Worker<H> {
    pub(super) async fn daemon_set(&self, set: &Value, seen: &Seen) -> Result<()> {
        if is_going(set) {
            return Ok(());
        }
        let hash = hash(set.pointer("/spec/template").unwrap_or(&Value::Null));
        let pods: Vec<&Value> = seen.pods.iter().filter(|pod| is_owned(pod, set)).collect();
        for node in &self.nodes {
            if !pods.iter().any(|pod| text(pod, "/spec/nodeName") == node) {
                let mut pod = pod(set, &Value::Null, &json!({HASH_LABEL: hash}));
                pod["spec"]["nodeName"] = json!(node);
                self.objects.create(&pod).await?;
            }
        }
        let nodes = count(self.nodes.iter());
        let ready = count(pods.iter().filter(|pod| is_ready(pod)));
        let outdated = pods
            .iter()
            .filter(|pod| !is_going(pod) && !is_of(pod, &hash));
        // One after the other, those first that run on no account.
        let mut outdated: Vec<&&Value> = outdated.collect();
        outdated.sort_by_key(|pod| is_ready(pod));
        if let Some(next) = outdated.first()
            && rolls(set)
            && (ready == nodes || !is_ready(next))
        {
            self.objects.delete(next, None).await?;
        }
        let here = pods.iter().filter(|pod| !is_going(pod));
        let counts = json!({
            "desiredNumberScheduled": nodes, "currentNumberScheduled": count(here.clone()),
            "numberMisscheduled": 0, "numberReady": ready, "numberAvailable": ready,
            "numberUnavailable": nodes.saturating_sub(ready),
            "updatedNumberScheduled": count(here.filter(|pod| is_of(pod, &hash))),
            "observedGeneration": number(set, "/metadata/generation"),
        });
        self.say(set, counts, &[]).await
    }

    pub(super) async fn stateful_set(&self, set: &Value, seen: &Seen) -> Result<()> {
        if is_going(set) {
            return Ok(());
        }
        let hash = hash(set.pointer("/spec/template").unwrap_or(&Value::Null));
        let pods: Vec<&Value> = seen.pods.iter().filter(|pod| is_owned(pod, set)).collect();
        let wanted = number(set, "/spec/replicas");
        let revision = format!("{}-{hash}", text(set, "/metadata/name"));
        self.order(set, &pods, &revision).await?;
        let here: Vec<&&Value> = pods.iter().filter(|pod| !is_going(pod)).collect();
        let ready = count(here.iter().filter(|pod| is_ready(pod)));
        let updated = count(here.iter().filter(|pod| is_of(pod, &revision)));
        let is_done = updated == wanted && ready == wanted;
        let current = match text(set, "/status/currentRevision") {
            current if is_done || current.is_empty() => revision.as_str(),
            current => current,
        };
        let counts = json!({
            "replicas": count(here.iter()), "readyReplicas": ready, "availableReplicas": ready,
            "updatedReplicas": updated,
            "currentReplicas": count(here.iter().filter(|pod| is_of(pod, current))),
            "currentRevision": current, "updateRevision": revision,
            "observedGeneration": number(set, "/metadata/generation"),
        });
        self.say(set, counts, &[]).await
    }

    /// Does the next step of a set whose pods come in order and are replaced in the opposite one. A pod
    /// that is not ready stops both, also where it is the old one that has to be replaced.
    async fn order(&self, set: &Value, pods: &[&Value], revision: &str) -> Result<()> {
        let wanted = number(set, "/spec/replicas");
        let name = |ordinal: u64| format!("{}-{ordinal}", text(set, "/metadata/name"));
        let find = |ordinal: u64| {
            let name = name(ordinal);
            pods.iter()
                .find(move |pod| text(pod, "/metadata/name") == name)
        };
        for ordinal in 0..wanted {
            match find(ordinal) {
                Some(pod) if is_ready(pod) => {}
                Some(_) => return Ok(()),
                None => {
                    let labels = json!({
                        HASH_LABEL: revision, "statefulset.kubernetes.io/pod-name": name(ordinal),
                    });
                    let pod = pod(set, &json!(name(ordinal)), &labels);
                    return self.objects.create(&pod).await.map(drop);
                }
            }
        }
        // Those beyond what is wanted go from the end.
        let kept: Vec<String> = (0..wanted).map(name).collect();
        let mut beyond = pods
            .iter()
            .filter(|pod| !kept.iter().any(|kept| kept == text(pod, "/metadata/name")));
        if let Some(pod) = beyond.next_back() {
            return if is_going(pod) {
                Ok(())
            } else {
                self.objects.delete(pod, None).await
            };
        }
        let outdated = (0..wanted)
            .rev()
            .filter_map(find)
            .find(|pod| !is_of(pod, revision));
        match outdated {
            Some(pod) if rolls(set) => self.objects.delete(pod, None).await,
            _ => Ok(()),
        }
    }
}
