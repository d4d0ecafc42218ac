//! The alert of a gap in what was seen: a pure function of what is given to it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use monitor_api::v1;
use prost_types::{ListValue, Struct, Value, value::Kind};
use ulid::Ulid;

use super::build::{NodeFacts, container_of, fingerprint_of, first_revision, image_of, timestamp};
use crate::coverage::{Affected, Gap, Reason};

const KIND: &str = "coverage_gap";
/// What `details.containers` says where a gap may affect any container.
const ALL: &str = "all";

/// The alert for `gap`, which was found out at `observed`, under the id `id`. Journal and cursor
/// stay empty until [`super::AlertLog::append`].
pub fn build(
    gap: &Gap,
    affected: &Affected,
    node: &NodeFacts,
    observed: Timestamp,
    id: Ulid,
) -> v1::Alert {
    v1::Alert {
        fingerprint: fingerprint_of(KIND, affected.as_deref(), None, None),
        time: Some(timestamp(gap.end)),
        first_seen: Some(timestamp(gap.begin)),
        last_seen: Some(timestamp(gap.end)),
        kind: KIND.to_owned(),
        severity: v1::Severity::Medium.into(),
        rule: Some(v1::alert::Rule {
            id: "coverage.gap".to_owned(),
            version: "1".to_owned(),
        }),
        message: message(gap, affected),
        container: affected.as_deref().map(container_of),
        image: affected
            .as_deref()
            .map(|container| image_of(container, None)),
        details: Some(details(gap, affected)),
        ..first_revision(node, observed, id)
    }
}

fn message(gap: &Gap, affected: &Affected) -> String {
    let whose = match affected {
        Some(_) => "of this container",
        None => "of any container",
    };
    match gap.reason {
        Reason::Lost => format!(
            "{} events {whose} may not have been judged",
            gap.losses.total()
        ),
        Reason::SelfCheck => {
            "what the daemon did to check itself was not seen: neither may be what containers do"
                .to_owned()
        }
        Reason::NotWatching | Reason::ContainerdLost | Reason::NotVisible => {
            format!("what happened {whose} was not watched")
        }
    }
}

fn details(gap: &Gap, affected: &Affected) -> Struct {
    let containers = ListValue {
        values: vec![string(affected.as_deref().map_or(ALL, |one| &one.id))],
    };
    structure([
        ("reason", string(gap.reason.name())),
        ("begin", string(&format!("{:.9}", gap.begin))),
        ("end", string(&format!("{:.9}", gap.end))),
        ("hooks", counts(gap.losses.by_hook())),
        ("causes", counts(gap.losses.by_cause())),
        ("containers", of(Kind::ListValue(containers))),
    ])
}

fn counts(counts: BTreeMap<&'static str, u64>) -> Value {
    let counts = counts.into_iter().map(|(name, count)| {
        // Numbers are of floating point here; those of 32 bits are exact.
        let exact = u32::try_from(count);
        let count = match exact {
            Ok(count) => Kind::NumberValue(count.into()),
            Err(_) => Kind::StringValue(count.to_string()),
        };
        (name, of(count))
    });
    of(Kind::StructValue(structure(counts)))
}

pub(super) fn structure(fields: impl IntoIterator<Item = (&'static str, Value)>) -> Struct {
    Struct {
        fields: fields
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
    }
}

pub(super) fn string(text: &str) -> Value {
    of(Kind::StringValue(text.to_owned()))
}

fn of(kind: Kind) -> Value {
    Value { kind: Some(kind) }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use monitor_api::json;
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        coverage::{Cause, Losses},
        detect::file::tests as sample,
    };

    fn alert(gap: &Gap, affected: &Affected) -> Value {
        let node = NodeFacts {
            cluster: String::new(),
            environment: String::new(),
            node: "node-7".to_owned(),
            boot_time: Timestamp::UNIX_EPOCH,
        };
        json::alert(&build(gap, affected, &node, gap.end, Ulid::nil()))
    }

    fn gap(losses: Losses) -> Gap {
        let at = |second| Timestamp::from_second(second).unwrap();
        Gap::of_losses(at(100), at(101), losses)
    }

    #[test]
    fn a_gap_names_hooks_causes_span_and_containers() {
        let losses: Losses = [
            (("exec", Cause::RingFull), 3),
            (("open", Cause::RingFull), 40),
            (("open", Cause::Unreadable), u64::MAX),
        ]
        .into_iter()
        .collect();
        let container = sample::container();
        let id = container.id.clone();
        let said = alert(&gap(losses), &Some(container));
        assert_eq!(said.pointer("/kind"), Some(&json!("coverage_gap")));
        assert_eq!(said.pointer("/severity"), Some(&json!("medium")));
        assert_eq!(said.pointer("/rule/id"), Some(&json!("coverage.gap")));
        assert_eq!(said.pointer("/container/id"), Some(&json!(id)));
        assert_eq!(
            said.pointer("/details"),
            Some(&json!({
                "reason": "lost",
                "begin": "1970-01-01T00:01:40.000000000Z",
                "end": "1970-01-01T00:01:41.000000000Z",
                "hooks": {"exec": 3, "open": "18446744073709551615"},
                "causes": {"ring_full": 43, "unreadable": "18446744073709551615"},
                "containers": [id],
            }))
        );
    }

    #[test]
    fn a_gap_of_nobody_in_particular_is_of_all() {
        let said = alert(&gap(Losses::default()), &None);
        assert_eq!(said.pointer("/container"), Some(&Value::Null));
        assert_eq!(said.pointer("/details/containers"), Some(&json!(["all"])));
        let other = alert(&gap(Losses::default()), &Some(sample::container()));
        assert_ne!(said.pointer("/fingerprint"), other.pointer("/fingerprint"));
    }
}
