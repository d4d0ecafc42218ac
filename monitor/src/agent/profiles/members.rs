//! Which containers are learned from and compared with which profile.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;

use super::Entry;
use crate::{
    containers::Container,
    digest::Digest,
    profile::{ContainerNumber, Profile},
};

/// Containers of which it is kept that they are not to be learned from; beyond it one more is
/// forgotten once the daemon is started again.
const DISTRUSTED_MAX: usize = 4096;

/// How long a container is known after its end: what it did may be judged later.
const ENDED_TIME_MAX: Duration = Duration::from_secs(120);

/// A container of an image that has a profile.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) number: ContainerNumber,
    /// Manifest of its image.
    pub(super) manifest: Digest,
    container: Arc<Container>,
    /// Since when its task is gone.
    ended: Option<Instant>,
    is_trusted: bool,
}

impl Member {
    fn is(&self, container: &Container) -> bool {
        self.container.id == container.id
            && self.container.runtime_namespace == container.runtime_namespace
            && self.container.created_unix_ns == container.created_unix_ns
    }
}

/// The containers of images that have a profile, until they are removed.
#[derive(Debug)]
pub(super) struct Members {
    /// By the time of creation, which hardly two share: looked up with each event, without making a key.
    by_creation: HashMap<i128, Vec<Member>>,
    last: ContainerNumber,
    /// Names of containers that are not to be learned from.
    distrusted: HashSet<String>,
}

impl Members {
    /// With those that an earlier daemon did not learn from.
    pub(super) fn new(distrusted: HashSet<String>) -> Self {
        Self {
            by_creation: HashMap::new(),
            last: 0,
            distrusted,
        }
    }

    pub(super) fn get(&self, container: &Container) -> Option<&Member> {
        let found = self.by_creation.get(&container.created_unix_ns)?;
        found.iter().find(|member| member.is(container))
    }

    fn get_mut(&mut self, container: &Container) -> Option<&mut Member> {
        let found = self.by_creation.get_mut(&container.created_unix_ns)?;
        found.iter_mut().find(|member| member.is(container))
    }

    /// Adds one; gives its number, and whether it may be learned from.
    pub(super) fn add(
        &mut self,
        container: &Arc<Container>,
        manifest: Digest,
    ) -> (ContainerNumber, bool) {
        self.last += 1;
        let member = Member {
            number: self.last,
            manifest,
            container: Arc::clone(container),
            ended: None,
            is_trusted: !self.distrusted.contains(&name(container)),
        };
        let added = (member.number, member.is_trusted);
        let same = self.by_creation.entry(container.created_unix_ns);
        same.or_default().push(member);
        added
    }

    /// Its task has ended; `None` if it is none or had ended before.
    pub(super) fn end(&mut self, container: &Container) -> Option<Member> {
        let member = self.get_mut(container)?;
        if member.ended.is_some() {
            return None;
        }
        member.ended = Some(Instant::now());
        Some(member.clone())
    }

    pub(super) fn remove(&mut self, container: &Container) {
        if let Some(found) = self.by_creation.get_mut(&container.created_unix_ns) {
            found.retain(|member| !member.is(container));
            if found.is_empty() {
                self.by_creation.remove(&container.created_unix_ns);
            }
        }
        self.distrusted.remove(&name(container));
    }

    /// Forgets one that has ended.
    pub(super) fn forget_ended(&mut self, container: &Container) {
        if let Some(found) = self.by_creation.get_mut(&container.created_unix_ns) {
            found.retain(|member| member.ended.is_none() || !member.is(container));
        }
    }

    /// Forgets those that have ended for so long that nothing more is judged of them.
    pub(super) fn expire(&mut self) {
        let is_kept = |member: &Member| {
            let ended = member.ended;
            ended.is_none_or(|ended| ended.elapsed() < ENDED_TIME_MAX)
        };
        self.by_creation.retain(|_, found| {
            found.retain(is_kept);
            !found.is_empty()
        });
    }

    /// It is not to be learned from any more; `None` if it was not before.
    pub(super) fn distrust(&mut self, container: &Container) -> Option<Member> {
        let member = self.get_mut(container)?;
        if !std::mem::take(&mut member.is_trusted) {
            return None;
        }
        let member = member.clone();
        if self.distrusted.len() < DISTRUSTED_MAX {
            self.distrusted.insert(name(container));
        }
        Some(member)
    }

    /// Puts `profile` in the place of an entry's, for containers that run; gives the one before.
    pub(super) fn begin_anew(
        &self,
        manifest: &Digest,
        entry: &mut Entry,
        profile: Profile,
        now: Timestamp,
    ) -> Profile {
        let before = std::mem::replace(&mut entry.profile, profile);
        let members = self.by_creation.values().flatten();
        for member in members.filter(|it| it.ended.is_none() && it.manifest == *manifest) {
            entry.profile.started(member.number, now, true);
            if !member.is_trusted {
                entry.profile.content_finding(member.number, now);
            }
        }
        before
    }

    /// Names of containers that are not to be learned from, for a next daemon.
    pub(super) fn distrusted(&self) -> Vec<String> {
        let mut names: Vec<String> = self.distrusted.iter().cloned().collect();
        names.sort();
        names
    }
}

/// Names a container for a next daemon. None of the parts has a slash.
fn name(container: &Container) -> String {
    let Container {
        runtime_namespace,
        id,
        created_unix_ns,
        ..
    } = container;
    format!("{runtime_namespace}/{id}/{created_unix_ns}")
}
