//! Findings about whether a container's image may run.

use std::sync::Arc;

use super::{Finding, Kind, Severity, container};
use crate::{
    approval::{Standing, Statement},
    containers::{Container, Identity},
    digest::Digest,
    provenance::Signature,
};

/// What is known of whether a container's image may run.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// Its reference without tag and digest.
    pub repository: &'a str,
    /// The worst that is said of an image that it may be.
    pub standing: Standing<'a>,
    /// Unmanaged repositories are denied.
    pub is_default_deny: bool,
    /// Its repository needs a signature, and it is known to have none that is valid.
    pub unsigned: Option<Unsigned>,
    /// Its registry is not one of those that are trusted.
    pub untrusted_registry: Option<&'a str>,
    /// It is built on an image that is denied.
    pub denied_base: Option<&'a DeniedBase>,
    /// What its reference stands for now, if that is another image.
    pub moved_to: Option<Digest>,
}

/// An image without a valid signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsigned {
    /// Digest of its manifest.
    pub manifest: Digest,
    /// What became of its signatures.
    pub signature: Signature,
}

/// An image that others must not be built on.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeniedBase {
    /// Chain ID of its layers.
    pub chain_id: Digest,
    /// Why.
    pub reason: String,
}

/// All that is to be said of a container's image.
pub fn judge(container: &Arc<Container>, facts: &Facts<'_>, time_boot_ns: u64) -> Vec<Finding> {
    let about = |kind, severity, message: &str, details: String| {
        container::about(
            container,
            time_boot_ns,
            kind,
            severity,
            message.to_owned(),
            details,
        )
    };
    let unapproved = unapproved(container, facts).map(|reason| {
        about(
            Kind::ImageUnapproved,
            Severity::High,
            "this container runs an image that is not approved",
            reason,
        )
    });
    let unsigned = facts.unsigned.as_ref().map(|unsigned| {
        let (severity, message) = match unsigned.signature {
            // A registry that is down says nothing against the image.
            Signature::Unreachable { .. } => (
                Severity::Medium,
                "this container runs an image of which nobody could be asked whether it is signed",
            ),
            _ => (
                Severity::High,
                "this container runs an image without a valid signature",
            ),
        };
        let reason = format!("{}: {}", unsigned.manifest, unsigned.signature);
        about(Kind::ImageUnsigned, severity, message, reason)
    });
    let untrusted = facts.untrusted_registry.map(|registry| {
        about(
            Kind::ImageRegistryUntrusted,
            Severity::High,
            "this container's image comes from a registry that is not trusted",
            format!("{registry} is not among approval.registries"),
        )
    });
    let denied = facts.denied_base.map(|base| {
        about(
            Kind::ImageBaseDenied,
            Severity::High,
            "this container's image is built on one that is denied",
            format!("its first layers are {}: {}", base.chain_id, base.reason),
        )
    });
    let moved = facts.moved_to.map(|target| {
        about(
            Kind::ImageReferenceMoved,
            Severity::Info,
            "the reference of this container's image stands for another image now",
            format!("it stands for {target}; a container that is created now runs that"),
        )
    });
    [unapproved, unsigned, untrusted, denied, moved]
        .into_iter()
        .flatten()
        .collect()
}

/// Why a container's image may not run, if it may not.
fn unapproved(container: &Container, facts: &Facts<'_>) -> Option<String> {
    let repository = facts.repository;
    let said = |statement: &Statement| {
        let Statement { digest, by, at, .. } = statement;
        format!("{digest} by {by} at {at}: {}", statement.reason)
    };
    let reason = match facts.standing {
        Standing::Approved(_) => return None,
        Standing::Unmanaged if !facts.is_default_deny => return None,
        Standing::Unmanaged => {
            format!("nothing is approved of {repository}, and approval.default is deny")
        }
        Standing::Revoked(statement) => format!("revoked: {}", said(statement)),
        Standing::Expired(statement) => match statement.until {
            Some(until) => format!("approved until {until}: {}", said(statement)),
            None => format!("approved for a time that is over: {}", said(statement)),
        },
        Standing::Unapproved => match &container.identity {
            Identity::None | Identity::Pending => format!(
                "images of {repository} need approval, and no image accounts for this container"
            ),
            Identity::Ambiguous(candidates) => format!(
                "it may be any of {} images, not all of which are approved for {repository}",
                candidates.len()
            ),
            Identity::Proven(image) | Identity::Claimed(image) => {
                format!("{} is not approved for {repository}", image.manifest)
            }
        },
    };
    Some(reason)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::{
        approval::State, containers::ImageId, detect::file::tests as sample,
        image::manifest::digest_of,
    };

    #[test]
    fn what_may_not_run_is_told_with_its_reason() {
        let statement = Statement {
            digest: digest_of(b"a"),
            state: State::Approved,
            by: "alice".to_owned(),
            at: "2026-11-27T10:00:00Z".parse().unwrap(),
            reason: "release 42".to_owned(),
            until: "2026-11-28T10:00:00Z".parse().ok(),
        };
        let base = DeniedBase {
            chain_id: digest_of(b"base"),
            reason: "end of life".to_owned(),
        };
        let facts = |standing| Facts {
            repository: "example.org/web",
            standing,
            is_default_deny: false,
            unsigned: None,
            untrusted_registry: None,
            denied_base: None,
            moved_to: None,
        };
        let image = ImageId {
            manifest: digest_of(b"manifest"),
            config: digest_of(b"config"),
            chain_id: digest_of(b"chain"),
            index: None,
        };
        let container = Arc::new(Container {
            identity: Identity::Proven(Arc::new(image)),
            ..Container::clone(&sample::container())
        });
        let check = |facts: Facts<'_>, expect: &[(&str, &str)]| {
            let found = judge(&container, &facts, 1);
            let found: Vec<(&str, &str)> = found
                .iter()
                .map(|it| (it.kind.name(), it.details.as_deref().unwrap_or("")))
                .collect();
            let is_expected = found.len() == expect.len()
                && found
                    .iter()
                    .zip(expect)
                    .all(|(found, expect)| found.0 == expect.0 && found.1.contains(expect.1));
            assert!(is_expected, "{found:?} instead of {expect:?}");
        };
        let deny = |standing| Facts {
            is_default_deny: true,
            ..facts(standing)
        };
        check(facts(Standing::Unmanaged), &[]);
        check(
            deny(Standing::Unmanaged),
            &[("image_unapproved", "approval.default is deny")],
        );
        check(deny(Standing::Approved(&statement)), &[]);
        check(
            facts(Standing::Unapproved),
            &[("image_unapproved", "is not approved for example.org/web")],
        );
        check(
            facts(Standing::Revoked(&statement)),
            &[("image_unapproved", "revoked: ")],
        );
        check(
            facts(Standing::Expired(&statement)),
            &[("image_unapproved", "approved until 2026-11-28T10:00:00Z")],
        );
        let all = Facts {
            unsigned: Some(Unsigned {
                manifest: digest_of(b"manifest"),
                signature: Signature::Missing,
            }),
            untrusted_registry: Some("evil.example"),
            denied_base: Some(&base),
            moved_to: Some(digest_of(b"b")),
            ..facts(Standing::Unapproved)
        };
        check(
            all,
            &[
                ("image_unapproved", "is not approved"),
                ("image_unsigned", "it has no signature"),
                ("image_registry_untrusted", "evil.example"),
                ("image_base_denied", "end of life"),
                ("image_reference_moved", "it stands for sha256:"),
            ],
        );
        let severity_of = |signature: Signature| {
            let unsigned = Unsigned {
                manifest: digest_of(b"manifest"),
                signature,
            };
            let facts = Facts {
                unsigned: Some(unsigned),
                ..facts(Standing::Unmanaged)
            };
            let found = judge(&container, &facts, 1);
            found.first().map(|it| it.severity)
        };
        let unreachable = Signature::Unreachable {
            what: "the registry is down".to_owned(),
        };
        assert_eq!(severity_of(Signature::WrongKey), Some(Severity::High));
        assert_eq!(severity_of(unreachable), Some(Severity::Medium));
    }
}
