//! The pods of a workload as the API server has them.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    cluster::{Cluster, ClusterError, POD, REPLICA_SET},
    workload::{Kind, Maker, Workload, containers},
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
    /// It was told to end, and runs on until it has.
    pub is_ending: bool,
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
        let Some(maker) = Maker::of(object) else {
            continue;
        };
        let is_own = match (workload.name.kind, owned.get(&maker.uid)) {
            (_, Some(known)) => *known,
            (Kind::Deployment, None) => {
                match cluster.get(REPLICA_SET, namespace, &maker.name).await {
                    Ok(set) => Maker::of(&set).is_some_and(|it| it.uid == workload.uid()),
                    Err(ClusterError::NotFound(_)) => false,
                    Err(error) => return Err(error),
                }
            }
            (_, None) => maker.uid == workload.uid(),
        };
        owned.insert(maker.uid, is_own);
        if is_own {
            pods.push(pod(object));
        }
    }
    Ok(pods)
}

fn has_ended(object: &Value) -> bool {
    let phase = text(object, "/status/phase");
    ["Succeeded", "Failed"].contains(&phase.as_str())
}

/// Whether an object is the pod of this uid, on this node.
pub fn is_on(object: &Value, uid: &str, node: &str) -> bool {
    text(object, "/metadata/uid") == uid && text(object, "/spec/nodeName") == node
}

fn pod(object: &Value) -> Pod {
    let containers = object.get("spec").map(containers).unwrap_or_default();
    let statuses = object.pointer("/status/containerStatuses");
    let statuses = statuses.and_then(Value::as_array).into_iter().flatten();
    let mut waiting = statuses.filter_map(|it| it.pointer("/state/waiting/reason")?.as_str());
    Pod {
        name: text(object, "/metadata/name"),
        uid: text(object, "/metadata/uid"),
        node: text(object, "/spec/nodeName"),
        images: containers
            .into_iter()
            .map(|it| (it.name, it.image))
            .collect(),
        // Of ones that start nobody needs to be told.
        waiting: waiting
            .find(|reason| *reason != "ContainerCreating")
            .map(str::to_owned),
        is_ending: object.pointer("/metadata/deletionTimestamp").is_some(),
    }
}

fn text(object: &Value, pointer: &str) -> String {
    let found = object.pointer(pointer).and_then(Value::as_str);
    found.unwrap_or_default().to_owned()
}
