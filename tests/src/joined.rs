//! A cluster's controller, as far as nodes talk with it.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Result;
use monitor_api::v1::{
    Approval, Container, JoinRequest, JoinResponse,
    cluster_server::{Cluster, ClusterServer},
    join_request::{Incident, Request as Said},
    join_response::{Approvals, Response as Told, Taken},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, async_trait};

use crate::served::Served;

/// Responses that wait to be sent.
const RESPONSES_MAX: usize = 16;

/// What a controller knows, over its restarts.
#[derive(Clone, Debug, Default)]
pub struct Known(Arc<Mutex<Facts>>);

/// See [`Known`].
#[derive(Debug, Default)]
pub struct Facts {
    /// What each node is told when it joins.
    pub approvals: Vec<Approval>,
    /// Incidents are taken.
    pub takes: bool,
    /// Names of nodes, in the order in which they joined.
    pub nodes: Vec<String>,
    /// The last whole report.
    pub running: Vec<Container>,
    /// Whole reports.
    pub reports: u64,
    /// Incidents, with what comes again.
    pub incidents: Vec<Incident>,
    /// To the node that joined last.
    node: Option<mpsc::Sender<Result<JoinResponse, Status>>>,
}

impl Known {
    /// What it is now.
    pub fn look(&self) -> MutexGuard<'_, Facts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves at `address` with the certificates there.
    pub fn serve(&self, address: SocketAddr, certificates: &Path) -> Result<Served> {
        let service = ClusterServer::new(self.clone());
        Served::start(address, certificates, |server| server.add_service(service))
    }

    /// Tells the node that joined last, and those who join later, that this is approved.
    pub fn approve(&self, approvals: &[Approval]) -> Result<()> {
        let mut facts = self.look();
        facts.approvals = approvals.to_vec();
        if let Some(node) = &facts.node {
            node.try_send(Ok(told(approvals)))?;
        }
        Ok(())
    }
}

fn told(approvals: &[Approval]) -> JoinResponse {
    JoinResponse {
        response: Some(Told::Approvals(Approvals {
            approvals: approvals.to_vec(),
            more: false,
        })),
    }
}

#[async_trait]
impl Cluster for Known {
    type JoinStream = ReceiverStream<Result<JoinResponse, Status>>;

    async fn join(
        &self,
        request: Request<Streaming<JoinRequest>>,
    ) -> Result<Response<Self::JoinStream>, Status> {
        let (responses, waiting) = mpsc::channel(RESPONSES_MAX);
        let (known, mut said) = (self.clone(), request.into_inner());
        tokio::spawn(async move {
            let mut report = Vec::new();
            while let Ok(Some(message)) = said.message().await {
                let response = known.hear(message, &mut report, &responses);
                if let Some(response) = response
                    && responses.send(Ok(response)).await.is_err()
                {
                    break;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(waiting)))
    }
}

impl Known {
    /// Takes note of what a node says, and gives the answer.
    fn hear(
        &self,
        message: JoinRequest,
        report: &mut Vec<Container>,
        responses: &mpsc::Sender<Result<JoinResponse, Status>>,
    ) -> Option<JoinResponse> {
        let mut facts = self.look();
        match message.request? {
            Said::Hello(hello) => {
                facts.nodes.push(hello.node);
                facts.node = Some(responses.clone());
                Some(told(&facts.approvals))
            }
            Said::Running(part) => {
                report.extend(part.containers);
                if !part.more {
                    facts.running = std::mem::take(report);
                    facts.reports += 1;
                }
                None
            }
            Said::Incident(incident) => {
                let alert = incident.alert.as_ref().map(|it| it.id.clone());
                facts.incidents.push(*incident);
                let taken = Taken {
                    alert: alert.unwrap_or_default(),
                };
                facts.takes.then_some(JoinResponse {
                    response: Some(Told::Taken(taken)),
                })
            }
        }
    }
}
