//! `monitorctl exception`.

use monitor_api::{
    json,
    v1::{
        AddExceptionRequest, ListPoliciesRequest, PolicyException, RemoveExceptionRequest,
        policies_client::PoliciesClient,
    },
};
use tonic::transport::Channel;

use super::{
    Failure, Output,
    args::ExceptionCommand,
    output::{or_dash, time},
};
use crate::alerts::build::timestamp;

/// Carries out a command.
pub(super) async fn run(
    channel: Channel,
    command: ExceptionCommand,
    output: &mut Output<'_>,
) -> Result<(), Failure> {
    let mut client = PoliciesClient::new(channel);
    match command {
        ExceptionCommand::List => {
            let listed = client.list_policies(ListPoliciesRequest {}).await?;
            print(&listed.into_inner().exceptions, output)
        }
        ExceptionCommand::Add {
            from_alert,
            until,
            reason,
        } => {
            let request = AddExceptionRequest {
                alert_id: from_alert,
                until: Some(timestamp(until)),
                reason,
            };
            let made = client.add_exception(request).await?.into_inner().exception;
            print(&[made.unwrap_or_default()], output)
        }
        ExceptionCommand::Remove { id } => {
            client
                .remove_exception(RemoveExceptionRequest { id })
                .await?;
            Ok(())
        }
    }
}

fn print(exceptions: &[PolicyException], output: &mut Output<'_>) -> Result<(), Failure> {
    if output.is_json() {
        for exception in exceptions {
            output.json(&json::policy_exception(exception))?;
        }
        return Ok(());
    }
    let header = [
        "EXCEPTION",
        "STATE",
        "UNTIL",
        "HELD",
        "OWNER",
        "REASON",
        "REPOSITORY",
        "WHEN",
    ];
    let rows = exceptions.iter().map(|exception| {
        let state = if exception.expired {
            "expired"
        } else if exception.stopped.is_empty() {
            "in force"
        } else {
            "stopped"
        };
        vec![
            exception.id.clone(),
            state.to_owned(),
            time(exception.until.as_ref()),
            exception.held.to_string(),
            exception.owner.clone(),
            exception.reason.clone(),
            or_dash(&exception.repository).to_owned(),
            exception.condition.clone(),
        ]
    });
    Ok(output.table(&header, rows.collect())?)
}
