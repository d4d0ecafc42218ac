//! The owner's part for what containers change of their images.

use std::sync::Arc;

use monitor_api::v1::{Alert, Severity};

use super::{
    owner::Owner,
    state::{ChangeCounts, Creation, creation},
};
use crate::{
    changes::Changed,
    clock,
    containers::{Container, inventory::Key},
    detect::{
        Kind,
        modified::{self, Judgement, Told},
    },
    digest::Digest,
    image::contents::Contents,
};

/// What an alert of a daemon before this one told of a path, if it is about a changed file of an image.
pub(super) fn told_before(alert: &Alert) -> Option<((Creation, Vec<u8>), Told)> {
    if alert.kind != Kind::ImageFileModified.name() {
        return None;
    }
    let (container, file) = (alert.container.as_ref()?, alert.file.as_ref()?);
    let key = Key {
        namespace: container.runtime_namespace.clone(),
        id: container.id.clone(),
    };
    let created_unix_ns = clock::unix_ns(container.created_at);
    let told = if file.hash_state.is_empty() {
        Told::Gone
    } else if alert.severity == i32::from(Severity::High) {
        let seen = format!("sha256:{}", file.seen_sha256);
        Told::Code(seen.parse::<Digest>().ok().map(|seen| seen.0))
    } else {
        Told::Data
    };
    Some((((key, created_unix_ns), file.path.clone()), told))
}

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
            Judgement::Finding(mut finding) => {
                self.state.changes.differing += 1;
                let told = Told::by(&finding);
                if self.state.changes_told.put(key, told) != Some(told) {
                    finding.process = changed
                        .inode
                        .and_then(|inode| self.writer_of(&changed.container, inode));
                    self.raise(&finding);
                }
            }
        }
        if let Some(changes) = &self.changes {
            changes.judged();
        }
    }
}
