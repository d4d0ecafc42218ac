//! `monitorctl`: the client for operators, SOC and responders.
//!
//! Whatever a node says is hostile text to a terminal: it passes through [`output`].

mod alerts;
mod approval;
pub mod args;
mod attest;
mod audit;
mod connect;
mod coverage;
mod exception;
mod failure;
mod inventory;
mod output;
mod policy;
mod profile;
mod record;
mod rollback;
mod status;
#[cfg(test)]
mod tests;
mod verify;

use std::{io::Write, time::Duration};

use monitor_api::{
    MESSAGE_BYTES_MAX,
    v1::{CoverageRequest, StatusRequest, monitor_client::MonitorClient},
};
use tokio::time::timeout;
use tonic::transport::Channel;

use crate::alerts::build::timestamp;
pub use args::{Arguments, Format};
use args::{AuditCommand, Command, ContainerCommand, ImageCommand, PolicyCommand};
pub use failure::Failure;
pub use output::{Output, Terminal};

/// Longest time to wait for an answer that is not a stream of alerts; longer than the daemon's
/// own, so that its reason comes first.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(15);

type Client = MonitorClient<Channel>;

/// Carries out a command, writing to `writer`, which is `terminal` if it is one.
///
/// # Errors
///
/// See [`Failure`]; it knows its exit status.
pub async fn run(
    arguments: Arguments,
    writer: &mut (dyn Write + Send),
    terminal: Option<Terminal>,
) -> Result<(), Failure> {
    if arguments.output == Format::Ocsf && !matches!(arguments.command, Command::Alerts(_)) {
        return Err(Failure::Usage(
            "`-o ocsf` is of `monitorctl alerts` alone; give `-o json`".to_owned(),
        ));
    }
    let mut output = Output::new(writer, arguments.output, terminal);
    if let Command::Profile(command) = &arguments.command
        && profile::is_offline(command)
    {
        return profile::run(None, command.clone(), &mut output).await;
    }
    if let Command::Policy(PolicyCommand::Test { file, events }) = &arguments.command {
        return policy::test(file, events, &mut output);
    }
    let channel = connect::connect(&arguments.address, &arguments.tls).await?;
    let mut client =
        MonitorClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
    match arguments.command {
        Command::Profile(command) => profile::run(Some(channel), command, &mut output).await,
        Command::Policy(_) => answered(policy::list(channel, &mut output)).await,
        Command::Exception(command) => {
            answered(exception::run(channel, command, &mut output)).await
        }
        Command::Approval(command) => answered(approval::run(channel, command, &mut output)).await,
        Command::Rollback(arguments) => rollback::run(channel, *arguments, &mut output).await,
        Command::Record { seconds } => record::run(channel, seconds, &mut output).await,
        Command::Alerts(options) => alerts::run(&mut client, &options, &mut output).await,
        Command::Status => answered(status::run(&mut client, &mut output)).await,
        Command::Containers | Command::Container(ContainerCommand::List) => {
            answered(inventory::containers(&mut client, &mut output)).await
        }
        Command::Container(ContainerCommand::Show { container }) => {
            answered(inventory::container(&mut client, &container, &mut output)).await
        }
        Command::Container(ContainerCommand::Coverage {
            container,
            from,
            to,
        }) => {
            let request = CoverageRequest {
                container,
                from: from.map(timestamp),
                to: to.map(timestamp),
            };
            answered(coverage::run(&mut client, request, &mut output)).await
        }
        Command::Container(ContainerCommand::Verify { container }) => {
            verify::container(&mut client, container, &mut output).await
        }
        Command::Container(ContainerCommand::Attest {
            container,
            signing_key,
        }) => attest::run(&mut client, container, &signing_key, &mut output).await,
        Command::Audit(AuditCommand::List { since }) => {
            audit::list(&mut client, since, &mut output).await
        }
        Command::Audit(AuditCommand::Verify { head }) => {
            answered(audit::verify(&mut client, head, &mut output)).await
        }
        Command::Image(ImageCommand::Verify { image }) => {
            verify::image(&mut client, image, &mut output).await
        }
        Command::Image(ImageCommand::Usage) => {
            answered(inventory::usage(&mut client, &mut output)).await
        }
        Command::Image(ImageCommand::List) => {
            answered(inventory::images(&mut client, &mut output)).await
        }
        Command::Image(ImageCommand::Contents { image, path }) => {
            inventory::contents(&mut client, image, path, &mut output).await
        }
    }
}

async fn answered<T>(command: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    timeout(ANSWER_TIME_MAX, command).await.unwrap_or_else(|_| {
        Err(Failure::Failed(format!(
            "the daemon did not answer within {} s; look at its log",
            ANSWER_TIME_MAX.as_secs()
        )))
    })
}

/// The daemon's status.
async fn status_of(client: &mut Client) -> Result<monitor_api::v1::Status, Failure> {
    let response = client.status(StatusRequest {}).await?.into_inner();
    response
        .status
        .ok_or_else(|| Failure::Failed("the daemon sent no status".to_owned()))
}
