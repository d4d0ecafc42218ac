//! The service of approvals.

use std::sync::Arc;

use jiff::Timestamp;
use monitor_api::v1::{
    ApproveRequest, ApproveResponse, ListApprovalsRequest, ListApprovalsResponse, RevokeRequest,
    RevokeResponse, VerifyApprovalRequest, VerifyApprovalResponse, approvals_server::Approvals,
};
use tonic::{Request, Response, Status};

use super::{
    ContentsError,
    account::Account,
    caller::{Caller, Role},
    guard,
    service::{check_length, within},
};
use crate::{
    approval::{
        FullError,
        document::{REPOSITORY_BYTES_MAX, check_repository},
    },
    audit::Call,
    digest::Digest,
    yaml::TEXT_BYTES_MAX,
};

/// Who may say which images may run.
const RESPONDERS: [Role; 1] = [Role::Responder];
/// Bytes of a digest or of a reference.
const IMAGE_BYTES_MAX: usize = 1024;
/// Why something was said, where that was left out.
const NO_REASON: &str = "no reason given";

/// A call about approvals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApprovalCall {
    /// What was said.
    List,
    /// An image may run.
    Approve {
        /// Reference without tag and digest.
        repository: String,
        /// Digest of a manifest or an index.
        digest: Digest,
        /// Until when.
        until: Option<Timestamp>,
        /// Why.
        reason: String,
        /// Who says it.
        by: String,
    },
    /// An image may no longer run.
    Revoke {
        /// Digest of a manifest or an index.
        digest: Digest,
        /// Why.
        reason: String,
        /// Who says it.
        by: String,
    },
}

/// Why a call about approvals was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApprovalCallError {
    /// Nothing was said of a digest; NOT_FOUND.
    #[error(
        "{0} is approved nowhere; `monitorctl approval list` lists what is, and what was not approved may not run where others of its repository are"
    )]
    NotNamed(Digest),
    /// INVALID_ARGUMENT.
    #[error("until: give a time to come")]
    Until,
    /// No image, or several.
    #[error(transparent)]
    Image(#[from] ContentsError),
    /// The cluster's are the controller's; FAILED_PRECONDITION.
    #[error(
        "this node takes its approvals from the cluster's controller; say it there: `monitorctl --address {0} approval approve` or `revoke`"
    )]
    Cluster(String),
    /// RESOURCE_EXHAUSTED.
    #[error(transparent)]
    Full(#[from] FullError),
    /// It could not be kept; INTERNAL.
    #[error("nothing was changed: {0}")]
    Failed(String),
    /// The daemon stops; UNAVAILABLE.
    #[error("the daemon is stopping; ask it again once it has started")]
    Stopping,
}

/// Answers calls about approvals.
pub(super) struct ApprovalService {
    pub(super) account: Arc<Account>,
}

#[tonic::async_trait]
impl Approvals for ApprovalService {
    async fn list_approvals(
        &self,
        _: Request<ListApprovalsRequest>,
    ) -> Result<Response<ListApprovalsResponse>, Status> {
        let listed = within(self.account.node.approvals(ApprovalCall::List)).await??;
        Ok(Response::new(listed))
    }

    async fn approve(
        &self,
        request: Request<ApproveRequest>,
    ) -> Result<Response<ApproveResponse>, Status> {
        let caller = self.permit(&request, "Approve").await?;
        let request = request.into_inner();
        check_length("repository", &request.repository, REPOSITORY_BYTES_MAX)?;
        check_length("reason", &request.reason, TEXT_BYTES_MAX)?;
        check_repository(&request.repository)
            .map_err(|problem| Status::invalid_argument(format!("repository: {problem}")))?;
        let digest = digest(&request.digest)?;
        if request.reason.trim().is_empty() {
            return Err(Status::invalid_argument("reason: say why"));
        }
        let until = request.until.map(|until| {
            Timestamp::new(until.seconds, until.nanos)
                .map_err(|_| Status::invalid_argument("until: give a time"))
        });
        let until = until.transpose()?;
        let object = format!("image/{}@{digest}", request.repository);
        let detail = match until {
            Some(until) => format!("until {until}: {}", request.reason),
            None => request.reason.clone(),
        };
        let call = ApprovalCall::Approve {
            repository: request.repository,
            digest,
            until,
            reason: request.reason,
            by: caller.name.clone(),
        };
        let said = self.change(&caller, "Approve", &object, &detail, call);
        let approval = said.await?.approvals.into_iter().next();
        Ok(Response::new(ApproveResponse { approval }))
    }

    async fn revoke(
        &self,
        request: Request<RevokeRequest>,
    ) -> Result<Response<RevokeResponse>, Status> {
        let caller = self.permit(&request, "Revoke").await?;
        let mut request = request.into_inner();
        check_length("reason", &request.reason, TEXT_BYTES_MAX)?;
        if request.reason.trim().is_empty() {
            request.reason = NO_REASON.to_owned();
        }
        let digest = digest(&request.digest)?;
        let object = format!("image/{digest}");
        let detail = request.reason.clone();
        let call = ApprovalCall::Revoke {
            digest,
            reason: request.reason,
            by: caller.name.clone(),
        };
        let said = self.change(&caller, "Revoke", &object, &detail, call);
        Ok(Response::new(RevokeResponse {
            approvals: said.await?.approvals,
        }))
    }

    async fn verify_approval(
        &self,
        request: Request<VerifyApprovalRequest>,
    ) -> Result<Response<VerifyApprovalResponse>, Status> {
        let image = request.into_inner().image;
        check_length("image", &image, IMAGE_BYTES_MAX)?;
        let verdict = within(self.account.node.approval_of(&image)).await??;
        Ok(Response::new(verdict))
    }
}

impl ApprovalService {
    async fn permit<T>(&self, request: &Request<T>, method: &str) -> Result<Caller, Status> {
        guard::permit(&self.account.audit, request, method, &RESPONDERS).await
    }

    /// Carries out a call that changes something, with its records in the audit log.
    async fn change(
        &self,
        caller: &Caller,
        method: &str,
        object: &str,
        detail: &str,
        call: ApprovalCall,
    ) -> Result<ListApprovalsResponse, Status> {
        let account = Arc::clone(&self.account);
        let change = async move { Ok(within(account.node.approvals(call)).await??) };
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

fn digest(text: &str) -> Result<Digest, Status> {
    check_length("digest", text, IMAGE_BYTES_MAX)?;
    text.parse()
        .map_err(|error| Status::invalid_argument(format!("{error}")))
}

impl From<ApprovalCallError> for Status {
    fn from(error: ApprovalCallError) -> Self {
        let message = error.to_string();
        match error {
            ApprovalCallError::NotNamed(_) => Self::not_found(message),
            ApprovalCallError::Until => Self::invalid_argument(message),
            ApprovalCallError::Image(error) => error.into(),
            ApprovalCallError::Cluster(_) => Self::failed_precondition(message),
            ApprovalCallError::Full(_) => Self::resource_exhausted(message),
            ApprovalCallError::Failed(_) => Self::internal(message),
            ApprovalCallError::Stopping => Self::unavailable(message),
        }
    }
}
