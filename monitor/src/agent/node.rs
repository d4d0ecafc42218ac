//! What the API answers, in its own types.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use jiff::Timestamp;
use monitor_api::v1;
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot, watch};

use super::{
    automatic::Counts,
    contents::ContentsReader,
    query::{CoverageQuestion, Query, Snapshot},
    rollbacks::Scene,
};
use crate::{
    alerts::build,
    api::{
        self, ApprovalCall, ApprovalCallError, ContentsError, CoverageError, ImageContents, Node,
        PolicyCall, PolicyCallError, ProfileCall, ProfileError, VerifyError,
    },
    audit::Who,
    containers::{Container, ImageId, catalog::Reference},
    digest::Digest,
    image::{
        contents::{Contents, Evidence, Found},
        layer::EntryKind,
        store::Stats,
    },
    outputs::Outputs,
    provenance::Provenance,
    respond::{Order, Refusal, Responder},
    sensor::{
        account::Account,
        hooks::{self, Choice},
    },
};

/// Running containers of an image that its usage names.
const RUNNING_MAX: usize = 1000;

/// Digits of a digest that must be given at least; the tables show as many.
const DIGEST_DIGITS_MIN: usize = 12;

/// Answers from the owner's snapshots, the references and the image store.
pub(super) struct NodeView {
    pub(super) node: String,
    pub(super) queries: mpsc::Sender<Query>,
    pub(super) references: watch::Receiver<Arc<[Reference]>>,
    pub(super) contents: Arc<ContentsReader>,
    pub(super) provenance: Provenance,
    pub(super) containerd_address: PathBuf,
    /// When the hooks were attached.
    pub(super) watched_since: Timestamp,
    /// Comparisons of containers with their images that may begin now.
    pub(super) comparisons: Arc<Semaphore>,
    pub(super) outputs: Arc<Outputs>,
    pub(super) responder: Arc<Responder<Scene>>,
    /// What came of rules that asked for a response.
    pub(super) responses: Arc<Counts>,
    /// Where the cluster's approvals are kept.
    pub(super) cluster_approvals_file: PathBuf,
}

impl NodeView {
    pub(super) async fn snapshot(&self) -> Option<Snapshot> {
        let (answer_in, answer) = oneshot::channel();
        // Both fail only while the daemon stops.
        self.queries.send(Query::Snapshot(answer_in)).await.ok()?;
        answer.await.ok()
    }

    /// The image that a reference or a digest (of index, manifest or config; also its first digits)
    /// stands for, with a namespace that has it. Images that only a container still has are found
    /// as well.
    pub(super) async fn find(&self, image: &str) -> Result<(String, ImageId), ContentsError> {
        let digits = image.strip_prefix("sha256:").unwrap_or(image);
        let is_prefix = digits.len() >= DIGEST_DIGITS_MIN
            && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let is_meant = |digest: &Digest| is_prefix && digest.0.to_string().starts_with(digits);
        let mut found: BTreeMap<Digest, (String, ImageId)> = BTreeMap::new();
        for reference in self.references.borrow().iter() {
            let Some(known) = &reference.image else {
                continue;
            };
            let id = &known.id;
            let digests = [&id.manifest, &id.config, &reference.target];
            if reference.name == image || digests.into_iter().any(is_meant) {
                found
                    .entry(id.manifest)
                    .or_insert_with(|| (reference.namespace.clone(), id.clone()));
            }
        }
        let used = self.snapshot().await.map(|snapshot| snapshot.containers);
        for (container, _, _) in used.iter().flatten() {
            for id in container.identity.images() {
                if [&id.manifest, &id.config].into_iter().any(is_meant) {
                    found.entry(id.manifest).or_insert_with(|| {
                        (container.runtime_namespace.clone(), ImageId::clone(id))
                    });
                }
            }
        }
        match found.len() {
            0 => Err(ContentsError::NoImage(image.to_owned())),
            1 => found
                .into_values()
                .next()
                .ok_or_else(|| ContentsError::NoImage(image.to_owned())),
            _ => Err(ContentsError::Ambiguous {
                image: image.to_owned(),
                digests: found
                    .keys()
                    .map(Digest::to_string)
                    .collect::<Vec<_>>()
                    .join(", "),
            }),
        }
    }
}

impl NodeView {
    /// The contents of the image that `image` stands for; where its blobs are gone, as a container
    /// has them.
    async fn contents_of(&self, image: &str) -> Result<(ImageId, Arc<Contents>), ContentsError> {
        let (namespace, id) = self.find(image).await?;
        let from_blobs = self.contents.images().contents(&namespace, &id).await;
        let found = match from_blobs {
            Err(error) if error.missing_blob().is_some() => {
                let used = self.snapshot().await.map(|snapshot| snapshot.containers);
                let container = used.into_iter().flatten().find_map(|(container, _, _)| {
                    let own = container.identity.contents_of()?;
                    (own.manifest == id.manifest).then_some(container)
                });
                match container {
                    Some(container) => self.contents.of(&container, &id).await,
                    None => Err(error),
                }
            }
            found => found,
        };
        let contents = found.map_err(|error| ContentsError::NotIndexed {
            image: image.to_owned(),
            reason: error.to_string(),
        })?;
        Ok((id, contents))
    }
}

#[api::async_trait]
impl Node for NodeView {
    async fn containers(&self) -> Vec<v1::Container> {
        let Some(snapshot) = self.snapshot().await else {
            return Vec::new();
        };
        let mut containers: Vec<v1::Container> = snapshot
            .containers
            .iter()
            .map(|(container, running, findings)| self.container(container, *running, *findings))
            .collect();
        containers.sort_by_cached_key(|container| {
            container
                .container
                .as_ref()
                .map(|container| (container.runtime_namespace.clone(), container.id.clone()))
        });
        containers
    }

    async fn images(&self) -> Vec<v1::Image> {
        let used = self
            .snapshot()
            .await
            .map(|snapshot| snapshot.containers)
            .unwrap_or_default();
        let references = Arc::clone(&self.references.borrow());
        let mut images: BTreeMap<Digest, v1::Image> = BTreeMap::new();
        for reference in references.iter() {
            let Some(known) = &reference.image else {
                continue;
            };
            let id = &known.id;
            let image = images
                .entry(id.manifest)
                .or_insert_with(|| self.image(&reference.namespace, id, &used));
            image.layers = known
                .config
                .diff_ids
                .iter()
                .map(Digest::to_string)
                .collect();
            image.references.push(reference.name.clone());
            image.runtime_namespaces.push(reference.namespace.clone());
            if reference.target != id.manifest {
                image.index_digest = reference.target.to_string();
            }
        }
        // Images whose references are gone while containers still run them.
        for (container, _, _) in &used {
            for id in container.identity.images() {
                images
                    .entry(id.manifest)
                    .or_insert_with(|| self.image(&container.runtime_namespace, id, &used))
                    .runtime_namespaces
                    .push(container.runtime_namespace.clone());
            }
        }
        for image in images.values_mut() {
            for names in [&mut image.references, &mut image.runtime_namespaces] {
                names.sort();
                names.dedup();
            }
        }
        images.into_values().collect()
    }

    async fn image_contents(
        &self,
        image: &str,
        path: Option<&[u8]>,
    ) -> Result<ImageContents, ContentsError> {
        let (id, contents) = self.contents_of(image).await?;
        let entries: Box<dyn Iterator<Item = v1::ImageEntry> + Send> = match path {
            Some(path) => {
                let (path, found) =
                    contents
                        .resolve(path)
                        .ok_or_else(|| ContentsError::NoPath {
                            image: image.to_owned(),
                            path: monitor_api::bytes::escape(path).to_string(),
                        })?;
                let entry = entry(&contents, path, &found);
                Box::new(std::iter::once(entry))
            }
            None => Box::new(all(&contents).into_iter()),
        };
        Ok(ImageContents {
            manifest_digest: id.manifest.to_string(),
            evidence: contents.evidence().name().to_owned(),
            entries,
        })
    }

    async fn verify_container(
        &self,
        container: &str,
    ) -> Result<mpsc::Receiver<v1::VerifyContainerResponse>, VerifyError> {
        self.compare(container).await
    }

    async fn verify_image(
        &self,
        image: &str,
    ) -> Result<mpsc::Receiver<v1::VerifyImageResponse>, ContentsError> {
        self.check_blobs(image).await
    }

    async fn image_usage(&self) -> Vec<v1::ImageUsageResponse> {
        let Some(snapshot) = self.snapshot().await else {
            return Vec::new();
        };
        let now = Timestamp::now();
        let mut usage: Vec<v1::ImageUsageResponse> = snapshot
            .usage
            .iter()
            .map(|(manifest, usage)| {
                let is_of = |container: &Container| {
                    let mut images = container.identity.images().iter();
                    images.any(|image| image.manifest == *manifest)
                };
                let running = snapshot.containers.iter();
                let mut running: Vec<String> = running
                    .filter(|(container, running, _)| *running && is_of(container))
                    .map(|(container, _, _)| {
                        format!("{}/{}", container.runtime_namespace, container.id)
                    })
                    .collect();
                running.sort();
                let last_seen = if running.is_empty() {
                    usage.last_seen
                } else {
                    now
                };
                running.truncate(RUNNING_MAX);
                v1::ImageUsageResponse {
                    manifest_digest: manifest.to_string(),
                    config_digest: usage.config.to_string(),
                    node: self.node.clone(),
                    references: usage.references.iter().cloned().collect(),
                    running,
                    containers: usage.containers,
                    first_seen: Some(build::timestamp(usage.first_seen)),
                    last_seen: Some(build::timestamp(last_seen)),
                }
            })
            .collect();
        usage.sort_by(|a, b| a.manifest_digest.cmp(&b.manifest_digest));
        usage
    }

    async fn coverage(
        &self,
        container: &str,
        from: Option<Timestamp>,
        to: Option<Timestamp>,
    ) -> Result<v1::CoverageResponse, CoverageError> {
        let (answer_in, answer) = oneshot::channel();
        let question = CoverageQuestion {
            container: container.to_owned(),
            from,
            to,
        };
        let query = Query::Coverage(question, answer_in);
        // Both fail only while the daemon stops.
        let stopping = CoverageError::Stopping;
        self.queries
            .send(query)
            .await
            .map_err(|_| stopping.clone())?;
        answer.await.map_err(|_| stopping)?
    }

    async fn policies(
        &self,
        call: PolicyCall,
    ) -> Result<v1::ListPoliciesResponse, PolicyCallError> {
        self.ask_policies(call).await
    }

    async fn approvals(
        &self,
        call: ApprovalCall,
    ) -> Result<v1::ListApprovalsResponse, ApprovalCallError> {
        self.ask_approvals(call).await
    }

    async fn approval_of(
        &self,
        image: &str,
    ) -> Result<v1::VerifyApprovalResponse, ApprovalCallError> {
        self.ask_approval_of(image).await
    }

    async fn record(&self) -> Option<broadcast::Receiver<Arc<str>>> {
        self.begin_recording().await
    }

    async fn profiles(&self, call: ProfileCall) -> Result<Vec<v1::Profile>, ProfileError> {
        self.ask_profiles(call).await
    }

    async fn rollback(&self, order: Order, who: Who) -> Result<v1::Rollback, Refusal> {
        self.responder.order(order, who).await
    }

    async fn rollbacks(&self) -> Vec<v1::Rollback> {
        self.responder.list()
    }

    async fn status(&self) -> v1::Status {
        let mut status = v1::Status {
            node: self.node.clone(),
            kernel: kernel_release(),
            outputs: self.outputs.status(),
            containerd: Some(v1::status::Containerd {
                address: self.containerd_address.display().to_string(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let stats = self.contents.images().stats();
        status.images = BTreeMap::from([
            ("indexed".to_owned(), stats.images_in_memory as u64),
            ("failed".to_owned(), stats.failed),
        ])
        .into_iter()
        .collect();
        status.index = Some(index(&stats));
        status.registry = self.contents.registry();
        let Some(snapshot) = self.snapshot().await else {
            return status;
        };
        status.containerd = Some(v1::status::Containerd {
            address: self.containerd_address.display().to_string(),
            connected: snapshot.connection.connected,
            since: Some(build::timestamp(snapshot.connection.since)),
            error: String::new(),
        });
        for (container, running, _) in &snapshot.containers {
            if *running {
                *status
                    .containers
                    .entry(container.identity.grade().to_owned())
                    .or_default() += 1;
            }
        }
        status.hooks = snapshot
            .choices
            .iter()
            .map(|choice| hook(choice, &snapshot.account))
            .collect();
        status.events = Some(v1::status::Events {
            received: snapshot.account.received,
            earlier: snapshot.account.earlier,
            given_up: snapshot.counts.given_up,
            raised_before: snapshot.counts.raised_before,
            running: snapshot.account.running,
            failed: snapshot.counts.failed,
            judged: snapshot.counts.judged + snapshot.counts.host + snapshot.account.undecodable,
            waiting: snapshot.waiting,
            expired_unknown: snapshot.counts.expired_unknown,
            before_coverage: snapshot.counts.before_coverage,
            host: snapshot.counts.host,
            image: snapshot.counts.image,
            metadata_changed: snapshot.counts.metadata_changed,
            unverifiable: snapshot.counts.unverifiable,
            runtime: snapshot.counts.runtime,
            jit: snapshot.counts.jit,
            caches: snapshot.counts.caches,
            data: snapshot.counts.data,
            noted: snapshot.counts.noted,
            peers: snapshot.counts.peers,
        });
        status.changes = Some(v1::status::Changes {
            noticed: snapshot.changes_account.noticed,
            waiting: snapshot.changes_account.waiting,
            same: snapshot.changes.same,
            differing: snapshot.changes.differing,
            unverifiable: snapshot.changes.unverifiable,
            others: snapshot.changes_account.others,
            overflows: snapshot.changes_account.overflows,
            unfollowed: snapshot.changes_account.unfollowed,
        });
        status.coverage = Some(snapshot.coverage.clone());
        status.behaviour = Some(snapshot.behaviour);
        status.policies = Some(snapshot.policies);
        status.approvals = Some(snapshot.approvals);
        status.rollbacks = self.responder.counts();
        status.responses = self.responses.all();
        status.held = Some(v1::status::Held {
            files: snapshot.account.held.held,
            queue_overflows: snapshot.account.held.queue_overflows,
            evicted: snapshot.account.held.evicted,
        });
        status
    }
}

impl NodeView {
    fn container(&self, container: &Container, running: bool, findings: u64) -> v1::Container {
        let watched_since = self.watched_since;
        let evidence = self.contents.evidence(container).map(Evidence::name);
        let is_whole = container.created_unix_ns >= watched_since.as_nanosecond();
        let task = container.task.as_ref().filter(|_| running);
        v1::Container {
            container: Some(build::container_of(container)),
            image: Some(build::image_of(container, evidence)),
            pid: task.map(|task| task.pid),
            coverage: match (container.is_visible(), is_whole) {
                (false, _) => "none",
                (true, true) => "full",
                (true, false) => "since",
            }
            .to_owned(),
            coverage_since: (container.is_visible() && !is_whole)
                .then(|| build::timestamp(watched_since)),
            findings,
            digest_pinned: container.is_digest_pinned(),
            ..Default::default()
        }
    }

    fn image(
        &self,
        namespace: &str,
        id: &ImageId,
        used: &[(Arc<Container>, bool, u64)],
    ) -> v1::Image {
        let containers = used
            .iter()
            .filter(|(container, _, _)| {
                let mut images = container.identity.images().iter();
                images.any(|image| image.manifest == id.manifest)
            })
            .count();
        let mut image = v1::Image {
            manifest_digest: id.manifest.to_string(),
            config_digest: id.config.to_string(),
            chain_id: id.chain_id.to_string(),
            state: "waiting".to_owned(),
            containers: u32::try_from(containers).unwrap_or(u32::MAX),
            ..Default::default()
        };
        let unpacked = || {
            let mut containers = used.iter().map(|(container, _, _)| container);
            containers.find_map(|container| self.contents.peek_unpacked(container, id))
        };
        let known = match self.contents.images().peek(namespace, id) {
            Some(Err(error)) => Some(unpacked().ok_or(error)),
            known => known,
        };
        match known {
            Some(Ok(contents)) => {
                image.state = "indexed".to_owned();
                image.evidence = contents.evidence().name().to_owned();
                image.entries = contents.entries().count() as u64;
            }
            Some(Err(error)) => {
                image.state = "failed".to_owned();
                image.error = error.to_string();
            }
            None => {}
        }
        image
    }
}

fn all(contents: &Contents) -> Vec<v1::ImageEntry> {
    contents
        .entries()
        .map(|(path, found)| entry(contents, path, &found))
        .collect()
}

fn entry(contents: &Contents, path: Vec<u8>, found: &Found<'_>) -> v1::ImageEntry {
    let mut entry = v1::ImageEntry {
        path,
        mode: u32::from(found.mode),
        uid: found.uid,
        gid: found.gid,
        layer: contents
            .layer_of(found)
            .map(|layer| layer.to_string())
            .unwrap_or_default(),
        ..Default::default()
    };
    entry.r#type = match found.kind {
        EntryKind::File { size, sha256 } => {
            entry.size = size;
            entry.sha256 = sha256.map(|sha256| sha256.to_string()).unwrap_or_default();
            "file"
        }
        EntryKind::Directory => "directory",
        EntryKind::Symlink { target } => {
            entry.link_target = target.to_vec();
            "symlink"
        }
        EntryKind::CharDevice { .. } => "character_device",
        EntryKind::BlockDevice { .. } => "block_device",
        EntryKind::Fifo => "fifo",
    }
    .to_owned();
    entry
}

fn kernel_release() -> String {
    nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn index(stats: &Stats) -> v1::status::Index {
    v1::status::Index {
        images_in_memory: stats.images_in_memory as u64,
        layers_in_memory: stats.layers_in_memory as u64,
        memory_bytes: stats.memory_bytes as u64,
        layers_on_disk: stats.layers_on_disk as u64,
        from_disk: stats.loaded,
        from_blobs: stats.built,
        from_directories: stats.unpacked,
        corrupt: stats.rebuilt,
        failed: stats.failed,
    }
}

/// A kind of event: what sees it, and its account.
fn hook(choice: &Choice, account: &Account) -> v1::status::Hook {
    let account = account.hook(choice.kind);
    let counters = account.counters;
    v1::status::Hook {
        event: hooks::kind_name(choice.kind).to_owned(),
        hook: choice.set.map_or("", hooks::set_name).to_owned(),
        limits: limits(choice),
        seen: counters.seen,
        unwatched: counters.unwatched,
        remembered: counters.remembered,
        submitted: counters.submitted,
        ring_full: counters.ring_full,
        map_full: counters.map_full,
        unreadable: counters.unreadable,
        truncated: counters.truncated,
        recursion_misses: account.recursion_misses,
    }
}

/// What is not seen, and why nothing better is in force.
fn limits(choice: &Choice) -> String {
    let refused = choice.refused.iter().map(|refusal| {
        format!(
            "{} refused: {}",
            hooks::set_name(refusal.set),
            refusal.without_log()
        )
    });
    let blind = choice.blind_spots().into_iter();
    blind.chain(refused).collect::<Vec<_>>().join("; ")
}
