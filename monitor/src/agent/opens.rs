//! The owner's part for the opening of files: what is said of it as such, and who opened what of an
//! image for writing.

use std::sync::Arc;

use monitor_common::file::FILE_UPPER;

use super::{
    activity,
    owner::Owner,
    state::{Pending, What, Writer, creation},
};
use crate::{
    containers::{Container, inventory::PlacedBy, processes::Known},
    detect::{ProcessFinding, draft::process_of, open},
    sensor::{
        event::{Open, Process},
        hooks,
    },
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
        let finding = open::judge(
            opened,
            container,
            process_in(container, &opened.used.process, &pending.known),
            self.host_mount_namespace,
            hooks::set_name(opened.used.hook),
        );
        // Not remembered: the next to open it for writing is another.
        let may_write_image = self.may_write_image(opened, container);
        if may_write_image {
            let key = (creation(container), opened.used.file.facts.real_inode);
            let writer = Writer {
                process: opened.used.process.clone(),
                known: pending.known.clone(),
            };
            self.state.writers.put(key, writer);
        }
        let weighed = self.weigh(&activity::opened(pending, opened, container), finding);
        let is_good = weighed.findings.is_empty() && !weighed.must_be_told;
        for finding in weighed.findings {
            if self.is_new(&opened.used, &finding) {
                self.raise_of(&opened.used, &finding);
            }
        }
        if is_good
            && by == PlacedBy::Cgroup
            && !may_write_image
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

    /// The process that last opened for writing a file with this inode in the container's upper
    /// directory, if that was told.
    pub(super) fn writer_of(
        &mut self,
        container: &Container,
        inode: u64,
    ) -> Option<ProcessFinding> {
        let writer = self.state.writers.get(&(creation(container), inode))?;
        Some(process_in(container, &writer.process, &writer.known))
    }
}

/// What is said of a process of a container.
fn process_in(container: &Container, process: &Process, known: &Known) -> ProcessFinding {
    process_of(
        process,
        known.origin(process, container),
        known.program.as_deref(),
        &known.ancestors,
    )
}
