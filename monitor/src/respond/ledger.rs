//! Plans and orders, and which of them may begin. Pure.

use std::collections::{BTreeMap, HashMap};

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

use super::{
    automatic::Automatic,
    order::{Planned, Refusal},
    plan::Times,
    progress::State,
};

/// Orders that are kept; of more the one that ended first goes.
pub const ORDERS_MAX: usize = 64;

/// Plans that are kept; of more the oldest goes.
pub const PLANS_MAX: usize = 64;
/// How long a plan is kept, in seconds.
pub const PLAN_SECONDS_MAX: i64 = 600;
/// Orders under way at once, each of another container.
pub const IN_FLIGHT_MAX: usize = 4;
const HOUR_SECONDS: i64 = 3600;

/// How rollbacks are carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Seconds for a container to end by its stop signal before SIGKILL; 1 to 600.
    pub grace_seconds: u32,
    /// Seconds for which the new container must stay up; 1 to 300.
    pub watch_seconds: u32,
    /// Orders that may begin within an hour; 1 to 1000.
    pub per_hour: u32,
    /// Seconds after the end of an order in which its container has no other; at most 86400.
    pub cool_down_seconds: u32,
    /// How far responses may go that rules of policies ask for.
    pub automatic: Automatic,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            grace_seconds: 10,
            watch_seconds: 2,
            per_hour: 10,
            cool_down_seconds: 30,
            automatic: Automatic::Off,
        }
    }
}

impl Settings {
    /// What is out of range: its key, its value, and what is allowed.
    pub fn out_of_range(&self) -> Option<(&'static str, u32, &'static str)> {
        let ranges = [
            (
                "respond.grace_seconds",
                self.grace_seconds,
                1..=600,
                "1 to 600",
            ),
            (
                "respond.watch_seconds",
                self.watch_seconds,
                1..=300,
                "1 to 300",
            ),
            ("respond.per_hour", self.per_hour, 1..=1000, "1 to 1000"),
            (
                "respond.cool_down_seconds",
                self.cool_down_seconds,
                0..=86_400,
                "at most 86400",
            ),
        ];
        let mut outside = ranges
            .into_iter()
            .filter(|(_, value, range, _)| !range.contains(value));
        outside
            .next()
            .map(|(key, value, _, allowed)| (key, value, allowed))
    }

    /// How often orders may begin.
    pub fn limits(&self) -> Limits {
        Limits {
            section: "respond",
            per_hour: self.per_hour,
            cool_down_seconds: self.cool_down_seconds,
        }
    }

    /// How long is waited.
    pub fn times(&self) -> Times {
        Times {
            grace_seconds: self.grace_seconds,
            watch_seconds: self.watch_seconds,
        }
    }
}

/// How often orders may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The section of the configuration where the rest is set.
    pub section: &'static str,
    /// Orders that may begin within an hour.
    pub per_hour: u32,
    /// Seconds after the end of an order in which there is no other of the same.
    pub cool_down_seconds: u32,
}

/// What a plan would change.
pub trait Subject {
    /// Its name, by which there is one order of it at a time.
    fn subject(&self) -> String;
}

/// An order, as far as others depend on it.
pub trait Kept: Clone {
    /// What it carries out.
    type Plan: Subject;

    /// Its id.
    fn id(&self) -> &str;
    /// What it carries out.
    fn plan(&self) -> &Self::Plan;
    /// How it stands.
    fn state(&self) -> State;
    /// It is under way.
    fn is_running(&self) -> bool {
        self.state() == State::Running
    }
    /// When it began.
    fn began_at(&self) -> Timestamp;
    /// When it ended.
    fn ended_at(&self) -> Option<Timestamp>;
}

/// Plans and orders.
#[derive(Debug)]
pub struct Ledger<R: Kept> {
    plans: BTreeMap<String, Planned<R::Plan>>,
    orders: BTreeMap<String, R>,
}

impl<R: Kept> Ledger<R> {
    /// Of orders that were kept.
    pub fn new(records: Vec<R>) -> Self {
        let orders = records
            .into_iter()
            .map(|record| (record.id().to_owned(), record));
        Self {
            plans: BTreeMap::new(),
            orders: orders.collect(),
        }
    }

    /// Every order, oldest first.
    pub fn orders(&self) -> impl Iterator<Item = &R> {
        self.orders.values()
    }

    /// How many orders are kept in each state, by its name.
    pub fn counts(&self) -> HashMap<String, u64> {
        let mut counts: HashMap<String, u64> =
            State::ALL.map(|state| (state.name().to_owned(), 0)).into();
        for order in self.orders() {
            *counts.entry(order.state().name().to_owned()).or_default() += 1;
        }
        counts
    }

    /// Every plan that is kept at `now`, oldest first.
    pub fn plans(&self, now: Timestamp) -> impl Iterator<Item = (&String, &Planned<R::Plan>)> {
        let is_kept = move |(_, planned): &(&String, &Planned<R::Plan>)| !has_expired(planned, now);
        self.plans.iter().filter(is_kept)
    }

    /// Keeps a plan. At [`PLANS_MAX`] the oldest goes.
    pub fn add_plan(&mut self, id: String, planned: Planned<R::Plan>) {
        let now = planned.at;
        self.plans.retain(|_, planned| !has_expired(planned, now));
        if self.plans.len() >= PLANS_MAX {
            self.plans.pop_first();
        }
        self.plans.insert(id, planned);
    }

    /// A plan that is kept at `now`.
    pub fn plan(&self, id: &str, now: Timestamp) -> Option<&Planned<R::Plan>> {
        let found = self.plans.get(id);
        found.filter(|planned| !has_expired(planned, now))
    }

    /// A plan that may be carried out, as far as the ledger knows.
    ///
    /// # Errors
    ///
    /// It is carried out already, or none is kept at `now`.
    pub fn planned(&self, id: &str, now: Timestamp) -> Result<Planned<R::Plan>, Refusal>
    where
        R::Plan: Clone,
    {
        if let Some(record) = self.order(id) {
            return Err(if record.is_running() {
                Refusal::InFlight(id.to_owned())
            } else {
                Refusal::Outdated("it was carried out".to_owned())
            });
        }
        let planned = self.plan(id, now).cloned();
        planned.ok_or_else(|| Refusal::NoPlan(id.to_owned()))
    }

    /// Forgets a plan.
    pub fn remove_plan(&mut self, id: &str) -> Option<Planned<R::Plan>> {
        self.plans.remove(id)
    }

    /// An order.
    pub fn order(&self, id: &str) -> Option<&R> {
        self.orders.get(id)
    }

    /// Changes an order, and gives what that says; `None` if there is no such order.
    pub fn change<T>(&mut self, id: &str, change: impl FnOnce(&mut R) -> T) -> Option<T> {
        self.orders.get_mut(id).map(change)
    }

    /// An order is like this now. Gives the ids of orders that made room.
    pub fn keep(&mut self, record: R) -> Vec<String> {
        self.orders.insert(record.id().to_owned(), record);
        let mut gone = Vec::new();
        while self.orders.len() > ORDERS_MAX {
            let ended = |record: &&R| !record.is_running();
            let Some(id) = (self.orders.values().find(ended)).map(|it| it.id().to_owned()) else {
                break;
            };
            self.orders.remove(&id);
            gone.push(id);
        }
        gone
    }

    /// Whether an order may begin at `now`.
    ///
    /// # Errors
    ///
    /// [`Refusal::InFlight`] or [`Refusal::Limit`].
    pub fn may_begin(
        &self,
        plan: &R::Plan,
        limits: &Limits,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let subject = plan.subject();
        let is_running = |record: &&R| record.is_running();
        let is_same = |record: &&R| record.plan().subject() == subject;
        let running = self.orders.values().filter(is_running);
        if let Some(other) = running.clone().find(is_same) {
            return Err(Refusal::InFlight(other.id().to_owned()));
        }
        if running.count() >= IN_FLIGHT_MAX {
            return Err(Refusal::Limit(format!(
                "{IN_FLIGHT_MAX} orders are under way, which is the limit; try again when one has ended"
            )));
        }
        let ended = self.orders.values().filter(is_same);
        let last = ended.filter_map(|record| record.ended_at()).max();
        if let Some(last) = last {
            let left = i64::from(limits.cool_down_seconds) - seconds(last, now);
            if left > 0 {
                return Err(Refusal::Limit(format!(
                    "an order of {subject} ended only just; try again in {left} s ({}.cool_down_seconds)",
                    limits.section
                )));
            }
        }
        let is_recent = |record: &&R| seconds(record.began_at(), now) < HOUR_SECONDS;
        let recent = self.orders.values().filter(is_recent).count();
        if u32::try_from(recent).unwrap_or(u32::MAX) >= limits.per_hour {
            return Err(Refusal::Limit(format!(
                "{recent} orders began within the hour, which is the limit ({}.per_hour)",
                limits.section
            )));
        }
        Ok(())
    }
}

fn has_expired<P>(planned: &Planned<P>, now: Timestamp) -> bool {
    seconds(planned.at, now) >= PLAN_SECONDS_MAX
}

/// Seconds from one time to another.
fn seconds(from: Timestamp, to: Timestamp) -> i64 {
    let span: SignedDuration = to.duration_since(from);
    span.as_secs()
}
