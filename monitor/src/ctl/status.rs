//! `monitorctl status`.

use std::collections::HashMap;

use monitor_api::{
    json,
    v1::{
        Status,
        status::{self, Hook, SelfCheck},
    },
};

use super::{Client, Failure, Output, inventory::print_facts, output::time, status_of};

/// Prints the node's account of itself.
pub(super) async fn run(client: &mut Client, output: &mut Output<'_>) -> Result<(), Failure> {
    let status = status_of(client).await?;
    if output.is_json() {
        return Ok(output.json(&json::status(&status))?);
    }
    print_facts(&facts(&status), output)
}

fn facts(status: &Status) -> Vec<(&'static str, String)> {
    let ready = if status.ready {
        "ready"
    } else {
        "not ready: hooks or containers are pending"
    };
    let mut facts = vec![
        ("node", status.node.clone()),
        ("daemon", format!("monitord {}, {ready}", status.version)),
        ("started", time(status.started_at.as_ref())),
        ("kernel", status.kernel.clone()),
    ];
    facts.extend(status.hooks.iter().map(|hook| ("hook", hook_fact(hook))));
    if let Some(events) = &status.events {
        facts.push((
            "events",
            format!(
                "{} received + {} running = {} earlier + {} judged + {} waiting + {} expired while unknown + {} before coverage",
                events.received,
                events.running,
                events.earlier,
                events.judged,
                events.waiting,
                events.expired_unknown,
                events.before_coverage
            ),
        ));
        facts.push((
            "judged",
            format!(
                "{} of the image, {} with changed metadata, {} the runtime's, {} the host's, {} compiled at run time, {} bytecode caches, {} data, {} not comparable, {} connects, {} only noted",
                events.image,
                events.metadata_changed,
                events.runtime,
                events.host,
                events.jit,
                events.caches,
                events.data,
                events.unverifiable,
                events.peers,
                events.noted
            ),
        ));
    }
    if let Some(held) = &status.held {
        facts.push((
            "held files",
            format!("{}, {} queue overflows", held.files, held.queue_overflows),
        ));
    }
    if let Some(changes) = &status.changes {
        facts.push((
            "image files",
            format!(
                "{} changes noticed, {} waiting; {} with the image's bytes, {} with others, {} unreadable; {} overflows, {} not followed",
                changes.noticed,
                changes.waiting,
                changes.same,
                changes.differing,
                changes.unverifiable,
                changes.overflows,
                changes.unfollowed
            ),
        ));
    }
    if let Some(collector) = &status.collector {
        let state = if collector.connected {
            "is sent alerts"
        } else {
            "is not reached"
        };
        let mut fact = format!(
            "{} {state}, {} failures",
            collector.address, collector.failures
        );
        if !collector.error.is_empty() {
            fact = format!("{fact}: {}", collector.error);
        }
        facts.push(("collector", fact));
    }
    if let Some(controller) = &status.controller {
        facts.push(("controller", controller_fact(controller)));
    }
    if let Some(registry) = &status.registry {
        let mut fact = format!(
            "{} layers ({} KiB) read from registries, {} images being read, {} failed",
            registry.layers,
            registry.bytes / 1024,
            registry.fetching,
            registry.failed
        );
        if !registry.error.is_empty() {
            fact = format!("{fact}: {}", registry.error);
        }
        facts.push(("registry", fact));
    }
    if let Some(behaviour) = &status.behaviour {
        let states = ["learning", "frozen"];
        let states = states.map(|state| {
            let count = behaviour.profiles.get(state).copied().unwrap_or(0);
            format!("{count} {state}")
        });
        let deviations = behaviour.deviations;
        let fact = format!("{}, {deviations} deviations", states.join(", "));
        facts.push(("profiles", fact));
    }
    if let Some(policies) = &status.policies {
        let mut fact = format!(
            "{} rules, {} exceptions, {} findings excepted",
            policies.rules, policies.exceptions, policies.excepted
        );
        if !policies.error.is_empty() {
            fact = format!("{fact}; refused: {}", policies.error);
        }
        facts.push(("policies", fact));
    }
    if let Some(approvals) = &status.approvals {
        let mut fact = format!(
            "{} repositories managed, {} containers run what is not approved",
            approvals.repositories, approvals.unapproved
        );
        if !approvals.error.is_empty() {
            fact = format!("{fact}; refused: {}", approvals.error);
        }
        facts.push(("approvals", fact));
    }
    for (name, counts) in [
        ("rollbacks", &status.rollbacks),
        ("responses", &status.responses),
    ] {
        let mut counts: Vec<_> = counts.iter().filter(|it| *it.1 > 0).collect();
        if !counts.is_empty() {
            counts.sort_unstable();
            let counts = counts.into_iter();
            let counts = counts.map(|(state, count)| format!("{count} {state}"));
            facts.push((name, counts.collect::<Vec<_>>().join(", ")));
        }
    }
    if let Some(coverage) = &status.coverage {
        facts.push(("gaps", coverage.gaps.to_string()));
        if let Some(check) = &coverage.self_check {
            facts.push(("self-check", self_check_fact(check)));
        }
    }
    if let Some(containerd) = &status.containerd {
        let state = if containerd.connected {
            "connected"
        } else {
            "not connected"
        };
        let since = time(containerd.since.as_ref());
        let mut fact = format!("{state} to {} since {since}", containerd.address);
        if !containerd.error.is_empty() {
            fact = format!("{fact}: {}", containerd.error);
        }
        facts.push(("containerd", fact));
    }
    facts.push(("containers", counts(&status.containers)));
    facts.push(("images", counts(&status.images)));
    if let Some(alerts) = &status.alerts {
        facts.push(("alerts", counts(&alerts.by_kind)));
        facts.push((
            "journal",
            format!(
                "{}, cursors {} to {}, durable to {}, {} KiB",
                alerts.journal,
                alerts.oldest_cursor,
                alerts.newest_cursor,
                alerts.durable_cursor,
                alerts.journal_bytes / 1024
            ),
        ));
        if !alerts.memory_only.is_empty() {
            facts.push((
                "journal fault",
                format!(
                    "not written since {}: {}; alerts are in memory alone, {} lost",
                    time(alerts.memory_only_since.as_ref()),
                    alerts.memory_only,
                    alerts.lost
                ),
            ));
        }
        let mut consumers: Vec<_> = alerts.consumers.iter().collect();
        consumers.sort_unstable();
        for (name, cursor) in consumers {
            facts.push(("consumer", format!("{name} acknowledged to {cursor}")));
        }
    }
    facts.extend(
        status
            .outputs
            .iter()
            .map(|output| ("output", output_fact(output))),
    );
    if let Some(audit) = &status.audit {
        let head = audit.head.clone().unwrap_or_default();
        let mut fact = format!("{} records, head {}", head.sequence, head.hash);
        if !audit.fault.is_empty() {
            fact = format!("changes are refused, it cannot be written: {}", audit.fault);
        }
        facts.push(("audit", fact));
    }
    if let Some(api) = &status.api {
        facts.push((
            "clients",
            format!(
                "{} connections ({} refused, {} unidentified), {} alert streams ({} refused), {} alerts expired unread",
                api.connections,
                api.connections_refused,
                api.connections_unidentified,
                api.alert_streams,
                api.alert_streams_refused,
                api.alerts_expired
            ),
        ));
    }
    facts.push((
        "memory",
        format!("{} KiB resident", status.memory_resident_bytes / 1024),
    ));
    facts
}

fn output_fact(output: &status::Output) -> String {
    let mut fact = format!(
        "{} as {} to {}: {} alerts to cursor {}, {} missing, {} failures",
        output.name,
        output.kind,
        output.path,
        output.written,
        output.cursor,
        output.missing,
        output.failures
    );
    if !output.error.is_empty() {
        let since = time(output.failing_since.as_ref());
        fact = format!("{fact}; failing since {since}: {}", output.error);
    }
    fact
}

fn self_check_fact(check: &SelfCheck) -> String {
    let last = match &check.last_success {
        Some(last) => format!("last seen {}", time(Some(last))),
        None => "not seen yet".to_owned(),
    };
    let (succeeded, missed) = (check.succeeded, check.missed);
    let mut fact = format!("{last}; {succeeded} seen, {missed} missed");
    if check.failed > 0 {
        fact = format!("{fact}, {} not done", check.failed);
    }
    if !check.error.is_empty() {
        fact = format!("{fact}: {}", check.error);
    }
    fact
}

fn controller_fact(controller: &status::Controller) -> String {
    let state = if controller.connected {
        "is joined"
    } else {
        "is not reached"
    };
    let heard = controller.heard_at.as_ref();
    let heard = heard.map_or("never".to_owned(), |at| time(Some(at)));
    let mut fact = format!(
        "{} {state}, heard {heard}, {} reports, {} failures, {} incidents waiting, {} lost",
        controller.address,
        controller.reports,
        controller.failures,
        controller.incidents,
        controller.incidents_lost
    );
    if controller.left_out > 0 {
        fact = format!("{fact}, {} containers left out", controller.left_out);
    }
    for error in [&controller.error, &controller.approvals_error] {
        if !error.is_empty() {
            fact = format!("{fact}: {error}");
        }
    }
    fact
}

fn hook_fact(hook: &Hook) -> String {
    let name = if hook.hook.is_empty() {
        "none"
    } else {
        &hook.hook
    };
    let lost = [
        ("ring full", hook.ring_full),
        ("map full", hook.map_full),
        ("unreadable", hook.unreadable),
        ("recursion misses", hook.recursion_misses),
    ];
    let lost: Vec<_> = lost
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(what, n)| format!("{n} {what}"))
        .collect();
    let lost = if lost.is_empty() {
        "none lost".to_owned()
    } else {
        lost.join(", ")
    };
    let mut fact = format!(
        "{} by {name}: {} seen, {} unwatched, {} remembered, {} submitted ({} truncated), {lost}",
        hook.event, hook.seen, hook.unwatched, hook.remembered, hook.submitted, hook.truncated
    );
    if !hook.limits.is_empty() {
        fact = format!("{fact}; {}", hook.limits);
    }
    fact
}

/// The total, then what is not zero, by name.
fn counts(counts: &HashMap<String, u64>) -> String {
    let mut named: Vec<_> = counts.iter().filter(|(_, count)| **count > 0).collect();
    named.sort_unstable();
    let total = named
        .iter()
        .fold(0_u64, |sum, (_, count)| sum.saturating_add(**count));
    if named.is_empty() {
        return total.to_string();
    }
    let named: Vec<_> = named
        .iter()
        .map(|(name, count)| format!("{count} {name}"))
        .collect();
    format!("{total}: {}", named.join(", "))
}
