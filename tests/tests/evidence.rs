//! How strong the evidence of an image's contents is, and what is found by each.

use std::{collections::BTreeSet, fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::{
    alerts::{summary, text, words},
    containerd::{Containerd, Run},
    image::{self, Image, PROBE},
    layer::{Layer, digest},
    poll::{PATIENCE, until},
    require,
    world::World,
};

const SHOP: &str = "example.invalid/shop:1";
/// Runs the image's own program, one that the container brings along, and one that it changes.
const LINE: &str = "/opt/tool sleep-ms 0; probe run-copy /tmp/x salt sleep-ms 0; \
    cp /bin/busybox /tmp/sh; /tmp/sh true; echo salt >> /opt/changed; /opt/changed sleep-ms 0";

fn shop() -> Result<Image> {
    let layer = Layer::new()
        .dir("opt")
        .program("opt/tool", PROBE)
        .program("opt/changed", PROBE)
        .program("opt/gone", PROBE);
    let top = Layer::new()
        .whiteout("opt/gone")
        .program("opt/other", b"other");
    let layers = [image::base_layer()?, layer, top];
    Image::build(SHOP, &layers, &image::base_config())
}

/// Removes the layer blobs from the content store, as `discard_unpacked_layers` does.
fn discard(containerd: &Containerd, image: &Image) -> Result<()> {
    for layer in &image.layers {
        containerd.ctr(["content", "rm", layer.blob.as_str()])?;
    }
    Ok(())
}

fn check(world: &World, evidence: &str) -> Result<()> {
    let alerts = world.raised_once_known(SHOP, LINE, evidence)?;
    let raised = words(&alerts, ["/kind", "/file/path", "/severity"]);
    let expect = [
        ["exec_added", "/tmp/sh", "medium"],
        ["exec_added", "/tmp/x", "critical"],
        ["exec_modified", "/opt/changed", "critical"],
        ["image_file_modified", "/opt/changed", "high"],
    ];
    let said: Vec<_> = alerts.iter().map(summary).collect();
    ensure!(raised == expect, "{said:?}");
    for alert in &alerts {
        ensure!(
            text(alert, "/image/evidence") == Some(evidence)
                && text(alert, "/image/identity") == Some("proven"),
            "not {evidence}: {alert:#}"
        );
        if text(alert, "/kind") == Some("exec_modified") {
            let expected = digest(PROBE);
            let expected = expected.strip_prefix("sha256:");
            ensure!(
                text(alert, "/file/expected_sha256") == expected,
                "{alert:#}"
            );
        }
    }
    Ok(())
}

/// What the inventory says of the image's evidence.
fn inventory(world: &World, image: &Image) -> Result<String> {
    let images = world.daemon.monitorctl(["image", "list"])?;
    let found = images
        .iter()
        .find(|found| text(found, "/manifest_digest") == Some(&image.manifest_digest))
        .context("the image is not listed")?;
    Ok(text(found, "/evidence").unwrap_or("none").to_owned())
}

#[test]
fn an_image_whose_blobs_were_discarded_is_judged_by_what_was_unpacked() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let image = shop()?;
    let world = World::start_after(|containerd| {
        containerd.import(&image)?;
        discard(containerd, &image)
    })?;
    check(&world, "unpacked")?;
    let registry = world.daemon.status()?.get("registry").cloned();
    ensure!(registry == Some(Value::Null), "unasked: {registry:?}");
    let stays = Run::new(SHOP, "stays").shell("while :; do sleep 1; done");
    world.containerd.start_container(&stays)?;
    until("the inventory to say unpacked", PATIENCE, || {
        let said = inventory(&world, &image)?;
        ensure!(said == "unpacked", "it says {said}");
        let shown = world.daemon.monitorctl(["container", "show", "stays"])?;
        let shown = shown.first().context("no container")?;
        ensure!(
            text(shown, "/image/evidence") == Some("unpacked"),
            "{shown:#}"
        );
        Ok(())
    })?;

    // A file that was used is edited where it was unpacked.
    world
        .containerd
        .exec("stays", "before", ["/opt/tool", "sleep-ms", "0"])?;
    let tool = unpacked(&world.containerd, "opt/tool")?;
    let mut bytes = fs::read(&tool)?;
    bytes.extend_from_slice(b"edited");
    fs::write(&tool, &bytes)?;
    world
        .containerd
        .exec("stays", "after", ["/opt/tool", "sleep-ms", "0"])?;
    world.settle()?;
    let alerts = world.alerts.of("stays");
    let [alert] = alerts.as_slice() else {
        anyhow::bail!("{:?}", alerts.iter().map(summary).collect::<Vec<_>>());
    };
    ensure!(text(alert, "/kind") == Some("exec_modified"), "{alert:#}");
    let said = text(alert, "/message").unwrap_or_default();
    ensure!(said.contains("edited on the host"), "{said}");
    bytes.truncate(PROBE.len());
    fs::write(&tool, &bytes)?;

    // The blobs come back.
    world.containerd.import(&image)?;
    until("the evidence to be verified again", PATIENCE, || {
        let alerts = world.raised_by(SHOP, "probe run-copy /tmp/x salt sleep-ms 0")?;
        let alert = alerts.first().context("no alert")?;
        ensure!(
            text(alert, "/image/evidence") == Some("verified"),
            "{alert:#}"
        );
        Ok(())
    })?;
    check(&world, "verified")?;
    let said = inventory(&world, &image)?;
    ensure!(said == "verified", "the inventory says {said}");
    world.daemon.check_alive()
}

/// Where a file of the image lies unpacked.
fn unpacked(containerd: &Containerd, path: &str) -> Result<PathBuf> {
    let snapshots = containerd
        .directory()
        .join("root/io.containerd.snapshotter.v1.overlayfs/snapshots");
    for snapshot in fs::read_dir(&snapshots)? {
        let file = snapshot?.path().join("fs").join(path);
        if fs::read(&file).is_ok_and(|bytes| bytes == PROBE) {
            return Ok(file);
        }
    }
    anyhow::bail!("no snapshot below {} has {path}", snapshots.display())
}

#[test]
fn without_its_config_an_image_is_judged_by_the_layers_that_the_snapshot_names() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let image = shop()?;
    let world = World::start_after(|containerd| {
        containerd.import(&image)?;
        let stays = Run::new(SHOP, "stays").shell("while :; do sleep 1; done");
        containerd.start_container(&stays)?;
        discard(containerd, &image)?;
        containerd.ctr(["content", "rm", image.config_digest.as_str()])?;
        Ok(())
    })?;
    let shell = ["/bin/sh", "-c", LINE];
    world.containerd.exec("stays", "shell", shell)?;
    world.settle()?;
    let alerts = world.alerts.of("stays");
    let mut raised: Vec<_> = alerts
        .iter()
        .map(|alert| {
            let word = |pointer| text(alert, pointer).unwrap_or("");
            (word("/kind"), word("/file/path"), word("/image/evidence"))
        })
        .collect();
    raised.sort_unstable();
    let expect = [
        ("content_unverifiable", "", ""),
        ("exec_added", "/tmp/sh", "unpacked"),
        ("exec_added", "/tmp/x", "unpacked"),
        ("exec_modified", "/opt/changed", "unpacked"),
    ];
    ensure!(raised == expect, "{raised:?}");
    for alert in &alerts {
        ensure!(
            text(alert, "/image/chain_id") == Some(&image.chain_id)
                && text(alert, "/image/identity") == Some("none")
                && text(alert, "/image/manifest_digest").is_none()
                && text(alert, "/file/layer").is_none(),
            "{alert:#}"
        );
    }
    world.daemon.check_alive()
}

#[test]
fn a_root_without_layers_is_compared_by_its_hashes() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let image = shop()?;
    let world = World::start_after(|containerd| containerd.import(&image))?;
    world.have_read(SHOP)?;
    // On the filesystem that the root is a directory of.
    let directory = world.containerd.directory().join("shared");
    fs::create_dir(&directory)?;
    let mount = format!(
        "type=bind,src={},dst=/shared,options=rbind:rw",
        directory.display()
    );
    let flags = ["--snapshotter", "native", "--mount", &mount];
    let line = format!("{LINE}; probe run-copy /shared/x salt sleep-ms 0; exec sleep 1000");
    let run = Run::new(SHOP, "native").flags(flags).shell(&line);
    world.containerd.start_container(&run)?;
    until("all to be told", PATIENCE, || {
        let alerts = world.alerts.of("native");
        let raised: BTreeSet<_> = alerts
            .iter()
            .filter_map(|alert| Some((text(alert, "/kind")?, text(alert, "/file/path")?)))
            .collect();
        let expect = [
            ("exec_added", "/tmp/sh"),
            ("exec_added", "/tmp/x"),
            ("exec_modified", "/opt/changed"),
            ("exec_volume", "/shared/x"),
        ];
        let said: Vec<_> = alerts.iter().map(summary).collect();
        ensure!(raised == expect.into(), "{said:?}");
        Ok(())
    })?;
    world.daemon.check_alive()
}
