//! Whose process it is, and what the host or another container does.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{
    Technique,
    image::{self, RUNTIME},
    shell,
    stage::{Stage, cgroup_root},
    staged,
};
use crate::{
    image::{BUSYBOX, PROBE},
    process::output,
};

pub(super) const ROWS: &[Technique] = &[
    staged(
        "put in from outside",
        "Has the runtime start an added program in a running container.",
        |stage| {
            stage.paused("program /tmp/x", ":", |_| {
                let containerd = &stage.world().containerd;
                let words = ["/tmp/x", "true"];
                containerd.exec(stage.id(), "outside", words).map(drop)
            })
        },
    )
    .raises(&["exec_added /tmp/x"]),
    staged(
        "setns from the host",
        "Enters the container's mount namespace from the host, and not its cgroup.",
        |stage| {
            stage.paused("program /tmp/x", ":", |paused| {
                let pid = paused.pid.to_string();
                let words = ["nsenter", "-t", &pid, "-m", "/tmp/x", "true"];
                output(Command::new(BUSYBOX).args(words)).map(drop)
            })
        },
    )
    .raises(&["exec_added /tmp/x"]),
    staged(
        "moved to a cgroup of the host",
        "Moves a process out of the container's cgroup before it executes.",
        |stage| {
            stage.paused("program /tmp/x", "exec /tmp/x true", |paused| {
                paused.move_to(&cgroup_root()?)
            })
        },
    )
    .raises(&["exec_added /tmp/x"]),
    staged(
        "moved to the cgroup of another container",
        "Moves a process into another container's cgroup before it executes.",
        |stage| {
            stage.other()?.paused(":", ":", |bystander| {
                stage.paused("program /tmp/x", "exec /tmp/x true", |paused| {
                    paused.move_to(&bystander.cgroup()?)
                })
            })
        },
    )
    .raises(&["exec_added /tmp/x"]),
    staged(
        "/proc/PID/root of another container",
        "Executes an added program of another container through its process's root.",
        |stage| {
            stage.other()?.paused("program /tmp/x", ":", |paused| {
                let namespace = format!("pid:/proc/{}/ns/pid", paused.pid);
                let flags = ["--privileged", "--with-ns", &namespace];
                stage.run(&stage.shell("/proc/1/root/tmp/x true").flags(flags))
            })
        },
    )
    .raises(&["exec_volume /tmp/x"]),
    shell(
        "nested container runtime",
        "Starts a container in the container with a runtime of the image's own.",
        "program /bundle/rootfs/program; runc --root /tmp/runc run --bundle /bundle nested",
    )
    .image(RUNTIME)
    .flags(&[
        "--privileged",
        "--mount",
        "type=bind,src=/sys/fs/cgroup,dst=/sys/fs/cgroup,options=rbind:rw",
    ])
    .raises(&["exec_added /program"]),
    staged(
        "host edit of the upper directory",
        "Changes a verified program of a running container in the directory where its changes lie.",
        |stage| {
            let first = "cp /opt/tool /tmp/same; cat /tmp/same > /opt/tool; /opt/tool true";
            stage.paused(first, "/opt/tool true", |paused| {
                stage.world().daemon.wait_all_judged()?;
                append(&paused.upper()?.join("opt/tool"))
            })
        },
    )
    .raises(&["exec_modified /opt/tool", "image_file_modified /opt/tool"]),
    staged(
        "host drop into the upper directory",
        "Puts a program into the directory where a running container's changes lie.",
        |stage| {
            stage.paused("mkdir /tmp/d", "/tmp/d/x true", |paused| {
                let upper = paused.upper()?;
                let to = upper.join("tmp/d/x");
                fs::write(&to, [PROBE, b"salt"].concat())?;
                output(Command::new(BUSYBOX).args(["chmod", "755"]).arg(to)).map(drop)
            })
        },
    )
    .raises(&["exec_added /tmp/d/x"]),
    staged(
        "host edit of a lower directory",
        "Changes a verified program in the snapshot of a layer that the container uses.",
        |stage| {
            let reference = "example.invalid/spoilt:1";
            let world = stage.world();
            world.containerd.import(&image::of_its_own(reference)?)?;
            let spoilt = Stage::new(world, stage.id(), reference, &[])?;
            spoilt.paused("/opt/own true", "/opt/own true", |paused| {
                world.daemon.wait_all_judged()?;
                append(&paused.lower()?.join("opt/own"))
            })
        },
    )
    .raises(&["exec_modified /opt/own"]),
];

fn append(path: &Path) -> Result<()> {
    OpenOptions::new()
        .append(true)
        .open(path)
        .and_then(|mut file| file.write_all(b"salt"))
        .with_context(|| format!("cannot append to {}", path.display()))
}
