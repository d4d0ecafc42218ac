//! A collector, as a SOC serves one to its nodes.

use std::{
    collections::BTreeSet,
    fs,
    net::{SocketAddr, TcpListener},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use anyhow::{Result, anyhow};
use monitor_api::v1::{
    AlertsRequest, AlertsResponse,
    alerts_request::{Start, start::Position},
    alerts_response::Response as Said,
    collector_server::{Collector as Served, CollectorServer},
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{
    Request, Response, Status, Streaming, async_trait,
    transport::{Certificate, Identity, Server, ServerTlsConfig},
};

/// Requests to a node that wait to be sent.
const REQUESTS_MAX: usize = 16;

/// What a collector has, over its restarts.
#[derive(Clone, Debug, Default)]
pub struct Store(Arc<Mutex<Stored>>);

/// See [`Store`].
#[derive(Debug, Default)]
pub struct Stored {
    /// Names of the nodes that called.
    pub nodes: BTreeSet<String>,
    /// The journal that the cursors are of.
    pub journal: String,
    /// Of the alerts, in the order in which they came.
    pub cursors: Vec<u64>,
}

impl Store {
    /// What is in it now.
    pub fn look(&self) -> MutexGuard<'_, Stored> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A server that goes when this is dropped, without a word to those who call it.
#[derive(Debug)]
pub struct Collector {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Collector {
    /// Serves at `address` with `127.0.0.1.crt`, and checks callers by `ca.crt`, both in
    /// `certificates`.
    pub fn start(address: SocketAddr, certificates: &Path, store: &Store) -> Result<Self> {
        let read = |name: &str| fs::read(certificates.join(name));
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(
                read("127.0.0.1.crt")?,
                read("127.0.0.1.key")?,
            ))
            .client_ca_root(Certificate::from_pem(read("ca.crt")?));
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let server = Server::builder()
            .tls_config(tls)?
            .add_service(CollectorServer::new(store.clone()));
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let incoming = TcpListenerStream::new(tokio::net::TcpListener::from_std(listener)?);
                tokio::select! {
                    served = server.serve_with_incoming(incoming) => Ok(served?),
                    _ = stopped => Ok(()),
                }
            })
        });
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Ends it.
    pub fn stop(mut self) -> Result<()> {
        drop(self.stop.take());
        let ended = self.thread.take().map(JoinHandle::join);
        ended
            .transpose()
            .map_err(|_| anyhow!("the collector panicked"))?
            .unwrap_or(Ok(()))
    }
}

#[async_trait]
impl Served for Store {
    type PublishStream = ReceiverStream<Result<AlertsRequest, Status>>;

    async fn publish(
        &self,
        request: Request<Streaming<AlertsResponse>>,
    ) -> Result<Response<Self::PublishStream>, Status> {
        let name = request.metadata().get_bin("monitor-node-bin");
        let name = name
            .and_then(|name| name.to_bytes().ok())
            .unwrap_or_default();
        let start = {
            let mut stored = self.look();
            stored
                .nodes
                .insert(String::from_utf8_lossy(&name).into_owned());
            Start {
                journal: stored.journal.clone(),
                position: Some(Position::After(stored.cursors.last().copied().unwrap_or(0))),
                consumer: "fleet".to_owned(),
                ..Start::default()
            }
        };
        let (requests, waiting) = mpsc::channel(REQUESTS_MAX);
        let (store, mut said) = (self.clone(), request.into_inner());
        tokio::spawn(async move {
            let mut next = AlertsRequest {
                start: Some(start),
                ..AlertsRequest::default()
            };
            while requests.send(Ok(next)).await.is_ok() {
                next = AlertsRequest::default();
                match said.message().await {
                    Ok(Some(AlertsResponse {
                        response: Some(Said::Alert(alert)),
                    })) => {
                        next.acknowledge = alert.cursor;
                        let mut stored = store.look();
                        stored.journal = alert.journal;
                        stored.cursors.push(alert.cursor);
                    }
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => break,
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(waiting)))
    }
}
