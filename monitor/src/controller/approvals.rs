//! The cluster's approvals: objects `ImageApproval`, which the controller owns and nodes are told of.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use monitor_api::v1;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{sync::watch, time::sleep};

use super::{
    cluster::{Cluster, ClusterError, IMAGE_APPROVAL, set},
    workload::Name,
};
use crate::{
    alerts::build::timestamp,
    api::{ApprovalCall, ApprovalCallError},
    approval::{Approvals, Document, FullError, REPOSITORIES_MAX, State, Statement, cluster},
    digest::{Digest, Sha256},
};

/// Objects that are read; with more, nothing is read, and what was read last stands.
const OBJECTS_MAX: usize = 2 * REPOSITORIES_MAX;
/// How long a watch lasts; then all are read again.
const WATCH_TIME_MAX: Duration = Duration::from_secs(60);
/// Pause after something changed.
const PAUSE: Duration = Duration::from_millis(200);
/// Pause after they could not be read.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// Attempts of a change that others change meanwhile.
const ATTEMPTS_MAX: u32 = 5;
/// What ran ready, in the status of one object; of more the oldest goes.
const RAN_MAX: usize = 1024;
/// Bytes of a repository that the name of its object keeps.
const NAME_BYTES_MAX: usize = 200;
/// Bytes of its hash that make the name its own.
const NAME_DIGITS: usize = 12;

/// That an image ran ready in a workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ran {
    /// `deployment/NAMESPACE/NAME`.
    pub workload: String,
    /// Digest of a manifest, or of the index by which it is approved.
    pub digest: Digest,
    /// When that was seen first.
    pub at: Timestamp,
}

/// An object as it was read.
#[derive(Clone, Debug)]
struct Held {
    object: Value,
    document: Document,
    ran: Vec<Ran>,
}

#[derive(Default)]
struct Known {
    objects: BTreeMap<String, Held>,
    in_force: Arc<Approvals>,
    error: String,
    is_read: bool,
}

/// The cluster's approvals.
pub struct ClusterApprovals {
    cluster: Cluster,
    known: Mutex<Known>,
    told: watch::Sender<Option<Arc<[v1::Approval]>>>,
}

impl ClusterApprovals {
    /// Of which nothing was read yet.
    pub fn new(cluster: Cluster) -> Self {
        Self {
            cluster,
            known: Mutex::default(),
            told: watch::channel(None).0,
        }
    }

    /// Follows the objects, for as long as this controller leads.
    pub async fn follow(self: Arc<Self>) {
        loop {
            match self.read().await {
                Ok(version) => {
                    let changed =
                        self.cluster
                            .changed(IMAGE_APPROVAL, "", "", &version, WATCH_TIME_MAX);
                    changed.await;
                    // Many may be written at once, for one of which all are read.
                    sleep(PAUSE).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "approvals cannot be read; what was read last stands");
                    sleep(RETRY_INTERVAL).await;
                }
            }
        }
    }

    /// Reads all; gives the version of the list.
    ///
    /// # Errors
    ///
    /// The API server does not give them.
    pub async fn read(&self) -> Result<String, ClusterError> {
        let (items, version) = self
            .cluster
            .list(IMAGE_APPROVAL, "", "", OBJECTS_MAX)
            .await?;
        let mut objects = BTreeMap::new();
        let mut problems = Vec::new();
        let mut is_whole = true;
        for object in items {
            let name = name_of(&object).to_owned();
            match held(object) {
                Ok(held) => {
                    objects.insert(name, held);
                }
                Err(problem) => {
                    // As it was before, if it was readable then.
                    match self.known().objects.get(&name) {
                        Some(held) => {
                            objects.insert(name.clone(), held.clone());
                        }
                        None => is_whole = false,
                    }
                    problems.push(format!("imageapproval {name}: {problem}"));
                }
            }
        }
        let in_force = in_force(&objects);
        let mut known = self.known();
        let in_force = match in_force {
            Ok(in_force) => Arc::new(in_force),
            Err(problem) => {
                tracing::error!(
                    problem,
                    "approvals are not in force; what was read last stands"
                );
                known.error = problem;
                return Ok(version);
            }
        };
        known.error = problems.join("; ");
        if !known.error.is_empty() {
            let error = &known.error;
            tracing::error!(error, "some approvals are not in force as they are written");
        }
        (known.is_read, known.objects, known.in_force) = (true, objects, in_force);
        let statements = known.in_force.statements();
        let all: Arc<[v1::Approval]> = statements.map(|(name, it)| told(name, it)).collect();
        drop(known);
        self.told.send_if_modified(|before| {
            // What cannot be read now, the controller before may have told them.
            let is_other = before.as_ref() != Some(&all) && (is_whole || before.is_some());
            if is_other {
                *before = Some(all);
            }
            is_other
        });
        Ok(version)
    }

    /// What was said, for nodes; changes with it. `None` until all of it could be read once: nodes keep
    /// what they were told last.
    pub fn told(&self) -> watch::Receiver<Option<Arc<[v1::Approval]>>> {
        self.told.subscribe()
    }

    /// How they stand.
    pub fn status(&self) -> v1::status::Approvals {
        let known = self.known();
        v1::status::Approvals {
            repositories: known.in_force.repositories(),
            error: self.error(&known),
            ..v1::status::Approvals::default()
        }
    }

    /// What is wrong with them, and what that means for nodes.
    fn error(&self, known: &Known) -> String {
        if known.error.is_empty() || self.told.borrow().is_some() {
            return known.error.clone();
        }
        format!(
            "{}; until that is mended, nodes are told nothing and keep what they were told last",
            known.error
        )
    }

    /// Whether they were read at all; until then nothing must be judged by them.
    pub fn is_read(&self) -> bool {
        self.known().is_read
    }

    /// What was said of images.
    pub fn in_force(&self) -> Arc<Approvals> {
        Arc::clone(&self.known().in_force)
    }

    /// Digests of a repository that ran ready in a workload, newest first.
    pub fn ran(&self, repository: &str, workload: &Name) -> Vec<Digest> {
        let (known, workload) = (self.known(), workload.to_string());
        let own = known.objects.values();
        let own = own.filter(|held| held.document.repository == repository);
        let mut ran: Vec<&Ran> = own.flat_map(|held| &held.ran).collect();
        ran.retain(|it| it.workload == workload);
        ran.sort_by_key(|it| std::cmp::Reverse(it.at));
        ran.iter().map(|it| it.digest).collect()
    }

    /// Notes that digests ran ready in a workload. Nothing is done for a repository without approvals.
    ///
    /// # Errors
    ///
    /// The API server does not take it.
    pub async fn note_ran(
        &self,
        repository: &str,
        workload: &Name,
        digests: &[Digest],
    ) -> Result<(), ClusterError> {
        let known = self.ran(repository, workload);
        let new = digests.iter().filter(|digest| !known.contains(digest));
        let new: Vec<Ran> = new
            .map(|digest| Ran {
                workload: workload.to_string(),
                digest: *digest,
                at: Timestamp::now(),
            })
            .collect();
        let Some(mut held) = self.of(repository).filter(|_| !new.is_empty()) else {
            return Ok(());
        };
        held.ran.extend(new);
        let surplus = held.ran.len().saturating_sub(RAN_MAX);
        held.ran.drain(..surplus);
        set(&mut held.object, &["status", "ran"], json!(held.ran));
        let replaced = self.cluster.replace(IMAGE_APPROVAL, "", &held.object, true);
        self.keep(replaced.await?);
        Ok(())
    }

    /// Carries out a call.
    ///
    /// # Errors
    ///
    /// See [`ApprovalCallError`].
    pub async fn call(
        &self,
        call: ApprovalCall,
        running: &HashMap<Digest, u64>,
    ) -> Result<v1::ListApprovalsResponse, ApprovalCallError> {
        let now = Timestamp::now();
        let said: Vec<(String, Statement)> = match call {
            ApprovalCall::List => {
                let known = self.known();
                let all = known.in_force.statements();
                let shown = all.map(|(name, it)| shown(&known.in_force, name, it, running, now));
                return Ok(v1::ListApprovalsResponse {
                    approvals: shown.collect(),
                    error: self.error(&known),
                });
            }
            ApprovalCall::Approve {
                repository,
                digest,
                until,
                reason,
                by,
            } => {
                if until.is_some_and(|until| until <= now) {
                    return Err(ApprovalCallError::Until);
                }
                let state = State::Approved;
                vec![(repository, statement(digest, state, by, now, reason, until))]
            }
            ApprovalCall::Revoke { digest, reason, by } => {
                let in_force = self.in_force();
                let named = in_force.repositories_of(&digest).into_iter();
                let said = statement(digest, State::Revoked, by, now, reason, None);
                let said: Vec<_> = named.map(|name| (name.to_owned(), said.clone())).collect();
                if said.is_empty() {
                    return Err(ApprovalCallError::NotNamed(digest));
                }
                said
            }
        };
        for (repository, statement) in &said {
            self.add(repository, statement).await?;
        }
        let read = self.read().await;
        read.map_err(|error| ApprovalCallError::Failed(error.to_string()))?;
        let in_force = self.in_force();
        let shown = said.iter();
        let shown = shown.map(|(name, it)| self::shown(&in_force, name, it, running, now));
        Ok(v1::ListApprovalsResponse {
            approvals: shown.collect(),
            error: String::new(),
        })
    }
}

impl ClusterApprovals {
    /// Adds a statement to the object of its repository, which is made if there is none.
    async fn add(&self, repository: &str, statement: &Statement) -> Result<(), ApprovalCallError> {
        let failed = |error: ClusterError| ApprovalCallError::Failed(error.to_string());
        for _ in 0..ATTEMPTS_MAX {
            let held = self.of(repository);
            let is_new = held.is_none();
            if is_new && self.known().objects.len() >= REPOSITORIES_MAX {
                return Err(FullError::Repositories.into());
            }
            let mut held = held.unwrap_or_else(|| new(repository));
            let elsewhere = self.elsewhere(name_of(&held.object))?;
            held.document.add(statement.clone(), &elsewhere)?;
            let statements = json!(held.document.statements);
            set(&mut held.object, &["spec", "statements"], statements);
            let written = if is_new {
                self.cluster.create(IMAGE_APPROVAL, "", &held.object).await
            } else {
                let replaced = self
                    .cluster
                    .replace(IMAGE_APPROVAL, "", &held.object, false);
                replaced.await
            };
            match written {
                Ok(object) => {
                    self.keep(object);
                    return Ok(());
                }
                Err(ClusterError::Outdated(_) | ClusterError::NotFound(_)) => {
                    self.read().await.map_err(failed)?;
                }
                Err(error) => return Err(failed(error)),
            }
        }
        let problem =
            format!("the object of {repository} was changed {ATTEMPTS_MAX} times meanwhile");
        Err(ApprovalCallError::Failed(problem))
    }

    /// What objects other than `name` say.
    fn elsewhere(&self, name: &str) -> Result<Approvals, FullError> {
        let known = self.known();
        let others = known.objects.iter().filter(|(other, _)| *other != name);
        Approvals::new(others.map(|(_, held)| &held.document))
    }

    /// The object that statements about a repository are added to.
    fn of(&self, repository: &str) -> Option<Held> {
        let known = self.known();
        let own = known.objects.get(&object_name(repository));
        let own = own.filter(|held| held.document.repository == repository);
        let mut all = known.objects.values();
        own.or_else(|| all.find(|held| held.document.repository == repository))
            .cloned()
    }

    /// An object is like this now.
    fn keep(&self, object: Value) {
        let name = name_of(&object).to_owned();
        if let Ok(held) = held(object) {
            self.known().objects.insert(name, held);
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What objects say together, unless it is more than nodes take.
fn in_force(objects: &BTreeMap<String, Held>) -> Result<Approvals, String> {
    let documents = objects.values().map(|held| &held.document);
    let in_force = Approvals::new(documents).map_err(|full| full.to_string())?;
    let all = in_force.statements();
    let all = all.map(|(name, statement)| (name.to_owned(), statement.clone()));
    cluster::ClusterApprovals::new(all).map_err(|error| error.to_string())?;
    Ok(in_force)
}

fn statement(
    digest: Digest,
    state: State,
    by: String,
    at: Timestamp,
    reason: String,
    until: Option<Timestamp>,
) -> Statement {
    Statement {
        digest,
        state,
        by,
        at,
        reason,
        until,
    }
}

fn new(repository: &str) -> Held {
    Held {
        object: json!({
            "apiVersion": "monitord.io/v1",
            "kind": "ImageApproval",
            "metadata": { "name": object_name(repository) },
            "spec": { "repository": repository, "statements": [] },
        }),
        document: Document::new(repository),
        ran: Vec::new(),
    }
}

/// The name of the object of a repository: readable, and its own by a hash.
fn object_name(repository: &str) -> String {
    let plain = |letter: char| match letter.to_ascii_lowercase() {
        letter if letter.is_ascii_alphanumeric() || letter == '.' => letter,
        _ => '-',
    };
    let text: String = repository.chars().map(plain).take(NAME_BYTES_MAX).collect();
    // No part between dots may begin or end otherwise.
    let parts = text.split('.').map(|part| part.trim_matches('-'));
    let parts: Vec<&str> = parts.filter(|part| !part.is_empty()).collect();
    let hash: String = Sha256::of(repository.as_bytes()).to_string();
    let hash: String = hash.chars().take(NAME_DIGITS).collect();
    format!("{}-{hash}", parts.join("."))
}

fn name_of(object: &Value) -> &str {
    let name = object.pointer("/metadata/name").and_then(Value::as_str);
    name.unwrap_or_default()
}

fn held(object: Value) -> Result<Held, String> {
    let repository = object.pointer("/spec/repository").and_then(Value::as_str);
    let repository = repository.ok_or("spec.repository is missing")?;
    let statements = object.pointer("/spec/statements").cloned();
    let statements = serde_json::from_value(statements.unwrap_or_else(|| json!([])));
    let statements = statements.map_err(|error| format!("spec.statements: {error}"))?;
    let document = Document::of(repository, statements).map_err(|error| error.to_string())?;
    let ran = object.pointer("/status/ran").cloned();
    // Only ever a proposal of what to roll back to: without it people name the image.
    let ran = ran.and_then(|ran| serde_json::from_value(ran).ok());
    Ok(Held {
        document,
        ran: ran.unwrap_or_default(),
        object,
    })
}

fn told(repository: &str, statement: &Statement) -> v1::Approval {
    let state = match statement.state {
        State::Approved => "approved",
        State::Revoked => "revoked",
    };
    v1::Approval {
        repository: repository.to_owned(),
        digest: statement.digest.to_string(),
        state: state.to_owned(),
        by: statement.by.clone(),
        at: Some(timestamp(statement.at)),
        reason: statement.reason.clone(),
        until: statement.until.map(timestamp),
        source: "cluster".to_owned(),
        running: 0,
    }
}

fn shown(
    in_force: &Approvals,
    repository: &str,
    statement: &Statement,
    running: &HashMap<Digest, u64>,
    now: Timestamp,
) -> v1::Approval {
    let standing = in_force.standing(repository, &[statement.digest], now);
    v1::Approval {
        state: standing.of_statement(statement, now).to_owned(),
        running: running.get(&statement.digest).copied().unwrap_or(0),
        ..told(repository, statement)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_of_a_repository_has_a_name_that_the_api_server_takes() {
        let check = |repository: &str, expect: &str| {
            let name = object_name(repository);
            assert!(name.starts_with(expect), "{name}");
            assert_eq!(name.len(), expect.len() + NAME_DIGITS, "{name}");
        };
        check("registry.example/shop/web", "registry.example-shop-web-");
        check("127.0.0.1:5000/a_b", "127.0.0.1-5000-a-b-");
        check("a./-b", "a.b-");
        assert_ne!(object_name("a/b"), object_name("a-b"));
        assert!(object_name(&"x".repeat(255)).len() <= 253);
    }
}
