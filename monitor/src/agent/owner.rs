//! The one task that holds the inventory and judges. Whatever needs I/O (bytes, contents) is done
//! by tasks it starts, which bring back facts.

use std::{
    future::Future,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use monitor_common::CgroupState;
use tokio::{
    sync::{mpsc, watch},
    task::{Id, JoinError},
};

use super::{
    bytes::{BytesReader, Layers, Request},
    query::{Connection, Query, Snapshot},
    state::{Done, ReadExec, State, creation},
};
use crate::{
    alerts::{AlertLog, NodeFacts, boot_time, build},
    clock,
    containers::{
        Container, Identity,
        inventory::{Change, Effect, Inventory, ListingRequest, Place},
    },
    detect::{
        FileVerdict, Finding, container as container_rules,
        exec::{ExecFacts, Expected, Judgement, RuntimeFiles, judge},
        participant::{self, Participant, Role},
    },
    image::{contents::Contents, error::ContentsError, store::ImageStore},
    sensor::{HOOK_SET, Sensor, event::Exec, hold::HolderError},
};

/// Execs whose bytes and contents are being read; at the bound no further events are taken, so
/// that the channel and then the ring fill.
const IN_FLIGHT_MAX: usize = 1024;
/// Execs that wait until containerd has told whose their cgroup is and which image that has; at the bound the oldest is
/// given up and counted.
const WAITING_MAX: usize = 8192;
/// How long such an exec waits, and one whose image's contents cannot be read yet.
const WAITING_TIME_MAX: Duration = Duration::from_secs(60);
/// How often what has waited too long is looked for.
const TICK: Duration = Duration::from_secs(1);
/// Pause before the contents of an image are asked for again.
const CONTENTS_RETRY: Duration = Duration::from_millis(500);
/// How long the execs that are in flight are waited for at the end.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(5);

/// What the owner is given.
pub(super) struct Inputs {
    /// From the sensor.
    pub(super) events: mpsc::Receiver<Exec>,
    /// From containerd.
    pub(super) changes: mpsc::Receiver<Change>,
    /// From the API.
    pub(super) queries: mpsc::Receiver<Query>,
}

/// The owner.
pub(super) struct Owner {
    /// `None` once it has been stopped.
    pub(super) sensor: Option<Sensor>,
    pub(super) host_mount_namespace: u32,
    pub(super) inventory: Inventory,
    pub(super) runtime: RuntimeFiles,
    pub(super) bytes: Arc<BytesReader>,
    pub(super) images: Arc<ImageStore>,
    pub(super) log: AlertLog,
    pub(super) node: NodeFacts,
    pub(super) listings: watch::Sender<Option<ListingRequest>>,
    /// Becomes true once what runs already is known.
    pub(super) ready: watch::Sender<bool>,
    pub(super) state: State,
}

impl Owner {
    /// Runs until `shutdown`; then stops the sensor and judges what it had seen.
    pub(super) async fn run(mut self, mut inputs: Inputs, shutdown: impl Future<Output = ()>) {
        let mut shutdown = pin!(shutdown);
        let mut tick = tokio::time::interval(TICK);
        loop {
            let room = self.state.in_flight.len() < IN_FLIGHT_MAX;
            tokio::select! {
                // What is known of containers comes first, so that events are placed by it.
                biased;
                () = &mut shutdown => break,
                Some(change) = inputs.changes.recv() => self.change(change),
                Some(done) = self.state.in_flight.join_next_with_id(), if !self.state.in_flight.is_empty() => self.done(done),
                Some(query) = inputs.queries.recv() => self.answer(query),
                Some(exec) = inputs.events.recv(), if room => self.exec(exec),
                _ = tick.tick() => self.tick(),
            }
        }
        if tokio::time::timeout(DRAIN_TIME_MAX, self.drain(&mut inputs))
            .await
            .is_err()
        {
            tracing::warn!(
                in_flight = self.state.in_flight.len(),
                "stopped before every exec was judged"
            );
        }
    }

    async fn drain(&mut self, inputs: &mut Inputs) {
        // Its reader ends by sending what is left, which must be received meanwhile.
        let sensor = self.sensor.take();
        let stopped = tokio::task::spawn_blocking(move || drop(sensor));
        while let Some(exec) = inputs.events.recv().await {
            self.exec(exec);
        }
        if let Err(error) = stopped.await {
            tracing::error!(%error, "the sensor did not stop cleanly");
        }
        while let Some(done) = self.state.in_flight.join_next_with_id().await {
            self.done(done);
        }
    }

    fn exec(&mut self, exec: Exec) {
        self.state.counts.received += 1;
        self.place(Instant::now(), exec);
        let effects = self.inventory.take_effects();
        self.carry_out(effects);
        self.begin_listing();
    }

    fn place(&mut self, since: Instant, exec: Exec) {
        match self.inventory.place(
            &exec.cgroup,
            exec.process.mount_namespace,
            exec.time_boot_ns,
        ) {
            Place::Container { container, .. } if container.identity != Identity::Pending => {
                self.read(exec, container);
            }
            // It may have left its container's cgroup and mount namespace.
            Place::Host
                if let Some(container) = self.state.processes.container_of(&exec.process) =>
            {
                self.read(exec, container);
            }
            Place::Host => {
                self.state.counts.host += 1;
                if exec.process.mount_namespace == self.host_mount_namespace {
                    self.tell_kernel(exec.cgroup.id);
                }
            }
            Place::Unknown if self.is_before_coverage(&exec) => {
                self.state.counts.before_coverage += 1;
            }
            Place::Unknown | Place::Container { .. } => {
                if self.state.waiting.len() >= WAITING_MAX {
                    self.state.waiting.pop_front();
                    self.state.counts.expired_unknown += 1;
                }
                self.state.waiting.push_back((since, exec));
            }
        }
    }

    /// Whether a listing that could have told whose an exec is has told nothing.
    fn is_before_coverage(&self, exec: &Exec) -> bool {
        let told_since_ns = self.inventory.told_since_boot_ns();
        self.state.listed && told_since_ns != u64::MAX && exec.time_boot_ns < told_since_ns
    }

    fn tell_kernel(&mut self, cgroup: u64) {
        let Some(sensor) = &mut self.sensor else {
            return;
        };
        if let Err(error) = sensor.set_cgroup(cgroup, CgroupState::Host) {
            tracing::warn!(%error, cgroup, "cannot tell the kernel side that a cgroup is the host's; its events go on being sent");
        }
    }

    /// Starts reading what the verdict on an exec depends on.
    fn read(&mut self, mut exec: Exec, container: Arc<Container>) {
        let (origin, ancestors) =
            self.state
                .processes
                .observe(&exec, &container, self.host_mount_namespace);
        let image = container.identity.contents_of().cloned();
        let request = Request {
            facts: exec.file.facts,
            held: std::mem::take(&mut exec.held),
            program: exec.program.take(),
            root_device: container.task.as_ref().and_then(|task| task.root_device),
            layers: image.as_ref().map(|image| Layers {
                chain_id: image.chain_id,
                created_unix_ns: container.created_unix_ns,
            }),
        };
        let (bytes, images) = (Arc::clone(&self.bytes), Arc::clone(&self.images));
        let handle = self.state.in_flight.spawn(async move {
            let contents = async {
                match &image {
                    Some(image) => {
                        Some(contents(&images, &container.runtime_namespace, image).await)
                    }
                    None => None,
                }
            };
            let (files, contents) = tokio::join!(bytes.read(request), contents);
            Done::Exec(Box::new(ReadExec {
                exec,
                container,
                origin,
                ancestors,
                files,
                contents,
            }))
        });
        self.state.execs_in_flight.insert(handle.id());
    }

    fn done(&mut self, done: Result<(Id, Done), JoinError>) {
        let id = done.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        let was_exec = self.state.execs_in_flight.remove(&id);
        match done {
            Ok((_, Done::Exec(read))) => self.judge(*read),
            Ok((_, Done::Contents { result: Ok(_), .. })) => {}
            Ok((
                _,
                Done::Contents {
                    container,
                    result: Err(error),
                },
            )) => {
                self.tell_unavailable(&container, &error);
            }
            // Only a defect of this program ends a task early.
            Err(error) => {
                self.state.counts.failed += u64::from(was_exec);
                tracing::error!(%error, "a defect of monitord: what an exec executed could not be read");
            }
        }
    }

    fn judge(&mut self, read: ReadExec) {
        let reason = match &read.contents {
            Some(Err(error)) => error.to_string(),
            _ => String::new(),
        };
        let facts = ExecFacts {
            exec: &read.exec,
            container: &read.container,
            host_mount_namespace: self.host_mount_namespace,
            runtime: &self.runtime,
            expected: match &read.contents {
                Some(Ok(contents)) => Expected::Verified(contents),
                Some(Err(_)) => Expected::Unavailable(&reason),
                None => Expected::NoImage,
            },
            bytes: &read.files.program,
            origin: read.origin,
            ancestors: read.ancestors,
            hook: HOOK_SET,
        };
        let program = judge(&facts);
        let mut participants: Vec<Judgement> = read
            .files
            .participants
            .iter()
            .map(|participant| participant::judge(&facts, participant))
            .collect();
        let is_script = |participant: &Participant| participant.role == Role::Script;
        if read.exec.script.is_some() && !read.files.participants.iter().any(is_script) {
            participants.push(participant::judge_unheld_script(&facts));
        }
        let counts = &mut self.state.counts;
        counts.judged += 1;
        match &program {
            Judgement::Good(FileVerdict::MetadataChanged) => counts.metadata_changed += 1,
            Judgement::Good(_) => counts.image += 1,
            Judgement::Runtime => counts.runtime += 1,
            Judgement::Unverifiable => counts.unverifiable += 1,
            Judgement::Finding(_) => {}
        }
        for judgement in participants.into_iter().chain([program]) {
            if let Judgement::Finding(finding) = judgement {
                self.raise(&finding);
            }
        }
    }

    fn raise(&mut self, finding: &Finding) {
        let findings = &mut self.state.findings;
        *findings.get_or_insert_mut(creation(&finding.container), || 0) += 1;
        self.log.append(build(
            finding,
            &self.node,
            jiff::Timestamp::now(),
            ulid::Ulid::new(),
        ));
    }

    fn change(&mut self, change: Change) {
        match &change {
            Change::Connected => self.state.connection = Connection::now(true),
            Change::Disconnected => {
                self.state.connection = Connection::now(false);
                self.state.listed = false;
            }
            Change::Listed { .. } => self.state.listed = true,
            _ => {}
        }
        let effects = self.inventory.apply(change);
        let retry = !effects.is_empty() || !self.state.waiting.is_empty();
        self.carry_out(effects);
        if retry {
            for (since, exec) in std::mem::take(&mut self.state.waiting) {
                self.place(since, exec);
            }
        }
        self.begin_listing();
        self.tell_ready();
    }

    /// Ready is who knows every container there was at the start.
    fn tell_ready(&mut self) {
        if *self.ready.borrow() || !self.state.listed {
            return;
        }
        if self
            .inventory
            .containers()
            .all(|(container, _)| container.identity != Identity::Pending)
        {
            self.ready.send_replace(true);
        }
    }

    fn begin_listing(&mut self) {
        if let Some(id) = self.inventory.begin_listing() {
            self.listings.send_replace(Some(id));
        }
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::ContainerAdded(container) => {
                    tracing::debug!(id = container.id, "container")
                }
                Effect::ContainerIdentified(container) => self.identified(&container),
                Effect::TaskStarted(container) => self.hold(&container),
                Effect::TaskExited(_) => {}
                Effect::ContainerRemoved(_) => {}
                Effect::ForgetCgroup(id) => self.forget(id),
            }
        }
    }

    fn forget(&mut self, cgroup: u64) {
        if let Some(sensor) = &mut self.sensor
            && let Err(error) = sensor.forget_cgroup(cgroup)
        {
            tracing::error!(%error, cgroup, "cannot make the kernel side forget a cgroup; what runs in it may not be seen");
        }
    }

    fn hold(&self, container: &Container) {
        let place = container
            .task
            .as_ref()
            .and_then(|task| Some((task.rootfs.as_deref()?, task.root_device?)));
        let (Some(sensor), Some((rootfs, device))) = (&self.sensor, place) else {
            tracing::warn!(
                id = container.id,
                "where the container's root is mounted is not known; executed files are not held"
            );
            return;
        };
        match sensor.hold(rootfs, device) {
            Ok(()) => {}
            Err(error @ (HolderError::Ended(_) | HolderError::NotOverlay(_))) => {
                tracing::debug!(%error, id = container.id)
            }
            Err(error) => tracing::warn!(%error, id = container.id, "executed files are not held"),
        }
    }

    /// Says what can be said of the container as a whole, and has its image's contents read before
    /// they are needed.
    fn identified(&mut self, container: &Arc<Container>) {
        let now = clock::boot_ns();
        match container.identity.contents_of().cloned() {
            None => {
                if let Some(finding) = container_rules::judge_identity(container, now)
                    && self.state.told.put(creation(container), ()).is_none()
                {
                    self.raise(&finding);
                }
            }
            Some(image) => {
                let (container, images) = (Arc::clone(container), Arc::clone(&self.images));
                self.state.in_flight.spawn(async move {
                    let result = contents(&images, &container.runtime_namespace, &image).await;
                    Done::Contents { container, result }
                });
            }
        }
    }

    fn tell_unavailable(&mut self, container: &Arc<Container>, error: &ContentsError) {
        if self.state.told.put(creation(container), ()).is_none() {
            let now = clock::boot_ns();
            self.raise(&container_rules::contents_unavailable(
                container,
                now,
                &error.to_string(),
            ));
        }
    }

    fn tick(&mut self) {
        // The clock of the world may have been set.
        match boot_time() {
            Ok(boot) => self.node.boot_time = boot,
            Err(error) => tracing::warn!(%error, "cannot read the clock"),
        }
        while self
            .state
            .waiting
            .front()
            .is_some_and(|(since, _)| since.elapsed() > WAITING_TIME_MAX)
        {
            self.state.waiting.pop_front();
            self.state.counts.expired_unknown += 1;
        }
    }

    fn answer(&mut self, query: Query) {
        let account = self
            .sensor
            .as_mut()
            .map(Sensor::account)
            .unwrap_or_default();
        // With the reader, or in the channel.
        let between = (account.received + account.running)
            .saturating_sub(account.undecodable + self.state.counts.received);
        let snapshot = Snapshot {
            containers: self
                .inventory
                .containers()
                .map(|(container, running)| {
                    let findings = self
                        .state
                        .findings
                        .peek(&creation(container))
                        .copied()
                        .unwrap_or(0);
                    (Arc::clone(container), running, findings)
                })
                .collect(),
            counts: self.state.counts,
            waiting: between
                + self.state.waiting.len() as u64
                + self.state.execs_in_flight.len() as u64,
            account,
            connection: self.state.connection,
        };
        // A caller that went away needs no answer.
        let _ = query.0.send(snapshot);
    }
}

/// The contents of an image; asks again while containerd does not answer.
async fn contents(
    images: &ImageStore,
    namespace: &str,
    image: &crate::containers::ImageId,
) -> Result<Arc<Contents>, ContentsError> {
    let began = Instant::now();
    loop {
        match images.contents(namespace, image).await {
            Err(error)
                if !error.is_permanent()
                    && error.missing_blob().is_none()
                    && began.elapsed() < WAITING_TIME_MAX =>
            {
                tokio::time::sleep(CONTENTS_RETRY).await;
            }
            result => return result,
        }
    }
}
