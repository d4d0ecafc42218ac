//! What incidents lead to that nodes report by their policies: nothing, a plan, or an order.

use std::{
    sync::{Arc, MutexGuard, PoisonError},
    time::Instant,
};

use jiff::Timestamp;
use monitor_api::v1::{self, join_request::Incident};
use ulid::Ulid;

use super::{
    cluster::{ClusterError, POD},
    orders::Controller,
    plan::Plan,
    pods,
};
use crate::{
    audit::{Call, Outcome, Who},
    respond::{
        Automatic, Cause, Kept as _, OnFailure, Order, Pace, Planned, REASON_BYTES_MAX, Refusal,
        Request, Subject as _,
    },
};

impl Controller {
    /// Takes an alert of a node whose policy asks for a response.
    pub(super) async fn incident(self: &Arc<Self>, node: &str, incident: Incident) {
        let asked = match incident.respond.as_str() {
            "propose" => Automatic::Propose,
            "auto" => Automatic::Auto,
            _ => Automatic::Off,
        };
        let cause = Cause {
            rule: incident.rule,
            alert: incident.alert.unwrap_or_default(),
            mode: asked.within(self.settings.automatic),
        };
        let (rule, alert, mode) = (&cause.rule, &cause.alert.id, cause.mode);
        tracing::info!(node, rule, alert, ?mode, "an incident");
        if mode.is_off() {
            return;
        }
        let who = Who {
            name: cause.by(),
            roles: Vec::new(),
            peer: format!("node {node}"),
        };
        let container = cause.alert.container.as_ref();
        let pod = container.and_then(|it| it.pod.clone()).unwrap_or_default();
        let target = format!("pod/{}/{}", pod.namespace, pod.name);
        let is_on = self.is_on(node, &pod, &target).await;
        // If the API server does not say, it may well be.
        let is_own = !matches!(is_on, Err(Refusal::Workload { .. }));
        if is_own && !self.pace().begin(&target, rule, Instant::now()) {
            return;
        }
        let done = match is_on {
            Ok(()) => self.respond(node, target, &cause, &who).await,
            Err(refusal) => Err(refusal),
        };
        let (outcome, detail) = match &done {
            Ok(Some(order)) => (Outcome::Done, format!("{} {}", order.state, order.id)),
            // The same again.
            Ok(None) => return,
            Err(refusal) => (Outcome::Refused, refusal.to_string()),
        };
        let object = format!("alert/{alert}");
        let call = Call {
            method: "Automatic",
            object: &object,
            detail: &detail,
        };
        self.outlet.audit.note(&who, call, outcome).await;
        // What a node says of others' pods is noted in the audit log alone, which folds it.
        if let (Err(refusal), true) = (done, is_own) {
            let (id, now) = (Ulid::new(), Timestamp::now());
            let told = cause.refused(&refusal.to_string(), id, now);
            self.outlet.raise(&told);
        }
    }

    async fn respond(
        self: &Arc<Self>,
        node: &str,
        target: String,
        cause: &Cause,
        who: &Who,
    ) -> Result<Option<v1::Rollback>, Refusal> {
        let container = cause.alert.container.clone().unwrap_or_default();
        let reason = format!("{} on {node}", cause.reason());
        let reason = reason.chars().take(REASON_BYTES_MAX / 4).collect();
        let request = Request {
            target,
            to: None,
            on_failure: OnFailure::Hold,
            reason,
            allow_stateful: false,
            container: Some(container.name),
        };
        let (plan, _) = self.made(&request).await?;
        if self.has_other(&plan) {
            return Ok(None);
        }
        let planned = self.keep_plan(Planned {
            plan,
            request,
            by: who.clone().into(),
            at: Timestamp::now(),
        });
        let told = cause.proposed(&planned, Ulid::new(), Timestamp::now());
        self.outlet.raise(&told);
        if cause.mode != Automatic::Auto {
            return Ok(Some(planned));
        }
        let plan = planned.id;
        let order = Order::Apply { plan: plan.clone() };
        let applied = self.order(order, who.clone()).await;
        if applied.is_err() {
            // Kept, it would stand for a response to whatever comes next.
            self.ledger().remove_plan(&plan);
        }
        applied.map(Some)
    }

    /// Whether the workload of a plan has an order under way, or a plan that a policy made.
    fn has_other(&self, plan: &Plan) -> bool {
        let (ledger, own) = (self.ledger(), plan.subject());
        let mut by_policy = ledger.plans(Timestamp::now());
        let mut orders = ledger.orders().filter(|it| it.is_running());
        by_policy.any(|(_, it)| it.by.roles.is_empty() && it.plan.subject() == own)
            || orders.any(|it| it.plan.subject() == own)
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a pod is on the node that speaks of it: a node must not have others' workloads changed.
    async fn is_on(&self, node: &str, pod: &v1::alert::Pod, target: &str) -> Result<(), Refusal> {
        let found = self.cluster.get(POD, &pod.namespace, &pod.name).await;
        match found {
            Ok(found) if pods::is_on(&found, &pod.uid, node) => return Ok(()),
            Ok(_) | Err(ClusterError::NotFound(_)) => {}
            Err(error) => return Err(Refusal::Cluster(error.to_string())),
        }
        Err(Refusal::Workload {
            workload: target.to_owned(),
            reason: format!("it is not on node {node}, which reported the incident"),
        })
    }
}
