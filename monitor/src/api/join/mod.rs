//! The node's side of its conversation with the cluster's controller: it says what runs here, and is
//! told which images are approved.

mod approvals;
mod incidents;
mod report;

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;
use monitor_api::{
    MESSAGE_BYTES_MAX,
    v1::{
        self, Alert, JoinRequest, JoinResponse,
        cluster_client::ClusterClient,
        join_request::{Hello, Incident, Request},
        join_response::{Response, Taken},
    },
};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tracing::{info, warn};

use self::{approvals::Parts, incidents::Incidents, report::Reported};
use super::{
    ApprovalCallError, REQUEST_TIME_MAX,
    server::stopped,
    upstream::{Pauses, Settings, Upstream, Words, shown},
};
use crate::{alerts::build::timestamp, approval::cluster::ClusterApprovals};

/// How often it is looked at what runs; a report is not made more often.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Longest pause after an attempt that failed.
const RETRY_INTERVAL_MAX: Duration = Duration::from_secs(30);
/// Messages that wait to be sent; at the bound the next report waits.
const REQUESTS_MAX: usize = 4;

/// What the log says.
const WORDS: Words = Words {
    reached: "the cluster's controller is joined",
    failed: "the cluster's controller is not reached",
};

/// What a node says to the controller, and what it does with what it is told.
#[tonic::async_trait]
pub trait Member: Send + Sync + 'static {
    /// The containers of this node, sorted by namespace and id.
    async fn containers(&self) -> Vec<v1::Container>;

    /// Puts what the controller tells in force, in place of what it told before, and keeps it for a
    /// daemon that comes later.
    async fn approve(&self, told: ClusterApprovals) -> Result<(), ApprovalCallError>;
}

/// The cluster's controller, and what passed between it and this node.
#[derive(Debug)]
pub struct Controller {
    upstream: Upstream,
    node: String,
    incidents: Mutex<Incidents>,
    has_incident: Notify,
    heard: Mutex<Heard>,
    reports: AtomicU64,
    left_out: AtomicU64,
}

/// What came from the controller.
#[derive(Debug, Default)]
struct Heard {
    at: Option<Timestamp>,
    approvals_refused: u64,
    approvals_error: String,
}

impl Controller {
    /// Called by the node of this name.
    pub fn new(settings: &Settings, node: &str) -> Self {
        Self {
            upstream: Upstream::new(settings, WORDS),
            node: node.to_owned(),
            incidents: Mutex::default(),
            has_incident: Notify::new(),
            heard: Mutex::default(),
            reports: AtomicU64::new(0),
            left_out: AtomicU64::new(0),
        }
    }

    /// Tells the controller of an alert for which a rule (`POLICY.RULE`) asks for a response (`propose`
    /// or `auto`), now or when it is reached again. At 64 that wait the oldest goes, which is counted.
    pub fn tell(&self, alert: Alert, rule: &str, respond: &str) {
        self.incidents().add(Incident {
            alert: Some(alert),
            respond: respond.to_owned(),
            rule: rule.to_owned(),
        });
        self.has_incident.notify_one();
    }

    /// How it stands.
    pub(super) fn status(&self) -> v1::status::Controller {
        let standing = self.upstream.standing();
        let (incidents, incidents_lost) = self.incidents().counts();
        let heard = self.heard();
        v1::status::Controller {
            address: self.upstream.address().to_owned(),
            connected: standing.connected,
            since: Some(timestamp(standing.since)),
            failures: standing.failures,
            error: standing.error,
            heard_at: heard.at.map(timestamp),
            reports: self.reports.load(Ordering::Relaxed),
            left_out: self.left_out.load(Ordering::Relaxed),
            approvals_refused: heard.approvals_refused,
            approvals_error: heard.approvals_error.clone(),
            incidents,
            incidents_lost,
        }
    }

    fn incidents(&self) -> MutexGuard<'_, Incidents> {
        self.incidents
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Calls the controller as long as the daemon runs.
pub struct Joiner {
    /// The controller.
    pub controller: Arc<Controller>,
    /// What runs here, and what keeps approvals.
    pub node: Arc<dyn Member>,
    /// True once every container is known: before, a report would leave some out.
    pub ready: watch::Receiver<bool>,
}

impl Joiner {
    /// Goes on until `shutdown` is true or its sender is gone.
    pub async fn run(self, mut shutdown: watch::Receiver<bool>) {
        tokio::select! {
            () = self.keep_calling() => {}
            () = stopped(&mut shutdown) => {}
        }
    }

    async fn keep_calling(&self) {
        let mut pauses = Pauses::up_to(RETRY_INTERVAL_MAX);
        loop {
            let ended = match self.call().await {
                Ok((requests, responses)) => {
                    self.controller.upstream.reached();
                    pauses.begin_again();
                    // Whichever ends first, there is no conversation without it.
                    tokio::select! {
                        ended = self.speak(requests) => ended,
                        ended = self.listen(responses) => ended,
                    }
                }
                Err(error) => error,
            };
            self.controller.upstream.failed(ended);
            sleep(pauses.next()).await;
        }
    }

    /// Connects and begins the call; gives both sides of it.
    async fn call(&self) -> Result<(Requests, Streaming<JoinResponse>), String> {
        let channel = self.controller.upstream.connect().await?;
        let mut client = ClusterClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let (requests, waiting) = mpsc::channel(REQUESTS_MAX);
        let requests = Requests(requests);
        let hello = Hello {
            node: self.controller.node.clone(),
        };
        // There is room: it is the first.
        requests.send(Request::Hello(hello)).await?;
        let answer = timeout(REQUEST_TIME_MAX, client.join(ReceiverStream::new(waiting)))
            .await
            .map_err(|_| format!("no answer for {} s", REQUEST_TIME_MAX.as_secs()))?
            .map_err(|status| shown(&status))?;
        Ok((requests, answer.into_inner()))
    }

    /// Says what runs and what happens, until the call ends; gives the reason.
    async fn speak(&self, requests: Requests) -> String {
        let Err(error) = self.tell(&requests).await;
        error
    }

    async fn tell(&self, requests: &Requests) -> Result<Infallible, String> {
        let mut ready = self.ready.clone();
        let mut looks = interval(LOOK_INTERVAL);
        // However long a report took, the next is not sooner.
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reported = Reported::default();
        let mut told = 0;
        loop {
            while let Some((number, incident)) = self.next_incident(told) {
                requests.send(Request::Incident(Box::new(incident))).await?;
                told = number;
            }
            tokio::select! {
                _ = looks.tick() => {
                    if *ready.borrow_and_update() {
                        self.report(&mut reported, requests).await?;
                    }
                }
                () = self.controller.has_incident.notified() => {}
            }
        }
    }

    fn next_incident(&self, told: u64) -> Option<(u64, Incident)> {
        self.controller.incidents().next(told)
    }

    /// Reports what runs, if that is due.
    async fn report(&self, reported: &mut Reported, requests: &Requests) -> Result<(), String> {
        let containers = report::running(self.node.containers().await);
        let now = Instant::now();
        if !reported.is_due(&containers, now) {
            return Ok(());
        }
        let controller = &self.controller;
        let mut left_out = 0;
        for part in report::parts(&containers) {
            left_out = part.left_out;
            requests.send(Request::Running(part)).await?;
        }
        let before = controller.left_out.swap(left_out, Ordering::Relaxed);
        if left_out > 0 && before == 0 {
            warn!(
                left_out,
                "more containers run than are reported to the controller"
            );
        }
        controller.reports.fetch_add(1, Ordering::Relaxed);
        reported.sent(containers, now);
        Ok(())
    }

    /// Takes what the controller says, until it ends the call; gives the reason.
    async fn listen(&self, mut responses: Streaming<JoinResponse>) -> String {
        let mut parts = Parts::default();
        loop {
            let response = match responses.message().await {
                Ok(Some(response)) => response.response,
                Ok(None) => return "the controller ended the call".to_owned(),
                Err(status) => return shown(&status),
            };
            self.controller.heard().at = Some(Timestamp::now());
            match response {
                Some(Response::Approvals(part)) => match parts.take(part) {
                    Some(Ok(told)) => self.approve(told).await,
                    Some(Err(error)) => self.refuse(error.to_string()),
                    None => {}
                },
                Some(Response::Taken(Taken { alert })) => self.controller.incidents().taken(&alert),
                // Of a controller that is newer than this node.
                None => {}
            }
        }
    }

    async fn approve(&self, told: ClusterApprovals) {
        let repositories = told.documents().len();
        match self.node.approve(told).await {
            Ok(()) => {
                info!(repositories, "the cluster's approvals are in force");
                self.controller.heard().approvals_error.clear();
            }
            // The next daemon is told again.
            Err(ApprovalCallError::Stopping) => {}
            Err(error) => self.refuse(error.to_string()),
        }
    }

    fn refuse(&self, error: String) {
        warn!(
            error,
            "the cluster's approvals are refused; those before them stay in force"
        );
        let mut heard = self.controller.heard();
        heard.approvals_refused += 1;
        heard.approvals_error = error;
    }
}

/// What is said to the controller.
struct Requests(mpsc::Sender<JoinRequest>);

impl Requests {
    /// Waits for room. A controller that is there and takes nothing is no use: the next call may reach
    /// another one.
    async fn send(&self, request: Request) -> Result<(), String> {
        let request = Some(request);
        match timeout(REQUEST_TIME_MAX, self.0.send(JoinRequest { request })).await {
            Ok(sent) => sent.map_err(|_| "the call ended".to_owned()),
            Err(_) => Err(format!(
                "the controller took nothing for {} s",
                REQUEST_TIME_MAX.as_secs()
            )),
        }
    }
}
