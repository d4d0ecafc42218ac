//! `monitorctl rollback`.

use std::time::Duration;

use monitor_api::{
    json,
    v1::{
        AbortRollbackRequest, ApplyRollbackRequest, ListRollbacksRequest, PlanRollbackRequest,
        Rollback, rollbacks_client::RollbacksClient,
    },
};
use tokio::time::{sleep, timeout};
use tonic::{Code, Status, transport::Channel};

use super::{
    Failure, Output, answered,
    args::{RollbackAims, RollbackArguments, RollbackCommand},
    inventory,
    output::{Cell, or_dash, safe, short, time},
};

/// Longest time to wait for a plan, or for an order to begin: longer than a controller's own, which asks
/// registries and sources of signatures.
const ORDER_TIME_MAX: Duration = Duration::from_secs(45);
/// How often an order is asked for that is under way.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

type Client = RollbacksClient<Channel>;

/// Carries out a command.
pub(super) async fn run(
    channel: Channel,
    arguments: RollbackArguments,
    output: &mut Output<'_>,
) -> Result<(), Failure> {
    let mut client = RollbacksClient::new(channel);
    let RollbackArguments {
        target,
        aims,
        dry_run,
        command,
    } = arguments;
    match command {
        Some(RollbackCommand::Plan { target, aims }) => {
            let planned = planned(plan(&mut client, target, aims)).await?;
            show(&planned, output)
        }
        Some(RollbackCommand::Apply { plan }) => apply(&mut client, plan, output).await,
        Some(RollbackCommand::Status) => answered(list(&mut client, output)).await,
        Some(RollbackCommand::Abort { id }) => {
            let request = AbortRollbackRequest { id };
            let aborted = answered(async { Ok(client.abort_rollback(request).await?) });
            let aborted = aborted.await?.into_inner().rollback;
            show(&aborted.unwrap_or_default(), output)
        }
        None => {
            let Some(target) = target else {
                return Err(Failure::Usage(
                    "name a container, or give `plan`, `apply`, `status` or `abort`".to_owned(),
                ));
            };
            if aims.reason.is_none() && !dry_run {
                return Err(Failure::Usage("say why with --reason TEXT".to_owned()));
            }
            let planned = planned(plan(&mut client, target, aims)).await?;
            if dry_run {
                return show(&planned, output);
            }
            apply(&mut client, planned.id, output).await
        }
    }
}

async fn planned(
    plan: impl Future<Output = Result<Rollback, Failure>>,
) -> Result<Rollback, Failure> {
    timeout(ORDER_TIME_MAX, plan).await.unwrap_or_else(|_| {
        let seconds = ORDER_TIME_MAX.as_secs();
        let problem = format!("no plan within {seconds} s; nothing was changed");
        Err(Failure::Failed(problem))
    })
}

async fn plan(
    client: &mut Client,
    target: String,
    aims: RollbackAims,
) -> Result<Rollback, Failure> {
    let request = PlanRollbackRequest {
        target,
        to: aims.to.map(|to| to.to_string()).unwrap_or_default(),
        on_failure: aims.on_failure.name().to_owned(),
        reason: aims.reason.unwrap_or_default(),
        allow_stateful: aims.allow_stateful,
        container: aims.container.unwrap_or_default(),
    };
    let planned = client.plan_rollback(request).await.map_err(refused)?;
    let missing = || Failure::Failed("the daemon sent no plan".to_owned());
    planned.into_inner().rollback.ok_or_else(missing)
}

/// Applies a plan and tells each step until it has ended.
async fn apply(client: &mut Client, id: String, output: &mut Output<'_>) -> Result<(), Failure> {
    let request = ApplyRollbackRequest { id: id.clone() };
    let begun = timeout(ORDER_TIME_MAX, client.apply_rollback(request)).await;
    let begun = begun.map_err(|_| {
        Failure::Unreachable(format!(
            "no answer within {} s, and it may still be carried out: see `monitorctl rollback status`",
            ORDER_TIME_MAX.as_secs()
        ))
    })?;
    let mut order = begun
        .map_err(refused)?
        .into_inner()
        .rollback
        .unwrap_or_default();
    let mut told = 0;
    loop {
        if !output.is_json() {
            let begun = order.steps.iter().filter(|step| step.begun_at.is_some());
            for step in begun.clone().skip(told) {
                let text = safe(&step.text);
                output.line(&[Cell::new(&safe(&step.name), 9), Cell::new(&text, 0)])?;
            }
            told = begun.count();
        }
        if order.state != "running" {
            break;
        }
        sleep(LOOK_INTERVAL).await;
        let listed = answered(all(client)).await?;
        let found = listed.into_iter().find(|it| it.id == id);
        order = found.ok_or_else(|| {
            Failure::Failed("the daemon does not know the order any more".to_owned())
        })?;
    }
    if output.is_json() {
        output.json(&json::rollback(&order))?;
    }
    let message = safe(&order.message);
    if order.state != "done" {
        return Err(Failure::Failed(message));
    }
    if !output.is_json() {
        output.line(&[Cell::new("done", 9), Cell::new(&message, 0)])?;
    }
    Ok(())
}

async fn all(client: &mut Client) -> Result<Vec<Rollback>, Failure> {
    let listed = client.list_rollbacks(ListRollbacksRequest {}).await?;
    Ok(listed.into_inner().rollbacks)
}

async fn list(client: &mut Client, output: &mut Output<'_>) -> Result<(), Failure> {
    let all = all(client).await?;
    if output.is_json() {
        for order in &all {
            output.json(&json::rollback(order))?;
        }
        return Ok(());
    }
    let header = [
        "ID", "STATE", "STEP", "TARGET", "FROM", "TO", "BEGAN", "BY", "REASON", "MESSAGE",
    ];
    let row = |order: &Rollback| {
        vec![
            order.id.clone(),
            order.state.clone(),
            step(order),
            subject(order),
            or_dash(&short(&order.from_digest)).to_owned(),
            short(&order.to_digest),
            time(order.began_at.as_ref()),
            order.by.clone(),
            or_dash(&order.reason).to_owned(),
            or_dash(&order.message).to_owned(),
        ]
    };
    Ok(output.table(&header, all.iter().map(row).collect())?)
}

/// What is rolled back.
fn subject(order: &Rollback) -> String {
    match &order.workload {
        Some(workload) => format!(
            "{}/{}/{}",
            workload.kind.to_lowercase(),
            workload.namespace,
            workload.name
        ),
        None => format!("{}/{}", order.runtime_namespace, order.container),
    }
}

/// The step that is made, and how far a pull has come.
fn step(order: &Rollback) -> String {
    if order.step != "pull" || order.state != "running" {
        return or_dash(&order.step).to_owned();
    }
    let percent = order.pulled_bytes.saturating_mul(100);
    let percent = percent.checked_div(order.pull_bytes).unwrap_or(100);
    format!("pull {}%", percent.min(100))
}

fn show(order: &Rollback, output: &mut Output<'_>) -> Result<(), Failure> {
    if output.is_json() {
        return Ok(output.json(&json::rollback(order))?);
    }
    let to = format!("{} ({})", order.to_digest, order.to_reference);
    let mut facts = vec![
        ("plan", order.id.clone()),
        ("state", order.state.clone()),
        ("target", subject(order)),
        ("containers", order.containers.to_string()),
        ("version", order.resource_version.clone()),
        ("from", or_dash(&order.from_digest).to_owned()),
        ("to", to),
        ("on failure", order.on_failure.clone()),
    ];
    facts.extend(order.notes.iter().map(|note| ("note", note.clone())));
    let steps = order.steps.iter().enumerate();
    let steps = steps.map(|(index, step)| ("step", format!("{}. {}", index + 1, step.text)));
    facts.extend(steps);
    inventory::print_facts(&facts, output)
}

/// What is refused for the state of things, beyond what every command takes for that.
fn refused(status: Status) -> Failure {
    match status.code() {
        Code::Aborted | Code::ResourceExhausted | Code::NotFound => {
            Failure::Refused(safe(status.message()))
        }
        _ => status.into(),
    }
}
