//! Which image a container was created from, and how well that is known.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::{
    alerts::{summary, text},
    containerd::Run,
    image::{self, Config, Image, PROBE_PATH},
    layer::Layer,
    require,
    world::{BASE, World, shared},
};

/// Arguments of a program that the image does not hold.
const ADDED: [&str; 6] = [PROBE_PATH, "run-copy", "/tmp/x", "salt", "sleep-ms", "0"];

/// An image that differs from others by a file of its name.
fn distinct(reference: &str, word: &str) -> Result<Image> {
    let layer = Layer::new()
        .dir("opt")
        .program(&format!("opt/{word}"), word.as_bytes());
    Image::build(
        reference,
        &[image::base_layer()?, layer],
        &image::base_config(),
    )
}

/// The one alert of a container, about an added file.
fn added(world: &World, container: &str) -> Result<Value> {
    let mut alerts = world.alerts.of(container);
    // Told of its own accord, at a time of its own.
    alerts.retain(|alert| text(alert, "/kind") != Some("image_reference_moved"));
    let [alert] = alerts.as_slice() else {
        anyhow::bail!(
            "not one alert: {:?}",
            alerts.iter().map(summary).collect::<Vec<_>>()
        );
    };
    ensure!(text(alert, "/kind") == Some("exec_added"), "{alert:#}");
    Ok(alert.clone())
}

/// Fails unless the alert names this image, by proof.
fn check_proven(alert: &Value, image: &Image) -> Result<()> {
    let found = alert.get("image").context("no image")?;
    for (field, value) in [
        ("identity", "proven"),
        ("manifest_digest", image.manifest_digest.as_str()),
        ("config_digest", image.config_digest.as_str()),
        ("chain_id", image.chain_id.as_str()),
    ] {
        ensure!(
            found.get(field) == Some(&json!(value)),
            "{field} is not {value}: {found:#}"
        );
    }
    Ok(())
}

#[test]
fn a_moved_tag_moves_no_running_container() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let world = shared()?;
    let reference = "example.invalid/moved:1";
    let first = distinct(reference, "first")?;
    let second = distinct(reference, "second")?;
    let (old, new) = (world.unique("old"), world.unique("new"));
    world.containerd.import(&first)?;
    let sleeper = |id: &str| Run::new(reference, id).arguments(["/bin/sleep", "600"]);
    world.containerd.start_container(&sleeper(&old))?;
    world.containerd.import(&second)?;
    world.containerd.start_container(&sleeper(&new))?;
    for id in [&old, &new] {
        world.containerd.exec(id, "added", ADDED)?;
    }
    world.settle()?;
    for (id, image) in [(&old, &first), (&new, &second)] {
        let alert = added(&world, id)?;
        check_proven(&alert, image)?;
        ensure!(
            text(&alert, "/image/reference") == Some(reference),
            "{alert:#}"
        );
        world.containerd.delete(id)?;
    }
    Ok(())
}

#[test]
fn images_that_differ_only_in_their_entrypoint_are_not_mixed_up() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let world = shared()?;
    let layers = [
        image::base_layer()?,
        Layer::new().dir("opt").program("opt/twins", b"twins"),
    ];
    let build = |reference: &str, salt: &str| {
        let config = Config {
            entrypoint: [PROBE_PATH, "run-copy", "/tmp/x", salt, "sleep-ms", "0"]
                .map(str::to_owned)
                .to_vec(),
            ..Config::default()
        };
        Image::build(reference, &layers, &config)
    };
    let twins = [
        build("example.invalid/twin-a:1", "a")?,
        build("example.invalid/twin-b:1", "b")?,
    ];
    for twin in &twins {
        world.containerd.import(twin)?;
    }
    for twin in &twins {
        let id = world.unique("twin");
        world.containerd.run_ok(&Run::new(&twin.reference, &id))?;
        world.settle()?;
        let alert = added(&world, &id)?;
        match text(&alert, "/image/identity") {
            Some("proven") => check_proven(&alert, twin)?,
            Some("ambiguous") => {
                let candidates = alert
                    .pointer("/image/candidates")
                    .context("none")?
                    .to_string();
                for other in &twins {
                    ensure!(candidates.contains(&other.manifest_digest), "{alert:#}");
                }
            }
            _ => anyhow::bail!("neither proven nor ambiguous: {alert:#}"),
        }
    }
    Ok(())
}

#[test]
fn remapped_users_hide_no_image() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf, UserNamespaces);
    let world = shared()?;
    let reference = "example.invalid/remapped:1";
    let image = distinct(reference, "remapped")?;
    world.containerd.import(&image)?;
    let id = world.unique("remapped");
    let run = Run::new(reference, &id)
        .flags(["--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"])
        .shell("/bin/true; probe sleep-ms 0; probe run-copy /tmp/x salt sleep-ms 0");
    world.containerd.run_ok(&run)?;
    world.settle()?;
    let alert = added(&world, &id)?;
    check_proven(&alert, &image)?;
    ensure!(
        alert.pointer("/process/uid") == Some(&json!(100_000)),
        "the host's uid: {alert:#}"
    );
    Ok(())
}

#[test]
fn a_bare_root_filesystem_has_no_image() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let world = shared()?;
    let rootfs = world.containerd.directory().join("rootfs");
    let base = image::base_layer()?.tar()?;
    tar::Archive::new(base.as_slice()).unpack(&rootfs)?;
    let id = world.unique("bare");
    let run = Run::new(rootfs.display().to_string(), &id)
        .flags(["--rootfs"])
        .arguments([
            "/bin/sh",
            "-c",
            "/bin/true; /bin/probe run-copy /tmp/x salt sleep-ms 0",
        ]);
    let alerts = world.raised_by_run(&run)?;
    let kinds: Vec<_> = alerts
        .iter()
        .filter_map(|alert| text(alert, "/kind"))
        .collect();
    ensure!(kinds == ["image_unknown"], "{kinds:?}");
    let alert = alerts.first().context("an alert")?;
    ensure!(text(alert, "/severity") == Some("medium"), "{alert:#}");
    ensure!(text(alert, "/image/identity") == Some("none"), "{alert:#}");
    ensure!(
        alert.pointer("/image/manifest_digest") == Some(&Value::Null),
        "{alert:#}"
    );
    Ok(())
}

#[test]
fn every_namespace_is_watched() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let world = shared()?;
    let namespace = format!("{}-other", world.containerd.namespace());
    // The same id as a container of the first namespace: an id alone names nothing.
    let id = world.unique("same");
    let first = Run::new(BASE, &id).arguments(["/bin/sleep", "600"]);
    world.containerd.start_container(&first)?;
    let reference = "example.invalid/elsewhere:1";
    let image = distinct(reference, "elsewhere")?;
    world.containerd.import_in(&namespace, &image)?;
    let second = Run::new(reference, &id)
        .namespace(&namespace)
        .arguments(ADDED);
    world.containerd.run_ok(&second)?;
    world.settle()?;
    world.containerd.delete(&id)?;
    let alert = added(&world, &id)?;
    check_proven(&alert, &image)?;
    ensure!(
        text(&alert, "/container/runtime_namespace") == Some(namespace.as_str()),
        "{alert:#}"
    );
    Ok(())
}
