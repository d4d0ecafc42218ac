//! Responses that policies ask for, without a person: how far one may go, how often, and what is told
//! of it. Pure.

use std::{
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use lru::LruCache;
use monitor_api::v1;
use serde::{Deserialize, Serialize};
use ulid::Ulid;

use crate::alerts::rollback::Rollback;

/// Containers and rules of which it is remembered when they were responded to; of more, those that
/// asked longest ago are forgotten.
const REMEMBERED_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

/// How far a response may go that nobody ordered: as a rule of a policy asks for it, and as the
/// configuration allows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Automatic {
    /// Nothing is done.
    #[default]
    Off,
    /// A plan is made and told; a person carries it out.
    Propose,
    /// It is carried out.
    Auto,
}

impl Automatic {
    /// Its name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Propose => "propose",
            Self::Auto => "auto",
        }
    }

    /// What comes of it where no more than this is allowed.
    #[must_use]
    pub fn within(self, allowed: Self) -> Self {
        self.min(allowed)
    }

    /// Whether nothing is done.
    pub fn is_off(&self) -> bool {
        *self == Self::Off
    }
}

/// When rules were responded to last.
#[derive(Debug)]
pub struct Pace {
    last: LruCache<(String, String), Instant>,
    cool_down: Duration,
}

impl Pace {
    /// Nothing was responded to yet.
    pub fn new(cool_down: Duration) -> Self {
        Self {
            last: LruCache::new(REMEMBERED_MAX),
            cool_down,
        }
    }

    /// Whether a rule may be responded to now, which is then taken note of. What comes within the
    /// cool-down does not make that longer.
    pub fn begin(&mut self, container: &str, rule: &str, now: Instant) -> bool {
        let key = (container.to_owned(), rule.to_owned());
        let last = self.last.get(&key);
        if last.is_some_and(|last| now.duration_since(*last) < self.cool_down) {
            return false;
        }
        self.last.put(key, now);
        true
    }
}

/// A rule that asks for a response, and the alert that it does so for.
#[derive(Clone, Debug, PartialEq)]
pub struct Cause {
    /// `POLICY.RULE`.
    pub rule: String,
    /// The alert.
    pub alert: v1::Alert,
    /// What is to be done.
    pub mode: Automatic,
}

impl Cause {
    /// Who asks, as audit log and orders have it.
    pub fn by(&self) -> String {
        format!("policy {}", self.rule)
    }

    /// Why, in words.
    pub fn reason(&self) -> String {
        format!("{}, alert {}", self.by(), self.alert.id)
    }

    /// The alert of a plan that was made.
    pub fn proposed(&self, plan: &v1::Rollback, id: Ulid, at: Timestamp) -> Rollback {
        let subject = match &plan.workload {
            Some(it) => format!("{}/{}/{}", it.kind.to_lowercase(), it.namespace, it.name),
            None => self.container().id,
        };
        let message = match self.mode {
            Automatic::Auto => format!(
                "{} has {subject} rolled back to {}",
                self.by(),
                plan.to_digest
            ),
            Automatic::Propose | Automatic::Off => format!(
                "{} proposes to roll {subject} back to {}; `monitorctl rollback apply {}` does so",
                self.by(),
                plan.to_digest,
                plan.id
            ),
        };
        let image = v1::alert::Image {
            reference: plan.to_reference.clone(),
            identity: "claimed".to_owned(),
            manifest_digest: plan.to_digest.clone(),
            chain_id: plan.chain_id.clone(),
            ..v1::alert::Image::default()
        };
        let more = [
            ("order", plan.id.clone()),
            ("from", plan.from_digest.clone()),
            ("to", plan.to_digest.clone()),
            ("on_failure", plan.on_failure.clone()),
        ];
        self.told("proposed", (id, at), image, message, more)
    }

    /// The alert of what cannot be done, and why.
    pub fn refused(&self, failure: &str, id: Ulid, at: Timestamp) -> Rollback {
        let container = self.container();
        let message = format!(
            "{} asks to roll {} back, which is refused: {failure}",
            self.by(),
            container.id
        );
        let image = self.alert.image.clone().unwrap_or_default();
        let more = [("failure", failure.to_owned())];
        self.told("refused", (id, at), image, message, more)
    }

    fn container(&self) -> v1::alert::Container {
        self.alert.container.clone().unwrap_or_default()
    }

    fn told(
        &self,
        state: &str,
        (id, at): (Ulid, Timestamp),
        image: v1::alert::Image,
        message: String,
        more: impl IntoIterator<Item = (&'static str, String)>,
    ) -> Rollback {
        let details = [
            ("state", state.to_owned()),
            ("respond", self.mode.name().to_owned()),
            ("rule", self.rule.clone()),
            ("alert", self.alert.id.clone()),
            ("by", self.by()),
            ("reason", self.reason()),
        ];
        Rollback {
            id,
            revision: 1,
            began_at: at,
            at,
            container: self.container(),
            image,
            message,
            details: details.into_iter().chain(more).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_goes_no_further_than_the_configuration_allows() {
        use Automatic::{Auto, Off, Propose};
        let check = |rule: Automatic, allowed: Automatic, expect: Automatic| {
            assert_eq!(rule.within(allowed), expect, "{rule:?} within {allowed:?}");
        };
        for any in [Off, Propose, Auto] {
            check(any, Off, Off);
            check(Off, any, Off);
            check(any, Auto, any);
        }
        check(Propose, Propose, Propose);
        check(Auto, Propose, Propose);
    }

    #[test]
    fn a_rule_is_responded_to_once_in_the_cool_down() {
        let start = Instant::now();
        let mut pace = Pace::new(Duration::from_secs(30));
        let mut check = |container: &str, rule: &str, seconds: u64, expect: bool| {
            let now = start + Duration::from_secs(seconds);
            let found = pace.begin(container, rule, now);
            assert_eq!(found, expect, "{container} {rule} {seconds}");
        };
        check("default/a", "p.r", 0, true);
        check("default/a", "p.r", 29, false);
        check("default/b", "p.r", 29, true);
        check("default/a", "p.s", 29, true);
        check("default/a", "p.r", 30, true);
        check("default/a", "p.r", 59, false);
        let mut without = Pace::new(Duration::ZERO);
        assert!(without.begin("a", "r", start) && without.begin("a", "r", start));
    }

    #[test]
    fn what_is_told_names_rule_and_alert() {
        let cause = |mode| Cause {
            rule: "shop.drift".to_owned(),
            alert: v1::Alert {
                id: "01J".to_owned(),
                container: Some(v1::alert::Container {
                    id: "web".to_owned(),
                    ..v1::alert::Container::default()
                }),
                ..v1::Alert::default()
            },
            mode,
        };
        let plan = v1::Rollback {
            id: "01K".to_owned(),
            to_digest: "sha256:aa".to_owned(),
            ..v1::Rollback::default()
        };
        let check = |told: &Rollback, message: &str, details: &[(&str, &str)]| {
            assert!(told.message.contains(message), "{}", told.message);
            for (name, value) in details {
                let found = told.details.iter().find(|(it, _)| it == name);
                assert_eq!(found.map(|(_, it)| it.as_str()), Some(*value), "{name}");
            }
        };
        let own = [("rule", "shop.drift"), ("alert", "01J")];
        let at = Timestamp::UNIX_EPOCH;
        let told = cause(Automatic::Propose).proposed(&plan, Ulid::nil(), at);
        check(&told, "rollback apply 01K", &own);
        check(&told, "", &[("state", "proposed"), ("order", "01K")]);
        let told = cause(Automatic::Auto).proposed(&plan, Ulid::nil(), at);
        check(&told, "has web rolled back to sha256:aa", &own);
        let told = cause(Automatic::Auto).refused("no image", Ulid::nil(), at);
        check(&told, "refused: no image", &[("state", "refused")]);
        assert_eq!(
            cause(Automatic::Auto).reason(),
            "policy shop.drift, alert 01J"
        );
    }
}
