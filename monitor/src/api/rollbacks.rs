//! The service of rollbacks.

use std::{sync::Arc, time::Duration};

use monitor_api::v1::{
    AbortRollbackRequest, AbortRollbackResponse, ApplyRollbackRequest, ApplyRollbackResponse,
    ListRollbacksRequest, ListRollbacksResponse, PlanRollbackRequest, PlanRollbackResponse,
    Rollback, rollbacks_server::Rollbacks,
};
use tokio::time::timeout;
use tonic::{Request, Response, Status};

use super::{
    account::Account,
    caller::{Caller, Role},
    guard,
    service::{check_length, within},
};
use crate::{
    audit::{Call, Outcome},
    digest::Digest,
    respond::{self, OnFailure, Order, REASON_BYTES_MAX, Refusal},
};

/// Who may order rollbacks.
const RESPONDERS: [Role; 1] = [Role::Responder];
/// Longest time for an answer: of a controller it takes a registry's, and those of sources of
/// signatures.
const ORDER_TIME_MAX: Duration = Duration::from_secs(40);
/// Bytes of a target, a digest or an id.
const NAME_BYTES_MAX: usize = 1024;

/// Answers calls about rollbacks.
pub(super) struct RollbackService(pub(super) Arc<Account>);

#[tonic::async_trait]
impl Rollbacks for RollbackService {
    async fn plan_rollback(
        &self,
        request: Request<PlanRollbackRequest>,
    ) -> Result<Response<PlanRollbackResponse>, Status> {
        let caller = self.permit(&request, "PlanRollback").await?;
        let request = read(request.into_inner())?;
        let to = request.to.map_or_else(
            || "the last approved image".to_owned(),
            |digest| digest.to_string(),
        );
        let kind = if request.target.contains('/') {
            ""
        } else {
            "container/"
        };
        let object = format!("{kind}{} to {to}", request.target);
        let reason = request.reason.clone();
        let ordered = self.0.node.rollback(Order::Plan(request), caller.who());
        let planned = within_order(ordered).await?;
        let (outcome, detail) = match &planned {
            Ok(plan) => (Outcome::Done, format!("plan {}: {reason}", plan.id)),
            Err(refusal) => (Outcome::Refused, refusal.to_string()),
        };
        let call = Call {
            method: "PlanRollback",
            object: &object,
            detail: &detail,
        };
        self.0.audit.note(&caller.who(), call, outcome).await;
        Ok(Response::new(PlanRollbackResponse {
            rollback: Some(planned?),
        }))
    }

    async fn apply_rollback(
        &self,
        request: Request<ApplyRollbackRequest>,
    ) -> Result<Response<ApplyRollbackResponse>, Status> {
        let caller = self.permit(&request, "ApplyRollback").await?;
        let plan = request.into_inner().id;
        check_length("id", &plan, NAME_BYTES_MAX)?;
        let object = format!("order/{plan}");
        let order = Order::Apply { plan };
        let rollback = self.change(&caller, "ApplyRollback", &object, order);
        Ok(Response::new(ApplyRollbackResponse {
            rollback: Some(rollback.await?),
        }))
    }

    async fn abort_rollback(
        &self,
        request: Request<AbortRollbackRequest>,
    ) -> Result<Response<AbortRollbackResponse>, Status> {
        let caller = self.permit(&request, "AbortRollback").await?;
        let order = request.into_inner().id;
        check_length("id", &order, NAME_BYTES_MAX)?;
        let object = format!("order/{order}");
        let order = Order::Abort { order };
        let rollback = self.change(&caller, "AbortRollback", &object, order);
        Ok(Response::new(AbortRollbackResponse {
            rollback: Some(rollback.await?),
        }))
    }

    async fn list_rollbacks(
        &self,
        _: Request<ListRollbacksRequest>,
    ) -> Result<Response<ListRollbacksResponse>, Status> {
        let rollbacks = within(self.0.node.rollbacks()).await?;
        Ok(Response::new(ListRollbacksResponse { rollbacks }))
    }
}

impl RollbackService {
    async fn permit<T>(&self, request: &Request<T>, method: &str) -> Result<Caller, Status> {
        guard::permit(&self.0.audit, request, method, &RESPONDERS).await
    }

    /// Gives an order that changes something, with its records in the audit log.
    async fn change(
        &self,
        caller: &Caller,
        method: &str,
        object: &str,
        order: Order,
    ) -> Result<Rollback, Status> {
        let (account, who) = (Arc::clone(&self.0), caller.who());
        let change = async move { Ok(account.node.rollback(order, who).await?) };
        let call = Call {
            method,
            object,
            detail: "",
        };
        let audit = &self.0.audit;
        // Whatever the caller is told, what came of it is recorded.
        within_order(audit.change::<_, Status>(&caller.who(), call, change)).await?
    }
}

/// Waits for an answer; DEADLINE_EXCEEDED beyond [`ORDER_TIME_MAX`].
async fn within_order<T>(answer: impl Future<Output = T>) -> Result<T, Status> {
    timeout(ORDER_TIME_MAX, answer).await.map_err(|_| {
        Status::deadline_exceeded(format!(
            "no answer within {} s, and it may still be carried out: see `monitorctl rollback status`",
            ORDER_TIME_MAX.as_secs()
        ))
    })
}

fn read(request: PlanRollbackRequest) -> Result<respond::Request, Status> {
    check_length("target", &request.target, NAME_BYTES_MAX)?;
    if request.container.len() > NAME_BYTES_MAX {
        let problem = format!("container: give at most {NAME_BYTES_MAX} bytes");
        return Err(Status::invalid_argument(problem));
    }
    if request.reason.len() > REASON_BYTES_MAX {
        let problem = format!("reason: give at most {REASON_BYTES_MAX} bytes");
        return Err(Status::invalid_argument(problem));
    }
    // The message quotes no more of it than is safe.
    let to = (!request.to.is_empty()).then(|| request.to.parse::<Digest>());
    let to = to
        .transpose()
        .map_err(|error| Status::invalid_argument(format!("to: {error}")))?;
    let on_failure = match request.on_failure.as_str() {
        "" | "hold" => OnFailure::Hold,
        "undo" => OnFailure::Undo,
        "stop" => OnFailure::Stop,
        _ => {
            return Err(Status::invalid_argument(
                "on_failure: give `hold`, `undo` or `stop`",
            ));
        }
    };
    Ok(respond::Request {
        target: request.target,
        to,
        on_failure,
        reason: request.reason,
        allow_stateful: request.allow_stateful,
        container: (!request.container.is_empty()).then_some(request.container),
    })
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            Refusal::NoContainer(_) | Refusal::NoPlan(_) | Refusal::NoWorkload(_) => {
                Self::not_found(message)
            }
            Refusal::Outdated(_) | Refusal::InFlight(_) => Self::aborted(message),
            Refusal::Limit(_) => Self::resource_exhausted(message),
            Refusal::Containerd(_) | Refusal::Cluster(_) | Refusal::Failed(_) => {
                Self::internal(message)
            }
            Refusal::Stopping => Self::unavailable(message),
            Refusal::Ambiguous { .. }
            | Refusal::Supervised { .. }
            | Refusal::Unfit { .. }
            | Refusal::Spec { .. }
            | Refusal::NoRepository(_)
            | Refusal::NoTarget { .. }
            | Refusal::NotApproved { .. }
            | Refusal::Signature { .. }
            | Refusal::OtherRepository { .. }
            | Refusal::Same { .. }
            | Refusal::NotPresent { .. }
            | Refusal::NotPullable { .. }
            | Refusal::Platform { .. }
            | Refusal::NotUnpacked { .. }
            | Refusal::NoWayBack(_)
            | Refusal::NoWayToStop
            | Refusal::NothingWatched
            | Refusal::Workload { .. }
            | Refusal::TooLate { .. } => Self::failed_precondition(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::{image::manifest::digest_of, respond::Refusal::*};

    #[test]
    fn each_refusal_has_its_status() {
        let check = |refusal: Refusal, expect: Code| {
            assert_eq!(Status::from(refusal.clone()).code(), expect, "{refusal}");
        };
        let (digest, text) = (digest_of(b"a"), || "a".to_owned());
        check(NoContainer(text()), Code::NotFound);
        check(NoPlan(text()), Code::NotFound);
        check(Outdated(text()), Code::Aborted);
        check(InFlight(text()), Code::Aborted);
        check(Limit(text()), Code::ResourceExhausted);
        check(Containerd(text()), Code::Internal);
        check(Stopping, Code::Unavailable);
        let not_approved = NotApproved {
            digest,
            repository: text(),
            standing: "revoked",
        };
        check(not_approved, Code::FailedPrecondition);
        let elsewhere = OtherRepository {
            digest,
            repository: text(),
            found: text(),
        };
        check(elsewhere, Code::FailedPrecondition);
        check(NoWayBack("was revoked"), Code::FailedPrecondition);
    }

    #[test]
    fn a_request_is_read_whole_or_refused() {
        let check = |target: &str, to: &str, on_failure: &str, expect: bool| {
            let request = PlanRollbackRequest {
                target: target.to_owned(),
                to: to.to_owned(),
                on_failure: on_failure.to_owned(),
                ..PlanRollbackRequest::default()
            };
            let is_read = read(request).is_ok();
            assert_eq!(is_read, expect, "{target:?} {to:?} {on_failure:?}");
        };
        check("web", "", "", true);
        check("web", &digest_of(b"a").to_string(), "undo", true);
        check("", "", "", false);
        check("web", "sha256:1", "", false);
        check("web", "", "panic", false);
        check(&"x".repeat(NAME_BYTES_MAX + 1), "", "", false);
    }
}
