//! The scheduler and the kubelets of all nodes.

use std::time::Instant;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{Behaviour, Event, Worker, array, change, has, is_going, lock, text};
use crate::kubernetes::metadata::seconds_of;

impl<H: FnMut(&Event)> Worker<H> {
    /// Does what is next with a pod.
    pub(super) async fn pod(&mut self, pod: &Value) -> Result<()> {
        let uid = text(pod, "/metadata/uid");
        let node = text(pod, "/spec/nodeName");
        if node.is_empty() {
            return self.bind(pod).await;
        }
        if !self.nodes.iter().any(|own| own == node) {
            return Ok(());
        }
        let behaviours: Vec<Behaviour> = {
            let known = lock(&self.behaviours);
            let images = array(pod, "/spec/containers").map(|it| text(it, "/image"));
            // What was said last holds.
            let of = |image: &str| {
                let mut last = known.iter().rev();
                last.find(|(part, _)| image.contains(part.as_str()))
                    .map(|(_, behaviour)| *behaviour)
            };
            images.filter_map(of).collect()
        };
        if is_going(pod) {
            let told = self.told_to_end.entry(uid.to_owned());
            let spent = told.or_insert_with(Instant::now).elapsed();
            let is_slow =
                |it: &Behaviour| matches!(it, Behaviour::SlowToEnd(time) if spent < *time);
            if behaviours.iter().any(is_slow) {
                return Ok(());
            }
            self.started.remove(uid);
            self.told_to_end.remove(uid);
            return self.objects.delete(pod, Some(0)).await;
        }
        let is_pulled = !behaviours.contains(&Behaviour::Unpullable);
        let started = *self
            .started
            .entry(uid.to_owned())
            .or_insert_with(Instant::now);
        let is_ready = is_pulled
            && behaviours.iter().all(|behaviour| match behaviour {
                Behaviour::Slow(time) => started.elapsed() >= *time,
                Behaviour::NeverReady | Behaviour::Unpullable => false,
                Behaviour::SlowToEnd(_) => true,
            });
        let has_statuses = array(pod, "/status/containerStatuses").next().is_some();
        if has_statuses && is_ready == has(pod, "Ready") {
            return Ok(());
        }
        let mut patch = change(pod);
        patch["status"] = status(pod, is_pulled, is_ready);
        self.objects.merge_status(&patch).await.map(drop)
    }

    /// Gives a pod a node: the one that it asks for, as pods of a `DaemonSet` do, else any.
    async fn bind(&self, pod: &Value) -> Result<()> {
        let terms = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
        let fields = array(pod, terms).flat_map(|term| array(term, "/matchFields"));
        let mut asked = fields.map(|field| text(field, "/values/0").to_owned());
        let any = || {
            let hash = Sha256::digest(text(pod, "/metadata/uid"));
            let place = usize::from(hash.first().copied().unwrap_or_default());
            self.nodes.get(place % self.nodes.len().max(1)).cloned()
        };
        let node = asked
            .next()
            .or_else(any)
            .context("a cluster without nodes")?;
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding",
            "metadata": {"name": text(pod, "/metadata/name"), "namespace": self.namespace},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        });
        self.objects
            .create_below(pod, "binding", &binding)
            .await
            .map(drop)
    }
}

fn status(pod: &Value, is_pulled: bool, is_ready: bool) -> Value {
    let now = seconds_of(jiff::Timestamp::now());
    let condition = |kind: &str, holds: bool| {
        let status = if holds { "True" } else { "False" };
        json!({"type": kind, "status": status, "lastTransitionTime": now})
    };
    let start = match text(pod, "/status/startTime") {
        "" => now.as_str(),
        start => start,
    };
    let containers = array(pod, "/spec/containers").map(|container| {
        let (name, image) = (text(container, "/name"), text(container, "/image"));
        let mut status = json!({
            "name": name, "image": image, "imageID": "", "restartCount": 0,
            "ready": is_ready, "started": is_pulled,
        });
        if is_pulled {
            let id = Sha256::digest(format!("{}/{name}", text(pod, "/metadata/uid")));
            status["containerID"] = json!(format!("containerd://{}", hex::encode(id)));
            status["imageID"] = json!(if image.contains('@') { image } else { "" });
            status["state"] = json!({"running": {"startedAt": start}});
        } else {
            let message = format!("failed to pull {image}");
            status["state"] = json!({"waiting": {"reason": "ErrImagePull", "message": message}});
        }
        status
    });
    let containers: Vec<Value> = containers.collect();
    json!({
        "phase": if is_pulled { "Running" } else { "Pending" },
        "startTime": start,
        "conditions": [
            condition("PodScheduled", true),
            condition("Initialized", true),
            condition("ContainersReady", is_ready),
            condition("Ready", is_ready),
        ],
        "containerStatuses": containers,
    })
}
