//! Workloads of Kubernetes as objects of its API describe them. Pure.

use std::{collections::BTreeSet, fmt};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::digest::Sha256;

/// Who applies what the controller applies, as `metadata.managedFields` names it.
pub const FIELD_MANAGER: &str = "monitord";
/// Annotation of a workload that holds its last order.
pub const ANNOTATION: &str = "monitord.io/rollback";
/// Label of a workload with an order; its value is the order's state.
pub const LABEL: &str = "monitord.io/rollback";
/// Digits of the hash of a specification that plans and people are shown.
const WANTED_DIGITS: usize = 16;
/// Bytes of a name, as the API server takes them (RFC 1123 subdomains).
const NAME_BYTES_MAX: usize = 253;

/// A kind of workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// `apps/v1`.
    Deployment,
    /// `apps/v1`.
    DaemonSet,
    /// `apps/v1`.
    StatefulSet,
    /// `batch/v1`; only what it runs from then on.
    CronJob,
}

impl Kind {
    /// Each of them.
    pub const ALL: [Self; 4] = [
        Self::Deployment,
        Self::DaemonSet,
        Self::StatefulSet,
        Self::CronJob,
    ];

    /// As objects name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Deployment => "Deployment",
            Self::DaemonSet => "DaemonSet",
            Self::StatefulSet => "StatefulSet",
            Self::CronJob => "CronJob",
        }
    }

    /// API group.
    pub fn group(self) -> &'static str {
        match self {
            Self::CronJob => "batch",
            _ => "apps",
        }
    }

    /// As paths of the API name it.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Deployment => "deployments",
            Self::DaemonSet => "daemonsets",
            Self::StatefulSet => "statefulsets",
            Self::CronJob => "cronjobs",
        }
    }

    /// Where the specification of its pods is.
    fn pods(self) -> &'static str {
        match self {
            Self::CronJob => "/spec/jobTemplate/spec/template/spec",
            _ => "/spec/template/spec",
        }
    }
}

/// Which workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Name {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name there.
    pub name: String,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind.name().to_lowercase();
        write!(f, "{kind}/{}/{}", self.namespace, self.name)
    }
}

/// What an order is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A workload.
    Workload(Name),
    /// The workload that owns this pod.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

impl Target {
    /// Reads `KIND/NAMESPACE/NAME`; `None` if it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let (kind, namespace, name) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() || !is_name(namespace) || !is_name(name) {
            return None;
        }
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        if kind == "pod" {
            return Some(Self::Pod { namespace, name });
        }
        let is_it = |it: &Kind| it.name().to_lowercase() == kind;
        let kind = Kind::ALL.into_iter().find(is_it)?;
        Some(Self::Workload(Name {
            kind,
            namespace,
            name,
        }))
    }
}

/// Whether a text may stand in a path of the API.
pub fn is_name(text: &str) -> bool {
    let is_allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    (1..=NAME_BYTES_MAX).contains(&text.len())
        && text.bytes().all(is_allowed)
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
}

/// A container of a workload's pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// Reference of its image.
    pub image: String,
}

/// The containers of a pod's specification.
pub fn containers(pod: &Value) -> Vec<Container> {
    let all = pod.get("containers").and_then(Value::as_array);
    let one = |it: &Value| {
        Some(Container {
            name: it.get("name")?.as_str()?.to_owned(),
            image: it.get("image")?.as_str()?.to_owned(),
        })
    };
    all.into_iter().flatten().filter_map(one).collect()
}

/// What makes an object anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Maker {
    /// Its kind.
    pub kind: String,
    /// Its name, in the namespace of the object.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

impl Maker {
    /// By the object's owner references; `None` if nothing does.
    pub fn of(object: &Value) -> Option<Self> {
        let owners = object.pointer("/metadata/ownerReferences")?.as_array()?;
        let is_controller = |it: &&Value| it.get("controller") == Some(&Value::Bool(true));
        let owner = owners.iter().find(is_controller)?;
        let text = |key: &str| Some(owner.get(key)?.as_str()?.to_owned());
        Some(Self {
            kind: text("kind")?,
            name: text("name")?,
            uid: text("uid")?,
        })
    }
}

/// A workload as the API server has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Which.
    pub name: Name,
    /// The whole object.
    pub object: Value,
}

impl Workload {
    /// An object of a kind, as the API server lists it.
    pub fn of(kind: Kind, object: Value) -> Option<Self> {
        let text = |pointer| Some(object.pointer(pointer)?.as_str()?.to_owned());
        let name = Name {
            kind,
            namespace: text("/metadata/namespace")?,
            name: text("/metadata/name")?,
        };
        Some(Self { name, object })
    }

    /// Its `metadata.uid`.
    pub fn uid(&self) -> &str {
        self.text("/metadata/uid")
    }

    /// Its `metadata.resourceVersion`.
    pub fn version(&self) -> &str {
        self.text("/metadata/resourceVersion")
    }

    /// Its `metadata.generation`, which changes with what is wanted of it and not with how it stands.
    pub fn generation(&self) -> u64 {
        self.number("/metadata/generation")
    }

    /// Stands for what is wanted of it.
    pub fn wanted(&self) -> String {
        let spec = self.object.get("spec").map(Value::to_string);
        let hash = Sha256::of(spec.unwrap_or_default().as_bytes()).to_string();
        hash.chars().take(WANTED_DIGITS).collect()
    }

    /// The containers that its pods go on with, without those that only come before.
    pub fn containers(&self) -> Vec<Container> {
        let pods = self.object.pointer(self.name.kind.pods());
        pods.map(containers).unwrap_or_default()
    }

    /// The volumes that its pods keep when they are replaced, by name.
    pub fn volumes(&self) -> Vec<String> {
        let claims = self
            .object
            .pointer("/spec/volumeClaimTemplates")
            .and_then(Value::as_array);
        let name = |it: &Value| Some(it.pointer("/metadata/name")?.as_str()?.to_owned());
        claims.into_iter().flatten().filter_map(name).collect()
    }

    /// The selector of its pods as a query has it; `None` if it has none, or one of a form that is not
    /// known.
    pub fn selector(&self) -> Option<String> {
        let selector = self.object.pointer("/spec/selector")?;
        let mut terms = Vec::new();
        let labels = selector.get("matchLabels").and_then(Value::as_object);
        for (key, value) in labels.into_iter().flatten() {
            terms.push(format!("{key}={}", value.as_str()?));
        }
        let expressions = selector.get("matchExpressions").and_then(Value::as_array);
        for expression in expressions.into_iter().flatten() {
            let key = expression.get("key")?.as_str()?;
            let values = expression.get("values").and_then(Value::as_array);
            let values: Option<Vec<&str>> =
                values.into_iter().flatten().map(Value::as_str).collect();
            let values = values?.join(",");
            terms.push(match expression.get("operator")?.as_str()? {
                "In" => format!("{key} in ({values})"),
                "NotIn" => format!("{key} notin ({values})"),
                "Exists" => key.to_owned(),
                "DoesNotExist" => format!("!{key}"),
                _ => return None,
            });
        }
        (!terms.is_empty()).then(|| terms.join(","))
    }

    /// How many pods are wanted.
    pub fn pods_wanted(&self) -> u64 {
        match self.name.kind {
            Kind::Deployment | Kind::StatefulSet => {
                let replicas = self.object.pointer("/spec/replicas");
                replicas.and_then(Value::as_u64).unwrap_or(1)
            }
            Kind::DaemonSet => self.number("/status/desiredNumberScheduled"),
            Kind::CronJob => 0,
        }
    }

    /// Why its pods would not be replaced by a change of their image, if they would not.
    pub fn stands_still(&self) -> Option<&'static str> {
        let is_true = |pointer| self.object.pointer(pointer) == Some(&Value::Bool(true));
        let strategy = self.text("/spec/updateStrategy/type");
        if self.object.pointer("/metadata/deletionTimestamp").is_some() {
            Some("it is being deleted")
        } else if is_true("/spec/paused") {
            Some("its rollouts are paused; resume them: `kubectl rollout resume`")
        } else if strategy == "OnDelete" {
            Some(
                "its pods are only replaced when they are deleted (updateStrategy OnDelete); set the image and delete them",
            )
        } else if self.number("/spec/updateStrategy/rollingUpdate/partition") > 0 {
            Some("a partition keeps some of its pods from being replaced; set it to 0 first")
        } else {
            None
        }
    }

    /// The last order about it, as it is written there.
    pub fn annotation(&self) -> Option<&str> {
        let annotations = self.object.pointer("/metadata/annotations")?;
        annotations.get(ANNOTATION)?.as_str()
    }

    /// What is applied to have `container` run `image`. Always whole: fields that a manager leaves out
    /// of what it applies next are taken away.
    pub fn change(&self, change: &Change<'_>) -> Value {
        let Name {
            kind,
            namespace,
            name,
        } = &self.name;
        // Left out, the images that orders about other containers have applied would be taken away.
        let applied = self.applied_containers();
        let others = self.containers().into_iter();
        let others = others.filter(|it| it.name != change.container && applied.contains(&it.name));
        let mut containers = vec![json!({ "name": change.container, "image": change.image })];
        containers.extend(others.map(|it| json!({ "name": it.name, "image": it.image })));
        let pods = json!({ "spec": { "containers": containers } });
        let mut spec = match kind {
            Kind::CronJob => json!({ "jobTemplate": { "spec": { "template": pods } } }),
            _ => json!({ "template": pods }),
        };
        // Left out, what an order before has stopped would be started by this.
        let kept = self.object.pointer("/spec/replicas").cloned();
        let kept = kept.filter(|_| self.has_applied_replicas());
        let replicas = if change.is_stopped {
            Some(json!(0))
        } else {
            kept
        };
        if let (Some(replicas), Some(spec)) = (replicas, spec.as_object_mut()) {
            spec.insert("replicas".to_owned(), replicas);
        }
        json!({
            "apiVersion": format!("{}/v1", kind.group()),
            "kind": kind.name(),
            "metadata": {
                "name": name,
                "namespace": namespace,
                "resourceVersion": self.version(),
                "annotations": { ANNOTATION: change.record },
                "labels": { LABEL: change.state },
            },
            "spec": spec,
        })
    }

    /// How far the replacement of its pods is.
    pub fn rollout(&self) -> Rollout {
        let wanted = self.pods_wanted();
        let (all, updated, available) = match self.name.kind {
            Kind::CronJob => return Rollout::Next,
            Kind::Deployment => (
                self.number("/status/replicas"),
                self.number("/status/updatedReplicas"),
                self.number("/status/availableReplicas"),
            ),
            Kind::StatefulSet => (
                self.number("/status/replicas"),
                self.number("/status/updatedReplicas"),
                self.number("/status/readyReplicas"),
            ),
            Kind::DaemonSet => (
                self.number("/status/currentNumberScheduled"),
                self.number("/status/updatedNumberScheduled"),
                self.number("/status/numberAvailable"),
            ),
        };
        if self.number("/status/observedGeneration") < self.generation() {
            return Rollout::Unseen;
        }
        // Pods that end are counted no more: who must know of them lists the pods.
        if updated >= wanted && available >= wanted && all <= wanted {
            return Rollout::Done;
        }
        let conditions = self.object.pointer("/status/conditions");
        let mut conditions = conditions.and_then(Value::as_array).into_iter().flatten();
        let text = |it: &Value, key: &str| Some(it.get(key)?.as_str()?.to_owned());
        let stuck = conditions.find(|it| {
            text(it, "type").as_deref() == Some("Progressing")
                && text(it, "reason").as_deref() == Some("ProgressDeadlineExceeded")
        });
        if let Some(stuck) = stuck {
            return Rollout::Stuck {
                reason: text(stuck, "message").unwrap_or_default(),
                since: text(stuck, "lastUpdateTime").unwrap_or_default(),
            };
        }
        Rollout::UnderWay {
            updated,
            available,
            wanted,
        }
    }

    /// Whether the number of pods is what the controller applied.
    fn has_applied_replicas(&self) -> bool {
        let mut own = self.applied();
        own.any(|fields| fields.pointer("/f:spec/f:replicas").is_some())
    }

    /// The containers whose images are what the controller applied, by name.
    fn applied_containers(&self) -> BTreeSet<String> {
        let place = self.name.kind.pods().replace('/', "/f:") + "/f:containers";
        let containers = self
            .applied()
            .filter_map(|it| it.pointer(&place)?.as_object());
        let with_image = containers
            .flatten()
            .filter(|(_, it)| it.get("f:image").is_some());
        let name = |(key, _): (&String, &Value)| {
            let key: Value = serde_json::from_str(key.strip_prefix("k:")?).ok()?;
            Some(key.get("name")?.as_str()?.to_owned())
        };
        with_image.filter_map(name).collect()
    }

    /// The fields that the controller applied and that nobody has changed since.
    fn applied(&self) -> impl Iterator<Item = &Value> {
        let managers = self.object.pointer("/metadata/managedFields");
        let managers = managers.and_then(Value::as_array).into_iter().flatten();
        let own = managers.filter(|it| {
            it.get("manager").and_then(Value::as_str) == Some(FIELD_MANAGER)
                && it.get("operation").and_then(Value::as_str) == Some("Apply")
        });
        own.filter_map(|it| it.get("fieldsV1"))
    }

    fn text(&self, pointer: &str) -> &str {
        let found = self.object.pointer(pointer).and_then(Value::as_str);
        found.unwrap_or_default()
    }

    fn number(&self, pointer: &str) -> u64 {
        let found = self.object.pointer(pointer).and_then(Value::as_u64);
        found.unwrap_or_default()
    }
}

/// What is changed of a workload.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// Which container of its pods.
    pub container: &'a str,
    /// What that is to run.
    pub image: &'a str,
    /// The order, as it is written there.
    pub record: &'a str,
    /// The name of its state.
    pub state: &'a str,
    /// None of its pods is to run.
    pub is_stopped: bool,
}

/// How far the replacement of a workload's pods is: what `kubectl rollout status` goes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rollout {
    /// Kubernetes has not looked at the change yet.
    Unseen,
    /// Pods are being replaced.
    UnderWay {
        /// Of the new template.
        updated: u64,
        /// Available, old and new.
        available: u64,
        /// To be there.
        wanted: u64,
    },
    /// Every pod is of the new template and available, and no other is left that does not end.
    Done,
    /// Kubernetes has given up waiting.
    Stuck {
        /// Why.
        reason: String,
        /// When it did, as it says. It says so on about the next template, until a pod of that has come or
        /// gone.
        since: String,
    },
    /// Nothing is replaced; what runs next is of the new template.
    Next,
}
