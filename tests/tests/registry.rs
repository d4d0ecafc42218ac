//! Images whose blobs the node does not have any more, known by what their registry has.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::{
    alerts::{text, words},
    authority::Authority,
    containerd::{Containerd, Run},
    image::{self, Image, PROBE},
    layer::Layer,
    poll::{PATIENCE, until},
    registry::{PASSWORD, Registry, USER, credentials},
    require,
    world::World,
};

/// Runs the image's own program, one that the container brings along, and one that it changes.
const LINE: &str = "/opt/tool sleep-ms 0; probe run-copy /tmp/x salt sleep-ms 0; \
    echo salt >> /opt/changed; /opt/changed sleep-ms 0";

/// An image with a layer that no other has.
fn shop(registry: &Registry, word: &str) -> Result<Image> {
    // Not the layer of the world's own image, whose registry is nowhere.
    let base = image::base_layer()?.dir("opt");
    let layer = Layer::new()
        .program("opt/tool", PROBE)
        .program("opt/changed", PROBE)
        .program("opt/word", word.as_bytes());
    let reference = format!("{}/shop/{word}:1", registry.address());
    Image::build(&reference, &[base, layer], &image::base_config())
}

/// Has the image unpacked, and only that.
fn unpack(containerd: &Containerd, image: &Image) -> Result<()> {
    containerd.import(image)?;
    for layer in &image.layers {
        containerd.ctr(["content", "rm", layer.blob.as_str()])?;
    }
    Ok(())
}

/// Has the image used and waits until the daemon knows what it holds by this evidence.
fn known(world: &World, image: &Image, evidence: &str) -> Result<()> {
    let id = world.unique("stays");
    let run = Run::new(&image.reference, &id).shell("while :; do sleep 1; done");
    world.containerd.start_container(&run)?;
    until("the image to be known", PATIENCE, || {
        let shown = world.daemon.monitorctl(["container", "show", &id])?;
        let known = shown.first().and_then(|it| text(it, "/image/evidence"));
        ensure!(known == Some(evidence), "by {known:?}");
        Ok(())
    })?;
    world.containerd.delete(&id)
}

fn account(world: &World) -> Result<Value> {
    let status = world.daemon.status()?;
    status.get("registry").cloned().context("no account")
}

fn number(account: &Value, name: &str) -> u64 {
    account.get(name).and_then(Value::as_u64).unwrap_or(0)
}

/// Waits until the registry's part in it has failed so often, for this reason.
fn failed(world: &World, count: u64, reasons: &[&str]) -> Result<()> {
    until("the registry to fail", PATIENCE, || {
        let account = account(world)?;
        let error = text(&account, "/error").unwrap_or_default();
        ensure!(
            number(&account, "failed") >= count
                && reasons.iter().all(|reason| error.contains(reason)),
            "{account}"
        );
        Ok(())
    })
}

#[test]
fn an_image_whose_blobs_were_discarded_is_verified_by_its_registry() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf, DockerRegistry);
    let registry = Registry::start()?;
    let address = registry.address();
    let good = shop(&registry, "good")?;
    let cracked = shop(&registry, "cracked")?;
    let locked = shop(&registry, "locked")?;
    let lost = shop(&registry, "lost")?;
    for image in [&good, &cracked, &locked, &lost] {
        registry.push(image)?;
    }
    let crack = cracked.layers.last().context("no layer")?;
    let blob = registry.blob(&crack.blob);
    let mut bytes = fs::read(&blob)?;
    *bytes.last_mut().context("an empty blob")? ^= 1;
    fs::write(&blob, bytes)?;

    let directory = tempfile::tempdir()?;
    let secrets = directory.path().join("config.json");
    fs::write(&secrets, credentials(address, USER, PASSWORD))?;
    Authority::new()?.write(directory.path())?;
    let config = format!(
        "[registry]\nenabled = true\ncredentials = '{}'\nca = '{}'\nplain_http = ['{address}']\n",
        secrets.display(),
        directory.path().join("ca.crt").display()
    );
    let world = World::start_configured(&config, |containerd| unpack(containerd, &good))?;
    let alerts = world.raised_once_known(&good.reference, LINE, "verified")?;
    let raised = words(&alerts, ["/kind", "/file/path", "/image/evidence"]);
    let expect = [
        ["exec_added", "/tmp/x", "verified"],
        ["exec_modified", "/opt/changed", "verified"],
        ["image_file_modified", "/opt/changed", "verified"],
    ];
    ensure!(raised == expect, "{raised:?}");
    let told = account(&world)?;
    ensure!(
        number(&told, "layers") == 2
            && number(&told, "bytes") > 1000
            && number(&told, "failed") == 0,
        "{told}"
    );

    // Other bytes than the manifest names.
    unpack(&world.containerd, &cracked)?;
    known(&world, &cracked, "unpacked")?;
    let host = address.to_string();
    let digest = "not the one that the manifest names";
    failed(&world, 1, &[&host, &crack.blob, digest])?;

    // A password that is not taken any more.
    fs::write(&secrets, credentials(address, USER, "wrong-0815"))?;
    unpack(&world.containerd, &locked)?;
    known(&world, &locked, "unpacked")?;
    failed(&world, 2, &[&host, "answered 401 Unauthorized"])?;

    // Nobody there.
    registry.kill()?;
    unpack(&world.containerd, &lost)?;
    known(&world, &lost, "unpacked")?;
    failed(&world, 3, &[&host, "no connection"])?;

    let log = world.daemon.full_log();
    ensure!(
        log.contains("image cannot be read from its registry"),
        "{log}"
    );
    for secret in [PASSWORD, "wrong-0815"] {
        ensure!(!log.contains(secret), "the log has a password");
    }
    world.daemon.check_alive()
}
