//! What orders are judged by: the inventory, containerd, and what is said of images.

use std::{fs, sync::Arc, time::Duration};

use jiff::Timestamp;
use monitor_api::v1;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{sleep, timeout},
};

use super::query::{Query, Snapshot};
use crate::{
    alerts::AlertLog,
    containerd::{Client, ContainerdError},
    containers::{
        Container, ContainerKind, Identity, ImageId,
        catalog::{Image, Reference},
        meant, repository,
    },
    digest::Digest,
    image::{
        blobs::{Blobs as _, Origin, read_document},
        manifest,
    },
    provenance::{Provenance, Subject},
    registry::{Registry, Repository},
    respond::{
        Documents, Facts, Held, Pull, Reader, Refusal, Request, Seen, Signature, Source, Supply,
        refuse_workload, target, workload,
    },
};

/// How often it is asked for the identity of a container that was created only just.
const IDENTITY_INTERVAL: Duration = Duration::from_millis(50);
const IDENTITY_LOOKS_MAX: u32 = 40;

/// How long a plan waits for the documents of an image that may have to come from its registry; the
/// answer to who asks for the plan waits for them.
const DOCUMENTS_TIME_MAX: Duration = Duration::from_secs(5);

/// Kinds of alert of what is not the image's.
const CONTENT_KINDS: [&str; 3] = ["exec_", "code_", "script_"];

/// Where facts come from.
pub(super) struct Scene {
    pub(super) client: Client,
    pub(super) queries: mpsc::Sender<Query>,
    pub(super) references: watch::Receiver<Arc<[Reference]>>,
    pub(super) log: AlertLog,
    pub(super) provenance: Provenance,
    /// Asked for images that containerd does not have, if that is configured.
    pub(super) registry: Option<Registry>,
}

impl Source for Scene {
    async fn facts(&self, request: &Request) -> Result<Facts, Refusal> {
        refuse_workload(&request.target)?;
        let container = self.meant(&request.target).await?;
        let (namespace, id) = (&container.runtime_namespace, &container.id);
        let record = match self.client.container(namespace, id).await {
            Err(error) if error.is_not_found() => {
                return Err(Refusal::NoContainer(request.target.clone()));
            }
            record => record.map_err(|error| Refusal::of_containerd(&error))?,
        };
        let task = match self.client.task(namespace, id).await {
            Err(ContainerdError::NotFound(_)) => None,
            task => Some(task.map_err(|error| Refusal::of_containerd(&error))?),
        };
        let task = task.map(|task| {
            let started = started(task.pid);
            (task, started)
        });
        let (answer_in, answer) = oneshot::channel();
        let asked = self.queries.send(Query::Statements(answer_in)).await;
        // Both fail only while the daemon stops.
        asked.map_err(|_| Refusal::Stopping)?;
        let approvals = answer.await.map_err(|_| Refusal::Stopping)?;
        let images = self.images(namespace);
        let running = self.running_images(&container, &images).await;
        let facts = Facts {
            namespace: namespace.clone(),
            is_sandbox: container.kind == ContainerKind::Sandbox,
            has_content_findings: self.has_content_findings(&container),
            record,
            task,
            running,
            images,
            approvals,
            ran: Vec::new(),
            signature: Signature::NotRequired,
            supply: None,
            now: Timestamp::now(),
        };
        Ok(facts)
    }

    async fn complete(&self, request: &Request, facts: &mut Facts) -> Result<(), Refusal> {
        if let Err(Refusal::NotPresent {
            digest, repository, ..
        }) = target(request, facts)
            && let Some(registry) = &self.registry
        {
            let (held, pull) = self.remote(registry, facts, digest, &repository).await?;
            facts.images.push(held);
            facts.supply = Some(Supply::Remote(pull));
        }
        // Without a target there is nothing to know; the plan says why.
        let Ok(held) = target(request, facts) else {
            return Ok(());
        };
        let signature = self.signature(&facts.namespace, held).await;
        let supply = match facts.supply {
            None => self.supply(facts, held).await?,
            remote => remote,
        };
        (facts.signature, facts.supply) = (signature, supply);
        Ok(())
    }

    async fn running(&self) -> Vec<Seen> {
        let snapshot = self.snapshot().await;
        let containers = snapshot.map(|it| it.containers).unwrap_or_default();
        let seen = |(container, running, _): (Arc<Container>, bool, u64)| {
            let task = container.task.as_ref().filter(|_| running)?;
            let Identity::Proven(image) = &container.identity else {
                return None;
            };
            Some(Seen {
                workload: workload(&container.runtime_namespace, &container.id),
                pid: task.pid,
                manifest: image.manifest,
            })
        };
        containers.into_iter().filter_map(seen).collect()
    }
}

impl Scene {
    /// An image that containerd does not know, by the documents that its registry has.
    async fn remote(
        &self,
        registry: &Registry,
        facts: &Facts,
        digest: Digest,
        own: &str,
    ) -> Result<(Held, Pull), Refusal> {
        let refused = |reason: String| Refusal::NotPullable {
            digest,
            reason,
            namespace: facts.namespace.clone(),
            repository: own.to_owned(),
        };
        let reference = format!("{own}@{digest}");
        let origin = Repository::of(&reference).map_err(|error| refused(error.to_string()))?;
        let origin = registry.origin(origin);
        let documents = self.documents(&facts.namespace, Some(&*origin), &digest);
        let documents = documents.await.map_err(refused)?;
        let lacking = documents.lacking(&self.client, &facts.namespace, digest);
        let pull = lacking
            .await
            .map_err(|error| Refusal::of_containerd(&error))?;
        let held = Held {
            reference,
            target: digest,
            image: documents.image,
        };
        Ok((held, pull))
    }

    /// How an image that containerd knows comes to the container's snapshotter.
    async fn supply(&self, facts: &Facts, held: &Held) -> Result<Option<Supply>, Refusal> {
        let (namespace, id) = (&facts.namespace, &held.image.id);
        let (snapshotter, key) = (&facts.record.snapshotter, id.chain_id.to_string());
        match self.client.snapshot(namespace, snapshotter, &key).await {
            Ok(_) => return Ok(Some(Supply::Unpacked)),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(Refusal::of_containerd(&error)),
        }
        let origin = Repository::of(&held.reference)
            .ok()
            .zip(self.registry.as_ref());
        let origin = origin.map(|(repository, registry)| registry.origin(repository));
        let documents = self.documents(namespace, origin.as_deref(), &held.target);
        let documents = match documents.await {
            Ok(documents) => documents,
            Err(reason) => {
                tracing::warn!(
                    reason,
                    image = held.reference,
                    "an image cannot be unpacked"
                );
                return Ok(None);
            }
        };
        let lacking = documents.lacking(&self.client, namespace, held.target);
        let pull = lacking
            .await
            .map_err(|error| Refusal::of_containerd(&error))?;
        Ok(match origin {
            _ if pull.blobs == 0 => Some(Supply::Stored),
            Some(_) => Some(Supply::Remote(pull)),
            None => None,
        })
    }

    async fn documents(
        &self,
        namespace: &str,
        origin: Option<&dyn Origin>,
        target: &Digest,
    ) -> Result<Documents, String> {
        let reader = Reader {
            blobs: &self.client,
            namespace,
            origin,
        };
        let read = timeout(DOCUMENTS_TIME_MAX, reader.read(target)).await;
        let late = || {
            let seconds = DOCUMENTS_TIME_MAX.as_secs();
            format!("its documents did not come within {seconds} s")
        };
        let read = read.map_err(|_| late())?;
        read.map_err(|error| error.to_string())
    }

    /// What is said of an image's signature, where its repository needs one.
    async fn signature(&self, namespace: &str, held: &Held) -> Signature {
        let repository = repository(&held.reference);
        if !self.provenance.is_required(repository) {
            return Signature::NotRequired;
        }
        let manifest = held.image.id.manifest;
        let subject = Subject {
            runtime_namespace: namespace.to_owned(),
            repository: repository.to_owned(),
            manifest,
            index: (held.target != manifest).then_some(held.target),
        };
        let found = self.provenance.verify_now(&subject).await;
        if found.signature.is_valid() {
            Signature::Valid
        } else {
            Signature::Refused(found.signature.to_string())
        }
    }

    async fn snapshot(&self) -> Option<Snapshot> {
        let (answer_in, answer) = oneshot::channel();
        // Both fail only while the daemon stops.
        self.queries.send(Query::Snapshot(answer_in)).await.ok()?;
        answer.await.ok()
    }

    /// The container that a person means, once its identity was found out.
    async fn meant(&self, wanted: &str) -> Result<Arc<Container>, Refusal> {
        let mut looks = 0;
        loop {
            let snapshot = self.snapshot().await.ok_or(Refusal::Stopping)?;
            let all: Vec<&Arc<Container>> = snapshot.containers.iter().map(|it| &it.0).collect();
            let found = meant(&all, wanted, |it| Some((it.id.as_str(), it.name.as_str())));
            let container = match found.as_slice() {
                [] => return Err(Refusal::NoContainer(wanted.to_owned())),
                [one] => Arc::clone(one),
                several => {
                    return Err(Refusal::Ambiguous {
                        container: wanted.to_owned(),
                        count: several.len(),
                    });
                }
            };
            looks += 1;
            if container.identity != Identity::Pending || looks > IDENTITY_LOOKS_MAX {
                return Ok(container);
            }
            sleep(IDENTITY_INTERVAL).await;
        }
    }

    /// The images of a namespace, in the order of their references.
    fn images(&self, namespace: &str) -> Vec<Held> {
        let references = Arc::clone(&self.references.borrow());
        let own = references.iter().filter(|it| it.namespace == namespace);
        let held = own.filter_map(|reference| {
            Some(Held {
                reference: reference.name.clone(),
                target: reference.target,
                image: Arc::clone(reference.image.as_ref()?),
            })
        });
        let mut images: Vec<Held> = held.collect();
        images.sort_by(|a, b| a.reference.cmp(&b.reference));
        images
    }

    /// The images that a container may be of, with their configs.
    async fn running_images(&self, container: &Container, images: &[Held]) -> Vec<Arc<Image>> {
        let mut running = Vec::new();
        for id in container.identity.images() {
            let known = images.iter().find(|it| it.image.id.manifest == id.manifest);
            let image = match known {
                Some(held) => Some(Arc::clone(&held.image)),
                None => self.read(&container.runtime_namespace, id).await,
            };
            running.extend(image);
        }
        running
    }

    /// An image that no reference stands for any more.
    async fn read(&self, namespace: &str, id: &ImageId) -> Option<Arc<Image>> {
        let config = read_document(self.client.open(namespace, &id.config), &id.config).await;
        let config = manifest::parse_config(&config.ok()?).ok()?;
        let id = id.clone();
        Some(Arc::new(Image { id, config }))
    }

    fn has_content_findings(&self, container: &Container) -> bool {
        let manifests: Vec<String> = (container.identity.images().iter())
            .map(|image| image.manifest.to_string())
            .collect();
        let is_bad = |alert: &v1::Alert| {
            let is_content = alert
                .rule
                .as_ref()
                .is_some_and(|rule| rule.id.starts_with("content."));
            let is_kind = CONTENT_KINDS.iter().any(|it| alert.kind.starts_with(it));
            let image = alert.image.as_ref();
            let is_own = image.is_some_and(|it| manifests.contains(&it.manifest_digest));
            is_content && is_kind && is_own && alert.severity >= i32::from(v1::Severity::Medium)
        };
        self.log.recent().iter().any(|alert| is_bad(alert))
    }
}

/// When a process was started, in ticks since boot; 0 if it is gone.
fn started(pid: u32) -> u64 {
    const AFTER_NAME: usize = 19;
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name may hold anything, also brackets and spaces.
    let fields = text.rsplit_once(") ").map(|(_, fields)| fields);
    let field = fields.and_then(|fields| fields.split(' ').nth(AFTER_NAME));
    field.and_then(|field| field.parse().ok()).unwrap_or(0)
}
