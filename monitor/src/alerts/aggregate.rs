//! Repeats of an alert become revisions of it.
//!
//! The first of its kind for a container and a file is given on at once, whatever else happens. A
//! repeat counts into it; the count is given on as a revision, with the same id, at most every
//! [`REVISION_INTERVAL`]. A container that exceeds its budget raises one `alert_storm`, and its
//! repeats are told more rarely until it is quiet again; what is new is still given on at once.
//!
//! Pure: times are nanoseconds since boot that the caller reads.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use lru::LruCache;
use monitor_api::{
    SCHEMA,
    v1::{Alert, Severity, alert},
};
use ulid::Ulid;

use crate::sensor::event::{Owed, Receipt};

/// Least time between two revisions of an alert.
pub const REVISION_INTERVAL: Duration = Duration::from_secs(10);

/// The same in a container that is storming.
pub const STORM_REVISION_INTERVAL: Duration = Duration::from_secs(60);

/// New alerts of one container in [`STORM_WINDOW`] before it is storming.
pub const STORM_ALERTS: u32 = 1000;

/// The time over which a container's new alerts are counted.
pub const STORM_WINDOW: Duration = Duration::from_secs(60);

/// Alerts that repeats are counted into; of more, the one that was repeated longest ago is closed:
/// what it counted is given on, and the next of its kind is a new alert.
const OPEN_MAX: NonZeroUsize = NonZeroUsize::new(16_384).expect("not zero");

/// Containers whose alerts are counted; of more, the one that had none for longest is forgotten.
const CONTAINERS_MAX: NonZeroUsize = NonZeroUsize::new(16_384).expect("not zero");

/// Counts repeats.
#[derive(Debug)]
pub struct Aggregator {
    open: LruCache<Key, Open>,
    containers: LruCache<Place, Budget>,
    /// Of the repeats that revisions have told since it was last asked.
    told: Owed,
    /// Cheap to ask often: there is nothing due before.
    next_due_ns: u64,
}

/// A container, told from a later one of the same name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Place {
    runtime_namespace: String,
    id: String,
    created: Option<(i64, i32)>,
}

/// What makes an alert a repeat of another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    place: Place,
    kind: String,
    rule: String,
    path: Vec<u8>,
    seen_sha256: String,
    hash_state: String,
    executable: Vec<u8>,
    peer: Option<Peer>,
}

/// Protocol, address and port.
type Peer = (String, Vec<u8>, Option<u32>);

#[derive(Debug)]
struct Open {
    alert: Alert,
    told_ns: u64,
    /// Repeats that no revision has told.
    is_changed: bool,
    /// Of them, those whose records need not stay.
    owed: Owed,
}

#[derive(Clone, Copy, Debug)]
struct Budget {
    since_ns: u64,
    alerts: u32,
    is_storming: bool,
}

impl Aggregator {
    /// Goes on with the alerts that a log holds, in their order, at `now_ns`.
    pub fn resume(alerts: &[Arc<Alert>], now_ns: u64) -> Self {
        let mut open = LruCache::new(OPEN_MAX);
        for alert in alerts.iter().filter(|alert| alert.kind != STORM) {
            let resumed = Open {
                alert: Alert::clone(alert),
                told_ns: now_ns,
                is_changed: false,
                owed: Owed::default(),
            };
            // A later revision replaces an earlier one.
            open.push(key(alert), resumed);
        }
        Self {
            open,
            containers: LruCache::new(CONTAINERS_MAX),
            told: Owed::default(),
            next_due_ns: u64::MAX,
        }
    }

    /// What is to be given on for `alert`, which was just raised of a record, or of what came by none.
    /// A record that is only counted is owed until a revision tells of it.
    pub fn take_of(&mut self, receipt: &Receipt, alert: Alert, now_ns: u64) -> Vec<Alert> {
        let key = key(&alert);
        let interval = self.interval(&key.place);
        if let Some(open) = self.open.get_mut(&key) {
            open.count(&alert);
            let due = open.told_ns.saturating_add(nanos(interval));
            if due <= now_ns {
                return vec![open.revise(now_ns, &mut self.told)];
            }
            open.owed.add(&receipt.owe());
            self.next_due_ns = self.next_due_ns.min(due);
            return Vec::new();
        }
        let storm = self.spend(&key.place, &alert, now_ns);
        let mut given = vec![alert.clone()];
        given.extend(storm);
        let opened = Open {
            alert,
            told_ns: now_ns,
            is_changed: false,
            owed: Owed::default(),
        };
        if let Some((_, mut closed)) = self.open.push(key, opened)
            && closed.is_changed
        {
            given.push(closed.revise(now_ns, &mut self.told));
        }
        given
    }

    /// What is to be given on when more is known of `alert`, which was raised before: its details.
    /// They are told at once the first time, then with the repeats.
    pub fn amend(&mut self, alert: &Alert, now_ns: u64) -> Option<Alert> {
        let open = self.open.get_mut(&key(alert))?;
        let more = alert.details.as_ref()?;
        let own = &mut open.alert.details.get_or_insert_default().fields;
        let mut more = more.fields.iter();
        if more
            .clone()
            .all(|(name, value)| own.get(name) == Some(value))
        {
            return None;
        }
        let is_first = more.clone().any(|(name, _)| !own.contains_key(name));
        own.extend(
            more.by_ref()
                .map(|(name, value)| (name.clone(), value.clone())),
        );
        open.is_changed = true;
        if is_first {
            return Some(open.revise(now_ns, &mut self.told));
        }
        let due = open.told_ns.saturating_add(nanos(REVISION_INTERVAL));
        self.next_due_ns = self.next_due_ns.min(due);
        None
    }

    /// The revisions that are due.
    pub fn due(&mut self, now_ns: u64) -> Vec<Alert> {
        if now_ns < self.next_due_ns {
            return Vec::new();
        }
        self.next_due_ns = u64::MAX;
        let mut due = Vec::new();
        for (key, open) in &mut self.open {
            if !open.is_changed {
                continue;
            }
            let storms = self
                .containers
                .peek(&key.place)
                .is_some_and(|budget| budget.is_storming);
            let at = open.told_ns.saturating_add(nanos(interval(storms)));
            if at <= now_ns {
                due.push(open.revise(now_ns, &mut self.told));
            } else {
                self.next_due_ns = self.next_due_ns.min(at);
            }
        }
        due
    }

    /// The revisions of all that was counted, due or not.
    pub fn flush(&mut self, now_ns: u64) -> Vec<Alert> {
        let told = &mut self.told;
        let changed = self.open.iter_mut().filter(|(_, open)| open.is_changed);
        changed.map(|(_, open)| open.revise(now_ns, told)).collect()
    }

    /// What was owed and is told by what was given since this was last asked.
    pub fn take_told(&mut self) -> Owed {
        std::mem::take(&mut self.told)
    }

    fn interval(&self, place: &Place) -> Duration {
        interval(
            self.containers
                .peek(place)
                .is_some_and(|budget| budget.is_storming),
        )
    }

    /// Counts a new alert of a container; the storm, if this begins one.
    fn spend(&mut self, place: &Place, alert: &Alert, now_ns: u64) -> Option<Alert> {
        let new = Budget {
            since_ns: now_ns,
            alerts: 0,
            is_storming: false,
        };
        let budget = self.containers.get_or_insert_mut(place.clone(), || new);
        if now_ns.saturating_sub(budget.since_ns) >= nanos(STORM_WINDOW) {
            // It goes on storming only while each window is exceeded.
            budget.is_storming &= budget.alerts > STORM_ALERTS;
            (budget.since_ns, budget.alerts) = (now_ns, 0);
        }
        budget.alerts = budget.alerts.saturating_add(1);
        if budget.alerts <= STORM_ALERTS || budget.is_storming {
            return None;
        }
        budget.is_storming = true;
        Some(storm(alert))
    }
}

impl Open {
    fn count(&mut self, repeat: &Alert) {
        self.alert.count = self.alert.count.saturating_add(repeat.count);
        let later = |time: &Option<prost_types::Timestamp>| {
            time.as_ref().map(|time| (time.seconds, time.nanos))
        };
        if later(&repeat.last_seen) > later(&self.alert.last_seen) {
            self.alert.last_seen = repeat.last_seen;
        }
        self.alert.observed_time = repeat.observed_time;
        self.is_changed = true;
    }

    fn revise(&mut self, now_ns: u64, told: &mut Owed) -> Alert {
        told.add(&std::mem::take(&mut self.owed));
        self.alert.revision = self.alert.revision.saturating_add(1);
        self.told_ns = now_ns;
        self.is_changed = false;
        self.alert.clone()
    }
}

const STORM: &str = "alert_storm";

fn interval(is_storming: bool) -> Duration {
    if is_storming {
        STORM_REVISION_INTERVAL
    } else {
        REVISION_INTERVAL
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn key(alert: &Alert) -> Key {
    let container = alert.container.clone().unwrap_or_default();
    let file = alert.file.clone().unwrap_or_default();
    Key {
        place: Place {
            runtime_namespace: container.runtime_namespace,
            id: container.id,
            created: container
                .created_at
                .map(|created| (created.seconds, created.nanos)),
        },
        kind: alert.kind.clone(),
        rule: alert
            .rule
            .as_ref()
            .map(|rule| rule.id.clone())
            .unwrap_or_default(),
        path: file.path,
        seen_sha256: file.seen_sha256,
        hash_state: file.hash_state,
        executable: alert
            .process
            .as_ref()
            .map(|process| process.executable.clone())
            .unwrap_or_default(),
        peer: alert
            .connection
            .as_ref()
            .map(|peer| (peer.protocol.clone(), peer.address.clone(), peer.port)),
    }
}

/// Says that the container of `cause` raises more than its budget.
fn storm(cause: &Alert) -> Alert {
    Alert {
        schema: SCHEMA.to_owned(),
        id: Ulid::new().to_string(),
        revision: 1,
        fingerprint: String::new(),
        count: 1,
        kind: STORM.to_owned(),
        severity: Severity::Medium.into(),
        rule: Some(alert::Rule {
            id: "aggregation.alert_storm".to_owned(),
            version: "1".to_owned(),
        }),
        attack: Vec::new(),
        message: format!(
            "the container raised more than {STORM_ALERTS} different alerts within {} s; repeats of them are told every {} s",
            STORM_WINDOW.as_secs(),
            STORM_REVISION_INTERVAL.as_secs()
        ),
        process: None,
        file: None,
        connection: None,
        details: None,
        hook: String::new(),
        ..cause.clone()
    }
}

#[cfg(test)]
mod tests;
