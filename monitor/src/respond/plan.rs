//! What a rollback would do: a pure function of what is asked for and what is known.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    ledger::Subject,
    order::{OnFailure, Refusal, Request},
    progress::Step,
    spec::{self, SpecError},
    supervisor::refuse_supervised,
};
use crate::{
    approval::{Approvals, Standing},
    containerd::{ContainerRecord, Stdio, TaskDetails, TaskState},
    containers::{catalog::Image, repository},
    digest::{Digest, Hasher},
    image::manifest,
};

/// The label by which containerd's clients remember the stop signal of a container's image.
const STOP_SIGNAL: &str = "io.containerd.image.config.stop-signal";
const SIGTERM: u32 = 15;

/// Bytes of a container's id that its names in an order keep; containerd takes 76 in all.
const ID_BYTES_MAX: usize = 40;

/// What is known of a container and of what it could be rolled back to.
#[derive(Clone, Debug)]
pub struct Facts {
    /// containerd's namespace.
    pub namespace: String,
    /// The container.
    pub record: ContainerRecord,
    /// Its task, if it has one, and when that was started, in the kernel's ticks.
    pub task: Option<(TaskDetails, u64)>,
    /// It holds the namespaces of a pod.
    pub is_sandbox: bool,
    /// The images that it may have been created from; one, if that is proven.
    pub running: Vec<Arc<Image>>,
    /// The images of its namespace, by the order of their references.
    pub images: Vec<Held>,
    /// What was said of images.
    pub approvals: Approvals,
    /// Manifests whose containers of this id stayed up.
    pub ran: Vec<Digest>,
    /// A container of the image that runs executed what is not the image's.
    pub has_content_findings: bool,
    /// What is said of the signature of the image that [`target`] gives.
    pub signature: Signature,
    /// How that image comes to the container's snapshotter; `None` if something of it is missing and no
    /// registry may be asked.
    pub supply: Option<Supply>,
    /// When all this was asked for.
    pub now: Timestamp,
}

/// An image that containerd has.
#[derive(Clone, Debug)]
pub struct Held {
    /// A reference of it.
    pub reference: String,
    /// What the reference points to: a manifest, or an index.
    pub target: Digest,
    /// The image.
    pub image: Arc<Image>,
}

/// How an image comes to the container's snapshotter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Supply {
    /// Its layers are unpacked.
    #[default]
    Unpacked,
    /// Its layers are unpacked from the blobs that containerd has.
    Stored,
    /// What is missing comes from its registry.
    Remote(Pull),
}

/// What of an image comes from its registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pull {
    /// Digest of the index or manifest that the image is known by.
    pub target: Digest,
    /// How many blobs are missing.
    pub blobs: u32,
    /// How many bytes they have together.
    pub bytes: u64,
}

/// What is said of an image's signature.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Signature {
    /// None is required.
    #[default]
    NotRequired,
    /// It is valid.
    Valid,
    /// It is missing or wrong.
    Refused(String),
}

/// How long is waited, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// For a container to end by its stop signal, before SIGKILL.
    pub grace_seconds: u32,
    /// For which the new one must stay up.
    pub watch_seconds: u32,
}

/// What a rollback does. Complete: nothing of it is looked up again when it is carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// containerd's namespace.
    pub namespace: String,
    /// The container's id.
    pub container: String,
    /// Names the state that this plan was made for.
    pub version: String,
    /// When the container was created, by containerd's clock: tells it from another of its id.
    pub created_unix_ns: i64,
    /// The manifest that runs; `None` if it is not known for certain.
    pub from: Option<Digest>,
    /// The reference that it was created with.
    pub from_reference: String,
    /// The manifest to roll back to.
    pub to: Digest,
    /// A reference of that.
    pub to_reference: String,
    /// Chain ID of its layers.
    pub chain_id: Digest,
    /// The container's snapshotter.
    pub snapshotter: String,
    /// How the image comes to it.
    #[serde(default)]
    pub supply: Supply,
    /// The new container's OCI spec.
    pub spec: String,
    /// The signal that asks the old container to end.
    pub stop_signal: u32,
    /// The stop signal of the new image's config; empty if it has none.
    pub new_stop_signal: String,
    /// See [`Times`].
    pub grace_seconds: u32,
    /// See [`Times`].
    pub watch_seconds: u32,
    /// Where the new container's output goes.
    pub stdio: Stdio,
    /// The container's task runs.
    pub was_running: bool,
    /// What becomes of it if the new container does not run.
    pub on_failure: OnFailure,
    /// Why it was asked for.
    pub reason: String,
    /// What people should know.
    pub notes: Vec<String>,
}

impl Subject for Plan {
    fn subject(&self) -> String {
        format!("container {} in {}", self.container, self.namespace)
    }
}

/// The image to roll back to: approved, and of the container's repository.
///
/// # Errors
///
/// See [`Refusal`].
pub fn target<'a>(request: &Request, facts: &'a Facts) -> Result<&'a Held, Refusal> {
    let own = repository(&facts.record.image);
    refuse_supervised(&facts.namespace, &facts.record, own, request.to.as_ref())?;
    if own.is_empty() {
        return Err(Refusal::NoRepository(facts.record.id.clone()));
    }
    let Some(digest) = request.to else {
        return last_approved(facts, own);
    };
    let is_it = |held: &&Held| held.target == digest || held.image.id.manifest == digest;
    let mut all = facts.images.iter().filter(is_it);
    let elsewhere = all.clone().next();
    let not_approved = |standing: Standing<'_>| Refusal::NotApproved {
        digest,
        repository: own.to_owned(),
        standing: standing.name(),
    };
    let Some(found) = all.find(|held| repository(&held.reference) == own) else {
        if let Some(held) = elsewhere {
            return Err(Refusal::OtherRepository {
                digest,
                repository: own.to_owned(),
                found: repository(&held.reference).to_owned(),
            });
        }
        return match facts.approvals.standing(own, &[digest], facts.now) {
            Standing::Approved(_) => Err(Refusal::NotPresent {
                digest,
                namespace: facts.namespace.clone(),
                repository: own.to_owned(),
            }),
            standing => Err(not_approved(standing)),
        };
    };
    match standing(facts, own, &found.image.id.manifest) {
        Standing::Approved(_) => Ok(found),
        standing => Err(not_approved(standing)),
    }
}

/// Of what was approved before the image that runs, the newest that ran here and stayed up.
fn last_approved<'a>(facts: &'a Facts, own: &str) -> Result<&'a Held, Refusal> {
    let running: Vec<Digest> = facts.running.iter().map(|it| it.id.manifest).collect();
    let named = running.iter().flat_map(|it| digests_of(facts, own, it));
    // The approval of the one that runs, by whichever of its digests, ends the list.
    let before = named.map(|it| facts.approvals.approved_before(own, &it, facts.now));
    let before = before.min_by_key(Vec::len).unwrap_or_default();
    let ran = before.iter().find_map(|statement| {
        let digest = statement.digest;
        facts.images.iter().find(|held| {
            let manifest = held.image.id.manifest;
            repository(&held.reference) == own
                && [held.target, manifest].contains(&digest)
                && facts.ran.contains(&manifest)
                && !running.contains(&manifest)
        })
    });
    let found = ran.filter(|held| {
        let standing = standing(facts, own, &held.image.id.manifest);
        matches!(standing, Standing::Approved(_))
    });
    found.ok_or_else(|| Refusal::NoTarget {
        repository: own.to_owned(),
    })
}

/// A manifest, and the indexes of the repository by which it is known here.
fn digests_of(facts: &Facts, own: &str, manifest: &Digest) -> Vec<Digest> {
    let is_own =
        |held: &&Held| held.image.id.manifest == *manifest && repository(&held.reference) == own;
    let targets = facts.images.iter().filter(is_own).map(|held| held.target);
    let mut digests: Vec<Digest> = targets.chain([*manifest]).collect();
    digests.sort_unstable();
    digests.dedup();
    digests
}

fn standing<'a>(facts: &'a Facts, own: &str, manifest: &Digest) -> Standing<'a> {
    let digests = digests_of(facts, own, manifest);
    facts.approvals.standing(own, &digests, facts.now)
}

/// What a rollback does.
///
/// # Errors
///
/// See [`Refusal`].
pub fn plan(request: &Request, facts: &Facts, times: Times) -> Result<Plan, Refusal> {
    let held = target(request, facts)?;
    let record = &facts.record;
    let own = repository(&record.image);
    let (image, new) = (&held.image.id, &held.image.config);
    refuse_unfit(facts)?;
    if let Signature::Refused(reason) = &facts.signature {
        return Err(Refusal::Signature {
            digest: image.manifest,
            reason: reason.clone(),
        });
    }
    let running = match facts.running.as_slice() {
        [one] => Some(one),
        _ => None,
    };
    if running.is_some_and(|running| running.id.manifest == image.manifest) {
        return Err(Refusal::Same {
            container: record.id.clone(),
            digest: image.manifest,
        });
    }
    if !manifest::runs_here(new) {
        return Err(Refusal::Platform {
            digest: image.manifest,
            found: format!("{}/{}", new.os, new.architecture),
            node: format!("linux/{}", manifest::node_architecture()),
        });
    }
    let supply = facts.supply.ok_or_else(|| Refusal::NotUnpacked {
        digest: image.manifest,
        snapshotter: record.snapshotter.clone(),
        namespace: facts.namespace.clone(),
        repository: own.to_owned(),
    })?;
    if request.on_failure == OnFailure::Undo {
        let is_revoked = |image: &Arc<Image>| {
            let standing = standing(facts, own, &image.id.manifest);
            matches!(standing, Standing::Revoked(_))
        };
        if facts.running.iter().any(is_revoked) {
            return Err(Refusal::NoWayBack("was revoked"));
        }
        if facts.has_content_findings {
            return Err(Refusal::NoWayBack(
                "executed files that are not its image's",
            ));
        }
    }
    let refused = |reason: SpecError| Refusal::Spec {
        container: record.id.clone(),
        image: image.manifest,
        reason,
    };
    let old = running.map(|running| &running.config);
    let (spec, mut notes) = spec::adapted(&record.spec, old, new).map_err(refused)?;
    let spec = String::from_utf8(spec).map_err(|_| refused(SpecError::Unreadable))?;
    let task = facts.task.as_ref().map(|(task, _)| task);
    let was_running = task.is_some_and(|task| task.state != TaskState::Stopped);
    if !was_running {
        notes.push("it does not run now".to_owned());
    }
    let stdio = task.map(|task| lasting(&task.stdio)).unwrap_or_default();
    if task.is_some_and(|task| task.stdio != stdio) {
        notes.push(
            "its output goes to a pipe that a client reads; the new one's goes nowhere".to_owned(),
        );
    }
    let stop_signal = record.labels.get(STOP_SIGNAL);
    Ok(Plan {
        namespace: facts.namespace.clone(),
        container: record.id.clone(),
        version: version(facts),
        created_unix_ns: i64::try_from(record.created_unix_ns).unwrap_or_default(),
        from: running.map(|running| running.id.manifest),
        from_reference: record.image.clone(),
        to: image.manifest,
        to_reference: held.reference.clone(),
        chain_id: image.chain_id,
        snapshotter: record.snapshotter.clone(),
        supply,
        spec,
        stop_signal: stop_signal
            .and_then(|name| spec::signal(name))
            .unwrap_or(SIGTERM),
        new_stop_signal: new.stop_signal.clone(),
        grace_seconds: times.grace_seconds,
        watch_seconds: times.watch_seconds,
        stdio,
        was_running,
        on_failure: request.on_failure,
        reason: request.reason.clone(),
        notes,
    })
}

fn refuse_unfit(facts: &Facts) -> Result<(), Refusal> {
    let record = &facts.record;
    let is_paused = |(task, _): &(TaskDetails, u64)| task.state == TaskState::Paused;
    let reason = if facts.is_sandbox || !record.sandbox.is_empty() {
        "it belongs to a sandbox"
    } else if record.snapshot_key.is_empty() || record.snapshotter.is_empty() {
        "it has no snapshot, so its files are not those of an image"
    } else if spec::is_remapped(&record.spec) {
        "it has a user namespace with shifted ids, for which its image has to be unpacked anew; create it by hand"
    } else if facts.task.as_ref().is_some_and(is_paused) {
        "it is paused and would not hear that it shall end; resume it: `ctr tasks resume`"
    } else {
        return Ok(());
    };
    Err(Refusal::Unfit {
        container: record.id.clone(),
        reason,
    })
}

/// Where output goes without a client: files, and programs that containerd starts.
fn lasting(stdio: &Stdio) -> Stdio {
    let lasting = |uri: &String| match uri.split_once("://") {
        Some(("file" | "binary", _)) => uri.clone(),
        _ => String::new(),
    };
    Stdio {
        stdout: lasting(&stdio.stdout),
        stderr: lasting(&stdio.stderr),
    }
}

/// Names what a plan was made for: another one, if any of it is another.
fn version(facts: &Facts) -> String {
    let mut hash = Hasher::new();
    let record = &facts.record;
    hash.update(&record.created_unix_ns.to_be_bytes());
    hash.update(&record.updated_unix_ns.to_be_bytes());
    if let Some((task, started)) = &facts.task {
        hash.update(&task.pid.to_be_bytes());
        hash.update(&started.to_be_bytes());
    }
    for image in &facts.running {
        hash.update(&image.id.manifest.0.0);
    }
    let mut hash = hash.finish().to_string();
    hash.truncate(16);
    hash
}

impl Plan {
    /// What the order is about, for the audit log.
    pub fn object(&self) -> String {
        format!("container/{}/{}", self.namespace, self.container)
    }

    /// Id under which the old container is kept.
    pub fn kept(&self, order: &str) -> String {
        let mut end = self.container.len().min(ID_BYTES_MAX);
        while !self.container.is_char_boundary(end) {
            end -= 1;
        }
        let id = self.container.get(..end).unwrap_or_default();
        // A separator has to stand between letters or digits.
        let id = id.trim_end_matches(['-', '_', '.']);
        format!("{id}-before-{}", order.to_ascii_lowercase())
    }

    /// What is done first.
    pub fn first_step(&self) -> Step {
        match self.supply {
            Supply::Unpacked => Step::Prepare,
            Supply::Stored => Step::Unpack,
            Supply::Remote(_) => Step::Pull,
        }
    }

    /// What is done, one after the other.
    pub fn steps(&self, order: &str) -> Vec<(Step, String)> {
        let Self {
            container,
            grace_seconds,
            watch_seconds,
            stop_signal,
            ..
        } = self;
        let kept = self.kept(order);
        let mut steps = Vec::new();
        if let Supply::Remote(Pull { blobs, bytes, .. }) = &self.supply {
            steps.push((
                Step::Pull,
                format!(
                    "pull {} from its registry: {blobs} blobs of {bytes} bytes",
                    self.to_reference
                ),
            ));
        }
        if self.supply != Supply::Unpacked {
            steps.push((
                Step::Unpack,
                format!("unpack its layers for {}", self.snapshotter),
            ));
        }
        steps.extend([
            (
                Step::Prepare,
                format!(
                    "prepare a snapshot on {} of {}",
                    self.chain_id, self.to_reference
                ),
            ),
            (Step::Keep, format!("note the old container as {kept}")),
            (
                Step::Stop,
                format!("stop {container}: signal {stop_signal}, after {grace_seconds} s SIGKILL"),
            ),
            (
                Step::Replace,
                format!("create {container} from {}", self.to),
            ),
            (Step::Start, format!("start {container}")),
            (
                Step::Verify,
                "prove by its snapshot's chain ID what runs".to_owned(),
            ),
            (
                Step::Watch,
                format!("see that it stays up for {watch_seconds} s"),
            ),
        ]);
        steps
    }
}
