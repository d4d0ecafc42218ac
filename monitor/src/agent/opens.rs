//! The owner's part for the opening of files: what is said of it as such, and who opened what of an
//! image for writing.

use std::sync::Arc;

use monitor_common::file::FILE_UPPER;

use super::{
    owner::Owner,
    state::{Pending, What, Writer, creation},
};
use crate::{
    changes::Changed,
    containers::{Container, inventory::PlacedBy},
    detect::{ProcessFinding, draft::process_of, open},
    sensor::{event::Open, hooks},
};

impl Owner {
    /// Raises what there is to say of the opening itself; where that is nothing, the kernel side need
    /// not tell of it again.
    pub(super) fn judge_open(
        &mut self,
        pending: &Pending,
        container: &Arc<Container>,
        by: PlacedBy,
    ) {
        let What::Open(opened, _) = &pending.what else {
            return;
        };
        if opened.is_standard_input {
            return;
        }
        let writer = Writer {
            process: opened.used.process.clone(),
            known: pending.known.clone(),
        };
        let finding = open::judge(
            opened,
            container,
            writer.finding(container),
            self.host_mount_namespace,
            hooks::set_name(opened.used.hook),
        );
        let is_of_image = self.may_write_image(opened, container);
        if is_of_image {
            let key = (creation(container), opened.used.file.facts.real_inode);
            self.state.writers.put(key, writer);
        }
        if let Some(finding) = finding {
            if self.is_new(&opened.used, &finding) {
                self.raise_of(&opened.used, &finding);
            }
        // The next to open it for writing is another.
        } else if by == PlacedBy::Cgroup
            && !is_of_image
            && let Some(sensor) = &mut self.sensor
            && let Err(error) = sensor.remember_open(&opened.used, opened.access)
        {
            tracing::warn!(%error, "cannot have the kernel side remember an open; it goes on being told");
        }
    }

    /// Whether a file was opened for writing that the image has, as far as the image is known.
    fn may_write_image(&self, opened: &Open, container: &Arc<Container>) -> bool {
        let file = &opened.used.file;
        let device = container.task.as_ref().and_then(|task| task.root_device);
        opened.access.write
            && file.facts.flags & FILE_UPPER != 0
            && device == Some(file.facts.device)
            && self
                .contents
                .peek(container)
                .is_some_and(|contents| contents.lookup(&file.path_in_filesystem).is_some())
    }

    /// The process that opened a changed file for writing last, if that was told.
    pub(super) fn writer_of(&mut self, changed: &Changed) -> Option<ProcessFinding> {
        let key = (creation(&changed.container), changed.inode?);
        let writer = self.state.writers.get(&key)?;
        Some(writer.finding(&changed.container))
    }
}

impl Writer {
    fn finding(&self, container: &Container) -> ProcessFinding {
        process_of(
            &self.process,
            self.known.origin(&self.process, container),
            self.known.program.as_deref(),
            &self.known.ancestors,
        )
    }
}
