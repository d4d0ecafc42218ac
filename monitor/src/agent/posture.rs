//! The owner's part for rules about how containers are started.

use std::sync::Arc;

use jiff::Timestamp;
use ulid::Ulid;

use super::{
    owner::Owner,
    state::{Done, creation},
};
use crate::{
    alerts::build,
    clock,
    containers::Container,
    detect::{Finding, container, posture},
    image::contents::Contents,
    policy::{Asked, On, facts},
};

impl Owner {
    /// Raises what rules say of how a container was started, once each; without `contents` of what its
    /// spec says alone.
    pub(super) fn posture_weigh(
        &mut self,
        container: &Arc<Container>,
        contents: Option<&Contents>,
    ) {
        let Some(own) = &container.posture else {
            return;
        };
        let asked = Asked::of(container);
        if !self.state.policies.looks_at(On::Container, &asked) {
            return;
        }
        let posture = posture::facts(own, container.is_digest_pinned(), contents);
        let words = posture::words(&posture);
        let finding = container::posture(container, clock::boot_ns(), words);
        let alert = build(&finding, &self.node, Timestamp::now(), Ulid::nil());
        let facts = facts::of_container(&alert, posture);
        for added in self.state.policies.added(On::Container, &asked, facts) {
            let told = (creation(container), added.rule.clone());
            if self.state.postures_told.put(told, ()).is_some() {
                continue;
            }
            self.raise(&Finding {
                severity: added.severity,
                message: added.message,
                rule: Some(added.rule),
                ..finding.clone()
            });
        }
    }

    /// Has rules that are new look at what runs.
    pub(super) fn posture_again(&mut self) {
        self.state.postures_told.clear();
        let running = self.inventory.containers().filter(|(_, running)| *running);
        let running: Vec<Arc<Container>> = running.map(|(it, _)| Arc::clone(it)).collect();
        for container in running {
            let Some(image) = container.identity.contents_of().cloned() else {
                self.posture_weigh(&container, None);
                continue;
            };
            let contents = Arc::clone(&self.contents);
            self.state.in_flight.spawn(async move {
                let contents = contents.of(&container, &image).await.ok();
                Done::Posture(container, contents)
            });
        }
    }
}
