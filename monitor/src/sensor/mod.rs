//! From the kernel to [`event::Event`]: loading, offsets, the ring buffer, held files, the account.
//!
//! The only room that names aya.

pub mod account;
pub mod btf;
pub mod cgroup_root;
pub mod decode;
pub mod elf;
pub mod event;
pub mod hold;
pub mod hooks;
pub mod link;
pub mod offsets;
mod programs;
mod reader;
pub mod root;
mod running;

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use aya::maps::{HashMap as KernelHashMap, MapData, MapError, PerCpuArray, PerCpuHashMap, RingBuf};
use monitor_common::{
    CgroupFacts, Hook,
    connect::{Peer, PeerState},
    file::FileVersion,
    loss::LOSSES_MAX,
    open::{OPEN_READ, OPEN_WRITE, OpenKey},
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::mpsc;

use self::{
    account::{Account, KernelCounters, KernelLossKey, Lost},
    event::{Access, Event, FileFacts, FileUse},
    hold::{Holder, HolderError},
    hooks::{Choice, HookSet},
    programs::Programs,
    reader::Reader,
};

/// Descriptors the agent asks for: those that hold files make up most.
const DESCRIPTORS: u64 = 65_536;

/// The sensor could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SensorError {
    /// Built without the programs.
    #[error("this monitord was built without its eBPF programs; build it with `cargo xtask build`")]
    NoObject,
    /// Not root.
    #[error(
        "cannot load eBPF programs as uid {0}: monitord must run as root (or with CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN, CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH)"
    )]
    NotRoot(u32),
    /// See [`offsets::OffsetsError`].
    #[error(transparent)]
    Offsets(#[from] offsets::OffsetsError),
    /// The object or its maps were refused.
    #[error("the kernel refused the eBPF object: {0}")]
    Load(String),
    /// No hook for execs was accepted.
    #[error("the kernel accepts no hook that sees execs: {0}")]
    Blind(String),
    /// See [`hold::HolderError`].
    #[error(transparent)]
    Holder(#[from] HolderError),
    /// The reader thread did not start.
    #[error("cannot start the thread that reads the ring buffer: {0}")]
    Reader(io::Error),
}

/// The loaded programs and the thread that reads them. Dropping it detaches the hooks.
pub struct Sensor {
    programs: Programs,
    choices: Vec<Choice>,
    cgroups: KernelHashMap<MapData, u64, KernelCgroup>,
    remembered: KernelHashMap<MapData, KernelFileVersion, u32>,
    opens: KernelHashMap<MapData, KernelOpenKey, u32>,
    peers: KernelHashMap<MapData, KernelPeer, KernelPeerState>,
    counters: PerCpuArray<MapData, KernelCounters>,
    losses: PerCpuHashMap<MapData, KernelLossKey, u64>,
    holder: Arc<Holder>,
    reader: Reader,
    running: Arc<AtomicU64>,
    host_mount_namespace: u32,
}

impl Sensor {
    /// Whether this program and its user can load anything at all.
    pub fn may_start() -> Result<(), SensorError> {
        let uid = nix::unistd::geteuid();
        if !uid.is_root() {
            return Err(SensorError::NotRoot(uid.as_raw()));
        }
        if !programs::are_built_in() {
            return Err(SensorError::NoObject);
        }
        Ok(())
    }

    /// Loads the programs, starts the reader, then attaches the best hooks that the kernel accepts;
    /// events go to `events`.
    pub fn start(events: mpsc::Sender<Event>) -> Result<Self, SensorError> {
        Self::start_with(&hooks::SETS, events)
    }

    /// The same with these sets only, as far as a kind of event has more than one.
    pub fn start_with(
        allowed: &[HookSet],
        events: mpsc::Sender<Event>,
    ) -> Result<Self, SensorError> {
        Self::may_start()?;
        raise_descriptor_limit();
        let offsets = offsets::read()?;
        let mut programs = Programs::load(&offsets)?;
        let records = RingBuf::try_from(programs.take_map("RECORDS")?).map_err(refused_map)?;
        let cgroups =
            KernelHashMap::try_from(programs.take_map("CGROUPS")?).map_err(refused_map)?;
        let remembered =
            KernelHashMap::try_from(programs.take_map("REMEMBERED")?).map_err(refused_map)?;
        let opens = KernelHashMap::try_from(programs.take_map("OPENS")?).map_err(refused_map)?;
        let peers = KernelHashMap::try_from(programs.take_map("PEERS")?).map_err(refused_map)?;
        let counters =
            PerCpuArray::try_from(programs.take_map("COUNTERS")?).map_err(refused_map)?;
        let losses = PerCpuHashMap::try_from(programs.take_map("LOSSES")?).map_err(refused_map)?;
        let holder = Arc::new(Holder::new()?);
        let (running, running_events) = (Arc::new(AtomicU64::new(0)), events.clone());
        let reader =
            Reader::start(records, Arc::clone(&holder), events).map_err(SensorError::Reader)?;
        let choices = programs.attach(allowed);
        check(&choices)?;
        let host_mount_namespace = offsets.host_mount_namespace;
        // After the hooks, so that no process falls between; some are told twice.
        thread::Builder::new()
            .name("running".to_owned())
            .spawn({
                let told = Arc::clone(&running);
                move || {
                    running::scan(host_mount_namespace, |event| {
                        told.fetch_add(1, Ordering::Relaxed);
                        // An error means that the daemon is stopping.
                        let _ = running_events.blocking_send(event);
                    });
                }
            })
            .map_err(SensorError::Reader)?;
        Ok(Self {
            programs,
            choices,
            cgroups,
            remembered,
            opens,
            peers,
            counters,
            losses,
            holder,
            reader,
            running,
            host_mount_namespace,
        })
    }

    /// Which hooks the running kernel accepts, found by attaching and at once detaching them.
    pub fn try_hooks() -> Result<Vec<Choice>, SensorError> {
        Self::may_start()?;
        Ok(Programs::load(&offsets::read()?)?.attach(&hooks::SETS))
    }

    /// Inode number of the host's mount namespace.
    pub fn host_mount_namespace(&self) -> u32 {
        self.host_mount_namespace
    }

    /// Holds what is executed from the filesystem `device` mounted at `rootfs` from now on. The mark
    /// goes when the filesystem is unmounted.
    pub fn hold(&self, rootfs: &Path, device: u32) -> Result<(), HolderError> {
        self.holder.mark(rootfs, device)
    }

    /// Which hooks are in force, and why no better ones.
    pub fn choices(&self) -> &[Choice] {
        &self.choices
    }

    /// Tells the kernel side what a cgroup is.
    pub fn set_cgroup(&mut self, id: u64, facts: CgroupFacts) -> io::Result<()> {
        self.cgroups
            .insert(id, KernelCgroup(facts), 0)
            .map_err(io::Error::other)
    }

    /// Has the kernel side send nothing more of a file of a lower layer as long as it is the
    /// version that was judged good; false if it is no such file.
    pub fn remember(&mut self, facts: &FileFacts) -> io::Result<bool> {
        let Some(version) = facts.lower_version() else {
            return Ok(false);
        };
        self.remembered
            .insert(KernelFileVersion(version), 1, 0)
            .map_err(io::Error::other)?;
        Ok(true)
    }

    /// Has the kernel side send nothing more of such an open.
    pub fn remember_open(&mut self, used: &FileUse, access: Access) -> io::Result<()> {
        let flag = |is: bool, flag| if is { flag } else { 0 };
        let facts = &used.file.facts;
        let key = KernelOpenKey(OpenKey {
            cgroup_id: used.cgroup.id,
            inode: facts.real_inode,
            device: facts.real_device,
            generation: facts.generation,
            seen_device: facts.device,
            access: flag(access.read, OPEN_READ) | flag(access.write, OPEN_WRITE),
        });
        self.opens.insert(key, 1, 0).map_err(io::Error::other)
    }

    /// Has the kernel side send nothing more of a peer that was judged good.
    pub fn remember_peer(&mut self, peer: &Peer) -> io::Result<()> {
        self.peers
            .insert(KernelPeer(*peer), KernelPeerState(PeerState::GOOD), 0)
            .map_err(io::Error::other)
    }

    /// Has the kernel side tell of every peer again.
    pub fn forget_peers(&mut self) -> io::Result<()> {
        let known: Result<Vec<KernelPeer>, MapError> = self.peers.keys().collect();
        for peer in known.map_err(io::Error::other)? {
            match self.peers.remove(&peer) {
                // The map evicts by itself.
                Err(MapError::KeyNotFound) | Ok(()) => {}
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        Ok(())
    }

    /// Makes the kernel side ask again.
    pub fn forget_cgroup(&mut self, id: u64) -> io::Result<()> {
        match self.cgroups.remove(&id) {
            // The map evicts by itself.
            Err(MapError::KeyNotFound) | Ok(()) => Ok(()),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// What became of every run of every hook so far.
    pub fn account(&mut self) -> Account {
        let mut account = Account {
            received: self.reader.counters.received.load(Ordering::Relaxed),
            running: self.running.load(Ordering::Relaxed),
            undecodable: self.reader.counters.undecodable.load(Ordering::Relaxed),
            held: self.holder.counters(),
            ..Account::default()
        };
        for (hook, of_hook) in hooks::KINDS.into_iter().map(|hook| (hook, hook as usize)) {
            let Some(total) = account.hooks.get_mut(of_hook) else {
                continue;
            };
            match self.counters.get(&(hook as u32), 0) {
                Ok(per_cpu) => per_cpu.iter().for_each(|counters| total.add(&counters.0)),
                Err(error) => tracing::warn!(%error, "cannot read the hook counters"),
            }
            total.recursion_misses = self.programs.recursion_misses(hook);
        }
        account
    }

    /// Whose records the kernel side lost so far, as far as it remembers. Asked after
    /// [`Self::account`], it says at least as much as that.
    pub fn losses(&self) -> Vec<Lost> {
        let keys = self.losses.keys().filter_map(Result::ok);
        keys.take(LOSSES_MAX as usize)
            .filter_map(|key| {
                // An error means that it was forgotten meanwhile.
                let per_cpu = self.losses.get(&key, 0).ok()?;
                Lost::new(key.0, per_cpu.iter().sum())
            })
            .collect()
    }

    /// Detaches the hooks and ends the reader once it has read what they submitted; the account
    /// and the losses are final then.
    pub fn stop(mut self) -> (Account, Vec<Lost>) {
        let misses = self.account().hooks.map(|hook| hook.recursion_misses);
        self.programs.detach();
        self.reader.stop();
        let mut account = self.account();
        for (hook, misses) in account.hooks.iter_mut().zip(misses) {
            hook.recursion_misses = misses;
        }
        (account, self.losses())
    }

    /// How many instructions the verifier looked at for each loaded program, of a million that the
    /// kernel allows (0 where the kernel does not tell).
    pub fn verified_instructions(&self) -> Vec<(String, u32)> {
        self.programs.verified_instructions()
    }
}

/// Without execs there is nothing to judge; whatever else is missing is said.
fn check(choices: &[Choice]) -> Result<(), SensorError> {
    for choice in choices {
        let kind = hooks::kind_name(choice.kind);
        let reasons: Vec<String> = choice
            .refused
            .iter()
            .map(|refusal| format!("{}: {}", hooks::set_name(refusal.set), refusal.reason))
            .collect();
        let reasons = reasons.join("; ");
        match choice.set {
            Some(set) => tracing::info!(kind, set = hooks::set_name(set), "hooks attached"),
            None if choice.kind == Hook::Exec => return Err(SensorError::Blind(reasons)),
            None => tracing::error!(kind, reasons, "no event of this kind is seen"),
        }
    }
    Ok(())
}

/// [`CgroupFacts`] as a map value.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct KernelCgroup(CgroupFacts);

// SAFETY: plain integers without padding, as `CgroupFacts` proves by deriving `FromBytes`.
unsafe impl aya::Pod for KernelCgroup {}

/// [`FileVersion`] as a map key.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct KernelFileVersion(FileVersion);

// SAFETY: plain integers without padding, as `FileVersion` proves by deriving `FromBytes`.
unsafe impl aya::Pod for KernelFileVersion {}

/// [`OpenKey`] as a map key.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct KernelOpenKey(OpenKey);

// SAFETY: plain integers without padding, as `OpenKey` proves by deriving `FromBytes`.
unsafe impl aya::Pod for KernelOpenKey {}

/// [`Peer`] as a map key.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct KernelPeer(Peer);

// SAFETY: plain integers without padding, as `Peer` proves by deriving `FromBytes`.
unsafe impl aya::Pod for KernelPeer {}

/// [`PeerState`] as a map value.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct KernelPeerState(PeerState);

// SAFETY: plain integers without padding, as `PeerState` proves by deriving `FromBytes`.
unsafe impl aya::Pod for KernelPeerState {}

#[expect(clippy::needless_pass_by_value, reason = "the form that map_err wants")]
fn refused_map(error: MapError) -> SensorError {
    SensorError::Load(programs::chain(&error))
}

/// Held files are descriptors, so the default of 1,024 would not do; a refusal costs held files
/// under load, which is counted.
fn raise_descriptor_limit() {
    let raise = || {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        let wanted = DESCRIPTORS.min(hard);
        if soft < wanted {
            setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)
        } else {
            Ok(())
        }
    };
    if let Err(error) = raise() {
        tracing::warn!(%error, "cannot raise the limit of open files to {DESCRIPTORS}");
    }
}
