//! Every metric: its name, what it means, and where it is taken from.

use std::collections::BTreeMap;

use monitor_api::v1::status;

use super::{Facts, IMAGES_MAX};
use crate::containers;

/// How a value may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It only grows.
    Counter,
    /// It is what it is now.
    Gauge,
}

impl Kind {
    /// Prometheus' name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
        }
    }
}

/// A value, and those of the labels in their order.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) labels: Vec<String>,
    pub(super) value: u64,
}

/// A row of the table.
#[derive(Debug)]
pub(super) struct Metric {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) unit: &'static str,
    /// Each has few values, or its bound stands in the meaning.
    pub(super) labels: &'static [&'static str],
    pub(super) meaning: &'static str,
    pub(super) read: fn(&Facts) -> Vec<Sample>,
}

const fn counter(
    name: &'static str,
    unit: &'static str,
    labels: &'static [&'static str],
    meaning: &'static str,
    read: fn(&Facts) -> Vec<Sample>,
) -> Metric {
    Metric {
        name,
        kind: Kind::Counter,
        unit,
        labels,
        meaning,
        read,
    }
}

const fn gauge(
    name: &'static str,
    unit: &'static str,
    labels: &'static [&'static str],
    meaning: &'static str,
    read: fn(&Facts) -> Vec<Sample>,
) -> Metric {
    Metric {
        kind: Kind::Gauge,
        ..counter(name, unit, labels, meaning, read)
    }
}

/// All metrics, in the order in which they are written.
pub(super) const METRICS: &[Metric] = &[
    gauge(
        "monitor_build_info",
        "",
        &["version"],
        "1, with the daemon's version",
        |facts| vec![labelled([&facts.status.version], 1)],
    ),
    gauge(
        "monitor_start_time_seconds",
        "seconds since 1970",
        &[],
        "when the daemon started",
        |facts| seconds(facts.status.started_at.as_ref()),
    ),
    gauge(
        "monitor_ready",
        "",
        &[],
        "1 once hooks are attached and running containers are known",
        |facts| one(facts.status.ready.into()),
    ),
    gauge(
        "monitor_memory_resident_bytes",
        "bytes",
        &[],
        "resident memory of the daemon",
        |facts| one(facts.status.memory_resident_bytes),
    ),
    gauge(
        "monitor_hook_info",
        "",
        &["event", "hook"],
        "1, with the hook in force for a kind of event: lsm, fentry, tracepoint, or empty if there is none",
        |facts| {
            let hooks = facts.status.hooks.iter();
            hooks
                .map(|hook| labelled([&hook.event, &hook.hook], 1))
                .collect()
        },
    ),
    counter(
        "monitor_hook_seen_total",
        "runs",
        &["event"],
        "runs of a hook; each was unwatched, remembered, submitted or lost",
        |facts| hooks(facts, |hook| hook.seen),
    ),
    counter(
        "monitor_hook_unwatched_total",
        "runs",
        &["event"],
        "runs for tasks of the host",
        |facts| hooks(facts, |hook| hook.unwatched),
    ),
    counter(
        "monitor_hook_remembered_total",
        "runs",
        &["event"],
        "runs answered in the kernel from the memory of verdicts",
        |facts| hooks(facts, |hook| hook.remembered),
    ),
    counter(
        "monitor_hook_submitted_total",
        "events",
        &["event"],
        "events given to the daemon",
        |facts| hooks(facts, |hook| hook.submitted),
    ),
    counter(
        "monitor_hook_truncated_total",
        "events",
        &["event"],
        "of the submitted, those with something cut",
        |facts| hooks(facts, |hook| hook.truncated),
    ),
    counter(
        "monitor_hook_lost_total",
        "events",
        &["event", "cause"],
        "events lost: ring_full (the ring buffer was full), map_full (the CPU was in the middle of as many hooks as there is room for), unreadable (structures of the kernel could not be read), recursion_misses (the kernel skipped the hook, which ran already on that CPU)",
        |facts| facts.status.hooks.iter().flat_map(lost).collect(),
    ),
    counter(
        "monitor_events_received_total",
        "events",
        &[],
        "events read from the ring buffer since it was made",
        |facts| of(&facts.status.events, |events| events.received),
    ),
    counter(
        "monitor_events_judged_total",
        "events",
        &[],
        "events judged",
        |facts| of(&facts.status.events, |events| events.judged),
    ),
    counter(
        "monitor_events_passed_total",
        "events",
        &["reason"],
        "of the judged, those that nothing is said of: host, image (the image's bytes), metadata_changed, unverifiable (said of the container as a whole), runtime (its own steps), jit, caches (bytecode of a source of the image), data, noted (forks, exits, redirections), peers, raised_before (by a daemon before this one)",
        |facts| facts.status.events.iter().flat_map(passed).collect(),
    ),
    counter(
        "monitor_events_unjudged_total",
        "events",
        &["reason"],
        "events given up: expired_unknown (it never became known whose they are), before_coverage (seen before containerd told of its containers), failed (a defect of the daemon)",
        |facts| {
            let events = facts.status.events.iter();
            events
                .flat_map(|events| {
                    named([
                        ("expired_unknown", events.expired_unknown),
                        ("before_coverage", events.before_coverage),
                        ("failed", events.failed),
                    ])
                })
                .collect()
        },
    ),
    counter(
        "monitor_events_given_up_total",
        "events",
        &[],
        "events let go of in the ring before they were judged, since too many waited; lost if the daemon is killed meanwhile",
        |facts| of(&facts.status.events, |events| events.given_up),
    ),
    gauge(
        "monitor_events_waiting",
        "events",
        &[],
        "events received and not judged yet",
        |facts| of(&facts.status.events, |events| events.waiting),
    ),
    gauge(
        "monitor_held_files",
        "files",
        &[],
        "executed files held until they are judged",
        |facts| of(&facts.status.held, |held| held.files),
    ),
    counter(
        "monitor_held_queue_overflows_total",
        "overflows",
        &[],
        "overflows of the fanotify queue, each of which lost an unknown number of files to hold",
        |facts| of(&facts.status.held, |held| held.queue_overflows),
    ),
    counter(
        "monitor_held_evicted_total",
        "files",
        &[],
        "held files let go because too many waited for their exec, or that could not be opened",
        |facts| of(&facts.status.held, |held| held.evicted),
    ),
    counter(
        "monitor_changes_noticed_total",
        "changes",
        &[],
        "changes of paths of images in containers",
        |facts| of(&facts.status.changes, |changes| changes.noticed),
    ),
    counter(
        "monitor_changes_judged_total",
        "changes",
        &["verdict"],
        "of them, by what was found: same (the image's bytes), differing, unverifiable",
        |facts| {
            let changes = facts.status.changes.iter();
            changes
                .flat_map(|changes| {
                    named([
                        ("same", changes.same),
                        ("differing", changes.differing),
                        ("unverifiable", changes.unverifiable),
                    ])
                })
                .collect()
        },
    ),
    gauge(
        "monitor_changes_waiting",
        "changes",
        &[],
        "changes that wait to be read and judged",
        |facts| of(&facts.status.changes, |changes| changes.waiting),
    ),
    counter(
        "monitor_changes_others_total",
        "files",
        &[],
        "files written in containers that are not of the image",
        |facts| of(&facts.status.changes, |changes| changes.others),
    ),
    counter(
        "monitor_changes_overflows_total",
        "overflows",
        &[],
        "times that a list of changes was lost, so that the roots of containers were walked instead",
        |facts| of(&facts.status.changes, |changes| changes.overflows),
    ),
    counter(
        "monitor_changes_unfollowed_total",
        "directories",
        &[],
        "directories and containers that could not be followed; they are walked now and then, or not at all",
        |facts| of(&facts.status.changes, |changes| changes.unfollowed),
    ),
    counter(
        "monitor_coverage_gaps_total",
        "alerts",
        &[],
        "coverage_gap alerts raised",
        |facts| of(&facts.status.coverage, |coverage| coverage.gaps),
    ),
    counter(
        "monitor_self_checks_total",
        "checks",
        &["outcome"],
        "checks of the daemon of itself: succeeded (seen), missed (done and not seen), failed (could not be done)",
        |facts| {
            let checks = self_check(facts).into_iter();
            checks
                .flat_map(|check| {
                    named([
                        ("succeeded", check.succeeded),
                        ("missed", check.missed),
                        ("failed", check.failed),
                    ])
                })
                .collect()
        },
    ),
    gauge(
        "monitor_self_check_last_success_seconds",
        "seconds since 1970",
        &[],
        "when such a check was seen last; missing while none was",
        |facts| seconds(self_check(facts).and_then(|check| check.last_success.as_ref())),
    ),
    gauge(
        "monitor_containerd_connected",
        "",
        &[],
        "1 while containerd answers",
        |facts| {
            of(&facts.status.containerd, |containerd| {
                containerd.connected.into()
            })
        },
    ),
    gauge(
        "monitor_containers_running",
        "containers",
        &["identity"],
        "running containers by how well their image is known: proven, ambiguous, claimed, none, pending",
        |facts| sorted(&facts.status.containers),
    ),
    gauge(
        "monitor_image_running",
        "containers",
        &["repository", "digest"],
        "running containers of an image, by repository and manifest digest; of the 256 images with the most containers, the rest as repository other",
        images,
    ),
    gauge(
        "monitor_index_images",
        "images",
        &[],
        "images whose contents are in memory",
        |facts| of(&facts.status.index, |index| index.images_in_memory),
    ),
    gauge(
        "monitor_index_layers",
        "layers",
        &["place"],
        "layers whose contents are kept: in memory, on disk",
        |facts| {
            let index = facts.status.index.iter();
            index
                .flat_map(|index| {
                    named([
                        ("memory", index.layers_in_memory),
                        ("disk", index.layers_on_disk),
                    ])
                })
                .collect()
        },
    ),
    gauge(
        "monitor_index_memory_bytes",
        "bytes",
        &[],
        "memory that layers in memory take",
        |facts| of(&facts.status.index, |index| index.memory_bytes),
    ),
    counter(
        "monitor_index_layers_read_total",
        "layers",
        &["source"],
        "layers read: from disk (where they were kept), from blobs, from directories (where they were unpacked)",
        |facts| {
            let index = facts.status.index.iter();
            index
                .flat_map(|index| {
                    named([
                        ("disk", index.from_disk),
                        ("blobs", index.from_blobs),
                        ("directories", index.from_directories),
                    ])
                })
                .collect()
        },
    ),
    counter(
        "monitor_index_corrupt_total",
        "layers",
        &[],
        "layers whose file on disk was corrupt or of another version, and which were read anew",
        |facts| of(&facts.status.index, |index| index.corrupt),
    ),
    counter(
        "monitor_index_failed_total",
        "images",
        &[],
        "images whose contents could not be told",
        |facts| of(&facts.status.index, |index| index.failed),
    ),
    counter(
        "monitor_registry_layers_total",
        "layers",
        &[],
        "layers read from registries since containerd does not have their blobs",
        |facts| of(&facts.status.registry, |registry| registry.layers),
    ),
    counter(
        "monitor_registry_bytes_total",
        "bytes",
        &[],
        "bytes of blobs that registries sent, whether they could be used or not",
        |facts| of(&facts.status.registry, |registry| registry.bytes),
    ),
    gauge(
        "monitor_registry_fetching",
        "images",
        &[],
        "images that are being read from registries or wait for it",
        |facts| of(&facts.status.registry, |registry| registry.fetching),
    ),
    counter(
        "monitor_registry_failed_total",
        "images",
        &[],
        "images that could not be read from their registry, each time",
        |facts| of(&facts.status.registry, |registry| registry.failed),
    ),
    gauge(
        "monitor_profiles",
        "profiles",
        &["state"],
        "profiles of images: seeded, learning, frozen",
        |facts| {
            let behaviour = facts.status.behaviour.iter();
            behaviour.flat_map(|it| sorted(&it.profiles)).collect()
        },
    ),
    counter(
        "monitor_profile_expected_total",
        "acts",
        &[],
        "execs, opens and connects that the profile of the image had",
        |facts| of(&facts.status.behaviour, |behaviour| behaviour.expected),
    ),
    counter(
        "monitor_profile_learned_total",
        "acts",
        &[],
        "execs, opens and connects that were new and were learned",
        |facts| of(&facts.status.behaviour, |behaviour| behaviour.learned),
    ),
    counter(
        "monitor_profile_ignored_total",
        "acts",
        &[],
        "execs, opens and connects that were neither learned nor told: of containers that are not learned from, and commands put in from outside that are not known yet",
        |facts| of(&facts.status.behaviour, |behaviour| behaviour.ignored),
    ),
    counter(
        "monitor_profile_deviations_total",
        "acts",
        &[],
        "execs, opens and connects that the profile of the image did not have",
        |facts| of(&facts.status.behaviour, |behaviour| behaviour.deviations),
    ),
    counter(
        "monitor_profile_unprofiled_total",
        "containers",
        &[],
        "containers for whose image's profile there was no room",
        |facts| of(&facts.status.behaviour, |behaviour| behaviour.unprofiled),
    ),
    counter(
        "monitor_profile_failed_total",
        "profiles",
        &[],
        "profiles that could not be read or written, each time",
        |facts| of(&facts.status.behaviour, |behaviour| behaviour.failed),
    ),
    gauge(
        "monitor_profile_bytes",
        "bytes",
        &[],
        "memory that profiles take, roughly",
        |facts| of(&facts.status.behaviour, |behaviour| behaviour.bytes),
    ),
    gauge(
        "monitor_policy_rules",
        "rules",
        &[],
        "rules of policies in force",
        |facts| of(&facts.status.policies, |policies| policies.rules),
    ),
    gauge(
        "monitor_policy_exceptions",
        "exceptions",
        &[],
        "exceptions, also those whose time is over",
        |facts| of(&facts.status.policies, |policies| policies.exceptions),
    ),
    gauge(
        "monitor_policy_stopped",
        "rules",
        &[],
        "rules and exceptions that are no longer in force since their conditions take too long",
        |facts| of(&facts.status.policies, |policies| policies.stopped),
    ),
    counter(
        "monitor_findings_added_total",
        "findings",
        &[],
        "findings that rules of policies added",
        |facts| of(&facts.status.policies, |policies| policies.added),
    ),
    counter(
        "monitor_findings_excepted_total",
        "findings",
        &[],
        "findings that were not told for an exception",
        |facts| of(&facts.status.policies, |policies| policies.excepted),
    ),
    counter(
        "monitor_findings_regraded_total",
        "findings",
        &[],
        "findings that were told with another severity by a rule",
        |facts| of(&facts.status.policies, |policies| policies.changed),
    ),
    gauge(
        "monitor_approval_repositories",
        "repositories",
        &[],
        "repositories in which something was said of an image",
        |facts| of(&facts.status.approvals, |approvals| approvals.repositories),
    ),
    gauge(
        "monitor_containers_unapproved",
        "containers",
        &[],
        "running containers whose images are not approved",
        |facts| of(&facts.status.approvals, |approvals| approvals.unapproved),
    ),
    gauge(
        "monitor_rollback_orders",
        "orders",
        &["state"],
        "orders of rollbacks that are kept: running, done, held, undone, stopped, failed, aborted",
        |facts| sorted(&facts.status.rollbacks),
    ),
    counter(
        "monitor_responses_total",
        "alerts",
        &["outcome"],
        "alerts whose rules ask for a response: proposed, applied, refused, told, repeated, lost",
        |facts| sorted(&facts.status.responses),
    ),
    counter(
        "monitor_policy_refused_total",
        "times",
        &[],
        "times that policies were refused when they were read anew; those before stay in force",
        |facts| of(&facts.status.policies, |policies| policies.refused),
    ),
    gauge(
        "monitor_collector_connected",
        "",
        &[],
        "1 while a collector is called and takes alerts",
        |facts| {
            of(&facts.status.collector, |collector| {
                u64::from(collector.connected)
            })
        },
    ),
    counter(
        "monitor_collector_failures_total",
        "calls",
        &[],
        "calls of the collector that failed or ended, but for the daemon's end",
        |facts| of(&facts.status.collector, |collector| collector.failures),
    ),
    gauge(
        "monitor_controller_connected",
        "",
        &[],
        "1 while the conversation with the cluster's controller is open",
        |facts| {
            of(&facts.status.controller, |controller| {
                u64::from(controller.connected)
            })
        },
    ),
    counter(
        "monitor_controller_failures_total",
        "calls",
        &[],
        "calls of the controller that failed or ended, but for the daemon's end",
        |facts| of(&facts.status.controller, |controller| controller.failures),
    ),
    gauge(
        "monitor_controller_heard_seconds",
        "seconds",
        &[],
        "when the controller last said anything, since 1970",
        |facts| {
            let controller = facts.status.controller.as_ref();
            seconds(controller.and_then(|controller| controller.heard_at.as_ref()))
        },
    ),
    counter(
        "monitor_controller_reports_total",
        "reports",
        &[],
        "reports of running containers that were sent to the controller whole",
        |facts| of(&facts.status.controller, |controller| controller.reports),
    ),
    gauge(
        "monitor_controller_left_out",
        "containers",
        &[],
        "running containers that the last report left out because there were too many",
        |facts| of(&facts.status.controller, |controller| controller.left_out),
    ),
    counter(
        "monitor_controller_approvals_refused_total",
        "sets",
        &[],
        "sets of the cluster's approvals that were refused; the one before stays in force",
        |facts| {
            of(&facts.status.controller, |controller| {
                controller.approvals_refused
            })
        },
    ),
    gauge(
        "monitor_controller_incidents",
        "incidents",
        &[],
        "incidents that wait until the controller takes them",
        |facts| of(&facts.status.controller, |controller| controller.incidents),
    ),
    counter(
        "monitor_controller_incidents_lost_total",
        "incidents",
        &[],
        "incidents that made room for newer ones before the controller took them",
        |facts| {
            of(&facts.status.controller, |controller| {
                controller.incidents_lost
            })
        },
    ),
    counter(
        "monitor_alerts_total",
        "alerts",
        &["kind", "severity"],
        "alerts, and revisions of them, that were given a cursor",
        |facts| {
            let counts = facts.alerts.by_kind.iter();
            counts
                .map(|((kind, severity), count)| labelled([kind, severity.name()], *count))
                .collect()
        },
    ),
    counter(
        "monitor_alerts_lost_total",
        "alerts",
        &[],
        "alerts that fell out of memory before they could be written",
        |facts| one(facts.alerts.lost),
    ),
    counter(
        "monitor_alerts_expired_unread_total",
        "alerts",
        &[],
        "alerts that readers were told had expired, summed over readers",
        |facts| one(facts.alerts.expired_unread),
    ),
    gauge(
        "monitor_journal_oldest_cursor",
        "cursor",
        &[],
        "the oldest cursor kept, 0 if there is none",
        |facts| one(facts.alerts.oldest),
    ),
    gauge(
        "monitor_journal_newest_cursor",
        "cursor",
        &[],
        "the newest cursor that readers can have, 0 if there is none",
        |facts| one(facts.alerts.newest),
    ),
    gauge(
        "monitor_journal_durable_cursor",
        "cursor",
        &[],
        "the newest cursor that survives a crash of the node, 0 if there is none",
        |facts| one(facts.alerts.durable),
    ),
    gauge(
        "monitor_journal_bytes",
        "bytes",
        &[],
        "the journal on disk",
        |facts| one(facts.alerts.bytes),
    ),
    gauge(
        "monitor_journal_memory_only",
        "",
        &[],
        "1 while the journal cannot be written, so that alerts are in memory alone",
        |facts| one(facts.alerts.memory_only.is_some().into()),
    ),
    counter(
        "monitor_audit_records_total",
        "records",
        &[],
        "records of the audit log since it began, also those that expired",
        |facts| {
            of(&facts.status.audit, |audit| {
                audit.head.as_ref().map_or(0, |head| head.sequence)
            })
        },
    ),
    counter(
        "monitor_audit_failures_total",
        "records",
        &[],
        "records of the audit log that could not be written at once; changes are refused then",
        |facts| of(&facts.status.audit, |audit| audit.failures),
    ),
    gauge(
        "monitor_consumer_lag_alerts",
        "alerts",
        &["consumer"],
        "cursors between what a named consumer acknowledged and the newest; at most 256 consumers",
        |facts| {
            let lags = facts.status.alerts.iter().flat_map(|alerts| {
                let consumers = alerts.consumers.iter();
                consumers.map(|(name, cursor)| {
                    let lag = alerts.newest_cursor.saturating_sub(*cursor);
                    (name.clone(), lag)
                })
            });
            sorted(&lags.collect::<BTreeMap<_, _>>())
        },
    ),
    counter(
        "monitor_output_written_total",
        "alerts",
        &["output"],
        "alerts, and revisions of them, that an output wrote; at most 8 outputs, whose lag is that of the consumer output:NAME",
        |facts| outputs(facts, |output| output.written),
    ),
    counter(
        "monitor_output_missing_total",
        "alerts",
        &["output"],
        "cursors that were missing when an output came to them, which it wrote in their place",
        |facts| outputs(facts, |output| output.missing),
    ),
    counter(
        "monitor_output_failures_total",
        "attempts",
        &["output"],
        "attempts of an output to write that failed; each is made again",
        |facts| outputs(facts, |output| output.failures),
    ),
    gauge(
        "monitor_output_failing",
        "",
        &["output"],
        "1 while an output cannot write",
        |facts| outputs(facts, |output| output.failing_since.is_some().into()),
    ),
    gauge(
        "monitor_api_connections",
        "connections",
        &[],
        "open connections of the API",
        |facts| of(&facts.status.api, |api| api.connections),
    ),
    counter(
        "monitor_api_connections_refused_total",
        "connections",
        &["reason"],
        "connections that were closed: too_many, unidentified (it was not known who calls)",
        |facts| {
            let api = facts.status.api.iter();
            api.flat_map(|api| {
                named([
                    ("too_many", api.connections_refused),
                    ("unidentified", api.connections_unidentified),
                ])
            })
            .collect()
        },
    ),
    gauge(
        "monitor_api_alert_streams",
        "streams",
        &[],
        "open streams of alerts",
        |facts| of(&facts.status.api, |api| api.alert_streams),
    ),
    counter(
        "monitor_api_alert_streams_refused_total",
        "streams",
        &[],
        "streams of alerts refused because there were too many",
        |facts| of(&facts.status.api, |api| api.alert_streams_refused),
    ),
    counter(
        "monitor_api_tls_reload_failures_total",
        "reloads",
        &[],
        "changes of the files for TLS that could not be used; the last good ones stay in force",
        |facts| of(&facts.status.api, |api| api.tls_reload_failures),
    ),
];

fn labelled<const N: usize>(labels: [&str; N], value: u64) -> Sample {
    Sample {
        labels: labels.map(str::to_owned).into(),
        value,
    }
}

fn one(value: u64) -> Vec<Sample> {
    vec![labelled([], value)]
}

/// Nothing of what is not known.
fn of<T>(part: &Option<T>, read: fn(&T) -> u64) -> Vec<Sample> {
    part.iter().flat_map(|part| one(read(part))).collect()
}

fn named<const N: usize>(values: [(&str, u64); N]) -> [Sample; N] {
    values.map(|(name, value)| labelled([name], value))
}

fn sorted<'a>(values: impl IntoIterator<Item = (&'a String, &'a u64)>) -> Vec<Sample> {
    let sorted: BTreeMap<_, _> = values.into_iter().collect();
    let samples = sorted.into_iter();
    samples
        .map(|(name, value)| labelled([name], *value))
        .collect()
}

fn seconds(time: Option<&prost_types::Timestamp>) -> Vec<Sample> {
    let seconds = time.and_then(|time| u64::try_from(time.seconds).ok());
    seconds.into_iter().flat_map(one).collect()
}

fn hooks(facts: &Facts, read: fn(&status::Hook) -> u64) -> Vec<Sample> {
    let hooks = facts.status.hooks.iter();
    hooks
        .map(|hook| labelled([&hook.event], read(hook)))
        .collect()
}

fn outputs(facts: &Facts, read: fn(&status::Output) -> u64) -> Vec<Sample> {
    let outputs = facts.status.outputs.iter();
    outputs
        .map(|output| labelled([&output.name], read(output)))
        .collect()
}

fn lost(hook: &status::Hook) -> [Sample; 4] {
    [
        ("ring_full", hook.ring_full),
        ("map_full", hook.map_full),
        ("unreadable", hook.unreadable),
        ("recursion_misses", hook.recursion_misses),
    ]
    .map(|(cause, count)| labelled([&hook.event, cause], count))
}

fn passed(events: &status::Events) -> [Sample; 11] {
    named([
        ("host", events.host),
        ("image", events.image),
        ("metadata_changed", events.metadata_changed),
        ("unverifiable", events.unverifiable),
        ("runtime", events.runtime),
        ("jit", events.jit),
        ("caches", events.caches),
        ("data", events.data),
        ("noted", events.noted),
        ("peers", events.peers),
        ("raised_before", events.raised_before),
    ])
}

fn self_check(facts: &Facts) -> Option<&status::SelfCheck> {
    facts.status.coverage.as_ref()?.self_check.as_ref()
}

fn images(facts: &Facts) -> Vec<Sample> {
    let mut running: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for container in &facts.containers {
        if let (Some(_), Some(image)) = (container.pid, &container.image) {
            let key = (
                containers::repository(&image.reference),
                image.manifest_digest.as_str(),
            );
            *running.entry(key).or_default() += 1;
        }
    }
    let mut most: Vec<_> = running.into_iter().collect();
    most.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let rest: u64 = most.iter().skip(IMAGES_MAX).map(|(_, count)| count).sum();
    let kept = most.iter().take(IMAGES_MAX);
    let mut samples: Vec<Sample> = kept
        .map(|((repository, digest), count)| labelled([repository, digest], *count))
        .collect();
    if rest > 0 {
        samples.push(labelled(["other", ""], rest));
    }
    samples
}
