//! What the owner does about profiles.

use std::sync::Arc;

use jiff::Timestamp;

use super::{FOLDER_INTERVAL, Found, Seeded, acts::command, seeding};
use crate::{
    activity::Activity,
    agent::{
        owner::Owner,
        state::{self, Done, Pending, creation},
    },
    containers::{Container, ImageId},
    detect::{Finding, Kind, Severity, file},
    files::Folder,
    image::contents::Contents,
    profile::{self, State, What},
    sensor::Sensor,
};

impl Owner {
    /// Takes note of a container that runs, or did when what is judged now was done, once it is known
    /// which image it has.
    pub(in crate::agent) fn profile_follow(&mut self, container: &Arc<Container>) {
        if !self.state.profiles.is_unknown(container) {
            return;
        }
        let mut live = self.inventory.containers();
        let live = live.find(|(other, _)| creation(other) == creation(container));
        let is_running = live.is_some_and(|(_, is_running)| is_running);
        // An earlier daemon saw what it did.
        let is_seen = self.sensor.as_ref().is_some_and(Sensor::is_reopened);
        let was_running = !*self.ready.borrow() && !is_seen;
        let now = Timestamp::now();
        (self.state.profiles).follow(container, was_running, now);
        if !is_running {
            self.state.profiles.ended(container, now);
        }
    }

    /// Takes note that a container's task has ended.
    pub(in crate::agent) fn profile_ended(&mut self, container: &Container) {
        self.state.profiles.ended(container, Timestamp::now());
    }

    /// Takes note that a container is gone.
    pub(in crate::agent) fn profile_removed(&mut self, container: &Container) {
        self.profile_ended(container);
        self.state.profiles.members.remove(container);
    }

    /// Has the image of `container` asked what it says of itself, once.
    pub(in crate::agent) fn profile_seed(
        &mut self,
        container: &Arc<Container>,
        contents: &Arc<Contents>,
    ) {
        let Some(image) = container.identity.contents_of() else {
            return;
        };
        self.profile_follow(container);
        let Some(entry) = self.state.profiles.entries.get_mut(&image.manifest) else {
            return;
        };
        if std::mem::replace(&mut entry.is_seeded, true) || entry.profile.state() == State::Frozen {
            return;
        }
        let read = seeding::read(
            Arc::clone(&self.contents),
            Arc::clone(container),
            ImageId::clone(image),
            Arc::clone(contents),
        );
        self.state
            .in_flight
            .spawn(async move { Done::Seeded(Box::new(read.await)) });
    }

    /// Takes in what an image says of itself.
    pub(in crate::agent) fn profile_seeded(&mut self, seeded: Seeded) {
        self.state.profiles.seeded(seeded);
    }

    /// What the profile of the container's image has to say of what it did.
    pub(in crate::agent) fn profile_weigh(
        &mut self,
        activity: &Activity<'_>,
        is_excepted: bool,
    ) -> Option<Finding> {
        self.profile_follow(activity.container);
        let now = Timestamp::now();
        self.state.profiles.weigh(activity, is_excepted, now)
    }

    /// Takes note of a program that the profile does not have, before its file is compared with the
    /// image: what it opens comes sooner than that.
    pub(in crate::agent) fn foresee(&mut self, pending: &Pending, container: &Arc<Container>) {
        let (state::What::Exec(exec), Some(program)) = (&pending.what, &pending.known.program)
        else {
            return;
        };
        let known = &pending.known;
        let origin = known.origin(&exec.used.process, container);
        let Some(command) = command(origin, known.command.as_deref()) else {
            return;
        };
        let act = profile::Act {
            command,
            what: What::Exec {
                path: file::path_in_image(&exec.used),
                sha256: None,
                parent: known.ancestors.first().map(Vec::as_slice),
                arguments: &exec.arguments,
                is_learnable: true,
            },
        };
        self.profile_follow(container);
        if !self.state.profiles.expects(container, origin, &act) {
            program.set_unexpected();
        }
    }

    /// Takes note that a finding was raised.
    pub(in crate::agent) fn profile_found(&mut self, finding: &Finding) {
        if is_of_content(finding) {
            (self.state.profiles).distrust(&finding.container, Timestamp::now());
        }
    }

    /// Takes note that events were lost: of a container, or of anybody.
    pub(in crate::agent) fn profile_lost(&mut self, container: Option<&Container>, at: Timestamp) {
        self.state.profiles.events_lost(container, at);
    }

    /// Freezes what is to be frozen, writes what was learned, and looks at the folder.
    pub(in crate::agent) fn profile_tick(&mut self) {
        self.state.profiles.members.expire();
        if self.state.profiles.tick(Timestamp::now()) {
            self.weigh_again();
        }
        let profiles = &mut self.state.profiles;
        let to_write = profiles.take_changed(false);
        if !to_write.is_empty() {
            let write = profiles.store.writer(&profiles.members);
            (self.state.in_flight).spawn_blocking(move || Done::Written(write.write(&to_write)));
        }
        if let Some(mut folder) = profiles.folder.if_due(FOLDER_INTERVAL) {
            self.state.in_flight.spawn_blocking(move || {
                let found = Found::read(&mut folder);
                Done::Folder(Box::new((folder, found)))
            });
        }
    }

    /// Takes in what was found in the folder.
    pub(in crate::agent) fn profile_folder(&mut self, folder: Folder, found: Option<Found>) {
        let has_changed = found.is_some();
        self.state.profiles.folder = folder;
        self.state.profiles.take_folder(found);
        if has_changed {
            self.weigh_again();
        }
    }

    /// Takes in whether profiles could be written.
    pub(in crate::agent) fn profile_written(&mut self, failed: u64) {
        self.state.profiles.counts.failed += failed;
    }

    /// Writes all that was learned. Blocks.
    pub(in crate::agent) fn profile_end(&mut self) {
        let profiles = &mut self.state.profiles;
        let to_write = profiles.take_changed(true);
        let write = profiles.store.writer(&profiles.members);
        write.write(&to_write);
    }

    /// Has the kernel side tell again of what was judged good: what it is judged by has changed.
    pub(in crate::agent) fn weigh_again(&mut self) {
        let Some(sensor) = &mut self.sensor else {
            return;
        };
        if let Err(error) = sensor.forget_opens().and_then(|()| sensor.forget_peers()) {
            tracing::error!(%error, "cannot make the kernel side forget what was judged good; what a profile or policy no longer allows may not be told until monitord is started again");
        }
    }
}

/// Whether it says that not all of the container is the image's.
fn is_of_content(finding: &Finding) -> bool {
    match finding.kind {
        Kind::ExecAdded
        | Kind::ExecModified
        | Kind::ExecMemory
        | Kind::ScriptAdded
        | Kind::ScriptModified
        | Kind::CodeAdded
        | Kind::CodeModified
        | Kind::CodeMemory => true,
        // Data of the image changes in many containers; code does not.
        Kind::ImageFileModified => finding.severity >= Severity::High,
        _ => false,
    }
}
