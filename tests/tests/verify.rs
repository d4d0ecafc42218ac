//! What a running container differs in from its image, whether an image's blobs are whole, and where
//! images ran.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tests::{
    alerts::text,
    containerd::Run,
    daemon::NODE,
    image::{self, Image, PROBE},
    layer::{Layer, digest},
    process::{finish, output},
    require,
    world::{BASE, World},
};

const SHOP: &str = "example.invalid/shop:1";
/// Says `done` when it has changed what there is to be found.
const LINE: &str = "cp /bin/busybox /tmp/sh; /tmp/sh true; echo salt >> /opt/tool; rm /opt/gone; \
    chmod 4755 /opt/set; mkdir /tmp/d; ln -s /etc /tmp/d/link; rm /opt/link; ln -s other /opt/link; \
    echo done; while :; do sleep 1; done";

fn shop() -> Result<Image> {
    let layer = Layer::new()
        .dir("opt")
        .program("opt/tool", PROBE)
        .program("opt/set", b"#!/bin/sh")
        .program("opt/gone", b"#!/bin/sh")
        .symlink("opt/link", "tool");
    let layers = [image::base_layer()?, layer];
    Image::build(SHOP, &layers, &image::base_config())
}

/// The lines of `monitorctl container verify` as `VERDICT PATH`, and the last one.
fn verify(world: &World, container: &str) -> Result<(Vec<String>, Vec<Value>, Value)> {
    let mut lines = world
        .daemon
        .monitorctl(["container", "verify", container])?;
    let last = lines.pop().context("no line")?;
    let last = last.get("verified").context("no last line")?.clone();
    let said = lines.iter().map(|line| {
        let word = |pointer| text(line, pointer).unwrap_or("");
        format!("{} {}", word("/verdict"), word("/path"))
    });
    Ok((said.collect(), lines.clone(), last))
}

/// The same is in the statement that `monitorctl container attest` signs.
fn attested(world: &World, container: &str, lines: &[Value], last: &Value) -> Result<()> {
    let key = world.containerd.directory().join("key.pem");
    let mut make = Command::new("openssl");
    output(
        make.args(["genpkey", "-algorithm", "ed25519", "-out"])
            .arg(&key),
    )?;
    let key = key.to_str().context("a path in UTF-8")?;
    let line = ["container", "attest", container, "--signing-key", key];
    let said = world.daemon.monitorctl(line)?;
    let payload = said.first().and_then(|envelope| text(envelope, "/payload"));
    let payload = STANDARD.decode(payload.context("no payload")?)?;
    let statement: Value = serde_json::from_slice(&payload)?;
    let subject = text(&statement, "/subject/0/digest/sha256");
    let manifest = text(last, "/image/manifest_digest");
    ensure!(
        subject == manifest.and_then(|digest| digest.strip_prefix("sha256:"))
            && statement.pointer("/predicate/differences") == Some(&json!(lines))
            && statement.pointer("/predicate/comparison/image") == last.pointer("/image")
            && text(&statement, "/predicate/node") == Some(NODE),
        "{statement:#}"
    );
    let executed = statement.pointer("/predicate/executed/executables");
    let executed = executed.and_then(Value::as_array).context("nothing ran")?;
    let has = |path: &str, verdict: &str, bytes: Option<&[u8]>| {
        executed.iter().any(|one| {
            text(one, "/path") == Some(path)
                && text(one, "/verdict") == Some(verdict)
                && bytes.is_none_or(|bytes| {
                    text(one, "/sha256") == digest(bytes).strip_prefix("sha256:")
                })
        })
    };
    ensure!(
        has("/bin/busybox", "image", None) && has("/tmp/sh", "added", None),
        "{executed:#?}"
    );
    Ok(())
}

fn started(world: &World, image: &str, id: &str, line: &str) -> Result<()> {
    world
        .containerd
        .start_container(&Run::new(image, id).shell(line))?;
    tests::poll::until(
        "the container to have changed",
        tests::poll::PATIENCE,
        || {
            let said = world.containerd.said(id);
            ensure!(said.contains("done"), "it said {said}");
            Ok(())
        },
    )
}

#[test]
fn every_difference_of_a_running_container_is_told() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let world = World::start_after(|containerd| containerd.import(&shop()?))?;
    started(&world, SHOP, "changed", LINE)?;
    let (said, lines, last) = verify(&world, "changed")?;
    let expect = [
        "removed /opt/gone",
        "modified /opt/link",
        "metadata_changed /opt/set",
        "modified /opt/tool",
        "added /tmp/d",
        "added /tmp/d/link",
        "added /tmp/sh",
    ];
    ensure!(said == expect, "{said:#?} {last:#}");
    let tool = lines.get(3).context("a line")?;
    let expected = digest(PROBE);
    ensure!(
        text(tool, "/expected_sha256") == expected.strip_prefix("sha256:")
            && text(tool, "/seen_sha256").is_some()
            && text(tool, "/layer").is_some(),
        "{tool:#}"
    );
    let set = lines.get(2).and_then(|line| text(line, "/details"));
    ensure!(
        set.is_some_and(|said| said.contains("mode 4755 instead of 0755")),
        "{set:?}"
    );
    ensure!(
        text(&last, "/image/evidence") == Some("verified"),
        "{last:#}"
    );
    ensure!(
        last.pointer("/differences/added") == Some(&json!(3)),
        "{last:#}"
    );
    attested(&world, "changed", &lines, &last)?;

    // What was edited on the host where a layer was unpacked is found as well.
    started(
        &world,
        BASE,
        "clean",
        "echo done; while :; do sleep 1; done",
    )?;
    let (said, _, last) = verify(&world, "clean")?;
    ensure!(said.is_empty(), "{said:?} {last:#}");
    let snapshots = world
        .containerd
        .directory()
        .join("root/io.containerd.snapshotter.v1.overlayfs/snapshots");
    let mut edited = 0;
    for snapshot in fs::read_dir(&snapshots)? {
        let file = snapshot?.path().join("fs/bin/probe");
        if file.is_file() {
            fs::write(&file, "edited")?;
            edited += 1;
        }
    }
    ensure!(
        edited > 0,
        "no unpacked layer below {}",
        snapshots.display()
    );
    let (said, _, _) = verify(&world, "clean")?;
    ensure!(said == ["modified /bin/probe"], "{said:?}");
    world.daemon.check_alive()
}

#[test]
fn blobs_of_an_image_are_checked_again() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let image = shop()?;
    let world = World::start_after(|containerd| containerd.import(&image))?;
    let states = |lines: &[Value]| -> Vec<String> {
        let words = lines.iter().map(|line| {
            let word = |pointer| text(line, pointer).unwrap_or("");
            format!("{} {}", word("/type"), word("/state"))
        });
        words.collect()
    };
    let lines = world.daemon.monitorctl(["image", "verify", SHOP])?;
    let whole = ["manifest", "config", "layer", "layer"].map(|kind| format!("{kind} verified"));
    ensure!(states(&lines) == whole, "{lines:#?}");

    let [corrupt, missing] = image.layers.as_slice() else {
        anyhow::bail!("not two layers");
    };
    let path = world.containerd.blob(&corrupt.blob);
    let mut bytes = fs::read(&path)?;
    *bytes.last_mut().context("an empty blob")? ^= 1;
    fs::remove_file(&path)?;
    fs::write(&path, bytes)?;
    fs::remove_file(world.containerd.blob(&missing.blob))?;
    let mut verify = world.daemon.monitorctl_command()?;
    let output = finish(verify.args(["image", "verify", SHOP, "-o", "json"]))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<Value> = said
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let expect = [
        "manifest verified",
        "config verified",
        "layer failed",
        "layer missing",
    ];
    ensure!(states(&lines) == expect, "{lines:#?}");
    ensure!(output.status.code() == Some(1), "{:?}", output.status);
    Ok(())
}

#[test]
fn usage_tells_which_image_ran_when() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let world = World::start()?;
    let id = world.unique("used");
    started(&world, BASE, &id, "echo done; while :; do sleep 1; done")?;
    let usage = || -> Result<Value> {
        let lines = world.daemon.monitorctl(["image", "usage"])?;
        let is_base =
            |line: &Value| text(line, "/manifest_digest") == Some(&world.base.manifest_digest);
        lines.into_iter().find(is_base).context("not in use")
    };
    let name = json!(format!("{}/{id}", world.containerd.namespace()));
    tests::poll::until("the image to be in use", tests::poll::PATIENCE, || {
        let used = usage()?;
        let running = used.get("running").and_then(Value::as_array);
        let is_named = running.is_some_and(|running| running.contains(&name));
        ensure!(is_named, "{used:#}");
        ensure!(
            used.pointer("/references/0") == Some(&json!(BASE)),
            "{used:#}"
        );
        ensure!(
            text(&used, "/first_seen") < text(&used, "/last_seen"),
            "{used:#}"
        );
        Ok(())
    })?;
    world.containerd.delete(&id)?;
    tests::poll::until("the container to be gone", tests::poll::PATIENCE, || {
        let used = usage()?;
        let running = used.get("running").and_then(Value::as_array);
        ensure!(
            running.is_some_and(|running| !running.contains(&name)),
            "{used:#}"
        );
        ensure!(
            used.get("containers")
                .is_some_and(|count| count.as_u64() > Some(0)),
            "{used:#}"
        );
        Ok(())
    })
}
