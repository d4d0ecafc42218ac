//! What comes of alerts whose rules ask for a response: a rollback by this node, or an incident for the
//! cluster's controller.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use jiff::Timestamp;
use monitor_api::v1::{self, Alert};
use tokio::sync::mpsc;
use ulid::Ulid;

use super::rollbacks::Scene;
use crate::{
    api::Controller,
    audit::{Call, Outcome, Who},
    respond::{
        OnFailure, Order, Outlet, Request, Responder,
        automatic::{Automatic, Cause, Pace},
        workload,
    },
};

/// Causes that wait for their response; further ones are counted as lost.
const CAUSES_MAX: usize = 64;

/// What came of causes.
#[derive(Debug, Default)]
pub(super) struct Counts {
    proposed: AtomicU64,
    applied: AtomicU64,
    refused: AtomicU64,
    told: AtomicU64,
    repeated: AtomicU64,
    lost: AtomicU64,
}

impl Counts {
    /// By the names that the API has for them.
    pub(super) fn all(&self) -> HashMap<String, u64> {
        let counts = [
            ("proposed", &self.proposed),
            ("applied", &self.applied),
            ("refused", &self.refused),
            ("told", &self.told),
            ("repeated", &self.repeated),
            ("lost", &self.lost),
        ];
        let read = |(name, count): (&str, &AtomicU64)| (name.to_owned(), count.load(RELAXED));
        counts.map(read).into()
    }
}

const RELAXED: Ordering = Ordering::Relaxed;

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, RELAXED);
}

/// Where the owner puts causes.
#[derive(Clone, Debug)]
pub(super) struct Causes {
    queue: mpsc::Sender<Cause>,
    allowed: Automatic,
    counts: Arc<Counts>,
}

impl Causes {
    /// With the other end of the queue. No more comes of rules than is `allowed`.
    pub(super) fn new(allowed: Automatic, counts: Arc<Counts>) -> (Self, mpsc::Receiver<Cause>) {
        let (queue, causes) = mpsc::channel(CAUSES_MAX);
        let own = Self {
            queue,
            allowed,
            counts,
        };
        (own, causes)
    }

    /// What comes of a rule that asks for this.
    pub(super) fn mode(&self, asked: Automatic) -> Automatic {
        asked.within(self.allowed)
    }

    /// Has an alert be responded to.
    pub(super) fn add(&self, rule: &str, alert: &Alert, mode: Automatic) {
        let cause = Cause {
            rule: rule.to_owned(),
            alert: alert.clone(),
            mode,
        };
        if let Err(error) = self.queue.try_send(cause) {
            tracing::warn!(%error, rule, alert = alert.id, "an alert is not responded to");
            count(&self.counts.lost);
        }
    }
}

/// Responds to causes, one after the other.
pub(super) struct Automat {
    pub(super) responder: Arc<Responder<Scene>>,
    pub(super) controller: Option<Arc<Controller>>,
    pub(super) outlet: Outlet,
    pub(super) counts: Arc<Counts>,
    pub(super) pace: Pace,
}

impl Automat {
    /// Goes on until there is no owner any more.
    pub(super) async fn run(mut self, mut causes: mpsc::Receiver<Cause>) {
        while let Some(cause) = causes.recv().await {
            let container = cause.alert.container.clone().unwrap_or_default();
            let place = workload(&container.runtime_namespace, &container.id);
            if !self.pace.begin(&place, &cause.rule, Instant::now()) {
                count(&self.counts.repeated);
                continue;
            }
            match (&self.controller, &container.pod) {
                (Some(controller), Some(_)) => {
                    controller.tell(cause.alert.clone(), &cause.rule, cause.mode.name());
                    count(&self.counts.told);
                    let detail = format!("told to the controller: {}", cause.reason());
                    self.note(&cause, &place, &detail, Outcome::Done).await;
                }
                _ => self.respond(&cause, &place, container.id).await,
            }
        }
    }

    /// Plans a rollback, tells of it, and carries it out if that is asked for.
    async fn respond(&self, cause: &Cause, place: &str, target: String) {
        let request = Request {
            target,
            to: None,
            on_failure: OnFailure::Hold,
            reason: cause.reason(),
            allow_stateful: false,
            container: None,
        };
        let planned = self.responder.order(Order::Plan(request), who(cause));
        let plan = match planned.await {
            Ok(plan) => plan,
            Err(refusal) => return self.refuse(cause, place, &refusal.to_string()).await,
        };
        let told = cause.proposed(&plan, Ulid::new(), Timestamp::now());
        self.outlet.raise(&told);
        count(&self.counts.proposed);
        let detail = format!("proposed {}: {}", plan.id, cause.reason());
        self.note(cause, place, &detail, Outcome::Done).await;
        if cause.mode != Automatic::Auto {
            return;
        }
        match self.apply(cause, plan).await {
            Ok(()) => count(&self.counts.applied),
            Err(error) => self.refuse(cause, place, &error.to_string()).await,
        }
    }

    /// Carries a plan out, with its records in the audit log.
    async fn apply(&self, cause: &Cause, plan: v1::Rollback) -> anyhow::Result<()> {
        let object = format!("order/{}", plan.id);
        let reason = cause.reason();
        let call = Call {
            method: "ApplyRollback",
            object: &object,
            detail: &reason,
        };
        let (responder, who) = (Arc::clone(&self.responder), who(cause));
        let order = Order::Apply { plan: plan.id };
        let by = who.clone();
        let change = async move { Ok(responder.order(order, by).await.map(drop)?) };
        let audit = &self.outlet.audit;
        audit.change::<_, anyhow::Error>(&who, call, change).await
    }

    async fn refuse(&self, cause: &Cause, place: &str, failure: &str) {
        let reason = cause.reason();
        tracing::warn!(failure, reason, "an automatic rollback is refused");
        let told = cause.refused(failure, Ulid::new(), Timestamp::now());
        self.outlet.raise(&told);
        count(&self.counts.refused);
        let detail = format!("{failure}: {reason}");
        self.note(cause, place, &detail, Outcome::Failed).await;
    }

    async fn note(&self, cause: &Cause, place: &str, detail: &str, outcome: Outcome) {
        let object = format!("container/{place}");
        let call = Call {
            method: "Respond",
            object: &object,
            detail,
        };
        self.outlet.audit.note(&who(cause), call, outcome).await;
    }
}

/// A rule, as the audit log and orders have it.
fn who(cause: &Cause) -> Who {
    Who {
        name: cause.by(),
        roles: Vec::new(),
        peer: "monitord".to_owned(),
    }
}
