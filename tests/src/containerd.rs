//! A containerd of our own, as one process with its own directories.

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    image::Image,
    poll::{PATIENCE, until},
    process::{Process, feed, output},
    scratch::Scratch,
};

/// A private containerd. Dropping it removes it, its containers and all that they left.
#[derive(Debug)]
pub struct Containerd {
    // Before the directory, so that the process is reaped first.
    process: Process,
    scratch: Scratch,
    /// See [`Containerd::use_runtime`].
    runtime: OnceLock<String>,
}

impl Containerd {
    /// Starts containerd and waits until it answers.
    pub fn start() -> Result<Self> {
        Self::configured(None)
    }

    /// The same with the CRI plugin, whose sandboxes run the image `pause`.
    pub fn start_with_cri(pause: &str) -> Result<Self> {
        Self::configured(Some(pause))
    }

    fn configured(pause: Option<&str>) -> Result<Self> {
        let scratch = Scratch::new()?;
        let directory = scratch.path().display();
        let (cri, disabled) = match pause {
            Some(pause) => (cri_config(pause, scratch.path()), ""),
            None => (String::new(), r#""io.containerd.grpc.v1.cri","#),
        };
        // What is disabled here either needs a network, or probes the machine's block devices, or
        // would write outside the directory.
        let config = format!(
            r#"version = 2
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = [
    {disabled}
    "io.containerd.nri.v1.nri",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
]
[grpc]
address = "{directory}/containerd.sock"
[ttrpc]
address = "{directory}/containerd.sock.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
path = "{directory}/opt"
{cri}"#
        );
        fs::write(scratch.path().join("config.toml"), config)?;
        let containerd = Self {
            process: Process::default(),
            scratch,
            runtime: OnceLock::new(),
        };
        containerd.restart()?;
        Ok(containerd)
    }

    /// Starts it on the directories it already has, and waits until it answers.
    pub fn restart(&self) -> Result<()> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.directory().join("containerd.log"))?;
        let child = Command::new("containerd")
            .arg("--config")
            .arg(self.directory().join("config.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start containerd; is the package containerd installed?")?;
        self.process.set(child);
        until("containerd to answer", PATIENCE, || {
            if let Some(status) = self.process.try_wait()? {
                bail!("containerd ended with {status}: {}", self.log());
            }
            self.ctr(["version"]).map(drop)
        })
    }

    /// Runs containers by this OCI runtime from now on, not by runc. Said once.
    pub fn use_runtime(&self, program: &str) -> Result<()> {
        ensure!(
            self.runtime.set(program.to_owned()).is_ok(),
            "containers are run by another runtime already"
        );
        Ok(())
    }

    /// Its process.
    pub fn pid(&self) -> Result<u32> {
        self.process.id().context("containerd has ended")
    }

    /// Kills containerd (SIGKILL), not its containers.
    pub fn kill(&self) -> Result<()> {
        self.process.kill()
    }

    /// The address for `--containerd` and `ctr --address`.
    pub fn address(&self) -> PathBuf {
        self.directory().join("containerd.sock")
    }

    /// A directory for whatever belongs to this containerd's life.
    pub fn directory(&self) -> &Path {
        self.scratch.path()
    }

    /// The namespace of [`Containerd::ctr`].
    pub fn namespace(&self) -> &str {
        self.scratch.namespace()
    }

    /// What is left on the machine outside [`Containerd::directory`], one line each.
    pub fn leftovers(&self) -> Vec<String> {
        self.scratch.leftovers()
    }

    /// Ends everything and removes it, or says what remains.
    pub fn remove(self) -> Result<()> {
        self.process.kill()?;
        self.scratch.remove()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory().join("containerd.log")).unwrap_or_default()
    }

    /// Where the content store keeps a blob.
    pub fn blob(&self, digest: &str) -> PathBuf {
        self.directory()
            .join("root/io.containerd.content.v1.content/blobs")
            .join(digest.replacen(':', "/", 1))
    }

    /// `ctr` at this containerd and in its namespace.
    pub fn command(&self) -> Command {
        self.command_in(self.namespace())
    }

    /// `ctr` in an additional namespace; it must begin with [`Containerd::namespace`] and `-`.
    pub fn command_in(&self, namespace: &str) -> Command {
        let mut command = Command::new("ctr");
        command
            .arg("--address")
            .arg(self.address())
            .args(["--namespace", namespace]);
        command.stdin(Stdio::null());
        command
    }

    /// Runs `ctr` to its end and gives its output; fails if it failed.
    pub fn ctr<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<String> {
        output(self.command().args(arguments))
    }

    /// Brings an image into the content store and unpacks it.
    pub fn import(&self, image: &Image) -> Result<()> {
        self.import_in(self.namespace(), image)
    }

    /// The same in an additional namespace, see [`Containerd::command_in`].
    pub fn import_in(&self, namespace: &str, image: &Image) -> Result<()> {
        let mut command = self.command_in(namespace);
        command.args(["images", "import", "-"]);
        feed(&mut command, &image.archive()?)
            .with_context(|| format!("cannot import {}", image.reference))
    }

    /// Runs a container to its end, removes it, and fails if its program failed.
    pub fn run_ok(&self, run: &Run) -> Result<String> {
        output(self.run_command(run).args(["--rm"]).args(run.tail()))
    }

    /// Starts a container and leaves it running.
    pub fn start_container(&self, run: &Run) -> Result<()> {
        let said = format!("file://{}", self.said_file(&run.id).display());
        output(
            self.run_command(run)
                .args(["--detach", "--log-uri", &said])
                .args(run.tail()),
        )
        .map(drop)
    }

    /// What the init of a container of [`Containerd::start_container`] has printed.
    pub fn said(&self, container: &str) -> String {
        fs::read_to_string(self.said_file(container)).unwrap_or_default()
    }

    fn said_file(&self, container: &str) -> PathBuf {
        self.directory().join("said").join(container)
    }

    /// Puts a process into a running container and waits for its end.
    pub fn exec<S: AsRef<OsStr>>(
        &self,
        container: &str,
        exec_id: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<String> {
        output(
            self.command()
                .args(["tasks", "exec", "--fifo-dir"])
                .arg(self.directory().join("fifo"))
                .args(["--exec-id", exec_id, container])
                .args(arguments),
        )
    }

    /// Kills a container's task and removes both.
    pub fn delete(&self, container: &str) -> Result<()> {
        self.ctr(["tasks", "delete", "--force", container])?;
        self.ctr(["containers", "delete", container]).map(drop)
    }

    /// The host's process id of a container's init.
    pub fn task_pid(&self, container: &str) -> Result<u32> {
        // As the shim notes it for containerd; asking ctr takes seconds in an emulated machine.
        let bundles = self.directory().join("state/io.containerd.runtime.v2.task");
        let file = bundles
            .join(self.namespace())
            .join(container)
            .join("init.pid");
        fs::read_to_string(&file)
            .ok()
            .and_then(|pid| pid.trim().parse().ok())
            .with_context(|| format!("no pid in {}", file.display()))
    }

    fn run_command(&self, run: &Run) -> Command {
        let namespace = run.namespace.as_deref().unwrap_or(self.namespace());
        let mut command = self.command_in(namespace);
        command
            .args(["run", "--fifo-dir"])
            .arg(self.directory().join("fifo"))
            .args(&run.flags);
        if let Some(runtime) = self.runtime.get() {
            command.args(["--runc-binary", runtime]);
        }
        command
    }
}

/// The CRI plugin's part, with everything in the directory that it would have elsewhere.
fn cri_config(pause: &str, directory: &Path) -> String {
    let directory = directory.display();
    format!(
        r#"[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{directory}/cni"
conf_dir = "{directory}/cni"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
Root = "{directory}/runc"
"#
    )
}

/// What to run, as `ctr run` takes it.
#[derive(Clone, Debug)]
pub struct Run {
    image: String,
    /// The container's id.
    pub id: String,
    arguments: Vec<String>,
    flags: Vec<String>,
    namespace: Option<String>,
}

impl Run {
    /// A container `id` from `image` (a reference, or a directory with the flag `--rootfs`) that
    /// runs the image's own command.
    pub fn new(image: impl Into<String>, id: impl Into<String>) -> Self {
        Self {
            image: image.into(),
            id: id.into(),
            arguments: Vec::new(),
            flags: Vec::new(),
            namespace: None,
        }
    }

    /// Runs this instead of the image's command.
    #[must_use]
    pub fn arguments<S: Into<String>>(mut self, list: impl IntoIterator<Item = S>) -> Self {
        self.arguments = list.into_iter().map(Into::into).collect();
        self
    }

    /// Runs a line of shell.
    #[must_use]
    pub fn shell(self, line: &str) -> Self {
        self.arguments(["/bin/sh", "-c", line])
    }

    /// Further options of `ctr run`.
    #[must_use]
    pub fn flags<S: Into<String>>(mut self, list: impl IntoIterator<Item = S>) -> Self {
        self.flags.extend(list.into_iter().map(Into::into));
        self
    }

    /// In another namespace than the containerd's usual one.
    #[must_use]
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    fn tail(&self) -> impl Iterator<Item = &String> {
        [&self.image, &self.id].into_iter().chain(&self.arguments)
    }
}
