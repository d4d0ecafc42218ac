//! A cluster with a workload, a controller with the account of `deploy/controller.yaml`, and nodes whose
//! daemons the test plays.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use jiff::{SignedDuration, Timestamp};
use monitor_api::v1;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tests::{
    alerts::text,
    authority::Authority,
    controller::{Controller, Node},
    kubernetes::{
        cluster::Cluster,
        http::Server,
        standin::{Event, Standin, What},
    },
    poll::{PATIENCE, until},
    skip,
};

/// The nodes.
pub(crate) const NODES: [&str; 2] = ["node-a", "node-b"];
/// What of the manifest the controller needs that tests start themselves.
const NEEDED: [&str; 7] = [
    "Namespace",
    "CustomResourceDefinition",
    "ServiceAccount",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
];
/// How often nodes report, whether something changed or not.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);
/// How long a container is said to run when it is reported first.
const UP: SignedDuration = SignedDuration::from_secs(20);

/// On a real cluster they share the controller's Lease.
static TURN: Mutex<()> = Mutex::new(());

/// The digest that stands for an image.
pub(crate) fn digest(word: &str) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(word)))
}

/// See the module.
pub(crate) struct Stage {
    pub(crate) controller: Controller,
    pub(crate) fleet: Fleet,
    pub(crate) standin: Standin,
    pub(crate) authority: Authority,
    cluster: Cluster,
    account: PathBuf,
    directory: TempDir,
    _turn: Option<MutexGuard<'static, ()>>,
}

impl Stage {
    /// With further lines for the controller's configuration.
    pub(crate) fn start(settings: &str) -> Result<Self> {
        let cluster = Cluster::start()?;
        let is_shared = cluster.server().is_none();
        let turn = is_shared.then(|| TURN.lock().unwrap_or_else(PoisonError::into_inner));
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/controller.yaml");
        let documents: Vec<Value> = serde_saphyr::from_multiple(&fs::read_to_string(manifest)?)?;
        for document in &documents {
            if text(document, "/kind").is_some_and(|kind| NEEDED.contains(&kind)) {
                cluster.apply(document)?;
            }
        }
        let account = cluster.account_kubeconfig("monitord", "monitord-controller")?;
        let fleet = Fleet::default();
        let seen = fleet.clone();
        let standin = Standin::start(&cluster, &NODES, move |event| seen.take(event))?;
        let (authority, directory) = (Authority::new()?, tempfile::tempdir()?);
        let own = directory.path().join("first");
        let controller = Controller::start(&account, &own, &authority, settings)?;
        controller.wait_leads()?;
        fleet.join(&controller, &authority)?;
        Ok(Self {
            controller,
            fleet,
            standin,
            authority,
            cluster,
            account,
            directory,
            _turn: turn,
        })
    }

    /// Another controller of the same cluster.
    pub(crate) fn another(&self, name: &str) -> Result<Controller> {
        let own = self.directory.path().join(name);
        Controller::start(&self.account, &own, &self.authority, "")
    }

    /// Stops the controller, which must end well, and removes what is not the namespace's.
    pub(crate) fn end(self) -> Result<()> {
        let status = self.controller.stop()?;
        ensure!(status.success(), "{status}:\n{}", self.controller.log());
        self.clean()
    }

    /// The second half of [`Self::end`].
    pub(crate) fn clean(self) -> Result<()> {
        for approval in self.approvals()? {
            self.cluster.delete(&approval)?;
        }
        Ok(())
    }

    fn approvals(&self) -> Result<Vec<Value>> {
        let mut all = self.cluster.list("monitord.io/v1", "ImageApproval", "")?;
        let own = format!("{}/", self.registry());
        all.retain(|it| text(it, "/spec/repository").is_some_and(|name| name.starts_with(&own)));
        Ok(all)
    }

    /// Whether the pods' behaviour can be chosen; says that a test is skipped if not.
    pub(crate) fn plays_pods(&self, test: &str) -> bool {
        if !self.standin.runs_pods() {
            skip::record(test, "the cluster runs its pods itself");
        }
        self.standin.runs_pods()
    }

    /// The API server, if it is the tests' own; says that a test is skipped if not.
    pub(crate) fn server(&self, test: &str) -> Option<&Server> {
        if self.cluster.server().is_none() {
            skip::record(test, "a real API server has no faults on demand");
        }
        self.cluster.server()
    }

    /// The namespace of the workload.
    pub(crate) fn namespace(&self) -> &str {
        self.cluster.namespace()
    }

    /// Of this test alone, since approvals are the whole cluster's.
    pub(crate) fn registry(&self) -> String {
        format!("registry.test/{}", self.namespace())
    }

    /// The reference of the image that `word` stands for.
    pub(crate) fn image(&self, word: &str) -> String {
        format!("{}/web@{}", self.registry(), digest(word))
    }

    /// As orders name the workload.
    pub(crate) fn target(&self, kind: &str) -> String {
        format!("{kind}/{}/web", self.namespace())
    }

    /// Gives an order, which must be carried out to its end; how it stands then.
    pub(crate) fn rolled_back(&self, words: &[&str]) -> Result<Value> {
        let order = self.controller.done(words)?.pop().context("no order")?;
        ensure!(text(&order, "/state") == Some("done"), "{order}");
        Ok(order)
    }

    /// Approves images.
    pub(crate) fn approve(&self, words: &[&str]) -> Result<()> {
        for word in words {
            let image = self.image(word);
            self.controller
                .done(&["approval", "approve", &image, "--reason", "test"])?;
        }
        Ok(())
    }

    /// Approves an image as `kubectl` does.
    pub(crate) fn write_approval(&self, word: &str) -> Result<()> {
        let statement = json!({
            "digest": digest(word), "state": "approved", "by": "kubectl", "reason": "test",
            "at": "2026-01-01T00:00:00Z",
        });
        self.cluster.create(&json!({
            "apiVersion": "monitord.io/v1", "kind": "ImageApproval",
            "metadata": {"name": self.namespace()},
            "spec": {"repository": format!("{}/web", self.registry()), "statements": [statement]},
        }))?;
        Ok(())
    }

    fn object(&self, kind: &str, spec: &Value) -> Value {
        let version = if ["CronJob", "Job"].contains(&kind) {
            "batch/v1"
        } else {
            "apps/v1"
        };
        json!({
            "apiVersion": version, "kind": kind,
            "metadata": {"name": "web", "namespace": self.namespace()},
            "spec": spec,
        })
    }

    fn containers(&self, word: &str) -> Value {
        json!([{
            "name": "web", "image": self.image(word), "env": [{"name": "A", "value": "b"}],
        }])
    }

    /// Creates the workload, of an image, and waits until it runs.
    pub(crate) fn deploy(&self, kind: &str, word: &str) -> Result<()> {
        let labels = json!({"app": kind.to_lowercase()});
        let mut pods = json!({
            "metadata": {"labels": labels}, "spec": {"containers": self.containers(word)},
        });
        let spec = match kind {
            "CronJob" => {
                pods["spec"]["restartPolicy"] = json!("Never");
                json!({"schedule": "0 0 1 1 *", "jobTemplate": {"spec": {"template": pods}}})
            }
            _ => {
                let mut spec = json!({"selector": {"matchLabels": labels}, "template": pods});
                if kind != "DaemonSet" {
                    spec["replicas"] = json!(2);
                }
                if kind == "StatefulSet" {
                    spec["serviceName"] = json!("web");
                }
                spec
            }
        };
        self.cluster.create(&self.object(kind, &spec))?;
        match kind {
            "CronJob" => Ok(()),
            "Deployment" => self.wait_rolled_out(word),
            _ => self.fleet.wait_running(&digest(word), 2),
        }
    }

    /// Removes the workload, and waits until nothing of it runs.
    pub(crate) fn remove(&self, kind: &str) -> Result<()> {
        self.cluster.delete(&self.object(kind, &json!({})))?;
        until("all pods to end", PATIENCE, || {
            ensure!(self.fleet.count() == 0, "some run");
            Ok(())
        })
    }

    /// Has the workload name an image, as `kubectl set image` does.
    pub(crate) fn set_image(&self, kind: &str, word: &str) -> Result<()> {
        let pods = json!({"spec": {"containers": self.containers(word)}});
        self.cluster
            .merge(&self.object(kind, &json!({"template": pods, "replicas": 2})))?;
        Ok(())
    }

    /// Gives its pods another container.
    pub(crate) fn add_container(&self, kind: &str, name: &str, word: &str) -> Result<()> {
        let mut object = self.workload(kind)?;
        let place = "/spec/template/spec/containers";
        let containers = object.pointer_mut(place).and_then(Value::as_array_mut);
        let containers = containers.context("no containers")?;
        containers.push(json!({"name": name, "image": self.image(word)}));
        let pods = json!({"spec": {"containers": containers}});
        self.cluster
            .merge(&self.object(kind, &json!({"template": pods})))?;
        until("both containers to run", PATIENCE, || {
            let (own, all) = (self.fleet.running(&digest(word)).len(), self.fleet.count());
            ensure!((own, all) == (2, 4), "{own} of {all}");
            Ok(())
        })
    }

    /// What the pods of the namespace are to run, also those that end.
    pub(crate) fn images(&self) -> Result<Vec<String>> {
        let pods = self.cluster.list("v1", "Pod", self.namespace())?;
        let image = |pod: &Value| Some(text(pod, "/spec/containers/0/image")?.to_owned());
        Ok(pods.iter().filter_map(image).collect())
    }

    /// Waits until Kubernetes has given up the rollout of the Deployment.
    pub(crate) fn wait_stuck(&self) -> Result<()> {
        until("the rollout to be given up", PATIENCE, || {
            let object = self.workload("Deployment")?;
            let conditions = object
                .pointer("/status/conditions")
                .and_then(Value::as_array);
            let mut conditions = conditions.into_iter().flatten();
            let is_it = |it: &Value| text(it, "/reason") == Some("ProgressDeadlineExceeded");
            ensure!(conditions.any(is_it), "{object}");
            Ok(())
        })
    }

    /// Has a rollout of the Deployment be given up soon.
    pub(crate) fn hasten(&self) -> Result<()> {
        let spec = json!({"progressDeadlineSeconds": 2});
        self.cluster.merge(&self.object("Deployment", &spec))?;
        Ok(())
    }

    /// Sets a label of the workload.
    pub(crate) fn label(&self, kind: &str, key: &str, value: &str) -> Result<()> {
        let mut patch = self.object(kind, &json!({}));
        patch["metadata"]["labels"] = json!({key: value});
        self.cluster.merge(&patch)?;
        Ok(())
    }

    /// A pod that nothing owns.
    pub(crate) fn bare_pod(&self, name: &str, word: &str) -> Result<()> {
        self.cluster.create(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": self.namespace()},
            "spec": {"containers": self.containers(word)},
        }))?;
        Ok(())
    }

    /// A Job that nothing makes anew.
    pub(crate) fn job(&self, word: &str) -> Result<()> {
        let pods = json!({
            "spec": {"restartPolicy": "Never", "containers": self.containers(word)},
        });
        self.cluster
            .create(&self.object("Job", &json!({"template": pods})))?;
        Ok(())
    }

    /// The workload as it is now.
    pub(crate) fn workload(&self, kind: &str) -> Result<Value> {
        let version = if kind == "CronJob" {
            "batch/v1"
        } else {
            "apps/v1"
        };
        self.cluster.get(version, kind, self.namespace(), "web")
    }

    /// What the workload names now.
    pub(crate) fn named(&self, kind: &str) -> Result<String> {
        let pods = match kind {
            "CronJob" => "/spec/jobTemplate/spec/template",
            _ => "/spec/template",
        };
        let object = self.workload(kind)?;
        let image = text(&object, &format!("{pods}/spec/containers/0/image"));
        Ok(image.context("no image")?.to_owned())
    }

    /// Waits until every pod of the Deployment is of an image.
    pub(crate) fn wait_rolled_out(&self, word: &str) -> Result<()> {
        until(&format!("{word} to be rolled out"), PATIENCE, || {
            let object = self.workload("Deployment")?;
            let number = |pointer: &str| object.pointer(pointer).and_then(Value::as_u64);
            let is_seen = number("/status/observedGeneration") >= number("/metadata/generation");
            let counts = ["replicas", "updatedReplicas", "availableReplicas"];
            let mut counts = counts.iter().map(|it| number(&format!("/status/{it}")));
            ensure!(is_seen && counts.all(|it| it == Some(2)), "{object}");
            Ok(())
        })?;
        self.fleet.wait_running(&digest(word), 2)
    }

    /// Waits until it is noted that an image ran ready in the workload.
    pub(crate) fn wait_ran(&self, word: &str) -> Result<()> {
        until("it to be noted what ran", PATIENCE, || {
            let approvals = self.approvals()?;
            let is_noted = approvals.iter().any(|it| {
                let ran = it.pointer("/status/ran").and_then(Value::as_array);
                let digest = digest(word);
                ran.is_some_and(|ran| ran.iter().any(|it| text(it, "/digest") == Some(&digest)))
            });
            ensure!(is_noted, "{approvals:?}");
            Ok(())
        })
    }

    /// Has a plan made; its id.
    pub(crate) fn plan(&self, kind: &str, word: &str) -> Result<String> {
        let (target, to) = (self.target(kind), digest(word));
        let words = ["rollback", "plan", &target, "--to", &to, "--reason", "test"];
        let plan = self.controller.done(&words)?;
        let id = plan.first().and_then(|it| text(it, "/id"));
        Ok(id.context("no id")?.to_owned())
    }

    /// The revisions of an alert.
    pub(crate) fn alerts(&self, id: &str) -> Result<Vec<Value>> {
        let mut all = self.controller.done(&["alerts"])?;
        all.retain(|it| text(it, "/id") == Some(id));
        Ok(all)
    }

    /// Waits for an alert.
    pub(crate) fn wait_alert(&self, is_it: impl Fn(&Value) -> bool) -> Result<Value> {
        until("an alert", PATIENCE, || {
            let all = self.controller.done(&["alerts"])?;
            let found = all.iter().find(|it| is_it(it)).cloned();
            found.with_context(|| format!("{all:?}"))
        })
    }
}

/// The nodes' daemons.
#[derive(Clone, Default)]
pub(crate) struct Fleet(Arc<Daemons>);

#[derive(Default)]
struct Daemons {
    running: Mutex<Running>,
    members: Mutex<Vec<(String, Node)>>,
    is_silent: AtomicBool,
    has_ended: AtomicBool,
    reporting: Mutex<Option<JoinHandle<()>>>,
}

/// Containers by node and id, and what is said of their images that is not so.
#[derive(Default)]
struct Running {
    containers: BTreeMap<(String, String), v1::Container>,
    lies: HashMap<String, String>,
    changes: u64,
}

impl Fleet {
    /// A container began to run, or ended.
    fn take(&self, event: &Event) {
        let mut running = lock(&self.0.running);
        let key = (event.node.clone(), event.id.clone());
        match event.what {
            What::Started => running.containers.insert(key, container(event)),
            What::Ended => running.containers.remove(&key),
        };
        running.changes += 1;
    }

    /// Has the nodes join a controller, in place of the one before.
    pub(crate) fn join(&self, controller: &Controller, authority: &Authority) -> Result<()> {
        let mut members = lock(&self.0.members);
        members.clear();
        for name in NODES {
            members.push((name.to_owned(), Node::join(controller, authority, name)?));
        }
        lock(&self.0.running).changes += 1;
        drop(members);
        let mut reporting = lock(&self.0.reporting);
        if reporting.is_none() {
            let daemons = Arc::clone(&self.0);
            *reporting = Some(thread::spawn(move || daemons.report()));
        }
        Ok(())
    }

    /// Has reports say of one image that it is another.
    pub(crate) fn lie(&self, of: &str, said: &str) {
        let mut running = lock(&self.0.running);
        running.lies.insert(of.to_owned(), said.to_owned());
    }

    /// Has the nodes report no more.
    pub(crate) fn be_silent(&self) {
        self.0.is_silent.store(true, Ordering::Relaxed);
    }

    /// Has a node report an alert.
    pub(crate) fn incident(&self, node: &str, alert: &v1::Alert, respond: &str) -> Result<()> {
        let members = lock(&self.0.members);
        let member = members.iter().find(|(name, _)| name == node);
        let (_, member) = member.context("no such node")?;
        member.incident(alert.clone(), respond)
    }

    /// The containers of an image, with their nodes.
    pub(crate) fn running(&self, digest: &str) -> Vec<(String, v1::Container)> {
        let running = lock(&self.0.running);
        let of = |it: &v1::Container| {
            it.image
                .as_ref()
                .is_some_and(|image| image.manifest_digest == digest)
        };
        let own = running.containers.iter().filter(|(_, it)| of(it));
        own.map(|((node, _), it)| (node.clone(), it.clone()))
            .collect()
    }

    /// How many run.
    pub(crate) fn count(&self) -> usize {
        lock(&self.0.running).containers.len()
    }

    /// Waits until so many containers of an image run, and no other.
    pub(crate) fn wait_running(&self, digest: &str, count: usize) -> Result<()> {
        until("pods to run", PATIENCE, || {
            let (own, all) = (self.running(digest).len(), self.count());
            ensure!(own == count && all == count, "{own} of {all}");
            Ok(())
        })
    }
}

impl Daemons {
    /// Until the test has ended.
    fn report(&self) {
        let (mut last, mut told) = (Instant::now(), None);
        while !self.has_ended.load(Ordering::Relaxed) {
            let changes = lock(&self.running).changes;
            let is_due = told != Some(changes) || last.elapsed() >= REPORT_INTERVAL;
            if is_due && !self.is_silent.load(Ordering::Relaxed) {
                (last, told) = (Instant::now(), Some(changes));
                for (name, node) in lock(&self.members).iter() {
                    // Of one whose controller has gone it joins the next.
                    let _ = node.report(self.of(name));
                }
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn of(&self, node: &str) -> Vec<v1::Container> {
        let running = lock(&self.running);
        let own = running.containers.iter().filter(|((on, _), _)| on == node);
        let told = own.map(|(_, container)| {
            let mut container = container.clone();
            if let Some(image) = &mut container.image
                && let Some(said) = running.lies.get(&image.manifest_digest)
            {
                image.manifest_digest.clone_from(said);
            }
            container
        });
        told.collect()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.fleet.0.has_ended.store(true, Ordering::Relaxed);
        if let Some(reporting) = lock(&self.fleet.0.reporting).take() {
            // A panic there has been told.
            let _ = reporting.join();
        }
        // Conversations block until they have ended.
        lock(&self.fleet.0.members).clear();
    }
}

/// As a node's daemon reports it.
fn container(event: &Event) -> v1::Container {
    let started = Timestamp::now() - UP;
    let manifest = event.image.split_once('@').map_or("", |(_, digest)| digest);
    v1::Container {
        container: Some(v1::alert::Container {
            id: event.id.clone(),
            name: event.container.clone(),
            runtime_namespace: "k8s.io".to_owned(),
            kind: "container".to_owned(),
            pod: Some(v1::alert::Pod {
                namespace: event.namespace.clone(),
                name: event.pod.clone(),
                uid: event.uid.clone(),
            }),
            ..v1::alert::Container::default()
        }),
        image: Some(v1::alert::Image {
            reference: event.image.clone(),
            identity: "proven".to_owned(),
            manifest_digest: manifest.to_owned(),
            ..v1::alert::Image::default()
        }),
        started_at: Some(prost_types::Timestamp {
            seconds: started.as_second(),
            nanos: 0,
        }),
        ..v1::Container::default()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
