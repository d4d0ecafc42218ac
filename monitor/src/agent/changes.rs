//! The owner's part for what containers change of their images.

use std::sync::Arc;

use super::{
    owner::Owner,
    state::{ChangeCounts, creation},
};
use crate::{
    changes::Changed,
    containers::Container,
    detect::modified::{self, Judgement, Told},
    image::contents::Contents,
};

impl Owner {
    /// Follows what a container changes of its image, if that is known already.
    pub(super) fn follow(&self, container: &Arc<Container>) {
        if let Some(contents) = self.contents.peek(container) {
            self.follow_with(container, &contents);
        }
    }

    /// The same when the contents of its image were read.
    pub(super) fn follow_with(&self, container: &Arc<Container>, contents: &Arc<Contents>) {
        if let Some(changes) = &self.changes {
            changes.follow(container, contents);
        }
    }

    /// The container as it is known now.
    pub(super) fn present(&self, container: &Arc<Container>) -> Arc<Container> {
        let of = creation(container);
        let mut all = self.inventory.containers().map(|(container, _)| container);
        Arc::clone(all.find(|other| creation(other) == of).unwrap_or(container))
    }

    /// Judges what lies at a path of an image now.
    pub(super) fn changed(&mut self, changed: Changed) {
        let judgement = modified::judge(&changed);
        let key = (creation(&changed.container), changed.path);
        let ChangeCounts {
            same, unverifiable, ..
        } = &mut self.state.changes;
        match judgement {
            Judgement::Same => {
                *same += 1;
                self.state.changes_told.pop(&key);
            }
            Judgement::Unverifiable => *unverifiable += 1,
            Judgement::Finding(finding) => {
                self.state.changes.differing += 1;
                let told = Told::by(&finding);
                if self.state.changes_told.put(key, told) != Some(told) {
                    self.raise(&finding);
                }
            }
        }
        if let Some(changes) = &self.changes {
            changes.judged();
        }
    }
}
