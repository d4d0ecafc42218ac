//! Follows containerd and tells the inventory what happens: first the subscription, then a
//! listing, then events; after a lost connection the same again.
//!
//! What has to be known before a container's entrypoint runs is told at once: a task's facts are
//! read from `/proc` and sent before anything else is asked of containerd. Identities follow as
//! [`Change::Identified`] when the slower questions about images are answered.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tracing::{info, warn};

use super::{
    catalog::Reference,
    facts::Facts,
    inventory::{Change, Key, ListingId, ListingRequest, TaskFacts},
    procfs,
    resolve::{self, JOBS_MAX, Job, Question},
};
use crate::{
    clock,
    containerd::{Client, ContainerdError, Event, Events, SnapshotRecord},
    digest::Digest,
    image::store::ImageStore,
};

/// Changes that wait for the owner. When it is full the events wait, and containerd keeps them.
pub const CHANGES_MAX: usize = 1024;

/// Created containers that are asked for at the same time; further events wait.
const LOOKUPS_MAX: usize = 64;
/// First pause before connecting again; doubles up to [`PAUSE_MS_MAX`].
const PAUSE_MS: u64 = 100;
const PAUSE_MS_MAX: u64 = 5000;
/// Listings take at most one part in ten of the time, however many cgroups come and go.
const LISTING_SHARE: u32 = 10;
/// How long events may be silent while a marker is awaited.
const MARKER_TIME_MAX: Duration = Duration::from_secs(10);
const LISTING_PAUSE_MIN: Duration = Duration::from_millis(20);

/// Follows containerd until nobody takes `changes` any more. `listings` has the latest listing that
/// [`super::inventory::Inventory::begin_listing`] asked for, and `references` is given the image
/// references whenever they change; `images` is told of the documents that are read for it. Dropping
/// the future ends it at once.
pub async fn run(
    client: Client,
    images: ImageStore,
    changes: mpsc::Sender<Change>,
    listings: watch::Receiver<Option<ListingRequest>>,
    references: watch::Sender<Arc<[Reference]>>,
) {
    let (jobs, asked) = mpsc::channel(JOBS_MAX);
    let resolver = resolve::run(client.clone(), images, changes.clone(), references, asked);
    let follower = Follower {
        client,
        changes,
        listings,
        jobs,
        graded: HashMap::new(),
    };
    tokio::select! {
        () = resolver => {}
        () = follower.run() => {}
    }
}

/// Why a session ended.
enum End {
    /// Nobody takes changes any more.
    Unheard,
    Lost(ContainerdError),
}

impl From<ContainerdError> for End {
    fn from(error: ContainerdError) -> Self {
        Self::Lost(error)
    }
}

impl<T> From<mpsc::error::SendError<T>> for End {
    fn from(_: mpsc::error::SendError<T>) -> Self {
        Self::Unheard
    }
}

/// What was found out of a created container.
struct Created {
    key: Key,
    facts: Facts,
    snapshot: Option<SnapshotRecord>,
    resolved: Option<Digest>,
}

/// A complete listing.
struct Listing {
    id: ListingId,
    containers: Vec<Facts>,
    tasks: Option<Vec<(Key, TaskFacts)>>,
    took: Duration,
}

enum Done {
    Created(Result<Box<Created>, ContainerdError>),
    Listed(Result<Listing, ContainerdError>),
}

/// What happened to a container while it was being asked for.
enum Then {
    Deleted { time_boot_ns: u64 },
    Created { image: String },
}

/// One connection to containerd.
struct Session {
    asking: JoinSet<Done>,
    lookups: HashMap<Key, VecDeque<Then>>,
    listing: bool,
    // Complete, and waiting for its marker and for these lookups, so that whatever was created
    // before it is told before it.
    complete: Option<Listing>,
    marker: String,
    marked: bool,
    awaited: HashSet<Key>,
    listing_not_before: Instant,
}

struct Follower {
    client: Client,
    changes: mpsc::Sender<Change>,
    listings: watch::Receiver<Option<ListingRequest>>,
    jobs: mpsc::Sender<Job>,
    // Containers whose identity was asked for, by creation.
    graded: HashMap<Key, i128>,
}

impl Follower {
    async fn run(mut self) {
        let mut pause_ms = PAUSE_MS;
        loop {
            match self.client.subscribe().await {
                Ok(events) => match self.session(events, &mut pause_ms).await {
                    End::Unheard => return,
                    End::Lost(error) => {
                        warn!(%error, "lost containerd; connecting again");
                        if self.changes.send(Change::Disconnected).await.is_err() {
                            return;
                        }
                    }
                },
                Err(error) => warn!(%error, pause_ms, "containerd does not answer; trying again"),
            }
            tokio::select! {
                () = self.changes.closed() => return,
                () = sleep(Duration::from_millis(pause_ms)) => {}
            }
            pause_ms = (pause_ms * 2).min(PAUSE_MS_MAX);
        }
    }

    async fn session(&mut self, events: Events, pause_ms: &mut u64) -> End {
        match self.follow(events, pause_ms).await {
            Ok(()) => End::Unheard,
            Err(end) => end,
        }
    }

    async fn follow(&mut self, mut events: Events, pause_ms: &mut u64) -> Result<(), End> {
        let mut session = Session {
            asking: JoinSet::new(),
            lookups: HashMap::new(),
            listing: false,
            complete: None,
            marker: String::new(),
            marked: false,
            awaited: HashSet::new(),
            listing_not_before: Instant::now(),
        };
        // A listing asked for of the connection before is asked for again of this one.
        self.listings.mark_unchanged();
        self.jobs.send(Job::Reload).await?;
        self.changes.send(Change::Connected).await?;
        loop {
            tokio::select! {
                // A task that was created is more urgent than anything else.
                biased;
                event = events.next(), if session.lookups.len() < LOOKUPS_MAX => {
                    let (namespace, event) = event?;
                    self.heard(&mut session, namespace, event).await?;
                }
                Some(done) = session.asking.join_next() => match done {
                    Ok(Done::Created(created)) => self.created(&mut session, *created?).await?,
                    Ok(Done::Listed(listing)) => {
                        session.complete = Some(listing?);
                        *pause_ms = PAUSE_MS;
                    }
                    Err(error) => {
                        return Err(End::Lost(ContainerdError::Failed {
                            what: "answer".to_owned(),
                            reason: error.to_string(),
                        }));
                    }
                },
                changed = self.listings.changed(), if !session.listing => {
                    if changed.is_err() {
                        return Err(End::Unheard);
                    }
                    let asked = *self.listings.borrow_and_update();
                    if let Some(request) = asked {
                        self.list(&mut session, request);
                    }
                }
                () = sleep(MARKER_TIME_MAX), if session.complete.is_some() => {
                    return Err(End::Lost(ContainerdError::Failed {
                        what: "events".to_owned(),
                        reason: "containerd is silent after a marker".to_owned(),
                    }));
                }
                () = self.changes.closed() => return Err(End::Unheard),
            }
            if session.marked
                && session.awaited.is_empty()
                && let Some(listing) = session.complete.take()
            {
                session.marked = false;
                self.listed(&mut session, listing).await?;
            }
        }
    }

    async fn heard(
        &mut self,
        session: &mut Session,
        namespace: String,
        event: Event,
    ) -> Result<(), End> {
        let key = |id| Key {
            namespace: namespace.clone(),
            id,
        };
        match event {
            Event::TaskCreated { id, bundle, pid } => {
                let facts = procfs::task(&namespace, &id, pid, Some(&bundle), &mut None);
                let key = key(id);
                self.changes
                    .send(Change::TaskCreated { key, facts })
                    .await?;
            }
            Event::TaskExited { id, pid } => {
                let change = Change::TaskExited {
                    key: key(id),
                    pid,
                    time_boot_ns: clock::boot_ns(),
                };
                self.changes.send(change).await?;
            }
            Event::ContainerCreated { id, image } => {
                let key = key(id);
                match session.lookups.get_mut(&key) {
                    Some(then) => then.push_back(Then::Created { image }),
                    None => self.look_up(session, key, image, VecDeque::new()),
                }
            }
            Event::ContainerDeleted { id } => {
                let key = key(id);
                let time_boot_ns = clock::boot_ns();
                match session.lookups.get_mut(&key) {
                    Some(then) => then.push_back(Then::Deleted { time_boot_ns }),
                    None => self.deleted(key, time_boot_ns).await?,
                }
            }
            Event::ImageChanged { name } => {
                self.jobs
                    .send(Job::ImageChanged { namespace, name })
                    .await?;
            }
            Event::Marker { text } => {
                if session.listing && text == session.marker {
                    session.marked = true;
                    session.awaited = session.lookups.keys().cloned().collect();
                }
            }
            Event::ImageDeleted { name } => {
                self.jobs
                    .send(Job::ImageDeleted { namespace, name })
                    .await?;
            }
        }
        Ok(())
    }

    async fn deleted(&mut self, key: Key, time_boot_ns: u64) -> Result<(), End> {
        self.graded.remove(&key);
        self.jobs.send(Job::Gone(key.clone())).await?;
        self.changes
            .send(Change::Deleted { key, time_boot_ns })
            .await?;
        Ok(())
    }

    fn look_up(&self, session: &mut Session, key: Key, image: String, then: VecDeque<Then>) {
        session.lookups.insert(key.clone(), then);
        let client = self.client.clone();
        session
            .asking
            .spawn(async move { Done::Created(look_up(&client, key, image).await.map(Box::new)) });
    }

    async fn created(&mut self, session: &mut Session, created: Created) -> Result<(), End> {
        let Created {
            key,
            facts,
            snapshot,
            resolved,
        } = created;
        let question = question(&facts, snapshot, resolved);
        self.changes.send(Change::Created(Box::new(facts))).await?;
        self.ask(question).await?;
        let mut then = session.lookups.remove(&key).unwrap_or_default();
        let awaited = session.awaited.remove(&key);
        while let Some(next) = then.pop_front() {
            match next {
                Then::Deleted { time_boot_ns } => self.deleted(key.clone(), time_boot_ns).await?,
                Then::Created { image } => {
                    if awaited {
                        session.awaited.insert(key.clone());
                    }
                    self.look_up(session, key, image, then);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn ask(&mut self, question: Question) -> Result<(), End> {
        self.graded
            .insert(question.key.clone(), question.created_unix_ns);
        self.jobs.send(Job::Identify(Box::new(question))).await?;
        Ok(())
    }

    fn list(&self, session: &mut Session, request: ListingRequest) {
        session.listing = true;
        let client = self.client.clone();
        let not_before = session.listing_not_before;
        // Of this program and this listing alone.
        session.marker = format!("{}.{}", std::process::id(), clock::boot_ns());
        session.marked = false;
        let marker = session.marker.clone();
        session.asking.spawn(async move {
            sleep_until(not_before).await;
            let listing = async {
                let listing = list(&client, request).await?;
                client.mark(&marker).await?;
                Ok(listing)
            };
            Done::Listed(listing.await)
        });
    }

    async fn listed(&mut self, session: &mut Session, listing: Listing) -> Result<(), End> {
        let Listing {
            id,
            containers,
            tasks,
            took,
        } = listing;
        session.listing = false;
        session.listing_not_before =
            Instant::now() + (took * (LISTING_SHARE - 1)).max(LISTING_PAUSE_MIN);
        if let Some(tasks) = &tasks {
            info!(
                containers = containers.len(),
                tasks = tasks.len(),
                "containers are known"
            );
        }
        let present: HashSet<Key> = containers
            .iter()
            .map(|facts| Key::of(&facts.container))
            .collect();
        let questions: Vec<Question> = containers
            .iter()
            .filter(|facts| {
                let key = Key::of(&facts.container);
                self.graded.get(&key) != Some(&facts.created_unix_ns)
                    && !session.lookups.contains_key(&key)
            })
            .map(|facts| question(facts, None, None))
            .collect();
        let change = Change::Listed {
            id,
            containers,
            tasks,
            time_boot_ns: clock::boot_ns(),
        };
        self.changes.send(change).await?;
        // What is being asked for was created after the listing began.
        let gone: Vec<Key> = self
            .graded
            .keys()
            .filter(|key| !present.contains(key) && !session.lookups.contains_key(key))
            .cloned()
            .collect();
        for key in gone {
            self.graded.remove(&key);
            self.jobs.send(Job::Gone(key)).await?;
        }
        for question in questions {
            self.ask(question).await?;
        }
        Ok(())
    }
}

/// Asks for a container that was just created, for what its reference points to, and for its
/// snapshot. A container that is gone already is told by what its events said.
async fn look_up(client: &Client, key: Key, image: String) -> Result<Created, ContainerdError> {
    let Key { namespace, id } = &key;
    let reference = async {
        if image.is_empty() {
            None
        } else {
            client.image(namespace, &image).await.ok()
        }
    };
    let (record, reference) = tokio::join!(client.container(namespace, id), reference);
    let facts = match record {
        Ok(record) => Facts::read(namespace, record),
        Err(error) if error.is_not_found() => Facts::of_vanished(namespace, id, &image, 0),
        Err(error) => return Err(error),
    };
    let container = &facts.container;
    let snapshot = if container.snapshot_key.is_empty() {
        None
    } else {
        client
            .snapshot(namespace, &container.snapshotter, &container.snapshot_key)
            .await
            .ok()
    };
    // Moved between the client's look and ours: what it says now need not be what it said then.
    let moved = |updated_unix_ns: i128| {
        snapshot
            .as_ref()
            .is_some_and(|snapshot| updated_unix_ns > snapshot.created_unix_ns)
    };
    let resolved = reference
        .filter(|reference| !moved(reference.updated_unix_ns))
        .and_then(|reference| reference.target);
    Ok(Created {
        key,
        facts,
        snapshot,
        resolved,
    })
}

fn question(facts: &Facts, snapshot: Option<SnapshotRecord>, resolved: Option<Digest>) -> Question {
    Question {
        key: Key::of(&facts.container),
        created_unix_ns: facts.created_unix_ns,
        reference: facts.container.image_reference.clone(),
        snapshotter: facts.container.snapshotter.clone(),
        snapshot_key: facts.container.snapshot_key.clone(),
        snapshot,
        resolved_at_creation: resolved,
        claims: facts.claims.clone(),
    }
}

async fn list(client: &Client, request: ListingRequest) -> Result<Listing, ContainerdError> {
    let began = Instant::now();
    let ListingRequest { id, with_tasks } = request;
    let mut containers = Vec::new();
    let mut tasks = Vec::new();
    let mut host = None;
    for namespace in client.namespaces().await? {
        let records = client.containers(&namespace).await?;
        containers.extend(
            records
                .into_iter()
                .map(|record| Facts::read(&namespace, record)),
        );
        if !with_tasks {
            continue;
        }
        for record in client.tasks(&namespace).await? {
            if record.alive {
                let id = &record.container_id;
                let facts = procfs::task(&namespace, id, record.pid, None, &mut host);
                let key = Key {
                    namespace: namespace.clone(),
                    id: record.container_id,
                };
                tasks.push((key, facts));
            }
        }
    }
    Ok(Listing {
        id,
        containers,
        tasks: with_tasks.then_some(tasks),
        took: began.elapsed(),
    })
}
