//! `monitorctl approval`.

use monitor_api::{
    json,
    v1::{
        Approval, ApproveRequest, ListApprovalsRequest, RevokeRequest, VerifyApprovalRequest,
        approvals_client::ApprovalsClient,
    },
};
use tonic::transport::Channel;

use super::{
    Failure, Output,
    args::ApprovalCommand,
    output::{or_dash, safe, time},
};
use crate::alerts::build::timestamp;

/// Carries out a command.
pub(super) async fn run(
    channel: Channel,
    command: ApprovalCommand,
    output: &mut Output<'_>,
) -> Result<(), Failure> {
    let mut client = ApprovalsClient::new(channel);
    match command {
        ApprovalCommand::List => {
            let listed = client.list_approvals(ListApprovalsRequest {}).await?;
            let listed = listed.into_inner();
            print(&listed.approvals, output)?;
            if listed.error.is_empty() {
                return Ok(());
            }
            Err(Failure::Failed(format!(
                "some approvals are refused as they are now, and what they said before is in force: {}",
                safe(&listed.error)
            )))
        }
        ApprovalCommand::Approve {
            image,
            until,
            reason,
        } => {
            let request = ApproveRequest {
                repository: image.repository,
                digest: image.digest.to_string(),
                until: until.map(timestamp),
                reason,
            };
            let said = client.approve(request).await?.into_inner().approval;
            print(said.as_slice(), output)
        }
        ApprovalCommand::Revoke { digest, reason } => {
            let request = RevokeRequest {
                digest: digest.to_string(),
                reason: reason.unwrap_or_default(),
            };
            print(
                &client.revoke(request).await?.into_inner().approvals,
                output,
            )
        }
        ApprovalCommand::Verify { image } => verify(&mut client, image, output).await,
    }
}

fn print(approvals: &[Approval], output: &mut Output<'_>) -> Result<(), Failure> {
    if output.is_json() {
        for approval in approvals {
            output.json(&json::approval(approval))?;
        }
        return Ok(());
    }
    let header = [
        "REPOSITORY",
        "DIGEST",
        "STATE",
        "RUNNING",
        "UNTIL",
        "AT",
        "BY",
        "REASON",
        "SOURCE",
    ];
    let row = |approval: &Approval| {
        vec![
            approval.repository.clone(),
            approval.digest.clone(),
            approval.state.clone(),
            approval.running.to_string(),
            time(approval.until.as_ref()),
            time(approval.at.as_ref()),
            approval.by.clone(),
            approval.reason.clone(),
            approval.source.clone(),
        ]
    };
    Ok(output.table(&header, approvals.iter().map(row).collect())?)
}

/// Says of each repository whether the image may run; refused if it may not in one of them.
async fn verify(
    client: &mut ApprovalsClient<Channel>,
    image: String,
    output: &mut Output<'_>,
) -> Result<(), Failure> {
    let request = VerifyApprovalRequest {
        image: image.clone(),
    };
    let found = client.verify_approval(request).await?.into_inner();
    if output.is_json() {
        output.json(&json::approval_of(&found))?;
    } else {
        let header = ["REPOSITORY", "DIGEST", "STATE", "BY", "REASON", "SIGNATURE"];
        let rows = found.verdicts.iter().map(|verdict| {
            let approval = verdict.approval.as_ref();
            let signature = verdict.signature.as_ref();
            vec![
                verdict.repository.clone(),
                found.manifest_digest.clone(),
                verdict.state.clone(),
                or_dash(approval.map_or("", |it| &it.by)).to_owned(),
                or_dash(approval.map_or("", |it| &it.reason)).to_owned(),
                or_dash(signature.map_or("", |it| &it.reason)).to_owned(),
            ]
        });
        output.table(&header, rows.collect())?;
    }
    let Some(refused) = found.verdicts.iter().find(|verdict| !verdict.may_run) else {
        return Ok(());
    };
    let (image, repository) = (safe(&image), safe(&refused.repository));
    let signature = refused.signature.as_ref();
    let unsigned = signature.filter(|it| it.required && it.state != "valid");
    Err(Failure::Refused(match unsigned {
        Some(signature) => format!(
            "{image} needs a signature in {repository}: {}",
            safe(&signature.reason)
        ),
        None => format!(
            "{image} is {} in {repository}; `monitorctl approval approve {repository}@{}` approves it",
            refused.state, found.manifest_digest
        ),
    }))
}
