//! Findings about a container as a whole.

use std::sync::Arc;

use crate::{
    containers::{Container, Identity},
    detect::{Finding, Kind, Severity},
};

/// `image_unknown`, if nothing accounts for the container; `content_unverifiable` if that is
/// because its image could not be read.
pub fn judge_identity(container: &Arc<Container>, time_boot_ns: u64) -> Option<Finding> {
    if container.identity != Identity::None {
        return None;
    }
    if let Some(problem) = &container.image_problem {
        let compared = match problem.layers {
            Some(_) => {
                "; what the container executes is compared with the lower directories of its snapshot"
            }
            None => "",
        };
        let reason = format!("{}{compared}", problem.reason);
        return Some(contents_unavailable(container, time_boot_ns, &reason));
    }
    let details = if container.snapshot_key.is_empty() {
        "the container was created from a directory, without a snapshot and without an image"
    } else {
        "no ancestor of the container's snapshot is the chain ID of an image that containerd knows, and no name leads to one"
    };
    Some(about(
        container,
        time_boot_ns,
        Kind::ImageUnknown,
        Severity::Medium,
        "no image accounts for this container; what it executes is compared with nothing"
            .to_owned(),
        details.to_owned(),
    ))
}

/// `content_unverifiable`, for a container whose image's contents could not be had.
pub fn contents_unavailable(
    container: &Arc<Container>,
    time_boot_ns: u64,
    reason: &str,
) -> Finding {
    about(
        container,
        time_boot_ns,
        Kind::ContentUnverifiable,
        Severity::Medium,
        "the contents of this container's image could not be verified".to_owned(),
        reason.to_owned(),
    )
}

/// `posture`, of which the rule that adds it says how severe it is.
pub fn posture(container: &Arc<Container>, time_boot_ns: u64, details: String) -> Finding {
    about(
        container,
        time_boot_ns,
        Kind::Posture,
        Severity::Medium,
        String::new(),
        details,
    )
}

/// A finding about a container as a whole.
pub(super) fn about(
    container: &Arc<Container>,
    time_boot_ns: u64,
    kind: Kind,
    severity: Severity,
    message: String,
    details: String,
) -> Finding {
    Finding {
        kind,
        severity,
        time_boot_ns,
        container: Arc::clone(container),
        evidence: None,
        message,
        process: None,
        file: None,
        connection: None,
        details: Some(details),
        hook: None,
        rule: None,
    }
}
