//! What was and was not seen: losses become gaps, and gaps a time line of each container. No I/O
//! and no clock.

mod folding;
mod self_check;
mod tally;
mod timeline;

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;

pub use self::{
    folding::{Folding, INTERVAL_NS, Loss},
    self_check::{Due, SelfCheck, SelfCheckCounts},
    tally::{Named, Tally},
    timeline::{Span, Timeline},
};
use crate::containers::Container;

/// Where something was lost on the way from a hook to a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// The ring buffer was full.
    RingFull,
    /// The CPU was in the middle of as many hooks as the kernel side has room for.
    MapFull,
    /// A kernel structure could not be read.
    Unreadable,
    /// The kernel skipped the hook's program, because it was already running on that CPU.
    RecursionMisses,
    /// A record was not readable as such.
    Undecodable,
    /// It never became known whose it was.
    ExpiredUnknown,
    /// A defect of this program.
    Failed,
    /// The executed file was let go before it was compared.
    HeldEvicted,
    /// fanotify's queue was full; how many files each time is not known.
    HeldOverflow,
    /// A daemon stopped or was killed before it was judged, or before that was told.
    Stopped,
    /// Done by the daemon to check itself, and not seen.
    Unseen,
}

impl Cause {
    /// As alerts and the API name it: the account's names.
    pub fn name(self) -> &'static str {
        match self {
            Self::RingFull => "ring_full",
            Self::MapFull => "map_full",
            Self::Unreadable => "unreadable",
            Self::RecursionMisses => "recursion_misses",
            Self::Undecodable => "undecodable",
            Self::ExpiredUnknown => "expired_unknown",
            Self::Failed => "failed",
            Self::HeldEvicted => "held_evicted",
            Self::HeldOverflow => "held_overflow",
            Self::Stopped => "stopped",
            Self::Unseen => "unseen",
        }
    }
}

/// A kind of event as the API names it, and a cause.
pub type LossKind = (&'static str, Cause);

/// How much was lost of which kind of event, and why. Bounded by the kinds of events and the
/// causes there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Losses(BTreeMap<LossKind, u64>);

/// Name of a kind of event that is not known.
pub const ANY_HOOK: &str = "any";

impl Losses {
    /// `count` more of a kind; nothing for 0.
    pub fn add(&mut self, kind: LossKind, count: u64) {
        if count > 0 {
            let sum = self.0.entry(kind).or_default();
            *sum = sum.saturating_add(count);
        }
    }

    /// All of `other` more.
    pub fn add_all(&mut self, other: &Self) {
        for (kind, count) in other.iter() {
            self.add(kind, count);
        }
    }

    /// Whether nothing was lost.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.0
            .values()
            .fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// How many of a kind.
    pub fn get(&self, kind: LossKind) -> u64 {
        self.0.get(&kind).copied().unwrap_or(0)
    }

    /// Each kind and how many.
    pub fn iter(&self) -> impl Iterator<Item = (LossKind, u64)> {
        self.0.iter().map(|(kind, count)| (*kind, *count))
    }

    /// How many of each kind of event.
    pub fn by_hook(&self) -> BTreeMap<&'static str, u64> {
        self.by(|(hook, _)| hook)
    }

    /// How many by each cause.
    pub fn by_cause(&self) -> BTreeMap<&'static str, u64> {
        self.by(|(_, cause)| cause.name())
    }

    fn by(&self, name: impl Fn(LossKind) -> &'static str) -> BTreeMap<&'static str, u64> {
        let mut sums = BTreeMap::new();
        for (kind, count) in self.iter() {
            let sum: &mut u64 = sums.entry(name(kind)).or_default();
            *sum = sum.saturating_add(count);
        }
        sums
    }
}

impl FromIterator<(LossKind, u64)> for Losses {
    fn from_iter<T: IntoIterator<Item = (LossKind, u64)>>(kinds: T) -> Self {
        let mut losses = Self::default();
        for (kind, count) in kinds {
            losses.add(kind, count);
        }
        losses
    }
}

/// Why not everything was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Events were lost.
    Lost,
    /// The daemon was not running.
    NotWatching,
    /// containerd did not tell of its containers.
    ContainerdLost,
    /// What the daemon did to check itself was not seen.
    SelfCheck,
    /// The node's kernel does not see what the container's runtime runs.
    NotVisible,
}

impl Reason {
    /// As alerts and the API name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::NotWatching => "not_watching",
            Self::ContainerdLost => "containerd_lost",
            Self::SelfCheck => "self_check",
            Self::NotVisible => "not_visible",
        }
    }
}

/// A time in which not everything was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The last time before it at which nothing was missing.
    pub begin: Timestamp,
    /// The first time after it.
    pub end: Timestamp,
    /// Why.
    pub reason: Reason,
    /// What was lost, as far as it could be counted.
    pub losses: Losses,
    /// How many gaps were made one to keep memory bounded, with the time between them; 1 if it is
    /// exact.
    pub merged: u64,
}

impl Gap {
    /// An exact gap without a count.
    pub fn new(begin: Timestamp, end: Timestamp, reason: Reason) -> Self {
        Self {
            begin,
            end: end.max(begin),
            reason,
            losses: Losses::default(),
            merged: 1,
        }
    }
}

/// Whom a gap may affect: a container, or all of them.
pub type Affected = Option<Arc<Container>>;
