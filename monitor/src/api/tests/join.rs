//! What passes between a node and a controller, over mutual TLS.

use std::{fs, sync::Mutex, time::Duration};

use monitor_api::v1::{
    self, Alert, Approval, JoinRequest, JoinResponse, alert,
    cluster_server::{Cluster, ClusterServer},
    join_request::{Hello, Incident, Request as Said, Running},
    join_response::{Approvals, Response as Told, Taken},
};
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle, time::timeout};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Request, Response, Status,
    transport::{Identity, Server, ServerTlsConfig},
};

use super::{tls::Authority, *};
use crate::{
    api::{fixture, upstream::Settings},
    approval::cluster::ClusterApprovals,
};

/// A call: both sides of the conversation.
type Call = (
    Streaming<JoinRequest>,
    mpsc::Sender<Result<JoinResponse, Status>>,
);

struct Served(mpsc::Sender<Call>);

#[tonic::async_trait]
impl Cluster for Served {
    type JoinStream = ReceiverStream<Result<JoinResponse, Status>>;

    async fn join(
        &self,
        request: Request<Streaming<JoinRequest>>,
    ) -> Result<Response<Self::JoinStream>, Status> {
        let (told, waiting) = mpsc::channel(8);
        let call = (request.into_inner(), told);
        let sent = self.0.send(call).await;
        sent.map_err(|_| Status::unavailable("nobody takes calls"))?;
        Ok(Response::new(ReceiverStream::new(waiting)))
    }
}

/// A node whose containers are these.
#[derive(Default)]
struct Runs {
    containers: Mutex<Vec<v1::Container>>,
    approved: Mutex<Vec<ClusterApprovals>>,
}

#[tonic::async_trait]
impl Member for Runs {
    async fn containers(&self) -> Vec<v1::Container> {
        self.containers.lock().unwrap().clone()
    }

    async fn approve(&self, told: ClusterApprovals) -> Result<(), ApprovalCallError> {
        if told.documents().is_empty() {
            return Err(ApprovalCallError::Failed("of nothing".to_owned()));
        }
        self.approved.lock().unwrap().push(told);
        Ok(())
    }
}

/// A node, and the controller that it joins.
struct World {
    controller: Arc<Controller>,
    node: Arc<Runs>,
    calls: mpsc::Receiver<Call>,
    ready: watch::Sender<bool>,
    _shutdown: watch::Sender<bool>,
    _server: JoinHandle<()>,
    _directory: TempDir,
}

/// One conversation, as the controller has it.
struct Talk {
    said: Streaming<JoinRequest>,
    told: mpsc::Sender<Result<JoinResponse, Status>>,
}

impl World {
    async fn start() -> Self {
        let authority = Authority::new();
        let directory = TempDir::new().unwrap();
        let path = |name: &str| directory.path().join(name);
        let (certificate, key) = authority.issue("node-7");
        fs::write(path("ca.crt"), authority.0.pem()).unwrap();
        fs::write(path("node.crt"), certificate).unwrap();
        fs::write(path("node.key"), key).unwrap();
        let (certificate, key) = authority.issue("127.0.0.1");
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(certificate, key))
            .client_ca_root(tonic::transport::Certificate::from_pem(authority.0.pem()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("https://{}", listener.local_addr().unwrap());
        let (calls_in, calls) = mpsc::channel::<Call>(8);
        let server = Server::builder()
            .tls_config(tls)
            .unwrap()
            .add_service(ClusterServer::new(Served(calls_in)))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let settings = Settings {
            address,
            ca: path("ca.crt"),
            certificate: path("node.crt"),
            key: path("node.key"),
        };
        let controller = Arc::new(Controller::new(&settings, "node-7"));
        let node = Arc::new(Runs::default());
        let (ready, is_ready) = watch::channel(true);
        let (shutdown, is_shutdown) = watch::channel(false);
        let joiner = Joiner {
            controller: Arc::clone(&controller),
            node: node.clone(),
            ready: is_ready,
        };
        tokio::spawn(joiner.run(is_shutdown));
        Self {
            controller,
            node,
            calls,
            ready,
            _shutdown: shutdown,
            _server: tokio::spawn(async move { server.await.unwrap() }),
            _directory: directory,
        }
    }

    /// The next conversation, whose first message was heard.
    async fn join(&mut self) -> Talk {
        let call = timeout(Duration::from_secs(20), self.calls.recv()).await;
        let (said, told) = call.unwrap().unwrap();
        let mut talk = Talk { said, told };
        let hello = Hello {
            node: "node-7".to_owned(),
        };
        assert_eq!(talk.hear().await, Said::Hello(hello));
        talk
    }

    fn set(&self, ids: &[&str]) {
        let containers = ids.iter().map(|id| container(id)).collect();
        *self.node.containers.lock().unwrap() = containers;
    }

    /// Waits until the status is like that.
    async fn wait(&self, is_so: impl Fn(&v1::status::Controller) -> bool) {
        for _ in 0..200 {
            if is_so(&self.controller.status()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{:?}", self.controller.status());
    }
}

impl Talk {
    async fn hear(&mut self) -> Said {
        let message = timeout(Duration::from_secs(20), self.said.message()).await;
        message.unwrap().unwrap().unwrap().request.unwrap()
    }

    async fn hear_running(&mut self) -> (Vec<String>, Running) {
        let Said::Running(running) = self.hear().await else {
            panic!("no report");
        };
        let ids = running.containers.iter();
        let ids = ids.map(|it| it.container.clone().unwrap().id);
        (ids.collect(), running)
    }

    async fn tell(&self, told: Told) {
        let response = Some(told);
        self.told.send(Ok(JoinResponse { response })).await.unwrap();
    }

    async fn tell_approvals(&self, approvals: Vec<Approval>, more: bool) {
        self.tell(Told::Approvals(Approvals { approvals, more }))
            .await;
    }
}

fn container(id: &str) -> v1::Container {
    let mut container = fixture::container(id, id);
    let own = container.container.as_mut().unwrap();
    own.pod = Some(alert::Pod::default());
    container
}

fn approval(repository: &str) -> Approval {
    Approval {
        repository: repository.to_owned(),
        digest: format!("sha256:{}", "a".repeat(64)),
        state: "approved".to_owned(),
        by: "alice".to_owned(),
        at: Some(prost_types::Timestamp::default()),
        reason: "release".to_owned(),
        ..Approval::default()
    }
}

#[tokio::test]
async fn what_runs_is_reported_whole_and_again_when_it_changes() {
    let mut world = World::start().await;
    world.set(&["a", "b"]);
    let mut talk = world.join().await;
    let (ids, running) = talk.hear_running().await;
    assert_eq!(ids, ["a", "b"]);
    assert!(!running.more && running.left_out == 0);
    world.set(&["b"]);
    assert_eq!(talk.hear_running().await.0, ["b"]);
    let many: Vec<String> = (0..300).map(|it| it.to_string()).collect();
    world.set(&many.iter().map(String::as_str).collect::<Vec<_>>());
    let (ids, running) = talk.hear_running().await;
    assert!(ids.len() == 256 && running.more);
    let (ids, running) = talk.hear_running().await;
    assert!(ids.len() == 44 && !running.more);
    world.wait(|it| it.reports == 3 && it.connected).await;
}

#[tokio::test]
async fn nothing_is_reported_before_all_containers_are_known() {
    let mut world = World::start().await;
    world.ready.send_replace(false);
    let mut talk = world.join().await;
    let early = timeout(Duration::from_millis(1500), talk.said.message()).await;
    assert!(early.is_err(), "{early:?}");
    world.ready.send_replace(true);
    assert_eq!(talk.hear_running().await.0.len(), 0);
}

#[tokio::test]
async fn approvals_are_taken_whole_or_refused() {
    let mut world = World::start().await;
    let talk = world.join().await;
    talk.tell_approvals(vec![approval("a")], true).await;
    talk.tell_approvals(vec![approval("b")], false).await;
    talk.tell(Told::Taken(Taken::default())).await;
    // Of what is newer than this node.
    talk.told.send(Ok(JoinResponse::default())).await.unwrap();
    let mut wrong = approval("b");
    wrong.state = "later".to_owned();
    talk.tell_approvals(vec![wrong], false).await;
    world
        .wait(|it| it.approvals_refused == 1 && it.approvals_error.contains("neither"))
        .await;
    // Refused by the node.
    talk.tell_approvals(Vec::new(), false).await;
    world
        .wait(|it| it.approvals_refused == 2 && it.approvals_error.contains("of nothing"))
        .await;
    talk.tell_approvals(vec![approval("c")], false).await;
    world.wait(|it| it.approvals_error.is_empty()).await;
    let approved = world.node.approved.lock().unwrap();
    let lengths: Vec<_> = approved.iter().map(|it| it.documents().len()).collect();
    assert_eq!(lengths, [2, 1]);
    assert!(world.controller.status().heard_at.is_some());
}

#[tokio::test]
async fn an_incident_is_told_until_it_is_taken_also_in_a_next_conversation() {
    let mut world = World::start().await;
    world.ready.send_replace(false);
    let incident = |id: &str| {
        let alert = Alert {
            id: id.to_owned(),
            ..Alert::default()
        };
        Incident {
            alert: Some(alert),
            respond: "propose".to_owned(),
            rule: "p.r".to_owned(),
        }
    };
    let tell = |world: &World, id: &str| {
        let alert = incident(id).alert.unwrap();
        world.controller.tell(alert, "p.r", "propose");
    };
    tell(&world, "1");
    let mut talk = world.join().await;
    assert_eq!(talk.hear().await, Said::Incident(Box::new(incident("1"))));
    tell(&world, "2");
    assert_eq!(talk.hear().await, Said::Incident(Box::new(incident("2"))));
    let alert = "1".to_owned();
    talk.tell(Told::Taken(Taken { alert })).await;
    world.wait(|it| it.incidents == 1).await;
    drop(talk);
    let mut talk = world.join().await;
    assert_eq!(talk.hear().await, Said::Incident(Box::new(incident("2"))));
    let status = world.controller.status();
    assert_eq!((status.failures, status.incidents_lost), (1, 0));
}

#[tokio::test]
async fn a_refusal_is_told_in_the_status() {
    let mut world = World::start().await;
    let talk = world.join().await;
    let refused = Status::permission_denied("needs the role node");
    talk.told.send(Err(refused)).await.unwrap();
    world
        .wait(|it| !it.connected && it.error.contains("needs the role node"))
        .await;
}
