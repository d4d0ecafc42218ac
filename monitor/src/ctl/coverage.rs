//! `monitorctl container coverage`.

use std::collections::{BTreeMap, HashMap};

use monitor_api::{
    json,
    v1::{CoverageRequest, CoverageSpan},
};

use super::{
    Client, Failure, Output,
    output::{or_dash, time},
};

/// Prints when a container was watched, a span a line.
pub(super) async fn run(
    client: &mut Client,
    request: CoverageRequest,
    output: &mut Output<'_>,
) -> Result<(), Failure> {
    let response = client.coverage(request).await?.into_inner();
    if output.is_json() {
        let container = response.container.unwrap_or_default();
        for span in &response.spans {
            output.json(&json::coverage(&container, span))?;
        }
        return Ok(());
    }
    let rows = response.spans.iter().map(row).collect();
    output.table(
        &[
            "BEGIN", "END", "STATE", "REASON", "LOST", "CAUSES", "MERGED",
        ],
        rows,
    )?;
    Ok(())
}

fn row(span: &CoverageSpan) -> Vec<String> {
    let merged = match span.merged {
        0 | 1 => "-".to_owned(),
        merged => format!("{merged} gaps"),
    };
    vec![
        time(span.begin.as_ref()),
        time(span.end.as_ref()),
        span.state.clone(),
        or_dash(&span.reason).to_owned(),
        counts(&span.hooks),
        counts(&span.causes),
        merged,
    ]
}

fn counts(counts: &HashMap<String, u64>) -> String {
    let counts: BTreeMap<_, _> = counts.iter().collect();
    let named: Vec<_> = counts
        .into_iter()
        .map(|(name, count)| format!("{count} {name}"))
        .collect();
    or_dash(&named.join(", ")).to_owned()
}
