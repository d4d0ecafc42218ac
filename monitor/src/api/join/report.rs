//! What a node reports to the controller: the containers that run, in parts. Pure.

use std::time::{Duration, Instant};

use monitor_api::v1::{Container, join_request::Running};
use prost::Message as _;

/// Containers in one part of a report.
pub(super) const PART_CONTAINERS_MAX: usize = 256;
/// Containers in a report; further ones are left out and counted.
pub(super) const CONTAINERS_MAX: usize = 4096;
/// Bytes of the containers of one part, which leaves a message below
/// [`monitor_api::MESSAGE_BYTES_MAX`]; a container that has more by itself is left out.
const PART_BYTES_MAX: usize = 1 << 20;

/// How often a report is made if nothing changed.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// The containers of pods that run.
pub(super) fn running(mut containers: Vec<Container>) -> Vec<Container> {
    containers.retain(|it| {
        let own = it.container.as_ref();
        it.pid.is_some() && own.is_some_and(|it| it.kind == "container" && it.pod.is_some())
    });
    containers
}

/// A report, in the parts that it is sent in: one at least.
pub(super) fn parts(containers: &[Container]) -> Vec<Running> {
    let mut parts = Vec::new();
    let (mut part, mut bytes) = (Running::default(), 0);
    let mut taken = 0;
    for container in containers {
        let length = container.encoded_len();
        if taken == CONTAINERS_MAX || length > PART_BYTES_MAX {
            continue;
        }
        if part.containers.len() == PART_CONTAINERS_MAX || bytes + length > PART_BYTES_MAX {
            part.more = true;
            parts.push(std::mem::take(&mut part));
            bytes = 0;
        }
        part.containers.push(container.clone());
        (taken, bytes) = (taken + 1, bytes + length);
    }
    part.left_out = u64::try_from(containers.len() - taken).unwrap_or(u64::MAX);
    parts.push(part);
    parts
}

/// What was reported last, and when.
#[derive(Debug, Default)]
pub(super) struct Reported {
    last: Option<(Instant, Vec<Container>)>,
}

impl Reported {
    /// Whether these containers are to be reported now. How many findings each has is no reason.
    pub(super) fn is_due(&self, containers: &[Container], now: Instant) -> bool {
        let Some((at, last)) = &self.last else {
            return true;
        };
        let is_same = |(a, b): (&Container, &Container)| {
            let findings = b.findings;
            *b == Container {
                findings,
                ..a.clone()
            }
        };
        now.duration_since(*at) >= REPORT_INTERVAL
            || last.len() != containers.len()
            || !last.iter().zip(containers).all(is_same)
    }

    /// Takes note that they were.
    pub(super) fn sent(&mut self, containers: Vec<Container>, now: Instant) {
        self.last = Some((now, containers));
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use monitor_api::v1::alert;

    use super::*;

    fn container(id: &str) -> Container {
        Container {
            container: Some(alert::Container {
                id: id.to_owned(),
                kind: "container".to_owned(),
                pod: Some(alert::Pod::default()),
                ..alert::Container::default()
            }),
            pid: Some(7),
            ..Container::default()
        }
    }

    #[test]
    fn what_runs_in_a_pod_is_reported() {
        let check = |change: fn(&mut Container), expect: bool| {
            let mut it = container("a");
            change(&mut it);
            let said = !running(vec![it.clone()]).is_empty();
            assert_eq!(said, expect, "{it:?}");
        };
        check(|_| {}, true);
        check(|it| it.pid = None, false);
        check(|it| it.container = None, false);
        check(|it| it.container.as_mut().unwrap().pod = None, false);
        check(
            |it| it.container.as_mut().unwrap().kind = "sandbox".to_owned(),
            false,
        );
    }

    #[test]
    fn a_report_comes_in_parts_and_counts_what_it_leaves_out() {
        let check = |containers: &[Container], expect: &[usize], left_out: u64| {
            let parts = parts(containers);
            let lengths: Vec<_> = parts.iter().map(|it| it.containers.len()).collect();
            assert_eq!(lengths, expect);
            let (last, others) = parts.split_last().unwrap();
            assert!(others.iter().all(|it| it.more && it.left_out == 0));
            assert_eq!((last.more, last.left_out), (false, left_out));
            let most = parts.iter().map(|it| it.encoded_len()).max();
            assert!(most < Some(monitor_api::MESSAGE_BYTES_MAX));
        };
        let many = |count: usize| vec![container("a"); count];
        check(&[], &[0], 0);
        check(&many(256), &[256], 0);
        check(&many(257), &[256, 1], 0);
        check(&many(5000), &[256; 16], 904);
        let long = container(&"x".repeat(400_000));
        check(&[long.clone(), long.clone(), long.clone()], &[2, 1], 0);
        let too_long = container(&"x".repeat(PART_BYTES_MAX));
        check(&[too_long, long], &[1], 1);
    }

    #[test]
    fn a_report_is_due_when_something_changed_or_after_a_while() {
        let start = Instant::now();
        let mut reported = Reported::default();
        assert!(reported.is_due(&[], start));
        reported.sent(vec![container("a")], start);
        let check = |change: fn(&mut Vec<Container>), seconds: u64, expect: bool| {
            let mut containers = vec![container("a")];
            change(&mut containers);
            let now = start + Duration::from_secs(seconds);
            assert_eq!(reported.is_due(&containers, now), expect, "{containers:?}");
        };
        check(|_| {}, 9, false);
        check(|_| {}, 10, true);
        check(|it| it.clear(), 1, true);
        check(|it| it.push(container("b")), 1, true);
        check(|it| it.first_mut().unwrap().pid = Some(8), 1, true);
        check(|it| it.first_mut().unwrap().findings = 3, 1, false);
    }
}
