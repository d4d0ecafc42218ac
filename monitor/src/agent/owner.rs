//! The one task that holds the inventory and judges. Whatever needs I/O (bytes, contents) is done
//! by tasks it starts, which bring back facts.

use std::{
    future::Future,
    path::PathBuf,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use monitor_api::v1::Alert;
use monitor_common::RING_REPEATABLE_BYTES;
use tokio::{
    sync::{mpsc, watch},
    task::yield_now,
};

use super::{
    automatic::Causes,
    bytes::BytesReader,
    contents::ContentsReader,
    coverage::{self, Coverage},
    query::{Connection, Query, Snapshot},
    state::{Done, Pending, State, creation},
    uses::is_plain,
};
use crate::{
    alerts::{AlertLog, NodeFacts, boot_time, build, id::Subject, log::ALERTS_MAX},
    changes::{Changed, Changes},
    clock,
    containers::{
        Container, Identity,
        inventory::{Change, Effect, Inventory, ListingRequest},
    },
    coverage::Cause,
    detect::{
        FileVerdict, Finding,
        connect::RuntimeSockets,
        container as container_rules,
        file::{Judgement, RuntimeFiles},
    },
    image::error::ContentsError,
    sensor::{
        Sensor,
        event::{Event, FileUse, Receipt},
        hold::HolderError,
    },
};

/// Uses of files whose bytes and contents are being read; at the bound further ones wait for their
/// turn.
pub(super) const IN_FLIGHT_MAX: usize = 1024;
/// Uses that wait until containerd has told whose their cgroup is and which image that has; at the
/// bound the oldest is given up and counted.
pub(super) const WAITING_MAX: usize = 8192;
/// How long such a use waits.
const WAITING_TIME_MAX: Duration = Duration::from_secs(60);
/// How long its record is kept in the ring for a next daemon.
const HELD_TIME_MAX: Duration = Duration::from_secs(10);
/// Bytes of the ring beyond which it is not kept at all: less than what makes the kernel side lose
/// what can be repeated.
const HELD_BYTES_MAX: u64 = RING_REPEATABLE_BYTES / 2;
/// How often what has waited too long is looked for.
const TICK: Duration = Duration::from_secs(1);
/// How long the uses that are in flight are waited for at the end.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(5);

/// What the owner is given.
pub(super) struct Inputs {
    /// From the sensor.
    pub(super) events: mpsc::Receiver<Event>,
    /// From containerd.
    pub(super) changes: mpsc::Receiver<Change>,
    /// From the API.
    pub(super) queries: mpsc::Receiver<Query>,
    /// What containers changed of their images.
    pub(super) changed: mpsc::Receiver<Changed>,
}

/// The owner.
pub(super) struct Owner {
    /// `None` once it has been stopped.
    pub(super) sensor: Option<Sensor>,
    pub(super) host_mount_namespace: u32,
    pub(super) inventory: Inventory,
    pub(super) runtime: Arc<RuntimeFiles>,
    pub(super) sockets: RuntimeSockets,
    /// Where containerd has its socket.
    pub(super) containerd: PathBuf,
    pub(super) bytes: Arc<BytesReader>,
    /// `None` where the kernel refused what it takes.
    pub(super) changes: Option<Changes>,
    pub(super) contents: Arc<ContentsReader>,
    pub(super) log: AlertLog,
    pub(super) node: NodeFacts,
    /// The kernel's id of this boot.
    pub(super) boot: [u8; 16],
    pub(super) listings: watch::Sender<Option<ListingRequest>>,
    /// Becomes true once what runs already is known.
    pub(super) ready: watch::Sender<bool>,
    /// Where alerts go whose rules ask for a response.
    pub(super) causes: Causes,
    pub(super) state: State,
    pub(super) coverage: Coverage,
}

impl Owner {
    /// Runs until `shutdown`; then stops the sensor and judges what it had seen.
    pub(super) async fn run(mut self, mut inputs: Inputs, shutdown: impl Future<Output = ()>) {
        let mut shutdown = pin!(shutdown);
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                // What is known of containers comes first, so that events are placed by it.
                biased;
                () = &mut shutdown => break,
                Some(change) = inputs.changes.recv() => self.change(change),
                Some(done) = self.state.in_flight.join_next_with_id(), if !self.state.in_flight.is_empty() => self.done(done),
                Some(query) = inputs.queries.recv() => self.answer(query),
                () = until(self.state.sourced.due()) => self.drop_due(),
                Some(changed) = inputs.changed.recv() => self.changed(changed),
                _ = tick.tick() => self.tick(),
                // Each in its turn, so that nobody's events wait behind another's flood.
                Some(event) = inputs.events.recv(), if self.state.turns.has_room() => {
                    self.events(event, &mut inputs.events);
                    if self.has_room() {
                        self.take_turn();
                    }
                }
                () = yield_now(), if self.has_room() && !self.state.turns.is_empty() => self.take_turn(),
            }
        }
        // What this daemon does not come to judge is in the ring for the next.
        let is_left = self.sensor.as_ref().is_some_and(Sensor::is_pinned);
        if is_left {
            self.look_before_next().await;
        }
        if tokio::time::timeout(DRAIN_TIME_MAX, self.drain(&mut inputs, is_left))
            .await
            .is_err()
        {
            tracing::warn!(
                in_flight = self.state.in_flight.len(),
                "stopped before everything was judged"
            );
        }
        if !is_left {
            self.look_at_end(inputs.events.len() + self.state.turns.len());
        }
        let counted = self.state.aggregator.flush(clock::boot_ns());
        self.append(counted);
        tokio::task::block_in_place(|| self.profile_end());
    }

    async fn drain(&mut self, inputs: &mut Inputs, is_left: bool) {
        // Its reader ends by sending what is left, which must be received meanwhile.
        let sensor = self.sensor.take();
        let stopped = tokio::task::spawn_blocking(move || sensor.map(Sensor::stop));
        while let Some(event) = inputs.events.recv().await {
            self.event(event);
        }
        while !self.state.turns.is_empty() {
            self.take_turn();
            yield_now().await;
        }
        // Kept until the end: it lets go of what has been judged then.
        let stopped = match stopped.await {
            Ok(stopped) => stopped,
            Err(error) => {
                tracing::error!(%error, "the sensor did not stop cleanly");
                None
            }
        };
        if let Some(stopped) = stopped.as_ref().filter(|_| !is_left) {
            self.account_at_end(&stopped.account, stopped.lost.clone());
        }
        while let Some(pending) = self.state.sourced.pop() {
            self.place(pending);
        }
        while let Some(done) = self.state.in_flight.join_next_with_id().await {
            self.done(done);
        }
        if let Some(changes) = &self.changes {
            changes.stop();
        }
        while let Some(changed) = inputs.changed.recv().await {
            self.changed(changed);
        }
    }

    /// Raises a finding of something that came by the ring, unless a daemon before this one has. The
    /// record stays in the ring until the alert is written.
    pub(super) fn raise_of(&mut self, used: &FileUse, finding: &Finding) {
        let subject = Subject::new(finding, &self.boot);
        if self.state.raised_before.contains(&subject) {
            self.state.counts.raised_before += 1;
            return;
        }
        // Without a sensor it is the end, at which all repeats are told.
        let receipt = self.sensor.as_ref().map(|_| used.receipt.clone());
        if let Some(cursor) = self.raise_as(finding, subject, &receipt.unwrap_or_default()) {
            let unwritten = &mut self.state.unwritten;
            if unwritten.len() >= ALERTS_MAX {
                // The log no longer has its alert either.
                unwritten.pop_front();
            }
            unwritten.push_back((cursor, used.receipt.clone()));
        }
    }

    pub(super) fn raise(&mut self, finding: &Finding) {
        let subject = Subject::new(finding, &self.boot);
        self.raise_as(finding, subject, &Receipt::default());
    }

    /// Gives the cursor of the last alert that comes of it.
    fn raise_as(&mut self, finding: &Finding, subject: Subject, receipt: &Receipt) -> Option<u64> {
        let now = jiff::Timestamp::now();
        let id = subject.id(now);
        let mut alert = build(finding, &self.node, now, id);
        // Nothing comes of one that there is an exception of.
        let regraded = self.policy_fate(&finding.container, &alert)?;
        if let Some((severity, rule)) = &regraded {
            build::regrade(&mut alert, *severity, rule);
        }
        let rules = [regraded.map(|(_, rule)| rule), finding.rule.clone()];
        self.profile_found(finding);
        let findings = &mut self.state.findings;
        *findings.get_or_insert_mut(creation(&finding.container), || 0) += 1;
        let given = (self.state.aggregator).take_of(receipt, alert, clock::boot_ns());
        // What is only counted was responded to before.
        if let Some(alert) = given.first() {
            self.policy_respond(alert, rules.into_iter().flatten());
        }
        self.append(given)
    }

    /// Tells more of a finding that was raised.
    pub(super) fn amend(&mut self, finding: &Finding) {
        let now = jiff::Timestamp::now();
        let id = Subject::new(finding, &self.boot).id(now);
        let alert = build(finding, &self.node, now, id);
        let given = self.state.aggregator.amend(&alert, clock::boot_ns());
        self.append(given.into_iter().collect());
    }

    pub(super) fn append(&mut self, alerts: Vec<Alert>) -> Option<u64> {
        let mut last = None;
        for alert in alerts {
            last = Some(self.log.append(alert));
        }
        if let Some(cursor) = last {
            let told = self.state.aggregator.take_told();
            self.coverage.alert_told(cursor, told);
        }
        last
    }

    /// Lets go of records in the ring that wait for containerd for long, or while many are held: they
    /// would keep all that comes after them there.
    pub(super) fn give_up_late(&mut self) {
        let sensor = self.sensor.as_ref();
        let are_many = sensor.is_some_and(|sensor| sensor.held_bytes() > HELD_BYTES_MAX);
        for pending in &mut self.state.waiting {
            let is_late = are_many || pending.since.elapsed() > HELD_TIME_MAX;
            if is_late && pending.what.give_up() {
                self.state.counts.given_up += 1;
            }
        }
    }

    /// Lets go of records whose alerts are written.
    pub(super) fn settle(&mut self) {
        let unwritten = &mut self.state.unwritten;
        if unwritten.is_empty() {
            return;
        }
        let newest = self.log.newest();
        let is_written = |(cursor, _): &(u64, Receipt)| *cursor <= newest;
        while unwritten.front().is_some_and(is_written) {
            unwritten.pop_front();
        }
    }

    fn change(&mut self, change: Change) {
        match &change {
            Change::Connected => self.state.connection = Connection::now(true),
            Change::Disconnected => {
                self.state.connection = Connection::now(false);
                self.state.listed = false;
                self.coverage.disconnected();
            }
            Change::Listed { .. } => {
                self.state.listed = true;
                self.coverage.listed();
            }
            _ => {}
        }
        let effects = self.inventory.apply(change);
        if !effects.is_empty() {
            self.state.approvals.make_due();
        }
        self.carry_out(effects);
        self.place_waiting();
        self.begin_listing();
        self.tell_ready();
    }

    fn place_waiting(&mut self) {
        for pending in std::mem::take(&mut self.state.waiting) {
            self.place(pending);
        }
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

    pub(super) fn begin_listing(&mut self) {
        if let Some(id) = self.inventory.begin_listing() {
            self.listings.send_replace(Some(id));
        }
    }

    pub(super) fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::ContainerAdded(container) => {
                    tracing::debug!(id = container.id, "container")
                }
                Effect::ContainerIdentified(container) => {
                    self.state.usages.seen(&container, jiff::Timestamp::now());
                    self.profile_follow(&container);
                    self.identified(&container);
                }
                Effect::TaskStarted(container) => {
                    self.hold(&container);
                    self.follow(&container);
                    self.state.profiles.begin_again(&container);
                    self.profile_follow(&container);
                }
                Effect::TaskExited(container) => {
                    self.state.usages.ended(&container, jiff::Timestamp::now());
                    self.profile_ended(&container);
                }
                Effect::ContainerRemoved(container) => {
                    self.coverage.removed(&container);
                    self.state.executions.removed(&container);
                    self.profile_removed(&container);
                    if let Some(changes) = &self.changes {
                        changes.forget(&container);
                    }
                }
                Effect::ForgetCgroup(id) => self.forget(id),
            }
        }
    }

    fn forget(&mut self, cgroup: u64) {
        self.state.told_cgroups.pop(&cgroup);
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
            Err(error @ HolderError::Ended(_)) => tracing::debug!(%error, id = container.id),
            Err(HolderError::NotOverlay(_)) => tracing::info!(
                id = container.id,
                snapshotter = container.snapshotter,
                "the container's root has no layers: what it executes is read through the root, and files of the image that it changes are told when they are used"
            ),
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
                self.posture_weigh(container, None);
            }
            Some(image) => {
                let (container, contents) = (Arc::clone(container), Arc::clone(&self.contents));
                self.state.in_flight.spawn(async move {
                    let result = contents.of(&container, &image).await;
                    Done::Contents { container, result }
                });
            }
        }
    }

    pub(super) fn tell_unavailable(&mut self, container: &Arc<Container>, error: &ContentsError) {
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
        self.settle();
        self.renew_sockets();
        let revisions = self.state.aggregator.due(clock::boot_ns());
        self.append(revisions);
        // The clock of the world may have been set.
        match boot_time() {
            Ok(boot) => self.node.boot_time = boot,
            Err(error) => tracing::warn!(%error, "cannot read the clock"),
        }
        while self
            .state
            .waiting
            .front()
            .is_some_and(|pending| pending.since.elapsed() > WAITING_TIME_MAX)
        {
            self.expire_oldest();
        }
        self.place_waiting();
        self.look();
        self.check_self();
        self.profile_tick();
        self.policy_tick(false);
        self.signature_tick();
        self.approval_tick();
    }

    /// Gives up the use that has waited longest.
    pub(super) fn expire_oldest(&mut self) {
        if let Some(pending) = self.state.waiting.pop_front() {
            self.expire(&pending);
        }
    }

    /// Takes note that it never became known whose a use is.
    pub(super) fn expire(&mut self, pending: &Pending) {
        // It waited only for what may be told of others.
        if is_plain(&pending.what, None) {
            self.count(&Judgement::Good(FileVerdict::Image), true);
            return;
        }
        self.coverage.lost(pending, Cause::ExpiredUnknown);
        self.state.counts.expired_unknown += 1;
    }

    fn answer(&mut self, query: Query) {
        // A caller that went away needs no answer.
        match query {
            Query::Snapshot(answer) => {
                let _ = answer.send(self.snapshot());
            }
            Query::Coverage(question, answer) => {
                let _ = answer.send(self.coverage_of(&question));
            }
            Query::Executed(container, answer) => {
                let _ = answer.send(self.state.executions.of(&container));
            }
            Query::Policies(call, answer) => {
                let _ = answer.send(self.policy_call(call));
            }
            Query::Approvals(call, answer) => {
                let _ = answer.send(self.approval_call(call));
            }
            Query::ClusterApprovals(told, answer) => {
                let _ = answer.send(self.approval_cluster(told));
            }
            Query::ApprovalOf(manifest, answer) => {
                let _ = answer.send(self.approval_of(manifest));
            }
            Query::Statements(answer) => {
                let _ = answer.send(self.state.approvals.in_force().clone());
            }
            Query::Record(answer) => {
                let _ = answer.send(self.policy_record());
            }
            Query::ReadAnew => self.policy_tick(true),
            Query::Profiles(call, answer) => {
                let _ = answer.send(self.profile_call(call));
            }
        }
    }

    fn snapshot(&mut self) -> Snapshot {
        let account = self
            .sensor
            .as_mut()
            .map(Sensor::account)
            .unwrap_or_default();
        // With the reader, or in the channel.
        let told = account.received - account.earlier + account.running;
        let between = told.saturating_sub(account.undecodable + self.state.counts.received);
        Snapshot {
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
            usage: self.state.usages.all(),
            counts: self.state.counts,
            changes: self.state.changes,
            changes_account: self
                .changes
                .as_ref()
                .map(Changes::counters)
                .unwrap_or_default(),
            waiting: between
                + self.state.turns.len() as u64
                + self.state.waiting.len() as u64
                + self.state.sourced.len() as u64
                + self.state.uses_in_flight.len() as u64,
            account,
            choices: self
                .sensor
                .as_ref()
                .map(|sensor| sensor.choices().to_vec())
                .unwrap_or_default(),
            connection: self.state.connection,
            coverage: coverage::status(&self.coverage.facts(), &self.node),
            behaviour: self.state.profiles.status(),
            policies: self.state.policies.status(),
            approvals: self.state.approvals.status(),
        }
    }
}

/// Waits until then; for ever if there is no such time.
async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
