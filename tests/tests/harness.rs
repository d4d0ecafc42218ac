//! The harness itself: what the other tests rely on.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use tests::{
    containerd::{Containerd, Run},
    image::{self, Config, Image},
    layer::{Attributes, Layer, digest},
    require,
};

const REFERENCE: &str = "example.invalid/base:1";

#[test]
fn a_container_runs_the_image_as_described() -> Result<()> {
    require!(Root, Containerd, Busybox);
    let containerd = Containerd::start()?;
    let secret = Attributes {
        mode: 0o640,
        uid: 7,
        gid: 8,
        xattrs: Vec::new(),
    };
    let tagged = Attributes {
        xattrs: vec![("user.note".to_owned(), b"kept".to_vec())],
        ..Attributes::default()
    };
    let lower = Layer::new()
        .dir("data")
        .file("data/owned", b"owned", secret)
        .file("data/tagged", b"tagged", tagged)
        .file("data/gone", b"gone", Attributes::default())
        .hard_link("data/second", "data/owned")
        .dir("full")
        .file("full/below", b"below", Attributes::default());
    let upper = Layer::new()
        .plain()
        .whiteout("data/gone")
        .dir("full")
        .opaque("full")
        .file("full/above", b"above", Attributes::default());
    let config = Config {
        entrypoint: vec!["/bin/sh".to_owned(), "-c".to_owned()],
        cmd: vec!["cd data; ls; ls -ln owned; cat second; ls /full; echo $WORD".to_owned()],
        env: vec!["PATH=/bin".to_owned(), "WORD=said".to_owned()],
        ..Config::default()
    };
    let image = Image::build(REFERENCE, &[image::base_layer()?, lower, upper], &config)?;
    containerd.import(&image)?;

    let said = containerd.run_ok(&Run::new(REFERENCE, "one"))?;
    let lines: Vec<&str> = said.lines().collect();
    let [owned, second, tagged, list, after @ ..] = lines.as_slice() else {
        anyhow::bail!("too few lines: {said}");
    };
    assert_eq!([*owned, *second, *tagged], ["owned", "second", "tagged"]);
    ensure!(list.starts_with("-rw-r-----    2 7        8"), "{list}");
    assert_eq!(after, ["ownedabove", "said"]);

    let images = containerd.ctr(["images", "list"])?;
    ensure!(images.contains(&image.index_digest), "{images}");
    let snapshots = containerd.ctr(["snapshots", "list"])?;
    ensure!(snapshots.contains(&image.chain_id), "{snapshots}");
    for blob in [&image.manifest_digest, &image.config_digest]
        .into_iter()
        .chain(image.layers.iter().map(|layer| &layer.blob))
    {
        assert_eq!(&digest(&fs::read(containerd.blob(blob))?), blob);
    }
    Ok(())
}

#[test]
fn the_probe_executes_in_every_way() -> Result<()> {
    require!(Root, Containerd, Busybox);
    let containerd = Containerd::start()?;
    containerd.import(&image::base(REFERENCE)?)?;
    let check = |id: &str, arguments: &[&str], expect: &str| -> Result<()> {
        let run =
            Run::new(REFERENCE, id).arguments(["/bin/probe"].iter().chain(arguments).copied());
        let said = containerd.run_ok(&run)?;
        ensure!(
            said == expect,
            "{arguments:?} said {said:?}, not {expect:?}"
        );
        Ok(())
    };
    check("sleep", &["sleep-ms", "1"], "")?;
    check("print", &["print", "PATH"], "/bin\n")?;
    check("exec", &["exec", "/bin/echo", "a"], "a\n")?;
    check("twice", &["exec-twice", "/bin/echo", "b"], "b\n")?;
    check("memfd", &["memfd-exec", "/bin/echo", "c"], "c\n")?;
    check(
        "deleted",
        &["deleted-exec", "/tmp/x", "print", "PATH"],
        "/bin\n",
    )?;
    check(
        "copy",
        &["run-copy", "/tmp/x", "salt", "exec", "/bin/ls", "/tmp"],
        "x\n",
    )?;

    let copied = containerd.run_ok(
        &Run::new(REFERENCE, "salt").shell("probe run-copy /tmp/x salt sleep-ms 0; cat /tmp/x | md5sum; { cat /bin/probe; echo -n salt; } | md5sum"),
    )?;
    let sums: Vec<&str> = copied.lines().collect();
    ensure!(sums.len() == 2 && sums.first() == sums.last(), "{copied}");
    Ok(())
}

#[test]
fn containers_outlive_containerd() -> Result<()> {
    require!(Root, Containerd, Busybox);
    let containerd = Containerd::start()?;
    containerd.import(&image::base(REFERENCE)?)?;
    let run = Run::new(REFERENCE, "sleeper").arguments(["/bin/sleep", "600"]);
    containerd.start_container(&run)?;
    let pid = containerd.task_pid("sleeper")?;

    containerd.kill()?;
    ensure!(
        containerd.ctr(["version"]).is_err(),
        "a killed containerd answers"
    );
    containerd.restart()?;

    assert_eq!(containerd.task_pid("sleeper")?, pid);
    assert_eq!(
        containerd.exec("sleeper", "e", ["/bin/echo", "here"])?,
        "here\n"
    );
    containerd.delete("sleeper")
}

#[test]
fn nothing_is_left_behind() -> Result<()> {
    require!(Root, Containerd, Busybox);
    let containerd = Containerd::start()?;
    containerd.import(&image::base(REFERENCE)?)?;
    for id in ["one", "two"] {
        let run = Run::new(REFERENCE, id).arguments(["/bin/sleep", "600"]);
        containerd.start_container(&run)?;
    }
    let other = format!("{}-other", containerd.namespace());
    containerd
        .command_in(&other)
        .args(["namespaces", "create", &other])
        .output()?;
    let left = containerd.leftovers();
    ensure!(
        left.len() >= 6,
        "containers, shims and cgroups should be seen: {left:?}"
    );
    let directory = containerd.directory().to_owned();
    let scratch_name = containerd.namespace().to_owned();
    // As when the test had been killed: containerd itself can no longer help.
    containerd.kill()?;
    containerd.remove()?;

    ensure!(!directory.exists());
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(!mounts.contains(&scratch_name), "{mounts}");
    let found = Command::new("find")
        .args(["/sys/fs/cgroup", "/run/containerd/runc", "-name"])
        .arg(format!("{scratch_name}*"))
        .output()?;
    ensure!(found.stdout.is_empty(), "{found:?}");
    Ok(())
}

#[test]
fn the_next_run_sweeps_what_a_killed_one_left() -> Result<()> {
    require!(Root);
    // A directory whose owner is gone, and a process started with its path.
    let mut owner = Command::new("sleep").arg("600").spawn()?;
    let start = fs::read_to_string(format!("/proc/{}/stat", owner.id()))?
        .split_ascii_whitespace()
        .nth(21)
        .context("a start time")?
        .to_owned();
    let name = format!("monitor-test-{}-{start}-0", owner.id());
    let directory = std::env::temp_dir().join(&name);
    fs::create_dir(&directory)?;
    let mut left = Command::new("sleep")
        .arg0(directory.join("program"))
        .arg("600")
        .stdin(Stdio::null())
        .spawn()?;

    tests::scratch::sweep();
    ensure!(
        directory.exists() && left.try_wait()?.is_none(),
        "swept while its owner lives"
    );
    owner.kill()?;
    owner.wait()?;
    tests::scratch::sweep();
    ensure!(!directory.exists(), "not swept");
    ensure!(!left.wait()?.success());
    Ok(())
}
