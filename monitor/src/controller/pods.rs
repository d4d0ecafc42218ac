//! The pods of a workload as the API server has them.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    cluster::{Cluster, ClusterError, POD, REPLICA_SET},
    workload::{Kind, Workload},
};

/// Pods of one workload that are read.
pub const PODS_MAX: usize = 5000;

/// A pod that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// The node that it is on; empty if it is on none yet.
    pub node: String,
    /// What its containers are to run, by their names.
    pub images: BTreeMap<String, String>,
    /// Why a container of it waits, as its kubelet says.
    pub waiting: Option<String>,
}

/// The pods that a workload owns and that have not ended.
///
/// # Errors
///
/// See [`ClusterError`].
pub async fn of(cluster: &Cluster, workload: &Workload) -> Result<Vec<Pod>, ClusterError> {
    let Some(selector) = workload.selector() else {
        return Ok(Vec::new());
    };
    let namespace = &workload.name.namespace;
    let (objects, _) = cluster.list(POD, namespace, &selector, PODS_MAX).await?;
    let mut owned: BTreeMap<String, bool> = BTreeMap::new();
    let mut pods = Vec::new();
    for object in objects.iter().filter(|object| !has_ended(object)) {
        let Some((uid, name)) = owner(object) else {
            continue;
        };
        let is_own = match (workload.name.kind, owned.get(&uid)) {
            (_, Some(known)) => *known,
            (Kind::Deployment, None) => match cluster.get(REPLICA_SET, namespace, &name).await {
                Ok(set) => owner(&set).is_some_and(|(uid, _)| uid == workload.uid()),
                Err(ClusterError::NotFound(_)) => false,
                Err(error) => return Err(error),
            },
            (_, None) => uid == workload.uid(),
        };
        owned.insert(uid, is_own);
        if is_own {
            pods.push(pod(object));
        }
    }
    Ok(pods)
}

fn has_ended(object: &Value) -> bool {
    let phase = text(object, "/status/phase");
    object.pointer("/metadata/deletionTimestamp").is_some()
        || ["Succeeded", "Failed"].contains(&phase.as_str())
}

/// Uid and name of what made an object.
fn owner(object: &Value) -> Option<(String, String)> {
    let owners = object.pointer("/metadata/ownerReferences")?.as_array()?;
    let is_controller = |it: &&Value| it.get("controller") == Some(&Value::Bool(true));
    let owner = owners.iter().find(is_controller)?;
    Some((text(owner, "/uid"), text(owner, "/name")))
}

fn pod(object: &Value) -> Pod {
    let containers = object.pointer("/spec/containers").and_then(Value::as_array);
    let containers = containers.into_iter().flatten();
    let statuses = object.pointer("/status/containerStatuses");
    let statuses = statuses.and_then(Value::as_array).into_iter().flatten();
    let mut waiting = statuses.filter_map(|it| it.pointer("/state/waiting/reason")?.as_str());
    Pod {
        name: text(object, "/metadata/name"),
        uid: text(object, "/metadata/uid"),
        node: text(object, "/spec/nodeName"),
        images: containers
            .map(|it| (text(it, "/name"), text(it, "/image")))
            .collect(),
        // Of ones that start nobody needs to be told.
        waiting: waiting
            .find(|reason| *reason != "ContainerCreating")
            .map(str::to_owned),
    }
}

fn text(object: &Value, pointer: &str) -> String {
    let found = object.pointer(pointer).and_then(Value::as_str);
    found.unwrap_or_default().to_owned()
}
