//! A container that sleeps, for tests that start daemons themselves, one after the other.

use std::{fs, path::PathBuf};

use anyhow::Result;

use crate::{
    containerd::{Containerd, Run},
    daemon::Daemon,
    image::{self, PROBE_PATH},
    world::{Alone, BASE},
};

/// The container's id.
const ID: &str = "sleeper";

/// containerd with one container, and room for daemons.
#[derive(Debug)]
pub struct Sleeper {
    /// Where it runs.
    pub containerd: Containerd,
    _alone: Alone,
}

impl Sleeper {
    /// Starts containerd and the container.
    pub fn start() -> Result<Self> {
        let alone = Alone::wait()?;
        let containerd = Containerd::start()?;
        containerd.import(&image::base(BASE)?)?;
        let run = Run::new(BASE, ID).arguments(["/bin/sleep", "600"]);
        containerd.start_container(&run)?;
        Ok(Self {
            containerd,
            _alone: alone,
        })
    }

    /// The daemons' directory.
    pub fn directory(&self) -> PathBuf {
        self.containerd.directory().join("monitord")
    }

    /// A daemon with this configuration and the state of the one before it, once it is ready.
    pub fn daemon(&self, config: &str) -> Result<Daemon> {
        let directory = self.directory();
        let path = directory.join("config.toml");
        fs::create_dir_all(&directory)?;
        fs::write(&path, config)?;
        let mut command = Daemon::command(&self.containerd.address(), &directory)?;
        command.arg("--config").arg(path);
        let daemon = Daemon::spawn(&mut command, &directory)?;
        daemon.wait_ready()?;
        Ok(daemon)
    }

    /// Runs files that no image holds in the container, each of them once.
    pub fn run_files(&self, name: &str, count: u32) -> Result<()> {
        let line = format!(
            "i=0; while [ $i -lt {count} ]; do \
             {PROBE_PATH} run-copy /tmp/{name}$i salt$i sleep-ms 0; i=$((i+1)); done"
        );
        let ran = self.containerd.exec(ID, name, ["/bin/sh", "-c", &line]);
        ran.map(drop)
    }
}
