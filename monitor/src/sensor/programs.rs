//! The eBPF object: loaded once, and of its programs those attached that the running kernel
//! accepts, found by trying.

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    io,
    num::NonZeroUsize,
    sync::{Mutex, PoisonError},
    thread,
};

use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{Array, Map, MapData, ProgramArray},
    programs::{
        BtfTracePoint, CgroupAttachMode, CgroupSockAddr, FEntry, Lsm, Program as Loaded,
        ProgramError, ProgramFd, ProgramInfo, links::FdLink,
    },
};
use monitor_common::{Hook, offsets::KernelOffsets, syscall::Next};
use zerocopy::IntoBytes;

use super::{
    SensorError, account, cgroup_root,
    hooks::{self, Choice, HookSet, Place, Program, Refusal},
    offsets::Offsets,
    pins::{Folder, HASH_DIGITS, PinsError},
    security,
};
use crate::digest::Hasher;

/// The eBPF object that `cargo xtask build` made; empty if it was not there at build time.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("MONITOR_EBPF_OBJECT"));

/// Why a better set is not in force that another daemon has tried.
const REFUSED_BEFORE: &str = "it was refused when the hooks were attached, before monitord was started again; `monitord doctor` says why, and after `monitord unpin` it is tried again";

/// The map of what goes on where the program at the end of system calls leaves off.
const NEXT: &str = "NEXT";

/// Programs that the kernel verifies at once, at most: two thirds of the time are those of the two that
/// take longest.
const THREADS_MAX: usize = 4;

/// Whether the object was there at build time.
pub(super) fn are_built_in() -> bool {
    !OBJECT.is_empty()
}

/// What tells the programs from those of another build or kernel, in hexadecimal digits.
pub(super) fn hash(offsets: &KernelOffsets) -> String {
    let mut hasher = Hasher::new();
    hasher.update(OBJECT);
    hasher.update(offsets.as_bytes());
    let mut digits = hasher.finish().to_string();
    digits.truncate(HASH_DIGITS);
    digits
}

/// The object and what of it is attached; dropping it detaches what is not pinned.
pub(super) struct Programs {
    object: Ebpf,
    btf: Btf,
    attached: Vec<(Hook, Program)>,
    links: HashMap<&'static str, FdLink>,
    /// Why no program may be loaded that uses what a kernel can do without.
    lacks: Option<String>,
}

impl Programs {
    /// Makes the maps. No program is loaded yet.
    pub(super) fn load(offsets: &Offsets) -> Result<Self, SensorError> {
        let failed = |error: &dyn std::error::Error| SensorError::Load(chain(error));
        let btf = Btf::from_sys_fs().map_err(|error| failed(&error))?;
        let object = EbpfLoader::new()
            .btf(Some(&btf))
            .override_global("OFFSETS", offsets.kernel.as_bytes(), true)
            .load(OBJECT)
            .map_err(|error| failed(&error))?;
        Ok(Self {
            object,
            btf,
            attached: Vec::new(),
            links: HashMap::new(),
            lacks: offsets.lacks.as_ref().map(ToString::to_string),
        })
    }

    pub(super) fn take_map(&mut self, name: &str) -> Result<Map, SensorError> {
        self.object
            .take_map(name)
            .ok_or_else(|| SensorError::Load(format!("it has no map {name}")))
    }

    /// Attaches, for each kind of event, the best of the `allowed` sets that the kernel accepts.
    pub(super) fn attach(&mut self, allowed: &[HookSet]) -> Vec<Choice> {
        let runs_programs = security::runs_programs();
        let may_try = |set| set != HookSet::Lsm || runs_programs.is_ok();
        let sets = hooks::SETS.into_iter().filter(|set| may_try(*set));
        self.load_ahead(allowed, sets);
        let choose = |kind| {
            let mut choice = Choice {
                kind,
                set: None,
                refused: Vec::new(),
                refused_addition: None,
            };
            for way in hooks::allowed_ways(kind, allowed) {
                let runs = match way.set {
                    HookSet::Lsm => runs_programs.clone(),
                    HookSet::Fentry | HookSet::Tracepoint => Ok(()),
                };
                match runs.and_then(|()| self.attach_all(kind, way.programs)) {
                    Ok(()) => {
                        choice.set = Some(way.set);
                        choice.refused_addition = self.attach_additions(kind, way.set).err();
                        break;
                    }
                    Err(reason) => choice.refused.push(Refusal {
                        set: way.set,
                        reason,
                    }),
                }
            }
            choice
        };
        hooks::KINDS.into_iter().map(choose).collect()
    }

    /// Has the kernel verify side by side what is likely to be attached: one by one it takes as long as
    /// all of them together. What it refuses is met again, with the reason, when it is to be attached.
    fn load_ahead(&mut self, allowed: &[HookSet], sets: impl Iterator<Item = HookSet>) {
        let mut open = hooks::KINDS.to_vec();
        for set in sets {
            let mut wanted: Vec<Program> = Vec::new();
            let ways = |kind: &Hook| {
                let mut ways = hooks::allowed_ways(*kind, allowed);
                ways.find(|way| way.set == set)
            };
            for kind in &open {
                let way = ways(kind).map_or(&[][..], |way| way.programs);
                let additions = match (&self.lacks, way) {
                    (Some(_), _) | (_, []) => &[],
                    (None, _) => hooks::additions(*kind, set),
                };
                for program in way.iter().chain(additions) {
                    if !wanted.iter().any(|other| other.name == program.name) {
                        wanted.push(*program);
                    }
                }
            }
            self.load_side_by_side(&wanted);
            let is_loaded = |program: &Program| {
                let loaded = self.object.program(program.name);
                loaded.is_some_and(|loaded| loaded.fd().is_ok())
            };
            open.retain(|kind| !ways(kind).is_some_and(|way| way.programs.iter().all(is_loaded)));
        }
    }

    fn load_side_by_side(&mut self, wanted: &[Program]) {
        let place = |name: &str| wanted.iter().position(|it| it.name == name);
        let loaded = self.object.programs_mut();
        let mut loaded: Vec<_> = loaded
            .filter_map(|(name, loaded)| Some((place(name)?, loaded)))
            .collect();
        loaded.sort_by_key(|(place, _)| *place);
        let (queue, btf) = (Mutex::new(loaded.into_iter()), &self.btf);
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
        let load = || {
            while let Some((place, loaded)) = next() {
                if let Some(program) = wanted.get(place) {
                    let _ = load(loaded, program.place, btf);
                }
            }
        };
        let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        thread::scope(|scope| {
            for _ in 0..threads.min(THREADS_MAX) {
                scope.spawn(load);
            }
        });
    }

    fn attach_additions(&mut self, kind: Hook, set: HookSet) -> Result<(), String> {
        let additions = hooks::additions(kind, set);
        match &self.lacks {
            Some(reason) if !additions.is_empty() => Err(reason.clone()),
            _ => self.attach_all(kind, additions),
        }
    }

    /// All programs or none.
    fn attach_all(&mut self, kind: Hook, programs: &[Program]) -> Result<(), String> {
        for (index, program) in programs.iter().enumerate() {
            if let Err(reason) = self.attach_program(kind, program) {
                for attached in programs.iter().take(index) {
                    self.unload(attached);
                }
                return Err(reason);
            }
        }
        Ok(())
    }

    fn attach_program(&mut self, kind: Hook, program: &Program) -> Result<(), String> {
        let is_shared = program.name == hooks::AT_SYSCALLS;
        if is_shared {
            self.set_at_syscalls(kind)?;
        }
        let is_attached = |(_, attached): &(_, Program)| attached.name == program.name;
        if !self.attached.iter().any(is_attached) {
            let result = self.try_attach(program);
            if let Err(reason) = result {
                self.unload(program);
                return Err(reason);
            }
        }
        self.attached.push((kind, *program));
        Ok(())
    }

    fn try_attach(&mut self, program: &Program) -> Result<(), String> {
        let loaded = self
            .object
            .program_mut(program.name)
            .ok_or_else(|| format!("the object has no program {}", program.name))?;
        load(loaded, program.place, &self.btf).map_err(|error| chain(&error))?;
        let attached = match program.place {
            Place::Lsm(_) => <&mut Lsm>::try_from(loaded).and_then(|loaded| {
                let link = loaded.attach()?;
                loaded.take_link(link).map(FdLink::from)
            }),
            Place::Function(_) => <&mut FEntry>::try_from(loaded).and_then(|loaded| {
                let link = loaded.attach()?;
                loaded.take_link(link).map(FdLink::from)
            }),
            Place::Tracepoint(_) => <&mut BtfTracePoint>::try_from(loaded).and_then(|loaded| {
                let link = loaded.attach()?;
                loaded.take_link(link).map(FdLink::from)
            }),
            Place::RootCgroup => {
                let place = cgroup_root::find().map_err(|error| error.to_string())?;
                let root = File::open(&place)
                    .map_err(|error| format!("cannot open {}: {error}", place.display()))?;
                <&mut CgroupSockAddr>::try_from(loaded).and_then(|loaded| {
                    // The kernel lets links of several programs be attached; it refuses to be asked.
                    let link = loaded.attach(root, CgroupAttachMode::Single)?;
                    let link = loaded.take_link(link)?;
                    FdLink::try_from(link).map_err(|error| io::Error::other(error).into())
                })
            }
            Place::Next(next) => return self.set_next(next, program.name),
        };
        let link = attached.map_err(|error| chain(&error))?;
        self.links.insert(program.name, link);
        Ok(())
    }

    /// Has a program go on where the one at the end of system calls leaves off.
    fn set_next(&mut self, next: Next, name: &str) -> Result<(), String> {
        let loaded = self.object.program(name);
        let loaded = loaded.ok_or_else(|| format!("the object has no program {name}"))?;
        let descriptor = loaded
            .fd()
            .and_then(|descriptor| Ok(descriptor.try_clone()?));
        let descriptor = descriptor.map_err(|error| chain(&error))?;
        self.next()?
            .set(next as u32, &descriptor, 0)
            .map_err(|error| chain(&error))
    }

    fn next(&mut self) -> Result<ProgramArray<&mut MapData>, String> {
        let map = self.object.map_mut(NEXT);
        let map = map.ok_or_else(|| format!("the object has no map {NEXT}"))?;
        ProgramArray::try_from(map).map_err(|error| chain(&error))
    }

    fn unload(&mut self, program: &Program) {
        self.attached
            .retain(|(_, attached)| attached.name != program.name);
        self.links.remove(program.name);
        if let (Place::Next(next), Ok(mut map)) = (program.place, self.next()) {
            // What was not set cannot be cleared.
            let _ = map.clear_index(&(next as u32));
        }
        // What was not loaded cannot be unloaded.
        let _ = match self.object.program_mut(program.name) {
            Some(Loaded::Lsm(loaded)) => loaded.unload(),
            Some(Loaded::FEntry(loaded)) => loaded.unload(),
            Some(Loaded::BtfTracePoint(loaded)) => loaded.unload(),
            Some(Loaded::CgroupSockAddr(loaded)) => loaded.unload(),
            _ => Ok(()),
        };
    }

    /// Has the program at the end of system calls see this kind as well.
    fn set_at_syscalls(&mut self, kind: Hook) -> Result<(), String> {
        let map = self
            .object
            .map_mut("AT_SYSCALLS")
            .ok_or("the object has no map AT_SYSCALLS")?;
        let mut kinds: Array<_, u32> = Array::try_from(map).map_err(|error| chain(&error))?;
        let before = kinds.get(&0, 0).map_err(|error| chain(&error))?;
        kinds
            .set(0, before | 1 << kind as u32, 0)
            .map_err(|error| chain(&error))
    }

    /// Pins the maps; before they are taken.
    pub(super) fn pin_maps(&self, folder: &Folder) -> Result<(), PinsError> {
        // Constants are of the programs alone, and no name on a bpffs has a dot.
        let maps = self.object.maps().filter(|(name, _)| !name.contains('.'));
        for (name, map) in maps {
            folder.pin("map", name, |path| map.pin(path))?;
        }
        Ok(())
    }

    /// Pins what is attached.
    pub(super) fn pin(&mut self, folder: &Folder) -> Result<(), PinsError> {
        for name in names(&self.attached) {
            if let Some(program) = self.object.program_mut(name) {
                folder.pin("program", name, |path| program.pin(path))?;
            }
        }
        for (name, link) in std::mem::take(&mut self.links) {
            self.links.insert(name, folder.pin_link(name, link)?);
        }
        Ok(())
    }

    /// What is attached, to be asked about.
    pub(super) fn attached(mut self) -> Attached {
        let next = self.object.take_map(NEXT);
        let info = |name| self.object.program(name)?.info().ok();
        Attached {
            kinds: self.attached.clone(),
            programs: names(&self.attached)
                .filter_map(|name| Some((name, Running::new(info(name)?)?)))
                .collect(),
            links: self.links.into_values().collect(),
            _next: next,
        }
    }
}

/// Has the kernel verify a program, unless it has.
fn load(loaded: &mut Loaded, place: Place, btf: &Btf) -> Result<(), ProgramError> {
    if loaded.fd().is_ok() {
        return Ok(());
    }
    match place {
        Place::Lsm(hook) => <&mut Lsm>::try_from(loaded)?.load(hook, btf),
        Place::Function(function) => <&mut FEntry>::try_from(loaded)?.load(function, btf),
        Place::Tracepoint(tracepoint) => {
            <&mut BtfTracePoint>::try_from(loaded)?.load(tracepoint, btf)
        }
        Place::Next(_) => <&mut BtfTracePoint>::try_from(loaded)?.load(hooks::SYSCALL_EXIT, btf),
        Place::RootCgroup => <&mut CgroupSockAddr>::try_from(loaded)?.load(),
    }
}

/// Each program once.
fn names(attached: &[(Hook, Program)]) -> impl Iterator<Item = &'static str> + use<> {
    let names: BTreeSet<_> = attached.iter().map(|(_, program)| program.name).collect();
    names.into_iter()
}

/// A program in the kernel.
struct Running {
    info: ProgramInfo,
    descriptor: ProgramFd,
}

impl Running {
    /// `None` if the kernel does not give it.
    fn new(info: ProgramInfo) -> Option<Self> {
        let descriptor = info.fd().ok()?;
        Some(Self { info, descriptor })
    }
}

/// What is attached, by this daemon or by one before it; dropping it detaches what is not pinned.
pub(super) struct Attached {
    kinds: Vec<(Hook, Program)>,
    programs: HashMap<&'static str, Running>,
    links: Vec<FdLink>,
    /// Nothing goes on once nobody has it.
    _next: Option<Map>,
}

impl Attached {
    /// What an earlier daemon has attached and pinned, and the choices that it made.
    pub(super) fn reopen(folder: &Folder) -> Result<(Self, Vec<Choice>), SensorError> {
        let map = folder.map("AT_SYSCALLS")?;
        let failed = |error| SensorError::Load(chain(&error));
        let at_syscalls: Array<_, u32> = Array::try_from(map).map_err(failed)?;
        let at_syscalls = at_syscalls.get(&0, 0).map_err(failed)?;
        let mut attached = Self {
            kinds: Vec::new(),
            programs: HashMap::new(),
            links: Vec::new(),
            _next: None,
        };
        let mut choices = Vec::new();
        for kind in hooks::KINDS {
            let is_attached = |program: &Program| {
                let is_seen = at_syscalls & (1 << kind as u32) != 0;
                folder.has_program(program.name) && (program.name != hooks::AT_SYSCALLS || is_seen)
            };
            let ways = hooks::ways(kind);
            let chosen = ways.iter().find(|way| way.programs.iter().all(is_attached));
            let additions = chosen.map_or(&[][..], |way| hooks::additions(kind, way.set));
            let are_added = additions.iter().all(is_attached);
            let added = additions.iter().filter(|_| are_added);
            for program in chosen.into_iter().flat_map(|way| way.programs).chain(added) {
                attached.kinds.push((kind, *program));
                if let Some(running) = Running::new(folder.program(program.name)?) {
                    attached.programs.insert(program.name, running);
                }
            }
            let set = chosen.map(|way| way.set);
            choices.push(Choice {
                kind,
                set,
                refused: ways
                    .iter()
                    .take_while(|way| Some(way.set) != set)
                    .map(|way| Refusal {
                        set: way.set,
                        reason: REFUSED_BEFORE.to_owned(),
                    })
                    .collect(),
                refused_addition: (!are_added).then(|| REFUSED_BEFORE.to_owned()),
            });
        }
        Ok((attached, choices))
    }

    /// Detaches what is not pinned.
    pub(super) fn detach(&mut self) {
        self.links.clear();
        self.programs.clear();
    }

    /// Runs that the kernel skipped because the program was already running on that CPU.
    pub(super) fn recursion_misses(&self, kind: Hook) -> u64 {
        self.kinds
            .iter()
            .filter(|(of, _)| *of == kind)
            .filter_map(|(_, program)| self.programs.get(program.name))
            .map(|running| account::recursion_misses(&running.descriptor))
            .sum()
    }

    /// How many instructions the verifier looked at for each loaded program, of a million that the
    /// kernel allows (0 where the kernel does not tell).
    pub(super) fn verified_instructions(&self) -> Vec<(String, u32)> {
        let programs = self.programs.iter();
        programs
            .map(|(name, running)| {
                let instructions = running.info.verified_instruction_count().unwrap_or(0);
                ((*name).to_owned(), instructions)
            })
            .collect()
    }
}

/// An error with its causes: aya keeps the kernel's reason there.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
