//! What the API answers about the cluster.

use std::{collections::HashMap, sync::Arc};

use jiff::Timestamp;
use monitor_api::v1;
use tokio::sync::{broadcast, mpsc, watch};

use super::{
    nodes::{ReportError, digests},
    orders::Controller,
};
use crate::{
    api::{
        self, ApprovalCall, ApprovalCallError, ContentsError, CoverageError, Elsewhere,
        ImageContents, Members, Node, PolicyCall, PolicyCallError, ProfileCall, ProfileError,
        VerifyError,
    },
    audit::Who,
    digest::Digest,
    respond::{Order, Refusal},
};

/// Answers from what the nodes report and from the objects of the cluster.
pub(super) struct Answers {
    pub(super) controller: Arc<Controller>,
    pub(super) name: String,
}

impl Answers {
    /// Reported containers of each image, by its digests.
    fn running(&self) -> HashMap<Digest, u64> {
        let mut running = HashMap::new();
        let nodes = &self.controller.nodes;
        let of_each = nodes.each(|_, container| container.image.as_ref().map(digests));
        for digest in of_each.into_iter().flatten() {
            *running.entry(digest).or_default() += 1;
        }
        running
    }
}

#[api::async_trait]
impl Node for Answers {
    async fn containers(&self) -> Vec<v1::Container> {
        let nodes = &self.controller.nodes;
        nodes.each(|_, container| Some(container.clone()))
    }

    async fn images(&self) -> Vec<v1::Image> {
        Vec::new()
    }

    async fn image_contents(
        &self,
        _: &str,
        _: Option<&[u8]>,
    ) -> Result<ImageContents, ContentsError> {
        Err(Elsewhere.into())
    }

    async fn verify_container(
        &self,
        _: &str,
    ) -> Result<mpsc::Receiver<v1::VerifyContainerResponse>, VerifyError> {
        Err(Elsewhere.into())
    }

    async fn verify_image(
        &self,
        _: &str,
    ) -> Result<mpsc::Receiver<v1::VerifyImageResponse>, ContentsError> {
        Err(Elsewhere.into())
    }

    async fn image_usage(&self) -> Vec<v1::ImageUsageResponse> {
        Vec::new()
    }

    async fn coverage(
        &self,
        _: &str,
        _: Option<Timestamp>,
        _: Option<Timestamp>,
    ) -> Result<v1::CoverageResponse, CoverageError> {
        Err(Elsewhere.into())
    }

    async fn policies(&self, _: PolicyCall) -> Result<v1::ListPoliciesResponse, PolicyCallError> {
        Err(Elsewhere.into())
    }

    async fn record(&self) -> Option<broadcast::Receiver<Arc<str>>> {
        None
    }

    async fn profiles(&self, _: ProfileCall) -> Result<Vec<v1::Profile>, ProfileError> {
        Err(Elsewhere.into())
    }

    async fn approvals(
        &self,
        call: ApprovalCall,
    ) -> Result<v1::ListApprovalsResponse, ApprovalCallError> {
        let running = self.running();
        self.controller.approvals.call(call, &running).await
    }

    async fn approval_of(&self, _: &str) -> Result<v1::VerifyApprovalResponse, ApprovalCallError> {
        Err(ContentsError::from(Elsewhere).into())
    }

    async fn rollback(&self, order: Order, who: Who) -> Result<v1::Rollback, Refusal> {
        self.controller.order(order, who).await
    }

    async fn rollbacks(&self) -> Vec<v1::Rollback> {
        self.controller.list()
    }

    async fn status(&self) -> v1::Status {
        let mut containers: HashMap<String, u64> = HashMap::new();
        let identities = self.controller.nodes.each(|_, container| {
            let image = container.image.as_ref();
            Some(image.map_or("none", |it| it.identity.as_str()).to_owned())
        });
        for identity in identities {
            *containers.entry(identity).or_default() += 1;
        }
        v1::Status {
            node: self.name.clone(),
            containers,
            rollbacks: self.controller.ledger().counts(),
            approvals: Some(self.controller.approvals.status()),
            ..v1::Status::default()
        }
    }
}

#[api::async_trait]
impl Members for Answers {
    fn report(
        &self,
        node: &str,
        containers: Vec<v1::Container>,
        bytes: usize,
    ) -> Result<(), ReportError> {
        self.controller.nodes.report(node, containers, bytes)
    }

    async fn incident(&self, node: &str, incident: v1::join_request::Incident) {
        self.controller.incident(node, incident).await;
    }

    fn approvals(&self) -> watch::Receiver<Option<Arc<[v1::Approval]>>> {
        self.controller.approvals.told()
    }
}
