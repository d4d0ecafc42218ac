//! A collector, as a SOC serves one to its nodes.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Result;
use monitor_api::v1::{
    AlertsRequest, AlertsResponse,
    alerts_request::{Start, start::Position},
    alerts_response::Response as Said,
    collector_server::{Collector, CollectorServer},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, async_trait};

use crate::served::Served;

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

impl Store {
    /// Serves at `address` with the certificates there.
    pub fn serve(&self, address: SocketAddr, certificates: &Path) -> Result<Served> {
        let service = CollectorServer::new(self.clone());
        Served::start(address, certificates, |server| server.add_service(service))
    }
}

#[async_trait]
impl Collector for Store {
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
