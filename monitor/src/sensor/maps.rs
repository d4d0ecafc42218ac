//! The maps that the programs share with the agent.

use std::{collections::HashMap, io};

use aya::maps::{
    Array, HashMap as KernelHashMap, Map, MapData, MapError, PerCpuArray, PerCpuHashMap,
};
use monitor_common::{
    CgroupFacts, HOOKS, Hook,
    connect::{Peer, PeerState},
    file::FileVersion,
    loss::{LOSSES_MAX, LossTotals},
    open::{OPEN_READ, OPEN_WRITE, OpenKey},
};

use super::{
    Sensor, SensorError,
    account::{HookAccount, KernelCounters, KernelLossKey, Lost},
    event::{Access, FileFacts, FileUse},
    programs::chain,
    ring::Ring,
};

/// Their names.
pub(super) const NAMES: [&str; 10] = [
    "RECORDS",
    "LET_GO",
    "CGROUPS",
    "REMEMBERED",
    "OPENS",
    "PEERS",
    "COUNTERS",
    "LOSSES",
    "TOLD",
    "TOLD_LOSSES",
];

/// All but the ring.
pub(super) struct Maps {
    cgroups: KernelHashMap<MapData, u64, KernelCgroup>,
    remembered: KernelHashMap<MapData, KernelFileVersion, u32>,
    opens: KernelHashMap<MapData, KernelOpenKey, u32>,
    peers: KernelHashMap<MapData, KernelPeer, KernelPeerState>,
    counters: PerCpuArray<MapData, KernelCounters>,
    losses: PerCpuHashMap<MapData, KernelLossKey, u64>,
    told: Array<MapData, KernelLossTotals>,
    told_losses: KernelHashMap<MapData, KernelLossKey, u64>,
}

/// What was lost until an earlier daemon last told of it; nothing and time 0 if there was none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Each kind of hook, by [`Hook`].
    pub hooks: [LossTotals; HOOKS as usize],
    /// Of that, by whose it was.
    pub lost: Vec<Lost>,
}

impl Told {
    /// One kind of hook.
    pub fn hook(&self, hook: Hook) -> LossTotals {
        self.hooks.get(hook as usize).copied().unwrap_or_default()
    }
}

impl Maps {
    /// Takes those named [`NAMES`].
    pub(super) fn open(mut maps: HashMap<&'static str, Map>) -> Result<(Ring, Self), SensorError> {
        let mut take = |name| {
            maps.remove(name)
                .ok_or_else(|| SensorError::Load(format!("it has no map {name}")))
        };
        let ring = Ring::open(take("RECORDS")?, take("LET_GO")?).map_err(SensorError::Ring)?;
        let maps = Self {
            cgroups: opened(take("CGROUPS")?)?,
            remembered: opened(take("REMEMBERED")?)?,
            opens: opened(take("OPENS")?)?,
            peers: opened(take("PEERS")?)?,
            counters: opened(take("COUNTERS")?)?,
            losses: opened(take("LOSSES")?)?,
            told: opened(take("TOLD")?)?,
            told_losses: opened(take("TOLD_LOSSES")?)?,
        };
        Ok((ring, maps))
    }

    /// Removes what an earlier daemon has judged: its configuration was another, and what it knew of
    /// containers may have changed meanwhile.
    pub(super) fn forget(&mut self) {
        clear(&mut self.cgroups);
        clear(&mut self.remembered);
        clear(&mut self.opens);
        clear(&mut self.peers);
    }

    /// Adds a hook's counters of all CPUs.
    pub(super) fn count(&self, hook: Hook, total: &mut HookAccount) {
        match self.counters.get(&(hook as u32), 0) {
            Ok(per_cpu) => per_cpu.iter().for_each(|counters| total.add(&counters.0)),
            Err(error) => tracing::warn!(%error, "cannot read the hook counters"),
        }
    }

    /// What an earlier daemon has told of losses.
    pub(super) fn told(&self) -> Told {
        let mut told = Told::default();
        for (hook, totals) in (0..).zip(&mut told.hooks) {
            // An error means that it was never written.
            *totals = self.told.get(&hook, 0).unwrap_or_default().0;
        }
        let pairs = self.told_losses.iter().filter_map(Result::ok);
        let lost = pairs.filter_map(|(key, count)| Lost::new(key.0, count));
        told.lost = lost.take(LOSSES_MAX as usize).collect();
        told
    }
}

impl Sensor {
    /// Tells the kernel side what a cgroup is.
    pub fn set_cgroup(&mut self, id: u64, facts: CgroupFacts) -> io::Result<()> {
        self.maps
            .cgroups
            .insert(id, KernelCgroup(facts), 0)
            .map_err(io::Error::other)
    }

    /// Has the kernel side send nothing more of a file of a lower layer as long as it is the
    /// version that was judged good; false if it is no such file.
    pub fn remember(&mut self, facts: &FileFacts) -> io::Result<bool> {
        let Some(version) = facts.lower_version() else {
            return Ok(false);
        };
        self.maps
            .remembered
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
            name_hash: facts.name_hash,
            reserved: 0,
        });
        self.maps.opens.insert(key, 1, 0).map_err(io::Error::other)
    }

    /// Has the kernel side send nothing more of a peer that was judged good.
    pub fn remember_peer(&mut self, peer: &Peer) -> io::Result<()> {
        self.maps
            .peers
            .insert(KernelPeer(*peer), KernelPeerState(PeerState::GOOD), 0)
            .map_err(io::Error::other)
    }

    /// Has the kernel side tell of every peer again.
    pub fn forget_peers(&mut self) -> io::Result<()> {
        remove_all(&mut self.maps.peers)
    }

    /// Has the kernel side tell of every open again.
    pub fn forget_opens(&mut self) -> io::Result<()> {
        remove_all(&mut self.maps.opens)
    }

    /// Makes the kernel side ask again.
    pub fn forget_cgroup(&mut self, id: u64) -> io::Result<()> {
        match self.maps.cgroups.remove(&id) {
            // The map evicts by itself.
            Err(MapError::KeyNotFound) | Ok(()) => Ok(()),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// Whose records the kernel side lost so far, as far as it remembers. Asked after
    /// [`Self::account`], it says at least as much as that.
    pub fn losses(&self) -> Vec<Lost> {
        let keys = self.maps.losses.keys().filter_map(Result::ok);
        keys.take(LOSSES_MAX as usize)
            .filter_map(|key| {
                // An error means that it was forgotten meanwhile.
                let per_cpu = self.maps.losses.get(&key, 0).ok()?;
                Lost::new(key.0, per_cpu.iter().sum())
            })
            .collect()
    }

    /// Leaves to the next daemon what was told of losses: it tells what is lost from then on.
    pub fn set_told(&mut self, told: Told) -> io::Result<()> {
        for (hook, totals) in (0..).zip(told.hooks) {
            let totals = KernelLossTotals(totals);
            self.maps
                .told
                .set(hook, totals, 0)
                .map_err(io::Error::other)?;
        }
        if told.lost != self.told.lost {
            clear(&mut self.maps.told_losses);
            for lost in &told.lost {
                self.maps
                    .told_losses
                    .insert(KernelLossKey(lost.key()), lost.count, 0)
                    .map_err(io::Error::other)?;
            }
        }
        self.told = told;
        Ok(())
    }
}

fn opened<M: TryFrom<Map, Error = MapError>>(map: Map) -> Result<M, SensorError> {
    M::try_from(map).map_err(|error| SensorError::Load(chain(&error)))
}

fn remove_all<K: aya::Pod, V: aya::Pod>(map: &mut KernelHashMap<MapData, K, V>) -> io::Result<()> {
    // First all keys: the kernel begins anew when the one is gone after which it was asked.
    let keys: Result<Vec<K>, MapError> = map.keys().collect();
    for key in keys.map_err(io::Error::other)? {
        match map.remove(&key) {
            // The map evicts by itself.
            Err(MapError::KeyNotFound) | Ok(()) => {}
            Err(error) => return Err(io::Error::other(error)),
        }
    }
    Ok(())
}

fn clear<K: aya::Pod, V: aya::Pod>(map: &mut KernelHashMap<MapData, K, V>) {
    // First all keys: the kernel begins anew when the one is gone after which it was asked.
    let keys: Vec<K> = map.keys().filter_map(Result::ok).collect();
    for key in keys {
        // The map evicts by itself.
        let _ = map.remove(&key);
    }
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

/// [`LossTotals`] as a map value.
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
struct KernelLossTotals(LossTotals);

// SAFETY: plain integers without padding, as `LossTotals` proves by deriving `FromBytes`.
unsafe impl aya::Pod for KernelLossTotals {}
