//! The alert of a finding: a pure function of what is given to it.

use jiff::{SignedDuration, Timestamp};
use monitor_api::{SCHEMA, v1};
use nix::time::{ClockId, clock_gettime};
use prost_types::{Struct, Value, value};
use ulid::Ulid;

use super::redact::redact;
use crate::{
    containers::{Container, ContainerKind, Identity, ImageId, processes::Origin},
    detect::{
        FileFinding, Finding, HashState, Kind, ProcessFinding, Severity,
        connect::{ConnectionFinding, Sensitive},
    },
    digest::Hasher,
    sensor::event::Outcome,
};

/// What the node puts into each of its alerts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// The cluster's name; may be empty.
    pub cluster: String,
    /// The environment's name; may be empty.
    pub environment: String,
    /// The node's name.
    pub node: String,
    /// The wall clock's time at the kernel's boot: what is added to a hook's time. See
    /// [`boot_time`].
    pub boot_time: Timestamp,
}

/// The wall clock's time at boot, by both clocks as they are now. It moves when the wall clock is
/// set.
///
/// # Errors
///
/// The clock's error; Linux has both clocks since 2.6.39.
pub fn boot_time() -> nix::Result<Timestamp> {
    let since_boot = clock_gettime(ClockId::CLOCK_BOOTTIME)?;
    let nanos = i32::try_from(since_boot.tv_nsec()).unwrap_or(0);
    Ok(Timestamp::now()
        .saturating_sub(SignedDuration::new(since_boot.tv_sec(), nanos))
        .unwrap_or(Timestamp::UNIX_EPOCH))
}

/// The first revision of the alert for `finding`, judged at `observed`, under the id `id`. Journal
/// and cursor stay empty until [`super::AlertLog::append`].
pub fn build(finding: &Finding, node: &NodeFacts, observed: Timestamp, id: Ulid) -> v1::Alert {
    let container = &finding.container;
    let time = timestamp(since_boot(node, finding.time_boot_ns));
    v1::Alert {
        fingerprint: fingerprint(finding),
        time: Some(time),
        first_seen: Some(time),
        last_seen: Some(time),
        kind: finding.kind.name().to_owned(),
        severity: severity(finding.severity).into(),
        rule: Some(v1::alert::Rule {
            id: match &finding.rule {
                Some(rule) => format!("policy.{rule}"),
                None => format!("{}.{}", rules(finding.kind), finding.kind.name()),
            },
            version: "1".to_owned(),
        }),
        attack: attack(finding).iter().map(|&id| id.to_owned()).collect(),
        message: finding.message.clone(),
        container: Some(container_of(container)),
        image: Some(image_of(container, finding.evidence)),
        process: finding
            .process
            .as_ref()
            .map(|process| process_of(process, node)),
        file: finding.file.as_ref().map(file_of),
        connection: finding.connection.as_ref().map(connection_of),
        details: details_of(finding),
        hook: finding.hook.unwrap_or_default().to_owned(),
        ..first_revision(node, observed, id)
    }
}

/// Gives an alert another severity, by the rule of a policy.
pub fn regrade(alert: &mut v1::Alert, severity: Severity, rule: &str) {
    alert.severity = self::severity(severity).into();
    let kind = Some(value::Kind::StringValue(rule.to_owned()));
    let details = alert.details.get_or_insert_with(Struct::default);
    details
        .fields
        .insert("severity_by".to_owned(), Value { kind });
}

/// What every alert of this node begins with.
pub(super) fn first_revision(node: &NodeFacts, observed: Timestamp, id: Ulid) -> v1::Alert {
    v1::Alert {
        schema: SCHEMA.to_owned(),
        id: id.to_string(),
        revision: 1,
        observed_time: Some(timestamp(observed)),
        count: 1,
        cluster: node.cluster.clone(),
        environment: node.environment.clone(),
        node: node.node.clone(),
        ..v1::Alert::default()
    }
}

/// Who a container is, as alerts and the inventory say it. The workload is not known to a node by
/// itself.
pub fn container_of(container: &Container) -> v1::alert::Container {
    v1::alert::Container {
        id: container.id.clone(),
        name: container.name.clone(),
        runtime_namespace: container.runtime_namespace.clone(),
        kind: match container.kind {
            ContainerKind::Container => "container",
            ContainerKind::Sandbox => "sandbox",
        }
        .to_owned(),
        pod: container.pod.as_ref().map(|pod| v1::alert::Pod {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
        }),
        workload: None,
        created_at: unix(container.created_unix_ns),
    }
}

/// Nanoseconds since 1970 as protobuf has them; `None` beyond what any calendar has.
fn unix(nanos: i128) -> Option<prost_types::Timestamp> {
    Timestamp::from_nanosecond(nanos).ok().map(timestamp)
}

/// Which image a container was created from, as alerts and the inventory say it.
pub fn image_of(container: &Container, evidence: Option<&str>) -> v1::alert::Image {
    let index = |image: &ImageId| {
        image
            .index
            .map(|digest| digest.to_string())
            .unwrap_or_default()
    };
    let mut said = v1::alert::Image {
        reference: container.image_reference.clone().unwrap_or_default(),
        identity: container.identity.grade().to_owned(),
        evidence: evidence.unwrap_or_default().to_owned(),
        ..v1::alert::Image::default()
    };
    match &container.identity {
        Identity::Proven(image) | Identity::Claimed(image) => {
            said.manifest_digest = image.manifest.to_string();
            said.index_digest = index(image);
            said.config_digest = image.config.to_string();
            said.chain_id = image.chain_id.to_string();
        }
        Identity::Ambiguous(candidates) => {
            if let Some(image) = candidates.first() {
                said.chain_id = image.chain_id.to_string();
            }
            said.candidates = candidates
                .iter()
                .map(|image| v1::alert::Candidate {
                    manifest_digest: image.manifest.to_string(),
                    index_digest: index(image),
                    config_digest: image.config.to_string(),
                })
                .collect();
        }
        Identity::None | Identity::Pending => {
            let layers = container.unread_layers();
            said.chain_id = layers.map_or_else(String::new, |layers| layers.chain_id.to_string());
        }
    }
    said
}

/// A time as protobuf has it.
pub fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    // Before 1970 protobuf counts nanoseconds forward from the second below.
    let nanos = time.as_nanosecond();
    prost_types::Timestamp {
        seconds: i64::try_from(nanos.div_euclid(1_000_000_000)).unwrap_or_default(),
        nanos: i32::try_from(nanos.rem_euclid(1_000_000_000)).unwrap_or_default(),
    }
}

/// A time of the kernel's events, in nanoseconds since boot, by the wall clock.
pub fn since_boot(node: &NodeFacts, nanos: u64) -> Timestamp {
    // u64 nanoseconds are 584 years: they fit a duration, and the sum saturates in the year 9999.
    let since_boot = SignedDuration::from_nanos(i64::try_from(nanos).unwrap_or(i64::MAX));
    node.boot_time
        .saturating_add(since_boot)
        .unwrap_or(Timestamp::MAX)
}

fn severity(severity: Severity) -> v1::Severity {
    match severity {
        Severity::Info => v1::Severity::Info,
        Severity::Low => v1::Severity::Low,
        Severity::Medium => v1::Severity::Medium,
        Severity::High => v1::Severity::High,
        Severity::Critical => v1::Severity::Critical,
    }
}

/// What a rule is one of.
pub(super) fn rules(kind: Kind) -> &'static str {
    match kind {
        Kind::ConnectSensitive | Kind::OpenSensitive => "sensitive",
        Kind::ExecUnexpected | Kind::OpenUnexpected | Kind::ConnectUnexpected => "profile",
        Kind::ImageUnapproved
        | Kind::ImageUnsigned
        | Kind::ImageRegistryUntrusted
        | Kind::ImageBaseDenied
        | Kind::ImageReferenceMoved => "approval",
        _ => "content",
    }
}

/// MITRE ATT&CK techniques of the enterprise matrix, the closest first.
fn attack(finding: &Finding) -> &'static [&'static str] {
    let sensitive = finding.connection.as_ref().and_then(|peer| peer.sensitive);
    match finding.kind {
        Kind::ConnectSensitive => match sensitive {
            // Unsecured Credentials: Cloud Instance Metadata API.
            Some(Sensitive::Metadata) => &["T1552.005"],
            // Container Administration Command; Escape to Host; Deploy Container.
            Some(Sensitive::Runtime) => &["T1609", "T1611", "T1610"],
            // Network Sniffing; Adversary-in-the-Middle.
            Some(Sensitive::Frames) => &["T1040", "T1557"],
            None => &[],
        },
        // Command and Scripting Interpreter; Ingress Tool Transfer: it was brought in.
        Kind::ExecAdded => &["T1059", "T1105"],
        // Compromise Host Software Binary; Hijack Execution Flow.
        Kind::ExecModified => &["T1554", "T1574"],
        // Reflective Code Loading.
        Kind::ExecMemory => &["T1620"],
        // Command and Scripting Interpreter.
        Kind::ExecVolume => &["T1059"],
        // Deploy Container.
        Kind::ScriptAdded => &["T1059", "T1105"],
        Kind::ScriptModified => &["T1059", "T1554"],
        Kind::ScriptVolume => &["T1059"],
        Kind::CodeAdded | Kind::CodeModified | Kind::CodeVolume => &["T1574"],
        Kind::CodeMemory => &["T1620"],
        // Unsecured Credentials.
        Kind::OpenSensitive => &["T1552"],
        // Command and Scripting Interpreter.
        Kind::ExecUnexpected => &["T1059"],
        // Data from Local System.
        Kind::OpenUnexpected => &["T1005"],
        // Application Layer Protocol; Non-Standard Port.
        Kind::ConnectUnexpected => &["T1071", "T1571"],
        Kind::ImageFileModified => image_file(finding),
        Kind::ImageUnknown
        | Kind::ImageUnapproved
        | Kind::ImageUnsigned
        | Kind::ImageRegistryUntrusted => &["T1610"],
        // Implant Internal Image.
        Kind::ImageBaseDenied => &["T1525"],
        // A newer image under the same tag is what deployments do.
        Kind::ImageReferenceMoved => &[],
        // Escape to Host.
        Kind::Posture => &["T1611"],
        // That bytes could not be compared is nobody's technique.
        Kind::ContentUnverifiable => &[],
    }
}

fn image_file(finding: &Finding) -> &'static [&'static str] {
    let is_gone = finding
        .file
        .as_ref()
        .is_some_and(|file| file.hash_state == HashState::NotRead);
    match finding.severity {
        // Indicator Removal: File Deletion; Data Destruction.
        _ if is_gone => &["T1070.004", "T1485"],
        // Compromise Host Software Binary.
        Severity::High => &["T1554"],
        // Data Manipulation: Stored Data Manipulation.
        _ => &["T1565.001"],
    }
}

fn process_of(finding: &ProcessFinding, node: &NodeFacts) -> v1::alert::Process {
    let process = &finding.process;
    v1::alert::Process {
        pid: process.pid,
        start_time: Some(timestamp(since_boot(node, process.start_boot_ns))),
        exec_id: String::new(),
        parent_pid: process.parent_pid,
        uid: process.uid,
        origin: match finding.origin {
            Origin::Init => "init",
            Origin::Exec => "exec",
            Origin::Unknown => "unknown",
        }
        .to_owned(),
        executable: finding.executable.clone(),
        arguments: redact(&finding.arguments),
        arguments_truncated: finding.arguments_truncated,
        ancestors: finding.ancestors.clone(),
    }
}

fn file_of(file: &FileFinding) -> v1::alert::File {
    v1::alert::File {
        path: file.path.clone(),
        path_truncated: file.path_truncated,
        verdict: file.verdict.name().to_owned(),
        layer: file
            .layer
            .map(|digest| digest.to_string())
            .unwrap_or_default(),
        expected_sha256: file
            .expected
            .map(|hash| hash.to_string())
            .unwrap_or_default(),
        seen_sha256: file.seen.map(|hash| hash.to_string()).unwrap_or_default(),
        hash_state: match file.hash_state {
            HashState::Done => "done",
            HashState::Pending => "pending",
            HashState::Gone => "gone",
            HashState::NotRead => "",
        }
        .to_owned(),
        same_bytes_as: file.same_bytes_as.clone().unwrap_or_default(),
    }
}

fn connection_of(connection: &ConnectionFinding) -> v1::alert::Connection {
    v1::alert::Connection {
        protocol: connection.protocol.to_owned(),
        family: connection.family.to_owned(),
        address: connection.address.clone(),
        port: connection.port.map(u32::from),
    }
}

fn details_of(finding: &Finding) -> Option<Struct> {
    let outcome = finding.connection.as_ref().and_then(|peer| peer.outcome);
    let reason = finding.details.as_deref();
    let fields = [
        reason.map(|reason| ("reason", reason)),
        outcome.map(|outcome| ("result", result(outcome))),
    ];
    let field = |(name, text): (&str, &str)| {
        let kind = Some(value::Kind::StringValue(text.to_owned()));
        (name.to_owned(), Value { kind })
    };
    let fields: std::collections::BTreeMap<_, _> =
        fields.into_iter().flatten().map(field).collect();
    (!fields.is_empty()).then_some(Struct { fields })
}

fn result(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Connected => "connected",
        Outcome::Refused => "refused",
        Outcome::TimedOut => "timed_out",
        Outcome::Unreachable => "unreachable",
        Outcome::Abandoned => "abandoned",
        Outcome::Failed => "failed",
    }
}

fn fingerprint(finding: &Finding) -> String {
    let (container, file) = (&finding.container, finding.file.as_ref());
    let peer = finding.connection.as_ref();
    fingerprint_of(finding.kind.name(), Some(container), file, peer)
}

/// SHA-256 over kind, image, file path, seen hash and peer, in hex. Each field is preceded by its
/// length, so that no two lists of fields are the same bytes; a field that does not apply is told
/// from an empty one.
pub(super) fn fingerprint_of(
    kind: &str,
    container: Option<&Container>,
    file: Option<&FileFinding>,
    peer: Option<&ConnectionFinding>,
) -> String {
    let mut hash = Hasher::new();
    let mut field = |bytes: Option<&[u8]>| match bytes {
        None => hash.update(&[0]),
        Some(bytes) => {
            hash.update(&[1]);
            hash.update(&u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_be_bytes());
            hash.update(bytes);
        }
    };
    field(Some(kind.as_bytes()));
    // What stands for the image also says what it is, so that a chain ID is no manifest.
    let (what, image) = match container.map(|container| (container, &container.identity)) {
        Some((_, Identity::Proven(image) | Identity::Claimed(image))) => {
            ("manifest", Some(image.manifest.to_string()))
        }
        Some((_, Identity::Ambiguous(candidates))) => (
            "chain",
            candidates.first().map(|image| image.chain_id.to_string()),
        ),
        Some((container, Identity::None | Identity::Pending)) => {
            ("reference", container.image_reference.clone())
        }
        None => ("any", None),
    };
    field(Some(what.as_bytes()));
    field(image.as_deref().map(str::as_bytes));
    field(file.map(|file| file.path.as_slice()));
    field(
        file.and_then(|file| file.seen.as_ref())
            .map(|seen| seen.0.as_slice()),
    );
    match peer {
        None => field(None),
        Some(peer) => {
            field(Some(peer.protocol.as_bytes()));
            field(Some(&peer.address));
            field(
                peer.port
                    .map(u16::to_be_bytes)
                    .as_ref()
                    .map(|port| port.as_slice()),
            );
        }
    }
    hash.finish().to_string()
}

#[cfg(test)]
pub(super) mod tests;
