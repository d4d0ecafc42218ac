//! Calls to the API server, each with a bounded number of attempts.

use std::{path::Path, time::Duration};

use kube::{
    Api, Client, Config,
    api::{DynamicObject, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Map, Value};
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt as _;

use super::workload::{FIELD_MANAGER, Kind, Name, Workload, is_name};

/// Attempts of one call that the server refuses for want of time, or that does not reach it.
const ATTEMPTS_MAX: u32 = 5;
/// Pause after the first of them; it doubles with each.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);
/// Longest pause that a server may ask for.
const RETRY_INTERVAL_MAX: Duration = Duration::from_secs(10);
/// Longest time for one attempt.
const CALL_TIME_MAX: Duration = Duration::from_secs(10);
/// Objects in one part of a list.
const PART_MAX: u32 = 500;

/// A call to the API server was in vain.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// There is no such object.
    #[error("{0} is not there")]
    NotFound(String),
    /// It was changed since it was read.
    #[error("{0} was changed meanwhile")]
    Outdated(String),
    /// Anything else.
    #[error("the API server, asked for {what}: {reason}")]
    Failed {
        /// For what.
        what: String,
        /// What it says.
        reason: String,
    },
    /// There are more than are read.
    #[error("there are more than {max} {what}")]
    TooMany {
        /// Of what.
        what: String,
        /// The bound.
        max: usize,
    },
}

/// The API server.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
}

/// A kind of object.
#[derive(Clone, Copy, Debug)]
pub struct Resource {
    /// API group; empty for the core's.
    pub group: &'static str,
    /// Its version.
    pub version: &'static str,
    /// Its kind.
    pub kind: &'static str,
    /// As paths name it.
    pub plural: &'static str,
}

/// Pods.
pub const POD: Resource = Resource {
    group: "",
    version: "v1",
    kind: "Pod",
    plural: "pods",
};
/// What a Deployment makes its pods by.
pub const REPLICA_SET: Resource = Resource {
    group: "apps",
    version: "v1",
    kind: "ReplicaSet",
    plural: "replicasets",
};
/// What a CronJob makes its pods by.
pub const JOB: Resource = Resource {
    group: "batch",
    version: "v1",
    kind: "Job",
    plural: "jobs",
};
/// Statements about images.
pub const IMAGE_APPROVAL: Resource = Resource {
    group: "monitord.io",
    version: "v1",
    kind: "ImageApproval",
    plural: "imageapprovals",
};
/// Who leads.
pub const LEASE: Resource = Resource {
    group: "coordination.k8s.io",
    version: "v1",
    kind: "Lease",
    plural: "leases",
};

impl From<Kind> for Resource {
    fn from(kind: Kind) -> Self {
        Self {
            group: kind.group(),
            version: "v1",
            kind: kind.name(),
            plural: kind.plural(),
        }
    }
}

impl Cluster {
    /// The cluster that a file names; that of this pod if there is none.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or this is no pod.
    pub async fn connect(kubeconfig: Option<&Path>) -> anyhow::Result<Self> {
        let mut config = match kubeconfig {
            None => Config::incluster()?,
            Some(path) => {
                let read = Kubeconfig::read_from(path)?;
                Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?
            }
        };
        config.connect_timeout = Some(CALL_TIME_MAX);
        // Each of our attempts would be several.
        config.default_retry = false;
        Ok(Self {
            client: Client::try_from(config)?,
        })
    }

    fn api(&self, resource: Resource, namespace: &str) -> Api<DynamicObject> {
        let kind = GroupVersionKind::gvk(resource.group, resource.version, resource.kind);
        let described = ApiResource::from_gvk_with_plural(&kind, resource.plural);
        if namespace.is_empty() {
            Api::all_with(self.client.clone(), &described)
        } else {
            Api::namespaced_with(self.client.clone(), namespace, &described)
        }
    }

    /// One object.
    ///
    /// # Errors
    ///
    /// See [`ClusterError`].
    pub async fn get(
        &self,
        resource: Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Value, ClusterError> {
        let what = || named(resource, namespace, name);
        // Names come from nodes and from callers, and go into a path.
        if !is_name(name) || !(namespace.is_empty() || is_name(namespace)) {
            return Err(ClusterError::NotFound(what()));
        }
        let api = self.api(resource, namespace);
        object(attempts(what, || api.get(name)).await?)
    }

    /// A workload.
    ///
    /// # Errors
    ///
    /// See [`ClusterError`].
    pub async fn workload(&self, name: &Name) -> Result<Workload, ClusterError> {
        let object = self.get(name.kind.into(), &name.namespace, &name.name);
        Ok(Workload {
            name: name.clone(),
            object: object.await?,
        })
    }

    /// The objects that a selector of labels means, at most `max`; of every namespace if `namespace` is
    /// empty.
    ///
    /// # Errors
    ///
    /// See [`ClusterError`].
    pub async fn list(
        &self,
        resource: Resource,
        namespace: &str,
        selector: &str,
        max: usize,
    ) -> Result<(Vec<Value>, String), ClusterError> {
        let api = self.api(resource, namespace);
        let what = || format!("{} of {namespace:?} by {selector:?}", resource.plural);
        let mut objects = Vec::new();
        let mut parameters = ListParams::default().limit(PART_MAX);
        if !selector.is_empty() {
            parameters = parameters.labels(selector);
        }
        loop {
            let part = attempts(what, || api.list(&parameters)).await?;
            for item in part.items {
                objects.push(object(item)?);
            }
            if objects.len() > max {
                return Err(ClusterError::TooMany { what: what(), max });
            }
            match part.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => parameters = parameters.continue_token(&token),
                None => return Ok((objects, part.metadata.resource_version.unwrap_or_default())),
            }
        }
    }

    /// Has fields be what `applied` says, whoever owned them before (server-side apply).
    ///
    /// # Errors
    ///
    /// See [`ClusterError`]; [`ClusterError::Outdated`] if the object is another than `applied` was made
    /// for.
    pub async fn apply(&self, name: &Name, applied: &Value) -> Result<Workload, ClusterError> {
        let api = self.api(name.kind.into(), &name.namespace);
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        let patch = Patch::Apply(applied);
        let what = || name.to_string();
        let call = || api.patch(&name.name, &parameters, &patch);
        Ok(Workload {
            name: name.clone(),
            object: object(attempts(what, call).await?)?,
        })
    }

    /// A new object.
    ///
    /// # Errors
    ///
    /// See [`ClusterError`]; [`ClusterError::Outdated`] if there is one already.
    pub async fn create(
        &self,
        resource: Resource,
        namespace: &str,
        value: &Value,
    ) -> Result<Value, ClusterError> {
        let (api, wanted) = (self.api(resource, namespace), dynamic(value)?);
        let what = || {
            named(
                resource,
                namespace,
                wanted.metadata.name.as_deref().unwrap_or(""),
            )
        };
        let parameters = parameters();
        object(attempts(what, || api.create(&parameters, &wanted)).await?)
    }

    /// Another state of an object, or of its status.
    ///
    /// # Errors
    ///
    /// See [`ClusterError`]; [`ClusterError::Outdated`] if it was changed since it was read.
    pub async fn replace(
        &self,
        resource: Resource,
        namespace: &str,
        value: &Value,
        is_status: bool,
    ) -> Result<Value, ClusterError> {
        let (api, wanted) = (self.api(resource, namespace), dynamic(value)?);
        let name = wanted.metadata.name.as_deref().unwrap_or("");
        let what = || named(resource, namespace, name);
        let parameters = parameters();
        let replaced = if is_status {
            let call = || api.replace_status(name, &parameters, &wanted);
            attempts(what, call).await
        } else {
            attempts(what, || api.replace(name, &parameters, &wanted)).await
        };
        object(replaced?)
    }

    /// Returns when something happened to one object, or to any if `name` is empty, since `version`;
    /// also when the server no longer knows what did, and after `longest`. So what is there must be
    /// asked for again, whatever this says.
    pub async fn changed(
        &self,
        resource: Resource,
        namespace: &str,
        name: &str,
        version: &str,
        longest: Duration,
    ) {
        let api = self.api(resource, namespace);
        let seconds = u32::try_from(longest.as_secs()).unwrap_or(u32::MAX);
        let mut parameters = WatchParams::default().timeout(seconds.clamp(1, 290));
        if !name.is_empty() {
            parameters = parameters.fields(&format!("metadata.name={name}"));
        }
        let first = async {
            let mut events = Box::pin(api.watch(&parameters, version).await?);
            while let Some(event) = events.next().await {
                if !matches!(event?, WatchEvent::Bookmark(_)) {
                    break;
                }
            }
            Ok::<(), kube::Error>(())
        };
        if let Ok(Err(error)) = timeout(longest, first).await {
            tracing::debug!(%error, plural = resource.plural, name, "a watch failed; asking instead");
            sleep(RETRY_INTERVAL).await;
        }
    }
}

/// Sets a field of an object, and makes those on the way to it that are not there.
pub fn set(object: &mut Value, path: &[&str], value: Value) {
    let Some((field, below)) = path.split_first() else {
        *object = value;
        return;
    };
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    if let Value::Object(fields) = object {
        let own = fields.entry((*field).to_owned());
        set(own.or_insert(Value::Null), below, value);
    }
}

fn parameters() -> PostParams {
    PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    }
}

fn named(resource: Resource, namespace: &str, name: &str) -> String {
    let kind = resource.kind.to_lowercase();
    if namespace.is_empty() {
        format!("{kind} {name}")
    } else {
        format!("{kind} {namespace}/{name}")
    }
}

/// Makes a call until it is answered otherwise than by a plea for time, at most [`ATTEMPTS_MAX`] times.
async fn attempts<T, F: Future<Output = kube::Result<T>>>(
    what: impl Fn() -> String,
    call: impl Fn() -> F,
) -> Result<T, ClusterError> {
    let mut pause = RETRY_INTERVAL;
    let mut attempt = 1;
    loop {
        let failed = match timeout(CALL_TIME_MAX, call()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(kube::Error::Api(status))) => {
                let (what, wait) = (what(), asked_wait(&status));
                match status.code {
                    404 => return Err(ClusterError::NotFound(what)),
                    409 => return Err(ClusterError::Outdated(what)),
                    429 | 500..=599 => (status.message.clone(), wait),
                    _ => {
                        let reason = status.message.clone();
                        return Err(ClusterError::Failed { what, reason });
                    }
                }
            }
            Ok(Err(error)) => (format!("{:#}", anyhow::Error::new(error)), None),
            Err(_) => {
                let seconds = CALL_TIME_MAX.as_secs();
                (format!("no answer for {seconds} s"), None)
            }
        };
        let (reason, wait) = failed;
        if attempt >= ATTEMPTS_MAX {
            let what = what();
            return Err(ClusterError::Failed { what, reason });
        }
        tracing::debug!(
            reason,
            attempt,
            what = what(),
            "asking the API server again"
        );
        sleep(wait.unwrap_or(pause).min(RETRY_INTERVAL_MAX)).await;
        (attempt, pause) = (attempt + 1, pause * 2);
    }
}

/// How long a server asks to be left alone.
fn asked_wait(status: &kube::core::Status) -> Option<Duration> {
    let seconds = status.details.as_ref()?.retry_after_seconds;
    (seconds > 0).then(|| Duration::from_secs(seconds.into()))
}

fn object(object: DynamicObject) -> Result<Value, ClusterError> {
    serde_json::to_value(object).map_err(|error| malformed(&error))
}

fn dynamic(value: &Value) -> Result<DynamicObject, ClusterError> {
    serde_json::from_value(value.clone()).map_err(|error| malformed(&error))
}

fn malformed(error: &serde_json::Error) -> ClusterError {
    ClusterError::Failed {
        what: "an object".to_owned(),
        reason: error.to_string(),
    }
}
