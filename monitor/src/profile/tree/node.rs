//! One directory or file of a tree, and what lies below.

use super::{
    super::generalise::{ANY, WILD, stands_for},
    GUARDED_DEPTH, SIBLINGS_MAX,
    path::{is_secret, next, push},
};

/// A directory or a file.
#[derive(Clone, Debug, Default)]
pub(super) struct Node {
    pub(super) name: Box<[u8]>,
    /// The name has [`WILD`] in it.
    pub(super) is_wild: bool,
    /// What it may be opened for itself; 0 of a directory that was not opened.
    pub(super) access: u8,
    /// What whatever lies below may be opened for.
    pub(super) below: u8,
    /// Any name is meant.
    pub(super) is_collapsed: bool,
    /// Sorted: first those that are wild, then by name.
    pub(super) children: Vec<Node>,
}

impl Node {
    pub(super) fn new(name: &[u8]) -> Self {
        Self {
            name: name.into(),
            is_wild: name.contains(&WILD),
            ..Self::default()
        }
    }

    /// Under which name an entry is kept here.
    pub(super) fn entry<'a>(&self, name: &'a [u8]) -> &'a [u8] {
        if self.is_collapsed && !is_secret(name) {
            ANY
        } else {
            name
        }
    }

    pub(super) fn find(&self, name: &[u8]) -> Result<usize, usize> {
        let is_literal = !name.contains(&WILD);
        self.children
            .binary_search_by(|child| (!child.is_wild, &*child.name).cmp(&(is_literal, name)))
    }

    pub(super) fn child(&self, name: &[u8]) -> Option<&Self> {
        self.children.get(self.find(name).ok()?)
    }

    pub(super) fn child_mut(&mut self, name: &[u8]) -> Option<&mut Self> {
        let at = self.find(name).unwrap_or_else(|at| {
            self.children.insert(at, Self::new(name));
            at
        });
        self.children.get_mut(at)
    }

    pub(super) fn add(
        &mut self,
        depth: u8,
        names: &[Box<[u8]>],
        change: impl FnOnce(&mut Self),
        access: u8,
        bound: (u8, bool),
    ) -> bool {
        let (depth_max, is_guarded) = bound;
        let Some((name, rest)) = names.split_first() else {
            change(self);
            // A directory may have been collapsed.
            return true;
        };
        if depth == depth_max {
            self.below |= access;
            return false;
        }
        let had = self.children.len();
        let name = self.entry(name);
        let mut has_grown = false;
        if let Some(child) = self.child_mut(name) {
            has_grown = child.add(depth + 1, rest, change, access, bound);
        }
        has_grown |= self.children.len() > had;
        self.settle(depth, is_guarded);
        has_grown
    }

    /// Collapses the directory if it has too many entries.
    pub(super) fn settle(&mut self, depth: u8, is_guarded: bool) {
        let may_collapse = !(is_guarded && depth < GUARDED_DEPTH);
        if self.is_collapsed || !may_collapse || self.children.len() <= SIBLINGS_MAX {
            return;
        }
        let secrets = self
            .children
            .iter()
            .filter(|child| is_secret(&child.name))
            .count();
        if self.children.len() - secrets > SIBLINGS_MAX {
            self.collapse_at(depth, is_guarded);
        }
    }

    /// Collapses the directory by order of a document, which knows where that may be.
    pub(super) fn collapse(&mut self) {
        self.collapse_at(GUARDED_DEPTH, false);
    }

    pub(super) fn collapse_at(&mut self, depth: u8, is_guarded: bool) {
        if self.is_collapsed {
            return;
        }
        self.is_collapsed = true;
        for child in std::mem::take(&mut self.children) {
            self.take(child, depth, is_guarded);
        }
    }

    /// Unites an entry with that of its name.
    pub(super) fn take(&mut self, child: Self, depth: u8, is_guarded: bool) {
        let name = Box::from(self.entry(&child.name));
        if let Some(own) = self.child_mut(&name) {
            own.join(child, depth + 1, is_guarded);
        }
    }

    pub(super) fn join(&mut self, other: Self, depth: u8, is_guarded: bool) {
        self.access |= other.access;
        self.below |= other.below;
        if other.is_collapsed {
            self.collapse_at(depth, is_guarded);
        }
        for child in other.children {
            self.take(child, depth, is_guarded);
        }
        self.settle(depth, is_guarded);
    }

    /// Cuts off what lies deeper than `depth_max`, and keeps what it may be opened for if that may be.
    pub(super) fn cut(&mut self, depth: u8, depth_max: u8, may_cut: bool) {
        if depth < depth_max {
            for child in &mut self.children {
                child.cut(depth + 1, depth_max, may_cut);
            }
            if !may_cut {
                self.children.retain(|child| child.granted_below() != 0);
            }
            return;
        }
        let mut below = self.below;
        for child in &self.children {
            below |= child.granted_below();
        }
        self.below = if may_cut { below } else { 0 };
        self.children = Vec::new();
        self.is_collapsed = false;
    }

    pub(super) fn granted_below(&self) -> u8 {
        let own = self.access | self.below;
        let below = self.children.iter().map(Self::granted_below);
        below.fold(own, |sum, access| sum | access)
    }

    /// Never less than the weight of any part of what it was made of.
    pub(super) fn weight(&self) -> usize {
        let children = self.children.iter().map(|child| {
            let is_united = self.is_collapsed && &*child.name == ANY;
            child
                .weight()
                .saturating_mul(if is_united { SIBLINGS_MAX } else { 1 })
        });
        children.fold(1, usize::saturating_add)
    }

    pub(super) fn granted(&self, rest: &[u8], is_secret: bool) -> u8 {
        let Some((segment, after)) = next(rest) else {
            return self.access;
        };
        let mut granted = if is_secret { 0 } else { self.below };
        let is_last = next(after).is_none();
        for child in self.children.iter().take_while(|child| child.is_wild) {
            if !(is_secret && is_last) && stands_for(&child.name, segment) {
                granted |= child.granted(after, is_secret);
            }
        }
        if let Some(child) = self.child(segment) {
            granted |= child.granted(after, is_secret);
        }
        granted
    }

    pub(super) fn visit(&self, path: &mut Vec<u8>, see: &mut impl FnMut(&[u8], &Self)) {
        let length = path.len();
        push(path, &self.name);
        see(path, self);
        for child in &self.children {
            child.visit(path, see);
        }
        path.truncate(length);
    }

    pub(super) fn bytes(&self) -> usize {
        let spare = self.children.capacity() - self.children.len();
        let below: usize = self.children.iter().map(Self::bytes).sum();
        // An allocation has 16 bytes at least.
        size_of::<Self>() * (1 + spare) + self.name.len().max(16) + below
    }
}
