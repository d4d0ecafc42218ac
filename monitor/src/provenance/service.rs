//! Asks the sources, and judges what they said by the keys in force.

use std::{
    future::Future,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    sync::Semaphore,
    task::spawn_blocking,
    time::{Instant, timeout},
};

use super::{
    Options, artifact,
    content::{Content, Subjects},
    folder,
    gather::{self, Gathered, GetError, Store},
    held::{Held, Known},
    judge::Candidate,
    keys::{self, KeyError, Keys},
    signature::Target,
    verdict::{Source, Subject, Verdict},
};
use crate::{
    containerd::Client,
    digest::Digest,
    registry::{Documents, Registry, Repository},
};

/// How long what the sources said is taken for what they would say.
const FRESH: Duration = Duration::from_secs(600);
/// How long a source may take for one image; then it counts as down.
const SOURCE_TIME_MAX: Duration = Duration::from_secs(60);
/// Images that are asked for at once; further ones wait.
const ASKED_MAX: usize = 8;
/// How often the files of keys are read.
const KEYS_INTERVAL: Duration = Duration::from_secs(10);

/// Verifies images. Cheap to clone.
#[derive(Clone)]
pub struct Provenance(Arc<Shared>);

struct Shared {
    containerd: Option<Client>,
    registry: Option<Registry>,
    folder: Option<PathBuf>,
    subjects: Subjects,
    keys: Mutex<InForce>,
    held: Mutex<Held>,
    turns: Semaphore,
}

struct InForce {
    keys: Arc<Keys>,
    generation: u64,
    read: Instant,
    /// What verdicts depend on.
    state: Vec<keys::State>,
}

impl Provenance {
    /// Reads the keys. Blocks. `registry` is there if registries may be asked.
    ///
    /// # Errors
    ///
    /// A key cannot be read.
    pub fn new(
        options: &Options,
        containerd: Option<Client>,
        registry: Option<Registry>,
    ) -> Result<Self, KeyError> {
        let keys = Keys::read(&options.keys)?;
        let in_force = InForce {
            state: keys.state(Timestamp::now()),
            keys: Arc::new(keys),
            generation: 1,
            read: Instant::now(),
        };
        Ok(Self(Arc::new(Shared {
            containerd,
            registry,
            folder: options.folder.clone(),
            subjects: Subjects::new(),
            keys: Mutex::new(in_force),
            held: Mutex::new(Held::new()),
            turns: Semaphore::new(ASKED_MAX),
        })))
    }

    /// The number of the keys in force. It grows when a key changes, is revoked or expires: then each
    /// verdict may be another one.
    pub fn generation(&self) -> u64 {
        lock(&self.0.keys).generation
    }

    /// Whether any key is configured, be it in force or not.
    pub fn has_keys(&self) -> bool {
        !lock(&self.0.keys).keys.is_empty()
    }

    /// Whether images of a repository need a signature: a key is configured for it, be it in force or
    /// not.
    pub fn is_required(&self, repository: &str) -> bool {
        lock(&self.0.keys).keys.are_for(repository)
    }

    /// Reads the files of keys anew if that was 10 s ago or longer; gives [`Provenance::generation`]. To
    /// be called now and then.
    pub async fn refresh(&self) -> u64 {
        self.refresh_after(KEYS_INTERVAL).await
    }

    pub(super) async fn refresh_after(&self, interval: Duration) -> u64 {
        let before = {
            let mut in_force = lock(&self.0.keys);
            if in_force.read.elapsed() < interval {
                return in_force.generation;
            }
            in_force.read = Instant::now();
            Arc::clone(&in_force.keys)
        };
        let keys = spawn_blocking(move || before.read_again()).await;
        let mut in_force = lock(&self.0.keys);
        // It fails only while the daemon stops.
        if let Ok(keys) = keys {
            let state = keys.state(Timestamp::now());
            if state != in_force.state {
                in_force.generation += 1;
                let generation = in_force.generation;
                tracing::info!(
                    generation,
                    "the keys that signatures are checked with have changed"
                );
            }
            (in_force.keys, in_force.state) = (Arc::new(keys), state);
        }
        in_force.generation
    }

    /// The verdict on an image, by what sources said in the last ten minutes.
    pub async fn verify(&self, subject: &Subject) -> Arc<Verdict> {
        self.verify_within(subject, FRESH).await
    }

    /// The verdict on an image, by what sources say now.
    pub async fn verify_now(&self, subject: &Subject) -> Arc<Verdict> {
        self.verify_within(subject, Duration::ZERO).await
    }

    async fn verify_within(&self, subject: &Subject, fresh: Duration) -> Arc<Verdict> {
        let known = lock(&self.0.held).get(subject);
        // Who asks for the same image meanwhile waits for what comes of it.
        let mut known = known.lock().await;
        if !known.is_fresh(fresh) {
            // It is never closed.
            let _turn = self.0.turns.acquire().await;
            self.0.ask(subject, &mut known).await;
            lock(&self.0.held).weigh(subject, known.bytes());
        }
        let (keys, generation) = {
            let in_force = lock(&self.0.keys);
            (Arc::clone(&in_force.keys), in_force.generation)
        };
        known.judge(&subject.repository, keys, generation).await
    }
}

impl Shared {
    /// Asks all sources, each within its time.
    async fn ask(&self, subject: &Subject, known: &mut Known) {
        let content = self.containerd.as_ref().map(|client| Content {
            client,
            namespace: &subject.runtime_namespace,
            repository: &subject.repository,
            subjects: &self.subjects,
        });
        let documents = self.registry.as_ref().and_then(|registry| {
            let repository = Repository::of(&subject.repository).ok()?;
            Some(registry.documents(repository))
        });
        let stores = Stores { content, documents };
        let candidates = stores.candidates(subject, &known.candidates).await;
        let images: Vec<_> = candidates.iter().map(|it| (it.target, it.digest)).collect();
        let folder = self.folder.clone();
        let folder = folder.map(|folder| folder::gather(folder, &images));
        let content = stores.content.as_ref();
        let documents = stores.documents.as_ref();
        let (content, documents, folder) = tokio::join!(
            answered(content.map(|store| gather::gather(store, &images))),
            answered(documents.map(|store| gather::gather(store, &images))),
            answered(folder),
        );
        let said = [
            (Source::Containerd, content),
            (Source::Registry, documents),
            (Source::Folder, folder),
        ];
        for (source, said) in said {
            if let Some(said) = said {
                if said.as_ref().is_ok_and(|gathered| gathered.is_cut) {
                    let (manifest, source) = (subject.manifest, source.name());
                    tracing::warn!(%manifest, source, "an image has more signatures or attestations than are looked at");
                }
                known.take(source, said);
            }
        }
        let candidates = stores.with_messages(candidates, known).await;
        known.candidates = Arc::new(candidates);
        known.asked();
    }
}

/// What a source says, if it is one, within its time.
async fn answered(
    source: Option<impl Future<Output = Result<Gathered, String>>>,
) -> Option<Result<Gathered, String>> {
    let said = timeout(SOURCE_TIME_MAX, source?).await;
    Some(said.unwrap_or_else(|_| Err(format!("no answer in {} s", SOURCE_TIME_MAX.as_secs()))))
}

/// Sources that have the image itself.
struct Stores<'a> {
    content: Option<Content<'a>>,
    documents: Option<Documents>,
}

impl Stores<'_> {
    /// What a signature may be for: the manifest, and its index where that lists the manifest. That an
    /// image was found by an index is claimed by a name alone.
    async fn candidates(&self, subject: &Subject, before: &[Candidate]) -> Vec<Candidate> {
        let mut candidates = vec![Candidate {
            target: Target::Manifest,
            digest: subject.manifest,
            bytes: None,
        }];
        let Some(digest) = subject.index else {
            return candidates;
        };
        // What a digest names does not change.
        let was_listed = before.iter().any(|it| it.target == Target::Index);
        if was_listed || self.lists(&digest, &subject.manifest).await {
            candidates.push(Candidate {
                target: Target::Index,
                digest,
                bytes: None,
            });
        }
        candidates
    }

    async fn lists(&self, index: &Digest, manifest: &Digest) -> bool {
        let index = self.document(index).await;
        index.is_some_and(|index| artifact::lists(&index, manifest))
    }

    /// Adds the bytes without which a signature cannot be checked.
    async fn with_messages(&self, candidates: Vec<Candidate>, known: &Known) -> Vec<Candidate> {
        let needed = known.messages();
        let mut with = Vec::new();
        for mut candidate in candidates {
            if needed.contains(&candidate.digest) {
                let before = known.candidates.iter();
                let mut before = before.filter(|it| it.digest == candidate.digest);
                candidate.bytes = match before.find_map(|it| it.bytes.clone()) {
                    Some(bytes) => Some(bytes),
                    None => self.document(&candidate.digest).await,
                };
            }
            with.push(candidate);
        }
        with
    }

    /// A manifest or an index of the image, from whoever has it.
    async fn document(&self, digest: &Digest) -> Option<Vec<u8>> {
        let found = |found: Result<Option<Vec<u8>>, GetError>| match found {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::debug!(%digest, ?error, "a document of an image cannot be read");
                None
            }
        };
        if let Some(content) = &self.content
            && let Some(bytes) = found(content.manifest(digest).await)
        {
            return Some(bytes);
        }
        let documents = self.documents.as_ref()?;
        found(Store::manifest(documents, digest).await)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that is done under a lock can leave it half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
