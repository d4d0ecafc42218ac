//! A containerd with a monitord at it, shared by the tests of one binary.

use std::{
    collections::HashSet,
    fs,
    sync::{
        Arc, Condvar, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::Value;

use crate::{
    alerts::{Alerts, cursor, summary, text},
    containerd::{Containerd, Run},
    daemon::Daemon,
    image::{self, Image, PROBE_PATH},
    poll::{PATIENCE, until},
};

/// The name of the image that every world has: [`image::base`].
pub const BASE: &str = "example.invalid/base:1";

/// containerd, monitord, and the alerts as they come.
#[derive(Debug)]
pub struct World {
    /// Alerts since the daemon's start.
    pub alerts: Alerts,
    /// The daemon.
    pub daemon: Daemon,
    /// Its containerd.
    pub containerd: Containerd,
    /// The image named [`BASE`].
    pub base: Image,
    serial: AtomicU32,
    read: Mutex<HashSet<String>>,
    _alone: Alone,
}

impl World {
    /// A world of one's own, for tests that break it.
    pub fn start() -> Result<Self> {
        Self::start_after(|_| Ok(()))
    }

    /// The same, with something done to containerd before monitord starts.
    pub fn start_after(prepare: impl FnOnce(&Containerd) -> Result<()>) -> Result<Self> {
        Self::start_configured("", prepare)
    }

    /// The same, with a configuration of monitord.
    pub fn start_configured(
        config: &str,
        prepare: impl FnOnce(&Containerd) -> Result<()>,
    ) -> Result<Self> {
        Self::start_alone(Alone::wait()?, config, prepare)
    }

    fn start_alone(
        alone: Alone,
        config: &str,
        prepare: impl FnOnce(&Containerd) -> Result<()>,
    ) -> Result<Self> {
        let containerd = Containerd::start()?;
        let base = image::base(BASE)?;
        containerd.import(&base)?;
        prepare(&containerd)?;
        let directory = containerd.directory().join("monitord");
        let file = containerd.directory().join("monitord.toml");
        fs::write(&file, config)?;
        let mut command = Daemon::command(&containerd.address(), &directory)?;
        let daemon = Daemon::spawn(command.arg("--config").arg(file), &directory)?;
        daemon.wait_ready()?;
        let alerts = daemon.follow()?;
        Ok(Self {
            alerts,
            daemon,
            containerd,
            base,
            serial: AtomicU32::new(0),
            read: Mutex::default(),
            _alone: alone,
        })
    }

    /// A container id that no other container here has had.
    pub fn unique(&self, word: &str) -> String {
        format!("{word}-{}", self.serial.fetch_add(1, Ordering::Relaxed))
    }

    /// Runs a shell line in a container of an image, to its end, and gives all that it raised.
    pub fn raised_by(&self, image: &str, line: &str) -> Result<Vec<Value>> {
        let run = Run::new(image, self.unique("shell")).shell(line);
        self.raised_by_run(&run)
    }

    /// Has the daemon read the contents of an image, once: what the first container of an image
    /// changes is not noticed when it ends before that.
    pub fn have_read(&self, image: &str) -> Result<()> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if !read.contains(image) {
            self.raised_by(image, "true")?;
            read.insert(image.to_owned());
        }
        Ok(())
    }

    /// Runs a shell line likewise and expects exactly these alerts, as kind and path of the file.
    pub fn check(&self, image: &str, line: &str, expect: &[(&str, &str)]) -> Result<()> {
        if image == BASE {
            self.have_read(BASE)?;
        }
        expect_alerts(line, &self.raised_by(image, line)?, expect)
    }

    /// The same in a container that stays until then, once the daemon knows what its image holds by
    /// this evidence: with a container's end go the files that it made, seen by a loaded machine or
    /// not.
    pub fn check_once_known(
        &self,
        image: &str,
        line: &str,
        evidence: &str,
        expect: &[(&str, &str)],
    ) -> Result<()> {
        expect_alerts(
            line,
            &self.raised_once_known(image, line, evidence)?,
            expect,
        )
    }

    /// Runs any container and gives the alerts of it.
    pub fn raised_by_run(&self, run: &Run) -> Result<Vec<Value>> {
        self.containerd.run_ok(run)?;
        self.settle()?;
        Ok(self.alerts.of(&run.id))
    }

    /// Runs a shell line in a container that stays until its alerts are there, once the daemon knows
    /// what its image holds by this evidence.
    pub fn raised_once_known(&self, image: &str, line: &str, evidence: &str) -> Result<Vec<Value>> {
        let id = self.unique("stays");
        let run = Run::new(image, &id).shell("while :; do sleep 1; done");
        self.containerd.start_container(&run)?;
        until("the image to be known", PATIENCE, || {
            let shown = self.daemon.monitorctl(["container", "show", &id])?;
            let shown = shown.first().context("no container")?;
            let known = text(shown, "/image/evidence");
            ensure!(known == Some(evidence), "by {known:?}");
            Ok(())
        })?;
        self.containerd.exec(&id, "line", ["/bin/sh", "-c", line])?;
        self.settle()?;
        let alerts = self.alerts.of(&id);
        self.containerd.delete(&id)?;
        Ok(alerts)
    }

    /// Returns when all that happened before has been judged and hashed and its alerts have
    /// arrived.
    pub fn settle(&self) -> Result<()> {
        // What happened before the first marker has left the ring when its alert is here, and is
        // judged or waits; what waited has been judged before the second.
        self.marker()?;
        self.daemon.wait_nothing_waiting()?;
        self.marker()?;
        let newest = self.daemon.newest_cursor()?;
        until("every alert to arrive", PATIENCE, || {
            let arrived = self.alerts.arrivals();
            let arrived = arrived
                .iter()
                .filter_map(|arrival| cursor(&arrival.alert))
                .max();
            ensure!(arrived >= Some(newest), "{arrived:?} of {newest} arrived");
            Ok(())
        })?;
        until("all hashes", PATIENCE, || {
            let pending = |alert: &Value| text(alert, "/file/hash_state") == Some("pending");
            let alerts = self.alerts.all();
            let pending: Vec<String> = alerts
                .iter()
                .filter(|alert| pending(alert))
                .map(summary)
                .collect();
            ensure!(pending.is_empty(), "pending: {pending:?}");
            Ok(())
        })
    }

    /// Runs a container that must raise an alert, and waits for it.
    fn marker(&self) -> Result<()> {
        let id = self.unique("marker");
        let copy = [PROBE_PATH, "run-copy", "/tmp/marker", &id, "sleep-ms", "0"];
        self.containerd
            .run_ok(&Run::new(BASE, &id).arguments(copy))?;
        self.alerts
            .wait_for("of the marker", |alert| {
                text(alert, "/container/id") == Some(id.as_str())
            })
            .with_context(|| self.daemon.log())
            .map(drop)
    }
}

/// Fails unless the alerts are exactly these, as kind and path of the file.
fn expect_alerts(line: &str, alerts: &[Value], expect: &[(&str, &str)]) -> Result<()> {
    let word = |alert, pointer| text(alert, pointer).unwrap_or("");
    let mut raised: Vec<_> = alerts
        .iter()
        .map(|alert| (word(alert, "/kind"), word(alert, "/file/path")))
        .collect();
    // Alerts come in the order in which the bytes were read.
    raised.sort_unstable();
    ensure!(
        raised == expect,
        "{line:?} raised {raised:?}, not {expect:?}: {alerts:#?}"
    );
    Ok(())
}

/// The right to run a daemon and containers. A daemon sees the containers of another containerd
/// too, and keeps them waiting for an owner that it will never hear of; tests that ask what still
/// waits therefore take turns.
#[derive(Debug)]
pub struct Alone(());

static TAKEN: Mutex<bool> = Mutex::new(false);
static RETURNED: Condvar = Condvar::new();

/// Whose worlds the tests of this process use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Worlds {
    /// Each test starts its own, in turn.
    Own,
    /// The first that starts is kept to the process's end, so that no other ever has its turn.
    Shared,
}

static WORLDS: OnceLock<Worlds> = OnceLock::new();

impl Worlds {
    /// Fails whatever the order in which tests run, where a mixture would hang in some.
    fn agree(self) -> Result<()> {
        ensure!(
            *WORLDS.get_or_init(|| self) == self,
            "some tests of this binary share a world and some start their own, which would wait for \
             the shared one without end: move them to another file"
        );
        Ok(())
    }
}

impl Alone {
    /// Waits until no other test of this process has it. Fails if tests of this process share a
    /// world.
    pub fn wait() -> Result<Self> {
        Worlds::Own.agree()?;
        Ok(Self::take())
    }

    fn take() -> Self {
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        while *taken {
            taken = RETURNED.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        *taken = true;
        Self(())
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        *TAKEN.lock().unwrap_or_else(PoisonError::into_inner) = false;
        RETURNED.notify_one();
    }
}

/// The world of this test binary. Made by the first test that asks; removed when the process
/// ends. No test of the binary may start its own.
pub fn shared() -> Result<Arc<World>> {
    Worlds::Shared.agree()?;
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    let world = shared.get_or_insert_with(|| {
        // Statics are not dropped, and the world must not outlive the process.
        // SAFETY: `remove_shared` is a C function for the whole life of the process, and what
        // could panic in it would end the process, which is ending anyway.
        if unsafe { libc::atexit(remove_shared) } != 0 {
            return Err("cannot register the removal of the shared world".to_owned());
        }
        World::start_alone(Alone::take(), "", |_| Ok(()))
            .map(Arc::new)
            .map_err(|error| format!("{error:#}"))
    });
    world
        .as_ref()
        .map(Arc::clone)
        .map_err(|error| anyhow!("the shared world: {error}"))
}

static SHARED: Mutex<Option<Result<Arc<World>, String>>> = Mutex::new(None);

extern "C" fn remove_shared() {
    drop(SHARED.lock().unwrap_or_else(PoisonError::into_inner).take());
}

/// One test per behaviour, so that a failure names it: a shell line in a container of [`BASE`] in the
/// shared world, and the alerts that it must raise.
#[macro_export]
macro_rules! behaviours {
    ($($name:ident: $line:expr => $expect:expr;)+) => {$(
        #[test]
        fn $name() -> anyhow::Result<()> {
            $crate::require!(Root, Containerd, Busybox, Btf);
            $crate::world::shared()?.check($crate::world::BASE, $line, &$expect)
        }
    )+};
}
