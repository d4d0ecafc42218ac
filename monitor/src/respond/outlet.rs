//! Where it is told what becomes of orders.

use super::{order::By, progress::State};
use crate::{
    alerts::{AlertLog, NodeFacts, rollback},
    audit::{Audit, Call, Outcome},
};

/// Where alerts of rollbacks go.
#[derive(Clone, Debug)]
pub struct Outlet {
    /// The log of alerts.
    pub log: AlertLog,
    /// What the node puts into each of them.
    pub node: NodeFacts,
    /// The audit log.
    pub audit: Audit,
}

impl Outlet {
    /// Raises the alert of a rollback.
    pub fn raise(&self, told: &rollback::Rollback) {
        self.log.append(rollback::build(told, &self.node));
    }

    /// Has the audit log note how an order has ended, in a sentence.
    pub async fn note_end(&self, id: &str, by: By, state: State, sentence: &str) {
        let outcome = match state {
            State::Done => Outcome::Done,
            _ => Outcome::Failed,
        };
        let object = format!("order/{id}");
        let call = Call {
            method: "Rollback",
            object: &object,
            detail: sentence,
        };
        self.audit.note(&by.into(), call, outcome).await;
    }
}
