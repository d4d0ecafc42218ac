//! Finds out identities, one after the other, so that the slow questions about images never delay
//! what has to be told at once.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use lru::LruCache;

use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};
use tracing::{debug, warn};

use super::{
    Identity, ImageId, ImageProblem, SnapshotLayers,
    catalog::{Catalog, Image, Reference},
    facts::Claims,
    identity::{ANCESTORS_MAX, Ancestry, Evidence, grade, named_layers},
    inventory::{Change, Key},
};
use crate::{
    containerd::{Client, ContainerdError, ImageRecord, SnapshotRecord},
    digest::Digest,
    image::{
        blobs::{BlobError, Blobs as _, DocumentError, read_document},
        manifest::{self, Document, ManifestError, choose_platform},
        store::ImageStore,
    },
};

/// Questions that wait. When it is full the events wait, and containerd keeps them.
pub(super) const JOBS_MAX: usize = 4096;

/// How often a question is asked whose answer fails though containerd is there.
const ATTEMPTS_MAX: u32 = 3;
/// Pause after a failed call; doubles while containerd is away.
const PAUSE_MS: u64 = 100;
const PAUSE_MS_MAX: u64 = 5000;
/// Images that were not readable and are tried again when a container's chain ID is unknown.
const RETRIED_MAX: usize = 64;

/// Images remembered as not readable; of the one forgotten it is not told why.
const UNREADABLE_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// What is asked of the resolver.
#[derive(Debug)]
pub(super) enum Job {
    /// Read what images there are.
    Reload,
    /// A reference was made or points elsewhere.
    ImageChanged { namespace: String, name: String },
    /// A reference is gone.
    ImageDeleted { namespace: String, name: String },
    /// Find out a container's identity.
    Identify(Box<Question>),
    /// A container is gone.
    Gone(Key),
}

/// A container whose identity is asked for.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) key: Key,
    pub(super) created_unix_ns: i128,
    pub(super) reference: Option<String>,
    pub(super) snapshotter: String,
    pub(super) snapshot_key: String,
    /// The container's own snapshot, if it was asked for already.
    pub(super) snapshot: Option<SnapshotRecord>,
    pub(super) resolved_at_creation: Option<Digest>,
    pub(super) claims: Claims,
}

#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(transparent)]
    Containerd(#[from] ContainerdError),
    #[error(transparent)]
    Blob(#[from] DocumentError),
    #[error(transparent)]
    Document(#[from] ManifestError),
    #[error("no manifest for this platform")]
    Platform,
    #[error("an image without layers")]
    NoLayers,
    #[error("an index within an index")]
    Nested,
}

/// Answers jobs until there is nobody left to ask or to tell.
pub(super) async fn run(
    client: Client,
    images: ImageStore,
    changes: mpsc::Sender<Change>,
    references: watch::Sender<Arc<[Reference]>>,
    mut jobs: mpsc::Receiver<Job>,
) {
    let mut resolver = Resolver {
        client,
        images,
        catalog: Catalog::default(),
        unreadable: LruCache::new(UNREADABLE_MAX),
    };
    let mut refused = 0;
    while let Some(job) = jobs.recv().await {
        let catalog_changes = !matches!(job, Job::Identify(_) | Job::Gone(_));
        match job {
            Job::Reload => resolver.reload().await,
            Job::ImageChanged { namespace, name } => resolver.changed(&namespace, &name).await,
            Job::ImageDeleted { namespace, name } => resolver.catalog.remove(&namespace, &name),
            Job::Gone(key) => resolver.catalog.unpin(&key.namespace, &key.id),
            Job::Identify(question) => {
                let (identity, layers) = resolver.identify(&question).await;
                let image_problem = resolver
                    .problem(&question, &identity)
                    .map(|reason| ImageProblem { reason, layers });
                let change = Change::Identified {
                    key: question.key,
                    created_unix_ns: question.created_unix_ns,
                    identity,
                    image_problem,
                };
                if changes.send(change).await.is_err() {
                    return;
                }
            }
        }
        if catalog_changes {
            references.send_replace(resolver.catalog.references().into());
        }
        if resolver.catalog.refused() > refused {
            refused = resolver.catalog.refused();
            warn!(
                refused,
                "more images than are held; identities stay ambiguous"
            );
        }
    }
}

struct Resolver {
    client: Client,
    images: ImageStore,
    catalog: Catalog,
    /// Why an index or manifest could not be read when it was last tried.
    unreadable: LruCache<Digest, String>,
}

impl Resolver {
    /// Why nothing accounts for a container, if that is because its image could not be read.
    fn problem(&self, question: &Question, identity: &Identity) -> Option<String> {
        if *identity != Identity::None {
            return None;
        }
        let reference = question.reference.as_deref()?;
        let target = question
            .resolved_at_creation
            .or_else(|| self.catalog.target(&question.key.namespace, reference))?;
        let reason = self.unreadable.peek(&target)?;
        Some(format!("{reference} ({target}) cannot be read: {reason}"))
    }

    /// Asks until there is an answer: while containerd is away for as long as that takes, and
    /// [`ATTEMPTS_MAX`] times while it is there.
    async fn ask<T, Answer>(
        &self,
        question: impl Fn(Client) -> Answer,
    ) -> Result<T, ContainerdError>
    where
        Answer: Future<Output = Result<T, ContainerdError>>,
    {
        let mut attempts = 0;
        loop {
            let error = match question(self.client.clone()).await {
                Err(error) if !error.is_not_found() => error,
                answer => return answer,
            };
            let mut pause_ms = PAUSE_MS;
            sleep(Duration::from_millis(pause_ms)).await;
            while self.client.namespaces().await.is_err() {
                pause_ms = (pause_ms * 2).min(PAUSE_MS_MAX);
                sleep(Duration::from_millis(pause_ms)).await;
            }
            attempts += 1;
            if attempts >= ATTEMPTS_MAX {
                return Err(error);
            }
        }
    }

    async fn reload(&mut self) {
        let namespaces = match self
            .ask(|client| async move { client.namespaces().await })
            .await
        {
            Ok(namespaces) => namespaces,
            Err(error) => {
                warn!(%error, "images are not known; identities are claimed at most");
                return;
            }
        };
        self.catalog.retain_namespaces(&namespaces);
        for namespace in namespaces {
            match self
                .ask(|client| {
                    let namespace = &namespace;
                    async move { client.images(namespace).await }
                })
                .await
            {
                Ok(images) => {
                    let references: Vec<(String, Digest)> = images
                        .into_iter()
                        .filter_map(|image| Some((image.name, image.target?)))
                        .collect();
                    self.catalog.replace(&namespace, &references);
                    for target in self.catalog.unread(&namespace) {
                        self.learn(&namespace, &target).await;
                    }
                }
                Err(error) => {
                    warn!(%error, namespace, "images are not known; identities are claimed at most");
                }
            }
        }
    }

    async fn changed(&mut self, namespace: &str, name: &str) {
        match self
            .ask(|client| async move { client.image(namespace, name).await })
            .await
        {
            Ok(ImageRecord {
                target: Some(target),
                ..
            }) => {
                self.catalog.point(namespace, name, target);
                self.learn(namespace, &target).await;
            }
            Ok(ImageRecord { target: None, .. }) => self.catalog.remove(namespace, name),
            Err(error) if error.is_not_found() => self.catalog.remove(namespace, name),
            Err(error) => warn!(%error, "an image is not known as it is now"),
        }
    }

    /// Reads the image that an index or a manifest stands for, if it is not known.
    async fn learn(&mut self, namespace: &str, target: &Digest) {
        if self.catalog.image(target).is_some() {
            return;
        }
        match self.read(namespace, target).await {
            Ok((image, index)) => {
                self.unreadable.pop(target);
                self.catalog.learn(image, index);
            }
            // Images for other platforms are like that, and what is no image at all.
            Err(error) => {
                debug!(%error, namespace, %target, "not an image that runs here");
                self.unreadable.put(*target, error.to_string());
            }
        }
    }

    async fn read(
        &self,
        namespace: &str,
        target: &Digest,
    ) -> Result<(Image, Option<Digest>), ReadError> {
        let (digest, index, manifest) = match self.document(namespace, target).await? {
            Document::Manifest(manifest) => (*target, None, manifest),
            Document::Index(manifests) => {
                let chosen = choose_platform(&manifests)
                    .ok_or(ReadError::Platform)?
                    .digest;
                match self.document(namespace, &chosen).await? {
                    Document::Manifest(manifest) => (chosen, Some(*target), manifest),
                    Document::Index(_) => return Err(ReadError::Nested),
                }
            }
        };
        let config = &manifest.config;
        let bytes = self.blob(namespace, &config.digest).await?;
        let parsed = manifest::parse_config(&bytes)?;
        let chain_id = manifest::chain_id(&parsed.diff_ids).ok_or(ReadError::NoLayers)?;
        let image = Image {
            id: ImageId {
                manifest: digest,
                config: config.digest,
                chain_id,
                index: None,
            },
            config: parsed,
        };
        self.images
            .documents_read(&image.id, &manifest, &image.config);
        Ok((image, index))
    }

    async fn document(&self, namespace: &str, digest: &Digest) -> Result<Document, ReadError> {
        Ok(manifest::parse(&self.blob(namespace, digest).await?)?)
    }

    /// A blob whose bytes have this digest.
    async fn blob(&self, namespace: &str, digest: &Digest) -> Result<Vec<u8>, ReadError> {
        let read = |client: Client| async move {
            match read_document(client.open(namespace, digest), digest).await {
                Err(DocumentError::Blob(BlobError::Unavailable(reason))) => {
                    Err(ContainerdError::Failed {
                        what: format!("read {digest}"),
                        reason,
                    })
                }
                // Asking again would give the same.
                answer => Ok(answer),
            }
        };
        Ok(self.ask(read).await??)
    }

    /// The image of a container, and the layers that its snapshot's name tells of.
    async fn identify(&mut self, question: &Question) -> (Identity, Option<SnapshotLayers>) {
        let Key { namespace, id } = &question.key;
        let evidence = Evidence {
            reference: question.reference.clone(),
            ancestry: self.ancestry(question).await,
            resolved_at_creation: question.resolved_at_creation,
            claims: question.claims.clone(),
        };
        // What was resolved can have been moved or deleted since.
        if let Some(target) = &question.resolved_at_creation {
            self.learn(namespace, target).await;
        }
        let mut identity = grade(&evidence, namespace, &self.catalog);
        if identity == Identity::None && !evidence.ancestry.names.is_empty() {
            let unread = self.catalog.unread(namespace);
            for target in unread.iter().take(RETRIED_MAX) {
                self.learn(namespace, target).await;
            }
            identity = grade(&evidence, namespace, &self.catalog);
        }
        let manifests = match &identity {
            Identity::Proven(image) | Identity::Claimed(image) => vec![image.manifest],
            Identity::Ambiguous(images) => images.iter().map(|image| image.manifest).collect(),
            Identity::None | Identity::Pending => Vec::new(),
        };
        self.catalog.pin(namespace, id, manifests);
        let layers = named_layers(&evidence.ancestry, &evidence.claims.id_map);
        (identity, layers)
    }

    async fn ancestry(&self, question: &Question) -> Ancestry {
        if question.snapshot_key.is_empty() || question.snapshotter.is_empty() {
            return Ancestry::UNKNOWN;
        }
        let mut names: Vec<String> = Vec::new();
        let mut known = question.snapshot.clone();
        // Of a committed snapshot only the name counts, so the last one is not asked for.
        while names.len() < ANCESTORS_MAX {
            let snapshot = match known.take() {
                Some(snapshot) => snapshot,
                None => {
                    let key = names.last().unwrap_or(&question.snapshot_key);
                    let stat = |client: Client| async move {
                        let namespace = &question.key.namespace;
                        client.snapshot(namespace, &question.snapshotter, key).await
                    };
                    match self.ask(stat).await {
                        Ok(snapshot) => snapshot,
                        Err(error) => {
                            debug!(%error, "a snapshot's ancestors are not known");
                            return Ancestry {
                                names,
                                complete: false,
                            };
                        }
                    }
                }
            };
            if snapshot.parent.is_empty() {
                break;
            }
            names.push(snapshot.parent);
        }
        Ancestry {
            names,
            complete: true,
        }
    }
}
