//! The owner's part for approvals: what is said of images, from the API, from a folder and from the
//! cluster's controller, and which running containers it is said against.

mod cluster;
mod known;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use monitor_api::v1;
use tokio::sync::{oneshot, watch};

pub(super) use self::cluster::file as cluster_file;
use self::{cluster::Cluster, known::Known};
use super::{
    node::NodeView,
    owner::Owner,
    query::Query,
    signatures::Signatures,
    state::{Creation, Done, creation},
};
use crate::{
    alerts::build::timestamp,
    api::{ApprovalCall, ApprovalCallError},
    approval::{
        Approvals, Document, FullError, REPOSITORIES_MAX, Standing, State as Said, Statement,
    },
    clock, config,
    containers::{Container, Identity, catalog::Reference, repository},
    detect::{Finding, Kind, approval},
    digest::{Digest, Sha256},
    files::{self, Folder},
    provenance::{Subject, Verdict},
    registry,
    yaml::DOCUMENT_BYTES_MAX,
};

/// How often the folder is looked at.
const FOLDER_INTERVAL: Duration = Duration::from_secs(1);
/// Where statements that the API made are kept.
const API: &str = "api";
/// The same of those that the cluster's controller told.
const CLUSTER: &str = "cluster";

/// Documents, each with the file it is from.
pub(super) type Found = Result<Vec<(String, Document)>, String>;

/// What is said of images.
pub(super) struct State {
    settings: config::Approval,
    in_force: Approvals,
    /// What the API was told, by repository, and where it is kept.
    own: BTreeMap<String, Document>,
    directory: PathBuf,
    folder: Folder,
    /// What the folder holds, with the names of its files.
    documents: Vec<(String, Document)>,
    /// Why that is not in force as it is now.
    error: Option<String>,
    /// What the controller told, on a node of a cluster.
    cluster: Option<Cluster>,
    references: watch::Receiver<Arc<[Reference]>>,
    /// What was said of each running container.
    told: HashMap<Creation, HashSet<(Kind, String)>>,
    /// Something changed since containers were last judged.
    is_due: bool,
    /// When what is said changes by itself.
    changes_at: Option<Timestamp>,
}

impl State {
    /// Reads what was said; `controller` is the address of the cluster's. Blocks.
    ///
    /// # Errors
    ///
    /// A file cannot be read or is refused: at the start nothing else could be in force.
    pub(super) fn open(
        state: &Path,
        settings: config::Approval,
        controller: Option<&str>,
        references: watch::Receiver<Arc<[Reference]>>,
    ) -> Result<Self, String> {
        let directory = state.join("approvals");
        let failed = |error: std::io::Error| format!("{}: {error}", directory.display());
        files::open_directory(&directory).map_err(failed)?;
        let paths = files::listed(&directory).map_err(failed)?;
        let own = read_all(&paths)?.into_iter();
        let own = own.map(|(_, document)| (document.repository.clone(), document));
        let mut folder = Folder::new(settings.directory.clone());
        let documents = read(&mut folder).unwrap_or_else(|| Ok(Vec::new()))?;
        let cluster = controller.map(|address| Cluster::open(state, address));
        let mut state = Self {
            settings,
            in_force: Approvals::default(),
            own: own.collect(),
            directory,
            folder,
            documents,
            error: None,
            cluster,
            references,
            told: HashMap::new(),
            is_due: true,
            changes_at: None,
        };
        let mut combined = state.combined();
        if let (Err(error), Some(cluster)) = (&combined, &mut state.cluster) {
            // What people said on this node comes before what can be told again.
            cluster.refuse(&error.to_string());
            combined = state.combined();
        }
        state.in_force = combined.map_err(|error| error.to_string())?;
        Ok(state)
    }

    fn combined(&self) -> Result<Approvals, FullError> {
        let documents = self.documents.iter().map(|(_, document)| document);
        let told = self.cluster.iter().flat_map(Cluster::documents);
        Approvals::new(self.own.values().chain(documents).chain(told))
    }

    /// Why something of it is not in force.
    fn error(&self) -> String {
        let cluster = self.cluster.as_ref();
        let errors = [
            self.error.as_ref(),
            cluster.and_then(|it| it.error.as_ref()),
        ];
        let errors: Vec<&str> = errors.into_iter().flatten().map(String::as_str).collect();
        errors.join("; ")
    }

    /// What is said of images, wherever it is kept.
    pub(super) fn in_force(&self) -> &Approvals {
        &self.in_force
    }

    /// Containers are to be judged anew.
    pub(super) fn make_due(&mut self) {
        self.is_due = true;
    }

    /// The account of them.
    pub(super) fn status(&self) -> v1::status::Approvals {
        let against = self
            .told
            .values()
            .filter(|told| told.iter().any(|(kind, _)| *kind == Kind::ImageUnapproved));
        v1::status::Approvals {
            repositories: self.in_force.repositories(),
            unapproved: u64::try_from(against.count()).unwrap_or(u64::MAX),
            error: self.error(),
        }
    }

    /// Adds statements to what the API was told, and keeps them on disk. Blocks shortly: a person waits
    /// for it.
    fn keep(&mut self, said: Vec<(String, Statement)>) -> Result<(), ApprovalCallError> {
        let elsewhere = self.documents.iter().map(|(_, document)| document);
        let elsewhere = Approvals::new(elsewhere)?;
        for (repository, statement) in said {
            let known = self.own.get(&repository).cloned();
            let mut document = known.unwrap_or_else(|| Document::new(&repository));
            if !self.own.contains_key(&repository) && self.own.len() >= REPOSITORIES_MAX {
                return Err(FullError::Repositories.into());
            }
            document.add(statement, &elsewhere)?;
            let text = document.to_yaml().map_err(ApprovalCallError::Failed)?;
            let name = Sha256::of(repository.as_bytes());
            let path = self.directory.join(format!("{name}.yaml"));
            tokio::task::block_in_place(|| files::replace(&path, text.as_bytes())).map_err(
                |error| {
                    ApprovalCallError::Failed(format!("cannot write {}: {error}", path.display()))
                },
            )?;
            self.own.insert(repository, document);
            self.in_force = self.combined()?;
        }
        self.is_due = true;
        Ok(())
    }

    /// As the API shows a statement.
    fn shown(
        &self,
        repository: &str,
        statement: &Statement,
        running: &HashMap<Digest, u64>,
        now: Timestamp,
    ) -> v1::Approval {
        let digest = statement.digest;
        let standing = self.in_force.standing(repository, &[digest], now);
        let state = standing.of_statement(statement, now);
        let says = |document: &Document| {
            document.repository == repository && document.statements.contains(statement)
        };
        let file = self.documents.iter().find(|(_, it)| says(it));
        let mut told = self.cluster.iter().flat_map(Cluster::documents);
        let source = match file {
            Some((path, _)) => path,
            None if told.any(says) => CLUSTER,
            None => API,
        };
        v1::Approval {
            repository: repository.to_owned(),
            digest: digest.to_string(),
            state: state.to_owned(),
            by: statement.by.clone(),
            at: Some(timestamp(statement.at)),
            reason: statement.reason.clone(),
            until: statement.until.map(timestamp),
            source: source.to_owned(),
            running: running.get(&digest).copied().unwrap_or(0),
        }
    }

    /// What is to be said of a container.
    fn judge(
        &self,
        container: &Arc<Container>,
        known: &Known<'_>,
        signatures: &Signatures,
        now: Timestamp,
    ) -> Vec<Finding> {
        let reference = container.image_reference.as_deref().unwrap_or_default();
        let name = repository(reference);
        let images = known.candidates(container);
        let facts = approval::Facts {
            repository: name,
            standing: self.in_force.worst(name, &images, now),
            is_default_deny: self.is_default_deny(),
            untrusted_registry: self.untrusted_registry(reference),
            unsigned: signatures.unsigned(container),
            denied_base: known.denied_base(container, &self.settings.denied_bases),
            moved_to: known.moved_to(container),
        };
        approval::judge(container, &facts, clock::boot_ns())
    }

    fn is_default_deny(&self) -> bool {
        self.settings.default == config::Unmanaged::Deny
    }

    /// The registry of a reference, if those that are trusted are named and it is none of them.
    fn untrusted_registry<'a>(&self, reference: &'a str) -> Option<&'a str> {
        let trusted = &self.settings.registries;
        if trusted.is_empty() {
            return None;
        }
        let host = registry::host(reference);
        (!trusted.iter().any(|it| it == host)).then_some(host)
    }
}

/// Reads documents. Blocks.
fn read_all(paths: &[PathBuf]) -> Found {
    let documents = files::parse_all(paths, DOCUMENT_BYTES_MAX, Document::parse)?;
    let names = paths.iter().map(|path| path.display().to_string());
    Ok(names.zip(documents).collect())
}

/// The folder's documents, if they are not what they were before.
fn read(folder: &mut Folder) -> Option<Found> {
    Some(read_all(&folder.changed()?))
}

/// Checks the approvals that a configuration names. Blocks.
///
/// # Errors
///
/// Why they are refused, with the file.
pub fn check(settings: &config::Approval) -> Result<(), String> {
    let mut folder = Folder::new(settings.directory.clone());
    let documents = read(&mut folder).unwrap_or_else(|| Ok(Vec::new()))?;
    let documents = documents.iter().map(|(_, document)| document);
    Approvals::new(documents)
        .map(drop)
        .map_err(|error| error.to_string())
}

impl Owner {
    /// Judges all running containers anew if something changed, and looks at the folder if it is time.
    pub(super) fn approval_tick(&mut self) {
        let now = Timestamp::now();
        let approvals = &mut self.state.approvals;
        let is_over = approvals.changes_at.is_some_and(|at| at <= now);
        let has_moved = approvals.references.has_changed().unwrap_or(false);
        if approvals.is_due || is_over || has_moved {
            self.approval_judge(now);
        }
        let approvals = &mut self.state.approvals;
        let Some(mut folder) = approvals.folder.if_due(FOLDER_INTERVAL) else {
            return;
        };
        self.state.in_flight.spawn_blocking(move || {
            let found = read(&mut folder);
            Done::Approvals(Box::new((folder, found)))
        });
    }

    /// Says what is to be said of running containers and was not said before.
    fn approval_judge(&mut self, now: Timestamp) {
        let (approvals, signatures) = (&mut self.state.approvals, &self.state.signatures);
        approvals.is_due = false;
        approvals.changes_at = approvals.in_force.next_change(now);
        let references = Arc::clone(&approvals.references.borrow_and_update());
        let known = Known::new(&references);
        let mut told = HashMap::new();
        let mut new = Vec::new();
        for (container, is_running) in self.inventory.containers() {
            if !is_running || container.identity == Identity::Pending {
                continue;
            }
            let before = approvals.told.get(&creation(container));
            let mut own = HashSet::new();
            for finding in approvals.judge(container, &known, signatures, now) {
                let said = (finding.kind, finding.details.clone().unwrap_or_default());
                if !before.is_some_and(|before| before.contains(&said)) {
                    new.push(finding);
                }
                own.insert(said);
            }
            if !own.is_empty() {
                told.insert(creation(container), own);
            }
        }
        approvals.told = told;
        for finding in new {
            self.raise(&finding);
        }
    }

    /// Takes in what was found in the folder.
    pub(super) fn approval_folder(&mut self, folder: Folder, found: Option<Found>) {
        let approvals = &mut self.state.approvals;
        approvals.folder = folder;
        let Some(found) = found else { return };
        let put = found.and_then(|documents| {
            let before = std::mem::replace(&mut approvals.documents, documents);
            approvals.combined().map_err(|error| {
                approvals.documents = before;
                error.to_string()
            })
        });
        match put {
            Ok(in_force) => {
                approvals.in_force = in_force;
                approvals.error = None;
                approvals.is_due = true;
                tracing::info!("approvals were read anew and are in force");
            }
            Err(error) => {
                tracing::error!(
                    error,
                    "approvals are refused; those before them stay in force"
                );
                approvals.error = Some(error);
            }
        }
    }

    /// Running containers by each digest of an image that they may be of.
    fn approval_running(&self, known: &Known<'_>) -> HashMap<Digest, u64> {
        let mut running: HashMap<Digest, u64> = HashMap::new();
        for (container, is_running) in self.inventory.containers() {
            if !is_running {
                continue;
            }
            let images = known.candidates(container).into_iter();
            let digests: HashSet<Digest> = images.flatten().collect();
            for digest in digests {
                *running.entry(digest).or_default() += 1;
            }
        }
        running
    }

    /// Answers a call about approvals.
    pub(super) fn approval_call(
        &mut self,
        call: ApprovalCall,
    ) -> Result<v1::ListApprovalsResponse, ApprovalCallError> {
        let references = Arc::clone(&self.state.approvals.references.borrow());
        let running = self.approval_running(&Known::new(&references));
        let approvals = &mut self.state.approvals;
        let now = Timestamp::now();
        if let Some(cluster) = &approvals.cluster
            && call != ApprovalCall::List
        {
            return Err(ApprovalCallError::Cluster(cluster.address.clone()));
        }
        let said = match call {
            ApprovalCall::List => {
                let all = approvals.in_force.statements();
                let shown = all.map(|(name, it)| approvals.shown(name, it, &running, now));
                return Ok(v1::ListApprovalsResponse {
                    approvals: shown.collect(),
                    error: approvals.error(),
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
                let statement = Statement {
                    digest,
                    state: Said::Approved,
                    by,
                    at: now,
                    reason,
                    until,
                };
                vec![(repository, statement)]
            }
            ApprovalCall::Revoke { digest, reason, by } => {
                let statement = Statement {
                    digest,
                    state: Said::Revoked,
                    by,
                    at: now,
                    reason,
                    until: None,
                };
                let named = approvals.in_force.repositories_of(&digest).into_iter();
                let said: Vec<_> = named
                    .map(|name| (name.to_owned(), statement.clone()))
                    .collect();
                if said.is_empty() {
                    return Err(ApprovalCallError::NotNamed(digest));
                }
                said
            }
        };
        approvals.keep(said.clone())?;
        let shown = said.iter();
        let shown = shown.map(|(name, it)| approvals.shown(name, it, &running, now));
        let answer = v1::ListApprovalsResponse {
            approvals: shown.collect(),
            error: String::new(),
        };
        self.approval_judge(now);
        Ok(answer)
    }

    /// What is said of an image in each repository that a reference names it by.
    pub(super) fn approval_of(&self, manifest: Digest) -> v1::VerifyApprovalResponse {
        let approvals = &self.state.approvals;
        let references = Arc::clone(&approvals.references.borrow());
        let known = Known::new(&references);
        let digests = known.digests(manifest, None);
        let running = self.approval_running(&known);
        let now = Timestamp::now();
        let repositories: BTreeSet<&str> = known.names(&manifest).map(repository).collect();
        let verdicts = repositories.into_iter().map(|name| {
            let standing = approvals.in_force.standing(name, &digests, now);
            let approval = match standing {
                Standing::Approved(said) | Standing::Expired(said) | Standing::Revoked(said) => {
                    Some(approvals.shown(name, said, &running, now))
                }
                Standing::Unmanaged | Standing::Unapproved => None,
            };
            v1::verify_approval_response::Verdict {
                repository: name.to_owned(),
                state: standing.name().to_owned(),
                approval,
                signature: None,
                may_run: match standing {
                    Standing::Approved(_) => true,
                    Standing::Unmanaged => !approvals.is_default_deny(),
                    Standing::Expired(_) | Standing::Revoked(_) | Standing::Unapproved => false,
                },
            }
        });
        let verdicts = verdicts.collect();
        let indexes = digests.iter().filter(|digest| **digest != manifest);
        v1::VerifyApprovalResponse {
            manifest_digest: manifest.to_string(),
            index_digests: indexes.map(Digest::to_string).collect(),
            verdicts,
        }
    }
}

impl NodeView {
    /// See [`Node::approvals`](crate::api::Node::approvals).
    pub(super) async fn ask_approvals(
        &self,
        call: ApprovalCall,
    ) -> Result<v1::ListApprovalsResponse, ApprovalCallError> {
        let (answer_in, answer) = oneshot::channel();
        let query = Query::Approvals(call, answer_in);
        // Both fail only while the daemon stops.
        (self.queries.send(query).await).map_err(|_| ApprovalCallError::Stopping)?;
        answer.await.map_err(|_| ApprovalCallError::Stopping)?
    }

    /// See [`Node::approval_of`](crate::api::Node::approval_of).
    pub(super) async fn ask_approval_of(
        &self,
        image: &str,
    ) -> Result<v1::VerifyApprovalResponse, ApprovalCallError> {
        let (namespace, id) = self.find(image).await?;
        let (answer_in, answer) = oneshot::channel();
        let query = Query::ApprovalOf(id.manifest, answer_in);
        (self.queries.send(query).await).map_err(|_| ApprovalCallError::Stopping)?;
        let mut answer = answer.await.map_err(|_| ApprovalCallError::Stopping)?;
        let index = answer.index_digests.first();
        let index = index.and_then(|digest| digest.parse().ok());
        for verdict in &mut answer.verdicts {
            let subject = Subject {
                runtime_namespace: namespace.clone(),
                repository: verdict.repository.clone(),
                manifest: id.manifest,
                index,
            };
            let is_required = self.provenance.is_required(&subject.repository);
            let known = self.provenance.verify_now(&subject).await;
            verdict.may_run &= !is_required || known.signature.is_valid();
            verdict.signature = Some(signature(&known, is_required));
        }
        Ok(answer)
    }
}

/// As the API shows what is known of an image's signatures.
fn signature(known: &Verdict, is_required: bool) -> v1::verify_approval_response::Signature {
    let attestations = known.attestations.iter();
    let attestations = attestations.map(|it| v1::verify_approval_response::Attestation {
        digest: it.digest.to_string(),
        kind: it.kind.clone(),
        target: it.target.name().to_owned(),
    });
    v1::verify_approval_response::Signature {
        state: known.signature.name().to_owned(),
        reason: known.signature.to_string(),
        required: is_required,
        attestations: attestations.collect(),
        down: known.down.iter().map(ToString::to_string).collect(),
    }
}
