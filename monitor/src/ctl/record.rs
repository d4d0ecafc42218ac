//! `monitorctl record`.

use std::{future, time::Duration};

use monitor_api::{
    MESSAGE_BYTES_MAX,
    v1::{RecordRequest, RecordResponse, policies_client::PoliciesClient},
};
use serde_json::Value;
use tonic::{Streaming, transport::Channel};

use super::{Failure, Output, answered};

/// Writes what comes, for `seconds` or until Ctrl-C. That lines were lost is a failure, told at the end.
pub(super) async fn run(
    channel: Channel,
    seconds: Option<u64>,
    output: &mut Output<'_>,
) -> Result<(), Failure> {
    let mut client = PoliciesClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let interrupted = tokio::signal::ctrl_c();
    let begun = answered(async { Ok(client.record(RecordRequest {}).await?.into_inner()) });
    let mut stream: Streaming<RecordResponse> = begun.await?;
    let mut lost = 0;
    let written = async {
        while let Some(message) = stream.message().await? {
            lost += message.lost;
            for line in &message.lines {
                let line: Value = serde_json::from_str(line).map_err(|error| {
                    Failure::Failed(format!("the daemon sent a line that is no JSON: {error}"))
                })?;
                output.json(&line)?;
            }
        }
        Ok::<(), Failure>(())
    };
    let over = async {
        match seconds {
            Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
            None => future::pending().await,
        }
    };
    tokio::select! {
        result = written => result?,
        _ = interrupted => {}
        () = over => {}
    }
    if lost > 0 {
        return Err(Failure::Failed(format!(
            "{lost} lines were lost, since this was too slow to take them"
        )));
    }
    Ok(())
}
