//! What each call of the service does.

use std::{pin::Pin, sync::Arc};

use jiff::Timestamp;
use monitor_api::v1::{
    AlertsRequest, AlertsResponse, ContainersRequest, ContainersResponse, CoverageRequest,
    CoverageResponse, GetAlertRequest, GetAlertResponse, ImageContentsRequest,
    ImageContentsResponse, ImageUsageRequest, ImageUsageResponse, ImagesRequest, ImagesResponse,
    ListAlertsRequest, ListAlertsResponse, ListAuditRequest, ListAuditResponse, StatusRequest,
    StatusResponse, VerifyAuditRequest, VerifyAuditResponse, VerifyContainerRequest,
    VerifyContainerResponse, VerifyImageRequest, VerifyImageResponse, monitor_server::Monitor,
};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_stream::{Empty, Stream, StreamExt as _, empty, iter, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use super::{
    ALERT_STREAMS_MAX, ContentsError, CoverageError, ENTRIES_PER_MESSAGE_MAX, ImageContents, Node,
    REQUEST_TIME_MAX, STREAM_AHEAD_MAX, VerifyError, account::Account, alerts::AlertStream, audit,
    caller::Role, fanout::Fanout, frames::Handover, guard, pages,
};
use crate::alerts::AlertLog;

/// Most bytes of a path in a request; Linux takes no longer ones.
const PATH_BYTES_MAX: usize = 4096;

/// Most bytes of an image's name in a request: a reference has at most 255 bytes of name, 128 of
/// tag and a digest.
pub(super) const IMAGE_BYTES_MAX: usize = 1024;

/// Most bytes of a container's id or name in a request; containerd's ids have at most 76.
const CONTAINER_BYTES_MAX: usize = 256;

/// Who may read the audit log: those who are in it.
const AUDITORS: [Role; 2] = [Role::Operator, Role::Responder];

/// Answers calls.
pub(super) struct Service {
    account: Arc<Account>,
    fanout: Arc<Fanout>,
    shutdown: watch::Receiver<bool>,
}

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Service {
    pub(super) fn new(
        account: Arc<Account>,
        fanout: Arc<Fanout>,
        shutdown: watch::Receiver<bool>,
    ) -> Self {
        Self {
            account,
            fanout,
            shutdown,
        }
    }

    fn node(&self) -> &dyn Node {
        self.account.node.as_ref()
    }

    fn log(&self) -> &AlertLog {
        &self.account.log
    }
}

#[tonic::async_trait]
impl Monitor for Service {
    /// Empty: the messages are in the response's [`Handover`].
    type AlertsStream = Empty<Result<AlertsResponse, Status>>;
    type ContainersStream = BoxStream<ContainersResponse>;
    type ImagesStream = BoxStream<ImagesResponse>;
    type ImageContentsStream = BoxStream<ImageContentsResponse>;
    type VerifyContainerStream = BoxStream<VerifyContainerResponse>;
    type VerifyImageStream = BoxStream<VerifyImageResponse>;
    type ImageUsageStream = BoxStream<ImageUsageResponse>;

    async fn alerts(
        &self,
        request: Request<Streaming<AlertsRequest>>,
    ) -> Result<Response<Self::AlertsStream>, Status> {
        let permit = self.account.begin_stream().ok_or_else(|| {
            Status::resource_exhausted(format!(
                "{ALERT_STREAMS_MAX} alert streams are open, which is the limit; close one"
            ))
        })?;
        let who = guard::of(&request)?.who();
        let (send, receive) = mpsc::channel(STREAM_AHEAD_MAX);
        let stream = AlertStream {
            log: self.log().clone(),
            audit: self.account.audit.clone(),
            who,
            fanout: Arc::clone(&self.fanout),
            requests: request.into_inner(),
            responses: send,
            shutdown: self.shutdown.clone(),
            _permit: Some(permit),
        };
        // The head of the answer does not wait for the first request: some clients send that only
        // after they have the head.
        let mut response = Response::new(empty());
        let handover = Handover::new(receive, stream.run());
        response.extensions_mut().insert(handover);
        Ok(response)
    }

    async fn list_alerts(
        &self,
        request: Request<ListAlertsRequest>,
    ) -> Result<Response<ListAlertsResponse>, Status> {
        let page = within(pages::list(self.log(), &request.into_inner())).await??;
        Ok(Response::new(page))
    }

    async fn get_alert(
        &self,
        request: Request<GetAlertRequest>,
    ) -> Result<Response<GetAlertResponse>, Status> {
        let found = pages::get(self.log(), &request.into_inner()).await?;
        Ok(Response::new(found))
    }

    async fn containers(
        &self,
        _: Request<ContainersRequest>,
    ) -> Result<Response<Self::ContainersStream>, Status> {
        let containers = within(self.node().containers()).await?;
        let one = |container| {
            Ok(ContainersResponse {
                container: Some(container),
            })
        };
        Ok(Response::new(Box::pin(iter(
            containers.into_iter().map(one),
        ))))
    }

    async fn images(
        &self,
        _: Request<ImagesRequest>,
    ) -> Result<Response<Self::ImagesStream>, Status> {
        let images = within(self.node().images()).await?;
        let one = |image| Ok(ImagesResponse { image: Some(image) });
        Ok(Response::new(Box::pin(iter(images.into_iter().map(one)))))
    }

    async fn image_contents(
        &self,
        request: Request<ImageContentsRequest>,
    ) -> Result<Response<Self::ImageContentsStream>, Status> {
        let ImageContentsRequest { image, path } = request.into_inner();
        check_length("image", &image, IMAGE_BYTES_MAX)?;
        if path.len() > PATH_BYTES_MAX || path.contains(&0) {
            return Err(Status::invalid_argument(format!(
                "path must have at most {PATH_BYTES_MAX} bytes and no NUL"
            )));
        }
        let path = (!path.is_empty()).then_some(path.as_slice());
        let contents = within(self.node().image_contents(&image, path)).await??;
        Ok(Response::new(Box::pin(iter(
            Batches {
                contents,
                is_first: true,
            }
            .map(Ok),
        ))))
    }

    async fn verify_container(
        &self,
        request: Request<VerifyContainerRequest>,
    ) -> Result<Response<Self::VerifyContainerStream>, Status> {
        let VerifyContainerRequest { container } = request.into_inner();
        check_length("container", &container, CONTAINER_BYTES_MAX)?;
        let told = within(self.node().verify_container(&container)).await??;
        let stream = ReceiverStream::new(told).map(Ok);
        Ok(Response::new(Box::pin(stream)))
    }

    async fn verify_image(
        &self,
        request: Request<VerifyImageRequest>,
    ) -> Result<Response<Self::VerifyImageStream>, Status> {
        let VerifyImageRequest { image } = request.into_inner();
        check_length("image", &image, IMAGE_BYTES_MAX)?;
        let told = within(self.node().verify_image(&image)).await??;
        let stream = ReceiverStream::new(told).map(Ok);
        Ok(Response::new(Box::pin(stream)))
    }

    async fn image_usage(
        &self,
        _: Request<ImageUsageRequest>,
    ) -> Result<Response<Self::ImageUsageStream>, Status> {
        let usage = within(self.node().image_usage()).await?;
        Ok(Response::new(Box::pin(iter(usage.into_iter().map(Ok)))))
    }

    async fn coverage(
        &self,
        request: Request<CoverageRequest>,
    ) -> Result<Response<CoverageResponse>, Status> {
        let CoverageRequest {
            container,
            from,
            to,
        } = request.into_inner();
        check_length("container", &container, CONTAINER_BYTES_MAX)?;
        let (from, to) = (read_time("from", from)?, read_time("to", to)?);
        let covered = within(self.node().coverage(&container, from, to)).await??;
        Ok(Response::new(covered))
    }

    async fn list_audit(
        &self,
        request: Request<ListAuditRequest>,
    ) -> Result<Response<ListAuditResponse>, Status> {
        let log = &self.account.audit;
        guard::permit(log, &request, "ListAudit", &AUDITORS).await?;
        let page = within(audit::list(log, &request.into_inner())).await??;
        Ok(Response::new(page))
    }

    async fn verify_audit(
        &self,
        request: Request<VerifyAuditRequest>,
    ) -> Result<Response<VerifyAuditResponse>, Status> {
        let log = &self.account.audit;
        guard::permit(log, &request, "VerifyAudit", &AUDITORS).await?;
        let report = within(audit::verify(log, &request.into_inner())).await??;
        Ok(Response::new(report))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let status = within(self.account.status()).await?;
        Ok(Response::new(StatusResponse {
            status: Some(status),
        }))
    }
}

pub(super) fn check_length(name: &str, text: &str, bytes_max: usize) -> Result<(), Status> {
    if text.is_empty() || text.len() > bytes_max {
        return Err(Status::invalid_argument(format!(
            "{name} must have 1 to {bytes_max} bytes; it has {}",
            text.len()
        )));
    }
    Ok(())
}

fn read_time(
    name: &str,
    time: Option<prost_types::Timestamp>,
) -> Result<Option<Timestamp>, Status> {
    time.map(|time| Timestamp::new(time.seconds, time.nanos))
        .transpose()
        .map_err(|error| Status::invalid_argument(format!("{name} is no time: {error}")))
}

impl From<CoverageError> for Status {
    fn from(error: CoverageError) -> Self {
        let message = error.to_string();
        match error {
            CoverageError::NoContainer(_) => Self::not_found(message),
            CoverageError::Ambiguous { .. } => Self::failed_precondition(message),
            CoverageError::Stopping => Self::unavailable(message),
            CoverageError::Elsewhere(_) => Self::failed_precondition(message),
        }
    }
}

impl From<VerifyError> for Status {
    fn from(error: VerifyError) -> Self {
        let message = error.to_string();
        match error {
            VerifyError::NoContainer(_) => Self::not_found(message),
            VerifyError::Ambiguous { .. }
            | VerifyError::Impossible { .. }
            | VerifyError::Elsewhere(_) => Self::failed_precondition(message),
            VerifyError::Busy => Self::resource_exhausted(message),
        }
    }
}

impl From<ContentsError> for Status {
    fn from(error: ContentsError) -> Self {
        let message = error.to_string();
        match error {
            ContentsError::NoImage(_) | ContentsError::NoPath { .. } => Self::not_found(message),
            ContentsError::Ambiguous { .. }
            | ContentsError::NotIndexed { .. }
            | ContentsError::Elsewhere(_) => Self::failed_precondition(message),
        }
    }
}

pub(super) async fn within<T>(answer: impl Future<Output = T>) -> Result<T, Status> {
    timeout(REQUEST_TIME_MAX, answer).await.map_err(|_| {
        Status::deadline_exceeded(format!(
            "the daemon did not answer within {} s; look at its log",
            REQUEST_TIME_MAX.as_secs()
        ))
    })
}

/// The contents of an image in messages, at least one of them.
struct Batches {
    contents: ImageContents,
    is_first: bool,
}

impl Iterator for Batches {
    type Item = ImageContentsResponse;

    fn next(&mut self) -> Option<Self::Item> {
        let entries: Vec<_> = self
            .contents
            .entries
            .by_ref()
            .take(ENTRIES_PER_MESSAGE_MAX)
            .collect();
        if entries.is_empty() && !self.is_first {
            return None;
        }
        self.is_first = false;
        Some(ImageContentsResponse {
            manifest_digest: self.contents.manifest_digest.clone(),
            evidence: self.contents.evidence.clone(),
            entries,
        })
    }
}
