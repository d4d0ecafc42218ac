//! The owner's part for what was not seen: compares the account with what it was, tells gaps, and
//! checks that the daemon sees itself.

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use monitor_api::v1;
use monitor_common::{
    Hook,
    loss::{LOSSES_MAX, LossCause, LossTotals},
};

use super::{
    owed::{self, Debts},
    owner::Owner,
    probe::{self, Probe},
    query::CoverageQuestion,
    state::{Done, Pending, What},
};
use crate::{
    alerts::{
        build::{since_boot, timestamp},
        gap,
    },
    api::CoverageError,
    clock,
    containers::{Container, hierarchy::Hierarchy, inventory::Key, meant},
    coverage::{
        ANY_HOOK, Affected, Cause, Due, Folding, Gap, Loss, Losses, Named, Reason, SelfCheck,
        SelfCheckCounts, Span, Tally, Timeline,
    },
    sensor::{
        Sensor, Told,
        account::{Account, Lost},
        event::{Event, Owed},
        hooks,
    },
};

/// Between two looks at the account while events come; without events it is looked at with each
/// tick.
const LOOK_INTERVAL_NS: u64 = 100_000_000;

/// How long it is waited until it becomes known whose cgroup a loss is of; then it may be any
/// container's.
const UNPLACED_NS_MAX: u64 = 5_000_000_000;

/// How long it is waited at the end until what was told is written.
const WRITTEN_TIME_MAX: Duration = Duration::from_secs(1);

/// Losses of a cgroup of which it is not known whose it is.
struct Unplaced {
    /// Its path, if it was there when the loss was found out.
    path: Option<Vec<u8>>,
    found_ns: u64,
    loss: Loss,
}

/// What the owner knows of what was not seen.
pub(super) struct Coverage {
    hierarchy: Hierarchy,
    tally: Tally,
    folding: Folding,
    /// By cgroup and mount namespace, at most [`LOSSES_MAX`]; then none waits longer.
    unplaced: HashMap<(u64, u32), Unplaced>,
    timeline: Timeline,
    totals: Losses,
    /// Of these, by whose they were.
    lost: Vec<Lost>,
    /// Lost by the owner itself since the last look.
    own: Losses,
    /// Of what it lost and has not told, what came by records.
    own_owed: Owed,
    debts: Debts,
    /// What was told of what the kernel side lost, by this daemon and those before it.
    told: Losses,
    /// The cursor of the last gap that was told.
    told_cursor: u64,
    /// What a next daemon is to know as told once the gaps up to a cursor are written.
    leaving: Option<(u64, Told)>,
    /// What it is to know as told by now.
    left: Told,
    looked_ns: u64,
    /// While containerd tells nothing: up to when that was noted.
    unconnected_to: Option<Timestamp>,
    probe: Result<Probe, String>,
    self_check: SelfCheck,
    gaps: u64,
}

/// For the status.
#[derive(Clone, Debug)]
pub(super) struct CoverageFacts {
    /// Gaps that were told.
    gaps: u64,
    self_check: SelfCheckCounts,
    /// Why there is no self-check.
    probe_error: String,
}

impl Coverage {
    /// Goes on after daemons before this one.
    pub(super) fn new(hierarchy: Hierarchy, watched_since: Timestamp, sensor: &Sensor) -> Self {
        let told = sensor.told();
        let (mut totals, mut own) = (Losses::default(), Losses::default());
        let own_owed = sensor.left_untold();
        for hook in hooks::KINDS {
            let untold = own_owed.count(hook);
            own.add((hooks::kind_name(hook), Cause::Stopped), untold);
            add_of_hook(&mut totals, hook, &told.hook(hook));
        }
        let until_ns = told.hooks.iter().map(|told| told.until_boot_ns).max();
        let probe = Probe::new(&hierarchy).map_err(|error| format!("{error:#}"));
        if let Err(error) = &probe {
            tracing::warn!(error, "the daemon cannot check that it sees what happens");
        }
        Self {
            hierarchy,
            tally: Tally::resume(&totals, told.lost.iter().map(named)),
            told: totals.clone(),
            told_cursor: 0,
            leaving: None,
            left: told.clone(),
            debts: Debts::resume(told.hooks.map(|told| told.told_later)),
            own_owed,
            folding: Folding::default(),
            unplaced: HashMap::new(),
            timeline: Timeline::new(watched_since),
            totals,
            lost: told.lost.clone(),
            own,
            looked_ns: until_ns
                .filter(|until_ns| *until_ns > 0)
                .unwrap_or_else(clock::boot_ns),
            unconnected_to: None,
            probe,
            self_check: SelfCheck::default(),
            gaps: 0,
        }
    }

    pub(super) fn facts(&self) -> CoverageFacts {
        CoverageFacts {
            gaps: self.gaps,
            self_check: self.self_check.counts().clone(),
            probe_error: self.probe.as_ref().err().cloned().unwrap_or_default(),
        }
    }

    /// A use of a file was given up.
    pub(super) fn lost(&mut self, pending: &Pending, cause: Cause) {
        self.own_owed.add(&pending.what.used().receipt.owe());
        let hook = match pending.what {
            What::Exec(_) => "exec",
            What::Code(_) => "code",
            What::Open(..) => "open",
            What::Connect(_) => "connect",
        };
        self.own.add((hook, cause), 1);
    }

    /// The alert at `cursor` tells of `owed`.
    pub(super) fn alert_told(&mut self, cursor: u64, owed: Owed) {
        self.debts.told(cursor, owed);
    }

    /// Whether the event is one of the daemon's check of itself, which is noted and no more.
    pub(super) fn is_own(&mut self, event: &Event) -> bool {
        let Some(used) = event.used() else {
            return false;
        };
        let is_own = (self.probe.as_ref()).is_ok_and(|probe| probe.cgroup_id == used.cgroup.id);
        if is_own {
            let kind = hooks::kind_name(event.kind());
            self.self_check.seen(kind, clock::boot_ns());
        }
        is_own
    }

    /// containerd tells no more of its containers.
    pub(super) fn disconnected(&mut self) {
        self.unconnected_to.get_or_insert_with(Timestamp::now);
    }

    /// containerd has told of all containers.
    pub(super) fn listed(&mut self) {
        self.note_unconnected();
        self.unconnected_to = None;
    }

    fn note_unconnected(&mut self) {
        if let Some(since) = self.unconnected_to {
            let now = Timestamp::now();
            let gap = Gap::new(since, now, Reason::ContainerdLost);
            self.timeline.add(None, gap);
            self.unconnected_to = Some(now);
        }
    }

    pub(super) fn removed(&mut self, container: &Arc<Container>) {
        self.timeline.remove(container, Timestamp::now());
    }

    /// What a next daemon is to know as told. The names are those of the last time at which all was
    /// told: of what was lost since, only the number is told.
    fn told(&self, now_ns: u64) -> Told {
        let is_all = self.unplaced.is_empty() && self.folding.is_told();
        let mut told = self.left.clone();
        for hook in hooks::KINDS {
            let Some(left) = told.hooks.get_mut(hook as usize) else {
                continue;
            };
            let of = |cause| self.told.get((hooks::kind_name(hook), cause));
            *left = LossTotals {
                ring_full: of(Cause::RingFull),
                map_full: of(Cause::MapFull),
                unreadable: of(Cause::Unreadable),
                recursion_misses: of(Cause::RecursionMisses),
                told_later: 0,
                until_boot_ns: if is_all { now_ns } else { left.until_boot_ns },
            };
        }
        if is_all {
            told.lost.clone_from(&self.lost);
        }
        told
    }
}

impl Owner {
    /// Looks at the account, at most every [`LOOK_INTERVAL_NS`].
    pub(super) fn look_between(&mut self) {
        let since = clock::boot_ns().saturating_sub(self.coverage.looked_ns);
        if since >= LOOK_INTERVAL_NS {
            self.look();
        }
    }

    /// Looks at the account and tells what was lost.
    pub(super) fn look(&mut self) {
        self.give_up_late();
        let account = self.sensor.as_mut().map(Sensor::account);
        if let (Some(sensor), Some(account)) = (&self.sensor, &account) {
            let totals = totals(account, self.state.counts.failed);
            // Only then, since it asks for each cgroup.
            if totals != self.coverage.totals {
                let lost = sensor.losses();
                self.account(totals, lost);
            }
        }
        let now_ns = clock::boot_ns();
        let own = std::mem::take(&mut self.coverage.own);
        self.fold(None, own, now_ns);
        self.place_losses(now_ns.saturating_sub(UNPLACED_NS_MAX));
        self.coverage.looked_ns = now_ns;
        for (affected, loss) in self.coverage.folding.take_due(now_ns) {
            self.tell_loss(affected, loss);
        }
        self.coverage.note_unconnected();
        self.leave_told(now_ns);
    }

    /// Leaves to a next daemon what has been told and written: what is lost with this one is told by
    /// the next.
    fn leave_told(&mut self, now_ns: u64) {
        let newest = self.log.newest();
        let coverage = &mut self.coverage;
        let Some(sensor) = &mut self.sensor else {
            return;
        };
        if let Some((_, told)) = coverage.leaving.take_if(|(cursor, _)| *cursor <= newest) {
            coverage.left = told;
        }
        if coverage.leaving.is_none() && sensor.is_scanned() {
            coverage.leaving = Some((coverage.told_cursor, coverage.told(now_ns)));
        }
        let mut told = coverage.left.clone();
        let mut told_later = coverage.debts.settle(newest, sensor.let_go());
        owed::add(&mut told_later, sensor.told_later());
        for (told, told_later) in told.hooks.iter_mut().zip(told_later) {
            told.told_later = told_later;
        }
        if let Err(error) = sensor.set_told(told) {
            tracing::warn!(%error, "cannot keep what was told of losses; the next monitord tells it again");
        }
    }

    /// Takes in the account of a sensor that has stopped.
    pub(super) fn account_at_end(&mut self, account: &Account, lost: Vec<Lost>) {
        let totals = totals(account, self.state.counts.failed);
        self.account(totals, lost);
    }

    /// Tells what is left to be told, while a next daemon can still be left word of it.
    pub(super) async fn look_before_next(&mut self) {
        self.tell_all();
        // Once more when it is written.
        let counted = self.state.aggregator.flush(clock::boot_ns());
        let last = self.append(counted).unwrap_or(0);
        let last = last.max(self.coverage.told_cursor);
        if tokio::time::timeout(WRITTEN_TIME_MAX, self.log.written(last))
            .await
            .is_err()
        {
            tracing::warn!(
                "the journal is not written; the next monitord tells again what was lost"
            );
        }
        // The first takes note of what was told before it.
        for _ in 0..2 {
            self.leave_told(clock::boot_ns());
        }
    }

    /// Tells what is left to be told, and what is left unjudged by this daemon and any next one.
    pub(super) fn look_at_end(&mut self, unread: usize) {
        for pending in &self.state.waiting {
            self.coverage.lost(pending, Cause::Stopped);
        }
        let unjudged = self.state.uses_in_flight.len() + self.state.sourced.len() + unread;
        let kind = (ANY_HOOK, Cause::Stopped);
        self.coverage.own.add(kind, unjudged as u64);
        self.tell_all();
    }

    fn tell_all(&mut self) {
        self.look();
        self.place_losses(u64::MAX);
        for (affected, loss) in self.coverage.folding.take_all() {
            self.tell_loss(affected, loss);
        }
    }

    fn account(&mut self, totals: Losses, lost: Vec<Lost>) {
        let now_ns = clock::boot_ns();
        let names = lost.iter().map(named);
        let (grown, unnamed) = self.coverage.tally.grown(&totals, names);
        self.coverage.totals = totals;
        self.coverage.lost = lost;
        let mut by_cgroup: HashMap<(u64, u32), Losses> = HashMap::new();
        for (named, count) in grown {
            let whose = (named.cgroup_id, named.mount_namespace);
            by_cgroup.entry(whose).or_default().add(named.kind, count);
        }
        let begin_ns = self.coverage.looked_ns;
        for (whose, losses) in by_cgroup {
            if self.coverage.unplaced.len() >= LOSSES_MAX as usize {
                self.place_losses(u64::MAX);
            }
            let Coverage {
                hierarchy,
                unplaced,
                ..
            } = &mut self.coverage;
            let known = unplaced.entry(whose).or_insert_with(|| Unplaced {
                path: hierarchy.path_of(whose.0),
                found_ns: now_ns,
                loss: Loss {
                    begin_ns,
                    end_ns: now_ns,
                    losses: Losses::default(),
                },
            });
            known.loss.end_ns = now_ns;
            known.loss.losses.add_all(&losses);
        }
        self.fold(None, unnamed, now_ns);
    }

    /// Finds out whose the losses are; those found until `until_ns` are told at the latest now.
    fn place_losses(&mut self, until_ns: u64) {
        let unplaced = std::mem::take(&mut self.coverage.unplaced);
        for ((cgroup_id, mount_namespace), one) in unplaced {
            let path = || one.path.clone();
            let time_ns = one.loss.begin_ns;
            let container = self
                .inventory
                .of_task(cgroup_id, path, mount_namespace, time_ns);
            if container.is_some() || one.found_ns <= until_ns {
                self.coverage.folding.add(container, one.loss);
            } else {
                let whose = (cgroup_id, mount_namespace);
                self.coverage.unplaced.insert(whose, one);
            }
        }
    }

    fn fold(&mut self, affected: Option<&Arc<Container>>, losses: Losses, now_ns: u64) {
        let begin_ns = self.coverage.looked_ns;
        let loss = Loss {
            begin_ns,
            end_ns: now_ns,
            losses,
        };
        self.coverage.folding.add(affected, loss);
    }

    fn tell_loss(&mut self, affected: Affected, loss: Loss) {
        let begin = since_boot(&self.node, loss.begin_ns);
        let end = since_boot(&self.node, loss.end_ns);
        self.coverage.told.add_all(&loss.losses);
        let is_of_anybody = affected.is_none();
        let cursor = self.tell_gap(affected, Gap::of_losses(begin, end, loss.losses));
        self.coverage.told_cursor = cursor;
        // All that the owner itself lost is of anybody.
        if is_of_anybody {
            let owed = std::mem::take(&mut self.coverage.own_owed);
            self.coverage.debts.told(cursor, owed);
        }
    }

    /// Gives its cursor.
    fn tell_gap(&mut self, affected: Affected, gap: Gap) -> u64 {
        let now = Timestamp::now();
        let cursor = self.log.append(gap::build(
            &gap,
            &affected,
            &self.node,
            now,
            ulid::Ulid::new(),
        ));
        self.coverage.gaps += 1;
        self.profile_lost(affected.as_deref(), now);
        self.coverage.timeline.add(affected.as_deref(), gap);
        cursor
    }

    /// Begins a check when it is time, and tells if one was not seen.
    pub(super) fn check_self(&mut self) {
        let Ok(probe) = &self.coverage.probe else {
            return;
        };
        let Some(sensor) = &self.sensor else {
            return;
        };
        let expected = probe::kinds(sensor.choices());
        let command = probe.command();
        let now_ns = clock::boot_ns();
        let last_ns = self.coverage.self_check.counts().last_success_ns;
        match self.coverage.self_check.due(now_ns, &expected) {
            Due::Nothing => {}
            Due::Begin => {
                self.state
                    .in_flight
                    .spawn_blocking(|| Done::Checked(probe::carry_out(command)));
            }
            Due::Missed(kinds) => {
                tracing::error!(?kinds, "what the daemon did to check itself was not seen");
                let now = Timestamp::now();
                let begin = last_ns.map(|last_ns| since_boot(&self.node, last_ns));
                let begin = begin.unwrap_or_else(|| self.coverage.timeline.watched_since());
                let mut gap = Gap::new(begin, now, Reason::SelfCheck);
                for kind in kinds {
                    gap.losses.add((kind, Cause::Unseen), 1);
                }
                self.tell_gap(None, gap);
            }
        }
    }

    pub(super) fn checked(&mut self, result: Result<(), String>) {
        if let Err(error) = &result {
            tracing::warn!(error, "the daemon cannot check that it sees what happens");
        }
        self.coverage.self_check.done(result, clock::boot_ns());
    }

    /// What is known of a container's coverage.
    pub(super) fn coverage_of(
        &mut self,
        question: &CoverageQuestion,
    ) -> Result<v1::CoverageResponse, CoverageError> {
        self.look();
        let now = Timestamp::now();
        let timeline = &self.coverage.timeline;
        let live = self.inventory.containers();
        let candidates = live
            .map(|(container, _)| (container, now))
            .chain(timeline.removed());
        let (container, until) = choose(candidates, &question.container)?;
        let from = question.from.unwrap_or(Timestamp::MIN);
        let to = question.to.unwrap_or(now);
        let spans = timeline.spans(container, until, from, to);
        Ok(v1::CoverageResponse {
            container: Some(crate::alerts::build::container_of(container)),
            spans: spans.iter().map(span).collect(),
        })
    }
}

/// The one that `wanted` means: by its whole id, else by name or the beginning of an id. Of several
/// creations of an id it is the last.
fn choose<'a>(
    candidates: impl Iterator<Item = (&'a Arc<Container>, Timestamp)>,
    wanted: &str,
) -> Result<(&'a Arc<Container>, Timestamp), CoverageError> {
    let mut last: HashMap<Key, (&Arc<Container>, Timestamp)> = HashMap::new();
    for (container, until) in candidates {
        let known = last.entry(Key::of(container)).or_insert((container, until));
        if known.0.created_unix_ns < container.created_unix_ns {
            *known = (container, until);
        }
    }
    let last: Vec<_> = last.into_values().collect();
    let found = meant(&last, wanted, |(one, _)| Some((&one.id, &one.name)));
    match found.as_slice() {
        [one] => Ok(*one),
        [] => Err(CoverageError::NoContainer(wanted.to_owned())),
        several => Err(CoverageError::Ambiguous {
            container: wanted.to_owned(),
            count: several.len(),
        }),
    }
}

fn named(lost: &Lost) -> (Named, u64) {
    let cause = match lost.cause {
        LossCause::RingFull => Cause::RingFull,
        LossCause::MapFull => Cause::MapFull,
        LossCause::Unreadable => Cause::Unreadable,
    };
    let named = Named {
        cgroup_id: lost.cgroup_id,
        mount_namespace: lost.mount_namespace,
        kind: (hooks::kind_name(lost.hook), cause),
    };
    (named, lost.count)
}

fn add_of_hook(totals: &mut Losses, hook: Hook, lost: &LossTotals) {
    let name = hooks::kind_name(hook);
    totals.add((name, Cause::RingFull), lost.ring_full);
    totals.add((name, Cause::MapFull), lost.map_full);
    totals.add((name, Cause::Unreadable), lost.unreadable);
    totals.add((name, Cause::RecursionMisses), lost.recursion_misses);
}

/// All that is lost by the account.
fn totals(account: &Account, failed: u64) -> Losses {
    let mut totals = Losses::default();
    for hook in hooks::KINDS {
        add_of_hook(&mut totals, hook, &account.hook(hook).losses(0));
    }
    totals.add((ANY_HOOK, Cause::Undecodable), account.undecodable);
    totals.add((ANY_HOOK, Cause::Failed), failed);
    totals.add(("exec", Cause::HeldEvicted), account.held.evicted);
    totals.add(("exec", Cause::HeldOverflow), account.held.queue_overflows);
    totals
}

fn span(span: &Span) -> v1::CoverageSpan {
    let gap = span.gap.as_ref();
    let owned = |counts: std::collections::BTreeMap<&'static str, u64>| {
        let counts = counts.into_iter();
        counts
            .map(|(name, count)| (name.to_owned(), count))
            .collect()
    };
    v1::CoverageSpan {
        begin: Some(timestamp(span.begin)),
        end: Some(timestamp(span.end)),
        state: if gap.is_some() { "gap" } else { "watched" }.to_owned(),
        reason: gap.map_or("", |gap| gap.reason.name()).to_owned(),
        hooks: gap
            .map(|gap| owned(gap.losses.by_hook()))
            .unwrap_or_default(),
        causes: gap
            .map(|gap| owned(gap.losses.by_cause()))
            .unwrap_or_default(),
        merged: gap.map_or(0, |gap| gap.merged),
    }
}

/// Says it in the status.
pub(super) fn status(
    facts: &CoverageFacts,
    boot: &crate::alerts::NodeFacts,
) -> v1::status::Coverage {
    let counts = &facts.self_check;
    let error = if facts.probe_error.is_empty() {
        &counts.error
    } else {
        &facts.probe_error
    };
    v1::status::Coverage {
        gaps: facts.gaps,
        self_check: Some(v1::status::SelfCheck {
            last_success: counts
                .last_success_ns
                .map(|ns| timestamp(since_boot(boot, ns))),
            succeeded: counts.succeeded,
            missed: counts.missed,
            failed: counts.failed,
            error: error.clone(),
        }),
    }
}
