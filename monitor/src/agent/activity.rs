//! The owner's part for what containers do, whatever it is: what is made of it beside the rules.

use std::sync::Arc;

use super::{executed, owner::Owner, state::Pending};
use crate::{
    activity::{Act, Activity},
    containers::{
        Container,
        processes::{Origin, Program},
    },
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
    command: Option<&'a Program>,
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
        command,
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
        command: known.command.as_deref(),
        hook: hooks::set_name(used.hook),
        act,
    }
}

/// What is to be made of an activity.
pub(super) struct Weighed {
    /// What is to be raised.
    pub(super) findings: Vec<Finding>,
    /// That this one raises nothing says nothing of the next like it.
    pub(super) must_be_told: bool,
}

impl Owner {
    /// What is to be made of an activity, of which the rules `found` something or nothing.
    pub(super) fn weigh(&mut self, activity: &Activity<'_>, found: Option<Finding>) -> Weighed {
        // Who vouches for it by an exception has it learned as well.
        let is_excepted = found.as_ref().is_some_and(|it| self.policy_excepts(it));
        let found = found.filter(|_| !is_excepted);
        // A program that is told itself opens whatever it needs.
        let is_of_told = activity.program.is_some_and(Program::is_unexpected)
            && matches!(activity.act, Act::Open { .. });
        let unexpected = match found {
            None if !is_of_told => self.profile_weigh(activity, is_excepted),
            // What the image does not account for, or is sensitive, is told as that.
            _ => None,
        };
        let ruled = self.policy_weigh(activity);
        let mut findings: Vec<Finding> = found.into_iter().chain(ruled.findings).collect();
        // A rule says more of it than that it is unexpected.
        if findings.is_empty() {
            findings.extend(unexpected);
        }
        Weighed {
            findings,
            // The kernel side remembers for the whole container.
            must_be_told: ruled.may_change
                || is_excepted
                || is_of_told
                || activity.origin == Origin::Exec,
        }
    }
}
