//! A server in the test's own process, over a real socket.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use monitor_api::v1::{
    Alert, Approval, Container, CoverageResponse, CoverageSpan, Difference, Image, ImageEntry,
    ImageUsageResponse, ListApprovalsResponse, ListPoliciesResponse, PolicyException, PolicyRule,
    Profile, Rollback, Status, VerifyApprovalResponse, VerifyContainerResponse,
    VerifyImageResponse, alert,
    verify_container_response::{Response, Verified},
};
use tempfile::TempDir;
use tokio::{
    sync::{broadcast, mpsc, watch},
    task::JoinHandle,
};

use super::{
    Account, Address, ApprovalCall, ApprovalCallError, ContentsError, CoverageError, ImageContents,
    Listener, Node, PolicyCall, PolicyCallError, ProfileCall, ProfileError, Security, ServeError,
    VerifyError, serve,
};
use crate::{
    alerts::AlertLog,
    audit::{Audit, Who},
    respond::{Order, Refusal},
};

/// A node that knows two containers and one image.
pub(crate) struct StubNode;

/// A text that no terminal may be given.
pub(crate) const HOSTILE: &[u8] = b"/tmp/\x1b[31m\xff\n\xe2\x80\xaegpj";

pub(crate) fn container(id: &str, name: &str) -> Container {
    Container {
        container: Some(alert::Container {
            id: id.to_owned(),
            name: name.to_owned(),
            runtime_namespace: "default".to_owned(),
            kind: "container".to_owned(),
            ..alert::Container::default()
        }),
        image: Some(alert::Image {
            identity: "proven".to_owned(),
            manifest_digest: format!("sha256:{}", "a".repeat(64)),
            ..alert::Image::default()
        }),
        pid: Some(42),
        coverage: "full".to_owned(),
        ..Container::default()
    }
}

#[tonic::async_trait]
impl Node for StubNode {
    async fn containers(&self) -> Vec<Container> {
        vec![
            container("c1", "web"),
            container("c22", "\u{1b}]0;owned\u{7}"),
        ]
    }

    async fn images(&self) -> Vec<Image> {
        vec![Image {
            references: vec!["docker.io/library/web:1".to_owned()],
            state: "indexed".to_owned(),
            ..Image::default()
        }]
    }

    async fn image_contents(
        &self,
        image: &str,
        path: Option<&[u8]>,
    ) -> Result<ImageContents, ContentsError> {
        let entry = |path: Vec<u8>| ImageEntry {
            path,
            r#type: "file".to_owned(),
            ..ImageEntry::default()
        };
        let entries: Box<dyn Iterator<Item = ImageEntry> + Send> = match (image, path) {
            ("web", None) => Box::new((0..300).map(move |n| entry(format!("/{n:03}").into()))),
            ("web", Some(path)) => Box::new(std::iter::once(entry(path.to_vec()))),
            ("empty", _) => Box::new(std::iter::empty()),
            ("corrupt", _) => {
                return Err(ContentsError::NotIndexed {
                    image: image.to_owned(),
                    reason: "layer 1 does not have its digest".to_owned(),
                });
            }
            _ => return Err(ContentsError::NoImage(image.to_owned())),
        };
        let evidence = "verified".to_owned();
        Ok(ImageContents {
            manifest_digest: "sha256:aa".to_owned(),
            evidence,
            entries,
        })
    }

    async fn verify_container(
        &self,
        container: &str,
    ) -> Result<mpsc::Receiver<VerifyContainerResponse>, VerifyError> {
        if container != "web" {
            return Err(VerifyError::Busy);
        }
        let difference = Difference {
            path: HOSTILE.to_vec(),
            verdict: "added".to_owned(),
            ..Difference::default()
        };
        let (told_in, told) = mpsc::channel(8);
        for response in [
            Response::Begun(Box::default()),
            Response::Difference(difference),
            Response::Verified(Verified::default()),
        ] {
            let response = Some(response);
            told_in
                .try_send(VerifyContainerResponse { response })
                .unwrap();
        }
        Ok(told)
    }

    async fn verify_image(
        &self,
        image: &str,
    ) -> Result<mpsc::Receiver<VerifyImageResponse>, ContentsError> {
        if image != "web" {
            return Err(ContentsError::NoImage(image.to_owned()));
        }
        let (told_in, told) = mpsc::channel(8);
        for state in ["verified", "missing"] {
            let blob = VerifyImageResponse {
                state: state.to_owned(),
                ..VerifyImageResponse::default()
            };
            told_in.try_send(blob).unwrap();
        }
        Ok(told)
    }

    async fn image_usage(&self) -> Vec<ImageUsageResponse> {
        vec![ImageUsageResponse::default()]
    }

    async fn coverage(
        &self,
        container: &str,
        from: Option<jiff::Timestamp>,
        _: Option<jiff::Timestamp>,
    ) -> Result<CoverageResponse, CoverageError> {
        if container != "web" {
            return Err(CoverageError::NoContainer(container.to_owned()));
        }
        let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let begin = from.map_or(0, jiff::Timestamp::as_second);
        Ok(CoverageResponse {
            container: self::container("c1", "web").container,
            spans: vec![
                CoverageSpan {
                    begin: at(begin),
                    end: at(60),
                    state: "watched".to_owned(),
                    ..CoverageSpan::default()
                },
                CoverageSpan {
                    begin: at(60),
                    end: at(61),
                    state: "gap".to_owned(),
                    reason: "lost".to_owned(),
                    hooks: [("exec".to_owned(), 7)].into(),
                    causes: [("ring_full".to_owned(), 7)].into(),
                    merged: 2,
                },
            ],
        })
    }

    async fn approvals(
        &self,
        call: ApprovalCall,
    ) -> Result<ListApprovalsResponse, ApprovalCallError> {
        let approval = |repository: &str, digest: String| Approval {
            repository: repository.to_owned(),
            digest,
            state: "approved".to_owned(),
            by: "\u{1b}[31mred".to_owned(),
            ..Approval::default()
        };
        let said = match call {
            ApprovalCall::List => approval("example.org/web", String::new()),
            ApprovalCall::Approve {
                repository, digest, ..
            } => approval(&repository, digest.to_string()),
            ApprovalCall::Revoke { digest, .. } => return Err(ApprovalCallError::NotNamed(digest)),
        };
        Ok(ListApprovalsResponse {
            approvals: vec![said],
            error: String::new(),
        })
    }

    async fn approval_of(&self, image: &str) -> Result<VerifyApprovalResponse, ApprovalCallError> {
        Err(ContentsError::NoImage(image.to_owned()).into())
    }

    async fn policies(&self, call: PolicyCall) -> Result<ListPoliciesResponse, PolicyCallError> {
        let exception = |id: String| PolicyException {
            id,
            owner: "\u{1b}[31mred".to_owned(),
            ..PolicyException::default()
        };
        match call {
            PolicyCall::List => Ok(ListPoliciesResponse {
                rules: vec![PolicyRule {
                    id: "default.shell".to_owned(),
                    ..PolicyRule::default()
                }],
                exceptions: vec![exception("exceptions.a".to_owned())],
                ..ListPoliciesResponse::default()
            }),
            PolicyCall::AddException { .. } => Ok(ListPoliciesResponse {
                exceptions: vec![exception("exceptions.b".to_owned())],
                ..ListPoliciesResponse::default()
            }),
            PolicyCall::RemoveException { id } => Err(PolicyCallError::NoException(id)),
        }
    }

    async fn record(&self) -> Option<broadcast::Receiver<Arc<str>>> {
        None
    }

    async fn profiles(&self, call: ProfileCall) -> Result<Vec<Profile>, ProfileError> {
        let profile = |document: String| Profile {
            reference: "docker.io/library/web:1".to_owned(),
            state: "learning".to_owned(),
            reasons: vec!["\u{1b}[31mred".to_owned()],
            document,
            ..Profile::default()
        };
        match call {
            ProfileCall::List => Ok(vec![profile(String::new())]),
            ProfileCall::Import { document } => Ok(vec![profile(document)]),
            ProfileCall::Get { image }
            | ProfileCall::Learn { image }
            | ProfileCall::Freeze { image, .. } => match image.as_str() {
                "web" => Ok(vec![profile("kind: Profile\n".to_owned())]),
                _ => Err(ProfileError::NoProfile(image)),
            },
        }
    }

    async fn rollback(&self, order: Order, who: Who) -> Result<Rollback, Refusal> {
        match order {
            Order::Plan(request) if request.target == "web" => Ok(Rollback {
                id: "01J".to_owned(),
                state: "planned".to_owned(),
                by: who.name,
                notes: vec!["\u{1b}[31mred".to_owned()],
                ..Rollback::default()
            }),
            Order::Plan(request) => Err(Refusal::NoContainer(request.target)),
            Order::Apply { plan } | Order::Abort { order: plan } => Err(Refusal::InFlight(plan)),
        }
    }

    async fn rollbacks(&self) -> Vec<Rollback> {
        vec![Rollback::default()]
    }

    async fn status(&self) -> Status {
        Status {
            node: "node-7".to_owned(),
            ..Status::default()
        }
    }
}

pub(crate) struct Fixture {
    pub(crate) directory: TempDir,
    pub(crate) address: Address,
    pub(crate) log: AlertLog,
    pub(crate) ready: watch::Sender<bool>,
    pub(crate) shutdown: watch::Sender<bool>,
    pub(crate) server: JoinHandle<Result<(), ServeError>>,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::with(AlertLog::new())
    }

    pub(crate) fn with(log: AlertLog) -> Self {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("monitord.sock");
        Self::serving(log, directory, &Address::Unix(path), None)
    }

    pub(crate) fn serving(
        log: AlertLog,
        directory: TempDir,
        address: &Address,
        security: Option<Arc<Security>>,
    ) -> Self {
        let (ready, is_ready) = watch::channel(false);
        let (shutdown, is_shutdown) = watch::channel(false);
        let listener = Listener::bind(address, security.as_ref()).unwrap();
        let address = listener.address();
        let audit = Audit::start(&directory.path().join("audit")).unwrap();
        let account = Account::new(
            Arc::new(StubNode),
            log.clone(),
            audit,
            is_ready,
            security,
            None,
        );
        let server = tokio::spawn(serve(vec![listener], Arc::new(account), is_shutdown));
        Self {
            directory,
            address,
            log,
            ready,
            shutdown,
            server,
        }
    }

    pub(crate) fn append(&self, count: u64) {
        for _ in 0..count {
            // As long as a real one at least: h2 cuts a peer off that leaves some ten thousand
            // frames of less than 256 bytes unread.
            let message = "x".repeat(300);
            let kind = "exec_added".to_owned();
            self.log.append(Alert {
                kind,
                message,
                ..Alert::default()
            });
        }
    }
}
