//! Between what a profile holds in use and its document.

use std::collections::BTreeSet;

use super::{
    arguments,
    behaviour::{Behaviour, Bounds, MAIN, PUT_IN, Program},
    document::{
        Document, DocumentError, Executable, FileRule, Library, Part, PeerRule, PutIn, State,
        Subject,
    },
    learning::About,
    pattern::{self, PATH_BYTES_MAX},
    peers::{self, Network, Peer},
    reasons::Reasons,
    tree::{PathTree, READ, Rule, WRITE},
    whole::{COMMAND_STARTS_MIN, Whole},
};

/// What is said where something grew above its bound.
const EXECUTABLES: &str = "executables";
const PUT_INS: &str = "putIn";
const FILES: &str = "files ";
const SOCKETS: &str = "sockets ";
const PEERS: &str = "peers ";
/// Top-level directories.
const TOPS: &str = "/*";

/// What stands in [`Part::overflowed`].
enum Overflow {
    Executables,
    Commands,
    Files(Cut),
    Sockets(Cut),
    /// The networks of a protocol and port are that coarse, or the ports are not told apart.
    Peers(Peer, bool),
}

enum Cut {
    Tops,
    /// Below a top-level directory, what lies deeper.
    Below(Vec<u8>, u8),
}

/// The document of a profile.
pub(super) fn document(about: &About, whole: &Whole) -> Document {
    let mut main = part(&whole.main);
    if whole.is_missing_commands {
        main.overflowed.push(PUT_INS.to_owned());
    }
    main.overflowed.sort();
    let put_in = whole.put_in.iter().map(|(command, it)| PutIn {
        command: command.to_string(),
        seen: (!it.is_named).then_some(it.seen),
        part: part(&it.behaviour),
    });
    let libraries = about.libraries.iter().map(|(path, sha256)| Library {
        path: path.to_vec(),
        sha256: *sha256,
    });
    Document {
        image: about.subject.clone(),
        state: about.state,
        reasons: about.reasons.texts(about.state),
        inherited_from: about.inherited_from,
        frozen: about.frozen.clone(),
        user: about.user.clone(),
        exposed_ports: about.exposed_ports.iter().cloned().collect(),
        main,
        libraries: libraries.collect(),
        put_in: put_in.collect(),
    }
}

/// What a document says beside what it allows.
pub(super) fn about(document: &Document) -> About {
    let libraries = document.libraries.iter();
    About {
        subject: document.image.clone(),
        state: document.state,
        frozen: document
            .frozen
            .clone()
            .filter(|_| document.state == State::Frozen),
        inherited_from: document.inherited_from,
        user: document.user.clone(),
        exposed_ports: document.exposed_ports.iter().cloned().collect(),
        libraries: libraries
            .map(|it| (Box::from(&*it.path), it.sha256))
            .collect(),
        reasons: Reasons::of(&document.reasons, document.state),
    }
}

/// What a document allows.
pub(super) fn whole(document: &Document) -> Result<Whole, DocumentError> {
    let Subject {
        reference,
        repository,
        ..
    } = &document.image;
    for text in [reference, repository, &document.user] {
        is_short(text)?;
    }
    let mut whole = Whole {
        main: behaviour(&document.main, &MAIN)?,
        ..Whole::default()
    };
    whole.is_missing_commands = document.main.overflowed.iter().any(|it| it == PUT_INS);
    for it in &document.put_in {
        is_shape(&it.command)?;
        let command = whole.command(&it.command);
        command.is_named |= it.seen.is_none();
        command.seen = command
            .seen
            .max(it.seen.unwrap_or_default().min(COMMAND_STARTS_MIN));
        command.behaviour.join(&behaviour(&it.part, &PUT_IN)?);
    }
    whole.bound();
    Ok(whole)
}

/// A document as it is written, whatever the order in which it came.
pub(super) fn canonical(document: &Document) -> Result<Document, DocumentError> {
    Ok(self::document(&about(document), &whole(document)?))
}

fn part(behaviour: &Behaviour) -> Part {
    let executables = behaviour
        .executables
        .iter()
        .map(|(path, program)| Executable {
            path: path.to_vec(),
            sha256: program.sha256,
            parents: program
                .parents
                .as_ref()
                .map(|parents| parents.iter().map(|path| path.to_vec()).collect()),
            arguments: program
                .shapes
                .as_ref()
                .map(|shapes| shapes.iter().map(|shape| shape.to_string()).collect()),
        });
    let mut files: Vec<FileRule> = behaviour.files.rules().iter().map(file_rule).collect();
    files.sort_by(|a, b| a.pattern.cmp(&b.pattern));
    let mut sockets: Vec<String> = behaviour
        .sockets
        .rules()
        .iter()
        .map(pattern::rule_text)
        .collect();
    sockets.sort();
    let trees = [&behaviour.files, &behaviour.sockets];
    let collapsed: BTreeSet<String> = trees
        .iter()
        .flat_map(|tree| tree.collapsed())
        .map(|path| pattern::text(&path))
        .collect();
    let peers = behaviour.peers.rules().map(|peer| PeerRule {
        address: peer.network.address(),
        prefix: peer.network.prefix(),
        port: peer.port,
        protocol: peers::protocol_name(peer.protocol),
    });
    let mut overflowed = Vec::new();
    if behaviour.is_missing_executables {
        overflowed.push(EXECUTABLES.to_owned());
    }
    for (name, tree) in [FILES, SOCKETS].into_iter().zip(trees) {
        if tree.is_incomplete() {
            overflowed.push(format!("{name}{TOPS}"));
        }
        let cuts = tree.cuts();
        overflowed.extend(cuts.map(|(top, depth)| {
            let any = TOPS.repeat(usize::from(depth) - 1);
            format!("{name}{}{any}/**", pattern::text(top))
        }));
    }
    overflowed.extend(behaviour.peers.coarser().map(|(peer, is_any)| {
        let protocol = peers::protocol_name(peer.protocol);
        let port = peer.port.map(|port| port.to_string());
        let port = port.unwrap_or_else(|| if is_any { "*" } else { "-" }.to_owned());
        format!("{PEERS}{protocol} {port} {}", peer.network)
    }));
    overflowed.sort();
    Part {
        executables: executables.collect(),
        files,
        collapsed: collapsed.into_iter().collect(),
        peers: peers.collect(),
        sockets,
        overflowed,
    }
}

fn file_rule(rule: &Rule) -> FileRule {
    FileRule {
        pattern: pattern::rule_text(rule),
        read: rule.access & READ != 0,
        write: rule.access & WRITE != 0,
    }
}

fn behaviour(part: &Part, bounds: &'static Bounds) -> Result<Behaviour, DocumentError> {
    let mut behaviour = Behaviour::new(bounds);
    for text in &part.overflowed {
        match overflow(text)? {
            Overflow::Executables => behaviour.is_missing_executables = true,
            Overflow::Commands => {}
            Overflow::Files(cut) => cut.apply(&mut behaviour.files),
            Overflow::Sockets(cut) => cut.apply(&mut behaviour.sockets),
            Overflow::Peers(peer, is_any) => behaviour.peers.coarsen(peer, is_any),
        }
    }
    for text in &part.collapsed {
        let rule = rule(text, 0)?;
        let is_socket = part.sockets.iter().any(|socket| {
            socket
                .strip_prefix(text.as_str())
                .is_some_and(|rest| rest.starts_with('/'))
        });
        let is_file = part.files.iter().any(|file| {
            file.pattern
                .strip_prefix(text.as_str())
                .is_some_and(|rest| rest.starts_with('/'))
        });
        if is_socket {
            behaviour.sockets.collapse(&rule.pattern);
        }
        if is_file || !is_socket {
            behaviour.files.collapse(&rule.pattern);
        }
    }
    for it in &part.executables {
        for path in it.parents.iter().flatten().chain([&it.path]) {
            if path.len() > PATH_BYTES_MAX {
                return Err(DocumentError::Invalid(format!(
                    "a path of {} bytes: {PATH_BYTES_MAX} at most",
                    path.len()
                )));
            }
        }
        for shape in it.arguments.iter().flatten() {
            is_shape(shape)?;
        }
        let parents = it.parents.as_ref();
        let shapes = it.arguments.as_ref();
        let program = Program {
            sha256: it.sha256,
            parents: parents.map(|all| all.iter().map(|path| Box::from(&**path)).collect()),
            shapes: shapes.map(|all| all.iter().map(|shape| Box::from(&**shape)).collect()),
        };
        behaviour.execute(&it.path, program);
    }
    for it in &part.files {
        let read = if it.read { READ } else { 0 };
        let write = if it.write { WRITE } else { 0 };
        behaviour.files.add(&rule(&it.pattern, read | write)?);
    }
    for text in &part.sockets {
        behaviour.sockets.add(&rule(text, READ)?);
    }
    for it in &part.peers {
        let invalid =
            || DocumentError::Invalid(format!("{}/{} is no network", it.address, it.prefix));
        let protocol = peers::protocol_named(&it.protocol).ok_or_else(|| {
            let protocol = &it.protocol;
            DocumentError::Invalid(format!(
                "protocol {protocol:?} is not known: tcp, udp, raw, packet, or a number"
            ))
        })?;
        behaviour.peers.learn(Peer {
            protocol,
            port: it.port,
            network: Network::new(it.address, it.prefix).ok_or_else(invalid)?,
        });
    }
    Ok(behaviour)
}

fn rule(text: &str, access: u8) -> Result<Rule, DocumentError> {
    pattern::rule(text, access)
        .map_err(|error| DocumentError::Invalid(format!("pattern {:?}: {error}", cut(text))))
}

fn is_shape(text: &str) -> Result<(), DocumentError> {
    if arguments::is_shape(text) {
        return Ok(());
    }
    let text = cut(text);
    Err(DocumentError::Invalid(format!(
        "{text:?} is no shape of arguments"
    )))
}

fn is_short(text: &str) -> Result<(), DocumentError> {
    if text.len() <= PATH_BYTES_MAX {
        return Ok(());
    }
    let length = text.len();
    Err(DocumentError::Invalid(format!(
        "a text of {length} bytes: {PATH_BYTES_MAX} at most"
    )))
}

/// Checks a text of [`Part::overflowed`].
pub(super) fn is_overflow(text: &str) -> Result<(), DocumentError> {
    overflow(text).map(|_| ())
}

fn overflow(text: &str) -> Result<Overflow, DocumentError> {
    let parsed = match text {
        EXECUTABLES => Some(Overflow::Executables),
        PUT_INS => Some(Overflow::Commands),
        _ => {
            let files = text
                .strip_prefix(FILES)
                .and_then(Cut::parse)
                .map(Overflow::Files);
            let sockets = text
                .strip_prefix(SOCKETS)
                .and_then(Cut::parse)
                .map(Overflow::Sockets);
            files
                .or(sockets)
                .or_else(|| coarser(text.strip_prefix(PEERS)?))
        }
    };
    parsed.ok_or_else(|| {
        let text = cut(text);
        DocumentError::Invalid(format!(
            "{text:?} is nothing that overflows: executables, putIn, \"files /*\", \"files /DIRECTORY/*/**\", the same of sockets, or \"peers PROTOCOL PORT NETWORK\""
        ))
    })
}

fn coarser(text: &str) -> Option<Overflow> {
    let mut words = text.split(' ');
    let protocol = peers::protocol_named(words.next()?)?;
    let (port, is_any) = match words.next()? {
        "*" => (None, true),
        "-" => (None, false),
        port => (Some(port.parse().ok()?), false),
    };
    let network = network(words.next()?)?;
    let peer = Peer {
        protocol,
        port,
        network,
    };
    words
        .next()
        .is_none()
        .then_some(Overflow::Peers(peer, is_any))
}

/// Reads `ADDRESS/BITS`.
pub(super) fn network(text: &str) -> Option<Network> {
    let (address, prefix) = text.split_once('/')?;
    Network::new(address.parse().ok()?, prefix.parse().ok()?)
}

impl Cut {
    fn parse(text: &str) -> Option<Self> {
        if text == TOPS {
            return Some(Self::Tops);
        }
        let mut text = text.strip_suffix("/**")?;
        let mut depth = 1u8;
        while let Some(rest) = text.strip_suffix(TOPS) {
            (text, depth) = (rest, depth.checked_add(1)?);
        }
        let (pattern, is_below) = pattern::parse(text).ok()?;
        let is_top = pattern.iter().filter(|byte| **byte == b'/').count() <= 1
            && pattern.iter().skip(1).all(|byte| *byte != b'/');
        (is_top && !is_below).then_some(Self::Below(pattern, depth))
    }

    fn apply(self, tree: &mut PathTree) {
        match self {
            Self::Tops => tree.set_incomplete(),
            Self::Below(top, depth) => tree.cut(&top, depth),
        }
    }
}

/// What is quoted of a text.
fn cut(text: &str) -> String {
    text.chars().take(100).collect()
}
