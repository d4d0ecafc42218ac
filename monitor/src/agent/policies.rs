//! The owner's part for policies: which are in force, what they add and change, and what is recorded
//! for trying others.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use monitor_api::v1;
use serde_json::Value;
use tokio::sync::{broadcast, oneshot};
use ulid::Ulid;

use super::{node::NodeView, owner::Owner, query::Query, state::Done};
use crate::{
    activity::{Act, Activity},
    alerts::{build, build::timestamp},
    api::{PolicyCall, PolicyCallError},
    config,
    containers::Container,
    detect::{Finding, Kind, Severity, unexpected},
    files::{self, Folder},
    policy::{
        Added, Asked, DEFAULT, Document, Exception, Fate, On, Policies,
        document::{EXCEPTIONS_MAX, Selector},
        facts, like,
        recording::Recorded,
    },
    profile::Deviation,
    yaml::DOCUMENT_BYTES_MAX,
};

/// How often the folder is looked at.
const FOLDER_INTERVAL: Duration = Duration::from_secs(1);
/// Lines that wait for the clients of a recording; a client that is behind by more loses the oldest, and
/// is told how many.
pub(super) const RECORDED_MAX: usize = 4096;
/// The policy of exceptions that the API made.
const ADDED: &str = "exceptions";
/// The longest that an exception may hold.
const EXCEPTION_TIME_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// What is in a folder: policies, or why they are refused.
pub(super) type Found = Result<Vec<Document>, String>;

/// The policies in force.
pub(super) struct State {
    in_force: Policies,
    settings: config::Policies,
    folder: Folder,
    /// When it was last looked whose time is over.
    ticked: Timestamp,
    /// What the folder holds.
    documents: Vec<Document>,
    /// What the API made.
    added: Document,
    /// Where that is kept.
    file: PathBuf,
    /// Why the folder's policies are not in force as they are now.
    error: Option<String>,
    read_at: Timestamp,
    /// Lines for clients that record.
    recording: broadcast::Sender<Arc<str>>,
    counts: Counts,
}

/// What became of findings.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    /// Added by rules.
    added: u64,
    /// Not told for an exception.
    excepted: u64,
    /// Told with another severity.
    changed: u64,
    /// Times that policies were refused.
    refused: u64,
}

impl State {
    /// Reads what is in force. Blocks.
    ///
    /// # Errors
    ///
    /// The folder's policies are refused: at the start nothing else could be in force.
    pub(super) fn open(state: &Path, settings: config::Policies) -> Result<Self, String> {
        let file = state.join("exceptions.yaml");
        let added = match files::read_text(&file, DOCUMENT_BYTES_MAX) {
            Ok(text) => {
                Document::parse(&text).map_err(|error| format!("{}: {error}", file.display()))?
            }
            Err(_) if !file.exists() => Document::new(ADDED),
            Err(error) => return Err(format!("{}: {error}", file.display())),
        };
        let mut folder = Folder::new(settings.directory.clone());
        let documents = read(&mut folder).unwrap_or_else(|| Ok(Vec::new()))?;
        let in_force = combined(&settings, &documents, &added)?;
        Ok(Self {
            in_force,
            settings,
            folder,
            ticked: Timestamp::now(),
            documents,
            added,
            file,
            error: None,
            read_at: Timestamp::now(),
            recording: broadcast::Sender::new(RECORDED_MAX),
            counts: Counts::default(),
        })
    }

    /// Puts other documents in force, or says why not.
    fn put(&mut self, documents: Vec<Document>, added: Document) -> Result<(), String> {
        let mut in_force = combined(&self.settings, &documents, &added)?;
        in_force.follow(&self.in_force);
        self.in_force = in_force;
        (self.documents, self.added) = (documents, added);
        Ok(())
    }

    /// The account of them.
    pub(super) fn status(&self) -> v1::status::Policies {
        let count = |length: usize| u64::try_from(length).unwrap_or(u64::MAX);
        let rules = self.in_force.rules();
        let stopped = rules.iter().filter(|it| it.stopped.is_some()).count()
            + (self.in_force.exceptions().iter())
                .filter(|it| it.stopped.is_some())
                .count();
        v1::status::Policies {
            rules: count(rules.len()),
            exceptions: count(self.in_force.exceptions().len()),
            stopped: count(stopped),
            added: self.counts.added,
            excepted: self.counts.excepted,
            changed: self.counts.changed,
            refused: self.counts.refused,
            error: self.error.clone().unwrap_or_default(),
        }
    }
}

/// Checks the policies that a configuration names. Blocks.
///
/// # Errors
///
/// Why they are refused, with the file.
pub fn check(settings: &config::Policies) -> Result<(), String> {
    let mut folder = Folder::new(settings.directory.clone());
    let documents = read(&mut folder).unwrap_or_else(|| Ok(Vec::new()))?;
    combined(settings, &documents, &Document::new(ADDED)).map(drop)
}

fn combined(
    settings: &config::Policies,
    documents: &[Document],
    added: &Document,
) -> Result<Policies, String> {
    let default = settings.default.then(|| Document::parse(DEFAULT));
    let default = default.transpose().map_err(|error| error.to_string())?;
    // What people made an exception of comes before what others wrote.
    let all: Vec<Document> = [added.clone()]
        .into_iter()
        .chain(documents.iter().cloned())
        .chain(default)
        .collect();
    Policies::new(&all).map_err(|error| error.to_string())
}

/// The folder's policies, if they are not what they were before.
fn read(folder: &mut Folder) -> Option<Found> {
    Some(files::parse_all(
        &folder.changed()?,
        DOCUMENT_BYTES_MAX,
        Document::parse,
    ))
}

/// What policies make of an act.
#[derive(Default)]
pub(super) struct Ruled {
    /// What rules add.
    pub(super) findings: Vec<Finding>,
    /// Rules may say another thing of the same the next time.
    pub(super) may_change: bool,
}

impl Owner {
    /// What rules add of what a container did.
    pub(super) fn policy_weigh(&mut self, activity: &Activity<'_>) -> Ruled {
        let (on, kind, access) = match &activity.act {
            // The runtime's own steps are nobody's.
            Act::Exec { verdict: None, .. } => return Ruled::default(),
            Act::Exec { .. } => (On::Exec, Kind::ExecUnexpected, None),
            Act::Open { open, .. } => {
                let access = match (open.access.read, open.access.write) {
                    (true, true) => "readwrite",
                    (false, true) => "write",
                    _ => "read",
                };
                (On::Open, Kind::OpenSensitive, Some(access))
            }
            Act::Connect(_) => (On::Connect, Kind::ConnectSensitive, None),
        };
        let policies = &mut self.state.policies;
        let asked = Asked::of(activity.container);
        if !policies.looks_at(on, &asked) {
            return Ruled::default();
        }
        let is_recorded = policies.recording.receiver_count() > 0;
        let nothing = Deviation {
            message: String::new(),
            nearby: Vec::new(),
            is_partial: false,
        };
        let finding = Finding {
            kind,
            ..unexpected::finding(activity, nothing)
        };
        let alert = build(&finding, &self.node, Timestamp::now(), Ulid::nil());
        let facts = facts::of(on, &alert, access);
        let may_change = is_recorded || policies.in_force.may_change(on, &asked);
        let added = policies.added(on, &asked, facts);
        let findings = added.into_iter().map(|added| Finding {
            severity: added.severity,
            message: added.message,
            rule: Some(added.rule),
            ..finding.clone()
        });
        Ruled {
            findings: findings.collect(),
            may_change,
        }
    }

    /// Whether there is an exception of a finding, which then is not told and stands in the way of
    /// nothing.
    pub(super) fn policy_excepts(&mut self, finding: &Finding) -> bool {
        let policies = &mut self.state.policies;
        let asked = Asked::of(&finding.container);
        if !policies.in_force.has_exceptions(&asked) {
            return false;
        }
        let now = Timestamp::now();
        let alert = build(finding, &self.node, now, Ulid::nil());
        let facts = facts::of(On::Finding, &alert, None);
        let is_excepted = policies.in_force.exception(&asked, &facts, now).is_some();
        policies.counts.excepted += u64::from(is_excepted);
        // Others are recorded when they are raised.
        if is_excepted && policies.recording.receiver_count() > 0 {
            policies.record(On::Finding, &asked, facts);
        }
        is_excepted
    }

    /// The severity that a finding is to be told with, and the rule that gives it another one; `None` if
    /// an exception has it that it is not told.
    pub(super) fn policy_fate(
        &mut self,
        container: &Container,
        alert: &v1::Alert,
    ) -> Option<Option<(Severity, String)>> {
        let policies = &mut self.state.policies;
        let asked = Asked::of(container);
        let facts = || facts::of(On::Finding, alert, None);
        if policies.recording.receiver_count() > 0 {
            policies.record(On::Finding, &asked, facts());
        }
        match policies.in_force.fate(&asked, facts, Timestamp::now()) {
            Fate::Told => Some(None),
            Fate::Severity(severity, rule) => {
                policies.counts.changed += 1;
                Some(Some((severity, rule)))
            }
            Fate::Excepted(_) => {
                policies.counts.excepted += 1;
                None
            }
        }
    }

    /// Has an alert be responded to, by the first of its rules that asks for that.
    pub(super) fn policy_respond(&self, alert: &v1::Alert, rules: impl Iterator<Item = String>) {
        let in_force = &self.state.policies.in_force;
        let mut asked = rules.map(|rule| (self.causes.mode(in_force.respond(&rule)), rule));
        if let Some((mode, rule)) = asked.find(|(mode, _)| !mode.is_off()) {
            self.causes.add(&rule, alert, mode);
        }
    }

    /// Takes note of exceptions whose time is over, and looks at the folder, when it is time or `is_asked`
    /// to.
    pub(super) fn policy_tick(&mut self, is_asked: bool) {
        let policies = &mut self.state.policies;
        let now = Timestamp::now();
        let since = std::mem::replace(&mut policies.ticked, now);
        if policies.in_force.has_expired(since, now) {
            tracing::info!("the time of an exception is over");
            self.policies_changed();
        }
        let policies = &mut self.state.policies;
        let interval = if is_asked {
            Duration::ZERO
        } else {
            FOLDER_INTERVAL
        };
        let Some(mut folder) = policies.folder.if_due(interval) else {
            return;
        };
        self.state.in_flight.spawn_blocking(move || {
            let found = read(&mut folder);
            Done::Policies(Box::new((folder, found)))
        });
    }

    /// Takes in what was found in the folder.
    pub(super) fn policy_folder(&mut self, folder: Folder, found: Option<Found>) {
        let policies = &mut self.state.policies;
        policies.folder = folder;
        let Some(found) = found else { return };
        let added = policies.added.clone();
        match found.and_then(|documents| policies.put(documents, added)) {
            Ok(()) => {
                policies.error = None;
                policies.read_at = Timestamp::now();
                let rules = policies.in_force.rules().len();
                tracing::info!(rules, "policies were read anew and are in force");
                self.policies_changed();
            }
            Err(error) => {
                policies.counts.refused += 1;
                tracing::error!(
                    error,
                    "policies are refused; those before them stay in force"
                );
                policies.error = Some(error);
            }
        }
    }

    /// Answers a call about policies.
    pub(super) fn policy_call(
        &mut self,
        call: PolicyCall,
    ) -> Result<v1::ListPoliciesResponse, PolicyCallError> {
        let policies = &mut self.state.policies;
        match call {
            PolicyCall::List => return Ok(policies.said(None)),
            PolicyCall::AddException {
                alert,
                until,
                reason,
                owner,
            } => {
                let exception = exception(&alert, until, reason, owner)?;
                let id = format!("{ADDED}.{}", exception.name);
                let mut added = policies.added.clone();
                added.exceptions.retain(|it| it.until > Timestamp::now());
                if added.exceptions.len() >= EXCEPTIONS_MAX {
                    return Err(PolicyCallError::Full(EXCEPTIONS_MAX));
                }
                added.exceptions.push(exception);
                policies.keep(added)?;
                let said = policies.said(Some(&id));
                self.policies_changed();
                return Ok(said);
            }
            PolicyCall::RemoveException { id } => {
                let mut added = policies.added.clone();
                let before = added.exceptions.len();
                let name = id.strip_prefix(ADDED).and_then(|it| it.strip_prefix('.'));
                added.exceptions.retain(|it| Some(it.name.as_str()) != name);
                if added.exceptions.len() == before {
                    return Err(PolicyCallError::NoException(id));
                }
                policies.keep(added)?;
            }
        }
        self.policies_changed();
        Ok(v1::ListPoliciesResponse::default())
    }

    /// Has all be judged again, also what was raised of processes that still run.
    fn policies_changed(&mut self) {
        self.state.raised.clear();
        self.weigh_again();
        self.posture_again();
    }

    /// Lines of what happens, for a client that records.
    pub(super) fn policy_record(&mut self) -> broadcast::Receiver<Arc<str>> {
        let receiver = self.state.policies.recording.subscribe();
        // What was judged good before is told again, so that the recording has it.
        self.weigh_again();
        receiver
    }
}

impl State {
    /// Whether rules look at this of a container.
    pub(super) fn looks_at(&self, on: On, asked: &Asked<'_>) -> bool {
        self.recording.receiver_count() > 0 || self.in_force.looks_at(on, asked)
    }

    /// What rules add, which is recorded.
    pub(super) fn added(&mut self, on: On, asked: &Asked<'_>, facts: Value) -> Vec<Added> {
        let added = self.in_force.added(on, asked, &facts);
        self.counts.added += u64::try_from(added.len()).unwrap_or(u64::MAX);
        if self.recording.receiver_count() > 0 {
            self.record(on, asked, facts);
        }
        added
    }

    fn record(&self, on: On, asked: &Asked<'_>, facts: Value) {
        let recorded = Recorded {
            time: Timestamp::now(),
            on,
            who: asked.get().clone(),
            facts,
        };
        // Nobody may be left to take it.
        let _ = self.recording.send(recorded.to_line().into());
    }

    /// Puts exceptions in force and keeps them on disk. Blocks shortly: a person waits for it.
    fn keep(&mut self, added: Document) -> Result<(), PolicyCallError> {
        let failed = PolicyCallError::Failed;
        let text = added.to_yaml().map_err(failed)?;
        let before = self.added.clone();
        self.put(self.documents.clone(), added).map_err(failed)?;
        let written = tokio::task::block_in_place(|| files::replace(&self.file, text.as_bytes()));
        if let Err(error) = written {
            // As it is on disk.
            let put = self.put(self.documents.clone(), before);
            put.map_err(failed)?;
            return Err(failed(format!(
                "cannot write {}: {error}",
                self.file.display()
            )));
        }
        Ok(())
    }

    /// What is in force; of exceptions only that with this id, if one is given.
    fn said(&self, id: Option<&str>) -> v1::ListPoliciesResponse {
        let now = Timestamp::now();
        let rules = self.in_force.rules().iter().map(|rule| v1::PolicyRule {
            id: rule.id.clone(),
            on: rule.written.on.name().to_owned(),
            condition: rule.written.when.clone().unwrap_or_default(),
            severity: rule.written.severity.name().to_owned(),
            respond: rule.written.respond.name().to_owned(),
            held: rule.held,
            failed: rule.failed(),
            stopped: rule.stopped.clone().unwrap_or_default(),
        });
        let exceptions = self.in_force.exceptions().iter();
        let exceptions = exceptions.filter(|it| id.is_none_or(|id| it.id == id));
        let exceptions = exceptions.map(|it| v1::PolicyException {
            id: it.id.clone(),
            owner: it.written.owner.clone(),
            reason: it.written.reason.clone(),
            until: Some(timestamp(it.written.until)),
            condition: it.written.when.clone(),
            repository: it.written.selector.repository.clone().unwrap_or_default(),
            held: it.held,
            failed: it.failed(),
            expired: it.written.until <= now,
            removable: it.id.starts_with(&format!("{ADDED}.")),
            stopped: it.stopped.clone().unwrap_or_default(),
        });
        v1::ListPoliciesResponse {
            rules: if id.is_none() {
                rules.collect()
            } else {
                Vec::new()
            },
            exceptions: exceptions.collect(),
            error: self.error.clone().unwrap_or_default(),
            read_at: Some(timestamp(self.read_at)),
        }
    }
}

/// An exception of findings like an alert's.
fn exception(
    alert: &v1::Alert,
    until: Timestamp,
    reason: String,
    owner: String,
) -> Result<Exception, PolicyCallError> {
    let now = Timestamp::now();
    let latest = now
        .checked_add(EXCEPTION_TIME_MAX)
        .unwrap_or(Timestamp::MAX);
    if until <= now || until > latest {
        return Err(PolicyCallError::Until);
    }
    let image = alert.image.as_ref();
    let repository = image.map(|it| crate::containers::repository(&it.reference).to_owned());
    Ok(Exception {
        name: Ulid::new().to_string().to_lowercase(),
        owner,
        reason,
        until,
        selector: Selector {
            repository: repository.filter(|it| !it.is_empty()),
            ..Selector::default()
        },
        when: like(alert),
    })
}

impl NodeView {
    /// See [`Node::policies`](crate::api::Node::policies).
    pub(super) async fn ask_policies(
        &self,
        call: PolicyCall,
    ) -> Result<v1::ListPoliciesResponse, PolicyCallError> {
        let (answer_in, answer) = oneshot::channel();
        let query = Query::Policies(call, answer_in);
        // Both fail only while the daemon stops.
        (self.queries.send(query).await).map_err(|_| PolicyCallError::Stopping)?;
        answer.await.map_err(|_| PolicyCallError::Stopping)?
    }

    /// See [`Node::record`](crate::api::Node::record).
    pub(super) async fn begin_recording(&self) -> Option<broadcast::Receiver<Arc<str>>> {
        let (answer_in, answer) = oneshot::channel();
        self.queries.send(Query::Record(answer_in)).await.ok()?;
        answer.await.ok()
    }
}
