//! Which of the controllers acts: a Lease of Kubernetes, renewed by the one that holds it.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use ulid::Ulid;

use super::cluster::{Cluster, ClusterError, LEASE, set};

/// Name of the Lease.
pub const NAME: &str = "monitord-controller";
/// Where whoever holds it is reached.
const ADDRESS: &str = "monitord.io/address";

/// How long it holds without being renewed, as others see it.
pub const DURATION: Duration = Duration::from_secs(15);
/// How long whoever holds it acts on without having renewed it: less, so that nobody acts beside the next.
const OWN_DURATION: Duration = Duration::from_secs(10);
/// How often it is renewed, or asked for.
const INTERVAL: Duration = Duration::from_secs(2);

/// The Lease of one controller.
pub struct Lease {
    cluster: Cluster,
    namespace: String,
    identity: String,
    address: String,
    /// What others wrote last, and when that was first seen: their clocks are not compared with ours.
    seen: Option<(String, Instant)>,
    /// When it was last taken or renewed.
    renewed: Instant,
}

/// Who holds a Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// This controller.
    Own,
    /// Another one, with its address.
    Other(String),
}

impl Lease {
    /// Of the controller `name`, reached at `address`. Each has an identity of its own, also if several
    /// have one name.
    pub fn new(cluster: Cluster, namespace: &str, name: &str, address: &str) -> Self {
        Self {
            cluster,
            namespace: namespace.to_owned(),
            identity: format!("{name}_{}", Ulid::new()),
            address: address.to_owned(),
            seen: None,
            renewed: Instant::now(),
        }
    }

    /// Takes it if it is free, or renews it.
    ///
    /// # Errors
    ///
    /// The API server does not say.
    pub async fn hold(&mut self) -> Result<Holder, ClusterError> {
        // What is written may be so long before the answer comes.
        let asked = Instant::now();
        let holder = self.try_hold().await?;
        if holder == Holder::Own {
            self.renewed = asked;
        }
        Ok(holder)
    }

    async fn try_hold(&mut self) -> Result<Holder, ClusterError> {
        let lease = match self.cluster.get(LEASE, &self.namespace, NAME).await {
            Ok(lease) => lease,
            Err(ClusterError::NotFound(_)) => {
                let new = self.written(None, 0);
                return match self.cluster.create(LEASE, &self.namespace, &new).await {
                    Ok(_) => Ok(Holder::Own),
                    // Another one was faster.
                    Err(ClusterError::Outdated(_)) => Ok(Holder::Other(String::new())),
                    Err(error) => Err(error),
                };
            }
            Err(error) => return Err(error),
        };
        let text = |pointer: &str| {
            let found = lease.pointer(pointer).and_then(Value::as_str);
            found.unwrap_or_default().to_owned()
        };
        let holder = text("/spec/holderIdentity");
        let transitions = lease.pointer("/spec/leaseTransitions");
        let transitions = transitions.and_then(Value::as_u64).unwrap_or(0);
        if holder != self.identity && !holder.is_empty() {
            let version = text("/metadata/resourceVersion");
            let is_same = (self.seen.as_ref()).is_some_and(|(seen, _)| *seen == version);
            if !is_same {
                self.seen = Some((version, Instant::now()));
            }
            let is_over = (self.seen.as_ref()).is_some_and(|(_, at)| at.elapsed() >= DURATION);
            if !is_over {
                let annotations = lease.pointer("/metadata/annotations");
                let address = annotations.and_then(|it| it.get(ADDRESS)?.as_str());
                return Ok(Holder::Other(address.unwrap_or_default().to_owned()));
            }
        }
        let transitions = transitions + u64::from(holder != self.identity);
        let next = self.written(Some(&lease), transitions);
        match self
            .cluster
            .replace(LEASE, &self.namespace, &next, false)
            .await
        {
            Ok(_) => Ok(Holder::Own),
            Err(ClusterError::Outdated(_)) => Ok(Holder::Other(String::new())),
            Err(error) => Err(error),
        }
    }

    /// Waits until it is this controller's; tells `other` who holds it meanwhile.
    pub async fn acquire(&mut self, mut other: impl FnMut(&str)) {
        loop {
            match self.hold().await {
                Ok(Holder::Own) => return,
                Ok(Holder::Other(address)) => other(&address),
                Err(error) => tracing::warn!(%error, "cannot ask for the lease; trying again"),
            }
            sleep(INTERVAL).await;
        }
    }

    /// Renews it until it is lost; then this controller must act no more.
    pub async fn keep(&mut self) -> String {
        loop {
            sleep(INTERVAL).await;
            let left = OWN_DURATION.saturating_sub(self.renewed.elapsed());
            match tokio::time::timeout(left, self.hold()).await {
                Ok(Ok(Holder::Own)) => {}
                Ok(Ok(Holder::Other(_))) => return "another controller holds the lease".to_owned(),
                Ok(Err(error)) => {
                    tracing::warn!(%error, "cannot renew the lease; trying again");
                }
                Err(_) => {
                    let seconds = OWN_DURATION.as_secs();
                    return format!("the lease could not be renewed for {seconds} s");
                }
            }
        }
    }

    /// Gives it back, so that the next one need not wait.
    pub async fn release(&mut self) {
        let Ok(mut lease) = self.cluster.get(LEASE, &self.namespace, NAME).await else {
            return;
        };
        if lease.pointer("/spec/holderIdentity") != Some(&json!(self.identity)) {
            return;
        }
        set(&mut lease, &["spec", "holderIdentity"], json!(""));
        let released = self
            .cluster
            .replace(LEASE, &self.namespace, &lease, false)
            .await;
        if let Err(error) = released {
            tracing::warn!(%error, "the lease is not given back; the next one waits for its end");
        }
    }

    fn written(&self, before: Option<&Value>, transitions: u64) -> Value {
        // `MicroTime` has six digits of a second.
        let now = Timestamp::now()
            .strftime("%Y-%m-%dT%H:%M:%S.%6fZ")
            .to_string();
        let mut lease = before.cloned().unwrap_or_else(|| {
            json!({
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": { "name": NAME, "namespace": self.namespace },
            })
        });
        let was_own = lease.pointer("/spec/holderIdentity") == Some(&json!(self.identity));
        let acquired = lease.pointer("/spec/acquireTime").filter(|_| was_own);
        let acquired = acquired.cloned().unwrap_or_else(|| json!(now));
        let address = json!(self.address);
        set(&mut lease, &["metadata", "annotations", ADDRESS], address);
        let spec = json!({
            "holderIdentity": self.identity,
            "leaseDurationSeconds": DURATION.as_secs(),
            "acquireTime": acquired,
            "renewTime": now,
            "leaseTransitions": transitions,
        });
        set(&mut lease, &["spec"], spec);
        lease
    }
}
