//! The calls about the audit log.

use monitor_api::v1::{
    AuditLink, AuditRecord, ListAuditRequest, ListAuditResponse, VerifyAuditRequest,
    VerifyAuditResponse, status, verify_audit_response,
};
use tonic::Status;

use super::pages::size;
use crate::{
    alerts::build::timestamp,
    audit::{Audit, AuditError, Link, Record, Summary, chain},
};

pub(super) async fn list(
    audit: &Audit,
    request: &ListAuditRequest,
) -> Result<ListAuditResponse, Status> {
    let count = size(request.page_size)?;
    let records = audit.page(request.after, count).await?;
    Ok(ListAuditResponse {
        records: records.into_iter().map(record).collect(),
    })
}

pub(super) async fn verify(
    audit: &Audit,
    request: &VerifyAuditRequest,
) -> Result<VerifyAuditResponse, Status> {
    let noted = request.noted.as_ref().map(|noted| {
        let hash = chain::hash(&noted.hash).ok_or_else(|| {
            Status::invalid_argument("noted.hash must be 64 lowercase hex digits")
        })?;
        let sequence = noted.sequence;
        Ok::<_, Status>(Link { sequence, hash })
    });
    let report = audit.check(noted.transpose()?).await?;
    let breaks = report.breaks.into_iter();
    Ok(VerifyAuditResponse {
        records: report.records,
        first: report.first.map(link),
        last: report.last.map(link),
        breaks: breaks
            .map(|it| verify_audit_response::Break {
                after: it.after,
                reason: it.reason,
            })
            .collect(),
        broken: report.broken,
        noted_expired: report.is_noted_expired,
    })
}

pub(super) fn summary(summary: Summary) -> status::Audit {
    status::Audit {
        oldest: summary.first,
        head: Some(link(summary.head)),
        fault: summary.fault.unwrap_or_default(),
        failures: summary.failures,
    }
}

fn link(link: Link) -> AuditLink {
    AuditLink {
        sequence: link.sequence,
        hash: link.hash.to_string(),
    }
}

fn record(record: Record) -> AuditRecord {
    let time = |text: &str| text.parse().ok().map(timestamp);
    let entry = record.entry;
    AuditRecord {
        sequence: record.sequence,
        previous: record.previous,
        time: time(&record.time),
        caller: entry.caller,
        roles: entry.roles,
        peer: entry.peer,
        method: entry.method,
        object: entry.object,
        outcome: entry.outcome,
        detail: entry.detail,
        count: entry.count,
        since: entry.since.as_deref().and_then(time),
    }
}

impl From<AuditError> for Status {
    fn from(error: AuditError) -> Self {
        let message = error.to_string();
        match error {
            AuditError::Unwritable { .. } => Self::failed_precondition(message),
            AuditError::OutcomeUnwritten { .. }
            | AuditError::Unreadable { .. }
            | AuditError::Ended => Self::internal(message),
        }
    }
}
