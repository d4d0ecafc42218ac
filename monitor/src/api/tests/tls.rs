//! Who gets in by TCP.

use std::{fs, path::Path, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use super::*;

/// An authority that issues certificates.
pub(super) struct Authority(pub(super) CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    /// A certificate for a name, and its key, as PEM.
    pub(super) fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

/// A daemon whose certificate is of one authority, and its clients' of another.
struct Daemon {
    fixture: Fixture,
    own: Authority,
    clients: Authority,
}

impl Daemon {
    fn start() -> Self {
        let (own, clients) = (Authority::new(), Authority::new());
        let directory = TempDir::new().unwrap();
        let files = files(directory.path());
        write_certificate(directory.path(), &own);
        fs::write(&files.client_ca, clients.0.pem()).unwrap();
        let security = Security {
            tls: Tls::load(&files).unwrap(),
            roles: Roles {
                observer: vec!["soc.example".to_owned()],
                operator: vec!["auditor.example".to_owned()],
                ..Roles::default()
            },
        };
        let address = "https://127.0.0.1:0".parse().unwrap();
        let fixture = Fixture::serving(
            AlertLog::new(),
            directory,
            &address,
            Some(Arc::new(security)),
        );
        Self {
            fixture,
            own,
            clients,
        }
    }

    /// A client with the certificate and key, who trusts `trusted`.
    async fn connect(
        &self,
        trusted: &Authority,
        identity: Option<(String, String)>,
    ) -> Result<MonitorClient<Channel>, tonic::transport::Error> {
        let mut config = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(trusted.0.pem()))
            .domain_name("node.example");
        if let Some((certificate, key)) = identity {
            config = config.identity(Identity::from_pem(certificate, key));
        }
        let channel = Endpoint::from_shared(self.fixture.address.to_string())?
            .tls_config(config)?
            .connect()
            .await?;
        Ok(MonitorClient::new(channel))
    }

    async fn observer(&self, trusted: &Authority) -> MonitorClient<Channel> {
        let identity = self.clients.issue("soc.example");
        self.connect(trusted, Some(identity)).await.unwrap()
    }

    async fn account(&self, trusted: &Authority) -> (u64, u64) {
        let mut client = self.observer(trusted).await;
        let status = client.status(StatusRequest {}).await.unwrap().into_inner();
        let api = status.status.unwrap().api.unwrap();
        (api.connections_unidentified, api.tls_reload_failures)
    }
}

fn files(directory: &Path) -> TlsFiles {
    TlsFiles {
        certificate: directory.join("tls.crt"),
        key: directory.join("tls.key"),
        client_ca: directory.join("ca.crt"),
    }
}

fn write_certificate(directory: &Path, authority: &Authority) {
    let (certificate, key) = authority.issue("node.example");
    let files = files(directory);
    fs::write(files.certificate, certificate).unwrap();
    fs::write(files.key, key).unwrap();
}

/// Whether anything can be asked. TLS 1.3 tells a client only then that its certificate is refused.
async fn is_answered(client: Result<MonitorClient<Channel>, tonic::transport::Error>) -> bool {
    match client {
        Ok(mut client) => client.status(StatusRequest {}).await.is_ok(),
        Err(_) => false,
    }
}

#[tokio::test]
async fn only_a_named_certificate_of_the_clients_authority_is_answered() {
    let daemon = Daemon::start();
    let mut observer = daemon.observer(&daemon.own).await;
    observer.status(StatusRequest {}).await.unwrap();

    let other = daemon.clients.issue("other.example");
    let mut other = daemon.connect(&daemon.own, Some(other)).await.unwrap();
    let refused = other.status(StatusRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("other.example"), "{refused}");

    let strange = daemon.own.issue("soc.example");
    assert!(!is_answered(daemon.connect(&daemon.own, Some(strange)).await).await);
    assert!(!is_answered(daemon.connect(&daemon.own, None).await).await);
    let Address::Https(place) = &daemon.fixture.address else {
        panic!("not TCP");
    };
    let mut plain = TcpStream::connect(place).await.unwrap();
    plain
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    // TLS's alert or a reset, and the end.
    let _ = plain.read_to_end(&mut answer).await;
    assert_eq!(daemon.account(&daemon.own).await, (3, 0));
}

#[tokio::test]
async fn a_certificate_is_replaced_without_ending_a_stream() {
    let daemon = Daemon::start();
    daemon.fixture.append(1);
    let mut before = daemon.observer(&daemon.own).await;
    let (_requests, mut stream) = open(&mut before, start("", Some(Position::After(0)))).await;
    expect(&mut stream, &["=1", "1"]).await;

    let renewed = Authority::new();
    let directory = daemon.fixture.directory.path();
    write_certificate(directory, &renewed);
    daemon.observer(&renewed).await;
    let identity = daemon.clients.issue("soc.example");
    assert!(!is_answered(daemon.connect(&daemon.own, Some(identity)).await).await);
    daemon.fixture.append(1);
    expect(&mut stream, &["2"]).await;

    // What cannot be used changes nothing.
    fs::write(directory.join("tls.crt"), "no certificate").unwrap();
    let (_, reload_failures) = daemon.account(&renewed).await;
    assert_eq!(reload_failures, 1);
}

#[test]
fn a_file_that_cannot_be_used_is_named() {
    let check = |spoil: fn(&TlsFiles), parts: &[&str]| {
        let directory = TempDir::new().unwrap();
        let files = files(directory.path());
        write_certificate(directory.path(), &Authority::new());
        fs::write(&files.client_ca, Authority::new().0.pem()).unwrap();
        spoil(&files);
        let error = Tls::load(&files).unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "no {part:?} in {error}");
        }
    };
    check(
        |files| fs::remove_file(&files.key).unwrap(),
        &["tls.key", "No such file"],
    );
    check(
        |files| fs::write(&files.certificate, "").unwrap(),
        &["tls.crt", "no certificate"],
    );
    check(
        |files| fs::write(&files.client_ca, "x").unwrap(),
        &["ca.crt", "no certificate"],
    );
    check(
        |files| fs::write(&files.key, KeyPair::generate().unwrap().serialize_pem()).unwrap(),
        &["tls.crt", "key"],
    );
    check(
        |files| {
            fs::remove_file(&files.key).unwrap();
            fs::create_dir(&files.key).unwrap();
        },
        &["tls.key", "no regular file"],
    );
}

#[tokio::test]
async fn who_may_not_read_the_audit_log_is_in_it() {
    let daemon = Daemon::start();
    let mut soc = daemon.observer(&daemon.own).await;
    assert_eq!(
        code(soc.list_audit(ListAuditRequest::default()).await),
        Code::PermissionDenied
    );
    let guest = daemon.clients.issue("guest.example");
    let mut guest = daemon.connect(&daemon.own, Some(guest)).await.unwrap();
    for _ in 0..10 {
        assert_eq!(
            code(guest.status(StatusRequest {}).await),
            Code::PermissionDenied
        );
    }
    let auditor = daemon.clients.issue("auditor.example");
    let mut auditor = daemon.connect(&daemon.own, Some(auditor)).await.unwrap();
    let page = auditor
        .list_audit(ListAuditRequest::default())
        .await
        .unwrap()
        .into_inner();
    let records = page.records.iter();
    let said: Vec<_> = records
        .map(|it| {
            (
                it.caller.as_str(),
                it.method.as_str(),
                it.outcome.as_str(),
                it.count,
            )
        })
        .collect();
    // Of repeats the number follows.
    let expect = [
        ("soc.example", "ListAudit", "refused", 1),
        ("guest.example", "Status", "refused", 1),
    ];
    assert_eq!(said, expect);
    assert!(
        page.records
            .iter()
            .all(|it| it.peer.starts_with("127.0.0.1:"))
    );
    let report = auditor
        .verify_audit(VerifyAuditRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!((report.records, report.broken), (2, 0));
}
