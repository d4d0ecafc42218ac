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
mod maps;
pub mod offsets;
pub mod pins;
mod programs;
mod reader;
mod ring;
pub mod root;
mod running;
mod security;
mod unsettled;

use std::{
    collections::HashMap,
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use aya::maps::Map;
use monitor_common::{HOOKS, Hook, Mark};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::mpsc;

pub use self::maps::Told;
use self::{
    account::{Account, HookAccount, Lost},
    event::{Event, Owed, Receipt},
    hold::{Holder, HolderError},
    hooks::{Choice, HookSet},
    maps::Maps,
    offsets::Offsets,
    pins::{Folder, Pins, PinsError},
    programs::{Attached, Programs},
    reader::{Reader, Rings},
    unsettled::Held,
};
use crate::clock;

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
    /// See [`PinsError`].
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// The ring buffer could not be opened.
    #[error("cannot open the ring buffer: {0}")]
    Ring(io::Error),
    /// The reader thread did not start.
    #[error("cannot start the thread that reads the ring buffer: {0}")]
    Reader(io::Error),
}

/// The loaded programs and the thread that reads them. Dropping it detaches the hooks, unless they
/// are pinned.
pub struct Sensor {
    attached: Attached,
    choices: Vec<Choice>,
    maps: Maps,
    holder: Arc<Holder>,
    reader: Reader,
    running: Arc<AtomicU64>,
    /// What earlier daemons let go of.
    earlier: Mark,
    told: Told,
    /// What ran already is being told as long as there is one.
    scanning: Held,
    is_reopened: bool,
    are_running_told: bool,
    host_mount_namespace: u32,
    pins: Option<Pins>,
}

/// A sensor that takes nothing more. As long as it is kept, its successor is told again of what was
/// not judged before it stopped.
pub struct Stopped {
    /// Final, unless the hooks are pinned.
    pub account: Account,
    /// Read after it.
    pub lost: Vec<Lost>,
    _read: Option<reader::Read>,
    /// After the ring, since the next daemon may open that then.
    _pins: Option<Pins>,
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

    /// Attaches the best hooks that the kernel accepts, or reopens what an earlier daemon has pinned;
    /// events go to `events`. With `pins`, the hooks outlive the sensor.
    pub fn start(events: mpsc::Sender<Event>, pins: Option<Pins>) -> Result<Self, SensorError> {
        Self::start_with(&hooks::SETS, events, pins)
    }

    /// The same with these sets only, as far as a kind of event has more than one and nothing is
    /// reopened.
    pub fn start_with(
        allowed: &[HookSet],
        events: mpsc::Sender<Event>,
        pins: Option<Pins>,
    ) -> Result<Self, SensorError> {
        Self::may_start()?;
        raise_descriptor_limit();
        let offsets = offsets::read()?;
        let host_mount_namespace = offsets.kernel.host_mount_namespace;
        let hooks = Hooks::open(allowed, &offsets, pins.as_ref())?;
        let attached_boot_ns = clock::boot_ns();
        let superseded = match (&pins, &hooks.folder) {
            (Some(pins), Some(folder)) => pins.supersede(folder)?,
            _ => Vec::new(),
        };
        let (own, mut maps) = Maps::open(hooks.maps)?;
        if hooks.is_reopened {
            let unread_bytes = own.unread_bytes();
            tracing::info!(unread_bytes, "going on with the hooks that were pinned");
            maps.forget();
        }
        let earlier = own.let_go_mark();
        let mut told = maps.told();
        for (told, untold) in told.hooks.iter_mut().zip(earlier.untold) {
            // Written first, it may be ahead.
            told.told_later = told.told_later.min(untold);
        }
        let are_running_told = [Hook::Exec, Hook::Code].into_iter().all(|hook| {
            let (told, mut account) = (told.hook(hook), HookAccount::default());
            maps.count(hook, &mut account);
            // Misses are counted by programs, which is not asked here.
            account.recursion_misses = told.recursion_misses;
            told.until_boot_ns > 0 && account.losses(told.until_boot_ns) == told
        });
        let holder = Arc::new(Holder::new()?);
        let (running, running_events) = (Arc::new(AtomicU64::new(0)), events.clone());
        let rings = Rings {
            own,
            superseded,
            attached_boot_ns,
            is_pinned: pins.is_some(),
        };
        let reader =
            Reader::start(rings, Arc::clone(&holder), events).map_err(SensorError::Reader)?;
        let (receipt, scanning) = Receipt::of_no_record();
        // After the hooks, so that no process falls between; some are told twice.
        thread::Builder::new()
            .name("running".to_owned())
            .spawn({
                let told = Arc::clone(&running);
                move || {
                    running::scan(host_mount_namespace, |mut event| {
                        if let Some(used) = event.used_mut() {
                            used.receipt = receipt.clone();
                        }
                        told.fetch_add(1, Ordering::Relaxed);
                        // An error means that the daemon is stopping.
                        let _ = running_events.blocking_send(event);
                    });
                }
            })
            .map_err(SensorError::Reader)?;
        Ok(Self {
            attached: hooks.attached,
            choices: hooks.choices,
            maps,
            holder,
            reader,
            running,
            earlier,
            told,
            scanning,
            is_reopened: hooks.is_reopened,
            are_running_told,
            host_mount_namespace,
            pins,
        })
    }

    /// Which hooks the running kernel accepts, found by attaching and at once detaching them.
    pub fn try_hooks() -> Result<Vec<Choice>, SensorError> {
        Self::may_start()?;
        Ok(Programs::load(&offsets::read()?)?.attach(&hooks::SETS))
    }

    /// Whether the hooks outlive it.
    pub fn is_pinned(&self) -> bool {
        self.pins.is_some()
    }

    /// Whether an earlier daemon attached the hooks.
    pub fn is_reopened(&self) -> bool {
        self.is_reopened
    }

    /// Whether what ran already when this daemon started was judged by one before it: that one has
    /// attached the hooks, and they have lost nothing since it told of losses.
    pub fn are_running_told(&self) -> bool {
        self.are_running_told
    }

    /// Whether what ran already has been judged.
    pub fn is_scanned(&self) -> bool {
        !self.scanning.is_held()
    }

    /// What earlier daemons let go of and left untold.
    pub fn left_untold(&self) -> Owed {
        let mut left = Owed::default();
        for hook in hooks::KINDS {
            let untold = self.earlier.untold.get(hook as usize).copied().unwrap_or(0);
            left.add_count(hook, untold.saturating_sub(self.told.hook(hook).told_later));
        }
        left
    }

    /// By [`Hook`], untold records that this daemon let go of and has done with since, but for those
    /// that are owed.
    pub fn told_later(&self) -> [u64; HOOKS as usize] {
        self.reader.counters.progress.told_later()
    }

    /// Up to which position the ring was let go.
    pub fn let_go(&self) -> u64 {
        self.reader
            .counters
            .progress
            .let_go()
            .max(self.earlier.position)
    }

    /// Bytes of the ring that were read and are left there until they are done with.
    pub fn held_bytes(&self) -> u64 {
        self.reader.counters.progress.held_bytes()
    }

    /// What earlier daemons have told of losses.
    pub fn told(&self) -> &Told {
        &self.told
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

    /// What became of every run of every hook so far.
    pub fn account(&mut self) -> Account {
        let reader = &self.reader.counters;
        let mut account = Account {
            received: self.earlier.records + reader.received.load(Ordering::Relaxed),
            earlier: self.earlier.records,
            running: self.running.load(Ordering::Relaxed)
                + reader.superseded.load(Ordering::Relaxed),
            undecodable: reader.undecodable.load(Ordering::Relaxed),
            held: self.holder.counters(),
            ..Account::default()
        };
        for (hook, of_hook) in hooks::KINDS.into_iter().map(|hook| (hook, hook as usize)) {
            let Some(total) = account.hooks.get_mut(of_hook) else {
                continue;
            };
            self.maps.count(hook, total);
            total.recursion_misses = self.attached.recursion_misses(hook);
        }
        account
    }

    /// Takes nothing more: without pins what the hooks have seen so far is read and they are
    /// detached, else it is left to the next daemon.
    pub fn stop(mut self) -> Stopped {
        let misses = self.account().hooks.map(|hook| hook.recursion_misses);
        self.attached.detach();
        let read = self.reader.stop();
        let mut account = self.account();
        for (hook, misses) in account.hooks.iter_mut().zip(misses) {
            hook.recursion_misses = misses;
        }
        Stopped {
            account,
            lost: self.losses(),
            _read: read,
            _pins: self.pins,
        }
    }

    /// How many instructions the verifier looked at for each loaded program, of a million that the
    /// kernel allows (0 where the kernel does not tell).
    pub fn verified_instructions(&self) -> Vec<(String, u32)> {
        self.attached.verified_instructions()
    }
}

/// The hooks in force and the maps that they share with the agent.
struct Hooks {
    attached: Attached,
    choices: Vec<Choice>,
    maps: HashMap<&'static str, Map>,
    /// Where they are pinned.
    folder: Option<Folder>,
    /// An earlier daemon has attached them.
    is_reopened: bool,
}

impl Hooks {
    /// Reopens what is pinned of the same programs, else loads, attaches and pins them.
    fn open(
        allowed: &[HookSet],
        offsets: &Offsets,
        pins: Option<&Pins>,
    ) -> Result<Self, SensorError> {
        let folder = pins.map(|pins| pins.folder(&programs::hash(&offsets.kernel)));
        if let Some(folder) = folder.as_ref().filter(|folder| folder.exists()) {
            match Self::reopen(folder) {
                Ok(hooks) => return Ok(hooks),
                Err(error) => {
                    tracing::error!(%error, "cannot go on with the hooks that are pinned: what they saw and no monitord has judged is lost");
                    folder.remove()?;
                }
            }
        }
        Self::load(allowed, offsets, folder)
    }

    fn reopen(folder: &Folder) -> Result<Self, SensorError> {
        let (attached, choices) = Attached::reopen(folder)?;
        check(&choices)?;
        let maps = maps::NAMES.map(|name| Ok((name, folder.map(name)?)));
        Ok(Self {
            attached,
            choices,
            maps: maps.into_iter().collect::<Result<_, PinsError>>()?,
            folder: Some(folder.clone()),
            is_reopened: true,
        })
    }

    fn load(
        allowed: &[HookSet],
        offsets: &Offsets,
        folder: Option<Folder>,
    ) -> Result<Self, SensorError> {
        let mut programs = Programs::load(offsets)?;
        let choices = programs.attach(allowed);
        check(&choices)?;
        if let Some(folder) = &folder {
            let new = folder.begin()?;
            programs.pin_maps(&new)?;
            programs.pin(&new)?;
            folder.finish(&new)?;
        }
        let maps = maps::NAMES.map(|name| Ok((name, programs.take_map(name)?)));
        Ok(Self {
            maps: maps.into_iter().collect::<Result<_, SensorError>>()?,
            attached: programs.attached(),
            choices,
            folder,
            is_reopened: false,
        })
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
