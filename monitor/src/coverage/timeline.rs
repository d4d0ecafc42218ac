//! When each container was watched and when not.

use std::{collections::VecDeque, num::NonZeroUsize, sync::Arc};

use jiff::Timestamp;
use lru::LruCache;

use super::{Gap, Losses, Reason};
use crate::containers::{Container, inventory::Key};

/// Gaps that may affect every container; of more the two oldest become one.
const GAPS_MAX: usize = 256;
/// Gaps of one container, likewise.
const CONTAINER_GAPS_MAX: usize = 32;
/// Containers with gaps of their own; the gaps of the one that had none for longest become gaps
/// that may affect every container.
const CONTAINERS_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");
/// Containers that are gone and can still be asked for; of more the first asked or gone is
/// forgotten.
const REMOVED_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

/// Gaps in the order in which they were found.
#[derive(Debug, Default)]
struct Gaps(VecDeque<Gap>);

impl Gaps {
    fn add(&mut self, gap: Gap, max: usize) {
        if let Some(last) = self.0.back_mut()
            && last.reason == gap.reason
            && last.end >= gap.begin
        {
            // What goes on is one gap, and no less exact.
            join(last, &gap);
            last.merged += gap.merged - 1;
        } else {
            self.0.push_back(gap);
        }
        if self.0.len() > max
            && let Some(oldest) = self.0.pop_front()
            && let Some(next) = self.0.front_mut()
        {
            join(next, &oldest);
            next.merged += oldest.merged;
            next.reason = next.reason.min(oldest.reason);
        }
    }
}

fn join(gap: &mut Gap, other: &Gap) {
    gap.begin = gap.begin.min(other.begin);
    gap.end = gap.end.max(other.end);
    gap.losses.add_all(&other.losses);
}

/// A part of a container's time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// When it begins.
    pub begin: Timestamp,
    /// When it ends.
    pub end: Timestamp,
    /// Why not everything was seen; `None` if it was. Its own times and what was lost are of the
    /// whole gap.
    pub gap: Option<Gap>,
}

type Whose = (Key, i128);

fn whose(container: &Container) -> Whose {
    (Key::of(container), container.created_unix_ns)
}

/// The gaps of all containers since the daemon's start.
#[derive(Debug)]
pub struct Timeline {
    watched_since: Timestamp,
    of_all: Gaps,
    of: LruCache<Whose, Gaps>,
    removed: LruCache<Whose, (Arc<Container>, Timestamp)>,
}

impl Timeline {
    /// Watched from then on.
    pub fn new(watched_since: Timestamp) -> Self {
        Self {
            watched_since,
            of_all: Gaps::default(),
            of: LruCache::new(CONTAINERS_MAX),
            removed: LruCache::new(REMOVED_MAX),
        }
    }

    /// Since when is watched.
    pub fn watched_since(&self) -> Timestamp {
        self.watched_since
    }

    /// A gap was found that may affect a container, or all of them.
    pub fn add(&mut self, affected: Option<&Container>, gap: Gap) {
        let Some(container) = affected else {
            self.of_all.add(gap, GAPS_MAX);
            return;
        };
        let whose = whose(container);
        if let Some(gaps) = self.of.get_mut(&whose) {
            gaps.add(gap, CONTAINER_GAPS_MAX);
            return;
        }
        let gaps = Gaps(VecDeque::from([gap]));
        if let Some((_, forgotten)) = self.of.push(whose, gaps) {
            for gap in forgotten.0 {
                self.of_all.add(gap, GAPS_MAX);
            }
        }
    }

    /// A container is gone.
    pub fn remove(&mut self, container: &Arc<Container>, time: Timestamp) {
        let gone = (Arc::clone(container), time);
        self.removed.put(whose(container), gone);
    }

    /// The containers that are gone, and when each went.
    pub fn removed(&self) -> impl Iterator<Item = (&Arc<Container>, Timestamp)> {
        self.removed
            .iter()
            .map(|(_, (container, time))| (container, *time))
    }

    /// What is known of a container between two times, as far as it was there: it is known to have
    /// been there `until` then. Between the gaps lies what was watched; gaps of several reasons may
    /// overlap.
    pub fn spans(
        &self,
        container: &Container,
        until: Timestamp,
        from: Timestamp,
        to: Timestamp,
    ) -> Vec<Span> {
        let created = Timestamp::from_nanosecond(container.created_unix_ns).unwrap_or(from);
        let (begin, end) = (from.max(created), to.min(until));
        let of_life = if container.is_visible() {
            Gap::new(created, self.watched_since, Reason::NotWatching)
        } else {
            Gap::new(created, until, Reason::NotVisible)
        };
        let own = self.of.peek(&whose(container));
        let mut gaps: Vec<Span> = [&of_life]
            .into_iter()
            .chain(&self.of_all.0)
            .chain(own.into_iter().flat_map(|gaps| &gaps.0))
            .filter(|gap| gap.begin < end && gap.end > begin)
            .map(|gap| Span {
                begin: gap.begin.max(begin),
                end: gap.end.min(end),
                gap: Some(gap.clone()),
            })
            .collect();
        gaps.sort_by_key(|span| (span.begin, span.end));
        let mut spans = Vec::with_capacity(2 * gaps.len() + 1);
        let mut seen_to = begin;
        let watched = |begin: Timestamp, end: Timestamp| {
            (begin < end).then_some(Span {
                begin,
                end,
                gap: None,
            })
        };
        for span in gaps {
            spans.extend(watched(seen_to, span.begin));
            seen_to = seen_to.max(span.end);
            spans.push(span);
        }
        spans.extend(watched(seen_to, end));
        spans
    }
}

impl Gap {
    /// A gap in which something was lost.
    pub fn of_losses(begin: Timestamp, end: Timestamp, losses: Losses) -> Self {
        Self {
            losses,
            ..Self::new(begin, end, Reason::Lost)
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::{coverage::Cause, detect::file::tests as sample};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn container(id: &str, created: i64) -> Arc<Container> {
        let mut container = sample::container();
        let changed = Arc::make_mut(&mut container);
        changed.id = id.to_owned();
        changed.created_unix_ns = at(created).as_nanosecond();
        container
    }

    fn lost(begin: i64, end: i64) -> Gap {
        let losses = [(("exec", Cause::RingFull), 1)].into_iter().collect();
        Gap::of_losses(at(begin), at(end), losses)
    }

    fn shown(spans: &[Span]) -> Vec<(i64, i64, &'static str)> {
        spans
            .iter()
            .map(|span| {
                let reason = span.gap.as_ref().map_or("watched", |gap| gap.reason.name());
                (span.begin.as_second(), span.end.as_second(), reason)
            })
            .collect()
    }

    #[test]
    fn between_the_gaps_a_container_was_watched() {
        let own = container("own", 50);
        let check =
            |gaps: &[(Option<&str>, Gap)], (from, to): (i64, i64), expect: &[(i64, i64, &str)]| {
                let mut timeline = Timeline::new(at(100));
                for (affected, gap) in gaps {
                    let affected = affected.map(|id| container(id, 50));
                    timeline.add(affected.as_deref(), gap.clone());
                }
                let spans = timeline.spans(&own, at(1000), at(from), at(to));
                assert_eq!(shown(&spans), expect, "{gaps:?}");
            };
        let begins = (50, 100, "not_watching");
        check(&[], (0, 2000), &[begins, (100, 1000, "watched")]);
        check(&[], (200, 300), &[(200, 300, "watched")]);
        check(&[], (0, 40), &[]);
        check(&[], (1000, 2000), &[]);
        check(
            &[(Some("other"), lost(200, 300))],
            (100, 400),
            &[(100, 400, "watched")],
        );
        check(
            &[(Some("own"), lost(200, 201)), (None, lost(300, 301))],
            (150, 400),
            &[
                (150, 200, "watched"),
                (200, 201, "lost"),
                (201, 300, "watched"),
                (300, 301, "lost"),
                (301, 400, "watched"),
            ],
        );
        // What goes on is one gap; what overlaps for another reason is one of its own.
        let checked = Gap::new(at(205), at(260), Reason::SelfCheck);
        check(
            &[
                (Some("own"), lost(200, 210)),
                (Some("own"), lost(210, 220)),
                (None, checked),
            ],
            (200, 300),
            &[
                (200, 220, "lost"),
                (205, 260, "self_check"),
                (260, 300, "watched"),
            ],
        );
    }

    #[test]
    fn what_runs_out_of_sight_is_not_watched() {
        let mut hidden = container("hidden", 200);
        Arc::make_mut(&mut hidden).runtime = "io.containerd.kata.v2".to_owned();
        let spans = Timeline::new(at(100)).spans(&hidden, at(300), at(0), at(400));
        assert_eq!(shown(&spans), [(200, 300, "not_visible")]);
    }

    #[test]
    fn at_the_bounds_the_oldest_gaps_become_one() {
        let own = container("own", 0);
        let mut timeline = Timeline::new(at(0));
        let count = i64::try_from(CONTAINER_GAPS_MAX).unwrap() + 3;
        for number in 0..count {
            timeline.add(Some(&own), lost(10 * number, 10 * number + 1));
        }
        let spans = timeline.spans(&own, at(5000), at(0), at(5000));
        let gaps: Vec<&Gap> = spans.iter().filter_map(|span| span.gap.as_ref()).collect();
        assert_eq!(gaps.len(), CONTAINER_GAPS_MAX);
        let first = gaps.first().unwrap();
        assert_eq!((first.begin, first.end, first.merged), (at(0), at(31), 4));
        let lost = gaps.iter().map(|gap| gap.losses.total()).sum::<u64>();
        assert_eq!(lost, count.unsigned_abs());

        // A container forgotten leaves its gaps to all.
        for number in 0..CONTAINERS_MAX.get() {
            let other = container(&number.to_string(), 0);
            timeline.add(Some(&other), Gap::new(at(9000), at(9001), Reason::Lost));
        }
        let spans = timeline.spans(&own, at(5000), at(0), at(5000));
        let lost: u64 = spans
            .iter()
            .filter_map(|span| Some(span.gap.as_ref()?.losses.total()))
            .sum();
        assert_eq!(lost, count.unsigned_abs());
    }
}
