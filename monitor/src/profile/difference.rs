//! What differs between two profiles, in words.

use std::{collections::BTreeMap, fmt};

use monitor_api::bytes::escape;
use serde::Serialize;

use super::{
    document::{Document, Part},
    pattern,
    tree::{READ, WRITE},
};
use crate::digest::Sha256;

/// One difference between two profiles.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// What it is of: `executable`, `library`, `file` and so on.
    pub what: &'static str,
    /// Its name: a path, a pattern, a peer.
    pub name: String,
    /// What it was; `None` of what is new.
    pub from: Option<String>,
    /// What it is; `None` of what is gone.
    pub to: Option<String>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            what,
            name,
            from,
            to,
        } = self;
        match (from, to) {
            (None, Some(to)) if to.is_empty() => write!(f, "new {what} {name}"),
            (None, to) => write!(
                f,
                "new {what} {name} ({})",
                to.as_deref().unwrap_or_default()
            ),
            (_, None) => write!(f, "no more {what} {name}"),
            (Some(from), Some(to)) => write!(f, "{what} {name} changed from {from} to {to}"),
        }
    }
}

/// What a profile has, by what it is and its name.
type Facts = BTreeMap<(&'static str, String), String>;

/// What `new` has and `old` had not, and the other way round. Of a program that is new or gone not
/// each of its arguments and parents is told.
pub fn difference(old: &Document, new: &Document) -> Vec<Change> {
    let (old, new) = (facts(old), facts(new));
    let names = old
        .keys()
        .chain(new.keys().filter(|key| !old.contains_key(*key)));
    let mut changes: Vec<Change> = names
        .filter(|key| old.get(*key) != new.get(*key))
        .filter(|(what, name)| {
            let program = detail_of(what, name);
            let key = program.map(|program| ("executable", program.to_owned()));
            key.is_none_or(|key| old.contains_key(&key) && new.contains_key(&key))
        })
        .map(|key| Change {
            what: key.0,
            name: key.1.clone(),
            from: old.get(key).cloned(),
            to: new.get(key).cloned(),
        })
        .collect();
    changes.sort_by(|a, b| (a.what, &a.name).cmp(&(b.what, &b.name)));
    changes
}

const ARGUMENTS: &str = "arguments of";
const PARENT: &str = "parent of";
/// Between the path of a program and what is told of it.
const OF: &str = ": ";

/// The program that something is a detail of.
fn detail_of<'a>(what: &str, name: &'a str) -> Option<&'a str> {
    let is_detail = [ARGUMENTS, PARENT].contains(&what);
    is_detail.then(|| name.split_once(OF).map_or(name, |(program, _)| program))
}

fn facts(document: &Document) -> Facts {
    let mut facts = Facts::new();
    let mut add = |what, name: String, value: String| {
        facts.insert((what, name), value);
    };
    part(&document.main, "", &mut add);
    for library in &document.libraries {
        add("library", escape(&library.path), hash(library.sha256));
    }
    for it in &document.put_in {
        add("command put in", it.command.clone(), String::new());
        part(&it.part, &format!(" by {}", it.command), &mut add);
    }
    for port in &document.exposed_ports {
        add("exposed port", port.clone(), String::new());
    }
    add("user", "of the image".to_owned(), document.user.clone());
    facts
}

fn part(part: &Part, whose: &str, add: &mut impl FnMut(&'static str, String, String)) {
    for it in &part.executables {
        let path = escape(&it.path) + whose;
        let any = || vec!["any".to_owned()];
        let shapes = it.arguments.clone().unwrap_or_else(any);
        for shape in shapes {
            add(ARGUMENTS, format!("{path}{OF}{shape}"), String::new());
        }
        let parents = it.parents.as_ref();
        let parents = parents.map(|all| all.iter().map(|path| escape(path)).collect());
        for parent in parents.unwrap_or_else(any) {
            add(PARENT, format!("{path}{OF}{parent}"), String::new());
        }
        add("executable", path, hash(it.sha256));
    }
    for it in &part.files {
        let read = if it.read { READ } else { 0 };
        let write = if it.write { WRITE } else { 0 };
        let access = pattern::access_name(read | write).to_owned();
        add("file", it.pattern.clone() + whose, access);
    }
    for it in &part.peers {
        let port = it
            .port
            .map(|port| format!(" port {port}"))
            .unwrap_or_default();
        let name = format!("{} {}/{}{port}{whose}", it.protocol, it.address, it.prefix);
        add("peer", name, String::new());
    }
    for it in &part.sockets {
        add("socket", it.clone() + whose, String::new());
    }
}

fn hash(sha256: Option<Sha256>) -> String {
    sha256.map_or_else(String::new, |sha256| sha256.to_string())
}
