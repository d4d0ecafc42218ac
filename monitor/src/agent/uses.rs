//! The owner's part for what the sensor tells: places each use of a file, has it read, and judges
//! it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use monitor_common::{
    CgroupFacts, CgroupState, Hook,
    file::{FILE_OVERLAY, FILE_UPPER},
};
use tokio::task::{Id, JoinError};

use super::{
    activity,
    bytes::{Layers, Request},
    find::Wanted,
    owner::{Owner, WAITING_MAX},
    state::{Done, Pending, ReadUse, What, creation},
};
use crate::{
    containers::{
        Container, Identity, Task,
        inventory::{Place, PlacedBy},
    },
    coverage::Cause,
    detect::{
        FileVerdict, Finding,
        file::{self, Expected, Judgement, UseFacts},
        open,
        participant::{self, Participant},
        role::Role,
        script::{self, Opened, Use},
    },
    sensor::{
        Sensor,
        event::{Event, FileFacts, FileUse, ProcessId},
        hooks,
    },
};

/// Bytes of a file of the image that is only data: a longer one is not hashed so that the kernel
/// side may remember it, and goes on being told.
const DATA_BYTES_MAX: u64 = 4 << 20;
/// How long an event of a container waits for word of its task, which containerd sends on its way beside
/// the start: without it neither the root filesystem is known nor who is init. There is none where the
/// runtime failed; what it did in the cgroup is then judged without.
const TASK_TIME_MAX: Duration = Duration::from_secs(5);

impl Owner {
    pub(super) fn event(&mut self, event: Event) {
        self.state.counts.received += 1;
        self.settle();
        self.look_between();
        if self.coverage.is_own(&event) {
            return self.note();
        }
        let host = self.host_mount_namespace;
        let was_running = event.used().is_some_and(|used| used.already_running);
        let is_told = was_running && self.sensor.as_ref().is_some_and(Sensor::are_running_told);
        match event {
            Event::Exec(exec) => {
                let known = self.state.processes.executed(&exec, host);
                if is_told {
                    return self.note();
                }
                self.take(pending(What::Exec(exec), known));
            }
            // The hooks saw it, and it was judged then.
            Event::Code(_) if is_told => self.note(),
            Event::Code(code) => {
                let known = self.state.processes.acted(&code.used.process, host);
                self.take(pending(What::Code(code), known));
            }
            Event::Open(open) => {
                let known = self.state.processes.acted(&open.used.process, host);
                let used_as = if open.is_interpreted {
                    script::judge(&Opened {
                        program: known.program.as_deref(),
                        path: &open.used.file.path,
                        is_standard_input: open.is_standard_input,
                    })
                } else {
                    Use::Data
                };
                let may_wait = !is_lower(&open.used.file.facts);
                let pending = pending(What::Open(open, used_as), known);
                let is_sourced = matches!(used_as, Use::Sourced(_));
                if may_wait && is_sourced && self.sees(Hook::Source) {
                    self.hold_sourced(pending);
                } else {
                    self.take(pending);
                }
            }
            Event::Connect(connect) => {
                let known = self.state.processes.acted(&connect.used.process, host);
                self.take(pending(What::Connect(connect), known));
            }
            Event::Source(source) => {
                let shown = self.state.sourced.shown(&source);
                for pending in shown.run {
                    self.place(pending);
                }
                for _ in 0..shown.data {
                    self.count(&Judgement::Good(FileVerdict::Image), true);
                }
                self.note();
            }
            Event::Fork(fork) => {
                self.state.processes.forked(fork);
                self.note();
            }
            Event::Exit(exit) => {
                self.state.processes.exited(exit);
                self.note();
            }
            Event::Answer(answer) => {
                self.answered(answer);
                self.note();
            }
        }
        self.follow_up();
    }

    /// Does what the placing of a use has asked for.
    pub(super) fn follow_up(&mut self) {
        let effects = self.inventory.take_effects();
        self.carry_out(effects);
        self.begin_listing();
    }

    fn note(&mut self) {
        self.state.counts.noted += 1;
        self.state.counts.judged += 1;
    }

    /// Has a file that a shell reads wait for a sign that it runs it, and takes hold of it meanwhile.
    fn hold_sourced(&mut self, mut pending: Pending) {
        self.let_go_unpinned(&mut pending);
        let used = pending.what.used();
        let place = self.inventory.place(
            &used.cgroup,
            used.process.mount_namespace,
            used.time_boot_ns,
        );
        let wanted = match (&pending.what, place) {
            (What::Open(open, _), Place::Container { container, .. }) if open.held.is_none() => {
                Some(wanted(used, &container))
            }
            _ => None,
        };
        let (number, oldest) = self.state.sourced.hold(pending);
        if let Some(mut wanted) = wanted {
            self.state.in_flight.spawn_blocking(move || {
                wanted.hold();
                Done::Held(number, wanted.path_only)
            });
        }
        if let Some(oldest) = oldest {
            self.place(oldest);
        }
    }

    /// Lets go of what shells read and showed no sign of running.
    pub(super) fn drop_due(&mut self) {
        while self.state.sourced.pop_due(Instant::now()).is_some() {
            self.count(&Judgement::Good(FileVerdict::Image), true);
        }
    }

    pub(super) fn place(&mut self, mut pending: Pending) {
        let used = pending.what.used();
        match self.inventory.place(
            &used.cgroup,
            used.process.mount_namespace,
            used.time_boot_ns,
        ) {
            Place::Container { container, by } if is_known(&container, &pending) => {
                self.state.processes.placed(&used.process, &container);
                self.foresee(&pending, &container);
                self.judge_open(&pending, &container, by);
                let used = pending.what.used();
                if by == PlacedBy::Cgroup {
                    let is_exec = matches!(pending.what, What::Exec(_));
                    self.tell_container(used.cgroup.id, &container, is_exec);
                }
                match self.lives_in(&pending.what, &container) {
                    Some(other) => {
                        pending.visitor_of = Some(container);
                        self.read(pending, other);
                    }
                    None => self.read(pending, container),
                }
            }
            // It may have left its container's cgroup and mount namespace.
            Place::Host
                if let Some(container) =
                    (self.state.processes).container_of(&used.process, &pending.known) =>
            {
                let container = self.present(&container);
                if is_known(&container, &pending) {
                    self.read(pending, container);
                } else {
                    self.wait(pending);
                }
            }
            Place::Host => {
                self.state.counts.host += 1;
                self.state.processes.forget(&used.process);
                if used.process.mount_namespace == self.host_mount_namespace {
                    self.tell_host(used.cgroup.id);
                }
            }
            // Only a profile could have something to say of it.
            Place::Container { container, .. }
                if is_plain(&pending.what, container.task.as_ref())
                    && !self.has_room_for_plain() =>
            {
                self.drop_plain();
            }
            Place::Unknown if is_plain(&pending.what, None) && !self.has_room_for_plain() => {
                self.drop_plain();
            }
            Place::Unknown if is_plain(&pending.what, None) && self.is_before_coverage(used) => {
                self.count(&Judgement::Good(FileVerdict::Image), true);
            }
            Place::Unknown if self.is_before_coverage(used) => {
                self.state.counts.before_coverage += 1;
                // The hooks were there, and its container is gone.
                if self.sensor.as_ref().is_some_and(Sensor::is_reopened) && !used.already_running {
                    self.coverage.lost(&pending, Cause::ExpiredUnknown);
                }
            }
            Place::Container { container, .. } => {
                // Where its line goes from here, it is followed.
                self.state.processes.placed(&used.process, &container);
                self.wait(pending);
            }
            Place::Unknown => self.wait(pending),
        }
    }

    /// Has a use wait for word of its container, in place of the oldest at the bound.
    fn wait(&mut self, pending: Pending) {
        if self.state.waiting.len() >= WAITING_MAX {
            // What can be repeated at will must not drive out an exec.
            if matches!(pending.what, What::Connect(_)) {
                self.expire(&pending);
                return;
            }
            self.expire_oldest();
        }
        self.state.waiting.push_back(pending);
    }

    /// The other container in which a process of `container`'s cgroup lives: by its mount namespace
    /// and the file that it uses. It was moved to this cgroup, or went into that container.
    fn lives_in(&self, what: &What, container: &Arc<Container>) -> Option<Arc<Container>> {
        let used = what.used();
        let device = match what {
            // No file speaks for it but its root directory.
            What::Connect(_) => used.process.root_device,
            _ => used.file.facts.device,
        };
        let namespace = used.process.mount_namespace;
        let other = (self.inventory).of_namespace(namespace, used.time_boot_ns)?;
        let root_device = other.task.as_ref().and_then(|task| task.root_device);
        let is_other = creation(other) != creation(container)
            && other.identity != Identity::Pending
            && root_device == Some(device);
        is_other.then(|| Arc::clone(other))
    }

    /// Whether there is room for opens of files that no rule says anything of to wait: what they keep
    /// out is only what a profile may learn, or who changes a file.
    fn has_room_for_plain(&self) -> bool {
        self.state.waiting.len() < WAITING_MAX / 2
    }

    fn drop_plain(&mut self) {
        self.count(&Judgement::Good(FileVerdict::Image), true);
        self.profile_lost(None, jiff::Timestamp::now());
    }

    /// Whether a listing that could have told whose an event is has told nothing.
    fn is_before_coverage(&self, used: &FileUse) -> bool {
        let told_since_ns = self.inventory.told_since_boot_ns();
        self.state.listed && told_since_ns != u64::MAX && used.time_boot_ns < told_since_ns
    }

    fn tell_host(&mut self, cgroup: u64) {
        let facts = CgroupFacts {
            state: CgroupState::Host as u32,
            root_device: 0,
        };
        self.tell_kernel(cgroup, facts);
    }

    /// Has the kernel side keep what it remembers of the container's root to itself. It may forget
    /// a cgroup, so it is told again with each exec.
    fn tell_container(&mut self, cgroup: u64, container: &Container, again: bool) {
        let root_device = container.task.as_ref().and_then(|task| task.root_device);
        let Some(root_device) = root_device else {
            return;
        };
        let facts = CgroupFacts {
            state: CgroupState::Container as u32,
            root_device,
        };
        if again || self.state.told_cgroups.get(&cgroup) != Some(&facts) {
            self.state.told_cgroups.put(cgroup, facts);
            self.tell_kernel(cgroup, facts);
        }
    }

    fn tell_kernel(&mut self, cgroup: u64, facts: CgroupFacts) {
        if let Some(sensor) = &mut self.sensor
            && let Err(error) = sensor.set_cgroup(cgroup, facts)
        {
            tracing::warn!(%error, cgroup, "cannot tell the kernel side whose a cgroup is; more of its events are sent than are needed");
        }
    }

    /// Starts reading what the verdict on a use depends on.
    fn read(&mut self, mut pending: Pending, container: Arc<Container>) {
        let Some(role) = pending.what.role() else {
            return self.judge_connect(&pending, &container);
        };
        if !is_worth_reading(&pending.what) {
            self.count(&Judgement::Good(FileVerdict::Image), true);
            return;
        }
        let (held, path_only) = match &mut pending.what {
            What::Exec(exec) => (std::mem::take(&mut exec.held), exec.program.take()),
            What::Code(code) => (Vec::new(), code.held.take()),
            What::Open(open, _) => (Vec::new(), open.held.take()),
            What::Connect(_) => (Vec::new(), None),
        };
        let is_anonymous = role == Role::Anonymous;
        let request = Request {
            container: creation(&container),
            is_anonymous,
            wanted: Wanted {
                path_only,
                ..wanted(pending.what.used(), &container)
            },
            held,
            layers: container.chain_id().map(|chain_id| Layers {
                chain_id,
                created_unix_ns: container.created_unix_ns,
            }),
        };
        let (bytes, reader) = (Arc::clone(&self.bytes), Arc::clone(&self.contents));
        let handle = self.state.in_flight.spawn(async move {
            let contents = reader.of_container(&container);
            let (files, contents) = tokio::join!(bytes.read(request), contents);
            if let Some(Ok(contents)) = &contents {
                reader.read_for(contents, pending.what.used(), &files).await;
            }
            Done::Use(Box::new(ReadUse {
                pending,
                role,
                container,
                files,
                contents,
            }))
        });
        self.state.uses_in_flight.insert(handle.id());
    }

    pub(super) fn done(&mut self, done: Result<(Id, Done), JoinError>) {
        self.settle();
        let id = done.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        let was_use = self.state.uses_in_flight.remove(&id);
        match done {
            Ok((_, Done::Use(read))) => self.judge(*read),
            Ok((_, Done::Held(number, file))) => self.state.sourced.held(number, file),
            Ok((_, Done::Checked(result))) => self.checked(result),
            Ok((_, Done::Seeded(seeded))) => self.profile_seeded(*seeded),
            Ok((_, Done::Written(failed))) => self.profile_written(failed),
            Ok((_, Done::Approvals(read))) => self.approval_folder(read.0, read.1),
            Ok((_, Done::Policies(read))) => self.policy_folder(read.0, read.1),
            Ok((_, Done::Folder(folder))) => self.profile_folder(folder.0, folder.1),
            Ok((
                _,
                Done::Contents {
                    container,
                    result: Ok(contents),
                },
            )) => {
                self.follow_with(&self.present(&container), &contents);
                self.profile_seed(&self.present(&container), &contents);
                self.posture_weigh(&self.present(&container), Some(&contents));
            }
            Ok((_, Done::Keys(generation))) => self.signature_keys(generation),
            Ok((_, Done::Signature(subject, verdict))) => {
                self.signature_known(*subject, verdict);
            }
            Ok((_, Done::Posture(container, contents))) => {
                self.posture_weigh(&container, contents.as_deref());
            }
            Ok((
                _,
                Done::Contents {
                    container,
                    result: Err(error),
                },
            )) => {
                self.tell_unavailable(&container, &error);
                self.posture_weigh(&self.present(&container), None);
            }
            // Only a defect of this program ends a task early.
            Err(error) => {
                self.state.counts.failed += u64::from(was_use);
                tracing::error!(%error, "a defect of monitord: what became code could not be read");
            }
        }
    }

    fn judge(&mut self, read: ReadUse) {
        let ReadUse {
            pending,
            role,
            container,
            files,
            contents,
        } = read;
        let (what, known) = (&pending.what, pending.known);
        let used = what.used();
        let reason = match &contents {
            Some(Err(error)) => error.to_string(),
            _ => String::new(),
        };
        let runtime = Arc::clone(&self.runtime);
        let facts = UseFacts {
            used,
            role,
            container: &container,
            host_mount_namespace: self.host_mount_namespace,
            runtime: &runtime,
            expected: match &contents {
                Some(Ok(contents)) => Expected::Known(contents),
                Some(Err(_)) => Expected::Unavailable(&reason),
                None => Expected::NoImage,
            },
            bytes: &files.bytes,
            head: &files.head,
            capability: files.capability,
            libraries: what.libraries(),
            origin: known.origin(&used.process, &container),
            program: known.program.as_deref(),
            ancestors: known.ancestors,
            hook: hooks::set_name(used.hook),
        };
        let mut judgement = file::judge(&facts);
        // What another container's image holds is no part of the visitor's own.
        if let Some(container) = &pending.visitor_of
            && matches!(judgement, Judgement::Good(_) | Judgement::Confirmed)
        {
            judgement = file::judge(&UseFacts {
                container,
                expected: Expected::NoImage,
                ..facts.clone()
            });
        }
        let mut participants: Vec<Judgement> = files
            .participants
            .iter()
            .map(|participant| participant::judge(&facts, participant))
            .collect();
        if let What::Exec(exec) = what {
            let scripts = files.participants.iter().zip(&participants);
            let now = jiff::Timestamp::now();
            self.state.executions.ran(&facts, &judgement, scripts, now);
            let is_script = |participant: &Participant| participant.role == Role::Script;
            let is_held = files.participants.iter().any(is_script);
            if exec.script.is_some() && !is_held && !self.sees(Hook::Open) {
                participants.push(participant::judge_unheld_script(&facts));
            }
            if let Some(program) = &known.program {
                program.judged(matches!(
                    judgement,
                    Judgement::Good(_) | Judgement::Confirmed
                ));
            }
        }
        if judgement == Judgement::Confirmed && files.is_settled {
            self.remember(&used.file.facts);
        }
        let is_binary = role == Role::Sourced && !script::is_text(&files.head);
        let is_data = is_data(what) || is_binary;
        self.count(&judgement, is_data);
        let own = match what {
            What::Exec(exec) => {
                let activity =
                    activity::executed(exec, known.command.as_deref(), &facts, &judgement);
                self.weigh(&activity, judgement.into_finding()).findings
            }
            _ => judgement.into_finding().into_iter().collect(),
        };
        let others = participants.into_iter().filter_map(Judgement::into_finding);
        let is_exec = role == Role::Program;
        let all = others.map(|finding| (false, finding));
        for (is_exec, finding) in all.chain(own.into_iter().map(|finding| (is_exec, finding))) {
            if !is_data && (is_exec || self.is_new(used, &finding)) {
                self.raise_of(used, &finding);
            }
        }
    }

    pub(super) fn count(&mut self, judgement: &Judgement, is_data: bool) {
        let counts = &mut self.state.counts;
        counts.judged += 1;
        let counter = match judgement {
            _ if is_data => &mut counts.data,
            Judgement::Good(FileVerdict::MetadataChanged) => &mut counts.metadata_changed,
            Judgement::Good(_) | Judgement::Confirmed => &mut counts.image,
            Judgement::Runtime => &mut counts.runtime,
            Judgement::Jit => &mut counts.jit,
            Judgement::Cache => &mut counts.caches,
            Judgement::Unverifiable => &mut counts.unverifiable,
            Judgement::Finding(_) => return,
        };
        *counter += 1;
    }

    fn sees(&self, kind: Hook) -> bool {
        self.sensor.as_ref().is_some_and(|sensor| {
            let mut choices = sensor.choices().iter();
            choices.any(|choice| choice.kind == kind && choice.set.is_some())
        })
    }

    fn remember(&mut self, facts: &FileFacts) {
        if let Some(sensor) = &mut self.sensor
            && let Err(error) = sensor.remember(facts)
        {
            tracing::warn!(%error, "cannot have the kernel side remember a file of an image; it goes on being told");
        }
    }

    /// Whether a finding about a peer was not raised of this process before.
    pub(super) fn is_first(&mut self, process: ProcessId, finding: &Finding) -> bool {
        let Some(peer) = &finding.connection else {
            return false;
        };
        let (address, rule) = (peer.address.clone(), finding.rule.clone());
        let key = (process, finding.kind, address, None, rule);
        self.state.raised.put(key, ()).is_none()
    }

    /// Whether a finding beside an exec's own was not raised of this process before.
    pub(super) fn is_new(&mut self, used: &FileUse, finding: &Finding) -> bool {
        let Some(file) = &finding.file else {
            return true;
        };
        let raised = &mut self.state.raised;
        let mut is_new = |seen| {
            let (path, rule) = (file.path.clone(), finding.rule.clone());
            let key = (used.process.id(), finding.kind, path, seen, rule);
            raised.put(key, ()).is_none()
        };
        // Of a file that could not be read no more is known than that it was used.
        let is_first = is_new(None);
        match file.seen {
            Some(seen) => is_new(Some(seen)),
            None => is_first,
        }
    }
}

fn is_data(what: &What) -> bool {
    matches!(what, What::Open(_, Use::Data))
}

/// Whether all is known of a container that a verdict on what it does depends on.
fn is_known(container: &Container, pending: &Pending) -> bool {
    let has_task = container.task.is_some() || pending.since.elapsed() > TASK_TIME_MAX;
    has_task && container.identity != Identity::Pending
}

/// Whether it is data that nothing is to be said of.
pub(super) fn is_plain(what: &What, task: Option<&Task>) -> bool {
    is_data(what) && open::sensitive(what.used(), task).is_none()
}

fn pending(what: What, known: crate::containers::processes::Known) -> Pending {
    Pending {
        since: Instant::now(),
        what,
        known,
        visitor_of: None,
    }
}

/// A used file, of which nothing is held yet.
fn wanted(used: &FileUse, container: &Container) -> Wanted {
    let (file, task) = (&used.file, container.task.as_ref());
    let in_root =
        task.and_then(|task| task.path_in_root(file.facts.device, &file.path_in_filesystem));
    let path = in_root.filter(|_| !file.path_truncated && !file.unlinked);
    Wanted {
        facts: file.facts,
        path_only: None,
        is_in_root: in_root.is_some(),
        path: path.map(<[u8]>::to_vec),
        rootfs: task.and_then(|task| task.rootfs.clone()),
    }
}

fn is_lower(facts: &FileFacts) -> bool {
    facts.flags & (FILE_OVERLAY | FILE_UPPER) == FILE_OVERLAY
}

/// Of what an interpreter reads as data, small files of the image, so that the kernel side may
/// remember them; of other data nothing.
fn is_worth_reading(what: &What) -> bool {
    let facts = &what.used().file.facts;
    match what {
        What::Open(open, Use::Data) => {
            open.is_interpreted && is_lower(facts) && facts.size <= DATA_BYTES_MAX
        }
        _ => true,
    }
}
