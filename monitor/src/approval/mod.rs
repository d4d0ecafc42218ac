//! Which images may run: statements about digests, per repository, and what follows from them. Pure.
//!
//! A repository of which nothing was said is unmanaged. Of a managed one only what is approved may
//! run. The newest statement about a digest counts; of two at the same time the revocation.

pub mod cluster;
pub mod document;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};

use jiff::Timestamp;

use self::document::STATEMENTS_MAX;
pub use self::document::{Document, State, Statement};
use crate::digest::Digest;

/// Repositories with statements; further ones are refused.
pub const REPOSITORIES_MAX: usize = 1024;

/// What was said of images, by repository.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Approvals {
    // Of each repository in the order of their times.
    repositories: BTreeMap<String, Vec<Statement>>,
}

/// What statements say of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing<'a> {
    /// Nothing was said of any image of its repository.
    Unmanaged,
    /// It may run.
    Approved(&'a Statement),
    /// The time of its approval is over.
    Expired(&'a Statement),
    /// It may no longer run.
    Revoked(&'a Statement),
    /// Others of its repository are approved; it never was.
    Unapproved,
}

impl Standing<'_> {
    /// Its name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unmanaged => "unmanaged",
            Self::Approved(_) => "approved",
            Self::Expired(_) => "expired",
            Self::Revoked(_) => "revoked",
            Self::Unapproved => "unapproved",
        }
    }

    /// The name in the API of one statement about an image of this standing.
    pub fn of_statement(self, statement: &Statement, now: Timestamp) -> &'static str {
        match self {
            _ if statement.at > now => "later",
            Self::Approved(newest) | Self::Expired(newest) | Self::Revoked(newest)
                if newest != statement =>
            {
                "replaced"
            }
            standing => standing.name(),
        }
    }

    /// Worse ones first: what counts of an image that is known by several digests, or that may be any
    /// of several.
    fn rank(self) -> u8 {
        match self {
            Self::Revoked(_) => 0,
            Self::Expired(_) => 1,
            Self::Unapproved => 2,
            Self::Unmanaged => 3,
            Self::Approved(_) => 4,
        }
    }
}

/// There is no room for more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FullError {
    /// [`REPOSITORIES_MAX`].
    #[error("there are statements about {REPOSITORIES_MAX} repositories, which is the limit")]
    Repositories,
    /// [`STATEMENTS_MAX`].
    #[error(
        "{STATEMENTS_MAX} digests of the repository are approved, which is the limit; revoke those that no longer run"
    )]
    Statements,
}

impl Approvals {
    /// All that documents say, in any order; several may be about one repository.
    ///
    /// # Errors
    ///
    /// [`FullError::Repositories`].
    pub fn new<'a>(documents: impl IntoIterator<Item = &'a Document>) -> Result<Self, FullError> {
        let mut repositories: BTreeMap<String, Vec<Statement>> = BTreeMap::new();
        for document in documents {
            let statements = repositories.entry(document.repository.clone()).or_default();
            statements.extend(document.statements.iter().cloned());
        }
        if repositories.len() > REPOSITORIES_MAX {
            return Err(FullError::Repositories);
        }
        for statements in repositories.values_mut() {
            statements.sort_by_key(|it| (it.at, it.state));
        }
        Ok(Self { repositories })
    }

    /// Every statement, by repository and in the order of their times.
    pub fn statements(&self) -> impl Iterator<Item = (&str, &Statement)> {
        self.repositories.iter().flat_map(|(repository, said)| {
            said.iter()
                .map(move |statement| (repository.as_str(), statement))
        })
    }

    /// How many repositories there are of which something was said.
    pub fn repositories(&self) -> u64 {
        let said = self.repositories.values().filter(|said| !said.is_empty());
        u64::try_from(said.count()).unwrap_or(u64::MAX)
    }

    /// Repositories in which something was said of a digest.
    pub fn repositories_of(&self, digest: &Digest) -> Vec<&str> {
        let is_of = |said: &[Statement]| said.iter().any(|it| it.digest == *digest);
        let found = self.repositories.iter().filter(|(_, said)| is_of(said));
        found.map(|(repository, _)| repository.as_str()).collect()
    }

    /// What is said of an image by `now`. `digests` are those by which it is known: its manifest's, and
    /// of indexes that hold it. A revocation of any of them counts more than an approval of another.
    pub fn standing(&self, repository: &str, digests: &[Digest], now: Timestamp) -> Standing<'_> {
        let Some(said) = self.repositories.get(repository) else {
            return Standing::Unmanaged;
        };
        let of_each = digests.iter().map(|digest| standing_of(said, digest, now));
        let mut found = Standing::Unapproved;
        for standing in of_each {
            let is_told = |it: Standing<'_>| !matches!(it, Standing::Unapproved);
            if is_told(standing) && (!is_told(found) || standing.rank() < found.rank()) {
                found = standing;
            }
        }
        found
    }

    /// The worst of what is said of several images, of which a container's is one; each by its digests.
    pub fn worst<'a>(
        &'a self,
        repository: &str,
        images: &[Vec<Digest>],
        now: Timestamp,
    ) -> Standing<'a> {
        let each = images.iter().map(|it| self.standing(repository, it, now));
        let unmanaged = self.standing(repository, &[], now);
        each.min_by_key(|it| it.rank()).unwrap_or(unmanaged)
    }

    /// Digests that are approved by `now` and were so before `digest` was last, newest first; of one that
    /// never was, all that are.
    pub fn approved_before(
        &self,
        repository: &str,
        digest: &Digest,
        now: Timestamp,
    ) -> Vec<&Statement> {
        let said = self.repositories.get(repository);
        let said = said.map(Vec::as_slice).unwrap_or_default();
        let is_own = |it: &Statement| it.digest == *digest && it.state == State::Approved;
        let end = said.iter().rposition(is_own).unwrap_or(said.len());
        let mut seen = HashSet::from([*digest]);
        let before = said.iter().take(end).rev();
        before
            .filter(|it| it.state == State::Approved && seen.insert(it.digest))
            .filter(|it| matches!(standing_of(said, &it.digest, now), Standing::Approved(_)))
            .collect()
    }

    /// When an approval begins or ends next, so that something else is said of an image then.
    pub fn next_change(&self, now: Timestamp) -> Option<Timestamp> {
        let times = self
            .statements()
            .flat_map(|(_, it)| [Some(it.at), it.until]);
        times.flatten().filter(|time| *time > now).min()
    }
}

impl Document {
    /// Adds a statement. At [`STATEMENTS_MAX`] the oldest makes room whose absence changes nothing: of a
    /// digest of which something newer is said here, else of one that may not run anyway and of which
    /// `elsewhere` says nothing.
    ///
    /// # Errors
    ///
    /// [`FullError::Statements`].
    pub fn add(&mut self, statement: Statement, elsewhere: &Approvals) -> Result<(), FullError> {
        if self.statements.len() >= STATEMENTS_MAX {
            let said = &self.statements;
            let is_replaced = |(index, it): (usize, &Statement)| {
                let newer = said.iter().skip(index + 1).chain([&statement]);
                newer.into_iter().any(|newer| newer.digest == it.digest)
            };
            let is_over = |it: &Statement| {
                let has_ended = it.until.is_some_and(|until| until <= statement.at);
                (it.state == State::Revoked || has_ended)
                    && !elsewhere
                        .repositories_of(&it.digest)
                        .contains(&self.repository.as_str())
            };
            let says_nothing = (said.iter().enumerate().position(is_replaced))
                .or_else(|| said.iter().position(is_over));
            self.statements
                .remove(says_nothing.ok_or(FullError::Statements)?);
        }
        self.statements.push(statement);
        self.statements.sort_by_key(|it| (it.at, it.state));
        Ok(())
    }
}

fn standing_of<'a>(said: &'a [Statement], digest: &Digest, now: Timestamp) -> Standing<'a> {
    let is_newest = |it: &&Statement| it.digest == *digest && it.at <= now;
    match said.iter().rev().find(is_newest) {
        None => Standing::Unapproved,
        Some(it) if it.state == State::Revoked => Standing::Revoked(it),
        Some(it) if it.until.is_some_and(|until| until <= now) => Standing::Expired(it),
        Some(it) => Standing::Approved(it),
    }
}
