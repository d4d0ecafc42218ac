//! The service of policies and exceptions.

use std::sync::Arc;

use jiff::Timestamp;
use monitor_api::v1::{
    AddExceptionRequest, AddExceptionResponse, Alert, GetAlertRequest, ListPoliciesRequest,
    ListPoliciesResponse, RecordRequest, RecordResponse, RemoveExceptionRequest,
    RemoveExceptionResponse, get_alert_request, policies_server::Policies,
};
use tokio::sync::{
    broadcast::{
        Receiver,
        error::{RecvError, TryRecvError},
    },
    watch,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{
    PolicyCall, PolicyCallError,
    account::Account,
    caller::{Caller, Role},
    guard, pages,
    server::stopped,
    service::{check_length, within},
};
use crate::audit::{Call, Outcome};

/// Who may change exceptions, and see what containers do.
const OPERATORS: [Role; 1] = [Role::Operator];
/// Bytes of an id of an alert or of an exception.
const ID_BYTES_MAX: usize = 256;
/// Bytes of a reason.
const REASON_BYTES_MAX: usize = 1024;
/// Bytes of lines in one message, but for a single line that is longer.
const LINES_BYTES_MAX: usize = 256 << 10;
/// Messages that wait for a client that records; beyond it loses lines.
const MESSAGES_MAX: usize = 4;

/// Answers calls about policies.
pub(super) struct PolicyService {
    pub(super) account: Arc<Account>,
    /// True once the daemon stops.
    pub(super) shutdown: watch::Receiver<bool>,
}

#[tonic::async_trait]
impl Policies for PolicyService {
    type RecordStream = ReceiverStream<Result<RecordResponse, Status>>;

    async fn list_policies(
        &self,
        _: Request<ListPoliciesRequest>,
    ) -> Result<Response<ListPoliciesResponse>, Status> {
        let listed = within(self.account.node.policies(PolicyCall::List)).await??;
        Ok(Response::new(listed))
    }

    async fn add_exception(
        &self,
        request: Request<AddExceptionRequest>,
    ) -> Result<Response<AddExceptionResponse>, Status> {
        let caller = self.permit(&request, "AddException").await?;
        let request = request.into_inner();
        check_length("alert_id", &request.alert_id, ID_BYTES_MAX)?;
        check_length("reason", &request.reason, REASON_BYTES_MAX)?;
        let until = request.until.as_ref();
        let until = until.and_then(|until| Timestamp::new(until.seconds, until.nanos).ok());
        let until = until.ok_or_else(|| Status::invalid_argument("until: give a time"))?;
        let alert = self.alert(request.alert_id.clone()).await?;
        let detail = format!("until {until}: {}", request.reason);
        let object = format!("alert/{}", request.alert_id);
        let call = PolicyCall::AddException {
            alert: Box::new(alert),
            until,
            reason: request.reason,
            owner: caller.name.clone(),
        };
        let made = self.change(&caller, "AddException", &object, &detail, call);
        let made = made.await?.exceptions.into_iter().next();
        let missing = || Status::internal("the exception went away while it was made");
        Ok(Response::new(AddExceptionResponse {
            exception: Some(made.ok_or_else(missing)?),
        }))
    }

    async fn remove_exception(
        &self,
        request: Request<RemoveExceptionRequest>,
    ) -> Result<Response<RemoveExceptionResponse>, Status> {
        let caller = self.permit(&request, "RemoveException").await?;
        let id = request.into_inner().id;
        check_length("id", &id, ID_BYTES_MAX)?;
        let object = format!("exception/{id}");
        let call = PolicyCall::RemoveException { id };
        self.change(&caller, "RemoveException", &object, "", call)
            .await?;
        Ok(Response::new(RemoveExceptionResponse {}))
    }

    async fn record(
        &self,
        request: Request<RecordRequest>,
    ) -> Result<Response<Self::RecordStream>, Status> {
        let caller = self.permit(&request, "Record").await?;
        let lines = within(self.account.node.record()).await?;
        let lines = lines.ok_or_else(|| Status::from(PolicyCallError::Stopping))?;
        // It shows what all containers do.
        let call = Call {
            method: "Record",
            object: "",
            detail: "",
        };
        let audit = &self.account.audit;
        audit.note(&caller.who(), call, Outcome::Done).await;
        let (messages, sent) = tokio::sync::mpsc::channel(MESSAGES_MAX);
        let mut shutdown = self.shutdown.clone();
        tokio::spawn(async move {
            let told = async {
                let mut lines = lines;
                while let Some(message) = next(&mut lines).await {
                    if messages.send(Ok(message)).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = told => {}
                () = messages.closed() => {}
                () = stopped(&mut shutdown) => {
                    // Without room the client learns it from the end of the stream.
                    let _ = messages.try_send(Err(PolicyCallError::Stopping.into()));
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(sent)))
    }
}

/// The lines that are there, once there is one; `None` when there will be no more.
async fn next(lines: &mut Receiver<Arc<str>>) -> Option<RecordResponse> {
    let mut message = RecordResponse::default();
    match lines.recv().await {
        Ok(line) => message.lines.push(line.to_string()),
        Err(RecvError::Lagged(lost)) => message.lost += lost,
        Err(RecvError::Closed) => return None,
    }
    let mut bytes = message.lines.iter().map(String::len).sum::<usize>();
    while bytes < LINES_BYTES_MAX {
        match lines.try_recv() {
            Ok(line) => {
                bytes += line.len();
                message.lines.push(line.to_string());
            }
            Err(TryRecvError::Lagged(lost)) => message.lost += lost,
            Err(TryRecvError::Empty | TryRecvError::Closed) => break,
        }
    }
    Some(message)
}

impl PolicyService {
    async fn permit<T>(&self, request: &Request<T>, method: &str) -> Result<Caller, Status> {
        guard::permit(&self.account.audit, request, method, &OPERATORS).await
    }

    /// The newest revision of an alert.
    async fn alert(&self, id: String) -> Result<Alert, Status> {
        let request = GetAlertRequest {
            alert: Some(get_alert_request::Alert::Id(id)),
        };
        let found = pages::get(&self.account.log, &request).await?;
        let missing = || Status::not_found("no such alert is kept");
        found.alert.ok_or_else(missing)
    }

    /// Carries out a call that changes something, with its records in the audit log.
    async fn change(
        &self,
        caller: &Caller,
        method: &str,
        object: &str,
        detail: &str,
        call: PolicyCall,
    ) -> Result<ListPoliciesResponse, Status> {
        let account = Arc::clone(&self.account);
        let change = async move { Ok(within(account.node.policies(call)).await??) };
        let call = Call {
            method,
            object,
            detail,
        };
        self.account
            .audit
            .change::<_, Status>(&caller.who(), call, change)
            .await
    }
}

impl From<PolicyCallError> for Status {
    fn from(error: PolicyCallError) -> Self {
        let message = error.to_string();
        match error {
            PolicyCallError::NoException(_) => Self::not_found(message),
            PolicyCallError::Until => Self::invalid_argument(message),
            PolicyCallError::Full(_) => Self::resource_exhausted(message),
            PolicyCallError::Failed(_) => Self::internal(message),
            PolicyCallError::Stopping => Self::unavailable(message),
            PolicyCallError::Elsewhere(_) => Self::failed_precondition(message),
        }
    }
}
