//! Orders of rollbacks, and what they must have done.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{
    alerts::text,
    containerd::Containerd,
    daemon::Daemon,
    image::Image,
    poll::{Deadline, PATIENCE, until},
    process::finish,
};

/// What orders are given to.
#[derive(Clone, Copy, Debug)]
pub struct Orders<'a> {
    /// Whose state is in `monitord` within containerd's directory.
    pub daemon: &'a Daemon,
    /// Where the containers are.
    pub containerd: &'a Containerd,
}

impl Orders<'_> {
    fn command(&self, words: &[&str]) -> Result<Command> {
        let mut command = self.daemon.monitorctl_command()?;
        command.arg("rollback").args(words).args(["-o", "json"]);
        Ok(command)
    }

    /// `monitorctl rollback`: its exit status, and what it printed or said.
    pub fn rollback(&self, words: &[&str]) -> Result<(i32, Value, String)> {
        let done = finish(&mut self.command(words)?)?;
        let printed = String::from_utf8_lossy(&done.stdout).into_owned();
        let printed = printed.lines().last().unwrap_or("null");
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        let status = done.status.code().context("killed")?;
        Ok((status, serde_json::from_str(printed)?, said))
    }

    /// Has a plan made; its id.
    pub fn plan(&self, words: &[&str]) -> Result<String> {
        let (status, plan, said) = self.rollback(&[&["plan"], words].concat())?;
        ensure!(status == 0, "{status}: {said}");
        Ok(text(&plan, "/id").context("no id")?.to_owned())
    }

    /// `monitorctl rollback`, while it goes on.
    pub fn begin(&self, words: &[&str]) -> Result<Child> {
        let mut command = self.command(words)?;
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Ok(command.spawn()?)
    }

    /// The file that an order is kept in.
    pub fn file(&self, id: &str) -> PathBuf {
        let directory = self.containerd.directory();
        directory.join(format!("monitord/state/respond/orders/{id}.json"))
    }

    /// Kills the daemon once an order's file says that a step is made; which one it said last.
    pub fn kill_at(&self, id: &str, step: &str) -> Result<String> {
        let file = self.file(id);
        let deadline = Deadline::after(PATIENCE);
        let step_of = || -> Option<String> {
            let order: Value = serde_json::from_slice(&fs::read(&file).ok()?).ok()?;
            let has = |it: &Value| it.get(0).and_then(Value::as_str) == Some(step);
            let begun = order.get("begun")?.as_array()?.iter().any(has);
            begun.then(|| text(&order, "/step").unwrap_or("-").to_owned())
        };
        while step_of().is_none() {
            if deadline.passed() {
                bail!("step {step} did not come: {}", self.daemon.log());
            }
            // Steps are shorter than the usual pause.
            thread::sleep(Duration::from_micros(200));
        }
        self.daemon.kill()?;
        step_of().context("the order is gone")
    }

    /// An order as the daemon tells it.
    pub fn order(&self, id: &str) -> Result<Value> {
        let all = self.daemon.monitorctl(["rollback", "status"])?;
        let mut all = all.into_iter();
        all.find(|it| text(it, "/id") == Some(id))
            .with_context(|| format!("no order {id}"))
    }

    /// Waits until an order has ended, in this state and by one daemon after the first.
    pub fn wait_resumed(&self, id: &str, state: &str) -> Result<Value> {
        let order = until("the order to end", PATIENCE, || {
            let order = self.order(id)?;
            ensure!(text(&order, "/state") != Some("running"), "{order:#}");
            Ok(order)
        })?;
        ensure!(text(&order, "/state") == Some(state), "{order:#}");
        ensure!(
            order.pointer("/resumed") == Some(&Value::from(1)),
            "{order:#}"
        );
        Ok(order)
    }

    /// Waits until the daemon knows by proof of which image a running container is.
    pub fn wait_known(&self, id: &str, image: &Image) -> Result<()> {
        until("the container to be proven", PATIENCE, || {
            let shown = self.daemon.monitorctl(["container", "show", id])?;
            let shown = shown.first().context("no container")?;
            ensure!(
                text(shown, "/image/identity") == Some("proven")
                    && text(shown, "/image/manifest_digest")
                        == Some(image.manifest_digest.as_str())
                    && shown.pointer("/pid").is_some_and(Value::is_number),
                "{shown}"
            );
            Ok(())
        })
    }

    /// What containerd says of a container.
    pub fn info(&self, id: &str) -> Result<Value> {
        let info = self.containerd.ctr(["containers", "info", id])?;
        Ok(serde_json::from_str(&info)?)
    }

    /// Name of the snapshot below a container's own.
    fn below(&self, id: &str) -> Result<String> {
        let info = self.info(id)?;
        let key = text(&info, "/SnapshotKey").context("no snapshot")?;
        let info = self.containerd.ctr(["snapshots", "info", key])?;
        let info: Value = serde_json::from_str(&info)?;
        Ok(text(&info, "/Parent").context("no parent")?.to_owned())
    }

    /// Whether a container's task runs.
    pub fn is_up(&self, id: &str) -> Result<bool> {
        let tasks = self.containerd.ctr(["tasks", "list"])?;
        let mut tasks = tasks.lines().map(|line| line.split_whitespace());
        Ok(tasks.any(|mut fields| fields.next() == Some(id) && fields.nth(1) == Some("RUNNING")))
    }

    /// Fails unless the container is of this image, by the snapshot that its own lies on, and up, or
    /// not.
    pub fn expect(&self, id: &str, image: &Image, is_up: bool) -> Result<()> {
        ensure!(
            self.below(id)? == image.chain_id,
            "{id} is of another image"
        );
        ensure!(self.is_up(id)? == is_up, "{id} up: {}", !is_up);
        Ok(())
    }
}
