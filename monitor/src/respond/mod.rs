//! What this node does to its own containers when a responder orders it.
//!
//! [`plan`] says what would be done, [`progress`] which step follows which, [`execute`] makes them at
//! containerd, and [`record`] keeps each order so that a daemon that comes later goes on with it.

pub mod automatic;
pub mod documents;
pub mod execute;
pub mod history;
pub mod ledger;
pub mod order;
mod outlet;
pub mod plan;
pub mod progress;
pub mod record;
pub mod spec;
mod supervisor;
mod supply;
#[cfg(test)]
mod tests;
mod view;

use std::{
    collections::HashMap,
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use monitor_api::v1;
use ulid::Ulid;

pub use self::{
    automatic::{Automatic, Cause, Pace},
    documents::{Documents, Reader},
    history::Seen,
    ledger::{Kept, Ledger, Limits, Settings, Subject},
    order::{By, OnFailure, Order, Planned, REASON_BYTES_MAX, Refusal, Request},
    outlet::Outlet,
    plan::{Facts, Held, Pull, Signature, Supply, target},
    progress::State,
    supervisor::refuse_workload,
};
use self::{
    execute::Means,
    history::History,
    progress::Next,
    record::{Record, Store},
};
use crate::{audit::Who, containerd::Client, registry::Registry};

/// How often it is looked at what runs.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// What orders are judged by.
pub trait Source: Send + Sync + 'static {
    /// What is known of the container that a request means; but for what ran there, which is this
    /// room's.
    fn facts(&self, request: &Request) -> impl Future<Output = Result<Facts, Refusal>> + Send;

    /// Adds what is known of the image that [`target`] gives.
    fn complete(
        &self,
        request: &Request,
        facts: &mut Facts,
    ) -> impl Future<Output = Result<(), Refusal>> + Send;

    /// The containers that run, of images that are proven.
    fn running(&self) -> impl Future<Output = Vec<Seen>> + Send;
}

/// Takes orders and carries them out, each in a task of its own.
pub struct Responder<S> {
    client: Client,
    registry: Option<Registry>,
    source: S,
    settings: Settings,
    outlet: Outlet,
    store: Store,
    kept: history::Kept,
    ledger: Mutex<Ledger<Record>>,
    history: Mutex<History>,
    saving: tokio::sync::Mutex<()>,
}

/// What was kept by the daemon before.
pub struct Opened {
    store: Store,
    records: Vec<Record>,
    kept: history::Kept,
    history: History,
}

/// Reads what is kept below `directory`. Blocks.
///
/// # Errors
///
/// The system's, if there can be no directory.
pub fn open(directory: &Path) -> io::Result<Opened> {
    let (store, records) = Store::open(directory.join("orders"))?;
    let (kept, history) = history::Kept::open(directory.join("ran.json"));
    Ok(Opened {
        store,
        records,
        kept,
        history,
    })
}

impl<S: Source> Responder<S> {
    /// Takes orders from now on, and goes on with those that the daemon before did not end.
    pub fn start(
        opened: Opened,
        client: Client,
        registry: Option<Registry>,
        source: S,
        settings: Settings,
        outlet: Outlet,
    ) -> Arc<Self> {
        let unfinished: Vec<Record> = opened
            .records
            .iter()
            .filter(|record| record.state == State::Running)
            .cloned()
            .collect();
        let responder = Arc::new(Self {
            client,
            registry,
            source,
            settings,
            outlet,
            store: opened.store,
            kept: opened.kept,
            ledger: Mutex::new(Ledger::new(opened.records)),
            history: Mutex::new(opened.history),
            saving: tokio::sync::Mutex::default(),
        });
        for mut record in unfinished {
            tracing::warn!(
                order = record.id,
                container = record.plan.container,
                step = record.step.name(),
                "going on with a rollback that was under way when the daemon ended"
            );
            record.resumed += 1;
            responder.ledger().keep(record.clone());
            tokio::spawn(Arc::clone(&responder).carry_out(record.id));
        }
        tokio::spawn(Arc::clone(&responder).look());
        responder
    }

    /// Every plan and order, oldest first.
    pub fn list(&self) -> Vec<v1::Rollback> {
        let ledger = self.ledger();
        let plans = ledger.plans(Timestamp::now());
        let plans = plans.map(|(id, planned)| view::plan(id, planned));
        let mut all: Vec<_> = ledger.orders().map(view::order).chain(plans).collect();
        // Ids begin with their time.
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all
    }

    /// How many orders are kept in each state, by its name.
    pub fn counts(&self) -> HashMap<String, u64> {
        self.ledger().counts()
    }

    /// Takes an order. Of one that is applied this returns when it has begun.
    ///
    /// # Errors
    ///
    /// See [`Refusal`].
    pub async fn order(self: &Arc<Self>, order: Order, who: Who) -> Result<v1::Rollback, Refusal> {
        match order {
            Order::Plan(request) => self.plan(request, who.into()).await,
            // To its end, also if its caller goes: nothing else would carry it out.
            Order::Apply { plan } => {
                let applying = Arc::clone(self).apply(plan, who.into());
                tokio::spawn(applying)
                    .await
                    .unwrap_or(Err(Refusal::Stopping))
            }
            Order::Abort { order } => self.abort(&order).await,
        }
    }

    async fn plan(&self, request: Request, by: By) -> Result<v1::Rollback, Refusal> {
        let plan = self.made(&request).await?;
        let planned = Planned {
            plan,
            request,
            by,
            at: Timestamp::now(),
        };
        let id = Ulid::new().to_string();
        let told = view::plan(&id, &planned);
        self.ledger().add_plan(id, planned);
        Ok(told)
    }

    async fn apply(self: Arc<Self>, id: String, by: By) -> Result<v1::Rollback, Refusal> {
        let planned = self.ledger().planned(&id, Timestamp::now())?;
        self.ledger()
            .may_begin(&planned.plan, &self.settings.limits(), Timestamp::now())?;
        let plan = self.made(&planned.request).await?;
        if plan != planned.plan {
            return Err(Refusal::Outdated(difference(&planned.plan, &plan)));
        }
        let now = Timestamp::now();
        let record = Record::new(id.clone(), plan, by, now);
        let gone = {
            let mut ledger = self.ledger();
            // Another one may have begun meanwhile.
            ledger.may_begin(&record.plan, &self.settings.limits(), now)?;
            ledger.remove_plan(&id);
            ledger.keep(record.clone())
        };
        if let Err(error) = self.save(&id, gone).await {
            let reason = format!("the order cannot be kept: {error}");
            self.update(&id, |record| {
                record.state = State::Failed;
                record.ended_at = Some(now);
                record.failure.clone_from(&reason);
            });
            return Err(Refusal::Failed(reason));
        }
        let told = view::order(&record);
        self.alert(&record);
        tokio::spawn(self.carry_out(id));
        Ok(told)
    }

    async fn abort(&self, id: &str) -> Result<v1::Rollback, Refusal> {
        let too_late = |reason| Refusal::TooLate {
            order: id.to_owned(),
            reason,
        };
        let record = {
            let mut ledger = self.ledger();
            if let Some(planned) = ledger.remove_plan(id) {
                let mut told = view::plan(id, &planned);
                told.state = State::Aborted.name().to_owned();
                return Ok(told);
            }
            let Some(record) = ledger.order(id) else {
                return Err(Refusal::NoPlan(id.to_owned()));
            };
            if record.state != State::Running {
                return Err(too_late("it has ended"));
            }
            if !record.step.is_harmless() {
                return Err(too_late(
                    "it has begun to stop its container, and goes on to its end",
                ));
            }
            let mut record = record.clone();
            record.is_aborted = true;
            ledger.keep(record.clone());
            record
        };
        let saved = self.save(id, Vec::new()).await;
        saved.map_err(|error| Refusal::Failed(error.to_string()))?;
        Ok(view::order(&record))
    }

    /// The plan for a request, by what is known now.
    async fn made(&self, request: &Request) -> Result<plan::Plan, Refusal> {
        let mut facts = self.source.facts(request).await?;
        facts.ran = (self.history()).of(&workload(&facts.namespace, &facts.record.id));
        self.source.complete(request, &mut facts).await?;
        plan::plan(request, &facts, self.settings.times())
    }

    /// Makes one step after the other, until the order has ended.
    async fn carry_out(self: Arc<Self>, id: String) {
        let Some(mut record) = self.ledger().order(&id).cloned() else {
            return;
        };
        loop {
            let step = record.step;
            let begun = self.update(&id, |record| record.begin(step, Timestamp::now()));
            let Some(begun) = begun else { return };
            record = begun;
            if let Err(error) = self.save(&id, Vec::new()).await {
                self.end(
                    &id,
                    State::Held,
                    &format!("the order cannot be kept: {error}"),
                )
                .await;
                return;
            }
            tracing::info!(order = id, step = step.name(), "rollback");
            let means = Means {
                client: &self.client,
                registry: self.registry.as_ref(),
                note: &|bytes| self.note_pulled(&id, bytes),
            };
            let made = execute::make(&means, &record, step).await;
            let failure = made.as_ref().err().map(ToString::to_string);
            if let Some(failure) = &failure {
                tracing::warn!(order = id, step = step.name(), failure, "rollback");
            }
            // One look at the order and one decision, so that it is not given up in between.
            let mut next = Next::End(State::Held);
            let decided = self.update(&id, |record| {
                if let Some(failure) = &failure
                    && record.failure.is_empty()
                    && !record.is_aborted
                {
                    record.failure.clone_from(failure);
                }
                let on_failure = record.plan.on_failure;
                next = step.next(failure.is_none(), record.is_aborted, on_failure);
                if let Next::Step(step) = next {
                    record.step = step;
                }
            });
            let Some(decided) = decided else { return };
            record = decided;
            if let Next::End(state) = next {
                return self.end(&id, state, "").await;
            }
        }
    }

    /// Notes how much of an image came; whether the order still stands.
    fn note_pulled(&self, id: &str, bytes: u64) -> bool {
        let noted = self.ledger().change(id, |record| {
            record.pulled_bytes = record.pulled_bytes.saturating_add(bytes);
            !record.is_aborted
        });
        noted.unwrap_or(false)
    }

    async fn end(&self, id: &str, state: State, failure: &str) {
        let ended = self.update(id, |record| {
            record.state = state;
            record.ended_at = Some(Timestamp::now());
            if record.failure.is_empty() {
                failure.clone_into(&mut record.failure);
            }
        });
        let Some(record) = ended else { return };
        if state != State::Held {
            execute::finish(&self.client, &record).await;
        }
        if let Err(error) = self.save(id, Vec::new()).await {
            tracing::error!(%error, order = id, "the end of a rollback cannot be kept; the next daemon will make its last step again");
        }
        let sentence = view::sentence(&record);
        tracing::warn!(order = id, state = state.name(), sentence, "rollback ended");
        self.alert(&record);
        let by = record.by.clone();
        self.outlet.note_end(id, by, state, &sentence).await;
        if state == State::Done {
            let plan = &record.plan;
            let workload = workload(&plan.namespace, &plan.container);
            self.history().ran(&workload, plan.to);
            self.save_history().await;
        }
    }

    /// Remembers what runs and stays up.
    async fn look(self: Arc<Self>) {
        let mut interval = tokio::time::interval(LOOK_INTERVAL);
        loop {
            interval.tick().await;
            let running = self.source.running().await;
            if self.history().look(running) {
                self.save_history().await;
            }
        }
    }

    async fn save_history(&self) {
        let written = serde_json::to_vec(&*self.history());
        let kept = self.kept.clone();
        let saved = tokio::task::spawn_blocking(move || kept.save(&written?)).await;
        if let Ok(Err(error)) = saved {
            tracing::warn!(%error, "which images ran is not kept over a restart");
        }
    }

    /// Keeps an order as it is now, and forgets those that made room for it.
    async fn save(&self, id: &str, gone: Vec<String>) -> io::Result<()> {
        // One after the other, so that what is on disk is never older than what was.
        let _turn = self.saving.lock().await;
        let Some(record) = self.ledger().order(id).cloned() else {
            return Ok(());
        };
        let store = self.store.clone();
        let saved = tokio::task::spawn_blocking(move || {
            for id in gone {
                store.forget(&id);
            }
            store.save(&record)
        });
        saved
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)))
    }

    fn alert(&self, record: &Record) {
        let id = record.id.parse().unwrap_or_default();
        self.outlet
            .raise(&view::alert(record, id, Timestamp::now()));
    }

    /// Changes an order, and gives it as it is then.
    fn update(&self, id: &str, change: impl FnOnce(&mut Record)) -> Option<Record> {
        self.ledger().change(id, |record| {
            change(record);
            record.clone()
        })
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger<Record>> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A container by its id, whichever is created under it.
pub fn workload(namespace: &str, id: &str) -> String {
    format!("{namespace}/{id}")
}

/// What of the facts has changed.
fn difference(was: &plan::Plan, is: &plan::Plan) -> String {
    if was.version != is.version {
        "the container was changed, started or replaced since".to_owned()
    } else if was.to != is.to {
        format!("it would go back to {} now, not to {}", is.to, was.to)
    } else {
        "what it would do is not the same any more".to_owned()
    }
}
