//! What the sensor must say of processes.
use std::process;

use anyhow::{Context as _, Result, bail, ensure};

use super::{BUSYBOX, exec_of, execs, namespace, run_in};
use crate::{container::Container, inside::Entry, observer::Observer};

pub fn a_process_of_a_container_has_its_parent_there(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    let events = container.shell("/bin/busybox true child; true")?;
    let shell = execs(&events).next().context("no exec was seen")?;
    let child = exec_of(&events, "child")?;
    let host = namespace("/proc/self/ns/mnt")?;
    let own = child.used.process.mount_namespace;
    ensure!(
        u64::from(own) != host,
        "the child is in the host's namespace"
    );
    equal!(child.used.process.parent_mount_namespace, own);
    equal!(child.used.process.parent_pid, shell.used.process.pid);
    equal!(shell.used.process.mount_namespace, own);
    equal!(
        child.used.process.pid_namespace,
        shell.used.process.pid_namespace
    );
    ensure!(
        u64::from(child.used.process.pid_namespace) != namespace("/proc/self/ns/pid")?,
        "the child is in the host's pid namespace"
    );
    Ok(())
}

pub fn a_process_put_in_from_outside_has_its_parent_outside(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    let step = ["run", BUSYBOX, "true", "outside"];
    let events = run_in(&container, Entry::Direct, &step)?;
    let exec = exec_of(&events, "outside")?;
    equal!(exec.used.process.parent_pid, process::id());
    let host = namespace("/proc/self/ns/mnt")?;
    equal!(u64::from(exec.used.process.parent_mount_namespace), host);
    ensure!(
        u64::from(exec.used.process.mount_namespace) != host,
        "the process is in the host's namespace"
    );
    equal!(
        u64::from(exec.used.process.pid_namespace),
        namespace("/proc/self/ns/pid")?
    );
    Ok(())
}

pub fn a_fork_is_told_with_both_processes(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    let events = container.shell("/bin/busybox true child; true")?;
    let shell = execs(&events).next().context("no exec was seen")?;
    let child = exec_of(&events, "child")?;
    let forks = observer.forks(|fork| fork.child == child.used.process.id());
    let [fork] = &forks[..] else {
        bail!("not one fork: {forks:?}");
    };
    equal!(fork.parent, shell.used.process.id());
    Ok(())
}
