//! Orders as the API and the alerts tell them. Pure.

use jiff::Timestamp;
use monitor_api::v1;
use ulid::Ulid;

use super::{
    order::Planned,
    plan::{Plan, Supply},
    progress::{State, Step},
    record::Record,
};
use crate::alerts::{build::timestamp, rollback::Rollback};

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
        pulled_bytes: record.pulled_bytes,
        ..common(&record.id, &record.plan)
    };
    for step in &mut told.steps {
        let begun = record.begun.iter().find(|(it, _)| it.name() == step.name);
        step.begun_at = begun.map(|(_, at)| timestamp(*at));
    }
    // What was made beside the plan, because something went wrong.
    for (step, at) in &record.begun {
        if told.steps.iter().all(|it| it.name != step.name()) {
            told.steps.push(v1::rollback::Step {
                name: step.name().to_owned(),
                text: aside(*step).to_owned(),
                begun_at: Some(timestamp(*at)),
            });
        }
    }
    told
}

fn common(id: &str, plan: &Plan) -> v1::Rollback {
    let steps = plan.steps(id).into_iter();
    v1::Rollback {
        id: id.to_owned(),
        runtime_namespace: plan.namespace.clone(),
        container: plan.container.clone(),
        kept: plan.kept(id),
        containers: 1,
        resource_version: plan.version.clone(),
        from_digest: plan.from.map(|it| it.to_string()).unwrap_or_default(),
        from_reference: plan.from_reference.clone(),
        to_digest: plan.to.to_string(),
        to_reference: plan.to_reference.clone(),
        chain_id: plan.chain_id.to_string(),
        on_failure: plan.on_failure.name().to_owned(),
        reason: plan.reason.clone(),
        notes: plan.notes.clone(),
        pull_bytes: match &plan.supply {
            Supply::Remote(pull) => pull.bytes,
            Supply::Unpacked | Supply::Stored => 0,
        },
        steps: steps
            .map(|(step, text)| v1::rollback::Step {
                name: step.name().to_owned(),
                text,
                begun_at: None,
            })
            .collect(),
        ..v1::Rollback::default()
    }
}

fn aside(step: Step) -> &'static str {
    match step {
        Step::Discard => "remove what was prepared",
        Step::Halt => "stop the new container",
        Step::PutBack => "put the old container back",
        Step::StartOld => "start the old container",
        _ => "",
    }
}

/// How an order stands, in a sentence.
pub(super) fn sentence(record: &Record) -> String {
    let Record { plan, failure, .. } = record;
    let (container, to) = (&plan.container, &plan.to);
    let kept = record.kept();
    // What is kept is there once the old container has gone from its id.
    let where_old = if record.begun_at(Step::Replace).is_some() {
        format!("the old container is kept as {kept}")
    } else {
        format!("{container} is still the old container")
    };
    match record.state {
        State::Running => format!("{container} is being rolled back to {to}"),
        State::Done => format!(
            "{container} was rolled back to {to}, which is proven by its chain ID; {where_old}"
        ),
        State::Held => format!(
            "the rollback of {container} to {to} is held at step {}: {failure}; {where_old}",
            record.step.name()
        ),
        State::Undone => format!(
            "the rollback of {container} to {to} was undone: {failure}; the old container is back{}",
            if plan.was_running { " and runs" } else { "" }
        ),
        State::Stopped => format!(
            "the rollback of {container} to {to} failed and nothing runs: {failure}; {where_old}"
        ),
        State::Failed => format!(
            "the rollback of {container} to {to} failed before anything was changed: {failure}"
        ),
        State::Aborted => {
            format!("the rollback of {container} to {to} was given up before anything was changed")
        }
    }
}

/// What the alert of an order says at `at`.
pub(super) fn alert(record: &Record, id: Ulid, at: Timestamp) -> Rollback {
    let plan = &record.plan;
    let has_ended = record.state != State::Running;
    let from = plan.from.map(|it| it.to_string()).unwrap_or_default();
    let took = at.duration_since(record.began_at).as_millis().to_string();
    let mut details = vec![
        ("order", record.id.clone()),
        ("state", record.state.name().to_owned()),
        ("step", record.step.name().to_owned()),
        ("from", from),
        ("to", plan.to.to_string()),
        ("by", record.by.name.clone()),
        ("reason", plan.reason.clone()),
        ("on_failure", plan.on_failure.name().to_owned()),
    ];
    if has_ended {
        details.push(("milliseconds", took));
        details.push(("kept", record.kept()));
    }
    if !record.failure.is_empty() {
        details.push(("failure", record.failure.clone()));
    }
    if record.resumed > 0 {
        details.push(("resumed", record.resumed.to_string()));
    }
    let is_proven = record.state == State::Done;
    Rollback {
        id,
        revision: if has_ended { 2 } else { 1 },
        began_at: record.began_at,
        at,
        container: v1::alert::Container {
            id: plan.container.clone(),
            runtime_namespace: plan.namespace.clone(),
            kind: "container".to_owned(),
            ..v1::alert::Container::default()
        },
        image: v1::alert::Image {
            reference: plan.to_reference.clone(),
            identity: if is_proven { "proven" } else { "claimed" }.to_owned(),
            manifest_digest: plan.to.to_string(),
            chain_id: plan.chain_id.to_string(),
            ..v1::alert::Image::default()
        },
        message: sentence(record),
        details,
    }
}
