//! Which executables ran in each container. Pure.

use std::{collections::HashMap, num::NonZeroUsize};

use jiff::Timestamp;
use lru::LruCache;
use monitor_api::v1::verify_container_response as v1;

use super::state::{Creation, creation};
use crate::{
    alerts::build,
    containers::Container,
    detect::{
        FileVerdict,
        file::{self, Judgement, UseFacts},
        participant::Participant,
        role::Role,
    },
    digest::Sha256,
    image::{contents::Contents, layer::EntryKind},
};

/// Containers of which it is remembered what ran; of more, what ran in the one in which nothing did
/// for longest is forgotten.
const CONTAINERS_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");
/// Executables told apart in one container; execs of others are counted.
const EXECUTABLES_MAX: usize = 512;
/// Bytes of their paths together; likewise.
const PATH_BYTES_MAX: usize = 64 << 10;

/// What ran: one is told from another by its path, its bytes and what came of judging it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Executable {
    path: Vec<u8>,
    sha256: Option<Sha256>,
    verdict: &'static str,
}

impl Executable {
    /// A file at `path`, where the image would have it, whose bytes are `seen` if they were read;
    /// `None` of the runtime's own steps.
    fn new(
        path: &[u8],
        seen: Option<Sha256>,
        judgement: &Judgement,
        contents: Option<&Contents>,
    ) -> Option<Self> {
        let (verdict, sha256) = verdict(path, seen, judgement, contents)?;
        let path = match judgement {
            Judgement::Finding(finding) => &finding.file.as_ref()?.path,
            _ => path,
        };
        Some(Self {
            path: path.to_vec(),
            sha256,
            verdict: verdict.name(),
        })
    }
}

/// What came of judging a file at `path`, where the image would have it, and the hash of its bytes,
/// which are `seen` if they were read; `None` of the runtime's own steps.
pub(super) fn verdict(
    path: &[u8],
    seen: Option<Sha256>,
    judgement: &Judgement,
    contents: Option<&Contents>,
) -> Option<(FileVerdict, Option<Sha256>)> {
    let verdict = match judgement {
        Judgement::Confirmed => FileVerdict::Image,
        Judgement::Good(verdict) => *verdict,
        Judgement::Unverifiable => FileVerdict::Unverifiable,
        Judgement::Finding(finding) => {
            let file = finding.file.as_ref()?;
            return Some((file.verdict, file.seen));
        }
        Judgement::Runtime | Judgement::Jit | Judgement::Cache => return None,
    };
    // Not read again if it is known to be the image's.
    let expected = || match contents?.lookup(path)?.kind {
        EntryKind::File { sha256, .. } if verdict == FileVerdict::Image => sha256,
        _ => None,
    };
    Some((verdict, seen.or_else(expected)))
}

/// What ran in one container.
#[derive(Debug)]
struct Executed {
    execs: HashMap<Executable, u64>,
    path_bytes: usize,
    left_out: u64,
    since: Timestamp,
}

/// By container.
pub(super) struct Executions {
    containers: LruCache<Creation, Executed>,
    // What ran before is not known of containers that are not held.
    since: Timestamp,
}

impl Executions {
    /// Knows of what runs from `since` on.
    pub(super) fn new(since: Timestamp) -> Self {
        Self {
            containers: LruCache::new(CONTAINERS_MAX),
            since,
        }
    }

    /// A program was executed, and with it maybe some of the participants, with their judgements.
    pub(super) fn ran<'a>(
        &mut self,
        facts: &UseFacts<'_>,
        judgement: &Judgement,
        participants: impl Iterator<Item = (&'a Participant, &'a Judgement)>,
        now: Timestamp,
    ) {
        let contents = facts.expected.contents();
        let path = file::path_in_image(facts.used);
        let program = Executable::new(path, facts.bytes.sha256(), judgement, contents);
        let scripts = participants
            .filter(|(participant, _)| participant.role == Role::Script)
            .filter_map(|(script, judgement)| {
                Executable::new(&script.path, script.bytes.sha256(), judgement, contents)
            });
        for executable in program.into_iter().chain(scripts) {
            self.add(facts.container, executable, now);
        }
    }

    fn add(&mut self, container: &Container, executable: Executable, now: Timestamp) {
        let key = creation(container);
        if self.containers.len() == CONTAINERS_MAX.get() && !self.containers.contains(&key) {
            self.containers.pop_lru();
            self.since = now;
        }
        let since = self.since;
        let executed = self.containers.get_or_insert_mut(key, || Executed {
            execs: HashMap::new(),
            path_bytes: 0,
            left_out: 0,
            since: since.max(created(container)),
        });
        if let Some(count) = executed.execs.get_mut(&executable) {
            *count += 1;
        } else if executed.execs.len() < EXECUTABLES_MAX
            && executed.path_bytes + executable.path.len() <= PATH_BYTES_MAX
        {
            executed.path_bytes += executable.path.len();
            executed.execs.insert(executable, 1);
        } else {
            executed.left_out += 1;
        }
    }

    /// A container is gone.
    pub(super) fn removed(&mut self, container: &Container) {
        self.containers.pop(&creation(container));
    }

    /// What ran in a container.
    pub(super) fn of(&self, container: &Container) -> v1::Executed {
        let Some(executed) = self.containers.peek(&creation(container)) else {
            let since = self.since.max(created(container));
            return v1::Executed {
                since: Some(build::timestamp(since)),
                ..v1::Executed::default()
            };
        };
        let mut execs: Vec<(&Executable, &u64)> = executed.execs.iter().collect();
        execs.sort_unstable();
        let told = |(executable, count): (&Executable, &u64)| v1::Executable {
            path: executable.path.clone(),
            sha256: executable
                .sha256
                .map(|sha256| sha256.to_string())
                .unwrap_or_default(),
            verdict: executable.verdict.to_owned(),
            count: *count,
        };
        v1::Executed {
            executables: execs.into_iter().map(told).collect(),
            left_out: executed.left_out,
            since: Some(build::timestamp(executed.since)),
        }
    }
}

fn created(container: &Container) -> Timestamp {
    Timestamp::from_nanosecond(container.created_unix_ns).unwrap_or(Timestamp::MIN)
}

#[cfg(test)]
mod tests;
