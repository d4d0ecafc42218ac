//! Alerts for a collector: the conversation of an alert stream, with a server that the node calls.

use std::{future::poll_fn, sync::Arc, time::Duration};

use monitor_api::{
    MESSAGE_BYTES_MAX,
    v1::{self, AlertsRequest, AlertsResponse, collector_server::SERVICE_NAME},
};
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tonic::{
    Code, Status, Streaming,
    codec::Codec as _,
    codegen::{Service as _, http},
    metadata::{BinaryMetadataValue, MetadataMap},
};
use tonic_prost::ProstCodec;

use super::{
    Account, REQUEST_TIME_MAX, STREAM_AHEAD_MAX,
    alerts::AlertStream,
    fanout::Fanout,
    frames,
    server::stopped,
    upstream::{Pauses, Settings, Upstream, Words, described, shown},
};
use crate::{alerts::build::timestamp, audit::Who};

/// Longest pause after an attempt that failed.
const RETRY_INTERVAL_MAX: Duration = Duration::from_secs(60);
/// How long a collector has at the end to take what it was sent.
const END_TIME_MAX: Duration = Duration::from_secs(2);

/// What the log says.
const WORDS: Words = Words {
    reached: "alerts are published",
    failed: "alerts are not published",
};

/// A collector, and who calls it.
#[derive(Debug)]
pub struct Collector {
    upstream: Upstream,
    node: String,
}

impl Collector {
    /// Called by the node of this name.
    pub fn new(settings: &Settings, node: &str) -> Self {
        Self {
            upstream: Upstream::new(settings, WORDS),
            node: node.to_owned(),
        }
    }

    /// How it stands.
    pub(super) fn status(&self) -> v1::status::Collector {
        let standing = self.upstream.standing();
        v1::status::Collector {
            address: self.upstream.address().to_owned(),
            connected: standing.connected,
            since: Some(timestamp(standing.since)),
            failures: standing.failures,
            error: standing.error,
        }
    }
}

/// Calls a collector as long as the daemon runs.
pub(super) struct Publisher {
    pub(super) collector: Arc<Collector>,
    pub(super) account: Arc<Account>,
    pub(super) fanout: Arc<Fanout>,
    pub(super) shutdown: watch::Receiver<bool>,
}

impl Publisher {
    /// Goes on until the daemon stops, and ends within [`END_TIME_MAX`] of what a stream is given
    /// then.
    pub(super) async fn run(mut self) {
        let mut pauses = Pauses::up_to(RETRY_INTERVAL_MAX);
        while !*self.shutdown.borrow() {
            let mut shutdown = self.shutdown.clone();
            let called = tokio::select! {
                called = self.call() => called,
                () = stopped(&mut shutdown) => return,
            };
            let ended = match called {
                Ok((requests, pieces)) => {
                    self.collector.upstream.reached();
                    pauses.begin_again();
                    self.converse(requests, pieces).await
                }
                Err(error) => error,
            };
            self.collector.upstream.failed(ended);
            tokio::select! {
                () = sleep(pauses.next()) => {}
                () = stopped(&mut self.shutdown) => return,
            }
        }
    }

    /// Connects and begins the call; gives both sides of it.
    async fn call(&self) -> Result<(Streaming<AlertsRequest>, Pieces), String> {
        let mut channel = self.collector.upstream.connect().await?;
        let (pieces, waiting) = mpsc::channel(STREAM_AHEAD_MAX);
        let mut request = http::Request::new(frames::request(waiting));
        *request.method_mut() = http::Method::POST;
        *request.version_mut() = http::Version::HTTP_2;
        let path = format!("/{SERVICE_NAME}/Publish");
        *request.uri_mut() = path.parse().map_err(described)?;
        let mut metadata = MetadataMap::new();
        let node = BinaryMetadataValue::from_bytes(self.collector.node.as_bytes());
        metadata.insert_bin("monitor-node-bin", node);
        *request.headers_mut() = metadata.into_headers();
        for (name, value) in [
            (http::header::CONTENT_TYPE, "application/grpc"),
            (http::header::TE, "trailers"),
        ] {
            let value = http::HeaderValue::from_static(value);
            request.headers_mut().insert(name, value);
        }
        let answer = async {
            poll_fn(|context| channel.poll_ready(context)).await?;
            channel.call(request).await
        };
        let answer = timeout(REQUEST_TIME_MAX, answer)
            .await
            .map_err(|_| format!("no answer for {} s", REQUEST_TIME_MAX.as_secs()))?
            .map_err(described)?;
        if let Some(status) = Status::from_header_map(answer.headers())
            && status.code() != Code::Ok
        {
            return Err(shown(&status));
        }
        let (head, body) = answer.into_parts();
        let decoder = ProstCodec::<AlertsResponse, AlertsRequest>::default().decoder();
        let requests =
            Streaming::new_response(decoder, body, head.status, None, Some(MESSAGE_BYTES_MAX));
        Ok((requests, pieces))
    }

    /// Until either side ends it; gives the reason.
    async fn converse(&self, requests: Streaming<AlertsRequest>, responses: Pieces) -> String {
        let mut stream = AlertStream {
            log: self.account.log.clone(),
            audit: self.account.audit.clone(),
            who: Who {
                name: format!("collector {}", self.collector.upstream.address()),
                roles: Vec::new(),
                peer: self.collector.upstream.address().to_owned(),
            },
            fanout: Arc::clone(&self.fanout),
            requests,
            responses,
            shutdown: self.shutdown.clone(),
            _permit: None,
        };
        let ended = match stream.converse().await {
            Ok(()) => "the collector ended the call".to_owned(),
            Err(status) => shown(&status),
        };
        let AlertStream {
            mut requests,
            responses,
            ..
        } = stream;
        // The end of what is sent; what the collector says after that is of no use any more.
        drop(responses);
        let rest = async { while let Ok(Some(_)) = requests.message().await {} };
        let _ = timeout(END_TIME_MAX, rest).await;
        ended
    }
}

/// Whole frames that wait to be sent.
type Pieces = mpsc::Sender<Result<bytes::Bytes, Status>>;
