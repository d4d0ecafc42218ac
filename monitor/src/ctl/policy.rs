//! `monitorctl policy`.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read as _},
    path::Path,
};

use monitor_api::{
    json,
    v1::{ListPoliciesRequest, PolicyRule, policies_client::PoliciesClient},
};
use serde_json::Value;
use tonic::transport::Channel;

use super::{
    Failure, Output,
    output::{Cell, or_dash, safe},
};
use crate::{
    files,
    policy::{
        Document, Policies,
        recording::{LINE_BYTES_MAX, Recorded},
    },
    yaml::DOCUMENT_BYTES_MAX,
};

/// `policy list`.
pub(super) async fn list(channel: Channel, output: &mut Output<'_>) -> Result<(), Failure> {
    let mut client = PoliciesClient::new(channel);
    let listed = client.list_policies(ListPoliciesRequest {}).await?;
    let listed = listed.into_inner();
    if output.is_json() {
        for rule in &listed.rules {
            output.json(&json::policy_rule(rule))?;
        }
    } else {
        let header = ["RULE", "ON", "SEVERITY", "HELD", "FAILED", "WHEN"];
        let row = |rule: &PolicyRule| {
            let when = or_dash(&rule.condition).to_owned();
            vec![
                rule.id.clone(),
                rule.on.clone(),
                rule.severity.clone(),
                rule.held.to_string(),
                rule.failed.to_string(),
                if rule.stopped.is_empty() {
                    when
                } else {
                    format!("stopped: {}", rule.stopped)
                },
            ]
        };
        output.table(&header, listed.rules.iter().map(row).collect())?;
    }
    if listed.error.is_empty() {
        return Ok(());
    }
    Err(Failure::Failed(format!(
        "the folder of policies is refused as it is now, and what it held before is in force: {}",
        safe(&listed.error)
    )))
}

/// `policy test`.
pub(super) fn test(file: &Path, events: &Path, output: &mut Output<'_>) -> Result<(), Failure> {
    let refused = |error: String| Failure::Failed(format!("{}: {error}", file.display()));
    let text = files::read_text(file, DOCUMENT_BYTES_MAX).map_err(refused)?;
    let document = Document::parse(&text).map_err(|error| refused(error.to_string()))?;
    let mut policies = Policies::new(&[document]).map_err(|error| refused(error.to_string()))?;
    let failed = |why: String| Failure::Failed(format!("{}: {why}", events.display()));
    let reader: Box<dyn BufRead> = if events == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        let opened = File::open(events).map_err(|error| failed(error.to_string()))?;
        Box::new(BufReader::new(opened))
    };
    let lines = Lines { reader, number: 0 };
    for line in lines {
        let (number, line) = line.map_err(|error| failed(error.to_string()))?;
        let recorded =
            Recorded::parse(&line).map_err(|error| failed(format!("line {number}: {error}")))?;
        for replayed in policies.replay(&recorded) {
            print(&replayed.json(recorded.time), output)?;
        }
    }
    let rules = policies.rules().iter();
    let problems = rules.filter_map(|rule| problem(&rule.id, rule.failed(), &rule.stopped));
    let exceptions = policies.exceptions().iter();
    let problems: Vec<String> = problems
        .chain(exceptions.filter_map(|it| problem(&it.id, it.failed(), &it.stopped)))
        .collect();
    if problems.is_empty() {
        return Ok(());
    }
    Err(Failure::Failed(problems.join("; ")))
}

fn problem(id: &str, failed: u64, stopped: &Option<String>) -> Option<String> {
    match stopped {
        Some(reason) => Some(format!("the condition of {id}: {reason}")),
        None => (failed > 0).then(|| {
            format!(
                "the condition of {id} failed {failed} times: it looks at what not every event has"
            )
        }),
    }
}

fn print(finding: &Value, output: &mut Output<'_>) -> Result<(), Failure> {
    if output.is_json() {
        return Ok(output.json(finding)?);
    }
    let text = |name: &str| {
        safe(
            finding
                .get(name)
                .and_then(Value::as_str)
                .unwrap_or_default(),
        )
    };
    let excepted = text("excepted_by");
    let severity = if excepted.is_empty() {
        text("severity")
    } else {
        "excepted".to_owned()
    };
    let by = match (excepted, text("severity_by")) {
        (excepted, _) if !excepted.is_empty() => excepted,
        (_, changed) if !changed.is_empty() => changed,
        _ => text("rule"),
    };
    output.line_that_fits(&[
        Cell::new(&text("time"), 30),
        Cell::new(&severity, 8),
        Cell::new(&text("kind"), 20),
        Cell::new(&text("container"), 12),
        Cell::new(&by, 28),
        Cell::new(&text("message"), 0),
    ])?;
    Ok(())
}

/// Lines with their numbers, none much longer than allowed.
struct Lines<R> {
    reader: R,
    number: u64,
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = io::Result<(u64, String)>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut line = String::new();
        self.number += 1;
        let bytes_max = LINE_BYTES_MAX as u64 + 2;
        match self.reader.by_ref().take(bytes_max).read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(Ok((self.number, line.trim_end().to_owned()))),
            Err(error) => Some(Err(error)),
        }
    }
}
