use std::{fs, sync::Arc};

use rcgen::CertifiedKey;
use rustls::{ServerConfig, crypto::ring, pki_types::PrivateKeyDer};
use tokio_rustls::TlsAcceptor;
use tokio_stream::StreamExt as _;

use super::{
    fake::{Answer, Fake, generated, headed, text},
    *,
};
use crate::image::manifest::digest_of;

const BLOB: &[u8] = b"bytes";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nbytes";

impl Fake {
    async fn fetch(&self, part: Part, credentials: Option<&str>) -> Result<Vec<u8>, String> {
        let credentials = credentials.map(|text| {
            let path = self.directory.path().join("config.json");
            fs::write(&path, text.replace("HOST", &self.authority)).unwrap();
            path
        });
        let registry = self.registry(credentials);
        let reference = format!("{}/some/thing:1", self.authority);
        let origin = registry.origin(Repository::of(&reference).unwrap());
        let mut stream = origin.open(part, &digest_of(BLOB));
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.next().await {
            bytes.extend_from_slice(&chunk.map_err(|error| error.to_string())?);
            assert!(bytes.len() <= DOCUMENT_BYTES_MAX);
        }
        Ok(bytes)
    }
}

const LAYER: Part = Part::Layer { bytes: 5 };

/// Fetches a layer of five bytes, without credentials.
async fn check(
    answers: impl Fn(&str, usize) -> Answer + Send + Sync + 'static,
    expect: Result<usize, &str>,
) {
    let fake = Fake::start(answers).await;
    let fetched = fake.fetch(LAYER, None).await;
    match expect {
        Ok(requests) => {
            assert_eq!(fetched.as_deref(), Ok(BLOB));
            assert_eq!(fake.asked().len(), requests);
        }
        Err(reason) => {
            let error = fetched.unwrap_err();
            assert!(error.contains(reason), "{error} instead of {reason}");
            let whose = format!("registry {}, blob {}: ", fake.authority, digest_of(BLOB));
            assert!(error.starts_with(&whose), "{error}");
        }
    }
}

#[tokio::test]
async fn a_blob_is_given_whole_or_it_is_said_what_the_registry_did() {
    check(|_, _| text(OK), Ok(1)).await;
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let whole = format!("{chunked}2\r\nby\r\n3\r\ntes\r\n0\r\n\r\n");
    check(move |_, _| text(whole.clone()), Ok(1)).await;
    check(
        |_, _| text("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nbytes!"),
        Err("has 6 bytes there instead of 5"),
    )
    .await;
    check(
        |_, _| text("HTTP/1.1 200 OK\r\n\r\nbyt"),
        Err("ends 2 bytes before its 5"),
    )
    .await;
    check(
        |_, _| text("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nbyt"),
        Err("end of file"),
    )
    .await;
    check(
        move |_, _| Answer::Endless(chunked.to_owned(), "3\r\nabc\r\n"),
        Err("has more than 5 bytes there"),
    )
    .await;
    check(
        |_, _| Answer::Endless("HTTP/1.1 200 OK\r\n".to_owned(), "X: y\r\n"),
        Err("no answer"),
    )
    .await;
    check(
        |_, _| Answer::Silent("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nb".to_owned()),
        Err("sent nothing for"),
    )
    .await;
    check(
        |_, _| Answer::Silent(String::new()),
        Err("no answer in time"),
    )
    .await;
    check(|_, _| text("220 mail\r\n"), Err("no answer")).await;
    check(
        |_, _| headed("404 Not Found", "X: y"),
        Err("answered 404 Not Found"),
    )
    .await;
    check(|_, _| headed("503 Busy", "X: y"), Err("answered 503")).await;
    let busy = |_: &str, before| {
        if before < 2 {
            headed("503 Busy", "X: y")
        } else {
            text(OK)
        }
    };
    check(busy, Ok(3)).await;
}

#[tokio::test]
async fn redirects_are_followed_only_so_far_and_where_it_is_safe() {
    let to = |place: &'static str| {
        move |_: &str, before| {
            if before == 0 {
                headed("307 Elsewhere", &format!("Location: {place}"))
            } else {
                text(OK)
            }
        }
    };
    check(to("/other?a=b"), Ok(2)).await;
    check(
        to("http://127.0.0.2:9/x?signature=secret"),
        Err("http://127.0.0.2:9, without TLS"),
    )
    .await;
    check(to("ftp://example.invalid/"), Err("neither https nor http")).await;
    check(
        to("https://user:secret@127.0.0.1/"),
        Err("which is no address"),
    )
    .await;
    check(
        |_, _| headed("302 Found", "X: y"),
        Err("redirects to nowhere"),
    )
    .await;
    check(
        |_, _| headed("302 Found", "Location: /again"),
        Err("redirects more than 3 times"),
    )
    .await;
}

const CREDENTIALS: &str = r#"{"auths": {"HOST": {"username": "u", "password": "secret"}}}"#;
const BASIC: &str = "authorization: Basic dTpzZWNyZXQ=";

#[tokio::test]
async fn a_password_is_given_to_whom_it_is_for_and_to_nobody_else() {
    // Asked for it.
    let asks = |head: &str, _: usize| {
        if head.contains(BASIC) {
            text(OK)
        } else {
            headed("401 Who?", "WWW-Authenticate: Basic realm=\"x\"")
        }
    };
    let fake = Fake::start(asks).await;
    assert_eq!(
        fake.fetch(LAYER, Some(CREDENTIALS)).await.as_deref(),
        Ok(BLOB)
    );
    let first = &fake.asked()[0];
    assert!(!first.contains("authorization"), "{first}");
    check(asks, Err("asks for a user name and password")).await;
    check(
        |_, _| headed("401 Who?", "WWW-Authenticate: Negotiate"),
        Err("authentication that is not known"),
    )
    .await;

    // Led elsewhere once it has it.
    let other = Fake::start(|_, _| text(OK)).await;
    let place = other.authority.clone();
    let mut fake = Fake::start(move |head, _| {
        if head.contains(BASIC) {
            headed("307 There", &format!("Location: http://{place}/blob"))
        } else {
            headed("401 Who?", "WWW-Authenticate: Basic realm=\"x\"")
        }
    })
    .await;
    fake.plain_http.push(other.authority.clone());
    assert_eq!(
        fake.fetch(LAYER, Some(CREDENTIALS)).await.as_deref(),
        Ok(BLOB)
    );
    let asked = other.asked();
    assert_eq!(asked.len(), 1);
    assert!(!asked[0].contains("authorization"), "{asked:?}");

    // A password that is not taken.
    let fake = Fake::start(|_, _| headed("401 Who?", "WWW-Authenticate: Basic realm=\"x\"")).await;
    let error = fake.fetch(LAYER, Some(CREDENTIALS)).await.unwrap_err();
    assert!(error.ends_with("answered 401 Unauthorized"), "{error}");
    assert_eq!(fake.asked().len(), 2);
}

/// A registry that asks for a token of `realm`, in which HOST is itself.
async fn with_tokens(
    realm: &'static str,
    token: impl Fn() -> Answer + Send + Sync + 'static,
) -> Fake {
    Fake::start(move |head, _| {
        let host = head
            .lines()
            .find_map(|line| line.strip_prefix("host: "))
            .unwrap();
        if head.starts_with("GET /token?") {
            token()
        } else if head.contains("authorization: Bearer t0ken") {
            text(OK)
        } else {
            let realm = realm.replace("HOST", host);
            headed(
                "401 Who?",
                &format!("WWW-Authenticate: Bearer realm=\"{realm}\",service=\"a b\""),
            )
        }
    })
    .await
}

fn json(body: &str) -> Answer {
    text(format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ))
}

#[tokio::test]
async fn a_token_is_asked_for_only_where_the_registry_is() {
    let fake = with_tokens("http://HOST/token", || json(r#"{"token": "t0ken"}"#)).await;
    assert_eq!(
        fake.fetch(LAYER, Some(CREDENTIALS)).await.as_deref(),
        Ok(BLOB)
    );
    let asked = fake.asked();
    assert_eq!(asked.len(), 3);
    let token = &asked[1];
    let query = "GET /token?scope=repository%3Asome%2Fthing%3Apull&service=a%20b HTTP/1.1";
    assert!(token.starts_with(query) && token.contains(BASIC), "{token}");
    assert!(!asked[2].contains("Basic"), "{asked:?}");

    let refused = |realm: &'static str, token: fn() -> Answer, reason: &'static str| async move {
        let fake = with_tokens(realm, token).await;
        let error = fake.fetch(LAYER, Some(CREDENTIALS)).await.unwrap_err();
        assert!(error.contains(reason), "{error} instead of {reason}");
        assert!(
            !error.contains("secret") && !error.contains("t0ken"),
            "{error}"
        );
    };
    let none: fn() -> Answer = || json("{}");
    refused(
        "https://elsewhere.invalid/token",
        none,
        "elsewhere than the registry",
    )
    .await;
    refused(
        "https://127.0.0.2/token",
        none,
        "elsewhere than the registry",
    )
    .await;
    refused("http://127.0.0.2/token", none, "without TLS").await;
    refused("https://u:secret@HOST/token", none, "which is no address").await;
    refused("no place", none, "no URL").await;
    refused("http://HOST/token", none, "gives no token").await;
    refused(
        "http://HOST/token",
        || json("{\"token\": \"t0ken\\n\"}"),
        "gives no token",
    )
    .await;
    refused(
        "http://HOST/token",
        || headed("403 No", "X: y"),
        "answered 403",
    )
    .await;
    let endless = || Answer::Endless("HTTP/1.1 200 OK\r\n\r\n".to_owned(), "t0ken");
    refused("http://HOST/token", endless, "more than 65536 bytes").await;
}

#[tokio::test]
async fn a_document_is_taken_up_to_its_bound() {
    let fake = Fake::start(|head, _| {
        if head.starts_with("GET /v2/some/thing/manifests/sha256:") {
            text(OK)
        } else {
            Answer::Endless("HTTP/1.1 200 OK\r\n\r\n".to_owned(), "abc")
        }
    })
    .await;
    assert_eq!(fake.fetch(Part::Manifest, None).await.as_deref(), Ok(BLOB));
    let error = fake.fetch(Part::Config, None).await.unwrap_err();
    assert!(error.contains("has more than 4194304 bytes"), "{error}");
}

#[tokio::test]
async fn a_registry_is_known_by_its_certificate() {
    let CertifiedKey { cert, signing_key } = generated();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let server = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(server));
    let mut fake = Fake::start_at("localhost", Some(acceptor), |_, _| text(OK)).await;
    fake.plain_http.clear();
    let error = fake.fetch(LAYER, None).await.unwrap_err();
    assert!(
        error.contains("no connection (invalid peer certificate"),
        "{error}"
    );
    assert!(fake.asked().is_empty());
    fs::write(fake.ca(), cert.pem()).unwrap();
    assert_eq!(fake.fetch(LAYER, None).await.as_deref(), Ok(BLOB));
}

#[test]
fn a_reference_names_a_repository_or_is_refused() {
    let check = |reference: &str, expect: Option<(&str, &str)>| {
        let found = Repository::of(reference).ok();
        let found = found
            .as_ref()
            .map(|found| (found.authority(), found.name()));
        assert_eq!(found, expect, "{reference}");
    };
    check(
        "docker.io/library/nginx:1.25",
        Some(("registry-1.docker.io", "library/nginx")),
    );
    check("quay.io/a/b@sha256:00", Some(("quay.io", "a/b")));
    check(
        "a.example:5000/b:1@sha256:00",
        Some(("a.example:5000", "b")),
    );
    check("localhost/b", Some(("localhost", "b")));
    check("[::1]:5000/b", Some(("[::1]:5000", "b")));
    check("nginx:1", Some(("registry-1.docker.io", "library/nginx")));
    check("a/nginx", Some(("registry-1.docker.io", "a/nginx")));
    check(
        "index.docker.io/library/nginx",
        Some(("registry-1.docker.io", "library/nginx")),
    );
    check("a.example/", None);
    check("a.example/../b", None);
    check("a.example/b?c", None);
    check("a.example/B", None);
    check("a.example /b", None);
    check("a.example:x/b", None);
    check("a.example:99999/b", None);
    check("sha256:00", None);
    check("", None);
}

#[test]
fn short_names_are_of_docker_hub() {
    let check = |reference: &str, expect: &str| {
        assert_eq!(full_name(reference), expect, "{reference}");
    };
    check("nginx", "docker.io/library/nginx");
    check("nginx:1.27", "docker.io/library/nginx");
    check("bitnami/redis@sha256:ab", "docker.io/bitnami/redis");
    check("docker.io/nginx", "docker.io/library/nginx");
    check("index.docker.io/library/nginx:1", "docker.io/library/nginx");
    check("registry.example/web:1", "registry.example/web");
    check("localhost/web", "localhost/web");
    check("localhost:5000/a/web:1", "localhost:5000/a/web");
    check("", "");
}
