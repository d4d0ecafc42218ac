//! Runs tonic on the sockets, with health and reflection, until it is told to stop.

use std::{
    io,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use monitor_api::{
    FILE_DESCRIPTOR_SET, MESSAGE_BYTES_MAX,
    v1::{
        approvals_server::{self, ApprovalsServer},
        cluster_server::ClusterServer,
        monitor_server::{self, MonitorServer},
        policies_server::{self, PoliciesServer},
        profiles_server::{self, ProfilesServer},
        rollbacks_server::{self, RollbacksServer},
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, mpsc, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    server::NamedService,
    transport::{Server, server::Connected},
};
use tonic_health::{ServingStatus, server::HealthReporter};
use tracing::{info, warn};

use super::{
    DRAIN_TIME_MAX, KEEPALIVE_INTERVAL, Listener, STREAMS_PER_CONNECTION_MAX,
    account::Account,
    approvals::ApprovalService,
    caller::Caller,
    cluster::ClusterService,
    fanout::Fanout,
    frames::Framed,
    guard::Guarded,
    listener::{Accepted, Bytes},
    policies::PolicyService,
    profiles::ProfileService,
    publish::Publisher,
    rollbacks::RollbackService,
    service::Service,
};

/// Wait before accepting again after the system refused, such as for want of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Connections that were accepted and wait for tonic; beyond, the listeners wait.
const ACCEPTED_MAX: usize = 16;

/// Why serving ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The descriptors built into this program are not what reflection can read.
    #[error("cannot offer server reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// tonic's error.
    #[error("the API server failed: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// Serves the API on `listeners` until `shutdown` is true or its sender is gone. Then open alert
/// streams are given what is in the log, for at most [`DRAIN_TIME_MAX`], and end with UNAVAILABLE.
/// Health says SERVING while the account is ready. The sockets' files are gone when this returns.
///
/// # Errors
///
/// See [`ServeError`].
pub async fn serve(
    listeners: Vec<Listener>,
    account: Arc<Account>,
    mut shutdown: watch::Receiver<bool>,
) -> Result<(), ServeError> {
    let consumers = Arc::clone(account.log.consumers());
    let fanout = Arc::new(Fanout::new(account.log.clone()));
    let publishing = Arc::clone(&fanout);
    let service = Service::new(Arc::clone(&account), Arc::clone(&fanout), shutdown.clone());
    let service = MonitorServer::new(service)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let service = Guarded::new(Framed(service), account.audit.clone());
    let profiles = ProfilesServer::new(ProfileService(Arc::clone(&account)))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let profiles = Guarded::new(profiles, account.audit.clone());
    let policies = PoliciesServer::new(PolicyService {
        account: Arc::clone(&account),
        shutdown: shutdown.clone(),
    });
    let policies = Guarded::new(policies, account.audit.clone());
    let approvals = ApprovalsServer::new(ApprovalService {
        account: Arc::clone(&account),
    });
    let approvals = Guarded::new(approvals, account.audit.clone());
    let rollbacks = RollbacksServer::new(RollbackService(Arc::clone(&account)))
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let rollbacks = Guarded::new(rollbacks, account.audit.clone());
    let cluster = account.members.clone().map(|members| {
        let service = ClusterServer::new(ClusterService {
            members,
            account: Arc::clone(&account),
            shutdown: shutdown.clone(),
        });
        let service = service
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Guarded::new(service, account.audit.clone()).for_nodes()
    });
    let reflection = reflection("grpc.reflection.v1.ServerReflection").build_v1()?;
    // Many clients still speak the older version.
    let reflection_alpha =
        self::reflection("grpc.reflection.v1alpha.ServerReflection").build_v1alpha()?;
    let (reporter, health) = tonic_health::server::health_reporter();
    // tonic-health begins with SERVING for the whole server.
    report(&reporter, false).await;

    let (accepted, incoming) = mpsc::channel(ACCEPTED_MAX);
    let mut tasks = JoinSet::new();
    for listener in listeners {
        info!(address = %listener.address(), "the API listens");
        tasks.spawn(accept(listener, Arc::clone(&account), accepted.clone()));
    }
    drop(accepted);
    tasks.spawn(follow_ready(reporter.clone(), account.ready()));
    let saving = Arc::clone(&consumers);
    tasks.spawn(async move { saving.run().await });
    let counting = Arc::clone(&account);
    tasks.spawn(async move { fanout.run(|| counting.streams()).await });

    let publisher = account.collector.as_ref().map(|collector| Publisher {
        collector: Arc::clone(collector),
        account: Arc::clone(&account),
        fanout: publishing,
        shutdown: shutdown.clone(),
    });
    let publishing = tokio::spawn(async move {
        if let Some(publisher) = publisher {
            publisher.run().await;
        }
    });

    let (drain, drained) = watch::channel(());
    let server = Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_INTERVAL))
        .add_service(service)
        .add_service(profiles)
        .add_service(policies)
        .add_service(approvals)
        .add_service(rollbacks)
        .add_optional_service(cluster)
        .add_service(reflection)
        .add_service(reflection_alpha)
        .add_service(health)
        .serve_with_incoming_shutdown(ReceiverStream::new(incoming), async move {
            let mut drained = drained;
            // Ends when the sender goes, which is how it is told.
            while drained.changed().await.is_ok() {}
        });
    let mut server = std::pin::pin!(server);
    tokio::select! {
        result = &mut server => return Ok(result?),
        () = stopped(&mut shutdown) => {}
    }
    // New clients find no socket rather than one that does not answer.
    tasks.shutdown().await;
    report(&reporter, false).await;
    drop(drain);
    let ends = async { tokio::join!(server, publishing) };
    match timeout(DRAIN_TIME_MAX, ends).await {
        Ok((result, _)) => result?,
        Err(_) => {
            let open = account.connections.open();
            warn!(
                open,
                "clients did not take their last alerts in time; their streams are cut"
            );
        }
    }
    if let Err(error) = consumers.save().await {
        warn!(%error, "cannot write what consumers acknowledged; they will get some alerts again");
    }
    Ok(())
}

/// Of what is served here: of the package's services, a collector is served by others. `own` is the
/// name of the reflection itself.
fn reflection(own: &'static str) -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .with_service_name(monitor_server::SERVICE_NAME)
        .with_service_name(profiles_server::SERVICE_NAME)
        .with_service_name(policies_server::SERVICE_NAME)
        .with_service_name(approvals_server::SERVICE_NAME)
        .with_service_name(rollbacks_server::SERVICE_NAME)
        .with_service_name("grpc.health.v1.Health")
        .with_service_name(own)
}

async fn accept(
    listener: Listener,
    account: Arc<Account>,
    accepted: mpsc::Sender<io::Result<Connection>>,
) {
    // At most one for each connection that may be open; they end with the listener.
    let mut identifying = JoinSet::new();
    loop {
        while identifying.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                warn!(%error, "cannot accept an API connection; trying again");
                sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&account.connections.free).try_acquire_owned() else {
            let refused = account.connections.refused.fetch_add(1, Ordering::Relaxed) + 1;
            warn!(
                limit = account.connections.max,
                refused, "too many API connections; one was closed"
            );
            continue;
        };
        identifying.spawn(identify(
            stream,
            permit,
            Arc::clone(&account),
            accepted.clone(),
        ));
    }
}

/// Hands a connection to tonic once it is known who calls.
async fn identify(
    stream: Accepted,
    permit: OwnedSemaphorePermit,
    account: Arc<Account>,
    accepted: mpsc::Sender<io::Result<Connection>>,
) {
    match stream.identify().await {
        Ok((bytes, caller)) => {
            let connection = Connection {
                bytes,
                caller,
                _permit: permit,
            };
            // An error says that the server is stopping.
            let _ = accepted.send(Ok(connection)).await;
        }
        Err(error) => {
            let unidentified = &account.connections.unidentified;
            unidentified.fetch_add(1, Ordering::Relaxed);
            warn!(%error, "an API connection was closed: it is not known who calls");
        }
    }
}

/// Waits until `shutdown` is true, or until nobody is left who could say so.
pub(super) async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    // An error says that the sender is gone.
    let _ = shutdown.wait_for(|stop| *stop).await;
}

/// Keeps health in step with `ready`.
async fn follow_ready(reporter: HealthReporter, mut ready: watch::Receiver<bool>) {
    loop {
        let is_ready = *ready.borrow_and_update();
        report(&reporter, is_ready).await;
        if ready.changed().await.is_err() {
            // Nobody can change it any more.
            return;
        }
    }
}

async fn report(reporter: &HealthReporter, ready: bool) {
    let status = if ready {
        ServingStatus::Serving
    } else {
        ServingStatus::NotServing
    };
    reporter.set_service_status("", status).await;
    reporter
        .set_service_status(MonitorServer::<Service>::NAME, status)
        .await;
}

/// A connection, and its share of what may be open at once.
#[derive(Debug)]
struct Connection {
    bytes: Bytes,
    caller: Caller,
    _permit: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.bytes).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.bytes).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.bytes).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.bytes).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.bytes).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.bytes.is_write_vectored()
    }
}
