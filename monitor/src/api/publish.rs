//! Alerts for a collector: the conversation of an alert stream, with a server that the node calls.

use std::{
    future::poll_fn,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use monitor_api::{
    MESSAGE_BYTES_MAX,
    v1::{self, AlertsRequest, AlertsResponse, collector_server::SERVICE_NAME},
};
use serde::Deserialize;
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tonic::{
    Code, Status, Streaming,
    codec::Codec as _,
    codegen::{Service as _, http},
    metadata::{BinaryMetadataValue, MetadataMap},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use tonic_prost::ProstCodec;
use tracing::{info, warn};

use super::{
    Account, Address, KEEPALIVE_INTERVAL, REQUEST_TIME_MAX, STREAM_AHEAD_MAX,
    address::AddressError, alerts::AlertStream, fanout::Fanout, frames, server::stopped,
    tls::read_file,
};
use crate::{alerts::build::timestamp, audit::Who};

/// How long is waited for a connection, TLS included.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
/// Pause after a call that ended or a first attempt that failed; it doubles with each that fails.
const RETRY_INTERVAL_MIN: Duration = Duration::from_secs(1);
/// Longest pause after an attempt that failed.
const RETRY_INTERVAL_MAX: Duration = Duration::from_secs(60);
/// How long a collector has at the end to take what it was sent.
const END_TIME_MAX: Duration = Duration::from_secs(2);
/// A collector, as it is configured.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// `https://HOST:PORT`.
    pub address: String,
    /// Certificates of the authorities that the collector's is checked by, PEM. This and the other
    /// files are read anew for each connection.
    pub ca: PathBuf,
    /// The node's certificate, PEM.
    pub certificate: PathBuf,
    /// The certificate's private key, PEM.
    pub key: PathBuf,
}

/// A collector's address makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// No address at all.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// Alerts leave the node by TLS alone.
    #[error("address {0} is no https://HOST:PORT")]
    Scheme(Address),
}

impl Settings {
    /// Whether it makes sense.
    ///
    /// # Errors
    ///
    /// What does not.
    pub fn check(&self) -> Result<(), SettingsError> {
        match self.address.parse()? {
            Address::Https(_) => Ok(()),
            other => Err(SettingsError::Scheme(other)),
        }
    }
}

/// A collector, who calls it, and what came of that.
#[derive(Debug)]
pub struct Collector {
    settings: Settings,
    node: String,
    state: Mutex<State>,
}

#[derive(Clone, Debug)]
struct State {
    connected: bool,
    since: Timestamp,
    failures: u64,
    error: String,
}

impl Collector {
    /// Called by the node of this name.
    pub fn new(settings: &Settings, node: &str) -> Self {
        Self {
            settings: settings.clone(),
            node: node.to_owned(),
            state: Mutex::new(State {
                connected: false,
                since: Timestamp::now(),
                failures: 0,
                error: String::new(),
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connected(&self) {
        info!(collector = self.settings.address, "alerts are published");
        let mut state = self.state();
        (state.connected, state.since) = (true, Timestamp::now());
        state.error.clear();
    }

    fn failed(&self, error: String) {
        let mut state = self.state();
        if state.connected || state.failures == 0 {
            warn!(
                collector = self.settings.address,
                error, "alerts are not published; trying again"
            );
            state.since = Timestamp::now();
        }
        state.connected = false;
        state.failures += 1;
        state.error = error;
    }

    /// How it stands.
    pub(super) fn status(&self) -> v1::status::Collector {
        let state = self.state().clone();
        v1::status::Collector {
            address: self.settings.address.clone(),
            connected: state.connected,
            since: Some(timestamp(state.since)),
            failures: state.failures,
            error: state.error,
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
        let mut pause = RETRY_INTERVAL_MIN;
        while !*self.shutdown.borrow() {
            let mut shutdown = self.shutdown.clone();
            let called = tokio::select! {
                called = self.call() => called,
                () = stopped(&mut shutdown) => return,
            };
            let ended = match called {
                Ok((requests, pieces)) => {
                    self.collector.connected();
                    pause = RETRY_INTERVAL_MIN;
                    self.converse(requests, pieces).await
                }
                Err(error) => error,
            };
            self.collector.failed(ended);
            tokio::select! {
                () = sleep(pause) => {}
                () = stopped(&mut self.shutdown) => return,
            }
            pause = pause.saturating_mul(2).min(RETRY_INTERVAL_MAX);
        }
    }

    /// Connects and begins the call; gives both sides of it.
    async fn call(&self) -> Result<(Streaming<AlertsRequest>, Pieces), String> {
        let mut channel = self.connect().await?;
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

    async fn connect(&self) -> Result<Channel, String> {
        let Settings {
            address,
            ca,
            certificate,
            key,
        } = &self.collector.settings;
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read_file(ca).map_err(described)?))
            .identity(Identity::from_pem(
                read_file(certificate).map_err(described)?,
                read_file(key).map_err(described)?,
            ));
        let endpoint = Endpoint::from_shared(address.clone())
            .map_err(described)?
            .tls_config(tls)
            .map_err(described)?
            .connect_timeout(CONNECT_TIME_MAX)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_INTERVAL)
            .keep_alive_while_idle(true);
        endpoint.connect().await.map_err(described)
    }

    /// Until either side ends it; gives the reason.
    async fn converse(&self, requests: Streaming<AlertsRequest>, responses: Pieces) -> String {
        let mut stream = AlertStream {
            log: self.account.log.clone(),
            audit: self.account.audit.clone(),
            who: Who {
                name: format!("collector {}", self.collector.settings.address),
                roles: Vec::new(),
                peer: self.collector.settings.address.clone(),
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

/// With what lies below it, which tonic's own text leaves out.
fn described(error: impl std::error::Error + Send + Sync + 'static) -> String {
    let text = format!("{:#}", anyhow::Error::new(error));
    text.chars().take(500).collect()
}

fn shown(status: &Status) -> String {
    let text = format!("{:?}: {}", status.code(), status.message());
    text.chars().take(500).collect()
}
