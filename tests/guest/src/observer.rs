//! One sensor for all tests of a process, and the events of each test's own cgroup.

use std::{
    collections::{HashMap, VecDeque},
    path::{Path, PathBuf},
    process,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use monitor::sensor::{
    Sensor,
    account::Account,
    event::{Event, Exec, Fork},
    hooks::HookSet,
};
use tokio::sync::mpsc;

/// How long an event may take: it is there within milliseconds, but an emulated machine that
/// shares its processors may stand still for seconds.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Forks that are kept; they do not tell their cgroup.
const FORKS_MAX: usize = 65_536;

/// Events between the sensor's reader and the collector.
const EVENTS_MAX: usize = 4096;

/// The sensor of this process. It sees the whole machine; what is kept is of cgroups whose names
/// begin with [`Observer::cgroup_prefix`].
pub struct Observer {
    sensor: Mutex<Sensor>,
    collected: Arc<Collected>,
    helper: PathBuf,
}

#[derive(Default)]
struct Collected {
    by_cgroup: Mutex<HashMap<u64, Vec<Event>>>,
    forks: Mutex<VecDeque<Fork>>,
    arrived: Condvar,
}

impl Observer {
    /// Starts the sensor with these sets of hooks. `helper` is this package's program.
    ///
    /// # Errors
    ///
    /// The sensor does not start.
    pub fn start(helper: &Path, sets: &[HookSet]) -> Result<Self> {
        let (sender, mut events) = mpsc::channel(EVENTS_MAX);
        let sensor = Sensor::start_with(sets, sender, None).context("starting the sensor")?;
        let collected = Arc::new(Collected::default());
        thread::Builder::new().name("collector".to_owned()).spawn({
            let collected = Arc::clone(&collected);
            let prefix = format!("/{}", Self::cgroup_prefix()).into_bytes();
            move || {
                while let Some(event) = events.blocking_recv() {
                    collected.add(event, &prefix);
                }
            }
        })?;
        Ok(Self {
            sensor: Mutex::new(sensor),
            collected,
            helper: helper.to_owned(),
        })
    }

    /// What the names of this process's cgroups begin with.
    pub fn cgroup_prefix() -> String {
        format!("monitord-test-{}-", process::id())
    }

    /// This package's program.
    pub fn helper(&self) -> &Path {
        &self.helper
    }

    /// The sensor itself.
    pub fn sensor(&self) -> MutexGuard<'_, Sensor> {
        self.sensor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The forks of which `is_wanted`, so far.
    pub fn forks(&self, is_wanted: impl Fn(&Fork) -> bool) -> Vec<Fork> {
        let forks = &self.collected.forks;
        let forks = forks.lock().unwrap_or_else(PoisonError::into_inner);
        forks.iter().copied().filter(is_wanted).collect()
    }

    /// Takes the events of a cgroup up to the first exec that `is_last`, which is left out.
    ///
    /// # Errors
    ///
    /// There is none within [`PATIENCE`].
    pub fn take_until(&self, cgroup: u64, is_last: impl Fn(&Exec) -> bool) -> Result<Vec<Event>> {
        let deadline = Instant::now() + PATIENCE;
        let is_last = |event: &Event| matches!(event, Event::Exec(exec) if is_last(exec));
        let mut by_cgroup = self.collected.lock();
        loop {
            let events = by_cgroup.entry(cgroup).or_default();
            if let Some(at) = events.iter().position(&is_last) {
                let mut taken: Vec<Event> = events.drain(..=at).collect();
                taken.pop();
                return Ok(taken);
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                bail!("the last exec of cgroup {cgroup} was not seen, only {events:?}");
            };
            by_cgroup = self
                .collected
                .arrived
                .wait_timeout(by_cgroup, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// The account once `holds`; the machine's other processes move its figures all the time.
    ///
    /// # Errors
    ///
    /// It does not hold within [`PATIENCE`]; the error tells the last account.
    pub fn account_when(&self, holds: impl Fn(&Account) -> bool) -> Result<Account> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let account = self.sensor().account();
            if holds(&account) {
                return Ok(account);
            }
            if Instant::now() > deadline {
                bail!("the account does not balance: {account:?}");
            }
            thread::yield_now();
        }
    }
}

impl Collected {
    fn add(&self, event: Event, cgroup_prefix: &[u8]) {
        if let Event::Fork(fork) = event {
            let mut forks = self.forks.lock().unwrap_or_else(PoisonError::into_inner);
            forks.push_back(fork);
            if forks.len() > FORKS_MAX {
                forks.pop_front();
            }
        } else if let Some(used) = event.used()
            && used.cgroup.path.starts_with(cgroup_prefix)
        {
            let id = used.cgroup.id;
            self.lock().entry(id).or_default().push(event);
            self.arrived.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Vec<Event>>> {
        self.by_cgroup
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
