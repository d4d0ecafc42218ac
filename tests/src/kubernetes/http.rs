//! The API server: its store over HTTP on loopback.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc as channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited, combinators::BoxBody};
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    header::{
        AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT,
    },
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
};

use super::{
    metadata::{random, text},
    rbac::{self, User},
    refused::Refused,
    resources::Place,
    store::{Store, Write},
    verbs::{self, Tokens},
    watch::{Watch, follow},
};

/// Bytes of a request's body, as etcd has it.
const BODY_BYTES_MAX: usize = 3 << 19;
/// How long a watch lasts, if neither the client nor a test says.
const WATCH_TIME_MAX: Duration = Duration::from_secs(300);

/// What requests are answered with instead. The tests' own are left alone.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Of this HTTP method.
    pub method: &'static str,
    /// With this in their path.
    pub path: String,
    /// With this HTTP status.
    pub status: u16,
    /// And this `Retry-After`, in seconds.
    pub retry_after: Option<u32>,
    /// So many of them.
    pub times: u32,
}

/// A request as it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// HTTP method.
    pub method: String,
    /// Path, without the query.
    pub path: String,
    /// `admin`, or `system:serviceaccount:NAMESPACE:NAME`.
    pub user: String,
    /// HTTP status of the answer.
    pub status: u16,
}

/// An API server; ends when it is dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    state: Arc<State>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Debug)]
struct State {
    shared: Mutex<Shared>,
    /// The token of [`User::admin`].
    admin: String,
    /// The store's version.
    changed: watch::Sender<u64>,
    /// Watches end when it changes.
    cut: watch::Sender<()>,
}

#[derive(Debug)]
struct Shared {
    store: Store,
    tokens: Tokens,
    faults: Vec<Fault>,
    made: Vec<Made>,
    watch_time: Duration,
}

pub(super) type Body = BoxBody<Bytes, Infallible>;

impl Server {
    /// Starts it, empty but for the namespaces that every cluster has.
    ///
    /// # Errors
    ///
    /// No port or no thread.
    pub fn start() -> Result<Self> {
        let mut store = Store::default();
        for name in ["default", "kube-system"] {
            begin_namespace(&mut store, name).map_err(|refused| anyhow!("{}", refused.status()))?;
        }
        let state = Arc::new(State {
            shared: Mutex::new(Shared {
                store,
                tokens: Tokens::new(),
                faults: Vec::new(),
                made: Vec::new(),
                watch_time: WATCH_TIME_MAX,
            }),
            admin: random(),
            changed: watch::Sender::new(0),
            cut: watch::Sender::new(()),
        });
        let (stop, stopped) = oneshot::channel();
        let (bound, address) = channel::channel();
        let served = Arc::clone(&state);
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await?;
                bound.send(listener.local_addr()?)?;
                tokio::select! {
                    result = accept(listener, served) => result,
                    _ = stopped => Ok(()),
                }
            })
        });
        Ok(Self {
            address: address.recv().context("the API server has not started")?,
            state,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// `http://IP:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The bearer token of who may do everything.
    pub fn admin_token(&self) -> &str {
        &self.state.admin
    }

    /// Has requests answered with a fault.
    pub fn inject(&self, fault: Fault) {
        self.state.lock().faults.push(fault);
    }

    /// The requests that were answered so far, watches when they began.
    pub fn made(&self) -> Vec<Made> {
        self.state.lock().made.clone()
    }

    /// Forgets older versions of all objects and ends every watch, so that none can go on from
    /// where it was.
    pub fn expire_watches(&self) {
        self.state.lock().store.compact();
        self.end_watches();
    }

    /// Ends every watch.
    pub fn end_watches(&self) {
        self.state.cut.send_replace(());
    }

    /// Watches that begin from now on last this long, unless the client wants less.
    pub fn set_watch_time(&self, time: Duration) {
        self.state.lock().watch_time = time;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // It may have ended by an error, which its clients have seen.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A namespace of every cluster.
fn begin_namespace(store: &mut Store, name: &str) -> Result<Value, Refused> {
    let path = format!("/api/v1/namespaces/{name}");
    let place = Place::read(&path, store).ok_or(Refused::Unserved)?;
    let write = Write {
        resource: &place.resource,
        key: &place.key,
        subresource: "",
        manager: "kube-apiserver",
    };
    store.create(&write, &json!({}))
}

async fn accept(listener: TcpListener, state: Arc<State>) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let state = Arc::clone(&state);
                async move { Ok::<_, Infallible>(answer(request, &state).await) }
            });
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // A client that goes is no concern of the server's.
            let _ = connection.await;
        });
    }
}

/// A request whose user and query are known.
struct Asked {
    method: String,
    path: String,
    query: HashMap<String, String>,
    headers: HeaderMap,
    user: User,
}

impl Asked {
    fn header(&self, name: HeaderName) -> &str {
        let value = self.headers.get(name);
        value
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    /// `fieldManager`, else the program that asks, but who applies must say it.
    fn manager(&self, kind: &str) -> String {
        let named = self.query.get("fieldManager");
        let program = || match kind.starts_with("application/apply-patch") {
            true => String::new(),
            false => match self.header(USER_AGENT).split('/').next() {
                Some(program) if !program.is_empty() => program.to_owned(),
                _ => "unknown".to_owned(),
            },
        };
        named.cloned().unwrap_or_else(program)
    }
}

async fn answer(request: Request<Incoming>, state: &Arc<State>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let decode = |text: &str| {
        let text = text.replace('+', " ");
        percent_encoding::percent_decode_str(&text)
            .decode_utf8_lossy()
            .into_owned()
    };
    let query = parts.uri.query().unwrap_or_default().split('&');
    let query = query.filter_map(|pair| pair.split_once('='));
    let mut asked = Asked {
        method: parts.method.to_string(),
        path: decode(parts.uri.path()),
        query: query
            .map(|(name, value)| (decode(name), decode(value)))
            .collect(),
        headers: parts.headers,
        user: User::anonymous(),
    };
    let body = Limited::new(body, BODY_BYTES_MAX).collect().await;
    let answered = match body {
        Ok(body) => state.answer(&mut asked, &body.to_bytes()),
        Err(_) => Err(Refused::TooLarge),
    };
    let code = match &answered {
        Ok(Answer::Whole(code, _)) => *code,
        Ok(Answer::Watch(_)) => 200,
        Err(refused) => refused.code(),
    };
    state.lock().made.push(Made {
        method: asked.method,
        path: asked.path,
        user: asked.user.name,
        status: code,
    });
    match answered {
        Ok(Answer::Whole(code, value)) => whole(code, &value, None),
        Ok(Answer::Watch(watch)) => {
            let (changed, cut) = (state.changed.subscribe(), state.cut.subscribe());
            let state = Arc::clone(state);
            follow(watch, changed, cut, move |version| {
                state.lock().store.since(version)
            })
        }
        Err(refused) => whole(refused.code(), &refused.status(), refused.retry_after()),
    }
}

/// What a request is answered with.
enum Answer {
    Whole(u16, Value),
    Watch(Watch),
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, asked: &mut Asked, body: &[u8]) -> Result<Answer, Refused> {
        let mut shared = self.lock();
        let shared = &mut *shared;
        asked.user = self.user(shared, asked)?;
        shared.refuse_by_fault(asked)?;
        if asked.path == "/version" {
            let version = json!({"major": "1", "minor": "0", "gitVersion": "v1.0.0-tests"});
            return Ok(Answer::Whole(200, version));
        }
        let is_true = |name: &str| {
            asked
                .query
                .get(name)
                .is_some_and(|it| it == "true" || it == "1")
        };
        let place = Place::read(&asked.path, &shared.store).ok_or(Refused::Unserved)?;
        let verb = verbs::verb(&asked.method, &place, is_true("watch"))?;
        rbac::authorize(&shared.store, &asked.user, verb, &place)?;
        let kind = asked.header(CONTENT_TYPE).to_owned();
        let request = verbs::Request {
            user: &asked.user,
            verb,
            place: &place,
            query: &asked.query,
            kind: &kind,
            body,
            manager: &asked.manager(&kind),
        };
        if verb == "watch" {
            let watch = Watch::new(&shared.store, &request, shared.watch_time)?;
            return Ok(Answer::Watch(watch));
        }
        let answered = verbs::answer(&mut shared.store, &mut shared.tokens, &request);
        self.changed.send_replace(shared.store.version());
        answered.map(|(code, value)| Answer::Whole(code, value))
    }

    fn user(&self, shared: &Shared, asked: &Asked) -> Result<User, Refused> {
        let token = match asked.header(AUTHORIZATION).strip_prefix("Bearer ") {
            None => return Ok(User::anonymous()),
            Some(token) if token == self.admin => return Ok(User::admin()),
            Some(token) => token,
        };
        let (key, uid) = shared.tokens.get(token).ok_or(Refused::Unauthorized)?;
        // A token goes with its account.
        let account = shared.store.get(key).map_err(|_| Refused::Unauthorized)?;
        if text(&account, "uid") != Some(uid) {
            return Err(Refused::Unauthorized);
        }
        Ok(User::account(&key.namespace, &key.name))
    }
}

impl Shared {
    fn refuse_by_fault(&mut self, asked: &Asked) -> Result<(), Refused> {
        let fits = |fault: &&mut Fault| {
            fault.times > 0 && fault.method == asked.method && asked.path.contains(&fault.path)
        };
        let is_own = asked.user == User::admin();
        match self.faults.iter_mut().find(fits) {
            Some(fault) if !is_own => {
                fault.times -= 1;
                Err(Refused::Fault(fault.status, fault.retry_after))
            }
            _ => Ok(()),
        }
    }
}

fn whole(code: u16, value: &Value, retry_after: Option<u32>) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())).boxed());
    *response.status_mut() =
        StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(seconds) = retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}
