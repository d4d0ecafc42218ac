//! Takes orders about workloads, and judges them by what the cluster, the nodes and registries say.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use monitor_api::v1;
use tokio::time::timeout;
use ulid::Ulid;

use super::{
    approvals::ClusterApprovals,
    cluster::{Cluster, ClusterError},
    config::Settings,
    images,
    nodes::{Nodes, digests},
    owners,
    plan::{self, Facts, Known, Owner, Plan},
    pods,
    record::Record,
    view,
    workload::{Change, Kind, LABEL, Target, Workload},
};
use crate::{
    audit::Who,
    digest::Digest,
    provenance::{Provenance, Subject},
    registry::Registry,
    respond::{
        By, Kept as _, Ledger, Order, Outlet, Pace, Planned, Refusal, Request, Signature, State,
    },
};

/// Workloads with an order that are read when a controller begins to lead.
const WORKLOADS_MAX: usize = 10_000;
/// Attempts to change a workload whose status others change meanwhile.
const ATTEMPTS_MAX: u32 = 5;
/// How long the sources of signatures may take.
const SIGNATURE_TIME_MAX: Duration = Duration::from_secs(20);

/// Takes orders about workloads and carries them out, each in a task of its own.
pub struct Controller {
    pub(super) cluster: Cluster,
    pub(super) nodes: Nodes,
    pub(super) approvals: Arc<ClusterApprovals>,
    pub(super) provenance: Provenance,
    pub(super) registry: Option<Registry>,
    pub(super) settings: Settings,
    pub(super) outlet: Outlet,
    /// Its own.
    pub(super) namespace: String,
    pub(super) ledger: Mutex<Ledger<Record>>,
    /// When policies were responded to last.
    pub(super) pace: Mutex<Pace>,
    /// One order begins after the other, so that none of a workload begins beside another.
    pub(super) beginning: tokio::sync::Mutex<()>,
}

impl Controller {
    /// Reads the orders that are written at workloads, and goes on with those that are under way.
    ///
    /// # Errors
    ///
    /// The API server does not give them.
    pub async fn resume(self: &Arc<Self>) -> anyhow::Result<()> {
        for kind in Kind::ALL {
            let all = self
                .cluster
                .list(kind.into(), "", LABEL, WORKLOADS_MAX)
                .await;
            let (found, _) = match all {
                Err(error @ ClusterError::TooMany { .. }) => {
                    tracing::warn!(%error, "of orders that have ended none is known");
                    let running = format!("{LABEL}={}", State::Running.name());
                    self.cluster
                        .list(kind.into(), "", &running, WORKLOADS_MAX)
                        .await?
                }
                all => all?,
            };
            for object in found {
                let Some(workload) = Workload::of(kind, object) else {
                    continue;
                };
                match Record::of(&workload) {
                    Ok(Some(mut record)) => {
                        record.not_after(Timestamp::now());
                        self.ledger().keep(record);
                    }
                    Ok(None) => {}
                    Err(problem) => {
                        tracing::warn!(workload = %workload.name, problem, "what is written there as an order is none");
                    }
                }
            }
        }
        let is_running = |record: &&Record| record.is_running();
        let unfinished: Vec<Record> =
            (self.ledger().orders().filter(is_running).cloned()).collect();
        for record in unfinished {
            tracing::warn!(
                order = record.id,
                workload = %record.workload(),
                step = record.step.name(),
                "going on with a rollback that was under way"
            );
            tokio::spawn(Arc::clone(self).go_on_with(record.id));
        }
        Ok(())
    }

    /// Every plan and order, oldest first.
    pub fn list(&self) -> Vec<v1::Rollback> {
        let ledger = self.ledger();
        let plans = ledger.plans(Timestamp::now());
        let plans = plans.map(|(id, planned)| view::plan(id, planned));
        let mut all: Vec<_> = ledger.orders().map(view::order).chain(plans).collect();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all
    }

    /// Takes an order. Of one that is applied this returns when the workload names the image.
    ///
    /// # Errors
    ///
    /// See [`Refusal`].
    pub async fn order(self: &Arc<Self>, order: Order, who: Who) -> Result<v1::Rollback, Refusal> {
        match order {
            Order::Plan(request) => self.plan(request, who.into()).await,
            // To its end, also if its caller goes: nothing else would carry it out.
            Order::Apply { plan } => {
                let applying = Arc::clone(self).apply(plan, who.into());
                let applied = tokio::spawn(applying).await;
                applied.unwrap_or(Err(Refusal::Stopping))
            }
            Order::Abort { order } => self.abort(&order),
        }
    }

    async fn plan(&self, request: Request, by: By) -> Result<v1::Rollback, Refusal> {
        let (plan, _) = self.made(&request).await?;
        let planned = Planned {
            plan,
            request,
            by,
            at: Timestamp::now(),
        };
        Ok(self.keep_plan(planned))
    }

    /// Keeps a plan under an id of its own.
    pub(super) fn keep_plan(&self, planned: Planned<Plan>) -> v1::Rollback {
        let id = Ulid::new().to_string();
        let told = view::plan(&id, &planned);
        self.ledger().add_plan(id, planned);
        told
    }

    async fn apply(self: Arc<Self>, id: String, by: By) -> Result<v1::Rollback, Refusal> {
        let _turn = self.beginning.lock().await;
        let planned = self.ledger().planned(&id, Timestamp::now())?;
        let limits = self.settings.limits();
        (self.ledger()).may_begin(&planned.plan, &limits, Timestamp::now())?;
        let (plan, workload) = self.made(&planned.request).await?;
        // A node that reports late changes what is known, not what is.
        let was = Plan {
            from: plan.from,
            ..planned.plan
        };
        if plan != was {
            return Err(Refusal::Outdated(difference(&was, &plan)));
        }
        // It may have been given up meanwhile, which was confirmed.
        let Some(planned) = self.ledger().remove_plan(&id) else {
            return Err(Refusal::NoPlan(id));
        };
        let record = Record::new(id.clone(), plan, by, Timestamp::now());
        if let Err(refusal) = self.put(&record, workload).await {
            self.ledger().add_plan(id, planned);
            return Err(refusal);
        }
        self.ledger().keep(record.clone());
        let told = view::order(&record);
        self.alert(&record);
        tokio::spawn(Arc::clone(&self).carry_out(id));
        Ok(told)
    }

    /// Has the workload name the image, and holds the order there: both or neither.
    async fn put(&self, record: &Record, mut workload: Workload) -> Result<(), Refusal> {
        let text = record.written();
        let name = workload.name.clone();
        for _ in 0..ATTEMPTS_MAX {
            let change = Change {
                container: &record.plan.container,
                image: &record.plan.to_reference,
                record: &text,
                state: record.state.name(),
                is_stopped: false,
            };
            let applied = self.cluster.apply(&name, &workload.change(&change)).await;
            let Err(error) = applied else { return Ok(()) };
            // It may have been taken although the answer was lost.
            let now = match self.cluster.workload(&name).await {
                Ok(now) => now,
                Err(ClusterError::NotFound(_)) => {
                    return Err(Refusal::Outdated(format!("{name} was deleted")));
                }
                Err(unknown) => {
                    tracing::warn!(%error, %unknown, order = record.id, "whether a rollback began is not known yet");
                    return Ok(());
                }
            };
            if let Ok(Some(written)) = Record::of(&now)
                && written.id == record.id
            {
                return Ok(());
            }
            if !matches!(error, ClusterError::Outdated(_)) {
                return Err(Refusal::Cluster(format!("nothing was changed: {error}")));
            }
            // How it stands may have changed, which it does often where something is wrong.
            if now.uid() != record.plan.uid || now.wanted() != record.plan.wanted {
                break;
            }
            workload = now;
        }
        Err(Refusal::Outdated(format!("{name} was changed just now")))
    }

    fn abort(&self, id: &str) -> Result<v1::Rollback, Refusal> {
        let mut ledger = self.ledger();
        if let Some(planned) = ledger.remove_plan(id) {
            let mut told = view::plan(id, &planned);
            told.state = State::Aborted.name().to_owned();
            return Ok(told);
        }
        let Some(record) = ledger.order(id) else {
            return Err(Refusal::NoPlan(id.to_owned()));
        };
        Err(Refusal::TooLate {
            order: id.to_owned(),
            reason: if record.is_running() {
                "the workload names the image already; order another rollback of it, or undo it there"
            } else {
                "it has ended"
            },
        })
    }

    /// The plan for a request by what is known now, and the workload that it was made for.
    pub(super) async fn made(&self, request: &Request) -> Result<(Plan, Workload), Refusal> {
        if !self.approvals.is_read() {
            return Err(Refusal::Cluster(
                "the approvals were not read yet; try again".to_owned(),
            ));
        }
        let target = Target::parse(&request.target);
        let target = target.ok_or_else(|| Refusal::NoWorkload(request.target.clone()))?;
        let owner = owners::owner(&self.cluster, &target).await?;
        let mut facts = Facts {
            owner,
            own_namespace: self.namespace.clone(),
            approvals: self.approvals.in_force(),
            ran: Vec::new(),
            running: Vec::new(),
            has_findings: false,
            signature: Signature::NotRequired,
            image: Known::Unasked,
            now: Timestamp::now(),
        };
        if let Owner::Workload(workload) = &facts.owner
            && let Some((repository, container)) = plan::subject(request, &facts.owner)
        {
            facts.ran = self.approvals.ran(&repository, &workload.name);
            let running = self.running(workload, &container).await?;
            (facts.running, facts.has_findings) = running;
        }
        // Without a target there is nothing to know; the plan says why.
        if let Ok((repository, digest)) = plan::target(request, &facts)
            && matches!(facts.owner, Owner::Workload(_))
        {
            facts.image = images::known(self.registry.as_ref(), &repository, &digest).await;
            facts.signature = self.signature(&repository, &digest).await;
        }
        let plan = plan::plan(request, &facts)?;
        match facts.owner {
            Owner::Workload(workload) => Ok((plan, *workload)),
            Owner::Nothing(unowned) => Err(Refusal::NoWorkload(unowned.name)),
        }
    }

    /// The images that nodes report of those of a workload's pods that are as it is wanted now, each by
    /// its digests; and whether they report findings. In the middle of a rollout the others are what was
    /// wanted before, to which it may go back.
    async fn running(
        &self,
        workload: &Workload,
        container: &str,
    ) -> Result<(Vec<Vec<Digest>>, bool), Refusal> {
        let pods = pods::of(&self.cluster, workload).await;
        let pods = pods.map_err(|error| Refusal::Cluster(error.to_string()))?;
        let containers = workload.containers();
        let wanted = containers.iter().find(|it| it.name == container);
        let wanted = wanted.map(|it| &it.image);
        let mut images = BTreeSet::new();
        let mut findings = 0;
        for pod in pods {
            if pod.images.get(container) != wanted {
                continue;
            }
            let reported = self.nodes.of_pod(&pod.node, &pod.uid, container);
            for container in reported.into_iter().flatten() {
                findings += container.findings;
                let digests = container.image.as_ref().map(digests);
                images.extend(digests.filter(|digests| !digests.is_empty()));
            }
        }
        Ok((images.into_iter().collect(), findings > 0))
    }

    async fn signature(&self, repository: &str, digest: &Digest) -> Signature {
        if !self.provenance.is_required(repository) {
            return Signature::NotRequired;
        }
        let subject = Subject {
            runtime_namespace: String::new(),
            repository: repository.to_owned(),
            manifest: *digest,
            index: None,
        };
        let verify = async {
            self.provenance.refresh().await;
            self.provenance.verify_now(&subject).await
        };
        let Ok(found) = timeout(SIGNATURE_TIME_MAX, verify).await else {
            let seconds = SIGNATURE_TIME_MAX.as_secs();
            return Signature::Refused(format!("its sources did not answer within {seconds} s"));
        };
        if found.signature.is_valid() {
            Signature::Valid
        } else {
            Signature::Refused(found.signature.to_string())
        }
    }

    /// Writes the alert of an order as it stands.
    pub(super) fn alert(&self, record: &Record) {
        let id = record.id.parse().unwrap_or_default();
        self.outlet
            .raise(&view::alert(record, id, Timestamp::now()));
    }

    /// Changes an order, and gives it as it is then.
    pub(super) fn update(&self, id: &str, change: impl FnOnce(&mut Record)) -> Option<Record> {
        self.ledger().change(id, |record| {
            change(record);
            record.clone()
        })
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger<Record>> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What of the facts has changed.
fn difference(was: &Plan, is: &Plan) -> String {
    if was.uid != is.uid || was.wanted != is.wanted {
        "the workload was changed or replaced since".to_owned()
    } else if was.to != is.to {
        format!("it would go back to {} now, not to {}", is.to, was.to)
    } else if was.pods != is.pods {
        format!("it is to have {} pods now, not {}", is.pods, was.pods)
    } else {
        "what it would do is not the same any more".to_owned()
    }
}
