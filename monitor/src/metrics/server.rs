//! Answers `/metrics`, `/healthz` and `/readyz`, each connection once.

use std::{
    convert::Infallible,
    io,
    net::{SocketAddr, TcpListener as StdTcpListener},
    sync::Arc,
    time::Duration,
};

use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use super::{Facts, text};
use crate::api::Account;

/// What one client can take.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Connections at once; one more is accepted and closed.
    connections: usize,
    /// From accepting a connection to the last byte of the answer.
    time: Duration,
    /// For the owner's answer. Beyond it the daemon counts as dead.
    answer: Duration,
}

const LIMITS: Limits = Limits {
    connections: 16,
    time: Duration::from_secs(10),
    answer: Duration::from_secs(5),
};

/// Bytes of a request; a longer one is answered by 431.
const REQUEST_BYTES_MAX: usize = 16 << 10;

/// Wait before accepting again after the system refused, such as for want of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// The system does not let this address be listened at.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen at {address} for metrics: {source}; give a free port of 127.0.0.1 or [::1]")]
pub struct BindError {
    address: SocketAddr,
    source: io::Error,
}

/// A bound address.
#[derive(Debug)]
pub struct Listener(TcpListener);

impl Listener {
    /// Listens at `address`.
    ///
    /// # Errors
    ///
    /// See [`BindError`].
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn bind(address: SocketAddr) -> Result<Self, BindError> {
        let failed = |source| BindError { address, source };
        let socket = StdTcpListener::bind(address).map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        TcpListener::from_std(socket).map(Self).map_err(failed)
    }
}

/// Serves metrics and probes until `shutdown` is true or its sender is gone. At most 16 connections
/// are open, each for one request and 10 s.
pub async fn serve(listener: Listener, account: Arc<Account>, mut shutdown: watch::Receiver<bool>) {
    tokio::select! {
        () = serve_within(listener, account, LIMITS) => {}
        // An error says that the sender is gone.
        _ = shutdown.wait_for(|stop| *stop) => {}
    }
}

async fn serve_within(listener: Listener, account: Arc<Account>, limits: Limits) {
    if let Ok(address) = listener.0.local_addr() {
        info!(%address, "metrics are served");
    }
    let free = Arc::new(Semaphore::new(limits.connections));
    // Ends the connections when this ends.
    let mut answering = JoinSet::new();
    loop {
        while answering.try_join_next().is_some() {}
        let stream = match listener.0.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "cannot accept a connection for metrics; trying again");
                sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&free).try_acquire_owned() else {
            debug!(
                limit = limits.connections,
                "too many connections for metrics; one was closed"
            );
            continue;
        };
        let account = Arc::clone(&account);
        answering.spawn(async move {
            let answered = timeout(limits.time, answer_one(stream, account, limits)).await;
            if let Ok(Err(error)) = answered {
                debug!(%error, "a request for metrics failed");
            }
            drop(permit);
        });
    }
}

async fn answer_one(
    stream: TcpStream,
    account: Arc<Account>,
    limits: Limits,
) -> Result<(), hyper::Error> {
    let service = service_fn(move |request| {
        let account = Arc::clone(&account);
        async move { Ok::<_, Infallible>(answer(&request, &account, limits).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.time)
        .max_buf_size(REQUEST_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

async fn answer(
    request: &Request<Incoming>,
    account: &Account,
    limits: Limits,
) -> Response<String> {
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD");
        let allowed = HeaderValue::from_static("GET, HEAD");
        response.headers_mut().insert(ALLOW, allowed);
        return response;
    }
    let facts = async {
        Facts {
            status: account.status().await,
            alerts: account.alerts(),
            containers: account.containers().await,
        }
    };
    match request.uri().path() {
        "/metrics" => match timeout(limits.answer, facts).await {
            Ok(facts) => plain(StatusCode::OK, &text::exposition(&facts)),
            Err(_) => unanswered(),
        },
        // The owner is what everything depends on.
        "/healthz" => match timeout(limits.answer, account.status()).await {
            Ok(_) => plain(StatusCode::OK, "ok\n"),
            Err(_) => unanswered(),
        },
        "/readyz" if account.is_ready() => plain(StatusCode::OK, "ready\n"),
        "/readyz" => plain(
            StatusCode::SERVICE_UNAVAILABLE,
            "not ready: hooks or containers are pending\n",
        ),
        _ => plain(
            StatusCode::NOT_FOUND,
            "there are /metrics, /healthz and /readyz\n",
        ),
    }
}

fn unanswered() -> Response<String> {
    plain(
        StatusCode::SERVICE_UNAVAILABLE,
        "the daemon's owner task did not answer in time; look at its log\n",
    )
}

fn plain(status: StatusCode, body: &str) -> Response<String> {
    let mut response = Response::new(body.to_owned());
    *response.status_mut() = status;
    let text = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, text);
    response
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::{alerts::AlertLog, api::fixture::StubNode, audit::Audit};

    struct Served {
        address: SocketAddr,
        ready: watch::Sender<bool>,
        _shutdown: watch::Sender<bool>,
        _directory: tempfile::TempDir,
    }

    impl Served {
        fn new(limits: Limits) -> Self {
            let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
            let address = listener.0.local_addr().unwrap();
            let (ready, is_ready) = watch::channel(false);
            let (shutdown, _) = watch::channel(false);
            let directory = tempfile::TempDir::new().unwrap();
            let audit = Audit::start(directory.path()).unwrap();
            let node = Arc::new(StubNode);
            let account = Account::new(node, AlertLog::new(), audit, is_ready, None, None);
            tokio::spawn(serve_within(listener, Arc::new(account), limits));
            Self {
                address,
                ready,
                _shutdown: shutdown,
                _directory: directory,
            }
        }

        /// What comes until the end of the connection.
        async fn send(&self, request: &str) -> String {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            // It may be closed before.
            let _ = stream.write_all(request.as_bytes()).await;
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            String::from_utf8(answer).unwrap()
        }

        async fn check(&self, request: &str, status: &str, part: &str) {
            let answer = self.send(request).await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(part),
                "{request:?}: {answer:?}"
            );
        }
    }

    #[tokio::test]
    async fn each_path_is_answered() {
        let served = Served::new(LIMITS);
        let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
        let metrics = "monitor_image_running{repository=\"\",digest=\"sha256:aaa";
        served.check(&get("/metrics"), "200", metrics).await;
        served.check(&get("/healthz"), "200", "ok").await;
        served.check(&get("/readyz"), "503", "not ready").await;
        served.ready.send_replace(true);
        served.check(&get("/readyz"), "200", "ready").await;
        served.check(&get("/"), "404", "/metrics").await;
        let post = "POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n";
        served.check(post, "405", "allow: GET, HEAD").await;
        served.check("nonsense\r\n\r\n", "400", "").await;
        let long = get(&format!("/{}", "x".repeat(2 * REQUEST_BYTES_MAX)));
        let refused = served.send(&long).await;
        assert!(!refused.contains(" 200 "), "{refused}");
    }

    #[tokio::test]
    async fn who_is_slow_or_one_too_many_is_cut_off() {
        let limits = Limits {
            connections: 2,
            time: Duration::from_millis(300),
            ..LIMITS
        };
        let served = Served::new(limits);
        let mut slow = Vec::new();
        for _ in 0..limits.connections {
            let mut stream = TcpStream::connect(served.address).await.unwrap();
            stream.write_all(b"GET /metrics HT").await.unwrap();
            slow.push(stream);
        }
        let request = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";
        assert_eq!(served.send(request).await, "", "one too many");
        for mut stream in slow {
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            let answer = String::from_utf8(answer).unwrap();
            assert!(!answer.contains(" 200 "), "{answer}");
        }
        served.check(request, "200", "ok").await;
    }
}
