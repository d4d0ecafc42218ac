//! HTTP as registries speak it: a connection for each request, each with its time.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use hyper::{
    Request, Response, StatusCode, Uri,
    body::{Body as _, Incoming},
    client::conn::http1,
    header::{ACCEPT, AUTHORIZATION, HOST, HeaderValue, LOCATION, USER_AGENT, WWW_AUTHENTICATE},
};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rustls::pki_types::ServerName;
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_rustls::TlsConnector;

use super::{
    Remote, Shared,
    challenge::{self, Challenge},
    credentials::{self, Credentials, secret},
};

/// Bytes of an answer's head, and of a chunk of its body.
pub(super) const BUFFER_BYTES_MAX: usize = 64 << 10;

/// How long is waited for a registry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Until a connection stands: name, TCP and TLS.
    pub(super) connect: Duration,
    /// While nothing comes: the head of an answer, or more of its body.
    pub(super) silence: Duration,
    /// Before one that did not answer, or not well, is asked again.
    pub(super) pauses: [Duration; 2],
}

pub(super) const LIMITS: Limits = Limits {
    connect: Duration::from_secs(10),
    silence: Duration::from_secs(15),
    pauses: [Duration::from_millis(500), Duration::from_secs(2)],
};

/// Redirects of one blob that are followed.
const REDIRECTS_MAX: usize = 3;
/// Bytes of what a token service answers; more is refused.
const TOKEN_BYTES_MAX: usize = 64 << 10;

/// Registries give an index only to those that say that they know of them.
const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json";

/// What a registry lets us in by: the value of a header.
pub(super) type Authorization = Arc<Mutex<Option<HeaderValue>>>;

/// What was asked for cannot be had.
pub(super) enum Problem {
    /// Another try may help.
    Passing(String),
    /// It will not.
    Lasting(String),
    /// There is no such thing.
    Missing,
}

impl Problem {
    pub(super) fn into_reason(self) -> String {
        match self {
            Self::Passing(reason) | Self::Lasting(reason) => reason,
            Self::Missing => format!("answered {}", StatusCode::NOT_FOUND),
        }
    }
}

fn lasting(reason: impl ToString) -> Problem {
    Problem::Lasting(reason.to_string())
}

/// The body of an answer.
pub(super) struct Body {
    incoming: Incoming,
    silence_max: Duration,
}

impl Body {
    /// Its length in bytes, if that was said.
    pub(super) fn length(&self) -> Option<u64> {
        self.incoming.size_hint().exact()
    }

    /// What comes next; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, String> {
        loop {
            let frame = poll_fn(|context| Pin::new(&mut self.incoming).poll_frame(context));
            let frame = timeout(self.silence_max, frame)
                .await
                .map_err(|_| format!("sent nothing for {} s", self.silence_max.as_secs()))?;
            let Some(frame) = frame.transpose().map_err(|error| described(&error))? else {
                return Ok(None);
            };
            // Trailers say nothing that is needed.
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
    }

    /// All of it, if that is at most `bytes_max` bytes.
    pub(super) async fn whole(mut self, bytes_max: usize) -> Result<Vec<u8>, String> {
        let mut whole = Vec::new();
        while let Some(chunk) = self.next().await? {
            if whole.len().saturating_add(chunk.len()) > bytes_max {
                return Err(format!("answered with more than {bytes_max} bytes"));
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(whole)
    }
}

impl Remote {
    /// Asks for what has this path in the repository (`blobs/DIGEST`) until it is answered or asking
    /// again makes no sense.
    pub(super) async fn get(&self, path: &str) -> Result<Body, Problem> {
        let mut pauses = self.registry.0.limits.pauses.iter();
        loop {
            match (self.ask(path).await, pauses.next()) {
                (Ok(body), _) => return Ok(body),
                (Err(Problem::Passing(_)), Some(pause)) => sleep(*pause).await,
                (Err(problem), _) => return Err(problem),
            }
        }
    }

    async fn ask(&self, path: &str) -> Result<Body, Problem> {
        let authority = self.repository.authority();
        let url = format!(
            "{}://{authority}/v2/{}/{path}",
            self.registry.0.scheme(authority),
            self.repository.name()
        );
        let first: Uri = url.parse().map_err(lasting)?;
        let mut url = first.clone();
        let mut was_asked_who = false;
        for _ in 0..=REDIRECTS_MAX {
            // Whoever is led to elsewhere is not told who asks.
            let authorization = is_same_place(&url, &first).then(|| self.authorization());
            let response = self.registry.0.send(&url, authorization.flatten()).await?;
            let status = response.status();
            if status.is_success() {
                return Ok(self.registry.0.body(response));
            } else if status.is_redirection() {
                url = redirected(&url, &response)?;
                self.registry.0.may_go(&url).map_err(|reason| {
                    lasting(format!("is said to be at {}, {reason}", place(&url)))
                })?;
            } else if status == StatusCode::UNAUTHORIZED
                && is_same_place(&url, &first)
                && !was_asked_who
            {
                was_asked_who = true;
                let authorization = self.introduce(&response).await?;
                *self
                    .authorization
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner) = Some(authorization);
            } else {
                return Err(answered(status));
            }
        }
        let reason = format!("redirects more than {REDIRECTS_MAX} times");
        Err(lasting(reason))
    }

    fn authorization(&self) -> Option<HeaderValue> {
        let held = self.authorization.lock();
        held.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What lets us in where a registry asks who we are.
    async fn introduce(&self, response: &Response<Incoming>) -> Result<HeaderValue, Problem> {
        let asked = response.headers().get_all(WWW_AUTHENTICATE).iter();
        let mut challenges: Vec<_> = asked
            .filter_map(|value| challenge::parse(value.to_str().ok()?))
            .collect();
        // A token opens less than a password.
        challenges.sort_by_key(|challenge| *challenge == Challenge::Basic);
        let credentials = self.credentials()?;
        match challenges.first() {
            Some(Challenge::Bearer { realm, service }) => {
                self.token(realm, service.as_deref(), credentials).await
            }
            Some(Challenge::Basic) => credentials.and_then(|found| found.basic()).ok_or_else(|| {
                lasting("asks for a user name and password, and there are none for it in the file of credentials")
            }),
            None => Err(lasting("asks for an authentication that is not known here")),
        }
    }

    fn credentials(&self) -> Result<Option<Credentials>, Problem> {
        let Some(path) = &self.registry.0.credentials else {
            return Ok(None);
        };
        credentials::find(path, self.repository.registry()).map_err(lasting)
    }

    async fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        credentials: Option<Credentials>,
    ) -> Result<HeaderValue, Problem> {
        let scope = format!("repository:{}:pull", self.repository.name());
        let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let mut url = realm.to_owned();
        url.push(if realm.contains('?') { '&' } else { '?' });
        url += &format!("scope={}", encoded(&scope));
        if let Some(service) = service {
            url += &format!("&service={}", encoded(service));
        }
        let url: Uri = url
            .parse()
            .map_err(|_| lasting("names a token service that is no URL"))?;
        let told = |what: String| format!("its token service {} {what}", place(&url));
        self.registry
            .0
            .may_go(&url)
            .map_err(|reason| lasting(told(format!("is not asked: {reason}"))))?;
        let registry = self.repository.authority();
        let registry_host = registry.parse::<Uri>().ok();
        let registry_host = registry_host.as_ref().and_then(Uri::host);
        if !is_related(url.host(), registry_host) {
            return Err(lasting(told(
                "is not asked: it is elsewhere than the registry, and might be sent its password"
                    .to_owned(),
            )));
        }
        let authorization = credentials.and_then(|found| found.basic());
        let response = self.registry.0.send(&url, authorization).await?;
        if !response.status().is_success() {
            let reason = answered(response.status()).into_reason();
            return Err(lasting(told(reason)));
        }
        let body = self.registry.0.body(response).whole(TOKEN_BYTES_MAX).await;
        let body = body.map_err(|reason| Problem::Passing(told(reason)))?;
        // The message would quote what is secret.
        let token: Token = serde_json::from_slice(&body)
            .map_err(|_| lasting(told("gives no token".to_owned())))?;
        let token = token.token.or(token.access_token);
        token
            .and_then(|token| secret(&format!("Bearer {token}")))
            .ok_or_else(|| lasting(told("gives no token".to_owned())))
    }
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Shared {
    fn body(&self, response: Response<Incoming>) -> Body {
        Body {
            incoming: response.into_body(),
            silence_max: self.limits.silence,
        }
    }

    fn is_plain(&self, authority: &str) -> bool {
        let host = authority
            .rsplit_once(':')
            .map_or(authority, |(host, _)| host);
        let mut plain = self.plain_http.iter();
        plain.any(|known| known == authority || known == host)
    }

    fn scheme(&self, authority: &str) -> &'static str {
        if self.is_plain(authority) {
            "http"
        } else {
            "https"
        }
    }

    /// Whether somebody else's URL is followed.
    fn may_go(&self, url: &Uri) -> Result<(), String> {
        let authority = url.authority().map_or("", |authority| authority.as_str());
        match url.scheme_str() {
            _ if authority.is_empty() || authority.contains('@') => {
                Err("which is no address".to_owned())
            }
            Some("https") => Ok(()),
            Some("http") if self.is_plain(authority) => Ok(()),
            Some("http") => Err("without TLS, and it is not in plain_http".to_owned()),
            _ => Err("which is neither https nor http".to_owned()),
        }
    }

    /// Sends a request over a connection of its own and gives the answer's head.
    async fn send(
        &self,
        url: &Uri,
        authorization: Option<HeaderValue>,
    ) -> Result<Response<Incoming>, Problem> {
        let passing = |what: &str| Problem::Passing(format!("{what} {}", place(url)));
        let host = url.host().unwrap_or_default();
        let is_tls = url.scheme_str() == Some("https");
        let port = url.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let connect = async {
            let address = host.trim_matches(['[', ']']);
            let stream = TcpStream::connect((address, port)).await?;
            if !is_tls {
                return Ok(Box::new(stream) as Box<dyn Connection>);
            }
            let name = ServerName::try_from(address.to_owned()).map_err(std::io::Error::other)?;
            let connector = TlsConnector::from(Arc::clone(&self.tls));
            Ok(Box::new(connector.connect(name, stream).await?) as Box<dyn Connection>)
        };
        let stream = timeout(self.limits.connect, connect).await;
        let stream = stream
            .map_err(|_| passing("no connection in time to"))?
            .map_err(|error: std::io::Error| passing(&format!("no connection ({error}) to")))?;
        let failed =
            |error: hyper::Error| passing(&format!("no answer ({}) from", described(&error)));
        let handshake = http1::Builder::new()
            .max_buf_size(BUFFER_BYTES_MAX)
            .handshake(TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.map_err(failed)?;
        // It ends with the body, or when nobody wants that any more.
        tokio::spawn(connection);
        let path = url.path_and_query().map_or("/", |path| path.as_str());
        let authority = url.authority().map_or("", |authority| authority.as_str());
        let mut request = Request::get(path)
            .header(HOST, authority)
            .header(USER_AGENT, concat!("monitord/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, format!("{MANIFESTS}, */*"));
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = request.body(String::new()).map_err(lasting)?;
        let response = timeout(self.limits.silence, sender.send_request(request)).await;
        response
            .map_err(|_| passing("no answer in time from"))?
            .map_err(failed)
    }
}

trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

fn answered(status: StatusCode) -> Problem {
    if status == StatusCode::NOT_FOUND {
        return Problem::Missing;
    }
    let reason = format!("answered {status}");
    if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        Problem::Passing(reason)
    } else {
        Problem::Lasting(reason)
    }
}

fn redirected(from: &Uri, response: &Response<Incoming>) -> Result<Uri, Problem> {
    let nowhere = || lasting("redirects to nowhere");
    let location = response.headers().get(LOCATION).ok_or_else(nowhere)?;
    let location: Uri = location.as_bytes().try_into().map_err(|_| nowhere())?;
    if location.authority().is_some() {
        return Ok(location);
    }
    // A path within the same place.
    let mut parts = from.clone().into_parts();
    parts.path_and_query = location.into_parts().path_and_query;
    Uri::from_parts(parts).map_err(|_| nowhere())
}

fn is_same_place(one: &Uri, other: &Uri) -> bool {
    (one.scheme(), one.authority()) == (other.scheme(), other.authority())
}

/// Whether a token service may be a registry's: the same host, or one below the same domain, as
/// `auth.docker.io` is of `registry-1.docker.io`.
fn is_related(service: Option<&str>, registry: Option<&str>) -> bool {
    let (Some(service), Some(registry)) = (service, registry) else {
        return false;
    };
    let domain = |host: &str| {
        let is_name = host.bytes().any(|byte| byte.is_ascii_alphabetic()) && !host.contains(':');
        let mut labels = host.rsplitn(3, '.');
        let (last, before) = (labels.next()?, labels.next()?);
        is_name.then(|| format!("{before}.{last}").to_ascii_lowercase())
    };
    service.eq_ignore_ascii_case(registry)
        || domain(service).is_some_and(|own| domain(registry) == Some(own))
}

/// Scheme and authority alone: what follows may be signed, and so be a secret.
fn place(url: &Uri) -> String {
    let scheme = url.scheme_str().unwrap_or("?");
    let host = url.authority().map_or("?", |authority| authority.as_str());
    // What stands before would be a password.
    let host = host.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}").chars().take(200).collect()
}

fn described(error: &hyper::Error) -> String {
    let cause = std::error::Error::source(error);
    cause.map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}
