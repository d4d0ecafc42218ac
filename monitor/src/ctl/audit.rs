//! `monitorctl audit`.

use monitor_api::{
    json,
    v1::{AuditLink, ListAuditRequest, VerifyAuditRequest},
};

use super::{
    Client, Failure, Output, answered,
    output::{Cell, or_dash, safe, time},
};

/// Records of a page.
const PAGE_SIZE: u32 = 1000;

/// `audit list`.
pub(super) async fn list(
    client: &mut Client,
    mut after: u64,
    output: &mut Output<'_>,
) -> Result<(), Failure> {
    loop {
        let request = ListAuditRequest {
            after,
            page_size: PAGE_SIZE,
        };
        let page = answered(async { Ok(client.list_audit(request).await?.into_inner()) }).await?;
        let Some(last) = page.records.last() else {
            return Ok(());
        };
        after = last.sequence;
        for record in &page.records {
            if output.is_json() {
                output.json(&json::audit_record(record))?;
                continue;
            }
            let who = format!("{} ({})", safe(&record.caller), safe(or_dash(&record.peer)));
            let what = format!("{} {}", safe(&record.method), safe(&record.object));
            let count = if record.count > 1 {
                format!(
                    "{} times since {} ",
                    record.count,
                    time(record.since.as_ref())
                )
            } else {
                String::new()
            };
            output.line_that_fits(&[
                Cell::new(&record.sequence.to_string(), 6),
                Cell::new(&time(record.time.as_ref()), 20),
                Cell::new(&safe(&record.outcome), 7),
                Cell::new(&who, 24),
                Cell::new(what.trim_end(), 24),
                Cell::new(&format!("{count}{}", safe(&record.detail)), 0),
            ])?;
        }
    }
}

/// `audit verify`. A broken chain is a failure.
pub(super) async fn verify(
    client: &mut Client,
    noted: Option<AuditLink>,
    output: &mut Output<'_>,
) -> Result<(), Failure> {
    let request = VerifyAuditRequest { noted };
    let report = client.verify_audit(request).await?.into_inner();
    if output.is_json() {
        output.json(&json::audit_report(&report))?;
    } else {
        let link = |link: &Option<AuditLink>| {
            link.as_ref().map_or_else(
                || "-".to_owned(),
                |link| format!("{}/{}", link.sequence, safe(&link.hash)),
            )
        };
        let mut facts = vec![
            ("records", report.records.to_string()),
            ("first", link(&report.first)),
            ("last", link(&report.last)),
        ];
        for found in &report.breaks {
            facts.push((
                "broken",
                format!("after record {}: {}", found.after, found.reason),
            ));
        }
        if report.noted_expired {
            facts.push((
                "noted",
                "the record that was noted has expired; nothing can be said of it".to_owned(),
            ));
        }
        super::inventory::print_facts(&facts, output)?;
    }
    if report.broken > 0 {
        return Err(Failure::Failed(format!(
            "the audit log is broken at {} places: records were removed or changed; compare with the daemon's own log, which has each record's hash",
            report.broken
        )));
    }
    Ok(())
}
