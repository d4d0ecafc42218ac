//! Which images may run, as people say it: by `monitorctl approval` and in a folder of files.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tests::{
    alerts::{summary, text},
    containerd::Run,
    image::{self, Image},
    layer::{Attributes, Layer},
    poll::{PATIENCE, until},
    process::finish,
    require,
    world::{BASE, World},
};

const REPOSITORY: &str = "example.invalid/web";

/// An image of the repository, told from others by a file.
fn build(tag: &str) -> Result<Image> {
    let reference = format!("{REPOSITORY}:{tag}");
    let own = Layer::new().file("tag", tag.as_bytes(), Attributes::default());
    Image::build(
        &reference,
        &[image::base_layer()?, own],
        &image::base_config(),
    )
}

fn start(world: &World, image: &Image) -> Result<String> {
    let id = world.unique("web");
    let run = Run::new(&image.reference, &id).arguments(["/bin/sleep", "600"]);
    world.containerd.start_container(&run)?;
    Ok(id)
}

/// Waits for an alert of a container whose reason holds some words.
fn expect_alert(world: &World, container: &str, kind: &str, words: &str) -> Result<Value> {
    let what = format!("{kind} of {container}: {words}");
    world.alerts.wait_for(&what, |alert| {
        text(alert, "/container/id") == Some(container)
            && text(alert, "/kind") == Some(kind)
            && text(alert, "/details/reason").is_some_and(|reason| reason.contains(words))
    })
}

/// `monitorctl approval` with these words, and what it prints.
fn approval(world: &World, words: &[&str]) -> Result<Vec<Value>> {
    world.daemon.monitorctl([&["approval"], words].concat())
}

fn approve(world: &World, digest: &str, more: &[&str]) -> Result<Vec<Value>> {
    let image = format!("{REPOSITORY}@{digest}");
    let words = ["approve", &image, "--reason", "release"];
    approval(world, &[&words, more].concat())
}

fn exit_status(world: &World, words: &[&str]) -> Result<(i32, String)> {
    let mut command = world.daemon.monitorctl_command()?;
    let done = finish(command.arg("approval").args(words))?;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    Ok((done.status.code().context("killed")?, said))
}

fn expect_state(world: &World, image: &Image, state: &str, status: i32) -> Result<()> {
    let (exit, said) = exit_status(world, &["verify", &image.reference])?;
    ensure!(exit == status && said.lines().count() < 2, "{exit}: {said}");
    ensure!(exit == 0 || said.contains(state), "{said}");
    Ok(())
}

#[test]
fn of_a_managed_repository_only_what_is_approved_may_run() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let world = World::start()?;
    let [first, second, third] = [build("1")?, build("2")?, build("3")?];
    for image in [&first, &second, &third] {
        world.containerd.import(image)?;
    }
    let running = start(&world, &first)?;
    expect_state(&world, &first, "unmanaged", 0)?;
    // By the index it was imported with.
    let said = approve(&world, &first.index_digest, &[])?;
    let said = said.first().context("nothing was said")?;
    ensure!(text(said, "/state") == Some("approved"), "{said}");
    ensure!(text(said, "/by") == Some("user 0"), "{said}");
    ensure!(said.pointer("/running") == Some(&Value::from(1)), "{said}");
    expect_state(&world, &first, "approved", 0)?;
    expect_state(&world, &second, "unapproved", 4)?;

    let unapproved = start(&world, &second)?;
    let alert = expect_alert(
        &world,
        &unapproved,
        "image_unapproved",
        "is not approved for",
    )?;
    ensure!(text(&alert, "/severity") == Some("high"), "{alert:#}");
    ensure!(
        text(&alert, "/rule/id") == Some("approval.image_unapproved"),
        "{alert:#}"
    );
    let status = world.daemon.status()?;
    ensure!(
        status.pointer("/approvals/unapproved") == Some(&Value::from(1)),
        "{status:#}"
    );
    approve(&world, &second.manifest_digest, &[])?;
    expect_state(&world, &second, "approved", 0)?;

    // A time that ends while it runs.
    let soon = Timestamp::now() + SignedDuration::from_secs(2);
    approve(
        &world,
        &third.manifest_digest,
        &["--until", &soon.to_string()],
    )?;
    let expires = start(&world, &third)?;
    expect_alert(&world, &expires, "image_unapproved", "approved until")?;
    expect_state(&world, &third, "expired", 4)?;

    // What runs already.
    let revoke = ["revoke", &first.index_digest, "--reason", "CVE-2026-1"];
    approval(&world, &revoke)?;
    expect_alert(&world, &running, "image_unapproved", "CVE-2026-1")?;
    expect_state(&world, &first, "revoked", 4)?;

    // Whom nothing is known of cannot be revoked; what makes no sense is refused.
    let unknown = format!("sha256:{}", "0".repeat(64));
    for (words, status) in [
        (vec!["revoke", &unknown], 1),
        (vec!["approve", REPOSITORY, "--reason", "a"], 2),
        (vec!["verify", "example.invalid/nothing:1"], 1),
    ] {
        let (exit, said) = exit_status(&world, &words)?;
        ensure!(
            exit == status && said.lines().count() == 1,
            "{words:?}: {exit}: {said}"
        );
    }

    let audit = world.daemon.monitorctl(["audit", "list"])?;
    let done: Vec<_> = audit
        .iter()
        .filter(|it| text(it, "/outcome") == Some("done"))
        .filter_map(|it| text(it, "/method"))
        .collect();
    ensure!(
        done == ["Approve", "Approve", "Approve", "Revoke"],
        "{audit:#?}"
    );
    Ok(())
}

/// A document of the folder: statements as `STATE DIGEST`.
fn write(folder: &Path, statements: &[(&str, &str)]) -> Result<PathBuf> {
    let mut text = format!(
        "apiVersion: monitor.v1\nkind: ImageApproval\nrepository: {REPOSITORY}\nstatements:\n"
    );
    for (state, digest) in statements {
        text.push_str(&format!(
            "- digest: {digest}\n  state: {state}\n  by: reviewer\n  at: 2026-01-01T00:00:00Z\n  reason: reviewed\n"
        ));
    }
    let path = folder.join("web.yaml");
    fs::write(&path, text)?;
    Ok(path)
}

#[test]
fn what_may_run_comes_from_a_folder_and_from_the_configuration() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let directory = tempfile::tempdir()?;
    let (first, second) = (build("1")?, build("2")?);
    let base = image::base(BASE)?;
    let path = write(directory.path(), &[("approved", &first.manifest_digest)])?;
    let config = format!(
        "[approval]\ndefault = 'deny'\ndirectory = {:?}\nregistries = ['docker.io']\n[[approval.denied_bases]]\nchain_id = '{}'\nreason = 'end of life'\n",
        directory.path().display().to_string(),
        base.chain_id,
    );
    let world = World::start_configured(&config, |containerd| {
        containerd.import(&first)?;
        containerd.import(&second)
    })?;
    let approved = start(&world, &first)?;
    // Both are built on the image of the base.
    expect_alert(&world, &approved, "image_base_denied", "end of life")?;
    expect_alert(
        &world,
        &approved,
        "image_registry_untrusted",
        "example.invalid",
    )?;
    let unmanaged = world.unique("base");
    let run = Run::new(BASE, &unmanaged).arguments(["/bin/sleep", "600"]);
    world.containerd.start_container(&run)?;
    expect_alert(
        &world,
        &unmanaged,
        "image_unapproved",
        "approval.default is deny",
    )?;

    // The same tag for another image.
    let mut moved = build("3")?;
    moved.reference.clone_from(&first.reference);
    world.containerd.import(&moved)?;
    let alert = expect_alert(
        &world,
        &approved,
        "image_reference_moved",
        &moved.index_digest,
    )?;
    ensure!(text(&alert, "/severity") == Some("info"), "{alert:#}");
    let told = world.alerts.of(&approved);
    ensure!(
        !told
            .iter()
            .any(|it| text(it, "/kind") == Some("image_unapproved")),
        "{:?}",
        told.iter().map(summary).collect::<Vec<_>>()
    );

    // A file that is refused changes nothing, and is told of.
    fs::write(&path, "kind: ImageApproval\n")?;
    until("the folder to be refused", PATIENCE, || {
        let (exit, said) = exit_status(&world, &["list"])?;
        ensure!(exit == 1 && said.contains("web.yaml"), "{exit}: {said}");
        Ok(())
    })?;
    expect_state(&world, &second, "unapproved", 4)?;
    let statements = [
        ("revoked", first.manifest_digest.as_str()),
        ("approved", &second.manifest_digest),
    ];
    write(directory.path(), &statements)?;
    expect_alert(&world, &approved, "image_unapproved", "revoked: ")?;
    expect_state(&world, &second, "approved", 0)
}

#[test]
fn what_was_said_is_kept() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let world = World::start()?;
    let image = build("1")?;
    world.containerd.import(&image)?;
    approve(&world, &image.manifest_digest, &[])?;
    let before = approval(&world, &["list"])?;
    let directory = world.containerd.directory().join("monitord");
    world.daemon.kill()?;
    let address = world.containerd.address();
    let again = tests::daemon::Daemon::start(&address, &directory)?;
    again.wait_ready()?;
    let after = again.monitorctl(["approval", "list"])?;
    ensure!(
        before == after && before.len() == 1,
        "{before:?}\n{after:?}"
    );
    again.stop()?;
    Ok(())
}
