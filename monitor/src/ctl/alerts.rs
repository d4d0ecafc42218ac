//! `monitorctl alerts`.

use std::{io::Write as _, time::Duration};

use monitor_api::{
    json, ocsf,
    v1::{
        Alert, AlertsRequest,
        alerts_request::{Start, start::Position},
        alerts_response::Response,
    },
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    Client, Failure, Output,
    args::{AlertsOptions, LAST_ALERTS},
    output::{Cell, colour, or_dash, safe, safe_bytes, short, time},
};
use crate::api::HEARTBEAT_INTERVAL;

/// A daemon that is there sends a heartbeat every 10 s.
const SILENCE_MAX: Duration = HEARTBEAT_INTERVAL.saturating_mul(3);

/// Prints alerts until there are no more, or until Ctrl-C.
pub(super) async fn run(
    client: &mut Client,
    options: &AlertsOptions,
    output: &mut Output<'_>,
) -> Result<(), Failure> {
    if !options.follow {
        return read(client, options, output).await;
    }
    tokio::select! {
        result = read(client, options, output) => result,
        // Ctrl-C is how following ends.
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

async fn read(
    client: &mut Client,
    options: &AlertsOptions,
    output: &mut Output<'_>,
) -> Result<(), Failure> {
    let (journal, position) = match &options.since {
        Some(since) => (since.journal.clone(), Position::After(since.cursor)),
        None => {
            let last = options.limit.unwrap_or(LAST_ALERTS);
            (String::new(), Position::Last(last))
        }
    };
    let start = Start {
        journal: journal.clone(),
        position: Some(position),
        filter: options.filter.clone().unwrap_or_default(),
        ..Start::default()
    };
    // Held open: closing it says that the client has nothing more to say, which is true, but some
    // proxies take it for the end.
    let (send, requests) = mpsc::channel(1);
    let first = AlertsRequest {
        start: Some(start),
        ..AlertsRequest::default()
    };
    let first = send.send(first).await;
    first.map_err(|_| Failure::Failed("the request could not be queued".to_owned()))?;
    let mut stream = client
        .alerts(ReceiverStream::new(requests))
        .await?
        .into_inner();

    if !output.is_json() {
        header(output)?;
    }
    let mut left = options.limit;
    // The last cursor that was there when reading began.
    let mut newest = None;
    let mut memory_only = String::new();
    let mut read = 0;
    loop {
        if left == Some(0) || (!options.follow && newest.is_some_and(|newest| read >= newest)) {
            return Ok(());
        }
        let gone = |how: String| {
            Failure::Unreachable(format!(
                "{how}; look at the daemon's log, then run this again"
            ))
        };
        let message = timeout(SILENCE_MAX, stream.message())
            .await
            .map_err(|_| {
                gone(format!(
                    "the daemon was silent for {} s",
                    SILENCE_MAX.as_secs()
                ))
            })??
            .ok_or_else(|| gone("the daemon ended the stream".to_owned()))?;
        match message.response {
            Some(Response::Alert(alert)) => {
                print(&alert, output)?;
                read = alert.cursor;
                left = left.map(|left| left.saturating_sub(1));
            }
            Some(Response::Heartbeat(heartbeat)) => {
                if newest.is_none() {
                    newest = Some(heartbeat.cursor);
                    if !journal.is_empty() && journal != heartbeat.journal {
                        say(&format!(
                            "the journal is {} now; what you had not read of {} is gone",
                            safe(&heartbeat.journal),
                            safe(&journal)
                        ));
                    }
                }
                if heartbeat.memory_only != memory_only {
                    memory_only = heartbeat.memory_only;
                    say(&match memory_only.as_str() {
                        "" => "the journal is written again".to_owned(),
                        reason => format!(
                            "the journal cannot be written, alerts are in the daemon's memory alone: {}",
                            safe(reason)
                        ),
                    });
                }
                read = heartbeat.position;
            }
            Some(Response::Expired(expired)) => {
                read = expired.before.saturating_sub(1);
                say(&format!(
                    "alerts {} to {read} are no longer kept",
                    expired.from
                ));
            }
            Some(Response::Gap(gap)) => {
                read = gap.before.saturating_sub(1);
                let why = match gap.reason.as_str() {
                    "not_written" => {
                        "were not written before the node stopped, or there were none".to_owned()
                    }
                    "damaged" => "cannot be read any more".to_owned(),
                    other => format!("are missing: {}", safe(other)),
                };
                say(&format!("alerts {} to {read} {why}", gap.from));
            }
            // The first heartbeat has said it.
            Some(Response::JournalChanged(_)) => {}
            // Not asked for, or a newer daemon says more.
            Some(Response::Acknowledged(_)) | None => {}
        }
    }
}

/// On stderr, so that stdout holds alerts alone; a closed stderr loses only this.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "monitorctl: {text}");
}

const CURSOR_WIDTH: usize = 6;
const TIME_WIDTH: usize = 20;
const SEVERITY_WIDTH: usize = 8;
const KIND_WIDTH: usize = 13;
const CONTAINER_WIDTH: usize = 12;
const IMAGE_WIDTH: usize = 19;
const PATH_WIDTH: usize = 20;

fn header(output: &mut Output<'_>) -> Result<(), Failure> {
    output.line_that_fits(&[
        Cell::new("CURSOR", CURSOR_WIDTH),
        Cell::new("TIME", TIME_WIDTH),
        Cell::new("SEVERITY", SEVERITY_WIDTH),
        Cell::new("KIND", KIND_WIDTH),
        Cell::new("CONTAINER", CONTAINER_WIDTH),
        Cell::new("PATH", PATH_WIDTH),
        Cell::new("IMAGE", IMAGE_WIDTH),
        Cell::new("MESSAGE", 0),
    ])?;
    Ok(())
}

fn print(alert: &Alert, output: &mut Output<'_>) -> Result<(), Failure> {
    if output.is_json() {
        let value = if output.is_ocsf() {
            ocsf::alert(alert)
        } else {
            json::alert(alert)
        };
        return Ok(output.json(&value)?);
    }
    let container = alert
        .container
        .as_ref()
        .map(|container| match &container.pod {
            Some(pod) => safe(&format!(
                "{}/{}/{}",
                pod.namespace,
                pod.name,
                or_dash(&container.name)
            )),
            None if !container.name.is_empty() => safe(&container.name),
            None => short(&container.id),
        });
    let image = alert.image.as_ref().map(|image| {
        if image.manifest_digest.is_empty() {
            &image.identity
        } else {
            &image.manifest_digest
        }
    });
    let path = match (&alert.file, &alert.process) {
        (Some(file), _) => safe_bytes(&file.path),
        (None, Some(process)) => safe_bytes(&process.executable),
        (None, None) => String::new(),
    };
    let severity = alert.severity();
    output.line_that_fits(&[
        Cell::new(&alert.cursor.to_string(), CURSOR_WIDTH),
        Cell::new(&time(alert.time.as_ref()), TIME_WIDTH),
        Cell::new(severity.name(), SEVERITY_WIDTH).coloured(colour(severity)),
        Cell::new(&safe(&alert.kind), KIND_WIDTH),
        Cell::new(or_dash(&container.unwrap_or_default()), CONTAINER_WIDTH),
        Cell::new(or_dash(&path), PATH_WIDTH),
        Cell::new(
            or_dash(&image.map(|image| short(image)).unwrap_or_default()),
            IMAGE_WIDTH,
        ),
        Cell::new(&safe(&alert.message), 0),
    ])?;
    Ok(())
}
