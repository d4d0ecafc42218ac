//! A profile while it is in use: what it has, and what it learns from each container until that ended
//! without a content finding.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    time::Duration,
};

use jiff::Timestamp;

use super::{
    Act, ContainerNumber, Weighed, What, arguments,
    behaviour::{Item, Verdict},
    convert,
    document::{Document, DocumentError, Frozen, State, Subject},
    peers::{self, Network, Peer},
    reasons::Reasons,
    seed::Seed,
    tree::{READ, WRITE},
    whole::{Doer, Starts, Whole},
    words,
};
use crate::{digest::Sha256, sensor::event::Access};

/// What was learned from a container that ended is kept apart for so long: its last content findings
/// may come late.
pub(super) const FINDINGS_TIME: Duration = Duration::from_secs(60);
/// Containers of an image from which is learned at once; from further ones is not.
pub(super) const LEARNERS_MAX: usize = 64;
/// Containers of an image that are known at once; further ones are not learned from.
pub(super) const CONTAINERS_MAX: usize = 4096;
/// Characters of the name of whoever freezes a profile, and bytes of it in a document.
const BY_CHARS_MAX: usize = 64;
pub(super) const BY_BYTES_MAX: usize = 4 * BY_CHARS_MAX;

/// When learning ends without anybody asking for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Nothing new came for so long.
    pub quiet: Duration,
    /// So many containers have started.
    pub starts_min: usize,
}

/// The profile of one image while it is in use: what its containers may do, and what is being learned.
#[derive(Debug)]
pub struct Profile {
    pub(super) about: About,
    /// What is certain: from the image, from documents, and from containers that ended well.
    pub(super) base: Whole,
    /// Containers that ended well, or ran when it was frozen.
    starts: usize,
    /// One of them was seen from its start on.
    is_seen_from_start: bool,
    containers: BTreeMap<ContainerNumber, Container>,
    /// When something new came last.
    last_new: Option<Timestamp>,
    /// Kept for their memory.
    shape: String,
    command: String,
}

/// What is said of a profile beside what it allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct About {
    pub(super) subject: Subject,
    pub(super) state: State,
    pub(super) frozen: Option<Frozen>,
    pub(super) inherited_from: Option<crate::digest::Digest>,
    pub(super) user: String,
    pub(super) exposed_ports: BTreeSet<String>,
    pub(super) libraries: BTreeMap<Box<[u8]>, Option<Sha256>>,
    pub(super) reasons: Reasons,
}

/// What was learned from one container.
#[derive(Debug)]
struct Container {
    learned: Whole,
    /// It has no content finding, and there was room for it.
    is_clean: bool,
    /// It ran before the daemon did.
    was_running: bool,
    /// It is counted in [`Profile::starts`].
    is_counted: bool,
    ended: Option<Timestamp>,
}

impl Profile {
    /// The profile of an image of which nothing has run yet.
    pub fn seeded(subject: Subject, seed: &Seed, now: Timestamp) -> Self {
        Self::new(
            About {
                subject,
                state: State::Seeded,
                frozen: None,
                inherited_from: None,
                user: seed.user.clone(),
                exposed_ports: seed.exposed_ports.clone(),
                libraries: seed.libraries.clone(),
                reasons: Reasons::default(),
            },
            seed.whole.clone(),
            Some(now),
        )
    }

    /// Adds what the image says of itself, which takes a while to be read.
    pub fn add_seed(&mut self, seed: &Seed) {
        self.about.user.clone_from(&seed.user);
        self.about.exposed_ports.clone_from(&seed.exposed_ports);
        self.about.libraries.clone_from(&seed.libraries);
        self.base.join(&seed.whole, Starts::Larger);
    }

    /// Adds what the image before this one does, but for programs that changed. `is_same` tells whether
    /// this image has a file with this hash.
    pub fn inherit(&mut self, from: &Document, is_same: &mut dyn FnMut(&[u8], Sha256) -> bool) {
        // A document that says what cannot be is not inherited from.
        let Ok(mut theirs) = convert::whole(from) else {
            return;
        };
        let commands = theirs.put_in.values_mut().map(|it| &mut it.behaviour);
        for behaviour in commands.chain([&mut theirs.main]) {
            behaviour
                .executables
                .retain(|path, program| program.sha256.is_some_and(|sha256| is_same(path, sha256)));
        }
        self.about.inherited_from = Some(from.image.manifest);
        self.base.join(&theirs, Starts::Larger);
    }

    /// Whether it began with what another image's does.
    pub fn has_inherited(&self) -> bool {
        self.about.inherited_from.is_some()
    }

    /// The profile that a document tells of. A frozen one stays frozen, any other goes on learning.
    pub fn of(document: &Document) -> Result<Self, DocumentError> {
        let whole = convert::whole(document)?;
        let mut profile = Self::new(convert::about(document), whole, None);
        // What learned without this reason has seen a container from its start on, unless it began
        // with what another image's did.
        profile.is_seen_from_start = document.state == State::Learning
            && document.inherited_from.is_none()
            && !profile.about.reasons.has_older();
        Ok(profile)
    }

    fn new(about: About, base: Whole, last_new: Option<Timestamp>) -> Self {
        Self {
            about,
            base,
            starts: 0,
            is_seen_from_start: false,
            containers: BTreeMap::new(),
            last_new,
            shape: String::new(),
            command: String::new(),
        }
    }

    /// The profile as a document.
    pub fn document(&self) -> Document {
        let mut whole = self.base.clone();
        for container in self.clean() {
            whole.join(&container.learned, Starts::Add);
        }
        let mut about = self.about.clone();
        about.reasons = self.reasons();
        convert::document(&about, &whole)
    }

    /// Of which image it is.
    pub fn subject(&self) -> &Subject {
        &self.about.subject
    }

    /// How far it is.
    pub fn state(&self) -> State {
        self.about.state
    }

    /// A container of the image has started, or was found running when the daemon started.
    pub fn started(&mut self, container: ContainerNumber, now: Timestamp, was_running: bool) {
        if self.about.state == State::Seeded {
            self.about.state = State::Learning;
            self.last_new = Some(now);
        }
        let is_room = self.clean().count() < LEARNERS_MAX;
        self.know(container, was_running, is_room);
    }

    fn know(&mut self, container: ContainerNumber, was_running: bool, is_clean: bool) {
        if self.containers.len() < CONTAINERS_MAX {
            self.containers
                .entry(container)
                .or_insert_with(|| Container {
                    learned: Whole::default(),
                    is_clean,
                    was_running,
                    is_counted: false,
                    ended: None,
                });
        }
    }

    /// A container of the image has ended.
    pub fn stopped(&mut self, container: ContainerNumber, now: Timestamp) {
        let is_learning = self.about.state != State::Frozen;
        match self.containers.get_mut(&container) {
            Some(known) if known.is_clean && is_learning => known.ended = Some(now),
            _ => {
                self.containers.remove(&container);
            }
        }
    }

    /// Whether it has nothing against an act, or says nothing yet.
    pub fn expects(&self, act: &Act<'_>) -> bool {
        if self.about.state != State::Frozen {
            return true;
        }
        let (mut shape, mut command) = (String::new(), String::new());
        let doer = doer(act, &mut command);
        let item = item(&act.what, &mut shape);
        !matches!(self.compare(doer, &item), Weighed::Deviation(_))
    }

    /// Whether it is certain that a container of the image does this by itself: `act` is of its own.
    pub fn expects_as_own(&self, act: &Act<'_>) -> bool {
        let (mut shape, mut command) = (String::new(), String::new());
        let doer = doer(act, &mut command);
        self.base.allows(doer, &item(&act.what, &mut shape))
    }

    /// Compares an act with the profile, and learns it.
    pub fn weigh(&mut self, container: ContainerNumber, act: &Act<'_>, now: Timestamp) -> Weighed {
        let mut shape = mem::take(&mut self.shape);
        let mut command = mem::take(&mut self.command);
        let doer = doer(act, &mut command);
        let item = item(&act.what, &mut shape);
        let weighed = if self.about.state == State::Frozen {
            self.compare(doer, &item)
        } else {
            let is_learnable = !matches!(
                act.what,
                What::Exec {
                    is_learnable: false,
                    ..
                }
            );
            self.learn_from(container, doer, &item, is_learnable, now)
        };
        self.shape = shape;
        self.command = command;
        weighed
    }

    fn learn_from(
        &mut self,
        container: ContainerNumber,
        doer: Doer<'_>,
        item: &Item<'_>,
        is_learnable: bool,
        now: Timestamp,
    ) -> Weighed {
        if self.base.has(doer, item) {
            return Weighed::Expected;
        }
        let known = self.containers.get(&container);
        let Some(known) = known.filter(|known| is_learnable && known.is_clean) else {
            return if self.allows(doer, item) {
                Weighed::Expected
            } else {
                Weighed::Ignored
            };
        };
        if known.learned.has(doer, item) {
            return Weighed::Expected;
        }
        let is_new = !self.allows(doer, item);
        if let Some(known) = self.containers.get_mut(&container) {
            known.learned.learn(doer, item);
        }
        if !is_new {
            return Weighed::Expected;
        }
        if !self.allows(doer, item) {
            // By a command that was not seen often enough, or beyond a bound.
            return Weighed::Ignored;
        }
        self.last_new = Some(now);
        Weighed::Learned
    }

    /// Whether it has something already, of whatever container.
    fn allows(&self, doer: Doer<'_>, item: &Item<'_>) -> bool {
        self.base.allows(doer, item)
            || self
                .clean()
                .any(|container| container.learned.allows(doer, item))
    }

    fn compare(&self, doer: Doer<'_>, item: &Item<'_>) -> Weighed {
        let part = doer
            .command
            .and_then(|command| self.base.put_in.get(command));
        let is_foreign = doer.is_beginning && part.is_none();
        let mut verdict = self.base.main.judge(item);
        if let Some(part) = part
            && matches!(
                verdict,
                Verdict::Unknown | Verdict::Parent | Verdict::Arguments
            )
        {
            let by_part = part.behaviour.judge(item);
            if by_part != Verdict::Unknown {
                verdict = by_part;
            }
        }
        match verdict {
            Verdict::OtherBytes => Weighed::Ignored,
            Verdict::Allowed if !is_foreign => Weighed::Expected,
            _ => {
                let is_partial = !self.about.reasons.is_empty();
                let deviation = words::deviation(&self.base, doer, item, verdict, is_partial);
                Weighed::Deviation(Box::new(deviation))
            }
        }
    }

    /// A container has a content finding: whatever was learned from it, back to its start, goes, and no
    /// more is learned from it. It may come before [`Profile::started`].
    pub fn content_finding(&mut self, container: ContainerNumber, _now: Timestamp) {
        self.know(container, false, false);
        if let Some(known) = self.containers.get_mut(&container) {
            known.is_clean = false;
            known.learned = Whole::default();
            if known.ended.is_some() {
                self.containers.remove(&container);
            }
        }
    }

    /// Events were lost, perhaps of this image's containers: what is learned may lack something.
    pub fn events_lost(&mut self, at: Timestamp) {
        if self.about.state == State::Learning {
            self.about.reasons.lost(at);
        }
    }

    /// Time passes. Whether the profile froze now, by `ending` if there is one.
    pub fn tick(&mut self, ending: Option<&Ending>, now: Timestamp) -> bool {
        let ended: Vec<ContainerNumber> = self
            .containers
            .iter()
            .filter(|(_, it)| it.ended.is_some_and(|at| is_past(at, FINDINGS_TIME, now)))
            .map(|(number, _)| *number)
            .collect();
        for number in ended {
            if let Some(container) = self.containers.remove(&number) {
                self.keep(&container);
            }
        }
        let last_new = *self.last_new.get_or_insert(now);
        let is_over = self.about.state == State::Learning
            && ending.is_some_and(|ending| {
                is_past(last_new, ending.quiet, now) && self.starts() >= ending.starts_min
            });
        if is_over {
            self.freeze("quiet time", now);
        }
        is_over
    }

    /// Takes what was learned from a container for certain.
    fn keep(&mut self, container: &Container) {
        self.base.join(&container.learned, Starts::Add);
        if !container.is_counted {
            self.starts += 1;
            self.is_seen_from_start |= !container.was_running;
            if container.was_running {
                self.about.reasons.set_older(true);
            }
        }
    }

    /// Ends learning. What was put in too seldom to be a habit goes.
    pub fn freeze(&mut self, by: &str, now: Timestamp) {
        if self.about.state == State::Frozen {
            return;
        }
        let is_seeded = self.starts() == 0;
        let mut containers = mem::take(&mut self.containers);
        for container in containers.values_mut().filter(|it| it.is_clean) {
            self.keep(container);
            container.learned = Whole::default();
            container.is_counted = true;
        }
        containers.retain(|_, container| container.ended.is_none());
        self.containers = containers;
        self.base.put_in.retain(|_, command| command.counts());
        self.about.reasons = self.reasons();
        self.about.reasons.set_not_run(is_seeded);
        self.about.state = State::Frozen;
        let by = by.chars().filter(|char| !char.is_control());
        self.about.frozen = Some(Frozen {
            at: now,
            by: by.take(BY_CHARS_MAX).collect(),
        });
    }

    /// Learns again, and keeps what it has.
    pub fn learn(&mut self, now: Timestamp) {
        self.about.state = State::Learning;
        self.about.frozen = None;
        self.about.reasons.set_not_run(false);
        self.last_new = Some(now);
    }

    /// Bytes that it takes in memory, roughly.
    pub fn bytes(&self) -> usize {
        let containers = self.containers.values();
        let containers = containers.map(|it| size_of::<Container>() + it.learned.bytes());
        let libraries = self.about.libraries.keys().map(|path| path.len() + 64);
        size_of::<Self>() + self.base.bytes() + containers.sum::<usize>() + libraries.sum::<usize>()
    }

    fn clean(&self) -> impl Iterator<Item = &Container> {
        self.containers
            .values()
            .filter(|container| container.is_clean)
    }

    /// Containers that have started, without those of which nothing is learned.
    fn starts(&self) -> usize {
        self.starts + self.clean().filter(|it| !it.is_counted).count()
    }

    fn reasons(&self) -> Reasons {
        let mut reasons = self.about.reasons.clone();
        let has_older = reasons.has_older() || self.clean().any(|it| it.was_running);
        let is_seen =
            self.is_seen_from_start || self.clean().any(|it| !it.was_running && !it.is_counted);
        reasons.set_older(has_older && !is_seen);
        reasons
    }
}

fn is_past(from: Timestamp, span: Duration, now: Timestamp) -> bool {
    now.duration_since(from).unsigned_abs() >= span && now > from
}

/// Who does it; `command` is given room for the words of the profile.
fn doer<'a>(act: &Act<'_>, command: &'a mut String) -> Doer<'a> {
    let is_beginning = match (act.command, &act.what) {
        (Some(command), What::Exec { arguments, .. }) => command == *arguments,
        _ => false,
    };
    if let Some(line) = act.command {
        arguments::command(line, command);
    }
    Doer {
        command: act.command.map(|_| command.as_str()),
        is_beginning,
    }
}

/// What was done, in the words of the profile.
fn item<'a>(what: &What<'a>, shape: &'a mut String) -> Item<'a> {
    match *what {
        What::Exec {
            path,
            sha256,
            parent,
            arguments,
            ..
        } => {
            arguments::shape(path, arguments, shape);
            Item::Exec {
                path,
                sha256,
                parent,
                shape,
            }
        }
        What::Open { path, access } => Item::Open {
            path,
            access: access_bits(access),
        },
        What::Peer {
            address,
            port,
            protocol,
        } => Item::Peer(Peer {
            protocol: peers::protocol_number(protocol),
            port,
            network: Network::of(address),
        }),
        What::Socket { path } => Item::Socket(path),
    }
}

/// What is opened for neither is taken for read.
fn access_bits(access: Access) -> u8 {
    let write = if access.write { WRITE } else { 0 };
    let read = if access.read || !access.write {
        READ
    } else {
        0
    };
    read | write
}
