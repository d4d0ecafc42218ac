//! `monitord controller`: what is done to the workloads of a cluster when a responder orders it, and the
//! cluster's approvals.
//!
//! [`plan`] says what would be done, `rollout` does it at the API server by `cluster`, [`nodes`] is
//! what the daemons of the nodes report, and the order is kept in an annotation of the workload
//! ([`record`]), so that the controller that leads next ([`lease`]) goes on with it.

mod answers;
pub mod approvals;
mod automatic;
pub mod cluster;
pub mod config;
mod forward;
pub mod gitops;
pub mod images;
pub mod lease;
pub mod nodes;
mod observe;
pub mod orders;
pub mod owners;
pub mod plan;
pub mod pods;
pub mod record;
mod rollout;
#[cfg(test)]
#[expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::string_slice,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
mod tests;
mod view;
pub mod workload;

use std::{
    fs::File,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Context as _;
use nix::fcntl::Flock;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinHandle,
};

pub use self::config::Config;
use self::{
    answers::Answers, approvals::ClusterApprovals, cluster::Cluster, lease::Lease,
    orders::Controller,
};
use crate::{
    alerts::{AlertLog, NodeFacts},
    api::{self, Address},
    audit::Audit,
    outputs::Outputs,
    provenance::Provenance,
    registry::Registry,
    respond::{Ledger, Outlet, Pace},
    startup,
};

/// How long what blocks is waited for at the end.
const SHUTDOWN_TIME_MAX: Duration = Duration::from_secs(2);

/// Runs the controller until SIGTERM or SIGINT, or until another one leads.
///
/// # Errors
///
/// What kept it from starting, or that it leads no more.
pub fn run(config: Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(2)
        .build()
        .context("cannot start the async runtime")?;
    let served = runtime.block_on(serve(config));
    // What still acts must not, once another one leads.
    runtime.shutdown_timeout(SHUTDOWN_TIME_MAX);
    served
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let name = own_name(&config)?;
    tracing::info!(
        ?config,
        name,
        version = env!("CARGO_PKG_VERSION"),
        "starting"
    );
    let cluster = Cluster::connect(config.kubeconfig.as_deref()).await;
    let cluster = cluster.context("cannot find the API server")?;
    // Before it takes part: what is wrong with them must not be found out by the one that leads.
    let files = Files::read(&config).await?;
    let addresses = config.listen.iter().map(|address| address.parse());
    let addresses: Vec<Address> = addresses.collect::<Result<_, _>>()?;
    let own = advertised(&config, &addresses)?;
    let own_text = own.map(|address| address.to_string()).unwrap_or_default();
    let mut lease = Lease::new(cluster.clone(), &config.namespace, &name, &own_text);
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    tokio::pin!(stop);

    let (leader_in, leader) = watch::channel(None);
    let follow = forward::forward(tcp(&addresses), leader);
    tokio::select! {
        () = &mut stop => return Ok(()),
        failed = follow => failed.context("cannot listen")?,
        () = lease.acquire(|address| {
            let to: Option<SocketAddr> = address.parse().ok().filter(|to| Some(*to) != own);
            leader_in.send_if_modified(|before| std::mem::replace(before, to) != to);
        }) => {}
    }
    tracing::info!(name, "this controller leads");
    lead(&config, &name, files, cluster, addresses, &mut lease, stop).await?;
    lease.release().await;
    Ok(())
}

/// Serves and acts, for as long as this controller leads.
async fn lead(
    config: &Config,
    name: &str,
    files: Files,
    cluster: Cluster,
    addresses: Vec<Address>,
    lease: &mut Lease,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let ends =
        |why: String| anyhow::anyhow!("{why}; this controller ends, and is to be started again");
    let mut leading = tokio::select! {
        started = start(config, name, files, cluster, addresses) => started?,
        lost = lease.keep() => return Err(ends(lost)),
    };
    tracing::info!("ready: orders are taken");
    let failed = tokio::select! {
        () = stop => None,
        lost = lease.keep() => Some(lost),
        ended = &mut leading.serving => Some(format!("the API task ended: {ended:?}")),
        ended = &mut leading.following => Some(format!("the task of approvals ended: {ended:?}")),
        ended = &mut leading.observing => Some(format!("the task of pods ended: {ended:?}")),
    };
    match failed {
        // At once: another one may act already.
        Some(failed) => Err(ends(failed)),
        None => leading.stop().await,
    }
}

/// What a controller does that leads.
struct Leading {
    log: AlertLog,
    audit: Audit,
    outputs: Outputs,
    serving: JoinHandle<Result<(), api::ServeError>>,
    following: JoinHandle<()>,
    observing: JoinHandle<()>,
    stop_api: watch::Sender<bool>,
    _ready: watch::Sender<bool>,
    _lock: Flock<File>,
}

impl Leading {
    async fn stop(self) -> anyhow::Result<()> {
        tracing::info!("stopping");
        let log = self.log;
        tokio::task::spawn_blocking(move || log.close())
            .await
            .context("cannot close the journal")?;
        self.outputs.stop().await;
        self.stop_api.send_replace(true);
        self.serving.await.context("the API task failed")??;
        self.audit.flush().await;
        Ok(())
    }
}

/// What the files say that a configuration names.
struct Files {
    security: Option<Arc<api::Security>>,
    registry: Option<Registry>,
    provenance: Provenance,
}

impl Files {
    async fn read(config: &Config) -> anyhow::Result<Self> {
        let security = startup::security(config.tls.as_ref(), &config.roles)?;
        let registry = config
            .registry
            .enabled
            .then(|| Registry::new(&config.registry))
            .transpose()?;
        let (options, asked) = (config.provenance.clone(), registry.clone());
        let provenance =
            tokio::task::spawn_blocking(move || Provenance::new(&options, None, asked));
        Ok(Self {
            security,
            registry,
            provenance: provenance.await.context("cannot read the keys")??,
        })
    }
}

async fn start(
    config: &Config,
    name: &str,
    files: Files,
    cluster: Cluster,
    addresses: Vec<Address>,
) -> anyhow::Result<Leading> {
    // Of its own: the one above may be a volume's, whose mode is not the controller's to change.
    let state = config.state.join("controller");
    let lock = startup::lock(&state)?;
    let log = startup::open_log(&state, config.journal.retention()).await?;
    let audit = startup::open_audit(&state).await?;
    let Files {
        security,
        registry,
        provenance,
    } = files;
    let node = NodeFacts {
        cluster: config.cluster.clone().unwrap_or_default(),
        environment: config.environment.clone().unwrap_or_default(),
        node: name.to_owned(),
        boot_time: crate::alerts::build::boot_time().context("cannot read the clock")?,
    };
    let outputs = Outputs::start(&config.output, &log, &node.cluster, name);
    let outputs = outputs.context("cannot start an output")?;
    let controller = Arc::new(Controller {
        approvals: Arc::new(ClusterApprovals::new(cluster.clone())),
        cluster,
        nodes: nodes::Nodes::default(),
        provenance,
        registry,
        settings: config.rollback,
        outlet: Outlet {
            log: log.clone(),
            node,
            audit: audit.clone(),
        },
        namespace: config.namespace.clone(),
        ledger: Mutex::new(Ledger::new(Vec::new())),
        pace: Mutex::new(Pace::new(config.rollback.cool_down())),
        beginning: tokio::sync::Mutex::default(),
    });
    controller
        .approvals
        .read()
        .await
        .context("cannot read the approvals; is deploy/controller.yaml applied?")?;
    controller
        .resume()
        .await
        .context("cannot read the orders that are under way")?;
    let answers = Arc::new(Answers {
        controller: Arc::clone(&controller),
        name: name.to_owned(),
    });
    let listeners = addresses.iter();
    let listeners = listeners.map(|address| Ok(api::Listener::bind(address, security.as_ref())?));
    let listeners = listeners.collect::<anyhow::Result<Vec<_>>>()?;
    let (ready_in, ready) = watch::channel(true);
    let (stop_api, api_stops) = watch::channel(false);
    let members: Arc<dyn api::Members> = Arc::clone(&answers) as _;
    let account = api::Account::new(answers, log.clone(), audit.clone(), ready, security, None);
    let account = Arc::new(account.with_members(members));
    Ok(Leading {
        log,
        audit,
        outputs,
        serving: tokio::spawn(api::serve(listeners, account, api_stops)),
        following: tokio::spawn(Arc::clone(&controller.approvals).follow()),
        observing: tokio::spawn(controller.observe()),
        stop_api,
        _ready: ready_in,
        _lock: lock,
    })
}

/// The controller's name in alerts and in its Lease.
fn own_name(config: &Config) -> anyhow::Result<String> {
    if let Some(name) = &config.name {
        return Ok(name.clone());
    }
    if let Ok(name) = std::env::var("POD_NAME") {
        return Ok(name);
    }
    let name = nix::unistd::gethostname().context("cannot read the host's name; set `name`")?;
    Ok(name.to_string_lossy().into_owned())
}

/// Where other controllers reach this one.
fn advertised(config: &Config, addresses: &[Address]) -> anyhow::Result<Option<SocketAddr>> {
    if config.advertise.is_some() {
        return Ok(config.advertise);
    }
    let Some(mut own) = tcp(addresses).first().copied() else {
        return Ok(None);
    };
    if own.ip().is_unspecified() {
        let ip = std::env::var("POD_IP").ok();
        let ip: Option<IpAddr> = ip.and_then(|ip| ip.parse().ok());
        own.set_ip(ip.context("set `advertise` in the configuration, or the variable POD_IP: at which address do other controllers reach this one?")?);
    }
    Ok(Some(own))
}

fn tcp(addresses: &[Address]) -> Vec<SocketAddr> {
    let tcp = addresses.iter().filter_map(|address| match address {
        // To listen at it is an IP address; what is none is refused when it is listened at.
        Address::Https(address) => address.parse().ok(),
        Address::Unix(_) => None,
    });
    tcp.collect()
}
