//! The behaviour of a container as a whole: of its own processes, and of each command that is put in
//! from outside.

use std::collections::BTreeMap;

use super::behaviour::{Behaviour, Item, MAIN, PUT_IN};

/// How often a command is put in before it is taken for a habit (a probe) and not a person's.
pub(super) const COMMAND_STARTS_MIN: u8 = 3;
/// Commands that are put in; of more the first by name are kept.
pub(super) const COMMANDS_MAX: usize = 16;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Whole {
    pub(super) main: Behaviour,
    pub(super) put_in: BTreeMap<Box<str>, Command>,
    /// There were more commands than are kept.
    pub(super) is_missing_commands: bool,
}

/// A command that is put in.
#[derive(Clone, Debug)]
pub(super) struct Command {
    /// The image names it.
    pub(super) is_named: bool,
    /// How often it was put in, up to [`COMMAND_STARTS_MIN`].
    pub(super) seen: u8,
    pub(super) behaviour: Behaviour,
}

/// Who did something.
#[derive(Clone, Copy, Debug)]
pub(super) struct Doer<'a> {
    /// The command that was put in; `None` of the container's own processes.
    pub(super) command: Option<&'a str>,
    /// It is the command itself that is executed.
    pub(super) is_beginning: bool,
}

/// How numbers of starts are united.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Starts {
    /// They are of several containers.
    Add,
    /// They may be of the same ones.
    Larger,
}

impl Default for Whole {
    fn default() -> Self {
        Self {
            main: Behaviour::new(&MAIN),
            put_in: BTreeMap::new(),
            is_missing_commands: false,
        }
    }
}

impl Default for Command {
    fn default() -> Self {
        Self {
            is_named: false,
            seen: 0,
            behaviour: Behaviour::new(&PUT_IN),
        }
    }
}

impl Command {
    /// It is taken for a habit.
    pub(super) fn counts(&self) -> bool {
        self.is_named || self.seen >= COMMAND_STARTS_MIN
    }
}

impl Whole {
    /// Whether learning something would change nothing.
    pub(super) fn has(&self, doer: Doer<'_>, item: &Item<'_>) -> bool {
        let Some(name) = doer.command else {
            return self.main.has(item);
        };
        match self.put_in.get(name) {
            Some(command) => {
                let is_counted = !doer.is_beginning || command.seen >= COMMAND_STARTS_MIN;
                is_counted && command.behaviour.has(item)
            }
            None => {
                let last = self.put_in.last_key_value();
                let is_full = self.is_missing_commands && self.put_in.len() == COMMANDS_MAX;
                is_full && last.is_some_and(|(last, _)| name > &**last)
            }
        }
    }

    pub(super) fn learn(&mut self, doer: Doer<'_>, item: &Item<'_>) {
        let Some(name) = doer.command else {
            self.main.learn(item);
            return;
        };
        let command = self.command(name);
        if doer.is_beginning {
            command.seen = command.seen.saturating_add(1).min(COMMAND_STARTS_MIN);
        }
        command.behaviour.learn(item);
        self.bound();
    }

    /// The command of that name, which is made if there is none.
    pub(super) fn command(&mut self, name: &str) -> &mut Command {
        self.put_in.entry(name.into()).or_default()
    }

    /// Whether a doer may do something.
    pub(super) fn allows(&self, doer: Doer<'_>, item: &Item<'_>) -> bool {
        use super::behaviour::Verdict::Allowed;
        let command = doer.command.and_then(|name| self.put_in.get(name));
        let command = command.filter(|command| command.counts());
        self.main.judge(item) == Allowed
            || command.is_some_and(|command| command.behaviour.judge(item) == Allowed)
    }

    pub(super) fn join(&mut self, other: &Self, starts: Starts) {
        self.main.join(&other.main);
        self.is_missing_commands |= other.is_missing_commands;
        for (name, theirs) in &other.put_in {
            let own = self.command(name);
            own.is_named |= theirs.is_named;
            own.seen = match starts {
                Starts::Add => own.seen.saturating_add(theirs.seen).min(COMMAND_STARTS_MIN),
                Starts::Larger => own.seen.max(theirs.seen),
            };
            own.behaviour.join(&theirs.behaviour);
        }
        self.bound();
    }

    /// Keeps the first commands by name.
    pub(super) fn bound(&mut self) {
        while self.put_in.len() > COMMANDS_MAX {
            self.put_in.pop_last();
            self.is_missing_commands = true;
        }
    }

    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        let commands = self.put_in.iter();
        let commands =
            commands.map(|(name, it)| name.len() + size_of::<Command>() + it.behaviour.bytes());
        self.main.bytes() + commands.sum::<usize>()
    }
}
