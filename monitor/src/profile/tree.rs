//! Paths as a tree of patterns that stays small whatever is opened, and is the same whatever came
//! first.
//!
//! A directory with more than [`SIBLINGS_MAX`] entries is collapsed: any name is meant, and what lay
//! below its entries is united. What lies below one top-level directory weighs no more than
//! [`Limits::weight`], or else what lies deeper is cut off: the weight is never less than that of any
//! part of what was learned, so that it does not matter in which order that came.

mod node;
mod path;

use super::{
    generalise::{NAME_BYTES_MAX, stands_for},
    pattern::{self, last_of},
};
use node::Node;
use path::{entry_name, is_secret, next, push, segments, split_top, top_name};

/// Entries of a directory that are told apart.
pub(super) const SIBLINGS_MAX: usize = 32;
/// Directories below each other that are told apart.
pub(super) const DEPTH_MAX: u8 = 16;

/// Opened for reading.
pub(super) const READ: u8 = 1;
/// Opened for writing.
pub(super) const WRITE: u8 = 2;

/// Directories where any name would be too much, by what lies beside: neither they nor what lies
/// directly in them is collapsed.
const GUARDED: [&[u8]; 9] = [
    b"/boot", b"/dev", b"/etc", b"/home", b"/proc", b"/root", b"/run", b"/sys", b"/var",
];
/// Below guarded directories nothing is cut off at a lesser depth so that whatever lies below is
/// allowed; it is forgotten instead.
const GUARDED_DEPTH: u8 = 3;
/// How large a tree may become.
#[derive(Debug)]
pub(super) struct Limits {
    /// Top-level directories; of more the first by name are kept.
    pub(super) tops: usize,
    /// Weight of each.
    pub(super) weight: usize,
}

/// Paths, each with what it may be opened for.
#[derive(Clone, Debug)]
pub(super) struct PathTree {
    limits: &'static Limits,
    /// Sorted by name.
    tops: Vec<Top>,
    /// There were more than are kept.
    is_incomplete: bool,
}

#[derive(Clone, Debug)]
struct Top {
    node: Node,
    /// What lies deeper is cut off.
    depth: u8,
}

/// One pattern of a tree.
pub(super) struct Rule {
    /// Segments with `/` between them.
    pub(super) pattern: Vec<u8>,
    /// Whatever lies below the pattern is meant.
    pub(super) is_below: bool,
    pub(super) access: u8,
}

impl PathTree {
    pub(super) fn new(limits: &'static Limits) -> Self {
        Self {
            limits,
            tops: Vec::new(),
            is_incomplete: false,
        }
    }

    /// Whether learning a path would change nothing.
    pub(super) fn has(&self, path: &[u8], access: u8) -> bool {
        let mut buffer = [0; NAME_BYTES_MAX + 1];
        let (first, mut rest) = split_top(path);
        let name = top_name(first, &mut buffer);
        let Ok(at) = self.find(name) else {
            let is_full = self.is_incomplete && self.tops.len() == self.limits.tops;
            let last = self.tops.last().filter(|_| is_full);
            return last.is_some_and(|last| name > &*last.node.name);
        };
        let Some(top) = self.tops.get(at) else {
            return false;
        };
        if !top.may_cut() && segments(rest).count() >= usize::from(top.depth) {
            return true;
        }
        let (mut node, mut depth) = (&top.node, 1);
        while let Some((segment, after)) = next(rest) {
            if depth == top.depth {
                return node.below & access == access;
            }
            let name = entry_name(&top.node.name, depth == 1, segment, &mut buffer);
            let Some(child) = node.child(node.entry(name)) else {
                return false;
            };
            (node, depth, rest) = (child, depth + 1, after);
        }
        node.access & access == access
    }

    /// Adds a path as it was opened.
    pub(super) fn learn(&mut self, path: &[u8], access: u8) {
        let mut buffer = [0; NAME_BYTES_MAX + 1];
        let (first, rest) = split_top(path);
        let top: Box<[u8]> = top_name(first, &mut buffer).into();
        let names = segments(rest).enumerate().map(|(at, segment)| {
            let mut buffer = [0; NAME_BYTES_MAX + 1];
            Box::from(entry_name(&top, at == 0, segment, &mut buffer))
        });
        // What lies deeper makes no difference.
        let names: Vec<Box<[u8]>> = names.take(usize::from(DEPTH_MAX)).collect();
        self.grow(&top, |top| {
            top.add(&names, |node| node.access |= access, access)
        });
    }

    /// Adds a pattern as it is written in a document.
    pub(super) fn add(&mut self, rule: &Rule) {
        self.at(&rule.pattern, rule.access, |node| {
            if rule.is_below {
                node.below |= rule.access;
            } else {
                node.access |= rule.access;
            }
        });
    }

    /// Collapses a directory.
    pub(super) fn collapse(&mut self, pattern: &[u8]) {
        self.at(pattern, 0, Node::collapse);
    }

    /// Cuts off what lies deeper below a top-level directory.
    pub(super) fn cut(&mut self, top: &[u8], depth: u8) {
        self.grow(top, |top| {
            top.depth = top.depth.min(depth.max(1));
            true
        });
    }

    /// Notes that there were more top-level directories than are kept.
    pub(super) fn set_incomplete(&mut self) {
        self.is_incomplete = true;
    }

    fn at(&mut self, pattern: &[u8], access: u8, change: impl FnOnce(&mut Node)) {
        let (first, rest) = split_top(pattern);
        let names: Vec<Box<[u8]>> = segments(rest).map(Box::from).collect();
        self.grow(first, |top| top.add(&names, change, access));
    }

    /// Changes one top-level directory, and keeps all within its bounds.
    fn grow(&mut self, name: &[u8], change: impl FnOnce(&mut Top) -> bool) {
        let at = match self.find(name) {
            Ok(at) => at,
            Err(at) => {
                self.tops.insert(
                    at,
                    Top {
                        node: Node::new(name),
                        depth: DEPTH_MAX,
                    },
                );
                at
            }
        };
        if let Some(top) = self.tops.get_mut(at)
            && change(top)
        {
            top.bound(self.limits.weight);
        }
        if self.tops.len() > self.limits.tops {
            self.tops.truncate(self.limits.tops);
            self.is_incomplete = true;
        }
    }

    fn find(&self, name: &[u8]) -> Result<usize, usize> {
        self.tops.binary_search_by(|top| (*top.node.name).cmp(name))
    }

    /// Whether a file may be opened.
    pub(super) fn allows(&self, path: &[u8], access: u8) -> bool {
        let (first, rest) = split_top(path);
        let is_secret = is_secret(last_of(path));
        let mut granted = 0;
        if let Some(top) = self.find(first).ok().and_then(|at| self.tops.get(at)) {
            granted |= top.node.granted(rest, is_secret);
        }
        if granted & access != access && first.first() != Some(&b'/') {
            // Abstract names may be patterns themselves.
            for top in self.tops.iter().filter(|top| top.node.is_wild) {
                if stands_for(&top.node.name, first) {
                    granted |= top.node.granted(rest, is_secret);
                }
            }
        }
        granted & access == access
    }

    /// Adds all of another tree.
    pub(super) fn join(&mut self, other: &Self) {
        self.is_incomplete |= other.is_incomplete;
        for theirs in &other.tops {
            self.grow(&theirs.node.name, |top| {
                let depth = top.depth.min(theirs.depth);
                let mut node = theirs.node.clone();
                for (node, was) in [(&mut top.node, top.depth), (&mut node, theirs.depth)] {
                    if was > depth {
                        node.cut(1, depth, may_cut(&theirs.node.name, depth));
                    }
                }
                top.depth = depth;
                let is_guarded = is_guarded(&node.name);
                top.node.join(node, 1, is_guarded);
                true
            });
        }
    }

    /// Every pattern.
    pub(super) fn rules(&self) -> Vec<Rule> {
        let mut rules = Vec::new();
        for top in &self.tops {
            let mut path = Vec::new();
            top.node.visit(&mut path, &mut |path, node| {
                for (is_below, access) in [(false, node.access), (true, node.below)] {
                    if access != 0 {
                        rules.push(Rule {
                            pattern: path.to_vec(),
                            is_below,
                            access,
                        });
                    }
                }
            });
        }
        rules
    }

    /// Every collapsed directory.
    pub(super) fn collapsed(&self) -> Vec<Vec<u8>> {
        let mut collapsed = Vec::new();
        for top in &self.tops {
            top.node.visit(&mut Vec::new(), &mut |path, node| {
                if node.is_collapsed {
                    collapsed.push(path.to_vec());
                }
            });
        }
        collapsed
    }

    /// The top-level directories of which something was cut off, and from which depth on.
    pub(super) fn cuts(&self) -> impl Iterator<Item = (&[u8], u8)> {
        let cut = self.tops.iter().filter(|top| top.depth < DEPTH_MAX);
        cut.map(|top| (&*top.node.name, top.depth))
    }

    /// There were more top-level directories than are kept.
    pub(super) fn is_incomplete(&self) -> bool {
        self.is_incomplete
    }

    /// Patterns that are nearest to a path, at most `max`.
    pub(super) fn nearby(&self, path: &[u8], max: usize) -> Vec<String> {
        let (first, mut rest) = split_top(path);
        let Some(top) = self.find(first).ok().and_then(|at| self.tops.get(at)) else {
            return Vec::new();
        };
        let mut node = &top.node;
        let mut way = Vec::new();
        while let Some((segment, after)) = next(rest) {
            let child = node.child(segment).or_else(|| {
                let mut wild = node.children.iter().filter(|child| child.is_wild);
                wild.find(|child| stands_for(&child.name, segment))
            });
            let Some(child) = child.filter(|child| !child.children.is_empty()) else {
                break;
            };
            push(&mut way, &node.name);
            (node, rest) = (child, after);
        }
        let mut found = Vec::new();
        node.visit(&mut way, &mut |path, node| {
            let access = node.access | node.below;
            if access != 0 && found.len() < max {
                let below = if node.access == 0 { "/**" } else { "" };
                found.push(format!(
                    "{}{below} ({})",
                    pattern::text(path),
                    pattern::access_name(access)
                ));
            }
        });
        found
    }

    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        let spare = self.tops.capacity() - self.tops.len();
        let used: usize = self.tops.iter().map(|top| top.node.bytes()).sum();
        used + spare * size_of::<Top>()
    }
}

impl Top {
    /// Adds what lies at `names`; whether anything became larger.
    fn add(&mut self, names: &[Box<[u8]>], change: impl FnOnce(&mut Node), access: u8) -> bool {
        if !self.may_cut() && names.len() >= usize::from(self.depth) {
            return false;
        }
        let is_guarded = is_guarded(&self.node.name);
        self.node
            .add(1, names, change, access, (self.depth, is_guarded))
    }

    fn may_cut(&self) -> bool {
        may_cut(&self.node.name, self.depth)
    }

    fn bound(&mut self, weight: usize) {
        let may_cut = self.may_cut();
        self.node.cut(1, self.depth, may_cut);
        while self.depth > 1 && self.node.weight() > weight {
            self.depth -= 1;
            let may_cut = self.may_cut();
            self.node.cut(1, self.depth, may_cut);
        }
    }
}

fn is_guarded(top: &[u8]) -> bool {
    GUARDED.contains(&top)
}

fn may_cut(top: &[u8], depth: u8) -> bool {
    depth >= GUARDED_DEPTH || !is_guarded(top)
}

#[cfg(test)]
mod tests;
