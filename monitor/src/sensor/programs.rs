//! The eBPF object: loaded once, and of its programs those attached that the running kernel
//! accepts, found by trying.

use std::fs::File;

use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{Array, Map},
    programs::{BtfTracePoint, CgroupAttachMode, CgroupSockAddr, FEntry, Lsm, Program as Loaded},
};
use monitor_common::{Hook, offsets::KernelOffsets};
use zerocopy::IntoBytes;

use super::{
    SensorError, account, cgroup_root,
    hooks::{self, Choice, HookSet, Place, Program, Refusal, Way},
};

/// The eBPF object that `cargo xtask build` made; empty if it was not there at build time.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("MONITOR_EBPF_OBJECT"));

/// Whether the object was there at build time.
pub(super) fn are_built_in() -> bool {
    !OBJECT.is_empty()
}

/// The object and what of it is attached; dropping it detaches.
pub(super) struct Programs {
    object: Ebpf,
    btf: Btf,
    attached: Vec<(Hook, Program)>,
}

impl Programs {
    /// Makes the maps. No program is loaded yet.
    pub(super) fn load(offsets: &KernelOffsets) -> Result<Self, SensorError> {
        let failed = |error: &dyn std::error::Error| SensorError::Load(chain(error));
        let btf = Btf::from_sys_fs().map_err(|error| failed(&error))?;
        let object = EbpfLoader::new()
            .btf(Some(&btf))
            .override_global("OFFSETS", offsets.as_bytes(), true)
            .load(OBJECT)
            .map_err(|error| failed(&error))?;
        Ok(Self {
            object,
            btf,
            attached: Vec::new(),
        })
    }

    pub(super) fn take_map(&mut self, name: &str) -> Result<Map, SensorError> {
        self.object
            .take_map(name)
            .ok_or_else(|| SensorError::Load(format!("it has no map {name}")))
    }

    /// Attaches, for each kind of event, the best of the `allowed` sets that the kernel accepts.
    pub(super) fn attach(&mut self, allowed: &[HookSet]) -> Vec<Choice> {
        let choose = |kind| {
            let mut choice = Choice {
                kind,
                set: None,
                refused: Vec::new(),
            };
            for way in hooks::ways(kind) {
                if !allowed.contains(&way.set) && hooks::ways(kind).len() > 1 {
                    continue;
                }
                match self.attach_way(kind, way) {
                    Ok(()) => {
                        choice.set = Some(way.set);
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

    /// All programs of a way, or none.
    fn attach_way(&mut self, kind: Hook, way: &Way) -> Result<(), String> {
        for (index, program) in way.programs.iter().enumerate() {
            if let Err(reason) = self.attach_program(kind, program) {
                for attached in way.programs.iter().take(index) {
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
        let btf = &self.btf;
        let attached = match program.place {
            Place::Lsm(hook) => <&mut Lsm>::try_from(loaded).and_then(|loaded| {
                loaded.load(hook, btf)?;
                loaded.attach().map(drop)
            }),
            Place::Function(function) => <&mut FEntry>::try_from(loaded).and_then(|loaded| {
                loaded.load(function, btf)?;
                loaded.attach().map(drop)
            }),
            Place::Tracepoint(tracepoint) => {
                <&mut BtfTracePoint>::try_from(loaded).and_then(|loaded| {
                    loaded.load(tracepoint, btf)?;
                    loaded.attach().map(drop)
                })
            }
            Place::RootCgroup => {
                let place = cgroup_root::find().map_err(|error| error.to_string())?;
                let root = File::open(&place)
                    .map_err(|error| format!("cannot open {}: {error}", place.display()))?;
                <&mut CgroupSockAddr>::try_from(loaded).and_then(|loaded| {
                    loaded.load()?;
                    // The kernel lets links of several programs be attached; it refuses to be asked.
                    loaded.attach(root, CgroupAttachMode::Single).map(drop)
                })
            }
        };
        attached.map_err(|error| chain(&error))
    }

    /// Detaches and unloads all of them.
    pub(super) fn detach(&mut self) {
        for (_, program) in self.attached.clone() {
            self.unload(&program);
        }
    }

    fn unload(&mut self, program: &Program) {
        self.attached
            .retain(|(_, attached)| attached.name != program.name);
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

    /// Runs that the kernel skipped because the program was already running on that CPU.
    pub(super) fn recursion_misses(&self, kind: Hook) -> u64 {
        self.attached
            .iter()
            .filter(|(of, _)| *of == kind)
            .filter_map(|(_, program)| self.object.program(program.name)?.fd().ok())
            .map(account::recursion_misses)
            .sum()
    }

    /// How many instructions the verifier looked at for each loaded program, of a million that the
    /// kernel allows (0 where the kernel does not tell).
    pub(super) fn verified_instructions(&self) -> Vec<(String, u32)> {
        self.object
            .programs()
            .filter_map(|(name, program)| {
                let info = program.info().ok()?;
                let instructions = info.verified_instruction_count().unwrap_or(0);
                Some((name.to_owned(), instructions))
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
