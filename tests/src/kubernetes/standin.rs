//! Stands in for a cluster's controllers, scheduler and kubelets, where it has none: a client of the
//! API like them, of the test's own namespace alone. What it does is theirs by
//! <https://kubernetes.io/docs/concepts/workloads/controllers/>, without what tests do not need.

mod kubelet;
mod replicas;
mod workloads;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tokio::{runtime, sync::watch, time::sleep};

use super::{cluster::Cluster, objects::Objects};
use crate::poll::Deadline;

/// Between two looks at the cluster.
const INTERVAL: Duration = Duration::from_millis(50);
/// How long controllers that are there may take to notice a workload.
const NOTICE_TIME_MAX: Duration = Duration::from_secs(5);
/// Label of nodes that are the stand-in's.
const NODE_LABEL: &str = "monitord.io/standin";

/// How containers of an image behave; others are ready at once and stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Started, and never ready.
    NeverReady,
    /// Ready only after a while.
    Slow(Duration),
    /// Never started, as the image cannot be pulled.
    Unpullable,
    /// Ends only a while after it was told to.
    SlowToEnd(Duration),
}

/// What happened to a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// It runs.
    Started,
    /// It is no more.
    Ended,
}

/// A container that began to run or ended, as its node's daemon would see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Which of both.
    pub what: What,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's uid.
    pub uid: String,
    /// Where it runs.
    pub node: String,
    /// Name in the pod.
    pub container: String,
    /// Id in containerd, 64 hexadecimal digits.
    pub id: String,
    /// As the pod's specification names it.
    pub image: String,
}

/// Runs until it is dropped.
#[derive(Debug)]
pub struct Standin {
    behaviours: Arc<Mutex<Vec<(String, Behaviour)>>>,
    is_alone: bool,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

/// What one look at the namespace showed.
struct Seen {
    deployments: Vec<Value>,
    replica_sets: Vec<Value>,
    daemon_sets: Vec<Value>,
    stateful_sets: Vec<Value>,
    pods: Vec<Value>,
}

/// What does the work, in a thread of its own.
struct Worker<H> {
    objects: Objects,
    namespace: String,
    nodes: Vec<String>,
    has_controllers: bool,
    has_kubelets: bool,
    behaviours: Arc<Mutex<Vec<(String, Behaviour)>>>,
    /// When the rollout of a Deployment, by uid, last came on, and how far; none since it began.
    progress: HashMap<String, (Value, Instant)>,
    /// When pods, by uid, were started.
    started: HashMap<String, Instant>,
    /// When they were told to end.
    told_to_end: HashMap<String, Instant>,
    /// The containers that run, by id.
    running: HashMap<String, Event>,
    hook: H,
}

impl Standin {
    /// Starts it for the cluster's namespace, with nodes of these names. The hook is told of every
    /// container, whoever runs it.
    pub fn start(
        cluster: &Cluster,
        nodes: &[&str],
        hook: impl FnMut(&Event) + Send + 'static,
    ) -> Result<Self> {
        // A server of the test's own has none of both.
        let (has_controllers, has_kubelets) = match cluster.server() {
            Some(_) => (false, false),
            None => (controllers_act(cluster)?, has_kubelets(cluster)?),
        };
        if !has_kubelets {
            prepare(cluster, nodes)?;
        }
        let behaviours = Arc::default();
        let kubeconfig = cluster.kubeconfig();
        let objects = cluster.run(Objects::connect_by(&kubeconfig))?;
        let worker = Worker {
            objects,
            namespace: cluster.namespace().to_owned(),
            nodes: nodes.iter().map(|node| (*node).to_owned()).collect(),
            has_controllers,
            has_kubelets,
            behaviours: Arc::clone(&behaviours),
            progress: HashMap::new(),
            started: HashMap::new(),
            told_to_end: HashMap::new(),
            running: HashMap::new(),
            hook,
        };
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (stop, stopped) = watch::channel(false);
        let thread = thread::spawn(move || runtime.block_on(worker.run(stopped)));
        Ok(Self {
            behaviours,
            is_alone: !has_kubelets,
            stop,
            thread: Some(thread),
        })
    }

    /// Whether it runs the pods, so that [`Self::behave`] has an effect.
    pub fn runs_pods(&self) -> bool {
        self.is_alone
    }

    /// Has containers behave so from now on whose image has `part` in its reference.
    pub fn behave(&self, part: &str, behaviour: Behaviour) {
        lock(&self.behaviours).push((part.to_owned(), behaviour));
    }
}

impl Drop for Standin {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether someone takes note of a workload; looked at once, since it takes a while to see that no one
/// does.
fn controllers_act(cluster: &Cluster) -> Result<bool> {
    static FOUND: Mutex<Option<bool>> = Mutex::new(None);
    let mut known = lock(&FOUND);
    if let Some(found) = *known {
        return Ok(found);
    }
    let labels = json!({"app": "monitord-standin"});
    let probe = cluster.create(&json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "monitord-standin", "namespace": cluster.namespace()},
        "spec": {
            "replicas": 0, "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [
                {"name": "none", "image": "example.invalid/none"},
            ]}},
        },
    }))?;
    let deadline = Deadline::after(NOTICE_TIME_MAX);
    let mut found = false;
    while !found && !deadline.passed() {
        deadline.pause();
        let seen = cluster.get(
            "apps/v1",
            "Deployment",
            cluster.namespace(),
            "monitord-standin",
        )?;
        found = number(&seen, "/status/observedGeneration") > 0;
    }
    cluster.delete(&probe)?;
    *known = Some(found);
    Ok(found)
}

/// Whether there are nodes beside those that stand in.
fn has_kubelets(cluster: &Cluster) -> Result<bool> {
    let label = format!("/metadata/labels/{}", NODE_LABEL.replace('/', "~1"));
    let nodes = cluster.list("v1", "Node", "")?;
    Ok(nodes.iter().any(|node| node.pointer(&label).is_none()))
}

/// Nodes, which controllers look for, and the account that pods have by default.
fn prepare(cluster: &Cluster, nodes: &[&str]) -> Result<()> {
    for node in nodes {
        cluster.apply(&json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": node, "labels": {NODE_LABEL: "true"}},
        }))?;
        // The API server holds a new node for one that is not ready yet.
        cluster.merge(&json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": node},
            "spec": {"taints": null},
        }))?;
        cluster.merge_status(&json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": node},
            "status": {
                "allocatable": {"cpu": "64", "memory": "64Gi", "pods": "1000"},
                "capacity": {"cpu": "64", "memory": "64Gi", "pods": "1000"},
                "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
            },
        }))?;
    }
    cluster.apply(&json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": "default", "namespace": cluster.namespace()},
    }))?;
    Ok(())
}

impl<H: FnMut(&Event)> Worker<H> {
    async fn run(mut self, mut stopped: watch::Receiver<bool>) {
        let mut last = String::new();
        loop {
            let failed = self.look().await.err().map(|error| format!("{error:#}"));
            // What a test deletes while it is looked at is found the next time.
            if let Some(failed) = failed
                && failed != last
            {
                eprintln!("stand-in: {failed}");
                last = failed;
            }
            tokio::select! {
                _ = stopped.changed() => return,
                () = sleep(INTERVAL) => {}
            }
        }
    }

    async fn look(&mut self) -> Result<()> {
        let seen = self.see().await?;
        self.observe(&seen.pods);
        if !self.has_controllers {
            self.collect(&seen).await?;
            for deployment in &seen.deployments {
                self.deployment(deployment, &seen).await?;
            }
            for set in &seen.replica_sets {
                self.replica_set(set, &seen).await?;
            }
            for set in &seen.daemon_sets {
                self.daemon_set(set, &seen).await?;
            }
            for set in &seen.stateful_sets {
                self.stateful_set(set, &seen).await?;
            }
        }
        if !self.has_kubelets {
            for pod in &seen.pods {
                self.pod(pod).await?;
            }
        }
        Ok(())
    }

    async fn see(&self) -> Result<Seen> {
        let list = async |api_version, kind| {
            let found = self.objects.list(api_version, kind, &self.namespace).await;
            found.with_context(|| format!("listing {kind}"))
        };
        Ok(Seen {
            deployments: list("apps/v1", "Deployment").await?,
            replica_sets: list("apps/v1", "ReplicaSet").await?,
            daemon_sets: list("apps/v1", "DaemonSet").await?,
            stateful_sets: list("apps/v1", "StatefulSet").await?,
            pods: list("v1", "Pod").await?,
        })
    }

    /// Tells which containers began and ended since the last look.
    fn observe(&mut self, pods: &[Value]) {
        let mut now = HashMap::new();
        for pod in pods {
            for status in array(pod, "/status/containerStatuses") {
                let id = text(status, "/containerID");
                let id = id.split_once("://").map_or(id, |(_, id)| id);
                if id.is_empty() || status.pointer("/state/running").is_none() {
                    continue;
                }
                let name = text(status, "/name");
                let mut containers = array(pod, "/spec/containers");
                let container = containers.find(|it| text(it, "/name") == name);
                let event = Event {
                    what: What::Started,
                    namespace: self.namespace.clone(),
                    pod: text(pod, "/metadata/name").to_owned(),
                    uid: text(pod, "/metadata/uid").to_owned(),
                    node: text(pod, "/spec/nodeName").to_owned(),
                    container: name.to_owned(),
                    id: id.to_owned(),
                    image: container.map_or("", |it| text(it, "/image")).to_owned(),
                };
                now.insert(id.to_owned(), event);
            }
        }
        let ended = self.running.iter().filter(|(id, _)| !now.contains_key(*id));
        for (_, event) in ended {
            (self.hook)(&Event {
                what: What::Ended,
                ..event.clone()
            });
        }
        for (_, event) in now.iter().filter(|(id, _)| !self.running.contains_key(*id)) {
            (self.hook)(event);
        }
        self.running = now;
    }

    /// Deletes what is owned by what is no more.
    async fn collect(&self, seen: &Seen) -> Result<()> {
        let owners = [
            &seen.deployments,
            &seen.replica_sets,
            &seen.daemon_sets,
            &seen.stateful_sets,
        ];
        let uids: Vec<&str> = owners
            .into_iter()
            .flatten()
            .map(|it| text(it, "/metadata/uid"))
            .collect();
        for object in seen.replica_sets.iter().chain(&seen.pods) {
            let has_gone = |it: &Value| {
                matches!(
                    text(it, "/kind"),
                    "Deployment" | "ReplicaSet" | "DaemonSet" | "StatefulSet"
                ) && !uids.contains(&text(it, "/uid"))
            };
            if array(object, "/metadata/ownerReferences").any(has_gone) && !is_going(object) {
                self.objects.delete(object, None).await?;
            }
        }
        Ok(())
    }
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn number(object: &Value, pointer: &str) -> u64 {
    object
        .pointer(pointer)
        .and_then(Value::as_u64)
        .unwrap_or_default()
}

fn array<'a>(object: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    object
        .pointer(pointer)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

fn is_going(object: &Value) -> bool {
    object.pointer("/metadata/deletionTimestamp").is_some()
}

fn is_owned(object: &Value, owner: &Value) -> bool {
    let uid = text(owner, "/metadata/uid");
    array(object, "/metadata/ownerReferences").any(|it| text(it, "/uid") == uid)
}

/// Whether a condition holds.
fn has(object: &Value, condition: &str) -> bool {
    let mut conditions = array(object, "/status/conditions");
    conditions.any(|it| text(it, "/type") == condition && text(it, "/status") == "True")
}

/// Names an object for a change.
fn change(object: &Value) -> Value {
    json!({
        "apiVersion": object.get("apiVersion"), "kind": object.get("kind"),
        "metadata": {
            "name": object.pointer("/metadata/name"),
            "namespace": object.pointer("/metadata/namespace"),
        },
    })
}

/// A reference to the controller of an object.
fn owner(object: &Value) -> Value {
    json!([{
        "apiVersion": object.get("apiVersion"), "kind": object.get("kind"),
        "name": object.pointer("/metadata/name"), "uid": object.pointer("/metadata/uid"),
        "controller": true, "blockOwnerDeletion": true,
    }])
}
