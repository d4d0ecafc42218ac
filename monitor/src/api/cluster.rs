//! The service of nodes: what the controller is told by their daemons, and tells them.

use std::{sync::Arc, time::Duration};

use monitor_api::v1::{
    self, Approval, JoinRequest, JoinResponse,
    cluster_server::Cluster,
    join_request::{Incident, Request as Said},
    join_response::{Approvals, Response as Told, Taken},
};
use prost::Message as _;
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{
    account::Account,
    caller::{Caller, Role},
    guard,
    server::stopped,
};
use crate::controller::nodes::{ReportError, bounded};

/// Longest silence of a node, which reports every 10 s.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Longest time for a node to take a message.
const SEND_TIME_MAX: Duration = Duration::from_secs(30);
/// Messages that wait for a node; at the bound the conversation waits.
const AHEAD_MAX: usize = 4;
/// Incidents of a node that wait while one is responded to; at the bound the conversation waits.
const INCIDENTS_MAX: usize = 64;
/// Statements in one message: with texts of 1 KiB each they stay below the bound of a message.
const STATEMENTS_PER_MESSAGE_MAX: usize = 512;

/// The cluster, as nodes take part in it.
#[tonic::async_trait]
pub trait Members: Send + Sync + 'static {
    /// Takes a whole report of a node, of so many bytes.
    fn report(
        &self,
        node: &str,
        containers: Vec<v1::Container>,
        bytes: usize,
    ) -> Result<(), ReportError>;

    /// Takes an alert of a node whose policy asks for a response.
    async fn incident(&self, node: &str, incident: Incident);

    /// What was said of images; `None` as long as that is not known.
    fn approvals(&self) -> watch::Receiver<Option<Arc<[Approval]>>>;
}

/// Converses with nodes.
pub(super) struct ClusterService {
    pub(super) members: Arc<dyn Members>,
    pub(super) account: Arc<Account>,
    pub(super) shutdown: watch::Receiver<bool>,
}

type Replies = mpsc::Sender<Result<JoinResponse, Status>>;

#[tonic::async_trait]
impl Cluster for ClusterService {
    type JoinStream = ReceiverStream<Result<JoinResponse, Status>>;

    async fn join(
        &self,
        request: Request<Streaming<JoinRequest>>,
    ) -> Result<Response<Self::JoinStream>, Status> {
        let caller = guard::permit(&self.account.audit, &request, "Join", &[Role::Node]).await?;
        let turn = Arc::clone(&self.account.conversations).try_acquire_owned();
        let turn = turn.map_err(|_| Status::resource_exhausted(ReportError::Nodes.to_string()))?;
        let (replies, waiting) = mpsc::channel(AHEAD_MAX);
        let (incidents, waiting_incidents) = mpsc::channel(INCIDENTS_MAX);
        let conversation = Conversation {
            members: Arc::clone(&self.members),
            requests: request.into_inner(),
            replies,
            node: String::new(),
            report: Vec::new(),
            report_bytes: 0,
            incidents,
        };
        let mut shutdown = self.shutdown.clone();
        tokio::spawn(async move {
            let _turn = turn;
            let replies = conversation.replies.clone();
            let ended = tokio::select! {
                ended = conversation.converse(&caller, waiting_incidents) => ended,
                () = stopped(&mut shutdown) => {
                    Err(Status::unavailable("the controller is stopping"))
                }
            };
            if let Err(status) = ended {
                tracing::info!(node = caller.name, %status, "the conversation with a node ended");
                // The node may have gone.
                let _ = timeout(SEND_TIME_MAX, replies.send(Err(status))).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(waiting)))
    }
}

/// With one node.
struct Conversation {
    members: Arc<dyn Members>,
    requests: Streaming<JoinRequest>,
    replies: Replies,
    node: String,
    /// The parts of a report that have come.
    report: Vec<v1::Container>,
    report_bytes: usize,
    incidents: mpsc::Sender<Incident>,
}

impl Conversation {
    async fn converse(
        mut self,
        caller: &Caller,
        incidents: mpsc::Receiver<Incident>,
    ) -> Result<(), Status> {
        let first = self.next().await?;
        let Some(Said::Hello(hello)) = first.and_then(|it| it.request) else {
            return Err(Status::invalid_argument("say hello first"));
        };
        if !caller.names.contains(&hello.node) {
            return Err(Status::permission_denied(format!(
                "the certificate of {} does not name node {:?}",
                caller.name,
                hello.node.chars().take(64).collect::<String>()
            )));
        }
        self.node = hello.node;
        tracing::info!(node = self.node, "a node has joined");
        // Beside the reports, which are evidence only while they are new. What waits is taken also if
        // the node goes.
        tokio::spawn(respond(
            Arc::clone(&self.members),
            self.node.clone(),
            incidents,
            self.replies.clone(),
        ));
        let mut approvals = self.members.approvals();
        approvals.mark_changed();
        loop {
            tokio::select! {
                changed = approvals.changed() => {
                    changed.map_err(|_| Status::unavailable("the controller is stopping"))?;
                    let all = approvals.borrow_and_update().clone();
                    if let Some(all) = all {
                        self.tell(&all).await?;
                    }
                }
                said = timeout(SILENCE_MAX, self.requests.message()) => {
                    let silent = |_| Status::deadline_exceeded("nothing was reported for long");
                    let Some(said) = said.map_err(silent)?? else {
                        return Ok(());
                    };
                    self.take(said).await?;
                }
            }
        }
    }

    async fn next(&mut self) -> Result<Option<JoinRequest>, Status> {
        let silent = |_| Status::deadline_exceeded("nothing was said for long");
        timeout(SILENCE_MAX, self.requests.message())
            .await
            .map_err(silent)?
    }

    async fn take(&mut self, said: JoinRequest) -> Result<(), Status> {
        match said.request {
            Some(Said::Running(part)) => {
                self.report_bytes += part.encoded_len();
                let containers = self.report.len() + part.containers.len();
                bounded(containers, self.report_bytes)
                    .map_err(|refused| Status::resource_exhausted(refused.to_string()))?;
                self.report.extend(part.containers);
                if !part.more {
                    let bytes = std::mem::take(&mut self.report_bytes);
                    let report = std::mem::take(&mut self.report);
                    let taken = self.members.report(&self.node, report, bytes);
                    taken.map_err(|error| Status::resource_exhausted(error.to_string()))?;
                }
                Ok(())
            }
            Some(Said::Incident(incident)) => {
                let stopping = |_| Status::unavailable("the controller is stopping");
                self.incidents.send(*incident).await.map_err(stopping)
            }
            Some(Said::Hello(_)) => Err(Status::invalid_argument("hello was said already")),
            None => Ok(()),
        }
    }

    async fn tell(&self, all: &[Approval]) -> Result<(), Status> {
        let mut left = all;
        loop {
            let (part, rest) = left.split_at(left.len().min(STATEMENTS_PER_MESSAGE_MAX));
            let approvals = Approvals {
                approvals: part.to_vec(),
                more: !rest.is_empty(),
            };
            send(&self.replies, Told::Approvals(approvals)).await?;
            if rest.is_empty() {
                return Ok(());
            }
            left = rest;
        }
    }
}

/// Takes the incidents of a node, one after the other.
async fn respond(
    members: Arc<dyn Members>,
    node: String,
    mut incidents: mpsc::Receiver<Incident>,
    replies: Replies,
) {
    while let Some(incident) = incidents.recv().await {
        let id = incident.alert.as_ref().map(|alert| alert.id.clone());
        members.incident(&node, incident).await;
        let taken = Taken {
            alert: id.unwrap_or_default(),
        };
        if let Err(status) = send(&replies, Told::Taken(taken)).await {
            tracing::debug!(node, %status, "a node will tell an incident again");
        }
    }
}

async fn send(replies: &Replies, told: Told) -> Result<(), Status> {
    let response = JoinResponse {
        response: Some(told),
    };
    let sent = timeout(SEND_TIME_MAX, replies.send(Ok(response))).await;
    match sent {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Status::cancelled("the node has gone")),
        Err(_) => Err(Status::deadline_exceeded("the node does not listen")),
    }
}
