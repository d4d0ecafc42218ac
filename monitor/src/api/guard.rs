//! Refuses calls whose caller has no role, and says so to the audit log.
//!
//! A node's role opens no service that people call.

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use monitor_api::FILE_DESCRIPTOR_SET;
use prost::Message as _;
use tonic::{
    Request, Status,
    body::Body,
    codegen::{BoxFuture, Service, http},
    server::NamedService,
};

use super::caller::{Caller, Role};
use crate::audit::{Audit, Call, Outcome};

/// A service for people with a role, or for nodes.
#[derive(Clone)]
pub(super) struct Guarded<S> {
    inner: S,
    audit: Audit,
    /// The service's calls, by name.
    methods: Arc<[String]>,
    is_for_nodes: bool,
}

impl<S: NamedService> Guarded<S> {
    pub(super) fn new(inner: S, audit: Audit) -> Self {
        let files = prost_types::FileDescriptorSet::decode(FILE_DESCRIPTOR_SET);
        let files = files.unwrap_or_default().file.into_iter();
        let is_own = |full: String| full == S::NAME;
        let services = files.flat_map(|file| {
            let package = file.package().to_owned();
            let services = file.service.into_iter();
            services.filter(move |it| is_own(format!("{package}.{}", it.name())))
        });
        let methods = services.flat_map(|service| service.method);
        Self {
            inner,
            audit,
            methods: methods.map(|method| method.name().to_owned()).collect(),
            is_for_nodes: false,
        }
    }

    /// The same for nodes, and for nobody else.
    pub(super) fn for_nodes(self) -> Self {
        Self {
            is_for_nodes: true,
            ..self
        }
    }

    /// The call's name; a caller could make up any number of others.
    fn method(&self, path: &str) -> String {
        let name = path.rsplit('/').next().unwrap_or_default();
        let known = self.methods.iter().find(|method| *method == name);
        known.cloned().unwrap_or_else(|| "unknown".to_owned())
    }
}

impl<S: NamedService> NamedService for Guarded<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Guarded<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
        + NamedService,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let Some(caller) = request.extensions().get::<Caller>() else {
            let status = Status::unauthenticated("who calls is not known");
            return Box::pin(async move { Ok(status.into_http()) });
        };
        if caller
            .roles
            .iter()
            .any(|role| (*role == Role::Node) == self.is_for_nodes)
        {
            return Box::pin(self.inner.call(request));
        }
        let (audit, caller) = (self.audit.clone(), caller.clone());
        let method = self.method(request.uri().path());
        Box::pin(async move {
            let name = &caller.name;
            let status = Status::permission_denied(format!(
                "{name} has no role here: name it below [roles] in the daemon's configuration"
            ));
            Ok(refused(&audit, &caller, &method, status).await.into_http())
        })
    }
}

/// Who calls, if it has one of `roles`.
pub(super) async fn permit<T>(
    audit: &Audit,
    request: &Request<T>,
    method: &str,
    roles: &[Role],
) -> Result<Caller, Status> {
    let caller = of(request)?;
    if caller.roles.iter().any(|role| roles.contains(role)) {
        return Ok(caller);
    }
    let needed: Vec<_> = roles.iter().map(|role| role.name()).collect();
    let status = Status::permission_denied(format!(
        "{} may not call {method}: it needs the role {}, see [roles] in the daemon's configuration",
        caller.name,
        needed.join(" or ")
    ));
    Err(refused(audit, &caller, method, status).await)
}

/// Who calls.
pub(super) fn of<T>(request: &Request<T>) -> Result<Caller, Status> {
    let caller = request.extensions().get::<Caller>().cloned();
    caller.ok_or_else(|| Status::unauthenticated("who calls is not known"))
}

async fn refused(audit: &Audit, caller: &Caller, method: &str, status: Status) -> Status {
    tracing::warn!(
        caller = caller.name,
        method,
        "a caller without the role was refused"
    );
    let call = Call {
        method,
        object: "",
        detail: "",
    };
    audit.note(&caller.who(), call, Outcome::Refused).await;
    status
}
