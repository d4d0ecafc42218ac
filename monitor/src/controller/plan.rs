//! What a rollback of a workload would do: a pure function of what is asked for and what is known.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    gitops,
    record::{Expected, Step},
    workload::{Container, Kind, Name, Workload},
};
use crate::{
    approval::{Approvals, Standing},
    digest::Digest,
    registry::full_name,
    respond::{OnFailure, Refusal, Request, Signature, Subject},
};

/// The namespace that is never touched.
const KUBE_SYSTEM: &str = "kube-system";

/// What owns a pod, as far as that can be rolled back.
#[derive(Clone, Debug, PartialEq)]
pub enum Owner {
    /// A workload.
    Workload(Box<Workload>),
    /// Nothing that would make it anew with another image.
    Nothing(Unowned),
}

/// A pod that no workload makes anew, and where its image would be changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Unowned {
    /// What it is: `pod/shop/web`.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its containers.
    pub containers: Vec<Container>,
    /// Why it is refused.
    pub reason: &'static str,
    /// What to do, before the image is named.
    pub how: String,
}

/// What is known of a workload and of what it could be rolled back to.
#[derive(Clone, Debug)]
pub struct Facts {
    /// What owns what was asked for.
    pub owner: Owner,
    /// The namespace of the controller itself.
    pub own_namespace: String,
    /// What was said of images.
    pub approvals: Arc<Approvals>,
    /// Digests that ran ready in this workload.
    pub ran: Vec<Digest>,
    /// The images that nodes report of its pods now, each by its manifest's digest and then its index's.
    pub running: Vec<Vec<Digest>>,
    /// A node reports findings in its pods.
    pub has_findings: bool,
    /// What is said of the signature of the image that [`target`] gives.
    pub signature: Signature,
    /// What that image is, as its registry has it.
    pub image: Known,
    /// When all this was asked for.
    pub now: Timestamp,
}

/// What a registry says of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// No registry is configured.
    Unasked,
    /// It cannot be pulled, or is no image.
    Unusable(String),
    /// These are its manifests.
    Read(Expected),
}

/// What a rollback does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Of which workload.
    pub workload: Name,
    /// Its `metadata.uid`.
    pub uid: String,
    /// Hash of its specification when this was planned: what was wanted of it. Its generation also
    /// changes with annotations, which Kubernetes itself writes at each rollout.
    pub wanted: String,
    /// Which container of its pods.
    pub container: String,
    /// What that names now.
    pub from_reference: String,
    /// The digest that nodes report of it, if it is one.
    pub from: Option<Digest>,
    /// What it is to name.
    pub to_reference: String,
    /// The approved digest in that.
    pub to: Digest,
    /// What must be reported to run.
    pub expected: Expected,
    /// Pods that are replaced.
    pub pods: u64,
    /// What becomes of it if the rollout fails.
    pub on_failure: OnFailure,
    /// Why it was asked for.
    pub reason: String,
    /// What people should know.
    pub notes: Vec<String>,
}

impl Plan {
    /// Why what ran before must not be started again, which was judged when this was planned.
    pub fn no_way_back(&self, approvals: &Approvals, now: Timestamp) -> Option<String> {
        let before = &self.from_reference;
        let digests = self.from.into_iter().chain(digest_of(before));
        let revoked = revoked(approvals, &full_name(before), digests, now)?;
        Some(format!(
            "it is not put back, since {revoked} was revoked meanwhile"
        ))
    }

    /// What is done, one after the other.
    pub fn steps(&self) -> Vec<(Step, String)> {
        let (name, image) = (&self.workload, &self.to_reference);
        let container = &self.container;
        let apply = format!("have container {container} of {name} name {image}");
        if self.workload.kind == Kind::CronJob {
            return vec![(
                Step::Apply,
                format!("{apply}, for what it runs from then on"),
            )];
        }
        vec![
            (Step::Apply, apply),
            (
                Step::Rollout,
                format!("see its pods replaced ({} now)", self.pods),
            ),
            (
                Step::Verify,
                "have the nodes prove what runs in them, by chain ID".to_owned(),
            ),
        ]
    }
}

/// The container that is meant, and the repository of its image.
struct Aim<'a> {
    container: &'a Container,
    repository: String,
}

impl Subject for Plan {
    fn subject(&self) -> String {
        self.workload.to_string()
    }
}

/// The repository of the image that is to be another, and the container that has it; `None` if it is not
/// clear which is meant.
pub fn subject(request: &Request, owner: &Owner) -> Option<(String, String)> {
    let (name, containers) = named(owner);
    let aim = aim(&name, &containers, request.container.as_deref()).ok()?;
    Some((aim.repository, aim.container.name.clone()))
}

fn named(owner: &Owner) -> (String, Vec<Container>) {
    match owner {
        Owner::Workload(workload) => (workload.name.to_string(), workload.containers()),
        Owner::Nothing(unowned) => (unowned.name.clone(), unowned.containers.clone()),
    }
}

/// The image to roll back to: its repository and its digest.
///
/// # Errors
///
/// See [`Refusal`].
pub fn target(request: &Request, facts: &Facts) -> Result<(String, Digest), Refusal> {
    let (name, containers) = named(&facts.owner);
    let aim = aim(&name, &containers, request.container.as_deref())?;
    let digest = chosen(request, facts, &aim)?;
    Ok((aim.repository, digest))
}

fn aim<'a>(
    name: &str,
    containers: &'a [Container],
    wanted: Option<&str>,
) -> Result<Aim<'a>, Refusal> {
    let refused = |reason: String| Refusal::Workload {
        workload: name.to_owned(),
        reason,
    };
    let names: Vec<&str> = containers.iter().map(|it| it.name.as_str()).collect();
    let named = names.join(", ");
    let container = match (wanted, containers) {
        (None, [one]) => one,
        (None, _) => {
            return Err(refused(format!(
                "its pods have several containers; say which with --container: {named}"
            )));
        }
        (Some(wanted), all) => {
            let found = all.iter().find(|it| it.name == wanted);
            found.ok_or_else(|| {
                refused(format!(
                    "its pods have no container {wanted:?}, but {named}"
                ))
            })?
        }
    };
    // As nodes report it, and as approvals name it.
    let repository = full_name(&container.image);
    if repository.is_empty() {
        return Err(Refusal::NoRepository(format!(
            "{} of {name}",
            container.name
        )));
    }
    Ok(Aim {
        container,
        repository,
    })
}

fn chosen(request: &Request, facts: &Facts, aim: &Aim<'_>) -> Result<Digest, Refusal> {
    let Some(digest) = request.to else {
        return last_approved(facts, aim);
    };
    let own = aim.repository.as_str();
    let elsewhere = facts.approvals.repositories_of(&digest);
    match facts.approvals.standing(own, &[digest], facts.now) {
        Standing::Approved(_) => Ok(digest),
        Standing::Unapproved | Standing::Unmanaged if !elsewhere.is_empty() => {
            Err(Refusal::OtherRepository {
                digest,
                repository: own.to_owned(),
                found: elsewhere.join(", "),
            })
        }
        standing => Err(Refusal::NotApproved {
            digest,
            repository: own.to_owned(),
            standing: standing.name(),
        }),
    }
}

/// The digests of what is to be another: as nodes report it, and as the workload names it.
fn present(facts: &Facts, image: &str) -> Vec<Digest> {
    let running = facts.running.iter().flatten().copied();
    running.chain(digest_of(image)).collect()
}

fn digest_of(image: &str) -> Option<Digest> {
    image.split_once('@')?.1.parse().ok()
}

/// Which of the digests of an image must not be started again.
fn revoked(
    approvals: &Approvals,
    repository: &str,
    mut digests: impl Iterator<Item = Digest>,
    now: Timestamp,
) -> Option<Digest> {
    digests.find(|digest| {
        let standing = approvals.standing(repository, &[*digest], now);
        matches!(standing, Standing::Revoked(_))
    })
}

fn last_approved(facts: &Facts, aim: &Aim<'_>) -> Result<Digest, Refusal> {
    let own = aim.repository.as_str();
    // The approval of what runs, by whichever of its digests, ends the list.
    let of = |digest| facts.approvals.approved_before(own, digest, facts.now);
    let present = present(facts, &aim.container.image);
    let before = present.iter().map(of).min_by_key(Vec::len);
    let before = before.unwrap_or_default().into_iter();
    let mut ran = before
        .map(|it| it.digest)
        .filter(|digest| facts.ran.contains(digest) && !present.contains(digest));
    ran.next().ok_or_else(|| Refusal::NoTarget {
        repository: own.to_owned(),
    })
}

/// What a rollback would do. `facts` are complete: with what is said of the image that [`target`] gives.
///
/// # Errors
///
/// See [`Refusal`].
pub fn plan(request: &Request, facts: &Facts) -> Result<Plan, Refusal> {
    let workload = match &facts.owner {
        Owner::Workload(workload) => workload,
        Owner::Nothing(unowned) => return Err(by_hand(request, facts, unowned)),
    };
    let name = workload.name.to_string();
    let refused = |reason: String| Refusal::Workload {
        workload: name.clone(),
        reason,
    };
    refuse_own(facts, &name, &workload.name.namespace)?;
    let (repository, to) = target(request, facts)?;
    let containers = workload.containers();
    let container = aim(&name, &containers, request.container.as_deref())?.container;
    let to_reference = format!("{repository}@{to}");
    if let Some(owner) = gitops::owner(&workload.object) {
        return Err(refused(format!(
            "{owner} owns it and would undo that. Commit this to its repository: container {} of {name} with `image: {to_reference}`",
            container.name
        )));
    }
    if let Some(reason) = workload.stands_still() {
        return Err(refused(reason.to_owned()));
    }
    let kind = workload.name.kind;
    if kind == Kind::StatefulSet && !request.allow_stateful {
        let volumes = workload.volumes();
        return Err(refused(format!(
            "its pods keep their volumes ({}), and what the image that runs wrote there stays; give --allow-stateful if the older one can read it",
            listed(&volumes)
        )));
    }
    if container.image == to_reference {
        return Err(Refusal::Same {
            container: name,
            digest: to,
        });
    }
    if let Signature::Refused(reason) = &facts.signature {
        return Err(Refusal::Signature {
            digest: to,
            reason: reason.clone(),
        });
    }
    let (expected, note) = match &facts.image {
        Known::Read(expected) => (expected.clone(), None),
        Known::Unasked => {
            let expected = Expected {
                manifests: [to].into(),
                ..Expected::default()
            };
            let note =
                "no registry is configured, so it is not known before that the image can be pulled";
            (expected, Some(note.to_owned()))
        }
        Known::Unusable(reason) => {
            return Err(refused(format!(
                "{to_reference} cannot be pulled: {reason}"
            )));
        }
    };
    refuse_way(request, facts, kind, &repository, &container.image)?;
    let mut notes: Vec<String> = note.into_iter().collect();
    match kind {
        Kind::CronJob => {
            notes.push("jobs that run now go on with their image".to_owned());
        }
        Kind::StatefulSet => {
            let volumes = listed(&workload.volumes());
            notes.push(format!("its pods keep their volumes: {volumes}"));
            notes.push(
                "Kubernetes does not replace a pod of it that is not ready; delete such ones by hand"
                    .to_owned(),
            );
        }
        Kind::Deployment | Kind::DaemonSet => {}
    }
    let from = match facts.running.as_slice() {
        [one] => one.first().copied(),
        _ => None,
    };
    Ok(Plan {
        workload: workload.name.clone(),
        uid: workload.uid().to_owned(),
        wanted: workload.wanted(),
        container: container.name.clone(),
        from_reference: container.image.clone(),
        from,
        to_reference,
        to,
        expected,
        pods: workload.pods_wanted(),
        on_failure: request.on_failure,
        reason: request.reason.clone(),
        notes,
    })
}

/// Refuses what must not be touched, whoever asks.
fn refuse_own(facts: &Facts, name: &str, namespace: &str) -> Result<(), Refusal> {
    let reason = if namespace == KUBE_SYSTEM {
        "what keeps the cluster itself running is not touched"
    } else if namespace == facts.own_namespace {
        "the monitor does not touch itself"
    } else {
        return Ok(());
    };
    Err(Refusal::Workload {
        workload: name.to_owned(),
        reason: reason.to_owned(),
    })
}

/// What nothing makes anew: the exact change for people to make.
fn by_hand(request: &Request, facts: &Facts, unowned: &Unowned) -> Refusal {
    let Unowned {
        name, reason, how, ..
    } = unowned;
    if let Err(refusal) = refuse_own(facts, name, &unowned.namespace) {
        return refusal;
    }
    let (container, image) = match aim(name, &unowned.containers, request.container.as_deref()) {
        Err(refusal) => return refusal,
        Ok(aim) => {
            let digest = chosen(request, facts, &aim);
            let digest = digest.map_or_else(|_| "DIGEST".to_owned(), |it| it.to_string());
            (&aim.container.name, format!("{}@{digest}", aim.repository))
        }
    };
    Refusal::Workload {
        workload: name.clone(),
        reason: format!("{reason}. {how} container {container} with `image: {image}`"),
    }
}

/// Refuses ways to end that would make it worse.
fn refuse_way(
    request: &Request,
    facts: &Facts,
    kind: Kind,
    repository: &str,
    image: &str,
) -> Result<(), Refusal> {
    match request.on_failure {
        OnFailure::Hold => Ok(()),
        _ if kind == Kind::CronJob => Err(Refusal::NothingWatched),
        OnFailure::Stop if kind == Kind::DaemonSet => Err(Refusal::NoWayToStop),
        OnFailure::Stop => Ok(()),
        OnFailure::Undo => {
            let digests = present(facts, image);
            let all = digests.iter().copied();
            let is_revoked = revoked(&facts.approvals, repository, all, facts.now).is_some();
            if digests.is_empty() {
                Err(Refusal::NoWayBack(
                    "is not known: a tag names it, and no node reports it",
                ))
            } else if is_revoked {
                Err(Refusal::NoWayBack("was revoked"))
            } else if facts.has_findings {
                Err(Refusal::NoWayBack("has findings on its nodes"))
            } else {
                Ok(())
            }
        }
    }
}

fn listed(volumes: &[String]) -> String {
    if volumes.is_empty() {
        "none by claim templates".to_owned()
    } else {
        volumes.join(", ")
    }
}
