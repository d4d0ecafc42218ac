//! From the kernel to [`event::Exec`]: loading, offsets, the ring buffer, held files, the account.
//!
//! The only room that names aya.

pub mod account;
pub mod btf;
pub mod decode;
pub mod elf;
pub mod event;
pub mod hold;
pub mod link;
pub mod offsets;
mod reader;
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

use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap as KernelHashMap, MapData, MapError, PerCpuArray, RingBuf},
    programs::{BtfTracePoint, ProgramError},
};
use monitor_common::{CgroupState, Hook, offsets::KernelOffsets};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::mpsc;
use zerocopy::IntoBytes;

use self::{
    account::{Account, KernelCounters},
    event::Exec,
    hold::{Holder, HolderError},
    reader::Reader,
};

/// The eBPF object that `cargo xtask build` made; empty if it was not there at build time.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("MONITOR_EBPF_OBJECT"));

/// Name of the hook set in alerts.
pub const HOOK_SET: &str = "tracepoint";

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
    /// A program was refused.
    #[error("the kernel refused the exec hook (tp_btf/sched_process_exec): {0}")]
    Program(String),
    /// See [`hold::HolderError`].
    #[error(transparent)]
    Holder(#[from] HolderError),
    /// The reader thread did not start.
    #[error("cannot start the thread that reads the ring buffer: {0}")]
    Reader(io::Error),
}

/// The loaded programs and the thread that reads them. Dropping it detaches the hooks.
pub struct Sensor {
    programs: Ebpf,
    cgroups: KernelHashMap<MapData, u64, u32>,
    counters: PerCpuArray<MapData, KernelCounters>,
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
        if OBJECT.is_empty() {
            return Err(SensorError::NoObject);
        }
        Ok(())
    }

    /// Loads the programs, starts the reader, then attaches the hooks; events go to `events`.
    pub fn start(events: mpsc::Sender<Exec>) -> Result<Self, SensorError> {
        Self::may_start()?;
        raise_descriptor_limit();
        let offsets = offsets::read()?;
        let mut programs = load(&offsets)?;
        let records =
            RingBuf::try_from(take_map(&mut programs, "RECORDS")?).map_err(refused_map)?;
        let cgroups =
            KernelHashMap::try_from(take_map(&mut programs, "CGROUPS")?).map_err(refused_map)?;
        let counters =
            PerCpuArray::try_from(take_map(&mut programs, "COUNTERS")?).map_err(refused_map)?;
        let holder = Arc::new(Holder::new()?);
        let (running, running_events) = (Arc::new(AtomicU64::new(0)), events.clone());
        let reader =
            Reader::start(records, Arc::clone(&holder), events).map_err(SensorError::Reader)?;
        let program: &mut BtfTracePoint = exec_program(&mut programs)?;
        program.attach().map_err(refused_program)?;
        let host_mount_namespace = offsets.host_mount_namespace;
        // After the hooks, so that no process falls between; some are told twice.
        thread::Builder::new()
            .name("running".to_owned())
            .spawn({
                let told = Arc::clone(&running);
                move || {
                    running::scan(host_mount_namespace, |exec| {
                        told.fetch_add(1, Ordering::Relaxed);
                        // An error means that the daemon is stopping.
                        let _ = running_events.blocking_send(exec);
                    });
                }
            })
            .map_err(SensorError::Reader)?;
        Ok(Self {
            programs,
            cgroups,
            counters,
            holder,
            reader,
            running,
            host_mount_namespace,
        })
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

    /// Tells the kernel side what a cgroup is.
    pub fn set_cgroup(&mut self, id: u64, state: CgroupState) -> io::Result<()> {
        self.cgroups
            .insert(id, state as u32, 0)
            .map_err(io::Error::other)
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
        match self.counters.get(&(Hook::Exec as u32), 0) {
            Ok(per_cpu) => per_cpu
                .iter()
                .for_each(|counters| account.exec.add(&counters.0)),
            Err(error) => tracing::warn!(%error, "cannot read the hook counters"),
        }
        account.exec.recursion_misses = exec_program(&mut self.programs)
            .ok()
            .and_then(|program| program.fd().ok())
            .map_or(0, account::recursion_misses);
        account
    }

    /// How many instructions the verifier looked at for each loaded program, of a million that the
    /// kernel allows (0 where the kernel does not tell).
    pub fn verified_instructions(&self) -> Vec<(String, u32)> {
        let programs = self.programs.programs();
        programs
            .filter_map(|(name, program)| {
                let info = program.info().ok()?;
                let instructions = info.verified_instruction_count().unwrap_or(0);
                Some((name.to_owned(), instructions))
            })
            .collect()
    }
}

fn load(offsets: &KernelOffsets) -> Result<Ebpf, SensorError> {
    let btf = aya::Btf::from_sys_fs().map_err(|error| SensorError::Load(error.to_string()))?;
    let mut programs = EbpfLoader::new()
        .btf(Some(&btf))
        .override_global("OFFSETS", offsets.as_bytes(), true)
        .load(OBJECT)
        .map_err(|error| SensorError::Load(chain(&error)))?;
    exec_program(&mut programs)?
        .load("sched_process_exec", &btf)
        .map_err(refused_program)?;
    Ok(programs)
}

fn exec_program(programs: &mut Ebpf) -> Result<&mut BtfTracePoint, SensorError> {
    programs
        .program_mut("exec_tracepoint")
        .ok_or_else(|| SensorError::Load("it has no program exec_tracepoint".to_owned()))?
        .try_into()
        .map_err(refused_program)
}

fn take_map(programs: &mut Ebpf, name: &str) -> Result<aya::maps::Map, SensorError> {
    programs
        .take_map(name)
        .ok_or_else(|| SensorError::Load(format!("it has no map {name}")))
}

#[expect(clippy::needless_pass_by_value, reason = "the form that map_err wants")]
fn refused_map(error: MapError) -> SensorError {
    SensorError::Load(chain(&error))
}

#[expect(clippy::needless_pass_by_value, reason = "the form that map_err wants")]
fn refused_program(error: ProgramError) -> SensorError {
    SensorError::Program(chain(&error))
}

/// An error with its causes: aya keeps the kernel's reason there.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
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
