//! Carries an order out: sees the pods replaced, has the nodes prove what runs, and ends it.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tokio::time::{sleep, timeout};

use super::{
    cluster::ClusterError,
    lease,
    nodes::{Proof, judge},
    orders::Controller,
    pods::{self, Pod},
    record::{Record, Step},
    view,
    workload::{Change, Kind, Rollout, Workload},
};
use crate::{
    approval::Standing,
    registry::full_name,
    respond::{Kept as _, OnFailure, State},
};

/// How often it is looked at what there is, if nothing says that it changed.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// How long a watch of a workload lasts.
const WATCH_TIME_MAX: Duration = Duration::from_secs(10);
/// Attempts to write an order that others change meanwhile.
const ATTEMPTS_MAX: u32 = 20;

/// Why an order does not go on.
#[derive(Debug)]
enum Stop {
    /// It went wrong: what was said to be done then is done.
    Failed(String),
    /// The workload is somebody else's now, or gone, or cannot be written: it is left alone.
    Left(String),
}

impl Controller {
    /// Goes on with an order that a controller before has begun. Its present step has its whole time
    /// again: nodes report to this controller only now.
    pub(super) async fn go_on_with(self: Arc<Self>, id: String) {
        let now = Timestamp::now();
        let whole = self.settings.rollout_seconds + self.settings.verify_seconds;
        let mut is_old = false;
        let resumed = self.update(&id, |record| {
            let spent = now.duration_since(record.since());
            is_old = spent > SignedDuration::from_secs(whole.into());
            record.resumed = record.resumed.saturating_add(1);
            record.begin(record.step, now);
        });
        let Some(record) = resumed else { return };
        // First, so that the one before does not go on with it as well.
        let made = match self.write(&record, None).await {
            Ok(()) if is_old => Err(Stop::Left(format!(
                "for longer than {whole} s no controller went on with it"
            ))),
            written => written,
        };
        if let Err(stop) = made {
            self.fail(&id, record.step, stop).await;
        }
        self.carry_out(id).await;
    }

    /// Makes one step after the other, until the order has ended.
    pub(super) async fn carry_out(self: Arc<Self>, id: String) {
        while let Some(record) = self.running_order(&id) {
            tracing::info!(order = id, step = record.step.name(), "rollback");
            let made = match record.step {
                Step::Apply => self.begin(&record).await,
                Step::Rollout => self.see_rollout(&record, &record.plan.to_reference).await,
                Step::Verify => self.verify(&record).await,
                Step::PutBack => self.see_rollout(&record, &record.plan.from_reference).await,
                Step::Halt => self.see_rollout(&record, &record.plan.to_reference).await,
            };
            let is_job = record.plan.workload.kind == Kind::CronJob;
            match (made, record.step) {
                (Ok(()), Step::Apply) if is_job => self.end(&id, State::Done).await,
                (Ok(()), Step::Apply) => self.go_on(&id, Step::Rollout).await,
                (Ok(()), Step::Rollout) => self.go_on(&id, Step::Verify).await,
                (Ok(()), Step::Verify) => self.end(&id, State::Done).await,
                (Ok(()), Step::PutBack) => self.end(&id, State::Undone).await,
                (Ok(()), Step::Halt) => self.end(&id, State::Stopped).await,
                (Err(stop), step) => self.fail(&id, step, stop).await,
            }
        }
    }

    fn running_order(&self, id: &str) -> Option<Record> {
        let ledger = self.ledger();
        ledger.order(id).filter(|it| it.is_running()).cloned()
    }

    /// An order that a leader before has begun goes on only if it still may.
    async fn begin(&self, record: &Record) -> Result<(), Stop> {
        let plan = &record.plan;
        let approvals = self.approvals.in_force();
        let own = full_name(&plan.to_reference);
        let standing = approvals.standing(&own, &[plan.to], Timestamp::now());
        if !matches!(standing, Standing::Approved(_)) {
            let problem = format!("{} is {} now", plan.to, standing.name());
            return Err(Stop::Left(problem));
        }
        let workload = self.workload(record).await?;
        is_own(record, &workload, &plan.to_reference).await
    }

    async fn go_on(&self, id: &str, step: Step) {
        let begun = self.update(id, |record| record.begin(step, Timestamp::now()));
        let Some(record) = begun else { return };
        if let Err(stop) = self.write(&record, None).await {
            self.fail(id, step, stop).await;
        }
    }

    /// Waits until the pods of a workload are replaced by such of `image`, and those of before have
    /// ended.
    async fn see_rollout(&self, record: &Record, image: &str) -> Result<(), Stop> {
        let seconds = self.settings.rollout_seconds;
        // What Kubernetes said of the rollout before when it first looked at this one.
        let mut before: Option<Option<String>> = None;
        loop {
            let workload = self.workload(record).await?;
            is_own(record, &workload, image).await?;
            let mut is_replaced = false;
            let rollout = workload.rollout();
            if before.is_none() && rollout != Rollout::Unseen {
                before = Some(match &rollout {
                    Rollout::Stuck { since, .. } => Some(since.clone()),
                    _ => None,
                });
            }
            let far = match rollout {
                Rollout::Next => return Ok(()),
                Rollout::Done => match self.left_over(record, &workload, image).await {
                    None => return Ok(()),
                    Some(left) => {
                        is_replaced = true;
                        left
                    }
                },
                // Of pods that are to go it does not matter whether they came to be ready.
                Rollout::Stuck { reason, since }
                    if record.step == Step::Halt || before == Some(Some(since.clone())) =>
                {
                    reason
                }
                Rollout::Stuck { reason, .. } => {
                    let trouble = self.trouble(&workload).await;
                    return Err(Stop::Failed(format!(
                        "the rollout is stuck: {reason}{trouble}"
                    )));
                }
                Rollout::Unseen => "Kubernetes has not looked at it".to_owned(),
                Rollout::UnderWay {
                    updated,
                    available,
                    wanted,
                } => format!("of {wanted} pods {updated} are new and {available} available"),
            };
            if is_over(record, seconds) {
                // To replace those that replaced them would end nothing.
                return Err(if is_replaced {
                    Stop::Left(format!(
                        "every pod is replaced, but after {seconds} s {far}"
                    ))
                } else {
                    let trouble = self.trouble(&workload).await;
                    Stop::Failed(format!(
                        "the rollout was not done within {seconds} s: {far}{trouble}"
                    ))
                });
            }
            self.update(&record.id, |record| record.waits_for = far);
            let name = &record.plan.workload;
            let changed = self.cluster.changed(
                name.kind.into(),
                &name.namespace,
                &name.name,
                workload.version(),
                if is_replaced {
                    LOOK_INTERVAL
                } else {
                    WATCH_TIME_MAX
                },
            );
            changed.await;
        }
    }

    /// What still runs of before, although every pod is replaced: Kubernetes counts pods no more that are
    /// told to end.
    async fn left_over(&self, record: &Record, workload: &Workload, image: &str) -> Option<String> {
        let pods = match pods::of(&self.cluster, workload).await {
            Ok(pods) => pods,
            Err(error) => return Some(error.to_string()),
        };
        let container = &record.plan.container;
        let is_other = |pod: &&Pod| pod.images.get(container).is_none_or(|it| it != image);
        let mut left = (pods.iter()).filter(|it| record.step == Step::Halt || is_other(it));
        let pod = left.next()?;
        Some(format!(
            "pod {} on {} has not ended",
            pod.name,
            or_none(&pod.node)
        ))
    }

    /// Waits until nodes prove that every pod runs the image.
    async fn verify(&self, record: &Record) -> Result<(), Stop> {
        let seconds = self.settings.verify_seconds;
        let plan = &record.plan;
        let mut reports = self.nodes.changes();
        loop {
            reports.mark_unchanged();
            let workload = self.workload(record).await?;
            is_own(record, &workload, &plan.to_reference).await?;
            let missing = match pods::of(&self.cluster, &workload).await {
                Err(error) => error.to_string(),
                Ok(pods) => match self.proven(record, &pods, workload.pods_wanted())? {
                    None => return Ok(()),
                    Some(missing) => missing,
                },
            };
            if is_over(record, seconds) {
                return Err(Stop::Failed(format!(
                    "what runs was not proven within {seconds} s: {missing}"
                )));
            }
            self.update(&record.id, |record| record.waits_for = missing);
            // An error is the end of the wait alone.
            let _ = timeout(LOOK_INTERVAL, reports.changed()).await;
        }
    }

    /// What is missing of the proof; `None` if nothing is.
    fn proven(&self, record: &Record, pods: &[Pod], wanted: u64) -> Result<Option<String>, Stop> {
        let plan = &record.plan;
        let mut missing = None;
        let mut proven = 0;
        for pod in pods {
            if pod.images.get(&plan.container) != Some(&plan.to_reference) {
                missing = Some(format!("pod {} is still of the old template", pod.name));
                continue;
            }
            if pod.is_ending {
                continue;
            }
            let reported = self.nodes.of_pod(&pod.node, &pod.uid, &plan.container);
            let at = format!("pod {} on {}", pod.name, pod.node);
            match judge(reported.as_deref(), &plan.expected) {
                Proof::Given => proven += 1,
                Proof::Missing(what) => missing = Some(format!("{at}: {what}")),
                Proof::Against(what) => return Err(Stop::Failed(format!("{at}: {what}"))),
            }
        }
        self.update(&record.id, |record| record.proven = proven);
        if missing.is_none() && proven < wanted {
            missing = Some(format!("of {wanted} pods {proven} are there"));
        }
        Ok(missing)
    }

    /// Why pods do not start, as their kubelets say.
    async fn trouble(&self, workload: &Workload) -> String {
        let pods = pods::of(&self.cluster, workload).await.unwrap_or_default();
        let mut waiting = pods.iter().filter_map(|pod| {
            let reason = pod.waiting.as_ref()?;
            Some(format!("; pod {} on {}: {reason}", pod.name, pod.node))
        });
        waiting.next().unwrap_or_default()
    }

    /// What becomes of an order that went wrong at a step.
    async fn fail(&self, id: &str, step: Step, stop: Stop) {
        let (Stop::Failed(reason) | Stop::Left(reason)) = &stop;
        tracing::warn!(order = id, step = step.name(), reason, "rollback");
        let noted = self.update(id, |record| record.note_failure(reason));
        let Some(record) = noted else { return };
        let is_first = matches!(step, Step::Apply | Step::Rollout | Step::Verify);
        let next = match (stop, record.plan.on_failure) {
            (Stop::Failed(_), OnFailure::Undo) if is_first => Some(Step::PutBack),
            (Stop::Failed(_), OnFailure::Stop) if is_first => Some(Step::Halt),
            _ => None,
        };
        let approvals = self.approvals.in_force();
        if next == Some(Step::PutBack)
            && let Some(problem) = record.plan.no_way_back(&approvals, Timestamp::now())
        {
            self.update(id, |record| record.note_failure(&problem));
            return self.end(id, State::Held).await;
        }
        let Some(next) = next else {
            return self.end(id, State::Held).await;
        };
        let begun = self.update(id, |record| record.begin(next, Timestamp::now()));
        let Some(record) = begun else { return };
        let image = match next {
            Step::PutBack => &record.plan.from_reference,
            _ => &record.plan.to_reference,
        };
        if let Err(Stop::Failed(reason) | Stop::Left(reason)) =
            self.write(&record, Some(image)).await
        {
            self.update(id, |record| record.note_failure(&reason));
            self.end(id, State::Held).await;
        }
    }

    async fn end(&self, id: &str, state: State) {
        let Some(mut record) = self.running_order(id) else {
            return;
        };
        record.state = state;
        record.ended_at = Some(Timestamp::now());
        // First, so that who is told of the end finds it there.
        if let Err(stop) = self.write(&record, None).await {
            tracing::warn!(
                order = id,
                ?stop,
                "the end of a rollback is not written at its workload"
            );
        }
        self.update(id, |kept| kept.clone_from(&record));
        let sentence = view::sentence(&record);
        tracing::warn!(order = id, state = state.name(), sentence, "rollback ended");
        self.alert(&record);
        let by = record.by.clone();
        self.outlet.note_end(id, by, state, &sentence).await;
    }

    /// The workload as it is now.
    async fn workload(&self, record: &Record) -> Result<Workload, Stop> {
        let name = &record.plan.workload;
        loop {
            match self.cluster.workload(name).await {
                Ok(workload) if workload.uid() != record.plan.uid => {
                    return Err(Stop::Left(format!("{name} was deleted and created again")));
                }
                Ok(workload) => return Ok(workload),
                Err(ClusterError::NotFound(_)) => {
                    return Err(Stop::Left(format!("{name} was deleted")));
                }
                // The API server comes back; until then nothing can be done or known. Without it this
                // controller soon leads no more, and ends.
                Err(error) => {
                    tracing::warn!(%error, order = record.id, "a rollback waits for the API server");
                    sleep(LOOK_INTERVAL).await;
                }
            }
        }
    }

    /// Writes the order at its workload, which is to name `image`, or what it names now.
    async fn write(&self, record: &Record, image: Option<&str>) -> Result<(), Stop> {
        let text = record.written();
        let is_stopped = image.is_some() && record.step == Step::Halt;
        for _ in 0..ATTEMPTS_MAX {
            let workload = self.workload(record).await?;
            let named = named(record, &workload).await?;
            // It may be there already: the answer to an attempt before was lost.
            if let Some(image) = image
                && ![image, &record.plan.to_reference].contains(&named.as_str())
            {
                return Err(changed(&named));
            }
            let change = Change {
                container: &record.plan.container,
                image: image.unwrap_or(&named),
                record: &text,
                state: record.state.name(),
                is_stopped,
            };
            match self
                .cluster
                .apply(&workload.name, &workload.change(&change))
                .await
            {
                Ok(_) => return Ok(()),
                Err(ClusterError::Outdated(_)) => {}
                Err(error) => {
                    tracing::warn!(%error, order = record.id, "a rollback waits for the API server");
                    sleep(LOOK_INTERVAL).await;
                }
            }
        }
        let problem =
            format!("{ATTEMPTS_MAX} attempts to write the order at its workload were in vain");
        Err(Stop::Left(problem))
    }
}

/// The image that a workload names where this order is written.
async fn named(record: &Record, workload: &Workload) -> Result<String, Stop> {
    let written = Record::of(workload).ok().flatten();
    let written = written.filter(|it| it.id == record.id).ok_or_else(|| {
        Stop::Left("the order is not written at the workload any more".to_owned())
    })?;
    if written.resumed > record.resumed {
        // Whoever leads now goes on with it, and this controller ends before that is over. If it does
        // not, this is somebody's text.
        sleep(lease::DURATION).await;
        return Err(Stop::Left(
            "what is written at the workload is not of this controller".to_owned(),
        ));
    }
    let name = &record.plan.container;
    let mut containers = workload.containers().into_iter();
    let own = containers.find(|it| it.name == *name);
    let own = own.ok_or_else(|| Stop::Left(format!("it has no container {name} any more")))?;
    Ok(own.image)
}

/// Whether a workload is as this order has made it.
async fn is_own(record: &Record, workload: &Workload, image: &str) -> Result<(), Stop> {
    let named = named(record, workload).await?;
    if named == image {
        Ok(())
    } else {
        Err(changed(&named))
    }
}

fn changed(named: &str) -> Stop {
    Stop::Left(format!("somebody has had it name {named} meanwhile"))
}

fn or_none(node: &str) -> &str {
    if node.is_empty() { "no node" } else { node }
}

/// Whether the time for the present step is over.
fn is_over(record: &Record, seconds: u32) -> bool {
    let spent = Timestamp::now().duration_since(record.since());
    spent >= SignedDuration::from_secs(seconds.into())
}
