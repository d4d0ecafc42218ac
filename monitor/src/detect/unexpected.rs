//! What the profile of an image does not have, as findings.

use std::sync::Arc;

use super::{
    FileFinding, FileVerdict, Finding, HashState, Kind, Severity, connect::ConnectionFinding,
    draft, open,
};
use crate::{
    activity::{Act, Activity},
    profile::Deviation,
};

/// The finding of a deviation from a profile.
pub fn finding(activity: &Activity<'_>, deviation: Deviation) -> Finding {
    let mut file = None;
    let mut connection = None;
    let kind = match &activity.act {
        Act::Exec {
            exec,
            path,
            verdict,
            sha256,
        } => {
            file = Some(FileFinding {
                path: path.to_vec(),
                path_truncated: exec.used.file.path_truncated,
                verdict: verdict.unwrap_or(FileVerdict::Unverifiable),
                layer: None,
                expected: None,
                seen: *sha256,
                hash_state: if sha256.is_some() {
                    HashState::Done
                } else {
                    HashState::NotRead
                },
                same_bytes_as: None,
            });
            Kind::ExecUnexpected
        }
        Act::Open {
            open, is_in_root, ..
        } => {
            file = Some(open::file_of(&open.used, *is_in_root));
            Kind::OpenUnexpected
        }
        Act::Connect(connect) => {
            connection = Some(ConnectionFinding::of(connect));
            Kind::ConnectUnexpected
        }
    };
    Finding {
        kind,
        // What is partial does not have everything.
        severity: if deviation.is_partial {
            Severity::Low
        } else {
            Severity::Medium
        },
        time_boot_ns: activity.time_boot_ns,
        container: Arc::clone(activity.container),
        evidence: None,
        message: deviation.message,
        process: Some(draft::process_of(
            activity.process,
            activity.origin,
            activity.program,
            activity.ancestors,
        )),
        file,
        connection,
        details: (!deviation.nearby.is_empty())
            .then(|| format!("the profile allows nearby: {}", deviation.nearby.join(", "))),
        hook: Some(activity.hook),
        rule: None,
    }
}
