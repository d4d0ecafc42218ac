//! Orders about workloads as the API and the alerts tell them. Pure.

use jiff::Timestamp;
use monitor_api::v1;
use ulid::Ulid;

use super::{
    plan::Plan,
    record::{Record, Step},
    workload::Kind,
};
use crate::{
    alerts::{build::timestamp, rollback::Rollback},
    respond::{Planned, State},
};

/// A plan as the API tells it.
pub(super) fn plan(id: &str, planned: &Planned<Plan>) -> v1::Rollback {
    v1::Rollback {
        state: "planned".to_owned(),
        by: planned.by.name.clone(),
        planned_at: Some(timestamp(planned.at)),
        ..common(id, &planned.plan)
    }
}

/// An order as the API tells it.
pub(super) fn order(record: &Record) -> v1::Rollback {
    let mut told = v1::Rollback {
        state: record.state.name().to_owned(),
        step: record.step.name().to_owned(),
        by: record.by.name.clone(),
        began_at: Some(timestamp(record.began_at)),
        ended_at: record.ended_at.map(timestamp),
        message: sentence(record),
        resumed: record.resumed,
        ..common(&record.id, &record.plan)
    };
    for (step, at) in &record.begun {
        let begun_at = Some(timestamp(*at));
        match told.steps.iter_mut().find(|it| it.name == step.name()) {
            Some(told) => told.begun_at = begun_at,
            // What was made beside the plan, because something went wrong.
            None => told.steps.push(v1::rollback::Step {
                name: step.name().to_owned(),
                text: aside(*step, &record.plan),
                begun_at,
            }),
        }
    }
    told
}

fn common(id: &str, plan: &Plan) -> v1::Rollback {
    let steps = plan.steps().into_iter();
    // Of an index it is the node's platform that decides.
    let chain_id = match plan.expected.chain_ids.len() {
        1 => plan.expected.chain_ids.first(),
        _ => None,
    };
    v1::Rollback {
        id: id.to_owned(),
        containers: u32::try_from(plan.pods).unwrap_or(u32::MAX),
        resource_version: format!("{}/{}", plan.uid, plan.wanted),
        from_digest: plan.from.map(|it| it.to_string()).unwrap_or_default(),
        from_reference: plan.from_reference.clone(),
        to_digest: plan.to.to_string(),
        to_reference: plan.to_reference.clone(),
        chain_id: chain_id.map(ToString::to_string).unwrap_or_default(),
        on_failure: plan.on_failure.name().to_owned(),
        reason: plan.reason.clone(),
        notes: plan.notes.clone(),
        steps: steps
            .map(|(step, text)| v1::rollback::Step {
                name: step.name().to_owned(),
                text,
                begun_at: None,
            })
            .collect(),
        workload: Some(v1::rollback::Workload {
            namespace: plan.workload.namespace.clone(),
            kind: plan.workload.kind.name().to_owned(),
            name: plan.workload.name.clone(),
            container: plan.container.clone(),
        }),
        ..v1::Rollback::default()
    }
}

fn aside(step: Step, plan: &Plan) -> String {
    match step {
        Step::PutBack => format!("have it name {} again", plan.from_reference),
        Step::Halt => "have none of its pods run".to_owned(),
        Step::Apply | Step::Rollout | Step::Verify => String::new(),
    }
}

/// How an order stands, in a sentence.
pub(super) fn sentence(record: &Record) -> String {
    let Record { plan, failure, .. } = record;
    let (workload, to) = (&plan.workload, &plan.to);
    let step = record.step.name();
    match record.state {
        State::Running if record.waits_for.is_empty() => {
            format!("{workload} is being rolled back to {to}")
        }
        State::Running => {
            let waits_for = &record.waits_for;
            format!("{workload} is being rolled back to {to}: {waits_for}")
        }
        State::Done if workload.kind == Kind::CronJob => {
            format!("{workload} was rolled back to {to}, for what it runs from now on")
        }
        State::Done => format!(
            "{workload} was rolled back to {to}, which the nodes prove of {} pods by {}",
            record.proven,
            if plan.expected.chain_ids.is_empty() {
                "digest"
            } else {
                "chain ID"
            }
        ),
        State::Held => {
            format!("the rollback of {workload} to {to} is held at step {step}: {failure}")
        }
        State::Undone => format!(
            "the rollback of {workload} to {to} was undone: {failure}; it names {} again",
            plan.from_reference
        ),
        State::Stopped => format!(
            "the rollback of {workload} to {to} failed and none of its pods runs: {failure}"
        ),
        State::Failed | State::Aborted => {
            format!("the rollback of {workload} to {to} was not begun: {failure}")
        }
    }
}

/// What the alert of an order says at `at`.
pub(super) fn alert(record: &Record, id: Ulid, at: Timestamp) -> Rollback {
    let plan = &record.plan;
    let has_ended = record.state != State::Running;
    let mut details = vec![
        ("order", record.id.clone()),
        ("state", record.state.name().to_owned()),
        ("step", record.step.name().to_owned()),
        ("namespace", plan.workload.namespace.clone()),
        (
            "from",
            plan.from.map(|it| it.to_string()).unwrap_or_default(),
        ),
        ("to", plan.to.to_string()),
        ("by", record.by.name.clone()),
        ("reason", plan.reason.clone()),
        ("on_failure", plan.on_failure.name().to_owned()),
    ];
    if has_ended {
        let took = at.duration_since(record.began_at).as_millis();
        details.push(("milliseconds", took.to_string()));
        details.push(("proven", record.proven.to_string()));
    }
    if !record.failure.is_empty() {
        details.push(("failure", record.failure.clone()));
    }
    if record.resumed > 0 {
        details.push(("resumed", record.resumed.to_string()));
    }
    let is_proven = record.state == State::Done && record.proven > 0;
    Rollback {
        id,
        revision: if has_ended { 2 } else { 1 },
        began_at: record.began_at,
        at,
        container: container(plan),
        image: v1::alert::Image {
            reference: plan.to_reference.clone(),
            identity: if is_proven { "proven" } else { "claimed" }.to_owned(),
            manifest_digest: plan.to.to_string(),
            ..v1::alert::Image::default()
        },
        message: sentence(record),
        details,
    }
}

/// The container of a workload that a plan is about.
fn container(plan: &Plan) -> v1::alert::Container {
    v1::alert::Container {
        name: plan.container.clone(),
        kind: "container".to_owned(),
        workload: Some(v1::alert::Workload {
            kind: plan.workload.kind.name().to_owned(),
            name: plan.workload.name.clone(),
        }),
        ..v1::alert::Container::default()
    }
}
