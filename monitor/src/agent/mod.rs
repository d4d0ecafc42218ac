//! The assembly of the daemon: starts each room, connects them, and stops them in order.

mod activity;
mod approvals;
mod automatic;
mod bytes;
mod changes;
mod connects;
mod contents;
mod coverage;
mod executed;
mod fetching;
mod find;
mod forget;
mod node;
mod opens;
mod owed;
mod owner;
mod policies;
mod posture;
mod probe;
mod profiles;
mod query;
mod rollbacks;
mod runtime;
mod signatures;
mod sourced;
mod state;
mod turns;
mod usage;
mod uses;
mod verify;

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{Semaphore, mpsc, watch},
};

pub use self::{
    approvals::check as check_approvals, policies::check as check_policies, probe::self_check,
};
use crate::{
    alerts::{
        boot_id,
        build::{self, NodeFacts},
    },
    api,
    changes::{self as changes_room, Changes},
    config::Config,
    containerd,
    containers::{hierarchy::Hierarchy, inventory::Inventory, watch as containerd_watch},
    image::store::ImageStore,
    metrics,
    outputs::Outputs,
    provenance::Provenance,
    registry::Registry,
    respond::{self, Responder, automatic::Pace},
    sensor::{
        Sensor,
        pins::{Pins, PinsError},
    },
    startup,
};

/// Execs between the sensor's reader and the owner; at the bound the reader waits and the ring
/// fills.
const EVENTS_MAX: usize = 4096;
/// Threads of the async runtime.
const WORKER_THREADS: usize = 2;
/// Threads for what blocks: hashing, reading layers.
const BLOCKING_THREADS_MAX: usize = 16;
/// How long threads that read files are waited for at the end.
const SHUTDOWN_TIME_MAX: Duration = Duration::from_secs(2);
/// Questions of API clients that wait for the owner; at the bound the clients wait.
const QUERIES_MAX: usize = 64;

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
///
/// What kept it from starting, with what to do about it.
pub fn run(config: Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // Few, whatever the node's size: the owner is one task, and hashing has its own bound.
        .worker_threads(WORKER_THREADS)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build()
        .context("cannot start the async runtime")?;
    let served = runtime.block_on(serve(config));
    // A read of a container's file may never return.
    runtime.shutdown_timeout(SHUTDOWN_TIME_MAX);
    served
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let hangup = signal(SignalKind::hangup()).context("cannot wait for SIGHUP")?;
    let node = node_name(&config)?;
    let cluster = config.cluster.clone().unwrap_or_default();
    tracing::info!(
        ?config,
        node,
        version = env!("CARGO_PKG_VERSION"),
        "starting"
    );

    let hierarchy = Hierarchy::find()?;
    Sensor::may_start()?;
    let client = containerd::Client::connect(&config.containerd).await?;
    let _lock = startup::lock(&config.state)?;
    let pins = pins(&config)?;
    let registry = config.registry.enabled;
    let registry = registry
        .then(|| Registry::new(&config.registry))
        .transpose()?;
    let images = ImageStore::open(&config.state.join("layers"), Arc::new(client.clone()))?;
    let (options, of_images) = (config.provenance.clone(), client.clone());
    let asked = registry.clone();
    let provenance =
        tokio::task::spawn_blocking(move || Provenance::new(&options, Some(of_images), asked));
    let provenance = provenance.await.context("cannot read the keys")??;
    let signatures = signatures::Signatures::new(provenance.clone());
    let contents = Arc::new(contents::ContentsReader::new(
        images,
        client.clone(),
        registry.clone(),
    ));
    let log = startup::open_log(&config.state, config.journal.retention()).await?;
    let audit = startup::open_audit(&config.state).await?;
    let security = startup::security(config.tls.as_ref(), &config.roles)?;
    let (profiles_directory, profiles) = (config.state.join("profiles"), config.profile.clone());
    let profiles =
        tokio::task::spawn_blocking(move || profiles::Profiles::open(profiles_directory, profiles));
    let profiles = profiles.await.context("cannot read the profiles")?;
    let (state, policies) = (config.state.clone(), config.policy.clone());
    let policies = tokio::task::spawn_blocking(move || policies::State::open(&state, policies));
    let policies = policies.await.context("cannot read the policies")?;
    let policies =
        policies.map_err(|error| anyhow::anyhow!("the policies are refused: {error}"))?;
    let (references_in, references) = watch::channel(Arc::from([]));
    let (state, approvals) = (config.state.clone(), config.approval.clone());
    let (read, controller) = (references.clone(), config.controller.clone());
    let approvals = tokio::task::spawn_blocking(move || {
        let controller = controller.as_ref().map(|it| it.address.as_str());
        approvals::State::open(&state, approvals, controller, read)
    });
    let approvals = approvals.await.context("cannot read the approvals")?;
    let approvals =
        approvals.map_err(|error| anyhow::anyhow!("the approvals are refused: {error}"))?;
    let kept = config.state.join("respond");
    let kept = tokio::task::spawn_blocking(move || respond::open(&kept))
        .await
        .context("cannot read the orders")?
        .context("cannot open the directory of orders")?;
    let listeners = config
        .listen
        .iter()
        .map(|address| Ok(api::Listener::bind(&address.parse()?, security.as_ref())?))
        .collect::<anyhow::Result<Vec<_>>>()?;

    let metrics = config.metrics.map(metrics::Listener::bind).transpose()?;

    // Last of what can fail, since from here on it sends events, which nobody takes yet.
    let (events_in, events) = mpsc::channel(EVENTS_MAX);
    let sensor = Sensor::start(events_in, pins)?;
    let watched_since = jiff::Timestamp::now();

    let (changes_in, changes) = mpsc::channel(containerd_watch::CHANGES_MAX);
    let (listings, listings_asked) = watch::channel(None);
    let (queries_in, queries) = mpsc::channel(QUERIES_MAX);
    let (ready_in, ready) = watch::channel(false);
    let (stop_owner, owner_stops) = watch::channel(false);
    let (stop_api, api_stops) = watch::channel(false);

    let (changed_in, changed) = mpsc::channel(changes_room::CHANGES_MAX);
    let followed = match Changes::start(changed_in) {
        Ok(changes) => Some(changes),
        Err(error) => {
            tracing::error!(%error, "what containers change of their images is not seen until it is used as code");
            None
        }
    };

    let containerd_address = client.address().to_owned();
    let scene = rollbacks::Scene {
        client: client.clone(),
        queries: queries_in.clone(),
        references: references.clone(),
        log: log.clone(),
        provenance: provenance.clone(),
        registry: registry.clone(),
    };
    let responding = client.clone();
    let mut watching = tokio::spawn(containerd_watch::run(
        client,
        contents.images().clone(),
        changes_in,
        listings_asked,
        references_in,
    ));
    let facts = NodeFacts {
        cluster: cluster.clone(),
        environment: config.environment.unwrap_or_default(),
        node: node.clone(),
        boot_time: build::boot_time().context("cannot read the clock")?,
    };
    let responses = Arc::new(automatic::Counts::default());
    let (causes_in, causes) = automatic::Causes::new(config.respond.automatic, responses.clone());
    let host_mount_namespace = sensor.host_mount_namespace();
    let owner = owner::Owner {
        coverage: coverage::Coverage::new(hierarchy, watched_since, &sensor),
        sensor: Some(sensor),
        host_mount_namespace,
        inventory: Inventory::new(host_mount_namespace),
        runtime: tokio::task::spawn_blocking(runtime::find)
            .await
            .context("cannot look for the container runtime")?
            .into(),
        sockets: runtime::sockets(Path::new(&containerd_address)),
        containerd: containerd_address.clone(),
        bytes: Arc::default(),
        changes: followed,
        contents: Arc::clone(&contents),
        log: log.clone(),
        node: facts.clone(),
        boot: boot_id(),
        listings,
        ready: ready_in,
        causes: causes_in,
        state: state::State::new(&log.recent(), profiles, policies, approvals, signatures),
    };
    let inputs = owner::Inputs {
        events,
        changes,
        queries,
        changed,
    };
    let mut owning = tokio::spawn(owner.run(inputs, stopped(owner_stops)));
    let outputs =
        Outputs::start(&config.output, &log, &cluster, &node).context("cannot start an output")?;
    let outputs = Arc::new(outputs);
    let collector = config.collector.as_ref();
    let collector = collector.map(|collector| Arc::new(api::Collector::new(collector, &node)));
    let controller = config.controller.as_ref();
    let controller = controller.map(|it| Arc::new(api::Controller::new(it, &node)));
    let outlet = respond::Outlet {
        log: log.clone(),
        node: facts,
        audit: audit.clone(),
    };
    let settings = config.respond;
    let responder = Responder::start(kept, responding, registry, scene, settings, outlet.clone());
    let automat = automatic::Automat {
        responder: Arc::clone(&responder),
        controller: controller.clone(),
        outlet,
        counts: Arc::clone(&responses),
        pace: Pace::new(Duration::from_secs(settings.cool_down_seconds.into())),
    };
    // It ends with the owner, and nothing hangs on that.
    tokio::spawn(automat.run(causes));
    let queries_for_signals = queries_in.clone();
    let answers = Arc::new(node::NodeView {
        node,
        queries: queries_in,
        references,
        contents,
        provenance,
        containerd_address,
        watched_since,
        comparisons: Arc::new(Semaphore::new(verify::COMPARISONS_MAX)),
        outputs: Arc::clone(&outputs),
        responder,
        responses,
        cluster_approvals_file: approvals::cluster_file(&config.state),
    });
    tokio::spawn(Arc::clone(&answers).forget_removed());
    if let Some(controller) = &controller {
        let joiner = api::Joiner {
            controller: Arc::clone(controller),
            node: answers.clone(),
            ready: ready.clone(),
        };
        // Nothing hangs on its end.
        tokio::spawn(joiner.run(api_stops.clone()));
    }
    let account = api::Account::new(
        answers,
        log.clone(),
        audit.clone(),
        ready.clone(),
        security,
        collector,
    );
    let account = Arc::new(account.joining(controller));
    if let Some(listener) = metrics {
        // Nothing hangs on its end.
        tokio::spawn(metrics::serve(
            listener,
            Arc::clone(&account),
            api_stops.clone(),
        ));
    }
    let mut serving = tokio::spawn(api::serve(listeners, account, api_stops));
    let announcing = tokio::spawn(announce(ready));
    tokio::spawn(read_anew(hangup, queries_for_signals));

    // None of the tasks ends by itself; one that does has failed, and the daemon would be blind.
    let failed = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        ended = &mut owning => Some(format!("the owner task ended: {ended:?}")),
        ended = &mut watching => Some(format!("the containerd task ended: {ended:?}")),
        ended = &mut serving => Some(format!("the API task ended: {ended:?}")),
    };
    if let Some(failed) = failed {
        anyhow::bail!("{failed}");
    }
    tracing::info!("stopping");
    announcing.abort();
    // The owner first, so that what it still finds reaches the API's clients.
    stop_owner.send_replace(true);
    owning.await.context("the owner task failed")?;
    watching.abort();
    // Before the API, so that its clients are given what is written by this.
    tokio::task::spawn_blocking(move || log.close())
        .await
        .context("cannot close the journal")?;
    // Before the API as well, which keeps what they acknowledge.
    outputs.stop().await;
    stop_api.send_replace(true);
    serving.await.context("the API task failed")??;
    audit.flush().await;
    tracing::info!("stopped");
    Ok(())
}

fn node_name(config: &Config) -> anyhow::Result<String> {
    if let Some(node) = &config.node {
        return Ok(node.clone());
    }
    let name = nix::unistd::gethostname()
        .context("cannot read the host's name; set `node` in the configuration")?;
    Ok(name.to_string_lossy().into_owned())
}

/// Where hooks are kept between two daemons, if they are.
fn pins(config: &Config) -> anyhow::Result<Option<Pins>> {
    if !config.pin {
        if config.pin_directory.exists() {
            tracing::warn!(directory = %config.pin_directory.display(), "hooks of an earlier monitord are still there; `monitord unpin` removes them");
        }
        return Ok(None);
    }
    match Pins::open(&config.pin_directory) {
        Ok(pins) => Ok(Some(pins)),
        // Watching is worth more than watching while the daemon is away.
        Err(error @ PinsError::NoBpffs { .. }) => {
            tracing::warn!(%error, "going on without pins: what happens while monitord is not running is not seen");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Removes what a daemon with this configuration has left in the kernel.
///
/// # Errors
///
/// A daemon uses it, or it cannot be removed.
pub fn unpin(config: &Config) -> anyhow::Result<()> {
    if config.pin_directory.exists() {
        Pins::open(&config.pin_directory)?.remove()?;
    }
    Ok(())
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    // An error means that the sender is gone, which is a stop as well.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Has policies read anew at each SIGHUP, as long as there is an owner.
async fn read_anew(mut hangup: Signal, queries: mpsc::Sender<query::Query>) {
    while hangup.recv().await.is_some() {
        if queries.send(query::Query::ReadAnew).await.is_err() {
            return;
        }
    }
}

/// Tells the log and systemd when every container is known.
async fn announce(mut ready: watch::Receiver<bool>) {
    if ready.wait_for(|ready| *ready).await.is_err() {
        return;
    }
    tracing::info!("ready: hooks are attached and running containers are known");
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!(%error, "cannot tell systemd that the daemon is ready");
    }
}
