//! Carries out all techniques at one daemon and compares what was raised.

use std::{
    collections::BTreeSet,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{
    ALL, Steps, Technique, image,
    stage::{NotHere, OTHER, Stage},
    techniques,
};
use crate::{alerts::text, world::World};

/// What a container runs last that must raise nothing, and what that raises: its silence before is
/// then a verdict and no blindness.
const WATCHED: &str = "\nprogram /tmp/watched; /tmp/watched true";
const WATCHED_RAISES: &str = "exec_added /tmp/watched";

/// What came of a technique on this kernel.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Which.
    pub technique: &'static Technique,
    /// What the document says of it.
    pub cell: String,
    /// What is not as it must be.
    pub failure: Option<String>,
}

/// An alert, as far as it is compared.
#[derive(Debug)]
struct Raised {
    /// Kind, path or peer, and whether path or arguments were cut.
    what: String,
    hook: String,
}

impl Raised {
    fn read(alert: &Value) -> Self {
        let field = |pointer| text(alert, pointer).unwrap_or_default();
        let cut = |pointer, told| match alert.pointer(pointer) {
            Some(Value::Bool(true)) => told,
            _ => "",
        };
        let peer = match alert.pointer("/connection/port").and_then(Value::as_u64) {
            Some(port) => format!("{}:{port}", field("/connection/address")),
            None => field("/connection/address").to_owned(),
        };
        let words = [
            field("/kind"),
            field("/file/path"),
            field("/connection/protocol"),
            &peer,
        ];
        let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
        let words = words.join(" ");
        let what = [
            words.as_str(),
            cut("/file/path_truncated", ", path cut"),
            cut("/process/arguments_truncated", ", arguments cut"),
        ];
        Self {
            what: what.concat(),
            hook: field("/hook").to_owned(),
        }
    }
}

/// Carries out all techniques, each in a container of its own that this OCI runtime runs.
///
/// # Errors
///
/// containerd or monitord does not do what has nothing to do with a technique.
pub fn run(runtime: &str) -> Result<Vec<Outcome>> {
    let images = image::all()?;
    let world = World::start_after(|containerd| {
        containerd.use_runtime(runtime)?;
        images.iter().try_for_each(|image| containerd.import(image))
    })?;
    let all: Vec<&'static Technique> = techniques().collect();
    let hooks = hooks(&world)?;
    world.have_read(image::TOOLS)?;
    let ran = Mutex::new(Vec::new());
    let next = AtomicUsize::new(0);
    let threads = thread::available_parallelism()?.get();
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(technique) = all.get(index) else {
                        break;
                    };
                    let result = carry_out(&world, technique, &hooks, &id(index));
                    let mut ran = ran.lock().unwrap_or_else(PoisonError::into_inner);
                    ran.push((index, *technique, result));
                }
            });
        }
    });
    world.settle()?;
    let mut ran = ran.into_inner().unwrap_or_else(PoisonError::into_inner);
    ran.sort_by_key(|(index, ..)| *index);
    let outcomes = ran.into_iter().map(|(index, technique, result)| {
        outcome(technique, &hooks, result, &raised(&world, &id(index)))
    });
    let outcomes = outcomes.collect();
    world.daemon.check_alive()?;
    Ok(outcomes)
}

fn id(index: usize) -> String {
    format!("evasion-{index}")
}

fn carry_out(world: &World, technique: &Technique, hooks: &Hooks, id: &str) -> Result<()> {
    let stage = Stage::new(world, id, technique.image, technique.flags)?;
    match technique.steps {
        Steps::Shell(line) if is_quiet(technique, hooks) => {
            stage.run(&stage.shell(&format!("{line}{WATCHED}")))
        }
        Steps::Shell(line) => stage.run(&stage.shell(line)),
        Steps::Staged(steps) => steps(&stage),
    }
}

fn raised(world: &World, id: &str) -> Vec<Raised> {
    let mut alerts = world.alerts.of(id);
    alerts.extend(world.alerts.of(&format!("{id}{OTHER}")));
    alerts.iter().map(Raised::read).collect()
}

/// The hooks that the daemon has in force, each with its kind of event.
type Hooks = BTreeSet<(String, String)>;

fn hooks(world: &World) -> Result<Hooks> {
    let status = world.daemon.status()?;
    let hooks = status.pointer("/hooks").and_then(Value::as_array);
    let names = hooks.into_iter().flatten().filter_map(|hook| {
        let (event, hook) = (text(hook, "/event")?, text(hook, "/hook")?);
        Some((event.to_owned(), hook.to_owned()))
    });
    Ok(names.collect())
}

/// Those of the hooks in force for what a technique does that cannot see it.
fn missed(technique: &Technique, hooks: &Hooks) -> Vec<&'static str> {
    // Kinds of alerts begin with the kind of event that they come of.
    let kind = technique
        .raises
        .first()
        .and_then(|kind| kind.split('_').next());
    let is_in_force = |wanted: &str| {
        let mut hooks = hooks.iter();
        hooks.any(|(event, hook)| Some(event.as_str()) == kind && hook == wanted)
    };
    let missed = technique.missed.iter().map(|(hook, _)| *hook);
    missed
        .filter(|hook| *hook == ALL || is_in_force(hook))
        .collect()
}

/// Whether a technique must raise nothing, because it is harmless or cannot be seen.
fn is_quiet(technique: &Technique, hooks: &Hooks) -> bool {
    technique.raises.is_empty() || !missed(technique, hooks).is_empty()
}

fn outcome(
    technique: &'static Technique,
    hooks: &Hooks,
    result: Result<()>,
    raised: &[Raised],
) -> Outcome {
    let told = |cell: String, failure: Option<String>| Outcome {
        technique,
        cell,
        failure,
    };
    if let Err(error) = result {
        return match error.downcast_ref::<NotHere>() {
            Some(reason) => told(format!("impossible here: {reason}"), None),
            None => told("not carried out".to_owned(), Some(format!("{error:#}"))),
        };
    }
    let missed = missed(technique, hooks);
    let expect = match technique.steps {
        Steps::Shell(_) if is_quiet(technique, hooks) => &[WATCHED_RAISES],
        _ if missed.is_empty() => technique.raises,
        _ => &[],
    };
    if let Some(difference) = difference(expect, raised) {
        let kinds = kinds(raised.iter().map(|alert| alert.what.as_str()));
        let kinds = if kinds.is_empty() { "nothing" } else { &kinds };
        return told(format!("WRONG: {kinds}"), Some(difference));
    }
    let by: BTreeSet<&str> = raised.iter().map(|alert| alert.hook.as_str()).collect();
    let by = by.into_iter().collect::<Vec<_>>().join(", ");
    let cell = match technique.raises {
        _ if !missed.is_empty() => format!("missed by {}", missed.join(", ")),
        [] => format!("nothing, watched by {by}"),
        raises => format!("{} by {by}", kinds(raises.iter().copied())),
    };
    told(cell, None)
}

/// The kinds of alerts that are each a kind and a path, for people.
fn kinds<'a>(alerts: impl Iterator<Item = &'a str>) -> String {
    let kinds: BTreeSet<&str> = alerts.filter_map(|alert| alert.split(' ').next()).collect();
    let kinds: Vec<String> = kinds.iter().map(|kind| format!("`{kind}`")).collect();
    kinds.join(", ")
}

/// What was raised and not expected, or the other way round.
fn difference(expect: &[&str], raised: &[Raised]) -> Option<String> {
    let mut missing = expect.to_vec();
    let mut more = Vec::new();
    for alert in raised {
        match missing.iter().position(|wanted| fits(wanted, &alert.what)) {
            Some(index) => drop(missing.swap_remove(index)),
            None => more.push(alert.what.as_str()),
        }
    }
    (!missing.is_empty() || !more.is_empty())
        .then(|| format!("not raised: {missing:?}; raised instead or besides: {more:?}"))
}

fn fits(wanted: &str, what: &str) -> bool {
    match wanted.split_once('*') {
        Some((start, end)) => what.starts_with(start) && what.ends_with(end),
        None => what == wanted,
    }
}

/// The kernel's series, as `6.12`.
///
/// # Errors
///
/// The kernel's release cannot be read.
pub fn kernel() -> Result<String> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit());
    let (major, minor) = (numbers.next(), numbers.next());
    let (major, minor) = major.zip(minor).context("the kernel has no version")?;
    Ok(format!("{major}.{minor}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_raised_is_compared_alert_by_alert() {
        let check = |expect: &[&str], raised: &[&str], same: bool| {
            let raised = raised.iter().map(|what| Raised {
                what: (*what).to_owned(),
                hook: "lsm".to_owned(),
            });
            let raised: Vec<Raised> = raised.collect();
            assert_eq!(
                difference(expect, &raised).is_none(),
                same,
                "{expect:?} and {raised:?}"
            );
        };
        check(&[], &[], true);
        check(&["exec_added /a"], &[], false);
        check(&[], &["exec_added /a"], false);
        check(&["exec_added /a"], &["exec_added /a"], true);
        check(
            &["exec_added /a"],
            &["exec_added /a", "exec_added /a"],
            false,
        );
        check(&["exec_added /a"], &["exec_modified /a"], false);
        check(&["exec_added /a"], &["exec_added /ab"], false);
        check(&["a /1", "a /2"], &["a /2", "a /1"], true);
        check(&["exec_memory /tmp/#*"], &["exec_memory /tmp/#12"], true);
        check(
            &["exec_added */x, path cut"],
            &["exec_added /d/x, path cut"],
            true,
        );
        check(&["exec_added */x, path cut"], &["exec_added /d/x"], false);
    }

    #[test]
    fn a_miss_counts_only_where_its_hook_is_in_force() {
        let technique = techniques()
            .next()
            .map(|technique| technique.missed(&[("tracepoint", "why")]));
        let check = |in_force: &[(&str, &str)], raised: bool, cell: &str| {
            let hooks = in_force.iter();
            let hooks: Hooks = hooks
                .map(|(event, hook)| ((*event).to_owned(), (*hook).to_owned()))
                .collect();
            let expect = technique.iter().map(|technique| {
                let quiet = is_quiet(technique, &hooks);
                (quiet, missed(technique, &hooks).join(", "))
            });
            assert_eq!(expect.collect::<Vec<_>>(), [(!raised, cell.to_owned())]);
        };
        check(&[("exec", "tracepoint")], false, "tracepoint");
        check(&[("exec", "lsm"), ("fork", "tracepoint")], true, "");
    }
}
