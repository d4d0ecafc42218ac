//! Which workload owns a pod, by its owner references.

use serde_json::Value;

use super::{
    cluster::{Cluster, ClusterError, JOB, POD, REPLICA_SET},
    plan::{Owner, Unowned},
    workload::{Kind, Maker, Name, Target, Workload, containers},
};
use crate::respond::Refusal;

/// The annotation of the pods by which kubelets show their static pods.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// What owns what an order is about.
///
/// # Errors
///
/// It is not there, or the API server does not say.
pub async fn owner(cluster: &Cluster, target: &Target) -> Result<Owner, Refusal> {
    let found = match target {
        Target::Workload(name) => cluster.workload(name).await.map(of_workload),
        Target::Pod { namespace, name } => match cluster.get(POD, namespace, name).await {
            Ok(pod) => of_pod(cluster, namespace, name, &pod).await,
            Err(error) => Err(error),
        },
    };
    found.map_err(|error| match error {
        ClusterError::NotFound(what) => Refusal::NoWorkload(what),
        error => Refusal::Cluster(error.to_string()),
    })
}

fn of_workload(workload: Workload) -> Owner {
    // What makes a workload anew, such as an operator's resource, would undo what is done to it.
    match Maker::of(&workload.object) {
        None => Owner::Workload(Box::new(workload)),
        Some(Maker { kind, name, .. }) => Owner::Nothing(Unowned {
            name: workload.name.to_string(),
            namespace: workload.name.namespace.clone(),
            containers: workload.containers(),
            reason: "another resource owns it and would undo that",
            how: format!("Change {} {name} so that it has", kind.to_lowercase()),
        }),
    }
}

async fn of_pod(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    pod: &Value,
) -> Result<Owner, ClusterError> {
    let workload = |kind, name: String| Name {
        kind,
        namespace: namespace.to_owned(),
        name,
    };
    let unowned = |reason, how: String| {
        Ok(Owner::Nothing(Unowned {
            name: format!("pod/{namespace}/{name}"),
            namespace: namespace.to_owned(),
            containers: pod.get("spec").map(containers).unwrap_or_default(),
            reason,
            how,
        }))
    };
    let annotations = pod.pointer("/metadata/annotations");
    if annotations.and_then(|it| it.get(MIRROR)).is_some() {
        let node = pod.pointer("/spec/nodeName").and_then(Value::as_str);
        let node = node.unwrap_or("its node");
        return unowned(
            "it is a static pod, which the API server only shows",
            format!("In its manifest on {node} (/etc/kubernetes/manifests by default) set"),
        );
    }
    let found = match Maker::of(pod) {
        None => {
            return unowned(
                "nothing owns it that would make it anew",
                "Delete it, and create it again with".to_owned(),
            );
        }
        Some(Maker {
            kind, name: owner, ..
        }) => match kind.as_str() {
            "DaemonSet" => workload(Kind::DaemonSet, owner),
            "StatefulSet" => workload(Kind::StatefulSet, owner),
            "ReplicaSet" => {
                let set = cluster.get(REPLICA_SET, namespace, &owner).await?;
                match Maker::of(&set) {
                    Some(maker) if maker.kind == "Deployment" => {
                        workload(Kind::Deployment, maker.name)
                    }
                    _ => {
                        return unowned(
                            "a ReplicaSet without a Deployment owns it, which replaces no pods",
                            format!("In ReplicaSet {owner}, and after that delete its pods, set"),
                        );
                    }
                }
            }
            "Job" => {
                let job = cluster.get(JOB, namespace, &owner).await?;
                match Maker::of(&job) {
                    Some(maker) if maker.kind == "CronJob" => workload(Kind::CronJob, maker.name),
                    _ => {
                        return unowned(
                            "it is of a Job, whose pods cannot be changed",
                            format!("Delete Job {owner}, and create it again with"),
                        );
                    }
                }
            }
            _ => {
                return unowned(
                    "what owns it is of no kind that is known here",
                    format!("Change {} {owner} so that it has", kind.to_lowercase()),
                );
            }
        },
    };
    Ok(of_workload(cluster.workload(&found).await?))
}
