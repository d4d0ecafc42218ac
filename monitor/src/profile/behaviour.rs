//! What processes do: programs, files, sockets and peers. Behaviours are united by [`Behaviour::join`],
//! and it does not matter in which order, nor whether something is united twice.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    peers::{Peer, Peers},
    tree::{Limits, PathTree, READ},
};
use crate::digest::Sha256;

/// Programs by which one may be executed; more are any.
pub(super) const PARENTS_MAX: usize = 16;
/// Shapes of the arguments of one program; more are any.
pub(super) const SHAPES_MAX: usize = 16;

/// How much a behaviour may hold.
#[derive(Debug)]
pub(super) struct Bounds {
    /// Programs; of more the first by path are kept.
    executables: usize,
    files: Limits,
    sockets: Limits,
}

/// Of what descends from the container's own.
pub(super) static MAIN: Bounds = Bounds {
    executables: 512,
    files: Limits {
        tops: 32,
        weight: 1280,
    },
    sockets: Limits {
        tops: 16,
        weight: 128,
    },
};
/// Of one command that is put in.
pub(super) static PUT_IN: Bounds = Bounds {
    executables: 64,
    files: Limits {
        tops: 16,
        weight: 128,
    },
    sockets: Limits {
        tops: 4,
        weight: 64,
    },
};

/// One thing that a process did.
#[derive(Clone, Copy, Debug)]
pub(super) enum Item<'a> {
    /// It executed a program.
    Exec {
        path: &'a [u8],
        sha256: Option<Sha256>,
        parent: Option<&'a [u8]>,
        shape: &'a str,
    },
    /// It opened a file.
    Open { path: &'a [u8], access: u8 },
    /// It reached for a peer.
    Peer(Peer),
    /// It reached for a socket.
    Socket(&'a [u8]),
}

/// What comes of comparing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Allowed,
    /// The program is known with another hash, of which others tell.
    OtherBytes,
    Unknown,
    /// The program is known, but not executed by this one.
    Parent,
    /// Likewise, but not with such arguments.
    Arguments,
}

/// A program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) sha256: Option<Sha256>,
    /// `None` stands for any.
    pub(super) parents: Option<BTreeSet<Box<[u8]>>>,
    /// `None` stands for any.
    pub(super) shapes: Option<BTreeSet<Box<str>>>,
}

/// What processes do.
#[derive(Clone, Debug)]
pub(super) struct Behaviour {
    bounds: &'static Bounds,
    pub(super) executables: BTreeMap<Box<[u8]>, Program>,
    /// There were more than are kept.
    pub(super) is_missing_executables: bool,
    pub(super) files: PathTree,
    pub(super) sockets: PathTree,
    pub(super) peers: Peers,
}

impl Behaviour {
    pub(super) fn new(bounds: &'static Bounds) -> Self {
        Self {
            bounds,
            executables: BTreeMap::new(),
            is_missing_executables: false,
            files: PathTree::new(&bounds.files),
            sockets: PathTree::new(&bounds.sockets),
            peers: Peers::default(),
        }
    }

    /// Whether learning something would change nothing.
    pub(super) fn has(&self, item: &Item<'_>) -> bool {
        match item {
            Item::Exec {
                path,
                sha256,
                parent,
                shape,
            } => match self.executables.get(*path) {
                Some(program) => {
                    program.sha256 == first(program.sha256, *sha256)
                        && program.has_parent(*parent)
                        && program.has_shape(shape)
                }
                None => {
                    let last = self.executables.last_key_value();
                    let is_full = self.is_missing_executables
                        && self.executables.len() == self.bounds.executables;
                    is_full && last.is_some_and(|(last, _)| *path > &**last)
                }
            },
            Item::Open { path, access } => self.files.has(path, *access),
            Item::Peer(peer) => self.peers.has(*peer),
            Item::Socket(path) => self.sockets.has(path, READ),
        }
    }

    pub(super) fn learn(&mut self, item: &Item<'_>) {
        match item {
            Item::Exec {
                path,
                sha256,
                parent,
                shape,
            } => self.execute(
                path,
                Program {
                    sha256: *sha256,
                    parents: Some(parent.iter().map(|parent| Box::from(*parent)).collect()),
                    shapes: Some(BTreeSet::from([Box::from(*shape)])),
                },
            ),
            Item::Open { path, access } => self.files.learn(path, *access),
            Item::Peer(peer) => self.peers.learn(*peer),
            Item::Socket(path) => self.sockets.learn(path, READ),
        }
    }

    /// Adds a program.
    pub(super) fn execute(&mut self, path: &[u8], program: Program) {
        match self.executables.get_mut(path) {
            Some(own) => own.join(program),
            None => {
                let mut own = Program::default();
                own.join(program);
                self.executables.insert(path.into(), own);
            }
        }
        while self.executables.len() > self.bounds.executables {
            self.executables.pop_last();
            self.is_missing_executables = true;
        }
    }

    pub(super) fn judge(&self, item: &Item<'_>) -> Verdict {
        let is_allowed = match item {
            Item::Exec {
                path,
                sha256,
                parent,
                shape,
            } => {
                let Some(program) = self.executables.get(*path) else {
                    return Verdict::Unknown;
                };
                let is_other = |(own, seen): (Sha256, Sha256)| own != seen;
                return if program.sha256.zip(*sha256).is_some_and(is_other) {
                    Verdict::OtherBytes
                } else if !program.has_parent(*parent) {
                    Verdict::Parent
                } else if !program.has_shape(shape) {
                    Verdict::Arguments
                } else {
                    Verdict::Allowed
                };
            }
            Item::Open { path, access } => self.files.allows(path, *access),
            Item::Peer(peer) => self.peers.allows(*peer),
            Item::Socket(path) => self.sockets.allows(path, READ),
        };
        if is_allowed {
            Verdict::Allowed
        } else {
            Verdict::Unknown
        }
    }

    pub(super) fn join(&mut self, other: &Self) {
        self.is_missing_executables |= other.is_missing_executables;
        for (path, program) in &other.executables {
            self.execute(path, program.clone());
        }
        self.files.join(&other.files);
        self.sockets.join(&other.sockets);
        self.peers.join(&other.peers);
    }

    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        let programs = self.executables.iter();
        let programs = programs.map(|(path, program)| path.len() + program.bytes());
        programs.sum::<usize>() + self.files.bytes() + self.sockets.bytes() + self.peers.bytes()
    }
}

impl Default for Program {
    fn default() -> Self {
        Self {
            sha256: None,
            parents: Some(BTreeSet::new()),
            shapes: Some(BTreeSet::new()),
        }
    }
}

impl Program {
    fn has_parent(&self, parent: Option<&[u8]>) -> bool {
        match (&self.parents, parent) {
            (Some(parents), Some(parent)) => parents.contains(parent),
            _ => true,
        }
    }

    fn has_shape(&self, shape: &str) -> bool {
        self.shapes
            .as_ref()
            .is_none_or(|shapes| shapes.contains(shape))
    }

    fn join(&mut self, other: Self) {
        self.sha256 = first(self.sha256, other.sha256);
        self.parents = united(self.parents.take(), other.parents, PARENTS_MAX);
        self.shapes = united(self.shapes.take(), other.shapes, SHAPES_MAX);
    }

    fn bytes(&self) -> usize {
        let parents = self
            .parents
            .iter()
            .flatten()
            .map(|parent| parent.len() + 40);
        let shapes = self.shapes.iter().flatten().map(|shape| shape.len() + 40);
        size_of::<Self>() + 40 + parents.chain(shapes).sum::<usize>()
    }
}

/// One of two hashes, the same whichever came first.
fn first(one: Option<Sha256>, other: Option<Sha256>) -> Option<Sha256> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

fn united<T: Ord>(
    one: Option<BTreeSet<T>>,
    other: Option<BTreeSet<T>>,
    max: usize,
) -> Option<BTreeSet<T>> {
    let mut all = one?;
    all.extend(other?);
    (all.len() <= max).then_some(all)
}
