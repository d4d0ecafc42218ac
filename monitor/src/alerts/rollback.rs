//! The alert of a rollback: a pure function of what is given to it.

use jiff::Timestamp;
use monitor_api::v1;

use super::{
    build::{NodeFacts, fingerprint_of, first_revision, timestamp},
    gap::{string, structure},
};

const KIND: &str = "rollback";

/// A rollback that was ordered, and how it stands.
#[derive(Clone, Debug)]
pub struct Rollback {
    /// Id of the order, and of the alert.
    pub id: ulid::Ulid,
    /// 1 when it begins, 2 when it has ended.
    pub revision: u32,
    /// When it began.
    pub began_at: Timestamp,
    /// When this was so.
    pub at: Timestamp,
    /// The container that it is about.
    pub container: v1::alert::Container,
    /// The image that it is rolled back to.
    pub image: v1::alert::Image,
    /// In a sentence.
    pub message: String,
    /// What more there is to say, by name.
    pub details: Vec<(&'static str, String)>,
}

/// The alert for it. Journal and cursor stay empty until [`super::AlertLog::append`].
pub fn build(rollback: &Rollback, node: &NodeFacts) -> v1::Alert {
    let details = rollback.details.iter();
    let details = details.map(|(name, text)| (*name, string(text)));
    v1::Alert {
        fingerprint: fingerprint_of(KIND, None, None, None),
        time: Some(timestamp(rollback.at)),
        first_seen: Some(timestamp(rollback.began_at)),
        last_seen: Some(timestamp(rollback.at)),
        kind: KIND.to_owned(),
        severity: v1::Severity::Info.into(),
        rule: Some(v1::alert::Rule {
            id: "respond.rollback".to_owned(),
            version: "1".to_owned(),
        }),
        message: rollback.message.clone(),
        container: Some(rollback.container.clone()),
        image: Some(rollback.image.clone()),
        details: Some(structure(details)),
        revision: rollback.revision,
        ..first_revision(node, rollback.at, rollback.id)
    }
}
