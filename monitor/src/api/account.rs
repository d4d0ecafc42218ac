//! What is counted of the API, and the node's status with it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use jiff::Timestamp;
use monitor_api::v1;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::{
    ALERT_STREAMS_MAX, CONNECTIONS_MAX, Collector, Controller, Members, Node, audit,
    listener::Security, process,
};
use crate::{
    alerts::{AlertLog, Summary, build::timestamp},
    audit::Audit,
    controller::nodes::NODES_MAX,
};

/// The node, its alerts, and the API's own account: what the API and the metrics answer from.
pub struct Account {
    pub(super) node: Arc<dyn Node>,
    pub(super) log: AlertLog,
    pub(super) audit: Audit,
    pub(super) connections: Connections,
    pub(super) collector: Option<Arc<Collector>>,
    pub(super) members: Option<Arc<dyn Members>>,
    /// Conversations with nodes at once.
    pub(super) conversations: Arc<Semaphore>,
    controller: Option<Arc<Controller>>,
    ready: watch::Receiver<bool>,
    started_at: Timestamp,
    streams: Arc<Semaphore>,
    streams_refused: AtomicU64,
}

impl Account {
    /// Of a daemon that starts now. `security` is that of the listeners that have TLS; `ready` is
    /// true once every container is known; `collector` is called.
    pub fn new(
        node: Arc<dyn Node>,
        log: AlertLog,
        audit: Audit,
        ready: watch::Receiver<bool>,
        security: Option<Arc<Security>>,
        collector: Option<Arc<Collector>>,
    ) -> Self {
        Self {
            node,
            log,
            audit,
            connections: Connections::new(security),
            collector,
            members: None,
            conversations: Arc::new(Semaphore::new(NODES_MAX)),
            controller: None,
            ready,
            started_at: Timestamp::now(),
            streams: Arc::new(Semaphore::new(ALERT_STREAMS_MAX)),
            streams_refused: AtomicU64::new(0),
        }
    }

    /// The same of a controller, which nodes call.
    #[must_use]
    pub fn with_members(mut self, members: Arc<dyn Members>) -> Self {
        // Beside those of people, which nodes must not use up.
        self.connections.allow(NODES_MAX);
        Self {
            members: Some(members),
            ..self
        }
    }

    /// The same, of a node that joins a cluster.
    #[must_use]
    pub fn joining(self, controller: Option<Arc<Controller>>) -> Self {
        Self { controller, ..self }
    }

    /// Whether every container is known.
    pub fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }

    /// Changes with [`Account::is_ready`].
    pub(super) fn ready(&self) -> watch::Receiver<bool> {
        self.ready.clone()
    }

    /// What the log of alerts holds now.
    pub fn alerts(&self) -> Summary {
        self.log.summary()
    }

    /// The containers of this node.
    pub async fn containers(&self) -> Vec<v1::Container> {
        self.node.containers().await
    }

    /// The alert streams that are open.
    pub(super) fn streams(&self) -> usize {
        ALERT_STREAMS_MAX.saturating_sub(self.streams.available_permits())
    }

    /// The right to one alert stream; `None`, which is counted, if [`ALERT_STREAMS_MAX`] are open.
    pub(super) fn begin_stream(&self) -> Option<OwnedSemaphorePermit> {
        let permit = Arc::clone(&self.streams).try_acquire_owned().ok();
        if permit.is_none() {
            self.streams_refused.fetch_add(1, Ordering::Relaxed);
        }
        permit
    }

    /// The whole status.
    pub async fn status(&self) -> v1::Status {
        let mut status = self.node.status().await;
        let log = self.log.summary();
        let mut consumers = self.log.consumers().all();
        consumers.retain(|_, at| at.journal == self.log.journal());
        let mut by_kind = std::collections::HashMap::new();
        for ((kind, _), count) in log.by_kind {
            *by_kind.entry(kind).or_default() += count;
        }
        status.version = env!("CARGO_PKG_VERSION").to_owned();
        status.started_at = Some(timestamp(self.started_at));
        status.ready = self.is_ready();
        status.alerts = Some(v1::status::Alerts {
            journal: self.log.journal().to_owned(),
            oldest_cursor: log.oldest,
            newest_cursor: log.newest,
            by_kind,
            durable_cursor: log.durable,
            journal_bytes: log.bytes,
            memory_only_since: log.memory_only.as_ref().map(|(since, _)| timestamp(*since)),
            memory_only: log.memory_only.map_or(String::new(), |(_, reason)| reason),
            lost: log.lost,
            consumers: consumers
                .into_iter()
                .map(|(name, at)| (name, at.cursor))
                .collect(),
        });
        status.collector = self.collector.as_ref().map(|collector| collector.status());
        status.controller = self.controller.as_ref().map(|it| it.status());
        status.audit = Some(audit::summary(self.audit.summary()));
        status.api = Some(v1::status::Api {
            connections: self.connections.open(),
            connections_refused: self.connections.refused.load(Ordering::Relaxed),
            alert_streams: u64::try_from(self.streams()).unwrap_or(u64::MAX),
            alert_streams_refused: self.streams_refused.load(Ordering::Relaxed),
            alerts_expired: log.expired_unread,
            connections_unidentified: self.connections.unidentified.load(Ordering::Relaxed),
            tls_reload_failures: self.connections.tls_reload_failures(),
        });
        status.memory_resident_bytes = process::resident_bytes();
        status
    }
}

/// The connections of a server.
#[derive(Debug)]
pub(super) struct Connections {
    pub(super) free: Arc<Semaphore>,
    pub(super) max: usize,
    pub(super) refused: AtomicU64,
    pub(super) unidentified: AtomicU64,
    security: Option<Arc<Security>>,
}

impl Connections {
    fn new(security: Option<Arc<Security>>) -> Self {
        Self {
            free: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            max: CONNECTIONS_MAX,
            refused: AtomicU64::new(0),
            unidentified: AtomicU64::new(0),
            security,
        }
    }

    /// So many more may be open at once.
    fn allow(&mut self, more: usize) {
        self.free.add_permits(more);
        self.max += more;
    }

    pub(super) fn open(&self) -> u64 {
        let open = self.max.saturating_sub(self.free.available_permits());
        u64::try_from(open).unwrap_or(u64::MAX)
    }

    fn tls_reload_failures(&self) -> u64 {
        let security = self.security.as_ref();
        security.map_or(0, |security| security.tls.reload_failures())
    }
}
