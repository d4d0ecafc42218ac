//! The contract's JSON, rendered from the protobuf types.
//!
//! Keys stand in the contract's order. What does not apply is null. Cursors are strings, since
//! they outgrow what JavaScript counts exactly. Times are RFC 3339 in UTC with nanoseconds. Bytes
//! are text as [`crate::bytes::escape`] makes it.

mod missing;

use std::{collections::HashMap, fmt::Write as _};

use jiff::Timestamp;
use prost_types::value::Kind;
use serde_json::{Map, Value, json};

use crate::{
    bytes::{escape, is_unsafe},
    v1,
};

pub use missing::{Missing, missing};

/// `value` on one line, in ASCII where a terminal might act on what is not: such characters only
/// occur inside strings, where JSON has an escape for them.
pub fn line(value: &Value) -> String {
    let plain = value.to_string();
    if !plain.chars().any(is_unsafe) {
        return plain;
    }
    let mut line = String::with_capacity(plain.len() + 16);
    for char in plain.chars() {
        if is_unsafe(char) {
            for unit in char.encode_utf16(&mut [0; 2]) {
                // Writing to a String cannot fail.
                let _ = write!(line, "\\u{unit:04x}");
            }
        } else {
            line.push(char);
        }
    }
    line
}

/// A profile without its document.
pub fn profile(profile: &v1::Profile) -> Value {
    json!({
        "manifest_digest": profile.manifest_digest,
        "reference": text(&profile.reference),
        "state": profile.state,
        "source": profile.source,
        "complete": profile.complete,
        "reasons": profile.reasons,
        "executables": profile.executables,
        "files": profile.files,
        "peers": profile.peers,
        "sockets": profile.sockets,
        "running": profile.running,
        "deviations": profile.deviations,
        "frozen_at": time(profile.frozen_at.as_ref()),
        "frozen_by": text(&profile.frozen_by),
    })
}

/// A plan, or the order that came of it.
pub fn rollback(rollback: &v1::Rollback) -> Value {
    let step = |step: &v1::rollback::Step| {
        json!({
            "name": step.name,
            "text": step.text,
            "begun_at": time(step.begun_at.as_ref()),
        })
    };
    json!({
        "id": rollback.id,
        "state": rollback.state,
        "step": text(&rollback.step),
        "runtime_namespace": rollback.runtime_namespace,
        "container": rollback.container,
        "kept": rollback.kept,
        "containers": rollback.containers,
        "resource_version": rollback.resource_version,
        "from_digest": text(&rollback.from_digest),
        "from_reference": rollback.from_reference,
        "to_digest": rollback.to_digest,
        "to_reference": rollback.to_reference,
        "chain_id": rollback.chain_id,
        "on_failure": rollback.on_failure,
        "reason": text(&rollback.reason),
        "by": rollback.by,
        "planned_at": time(rollback.planned_at.as_ref()),
        "began_at": time(rollback.began_at.as_ref()),
        "ended_at": time(rollback.ended_at.as_ref()),
        "message": text(&rollback.message),
        "notes": rollback.notes,
        "steps": rollback.steps.iter().map(step).collect::<Vec<_>>(),
        "resumed": rollback.resumed,
        "pull_bytes": rollback.pull_bytes,
        "pulled_bytes": rollback.pulled_bytes,
        "workload": rollback.workload.as_ref().map(|workload| json!({
            "namespace": workload.namespace,
            "kind": workload.kind,
            "name": workload.name,
            "container": workload.container,
        })),
    })
}

/// A rule of a policy.
pub fn policy_rule(rule: &v1::PolicyRule) -> Value {
    json!({
        "rule": rule.id,
        "on": rule.on,
        "when": text(&rule.condition),
        "severity": rule.severity,
        "respond": text(&rule.respond),
        "held": rule.held,
        "failed": rule.failed,
        "stopped": text(&rule.stopped),
    })
}

/// An exception of a policy, or one that was made of an alert.
pub fn policy_exception(exception: &v1::PolicyException) -> Value {
    json!({
        "exception": exception.id,
        "repository": text(&exception.repository),
        "when": exception.condition,
        "owner": exception.owner,
        "reason": exception.reason,
        "until": time(exception.until.as_ref()),
        "expired": exception.expired,
        "removable": exception.removable,
        "held": exception.held,
        "failed": exception.failed,
        "stopped": text(&exception.stopped),
    })
}

/// That an image is approved, or no longer.
pub fn approval(approval: &v1::Approval) -> Value {
    json!({
        "repository": approval.repository,
        "digest": approval.digest,
        "state": approval.state,
        "by": approval.by,
        "at": time(approval.at.as_ref()),
        "reason": approval.reason,
        "until": time(approval.until.as_ref()),
        "source": approval.source,
        "running": approval.running,
    })
}

/// What became of the signatures of an image.
fn signature(signature: &v1::verify_approval_response::Signature) -> Value {
    let attestations = signature.attestations.iter().map(|it| {
        json!({
            "digest": it.digest,
            "kind": it.kind,
            "target": it.target,
        })
    });
    json!({
        "state": signature.state,
        "reason": signature.reason,
        "required": signature.required,
        "attestations": attestations.collect::<Vec<_>>(),
        "down": signature.down,
    })
}

/// Whether an image may run.
pub fn approval_of(found: &v1::VerifyApprovalResponse) -> Value {
    let verdict = |verdict: &v1::verify_approval_response::Verdict| {
        json!({
            "repository": verdict.repository,
            "state": verdict.state,
            "approval": verdict.approval.as_ref().map(approval),
            "may_run": verdict.may_run,
            "signature": verdict.signature.as_ref().map(signature),
        })
    };
    json!({
        "manifest_digest": found.manifest_digest,
        "index_digests": found.index_digests,
        "verdicts": found.verdicts.iter().map(verdict).collect::<Vec<_>>(),
    })
}

/// An alert.
pub fn alert(alert: &v1::Alert) -> Value {
    json!({
        "schema": alert.schema,
        "journal": text(&alert.journal),
        "cursor": alert.cursor.to_string(),
        "id": alert.id,
        "revision": alert.revision,
        "fingerprint": alert.fingerprint,
        "time": time(alert.time.as_ref()),
        "observed_time": time(alert.observed_time.as_ref()),
        "first_seen": time(alert.first_seen.as_ref()),
        "last_seen": time(alert.last_seen.as_ref()),
        "count": alert.count,
        "cluster": text(&alert.cluster),
        "environment": text(&alert.environment),
        "node": text(&alert.node),
        "kind": alert.kind,
        "severity": alert.severity().name(),
        "rule": alert.rule.as_ref().map(|rule| json!({
            "id": rule.id,
            "version": rule.version,
        })),
        "attack": alert.attack,
        "message": alert.message,
        "runbook": text(&alert.runbook),
        "container": alert.container.as_ref().map(identity),
        "image": alert.image.as_ref().map(provenance),
        "process": alert.process.as_ref().map(process),
        "file": alert.file.as_ref().map(file),
        "connection": alert.connection.as_ref().map(|connection| json!({
            "protocol": connection.protocol,
            "family": connection.family,
            "address": bytes(&connection.address),
            "port": connection.port,
        })),
        "details": alert.details.as_ref().map(structure),
        "hook": text(&alert.hook),
    })
}

/// A container: the keys of the alert's `container`, then the rest.
pub fn container(container: &v1::Container) -> Value {
    let mut value = Map::new();
    if let Some(Value::Object(identity)) = container.container.as_ref().map(identity) {
        value.extend(identity);
    }
    let rest = json!({
        "image": container.image.as_ref().map(provenance),
        "digest_pinned": container.digest_pinned,
        "pid": container.pid,
        "started_at": time(container.started_at.as_ref()),
        "coverage": text(&container.coverage),
        "coverage_since": time(container.coverage_since.as_ref()),
        "findings": container.findings,
    });
    if let Value::Object(rest) = rest {
        value.extend(rest);
    }
    Value::Object(value)
}

/// An image of a node.
pub fn image(image: &v1::Image) -> Value {
    json!({
        "references": image.references,
        "runtime_namespaces": image.runtime_namespaces,
        "manifest_digest": text(&image.manifest_digest),
        "index_digest": text(&image.index_digest),
        "config_digest": text(&image.config_digest),
        "chain_id": text(&image.chain_id),
        "layers": image.layers,
        "state": image.state,
        "error": text(&image.error),
        "evidence": text(&image.evidence),
        "entries": image.entries,
        "containers": image.containers,
    })
}

/// A path of an image. The mode is octal text.
pub fn entry(entry: &v1::ImageEntry) -> Value {
    let is_file = entry.r#type == "file";
    json!({
        "path": escape(&entry.path),
        "type": entry.r#type,
        "mode": format!("{:04o}", entry.mode),
        "uid": entry.uid,
        "gid": entry.gid,
        "size": is_file.then_some(entry.size),
        "sha256": text(&entry.sha256),
        "layer": text(&entry.layer),
        "link_target": bytes(&entry.link_target),
    })
}

/// A difference of a container from its image.
pub fn difference(difference: &v1::Difference) -> Value {
    json!({
        "path": escape(&difference.path),
        "verdict": difference.verdict,
        "type": text(&difference.r#type),
        "expected_type": text(&difference.expected_type),
        "seen_sha256": text(&difference.seen_sha256),
        "expected_sha256": text(&difference.expected_sha256),
        "layer": text(&difference.layer),
        "details": text(&difference.details),
    })
}

/// The end of a comparison of a container with its image.
pub fn verified(
    begun: &v1::verify_container_response::Begun,
    verified: &v1::verify_container_response::Verified,
) -> Value {
    json!({
        "verified": {
            "container": begun.container.as_ref().map(identity),
            "image": begun.image.as_ref().map(provenance),
            "paths": verified.paths,
            "bytes": verified.bytes,
            "differences": counts(&verified.differences),
            "mount_points": verified.mount_points,
        },
    })
}

/// What was executed in a container.
pub fn executed(executed: &v1::verify_container_response::Executed) -> Value {
    let executables = executed.executables.iter().map(|executable| {
        json!({
            "path": escape(&executable.path),
            "sha256": text(&executable.sha256),
            "verdict": executable.verdict,
            "count": executable.count,
        })
    });
    json!({
        "since": time(executed.since.as_ref()),
        "executables": executables.collect::<Vec<_>>(),
        "left_out": executed.left_out,
    })
}

/// A blob of an image that was checked.
pub fn blob(blob: &v1::VerifyImageResponse) -> Value {
    json!({
        "manifest_digest": text(&blob.manifest_digest),
        "type": blob.r#type,
        "digest": blob.digest,
        "diff_id": text(&blob.diff_id),
        "state": blob.state,
        "error": text(&blob.error),
    })
}

/// Where and when an image ran.
pub fn usage(usage: &v1::ImageUsageResponse) -> Value {
    json!({
        "manifest_digest": usage.manifest_digest,
        "config_digest": usage.config_digest,
        "node": usage.node,
        "references": usage.references,
        "running": usage.running,
        "containers": usage.containers,
        "first_seen": time(usage.first_seen.as_ref()),
        "last_seen": time(usage.last_seen.as_ref()),
    })
}

/// A record of the audit log.
pub fn audit_record(record: &v1::AuditRecord) -> Value {
    json!({
        "sequence": record.sequence,
        "previous": record.previous,
        "time": time(record.time.as_ref()),
        "caller": record.caller,
        "roles": record.roles,
        "peer": text(&record.peer),
        "method": record.method,
        "object": text(&record.object),
        "outcome": record.outcome,
        "detail": text(&record.detail),
        "count": record.count,
        "since": time(record.since.as_ref()),
    })
}

/// Whether the audit log is whole.
pub fn audit_report(report: &v1::VerifyAuditResponse) -> Value {
    json!({
        "records": report.records,
        "first": report.first.as_ref().map(audit_link),
        "last": report.last.as_ref().map(audit_link),
        "broken": report.broken,
        "breaks": report.breaks.iter().map(|found| json!({
            "after": found.after,
            "reason": found.reason,
        })).collect::<Vec<_>>(),
        "noted_expired": report.noted_expired,
    })
}

fn audit_link(link: &v1::AuditLink) -> Value {
    json!({ "sequence": link.sequence, "hash": link.hash })
}

/// A node's account of itself.
pub fn status(status: &v1::Status) -> Value {
    json!({
        "node": text(&status.node),
        "version": status.version,
        "started_at": time(status.started_at.as_ref()),
        "kernel": text(&status.kernel),
        "ready": status.ready,
        "hooks": status.hooks.iter().map(hook).collect::<Vec<_>>(),
        "events": status.events.as_ref().map(|events| json!({
            "received": events.received,
            "judged": events.judged,
            "waiting": events.waiting,
            "expired_unknown": events.expired_unknown,
            "before_coverage": events.before_coverage,
            "host": events.host,
            "image": events.image,
            "metadata_changed": events.metadata_changed,
            "unverifiable": events.unverifiable,
            "runtime": events.runtime,
            "running": events.running,
            "failed": events.failed,
            "jit": events.jit,
            "caches": events.caches,
            "data": events.data,
            "noted": events.noted,
            "peers": events.peers,
            "earlier": events.earlier,
            "given_up": events.given_up,
            "raised_before": events.raised_before,
        })),
        "held": status.held.as_ref().map(|held| json!({
            "files": held.files,
            "queue_overflows": held.queue_overflows,
            "evicted": held.evicted,
        })),
        "changes": status.changes.as_ref().map(|changes| json!({
            "noticed": changes.noticed,
            "waiting": changes.waiting,
            "same": changes.same,
            "differing": changes.differing,
            "unverifiable": changes.unverifiable,
            "others": changes.others,
            "overflows": changes.overflows,
            "unfollowed": changes.unfollowed,
        })),
        "index": status.index.as_ref().map(|index| json!({
            "images_in_memory": index.images_in_memory,
            "layers_in_memory": index.layers_in_memory,
            "memory_bytes": index.memory_bytes,
            "layers_on_disk": index.layers_on_disk,
            "from_disk": index.from_disk,
            "from_blobs": index.from_blobs,
            "from_directories": index.from_directories,
            "corrupt": index.corrupt,
            "failed": index.failed,
        })),
        "collector": status.collector.as_ref().map(|collector| json!({
            "address": collector.address,
            "connected": collector.connected,
            "since": time(collector.since.as_ref()),
            "failures": collector.failures,
            "error": text(&collector.error),
        })),
        "controller": status.controller.as_ref().map(|controller| json!({
            "address": controller.address,
            "connected": controller.connected,
            "since": time(controller.since.as_ref()),
            "failures": controller.failures,
            "error": text(&controller.error),
            "heard_at": time(controller.heard_at.as_ref()),
            "reports": controller.reports,
            "left_out": controller.left_out,
            "approvals_refused": controller.approvals_refused,
            "approvals_error": text(&controller.approvals_error),
            "incidents": controller.incidents,
            "incidents_lost": controller.incidents_lost,
        })),
        "registry": status.registry.as_ref().map(|registry| json!({
            "layers": registry.layers,
            "bytes": registry.bytes,
            "fetching": registry.fetching,
            "failed": registry.failed,
            "error": text(&registry.error),
        })),
        "behaviour": status.behaviour.as_ref().map(|behaviour| json!({
            "profiles": counts(&behaviour.profiles),
            "expected": behaviour.expected,
            "learned": behaviour.learned,
            "ignored": behaviour.ignored,
            "deviations": behaviour.deviations,
            "unprofiled": behaviour.unprofiled,
            "failed": behaviour.failed,
            "bytes": behaviour.bytes,
        })),
        "approvals": status.approvals.as_ref().map(|approvals| json!({
            "repositories": approvals.repositories,
            "unapproved": approvals.unapproved,
            "error": text(&approvals.error),
        })),
        "rollbacks": counts(&status.rollbacks),
        "responses": counts(&status.responses),
        "policies": status.policies.as_ref().map(|policies| json!({
            "rules": policies.rules,
            "exceptions": policies.exceptions,
            "stopped": policies.stopped,
            "added": policies.added,
            "excepted": policies.excepted,
            "changed": policies.changed,
            "refused": policies.refused,
            "error": text(&policies.error),
        })),
        "coverage": status.coverage.as_ref().map(|coverage| json!({
            "gaps": coverage.gaps,
            "self_check": coverage.self_check.as_ref().map(|check| json!({
                "last_success": time(check.last_success.as_ref()),
                "succeeded": check.succeeded,
                "missed": check.missed,
                "failed": check.failed,
                "error": text(&check.error),
            })),
        })),
        "containerd": status.containerd.as_ref().map(|containerd| json!({
            "address": containerd.address,
            "connected": containerd.connected,
            "since": time(containerd.since.as_ref()),
            "error": text(&containerd.error),
        })),
        "containers": counts(&status.containers),
        "images": counts(&status.images),
        "alerts": status.alerts.as_ref().map(|alerts| json!({
            "journal": alerts.journal,
            "oldest_cursor": alerts.oldest_cursor.to_string(),
            "newest_cursor": alerts.newest_cursor.to_string(),
            "by_kind": counts(&alerts.by_kind),
            "durable_cursor": alerts.durable_cursor.to_string(),
            "journal_bytes": alerts.journal_bytes,
            "memory_only_since": time(alerts.memory_only_since.as_ref()),
            "memory_only": text(&alerts.memory_only),
            "lost": alerts.lost,
            "consumers": cursors(&alerts.consumers),
        })),
        "audit": status.audit.as_ref().map(|audit| json!({
            "oldest": audit.oldest,
            "head": audit.head.as_ref().map(audit_link),
            "fault": text(&audit.fault),
            "failures": audit.failures,
        })),
        "api": status.api.as_ref().map(|api| json!({
            "connections": api.connections,
            "connections_refused": api.connections_refused,
            "alert_streams": api.alert_streams,
            "alert_streams_refused": api.alert_streams_refused,
            "alerts_expired": api.alerts_expired,
            "connections_unidentified": api.connections_unidentified,
            "tls_reload_failures": api.tls_reload_failures,
        })),
        "outputs": status.outputs.iter().map(output).collect::<Vec<_>>(),
        "memory_resident_bytes": status.memory_resident_bytes,
    })
}

fn output(output: &v1::status::Output) -> Value {
    json!({
        "name": output.name,
        "kind": output.kind,
        "path": output.path,
        "cursor": output.cursor.to_string(),
        "written": output.written,
        "missing": output.missing,
        "failures": output.failures,
        "failing_since": time(output.failing_since.as_ref()),
        "error": text(&output.error),
    })
}

/// A part of a container's time.
pub fn coverage(container: &v1::alert::Container, span: &v1::CoverageSpan) -> Value {
    json!({
        "container": identity(container),
        "begin": time(span.begin.as_ref()),
        "end": time(span.end.as_ref()),
        "state": span.state,
        "reason": text(&span.reason),
        "hooks": counts(&span.hooks),
        "causes": counts(&span.causes),
        "merged": span.merged,
    })
}

fn hook(hook: &v1::status::Hook) -> Value {
    json!({
        "event": hook.event,
        "hook": text(&hook.hook),
        "limits": text(&hook.limits),
        "seen": hook.seen,
        "unwatched": hook.unwatched,
        "remembered": hook.remembered,
        "submitted": hook.submitted,
        "ring_full": hook.ring_full,
        "map_full": hook.map_full,
        "unreadable": hook.unreadable,
        "truncated": hook.truncated,
        "recursion_misses": hook.recursion_misses,
    })
}

fn identity(container: &v1::alert::Container) -> Value {
    json!({
        "id": container.id,
        "name": text(&container.name),
        "runtime_namespace": container.runtime_namespace,
        "kind": container.kind,
        "pod": container.pod.as_ref().map(|pod| json!({
            "namespace": pod.namespace,
            "name": pod.name,
            "uid": pod.uid,
        })),
        "workload": container.workload.as_ref().map(|workload| json!({
            "kind": workload.kind,
            "name": workload.name,
        })),
        "created_at": time(container.created_at.as_ref()),
    })
}

fn provenance(image: &v1::alert::Image) -> Value {
    let candidate = |candidate: &v1::alert::Candidate| {
        json!({
            "manifest_digest": text(&candidate.manifest_digest),
            "index_digest": text(&candidate.index_digest),
            "config_digest": text(&candidate.config_digest),
        })
    };
    json!({
        "reference": text(&image.reference),
        "identity": image.identity,
        "candidates": image.candidates.iter().map(candidate).collect::<Vec<_>>(),
        "manifest_digest": text(&image.manifest_digest),
        "index_digest": text(&image.index_digest),
        "config_digest": text(&image.config_digest),
        "chain_id": text(&image.chain_id),
        "evidence": text(&image.evidence),
    })
}

fn process(process: &v1::alert::Process) -> Value {
    let list = |items: &[Vec<u8>]| items.iter().map(|item| escape(item)).collect::<Vec<_>>();
    json!({
        "pid": process.pid,
        "start_time": time(process.start_time.as_ref()),
        "exec_id": text(&process.exec_id),
        "parent_pid": process.parent_pid,
        "uid": process.uid,
        "origin": process.origin,
        "executable": bytes(&process.executable),
        "arguments": list(&process.arguments),
        "arguments_truncated": process.arguments_truncated,
        "ancestors": list(&process.ancestors),
    })
}

fn file(file: &v1::alert::File) -> Value {
    json!({
        "path": bytes(&file.path),
        "path_truncated": file.path_truncated,
        "verdict": file.verdict,
        "layer": text(&file.layer),
        "expected_sha256": text(&file.expected_sha256),
        "seen_sha256": text(&file.seen_sha256),
        "hash_state": text(&file.hash_state),
        "same_bytes_as": bytes(&file.same_bytes_as),
    })
}

/// Sorted, so that two renderings of the same counts are the same text.
fn counts(counts: &HashMap<String, u64>) -> Value {
    let mut sorted: Vec<_> = counts.iter().collect();
    sorted.sort_unstable();
    sorted
        .into_iter()
        .map(|(name, count)| (name.clone(), json!(count)))
        .collect()
}

/// The same for cursors, which are text.
fn cursors(cursors: &HashMap<String, u64>) -> Value {
    let mut sorted: Vec<_> = cursors.iter().collect();
    sorted.sort_unstable();
    sorted
        .into_iter()
        .map(|(name, cursor)| (name.clone(), json!(cursor.to_string())))
        .collect()
}

fn text(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

fn bytes(bytes: &[u8]) -> Option<String> {
    (!bytes.is_empty()).then(|| escape(bytes))
}

/// RFC 3339; null for a time that is not set or that no calendar has.
fn time(time: Option<&prost_types::Timestamp>) -> Option<String> {
    let time = time?;
    let time = Timestamp::new(time.seconds, time.nanos).ok()?;
    Some(format!("{time:.9}"))
}

fn structure(details: &prost_types::Struct) -> Value {
    details
        .fields
        .iter()
        .map(|(name, value)| (name.clone(), dynamic(value)))
        .collect()
}

/// Recursion is bounded: prost refuses messages nested deeper than 100.
fn dynamic(value: &prost_types::Value) -> Value {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(value)) => json!(value),
        // Whole numbers without a fraction; what is not finite has no JSON and becomes null.
        Some(Kind::NumberValue(value)) => match value.to_string().parse::<i64>() {
            Ok(whole) => json!(whole),
            Err(_) => json!(value),
        },
        Some(Kind::StringValue(value)) => json!(value),
        Some(Kind::ListValue(list)) => list.values.iter().map(dynamic).collect(),
        Some(Kind::StructValue(fields)) => structure(fields),
    }
}

#[cfg(test)]
pub(crate) mod tests;
