//! The owner's part for what containers do, whatever it is: what is made of it beside the rules.

use std::sync::Arc;

use super::{executed, owner::Owner, state::Pending};
use crate::{
    activity::{Act, Activity},
    containers::Container,
    detect::{
        Finding,
        file::{self, Judgement, UseFacts},
    },
    sensor::{
        event::{Connect, Exec, Open},
        hooks,
    },
};

/// The execution of a program, and what came of judging it.
pub(super) fn executed<'a>(
    exec: &'a Exec,
    facts: &'a UseFacts<'_>,
    judgement: &Judgement,
) -> Activity<'a> {
    let path = file::path_in_image(facts.used);
    let contents = facts.expected.contents();
    let judged = executed::verdict(path, facts.bytes.sha256(), judgement, contents);
    Activity {
        time_boot_ns: facts.used.time_boot_ns,
        container: facts.container,
        process: &facts.used.process,
        origin: facts.origin,
        program: facts.program,
        ancestors: &facts.ancestors,
        hook: facts.hook,
        act: Act::Exec {
            exec,
            path,
            verdict: judged.map(|(verdict, _)| verdict),
            sha256: judged.and_then(|(_, sha256)| sha256),
        },
    }
}

/// The opening of a file.
pub(super) fn opened<'a>(
    pending: &'a Pending,
    open: &'a Open,
    container: &'a Arc<Container>,
) -> Activity<'a> {
    let file = &open.used.file;
    let task = container.task.as_ref();
    let in_root =
        task.and_then(|task| task.path_in_root(file.facts.device, &file.path_in_filesystem));
    let act = Act::Open {
        open,
        path: in_root.unwrap_or(&file.path),
        is_in_root: in_root.is_some(),
    };
    of(pending, container, act)
}

/// A peer that was reached for.
pub(super) fn connected<'a>(
    pending: &'a Pending,
    connect: &'a Connect,
    container: &'a Arc<Container>,
) -> Activity<'a> {
    of(pending, container, Act::Connect(connect))
}

fn of<'a>(pending: &'a Pending, container: &'a Arc<Container>, act: Act<'a>) -> Activity<'a> {
    let (used, known) = (pending.what.used(), &pending.known);
    Activity {
        time_boot_ns: used.time_boot_ns,
        container,
        process: &used.process,
        origin: known.origin(&used.process, container),
        program: known.program.as_deref(),
        ancestors: &known.ancestors,
        hook: hooks::set_name(used.hook),
        act,
    }
}

impl Owner {
    /// What is to be raised of an activity, of which the rules `found` something or nothing.
    #[expect(clippy::unused_self, reason = "profiles and policies are the owner's")]
    pub(super) fn weigh(
        &mut self,
        _activity: &Activity<'_>,
        found: Option<Finding>,
    ) -> Vec<Finding> {
        found.into_iter().collect()
    }
}
