//! What the owner gathers while it runs.

use std::{
    collections::{HashSet, VecDeque},
    num::NonZeroUsize,
    os::fd::OwnedFd,
    sync::Arc,
    time::Instant,
};

use lru::LruCache;
use monitor_api::v1::Alert;
use monitor_common::CgroupFacts;
use tokio::task::{Id, JoinSet};

use super::{
    approvals,
    bytes::Read,
    changes::told_before,
    connects::Answered,
    executed::Executions,
    policies,
    profiles::{Found, Profiles, Seeded},
    query::Connection,
    signatures::Signatures,
    sourced::Sourced,
    turns::Turns,
    usage::Usages,
};
use crate::{
    alerts::{Aggregator, id::Subject},
    clock,
    containers::{
        Container,
        inventory::Key,
        processes::{Known, Processes},
    },
    detect::{Kind, modified::Told, role::Role, script::Use},
    digest::Sha256,
    files::Folder,
    image::{contents::Contents, error::ContentsError},
    provenance,
    sensor::event::{Code, Connect, Exec, FileUse, Open, Process, ProcessId, Receipt},
};

/// Containers of which it is remembered what was said as a whole and how many findings they had; of
/// more, the one that had none for longest.
const CONTAINERS_MAX: NonZeroUsize = NonZeroUsize::new(16_384).expect("not zero");
/// Cgroups of containers that the kernel side was told of, as many as it can remember.
const CGROUPS_MAX: NonZeroUsize =
    NonZeroUsize::new(monitor_common::CGROUPS_MAX as usize).expect("not zero");
/// Findings remembered so as not to raise them again; the one that came up again longest ago is
/// forgotten.
const RAISED_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");
/// Changed paths of images of which it is remembered what was told; the one that was changed longest
/// ago may be told again.
const CHANGES_TOLD_MAX: NonZeroUsize = NonZeroUsize::new(65_536).expect("not zero");
/// Files of images of which it is remembered who opened them for writing; of another the alert names
/// no process.
const WRITERS_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// Connects that wait for their answer, or answers for the verdict on their connect; of more, that of
/// the oldest is not told.
const ANSWERS_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// What became of the events that were received: `received = judged + host + expired_unknown +
/// before_coverage + failed`, and what waits or is in flight.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct EventCounts {
    /// Taken from the sensor.
    pub(super) received: u64,
    /// Judged.
    pub(super) judged: u64,
    /// Found to be the host's.
    pub(super) host: u64,
    /// Of the judged, the runtime's own steps.
    pub(super) runtime: u64,
    /// Of the judged, with the image's bytes in one of its layers.
    pub(super) image: u64,
    /// Of the judged, with the image's bytes and another mode or owner.
    pub(super) metadata_changed: u64,
    /// Of the judged, not comparable, which was said of the container as a whole.
    pub(super) unverifiable: u64,
    /// Of the judged, memory that a compiler made executable at run time.
    pub(super) jit: u64,
    /// Of the judged, bytecode that an interpreter keeps of a source of the image.
    pub(super) caches: u64,
    /// Of the judged, files that interpreters read as data.
    pub(super) data: u64,
    /// Of the judged, those that only tell about others: forks, exits, redirections.
    pub(super) noted: u64,
    /// Of the judged, findings that a daemon before this one had raised.
    pub(super) raised_before: u64,
    /// Of the judged, connects to peers that nothing is said against.
    pub(super) peers: u64,
    /// Let go of in the ring while it was not known whose they are.
    pub(super) given_up: u64,
    /// Given up because it never became known whose they were.
    pub(super) expired_unknown: u64,
    /// Given up because they were seen before containerd told of its containers.
    pub(super) before_coverage: u64,
    /// Given up because of a defect of this program.
    pub(super) failed: u64,
}

/// What came of the changes of files of images.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ChangeCounts {
    /// With the image's bytes.
    pub(super) same: u64,
    /// Others than the image's, or gone.
    pub(super) differing: u64,
    /// Could not be read.
    pub(super) unverifiable: u64,
}

/// What the owner gathers while it runs.
pub(super) struct State {
    pub(super) processes: Processes,
    pub(super) turns: Turns,
    /// Uses of which it is not known yet whose they are.
    pub(super) waiting: VecDeque<Pending>,
    /// Files read by shells, of which it is not known yet what for.
    pub(super) sourced: Sourced,
    pub(super) in_flight: JoinSet<Done>,
    /// What the kernel side was told of containers' cgroups.
    pub(super) told_cgroups: LruCache<u64, CgroupFacts>,
    /// What was raised of each process beside its execs.
    pub(super) raised: LruCache<Raised, ()>,
    /// Containers of which it was said as a whole that they cannot be compared.
    pub(super) told: LruCache<Creation, ()>,
    /// Rules by which it was said how a container was started.
    pub(super) postures_told: LruCache<(Creation, String), ()>,
    pub(super) findings: LruCache<Creation, u64>,
    pub(super) usages: Usages,
    pub(super) executions: Executions,
    pub(super) profiles: Profiles,
    pub(super) policies: policies::State,
    pub(super) approvals: approvals::State,
    pub(super) signatures: Signatures,
    pub(super) uses_in_flight: HashSet<Id>,
    pub(super) counts: EventCounts,
    pub(super) changes: ChangeCounts,
    /// What was last told of changed paths.
    pub(super) changes_told: LruCache<(Creation, Vec<u8>), Told>,
    /// Who opened files of images for writing last, by the inode in the upper directory.
    pub(super) writers: LruCache<(Creation, u64), Writer>,
    /// Connects of TCP that are judged and not answered, or answered and not judged, by the process's
    /// pid and when it connected.
    pub(super) answers: LruCache<(u32, u64), Answered>,
    pub(super) connection: Connection,
    pub(super) listed: bool,
    pub(super) aggregator: Aggregator,
    /// Of records whose alerts have these cursors, which are not written yet; at most
    /// [`crate::alerts::log::ALERTS_MAX`].
    pub(super) unwritten: VecDeque<(u64, Receipt)>,
    /// What alerts of this boot were raised for by daemons before this one.
    pub(super) raised_before: HashSet<Subject>,
}

impl State {
    /// At the start, with the alerts that were raised before.
    pub(super) fn new(
        alerts: &[Arc<Alert>],
        profiles: Profiles,
        policies: policies::State,
        approvals: approvals::State,
        signatures: Signatures,
    ) -> Self {
        let mut changes_told = LruCache::new(CHANGES_TOLD_MAX);
        for (path, told) in alerts.iter().filter_map(|alert| told_before(alert)) {
            changes_told.put(path, told);
        }
        Self {
            aggregator: Aggregator::resume(alerts, clock::boot_ns()),
            unwritten: VecDeque::new(),
            raised_before: alerts
                .iter()
                .filter_map(|alert| Subject::of(alert))
                .collect(),
            processes: Processes::default(),
            turns: Turns::default(),
            waiting: VecDeque::new(),
            sourced: Sourced::default(),
            told_cgroups: LruCache::new(CGROUPS_MAX),
            raised: LruCache::new(RAISED_MAX),
            in_flight: JoinSet::new(),
            told: LruCache::new(CONTAINERS_MAX),
            postures_told: LruCache::new(CONTAINERS_MAX),
            findings: LruCache::new(CONTAINERS_MAX),
            usages: Usages::default(),
            executions: Executions::new(jiff::Timestamp::now()),
            profiles,
            policies,
            approvals,
            signatures,
            uses_in_flight: HashSet::new(),
            counts: EventCounts::default(),
            changes: ChangeCounts::default(),
            changes_told,
            writers: LruCache::new(WRITERS_MAX),
            answers: LruCache::new(ANSWERS_MAX),
            connection: Connection::default(),
            listed: false,
        }
    }
}

/// A container, told from a later one of the same name.
pub(super) type Creation = (Key, i128);

pub(super) fn creation(container: &Container) -> Creation {
    (Key::of(container), container.created_unix_ns)
}

/// A finding of a process, told from others of its kind: a library of several segments is mapped
/// several times, and an ELF interpreter is seen as a part of the exec and as a mapping.
/// By kind, file or peer, bytes, and the rule of a policy.
pub(super) type Raised = (ProcessId, Kind, Vec<u8>, Option<Sha256>, Option<String>);

/// What a task brings back.
pub(super) enum Done {
    Use(Box<ReadUse>),
    /// A file that waits in [`Sourced`], by its number there.
    Held(u64, Option<OwnedFd>),
    /// What an image says of its containers before anything runs.
    Seeded(Box<Seeded>),
    /// Profiles were written; so many could not be.
    Written(u64),
    /// What the folder of profiles holds.
    Folder(Box<(Folder, Option<Found>)>),
    /// The files of keys were read anew, if it was time; the number of those in force.
    Keys(u64),
    /// What is known of an image's signatures.
    Signature(Box<provenance::Subject>, Arc<provenance::Verdict>),
    /// A container, and what its image holds, for rules about how it was started.
    Posture(Arc<Container>, Option<Arc<Contents>>),
    /// What the folder of approvals holds.
    Approvals(Box<(Folder, Option<approvals::Found>)>),
    /// What the folder of policies holds.
    Policies(Box<(Folder, Option<policies::Found>)>),
    /// A check of the daemon itself was done, or why not.
    Checked(Result<(), String>),
    Contents {
        container: Arc<Container>,
        result: Result<Arc<Contents>, ContentsError>,
    },
}

/// A use of a file that is to be judged, and what was known of its process then.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) since: Instant,
    pub(super) what: What,
    pub(super) known: Known,
    /// The container whose cgroup the process is in, if it lives in another.
    pub(super) visitor_of: Option<Arc<Container>>,
}

/// A process that opened a file for writing, and what was known of it then.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) process: Process,
    pub(super) known: Known,
}

/// How a file was used, or a peer reached for.
#[derive(Debug)]
pub(super) enum What {
    Exec(Box<Exec>),
    Code(Box<Code>),
    Open(Box<Open>, Use),
    Connect(Box<Connect>),
}

impl What {
    pub(super) fn used(&self) -> &FileUse {
        match self {
            Self::Exec(exec) => &exec.used,
            Self::Code(code) => &code.used,
            Self::Open(open, _) => &open.used,
            Self::Connect(connect) => &connect.used,
        }
    }

    /// The same, to be changed.
    fn used_mut(&mut self) -> &mut FileUse {
        match self {
            Self::Exec(exec) => &mut exec.used,
            Self::Code(code) => &mut code.used,
            Self::Open(open, _) => &mut open.used,
            Self::Connect(connect) => &mut connect.used,
        }
    }

    /// Has a next daemon not be told of it again, but of a loss; false if it would not be anyway.
    pub(super) fn give_up(&mut self) -> bool {
        self.used_mut().receipt.leave()
    }

    /// Of memory without a file, the files that its process has mapped executable.
    pub(super) fn libraries(&self) -> &[Vec<u8>] {
        match self {
            Self::Code(code) => &code.libraries,
            Self::Exec(_) | Self::Open(..) | Self::Connect(_) => &[],
        }
    }

    /// How a file became code; `None` where none did.
    pub(super) fn role(&self) -> Option<Role> {
        Some(match self {
            Self::Exec(_) => Role::Program,
            Self::Code(code) if code.is_anonymous => Role::Anonymous,
            Self::Code(code) => Role::Code {
                written: code.written,
            },
            Self::Open(_, Use::Sourced { .. }) => Role::Sourced,
            Self::Open(_, Use::Script | Use::Data) => Role::Script,
            Self::Connect(_) => return None,
        })
    }
}

/// A use with all that its verdict depends on.
pub(super) struct ReadUse {
    pub(super) pending: Pending,
    pub(super) role: Role,
    pub(super) container: Arc<Container>,
    pub(super) files: Read,
    pub(super) contents: Option<Result<Arc<Contents>, ContentsError>>,
}
