//! Deviations in words.

use monitor_api::bytes::escape;

use super::{
    Deviation, NEARBY_MAX,
    behaviour::{Behaviour, Item, Verdict},
    pattern,
    whole::{Doer, Whole},
};

/// Bytes of a name in a message.
const NAME_BYTES_MAX: usize = 256;

/// What is said of something that a profile does not have.
pub(super) fn deviation(
    whole: &Whole,
    doer: Doer<'_>,
    item: &Item<'_>,
    verdict: Verdict,
    is_partial: bool,
) -> Deviation {
    let part = doer.command.and_then(|command| whole.put_in.get(command));
    if doer.is_beginning && part.is_none() {
        let commands = whole.put_in.keys().map(|name| short(name.as_bytes()));
        return Deviation {
            message: format!(
                "{} was put in from outside, which the profile of the image does not have",
                short(doer.command.unwrap_or_default().as_bytes())
            ),
            nearby: commands.take(NEARBY_MAX).collect(),
            is_partial,
        };
    }
    let done = done(item);
    let message = match (part, doer.command) {
        (None, None) => format!("{done}: {}", wrong(verdict)),
        (None, Some(command)) => format!("{done} by {}", short(command.as_bytes())),
        (Some(_), command) => format!(
            "{done} by {}, which was put in from outside: {}",
            short(command.unwrap_or_default().as_bytes()),
            wrong(verdict)
        ),
    };
    let behaviour = part.map_or(&whole.main, |part| &part.behaviour);
    let mut nearby = nearby(behaviour, item);
    if nearby.is_empty() {
        nearby = self::nearby(&whole.main, item);
    }
    Deviation {
        message,
        nearby,
        is_partial,
    }
}

fn done(item: &Item<'_>) -> String {
    match item {
        Item::Exec { path, parent, .. } => match parent {
            Some(parent) => format!("{} was executed by {}", short(path), short(parent)),
            None => format!("{} was executed", short(path)),
        },
        Item::Open { path, access } => {
            let access = match pattern::access_name(*access) {
                "read" => "reading",
                "write" => "writing",
                _ => "reading and writing",
            };
            format!("{} was opened for {access}", short(path))
        }
        Item::Peer(peer) => {
            let port = peer
                .port
                .map(|port| format!(" port {port}"))
                .unwrap_or_default();
            let protocol = super::peers::protocol_name(peer.protocol);
            format!(
                "{}{port} was reached for by {protocol}",
                peer.network.address()
            )
        }
        Item::Socket(path) => format!("the socket {} was reached for", short(path)),
    }
}

fn wrong(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Parent => {
            "the profile of the image has this program, but not executed by this one"
        }
        Verdict::Arguments => {
            "the profile of the image has this program, but not with such arguments"
        }
        _ => "the profile of the image does not have it",
    }
}

fn nearby(behaviour: &Behaviour, item: &Item<'_>) -> Vec<String> {
    match item {
        Item::Exec { path, parent, .. } => near_program(behaviour, path, *parent),
        Item::Open { path, .. } => behaviour.files.nearby(path, NEARBY_MAX),
        Item::Peer(peer) => behaviour.peers.nearby(*peer, NEARBY_MAX),
        Item::Socket(path) => behaviour.sockets.nearby(path, NEARBY_MAX),
    }
}

/// How the program may be executed; else what its parent may execute, else what lies beside it.
fn near_program(behaviour: &Behaviour, path: &[u8], parent: Option<&[u8]>) -> Vec<String> {
    if let Some(program) = behaviour.executables.get(path) {
        let parents = program.parents.iter().flatten();
        let parents = parents.map(|parent| format!("{} by {}", short(path), short(parent)));
        let shapes = program.shapes.iter().flatten();
        let shapes = shapes.map(|shape| format!("{} {}", short(path), short(shape.as_bytes())));
        let by_parent = parent.is_none_or(|parent| {
            program
                .parents
                .as_ref()
                .is_none_or(|known| known.contains(parent))
        });
        return if by_parent {
            shapes.chain(parents).take(NEARBY_MAX).collect()
        } else {
            parents.chain(shapes).take(NEARBY_MAX).collect()
        };
    }
    let directory = |path: &[u8]| path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    let own = path.get(..directory(path));
    let siblings = behaviour.executables.iter().filter(|(_, program)| {
        parent.is_some_and(|parent| program.parents.iter().flatten().any(|it| **it == *parent))
    });
    let beside = behaviour
        .executables
        .iter()
        .filter(|(path, _)| path.get(..directory(path)) == own);
    let mut found: Vec<String> = Vec::new();
    for (path, _) in siblings.chain(beside).chain(&behaviour.executables) {
        let text = short(path);
        if found.len() < NEARBY_MAX && !found.contains(&text) {
            found.push(text);
        }
    }
    found
}

/// Bytes as text, cut at [`NAME_BYTES_MAX`].
fn short(bytes: &[u8]) -> String {
    match bytes.get(..NAME_BYTES_MAX) {
        Some(start) if bytes.len() > NAME_BYTES_MAX => escape(start) + "…",
        _ => escape(bytes),
    }
}
