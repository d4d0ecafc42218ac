//! Which images containers were created from, and when. Pure.

use std::{
    collections::{BTreeSet, HashSet},
    num::NonZeroUsize,
};

use jiff::Timestamp;
use lru::LruCache;

use super::state::{Creation, creation};
use crate::{containers::Container, digest::Digest};

/// Images remembered; the one that no container was seen of for longest is forgotten.
const IMAGES_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");
/// References remembered of each; more are left out.
const REFERENCES_MAX: usize = 64;
/// Containers that were counted, so as not to be counted again; at the bound all are forgotten.
const COUNTED_MAX: usize = 65_536;

/// What is known of an image's containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) config: Digest,
    /// References by which they were created.
    pub(super) references: BTreeSet<String>,
    /// How many there were.
    pub(super) containers: u64,
    /// When the first was created.
    pub(super) first_seen: Timestamp,
    /// When one was last known to be there.
    pub(super) last_seen: Timestamp,
}

/// By manifest digest. Where several images account for a container each of them counts it.
pub(super) struct Usages {
    images: LruCache<Digest, Usage>,
    counted: HashSet<Creation>,
}

impl Default for Usages {
    fn default() -> Self {
        Self {
            images: LruCache::new(IMAGES_MAX),
            counted: HashSet::new(),
        }
    }
}

impl Usages {
    /// A container is there, and which images account for it is known.
    pub(super) fn seen(&mut self, container: &Container, now: Timestamp) {
        if self.counted.len() >= COUNTED_MAX {
            self.counted.clear();
        }
        let is_new = self.counted.insert(creation(container));
        let created = Timestamp::from_nanosecond(container.created_unix_ns)
            .map_or(now, |created| created.min(now));
        for image in container.identity.images() {
            let usage = self.images.get_or_insert_mut(image.manifest, || Usage {
                config: image.config,
                references: BTreeSet::new(),
                containers: 0,
                first_seen: created,
                last_seen: now,
            });
            usage.first_seen = usage.first_seen.min(created);
            usage.last_seen = usage.last_seen.max(now);
            usage.containers += u64::from(is_new);
            if let Some(reference) = &container.image_reference
                && usage.references.len() < REFERENCES_MAX
            {
                usage.references.insert(reference.clone());
            }
        }
    }

    /// A container's task has ended, or it was removed.
    pub(super) fn ended(&mut self, container: &Container, now: Timestamp) {
        for image in container.identity.images() {
            if let Some(usage) = self.images.get_mut(&image.manifest) {
                usage.last_seen = usage.last_seen.max(now);
            }
        }
    }

    /// All that is known.
    pub(super) fn all(&self) -> Vec<(Digest, Usage)> {
        let known = self.images.iter();
        known
            .map(|(digest, usage)| (*digest, usage.clone()))
            .collect()
    }
}
