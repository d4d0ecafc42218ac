//! A client of containerd's CRI plugin, as the kubelet is one: of its API
//! (`runtime.v1.RuntimeService`) only the messages and fields that a pod of one container needs.

use std::{collections::HashMap, path::Path};

use anyhow::{Context as _, Result};
use prost::Message;
use tokio::runtime::Runtime;
use tonic::{
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

/// The containerd namespace of all pods.
pub const NAMESPACE: &str = "k8s.io";
/// `NamespaceMode.NODE`: the host's network, which needs no CNI plugin.
const NODE: i32 = 2;

/// A pod and the id of its sandbox.
#[derive(Debug)]
pub struct Pod {
    config: SandboxConfig,
    /// Of the container that holds its namespaces.
    pub sandbox: String,
}

/// A connection to containerd.
#[derive(Debug)]
pub struct Cri {
    runtime: Runtime,
    channel: Channel,
}

impl Cri {
    /// Connects to the containerd that listens there.
    pub fn connect(address: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let endpoint = Endpoint::from_shared(format!("unix://{}", address.display()))?;
        let channel = runtime
            .block_on(endpoint.connect())
            .with_context(|| format!("cannot connect to {}", address.display()))?;
        Ok(Self { runtime, channel })
    }

    /// Starts a pod in the network of the host.
    pub fn start_pod(&self, name: &str, namespace: &str, uid: &str, cgroup: &str) -> Result<Pod> {
        let config = SandboxConfig {
            metadata: Some(SandboxMetadata {
                name: name.to_owned(),
                uid: uid.to_owned(),
                namespace: namespace.to_owned(),
            }),
            labels: HashMap::from([
                ("io.kubernetes.pod.name".to_owned(), name.to_owned()),
                (
                    "io.kubernetes.pod.namespace".to_owned(),
                    namespace.to_owned(),
                ),
                ("io.kubernetes.pod.uid".to_owned(), uid.to_owned()),
            ]),
            linux: Some(LinuxSandbox {
                cgroup_parent: cgroup.to_owned(),
                security: Some(Security {
                    namespaces: Some(Namespaces { network: NODE }),
                }),
            }),
        };
        let request = RunSandbox {
            config: Some(config.clone()),
        };
        let answer: Id = self.call("RunPodSandbox", request)?;
        Ok(Pod {
            config,
            sandbox: answer.id,
        })
    }

    /// Starts a container of the pod and gives its id.
    pub fn start_container(
        &self,
        pod: &Pod,
        name: &str,
        image: &str,
        command: &[&str],
    ) -> Result<String> {
        let request = CreateContainer {
            sandbox: pod.sandbox.clone(),
            config: Some(ContainerConfig {
                metadata: Some(ContainerMetadata {
                    name: name.to_owned(),
                }),
                image: Some(ImageSpec {
                    image: image.to_owned(),
                }),
                command: command.iter().map(|word| (*word).to_owned()).collect(),
                labels: HashMap::from([(
                    "io.kubernetes.container.name".to_owned(),
                    name.to_owned(),
                )]),
            }),
            sandbox_config: Some(pod.config.clone()),
        };
        let answer: Id = self.call("CreateContainer", request)?;
        let _: Nothing = self.call("StartContainer", answer.clone())?;
        Ok(answer.id)
    }

    /// Runs something in a container, as a probe or `kubectl exec` does, and gives its exit status.
    pub fn exec(&self, container: &str, command: &[&str]) -> Result<i32> {
        let request = ExecSync {
            container: container.to_owned(),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
        };
        let answer: ExecSyncResponse = self.call("ExecSync", request)?;
        Ok(answer.exit_code)
    }

    /// Ends a pod and removes it and its containers.
    pub fn remove_pod(&self, pod: &Pod) -> Result<()> {
        let id = Id {
            id: pod.sandbox.clone(),
        };
        let _: Nothing = self.call("StopPodSandbox", id.clone())?;
        let _: Nothing = self.call("RemovePodSandbox", id)?;
        Ok(())
    }

    fn call<Q, A>(&self, method: &str, request: Q) -> Result<A>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let path: PathAndQuery = format!("/runtime.v1.RuntimeService/{method}").parse()?;
        let mut client = Grpc::new(self.channel.clone());
        self.runtime
            .block_on(async {
                client
                    .ready()
                    .await
                    .map_err(|error| tonic::Status::unavailable(error.to_string()))?;
                let codec = ProstCodec::<Q, A>::default();
                client
                    .unary(tonic::Request::new(request), path, codec)
                    .await
            })
            .map(tonic::Response::into_inner)
            .with_context(|| format!("containerd refused {method}"))
    }
}

#[derive(Clone, PartialEq, Message)]
struct Nothing {}

/// Of a sandbox or a container: in all messages that hold nothing else it is the first field.
#[derive(Clone, PartialEq, Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct RunSandbox {
    #[prost(message, optional, tag = "1")]
    config: Option<SandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct SandboxConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<SandboxMetadata>,
    #[prost(map = "string, string", tag = "6")]
    labels: HashMap<String, String>,
    #[prost(message, optional, tag = "8")]
    linux: Option<LinuxSandbox>,
}

#[derive(Clone, PartialEq, Message)]
struct SandboxMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

#[derive(Clone, PartialEq, Message)]
struct LinuxSandbox {
    #[prost(string, tag = "1")]
    cgroup_parent: String,
    #[prost(message, optional, tag = "2")]
    security: Option<Security>,
}

#[derive(Clone, PartialEq, Message)]
struct Security {
    #[prost(message, optional, tag = "1")]
    namespaces: Option<Namespaces>,
}

#[derive(Clone, PartialEq, Message)]
struct Namespaces {
    #[prost(int32, tag = "1")]
    network: i32,
}

#[derive(Clone, PartialEq, Message)]
struct CreateContainer {
    #[prost(string, tag = "1")]
    sandbox: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    sandbox_config: Option<SandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "2")]
    image: Option<ImageSpec>,
    #[prost(string, repeated, tag = "3")]
    command: Vec<String>,
    #[prost(map = "string, string", tag = "9")]
    labels: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerMetadata {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
}

#[derive(Clone, PartialEq, Message)]
struct ExecSync {
    #[prost(string, tag = "1")]
    container: String,
    #[prost(string, repeated, tag = "2")]
    command: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct ExecSyncResponse {
    #[prost(int32, tag = "3")]
    exit_code: i32,
}
