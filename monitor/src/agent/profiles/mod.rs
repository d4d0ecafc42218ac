//! The owner's part for behaviour profiles: which container has which, what they are told, and what is
//! to be done when they change.

mod acts;
mod calls;
mod members;
mod owner;
mod seeding;
mod store;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;

use self::{
    acts::{command, is_of_runtime, what},
    members::Members,
    store::{Store, Stored},
};
pub(super) use self::{seeding::Seeded, store::Found};
use crate::{
    activity::Activity,
    config,
    containers::{self, Container, ImageId, processes::Origin},
    detect::{Finding, unexpected},
    digest::{Digest, Sha256},
    files::Folder,
    image::{contents::Contents, layer::EntryKind},
    profile::{self, Document, Profile, Seed, State, Subject, Weighed},
};

/// Profiles of a node. At the bound the one that no running container has for longest makes room; if
/// there is none the image has no profile, which is counted.
pub(super) const PROFILES_MAX: usize = 256;
/// How often what was learned is written.
const SAVE_INTERVAL: Duration = Duration::from_secs(30);
/// How often the folder is looked at.
const FOLDER_INTERVAL: Duration = Duration::from_secs(2);

/// Where a profile comes from. Of two the later one here is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Learned on this node.
    Learned,
    /// Given by the API.
    Imported,
    /// From the folder.
    Folder,
}

impl Source {
    /// The API's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Learned => "learned",
            Self::Imported => "imported",
            Self::Folder => "folder",
        }
    }
}

/// What became of what containers did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    /// A profile has it.
    pub(super) expected: u64,
    /// Learned.
    pub(super) learned: u64,
    /// Neither learned nor told.
    pub(super) ignored: u64,
    /// A profile does not have it.
    pub(super) deviations: u64,
    /// There was no room for the profile of its image.
    pub(super) unprofiled: u64,
    /// Documents that could not be read or written.
    pub(super) failed: u64,
}

/// The profile of an image.
struct Entry {
    profile: Profile,
    source: Source,
    /// What the folder's profile stands before, until that is taken away.
    behind: Option<(Profile, Source)>,
    /// The image's files were asked, or are being.
    is_seeded: bool,
    /// Something of it is not written yet.
    is_dirty: bool,
    running: u64,
    deviations: u64,
    /// When a container last began or ended.
    used: Timestamp,
}

impl Entry {
    fn new(profile: Profile, source: Source, now: Timestamp) -> Self {
        Self {
            profile,
            source,
            behind: None,
            is_seeded: false,
            is_dirty: true,
            running: 0,
            deviations: 0,
            used: now,
        }
    }
}

/// The profiles of the images that run here.
pub(super) struct Profiles {
    /// By manifest digest.
    entries: BTreeMap<Digest, Entry>,
    members: Members,
    settings: config::Profiles,
    store: Store,
    folder: Folder,
    saved: Instant,
    /// When events were last lost.
    lost: Timestamp,
    pub(super) counts: Counts,
}

impl Profiles {
    /// Reads what an earlier daemon has left in `directory`. Blocks.
    pub(super) fn open(directory: PathBuf, settings: config::Profiles) -> Self {
        let now = Timestamp::now();
        let (store, stored) = Store::open(directory);
        let mut profiles = Self {
            entries: BTreeMap::new(),
            members: Members::new(store.distrusted()),
            folder: Folder::new(settings.directory.clone()),
            settings,
            counts: Counts {
                failed: stored.failed,
                ..Counts::default()
            },
            store,
            saved: Instant::now(),
            lost: Timestamp::UNIX_EPOCH,
        };
        for (source, profile) in stored.profiles {
            let manifest = profile.subject().manifest;
            let mut entry = Entry::new(profile, source, now);
            entry.is_dirty = false;
            profiles.entries.insert(manifest, entry);
        }
        let found = Found::read(&mut profiles.folder);
        profiles.take_folder(found);
        profiles
    }

    /// Whether a container is one that a profile should know of and does not.
    fn is_unknown(&self, container: &Container) -> bool {
        // First what most of them are: this is asked with each event.
        self.members.get(container).is_none()
            && container.task.is_some()
            && container.identity.contents_of().is_some()
            && container.is_visible()
    }

    /// A container whose task had ended has another.
    pub(super) fn begin_again(&mut self, container: &Container) {
        self.members.forget_ended(container);
    }

    /// Has the profile of `container`'s image know of it.
    fn follow(&mut self, container: &Arc<Container>, was_running: bool, now: Timestamp) {
        let Some(image) = container.identity.contents_of() else {
            return;
        };
        let (number, is_trusted) = self.members.add(container, image.manifest);
        if !self.entries.contains_key(&image.manifest) {
            if !self.make_room() {
                self.counts.unprofiled += 1;
                return;
            }
            let subject = subject(container, image);
            let profile = Profile::seeded(subject, &Seed::default(), now);
            let entry = Entry::new(profile, Source::Learned, now);
            self.entries.insert(image.manifest, entry);
        }
        let Some(entry) = self.entries.get_mut(&image.manifest) else {
            return;
        };
        entry.profile.started(number, now, was_running);
        if !is_trusted {
            entry.profile.content_finding(number, now);
        }
        entry.running += 1;
        entry.used = now;
        entry.is_dirty = true;
    }

    /// Makes room for one more; false if all are in use.
    fn make_room(&mut self) -> bool {
        if self.entries.len() < PROFILES_MAX {
            return true;
        }
        let unused = self.entries.iter().filter(|(_, entry)| entry.running == 0);
        let oldest = unused.min_by_key(|(_, entry)| entry.used);
        let Some(manifest) = oldest.map(|(manifest, _)| *manifest) else {
            return false;
        };
        tracing::warn!(%manifest, limit = PROFILES_MAX, "a profile makes room for another: its image has not run for longest");
        self.entries.remove(&manifest);
        self.store.remove(&manifest);
        true
    }

    fn ended(&mut self, container: &Container, now: Timestamp) {
        if let Some(member) = self.members.end(container)
            && let Some(entry) = self.entries.get_mut(&member.manifest)
        {
            entry.profile.stopped(member.number, now);
            entry.running = entry.running.saturating_sub(1);
            entry.used = now;
            entry.is_dirty = true;
        }
    }

    /// Adds what the image says of itself, and what the image before it was known to do.
    fn seeded(&mut self, seeded: Seeded) {
        let Seeded {
            image,
            seed,
            contents,
        } = seeded;
        let before = self.before(&image.manifest);
        let Some(entry) = self.entries.get_mut(&image.manifest) else {
            return;
        };
        entry.is_dirty = true;
        match seed {
            Ok(seed) => entry.profile.add_seed(&seed),
            Err(reason) => {
                tracing::warn!(manifest = %image.manifest, reason, "a profile has no seed: the image's config cannot be read");
            }
        }
        if let Some(before) = before {
            let mut is_same = |path: &[u8], sha256| is_in(&contents, path, sha256);
            entry.profile.inherit(&before, &mut is_same);
        }
    }

    /// The profile of the image before this one, of the same repository and last in use, unless that was
    /// inherited already.
    fn before(&self, manifest: &Digest) -> Option<Document> {
        let profile = &self.entries.get(manifest)?.profile;
        let repository = &profile.subject().repository;
        if repository.is_empty() || profile.has_inherited() {
            return None;
        }
        let others = self.entries.iter().filter(|(other, entry)| {
            *other != manifest
                && entry.profile.subject().repository == *repository
                && entry.profile.state() != State::Seeded
        });
        let last = others.max_by_key(|(_, entry)| (entry.profile.state(), entry.used));
        last.map(|(_, entry)| entry.profile.document())
    }

    /// `is_excepted` says that an exception vouches for it.
    fn weigh(
        &mut self,
        activity: &Activity<'_>,
        is_excepted: bool,
        now: Timestamp,
    ) -> Option<Finding> {
        if is_of_runtime(activity) {
            return None;
        }
        let member = self.members.get(activity.container)?;
        let (manifest, number) = (member.manifest, member.number);
        let entry = self.entries.get_mut(&manifest)?;
        let parent = activity.ancestors.first().map(Vec::as_slice);
        let command = command(activity.origin, activity.command)?;
        let mut name = Vec::new();
        let what = what(activity, is_excepted, parent, &mut name)?;
        let own = profile::Act {
            command: None,
            what,
        };
        // Who comes from nowhere may be the container's own as well.
        let is_own = activity.origin == Origin::Unknown && entry.profile.expects_as_own(&own);
        let command = command.filter(|_| !is_own);
        match entry
            .profile
            .weigh(number, &profile::Act { command, what }, now)
        {
            Weighed::Expected => self.counts.expected += 1,
            Weighed::Learned => {
                self.counts.learned += 1;
                entry.is_dirty = true;
            }
            Weighed::Ignored => self.counts.ignored += 1,
            Weighed::Deviation(deviation) => {
                self.counts.deviations += 1;
                entry.deviations += 1;
                return Some(unexpected::finding(activity, *deviation));
            }
        }
        None
    }

    /// Whether a profile has nothing against it, or says nothing yet.
    fn expects(&self, container: &Container, origin: Origin, act: &profile::Act<'_>) -> bool {
        let member = self.members.get(container);
        let entry = member.and_then(|member| self.entries.get(&member.manifest));
        let own = profile::Act {
            command: None,
            what: act.what,
        };
        entry.is_none_or(|entry| {
            entry.profile.expects(act)
                || (origin == Origin::Unknown && entry.profile.expects_as_own(&own))
        })
    }

    /// A container has a finding that says that not all of it is its image's.
    fn distrust(&mut self, container: &Container, now: Timestamp) {
        if let Some(member) = self.members.distrust(container)
            && let Some(entry) = self.entries.get_mut(&member.manifest)
        {
            entry.profile.content_finding(member.number, now);
            entry.is_dirty = true;
        }
    }

    fn events_lost(&mut self, container: Option<&Container>, at: Timestamp) {
        // In a flood it is said once a second.
        if container.is_none() {
            if at.as_second() == self.lost.as_second() {
                return;
            }
            self.lost = at;
        }
        let one = container.and_then(|container| self.members.get(container));
        let one = one.map(|member| member.manifest);
        for (manifest, entry) in &mut self.entries {
            if entry.running > 0 && (container.is_none() || one == Some(*manifest)) {
                entry.profile.events_lost(at);
                entry.is_dirty = true;
            }
        }
    }

    /// Ends learning where its time has come; true if a profile was frozen.
    fn tick(&mut self, now: Timestamp) -> bool {
        let ending = self.settings.ending();
        let mut is_frozen = false;
        for entry in self.entries.values_mut() {
            if entry.profile.tick(ending.as_ref(), now) {
                entry.is_dirty = true;
                is_frozen = true;
                let subject = entry.profile.subject();
                tracing::info!(manifest = %subject.manifest, reference = subject.reference, "a profile was frozen: nothing new was seen for long enough");
            }
        }
        if is_frozen {
            self.save_soon();
        }
        is_frozen
    }

    /// Has what changed be written without waiting for its turn.
    fn save_soon(&mut self) {
        let long_ago = Instant::now().checked_sub(SAVE_INTERVAL);
        self.saved = long_ago.unwrap_or(self.saved);
    }

    /// What is to be written, if it is time.
    fn take_changed(&mut self, is_end: bool) -> Vec<Stored> {
        if !is_end && self.saved.elapsed() < SAVE_INTERVAL {
            return Vec::new();
        }
        self.saved = Instant::now();
        self.entries
            .iter_mut()
            .filter(|(_, entry)| entry.is_dirty)
            .filter_map(|(manifest, entry)| {
                entry.is_dirty = false;
                let (profile, source) = match (&entry.behind, entry.source) {
                    (Some((profile, source)), _) => (profile, *source),
                    // It lies in the folder.
                    (None, Source::Folder) => return None,
                    (None, source) => (&entry.profile, source),
                };
                Some(Stored {
                    manifest: *manifest,
                    source,
                    document: profile.document(),
                })
            })
            .collect()
    }

    /// Puts the folder's profiles in force, and takes away those that are no longer there.
    fn take_folder(&mut self, found: Option<Found>) {
        let Some(found) = found else { return };
        self.counts.failed += found.failed;
        if found.failed > 0 {
            return;
        }
        let now = Timestamp::now();
        for (manifest, entry) in &mut self.entries {
            if entry.source == Source::Folder && !found.profiles.contains_key(manifest) {
                let (profile, source) = entry.behind.take().unwrap_or_else(|| {
                    let subject = entry.profile.subject().clone();
                    (
                        Profile::seeded(subject, &Seed::default(), now),
                        Source::Learned,
                    )
                });
                self.members.begin_anew(manifest, entry, profile, now);
                entry.source = source;
                entry.is_dirty = true;
            }
        }
        for (manifest, profile) in found.profiles {
            if !self.entries.contains_key(&manifest) && !self.make_room() {
                self.counts.unprofiled += 1;
                continue;
            }
            match self.entries.get_mut(&manifest) {
                Some(entry) => {
                    let before = self.members.begin_anew(&manifest, entry, profile, now);
                    if entry.source != Source::Folder {
                        entry.behind = Some((before, entry.source));
                    }
                    entry.source = Source::Folder;
                }
                None => {
                    let entry = Entry::new(profile, Source::Folder, now);
                    self.entries.insert(manifest, entry);
                }
            }
        }
    }
}

/// Whether an image has these bytes at this path.
fn is_in(contents: &Contents, path: &[u8], sha256: Sha256) -> bool {
    contents.lookup(path).is_some_and(
        |found| matches!(found.kind, EntryKind::File { sha256: own, .. } if own == Some(sha256)),
    )
}

fn subject(container: &Container, image: &ImageId) -> Subject {
    let reference = container.image_reference.clone().unwrap_or_default();
    Subject {
        repository: containers::repository(&reference).to_owned(),
        reference,
        manifest: image.manifest,
        config: image.config,
        chain_id: image.chain_id,
    }
}
