//! Bad input: a clear error, and no harm to what else is watched.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, ExitStatus},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::{
    alerts::text,
    containerd::{Containerd, Run},
    daemon::{Daemon, program},
    image::{self, Image, PROBE, PROBE_PATH},
    layer::Layer,
    poll::{PATIENCE, until},
    require,
    scratch::Scratch,
    world::World,
};

/// What a monitord that must refuse to start said, and how it ended.
fn refused(command: &mut Command, directory: &Path) -> Result<(ExitStatus, String)> {
    let daemon = Daemon::spawn(command, directory)?;
    let status = daemon.wait().context("it should refuse to start")?;
    let log = daemon.full_log();
    ensure!(
        status.code().is_some_and(|code| code != 0),
        "ended with {status}: {log}"
    );
    ensure!(!log.contains("panicked"), "{log}");
    Ok((status, log))
}

#[test]
fn no_containerd_at_the_address_is_told_and_waited_for() -> Result<()> {
    require!(Root, Containerd, Btf);
    let scratch = Scratch::new()?;
    let address = scratch.path().join("nothing.sock");
    let directory = scratch.path().join("monitord");
    let daemon = Daemon::spawn(&mut Daemon::command(&address, &directory)?, &directory)?;
    until("the log to name the address", PATIENCE, || {
        let log = daemon.full_log();
        let named = log
            .lines()
            .any(|line| line.contains(&address.display().to_string()) && line.contains("cannot"));
        ensure!(named, "{log}");
        Ok(())
    })?;
    // Refusing and waiting for it to come are both right; going on as if it were there is not.
    let status = daemon.stop()?;
    let log = daemon.full_log();
    ensure!(!log.contains("panicked"), "{log}");
    ensure!(status.code().is_some(), "{status}: {log}");
    Ok(())
}

#[test]
fn a_file_where_the_socket_should_be_is_kept() -> Result<()> {
    require!(Root, Containerd, Btf);
    let containerd = Containerd::start()?;
    let directory = containerd.directory().join("monitord");
    fs::create_dir(&directory)?;
    let socket = directory.join("monitord.sock");
    fs::write(&socket, "precious")?;
    let mut command = Daemon::command(&containerd.address(), &directory)?;
    let (_, log) = refused(&mut command, &directory)?;
    ensure!(log.contains(&socket.display().to_string()), "{log}");
    ensure!(fs::read(&socket)? == b"precious");
    Ok(())
}

#[test]
fn a_kernel_without_btf_is_refused() -> Result<()> {
    require!(Root, Containerd, Btf, Unshare);
    let containerd = Containerd::start()?;
    let directory = containerd.directory().join("monitord");
    let empty = containerd.directory().join("empty");
    fs::create_dir(&empty)?;
    let mut command = Command::new("unshare");
    command
        .args([
            "--mount",
            "sh",
            "-c",
            "mount --bind \"$0\" /sys/kernel/btf && exec \"$@\"",
        ])
        .arg(&empty)
        .arg(program("MONITORD", "monitord")?)
        .args(Daemon::arguments(&containerd.address(), &directory));
    let (_, log) = refused(&mut command, &directory)?;
    ensure!(
        log.contains("BTF") && log.contains("/sys/kernel/btf/vmlinux"),
        "{log}"
    );
    Ok(())
}

#[test]
fn a_user_who_is_not_root_is_refused() -> Result<()> {
    require!(Root, Containerd, Btf);
    let containerd = Containerd::start()?;
    let directory = containerd.directory().join("monitord");
    fs::create_dir(&directory)?;
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o777))?;
    // Where nobody can reach it, whatever the folder of the checkout allows.
    let copy = containerd.directory().join("monitord-copy");
    fs::copy(program("MONITORD", "monitord")?, &copy)?;
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg(&copy)
        .args(Daemon::arguments(&containerd.address(), &directory));
    let (_, log) = refused(&mut command, &directory)?;
    ensure!(log.contains("root"), "{log}");
    Ok(())
}

const BROKEN: &str = "example.invalid/broken:1";
const WHOLE: &str = "example.invalid/whole:1";

fn tools(reference: &str, word: &str) -> Result<(Vec<Layer>, Image)> {
    let layer = Layer::new()
        .dir("opt")
        .program("opt/tool", PROBE)
        .program(&format!("opt/{word}"), word.as_bytes());
    let layers = vec![image::base_layer()?, layer];
    let image = Image::build(reference, &layers, &image::base_config())?;
    Ok((layers, image))
}

/// A daemon that starts when `break_it` has changed what containerd holds of an image.
fn world_with(break_it: impl FnOnce(&Containerd) -> Result<()>) -> Result<World> {
    World::start_after(|containerd| {
        break_it(containerd)?;
        containerd.import(&tools(WHOLE, "whole")?.1)
    })
}

/// Runs a file that the broken image cannot account for: it must be told that this could not be
/// verified, and by which digest; other images are judged as before.
fn check_unverifiable(world: &World, digests: &[&str]) -> Result<()> {
    let line = "echo salt >> /opt/tool; /opt/tool sleep-ms 0";
    let alerts = world.raised_by(BROKEN, line)?;
    let found = alerts
        .iter()
        .find(|alert| text(alert, "/kind") == Some("content_unverifiable"))
        .with_context(|| {
            format!(
                "no content_unverifiable in {alerts:#?}\n{}",
                world.daemon.log()
            )
        })?;
    let said = [found.get("message"), found.get("details")].map(|said| said.map(Value::to_string));
    let named = said
        .iter()
        .flatten()
        .any(|said| digests.iter().any(|digest| said.contains(digest)));
    ensure!(named, "names none of {digests:?}: {found:#}");
    ensure!(
        text(found, "/image/evidence") != Some("verified"),
        "{found:#}"
    );

    world.have_read(WHOLE)?;
    let alerts = world.raised_by(WHOLE, line)?;
    let mut kinds: Vec<_> = alerts
        .iter()
        .filter_map(|alert| text(alert, "/kind"))
        .collect();
    kinds.sort_unstable();
    ensure!(
        kinds == ["exec_modified", "image_file_modified"],
        "another image: {kinds:?}"
    );
    world.daemon.check_alive()
}

/// Changes a blob in the content store, which containerd protects only by its mode.
fn tamper(containerd: &Containerd, digest: &str, change: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
    let path = containerd.blob(digest);
    let mut bytes = fs::read(&path)?;
    change(&mut bytes);
    fs::remove_file(&path)?;
    fs::write(&path, bytes)?;
    Ok(())
}

#[test]
fn a_corrupt_layer_is_named() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let (_, image) = tools(BROKEN, "broken")?;
    let layer = image.layers.get(1).context("a second layer")?;
    let world = world_with(|containerd| {
        containerd.import(&image)?;
        tamper(containerd, &layer.blob, |bytes| {
            let middle = bytes.len() / 2;
            if let Some(byte) = bytes.get_mut(middle) {
                *byte ^= 0x40;
            }
        })
    })?;
    check_unverifiable(&world, &[&layer.blob, &layer.diff_id])
}

#[test]
fn a_missing_layer_is_read_where_it_was_unpacked() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let (_, image) = tools(BROKEN, "broken")?;
    let layer = image.layers.get(1).context("a second layer")?;
    let world = world_with(|containerd| {
        containerd.import(&image)?;
        // containerd goes on listing it.
        fs::remove_file(containerd.blob(&layer.blob))?;
        Ok(())
    })?;
    let line = "echo salt >> /opt/tool; /opt/tool sleep-ms 0";
    let alerts = world.raised_once_known(BROKEN, line, "unpacked")?;
    let mut found: Vec<_> = alerts
        .iter()
        .map(|alert| (text(alert, "/kind"), text(alert, "/image/evidence")))
        .collect();
    found.sort_unstable();
    ensure!(
        found
            == [
                (Some("exec_modified"), Some("unpacked")),
                (Some("image_file_modified"), Some("unpacked")),
            ],
        "{found:?}"
    );
    world.daemon.check_alive()
}

#[test]
fn a_manifest_of_another_digest_is_named() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let (_, image) = tools(BROKEN, "broken")?;
    let world = world_with(|containerd| {
        containerd.import(&image)?;
        // The same JSON: only who checks the digest can notice.
        tamper(containerd, &image.manifest_digest, |bytes| {
            if let Some(space) = bytes.iter_mut().find(|byte| **byte == b' ') {
                *space = b'\t';
            }
        })
    })?;
    check_unverifiable(&world, &[&image.manifest_digest])
}

/// Imports an image whose second layer's blob holds another tar than its diff ID says, so that
/// every digest of a blob is right and yet the contents are not the image's.
fn import_forged(
    containerd: &Containerd,
    forge: impl FnOnce(Vec<u8>) -> Result<Vec<u8>>,
) -> Result<Image> {
    // The snapshots come from an honest twin, since containerd unpacks none that exist.
    let (mut layers, honest) = tools("example.invalid/honest:1", "broken")?;
    containerd.import(&honest)?;
    let last = layers.pop().context("a layer")?;
    let tar = forge(last.tar()?)?;
    layers.push(last.forged(tar));
    let forged = Image::build(BROKEN, &layers, &image::base_config())?;
    containerd.import(&forged)?;
    containerd.ctr(["images", "remove", "--sync", honest.reference.as_str()])?;
    Ok(forged)
}

#[test]
fn a_truncated_layer_is_named() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let mut digests = Vec::new();
    let world = world_with(|containerd| {
        let forged = import_forged(containerd, |mut tar| {
            tar.truncate(tar.len() / 2 + 100);
            Ok(tar)
        })?;
        let layer = forged.layers.get(1).context("a second layer")?;
        digests.extend([layer.blob.clone(), layer.diff_id.clone()]);
        Ok(())
    })?;
    check_unverifiable(
        &world,
        &digests.iter().map(String::as_str).collect::<Vec<_>>(),
    )
}

#[test]
fn a_layer_that_is_not_the_one_unpacked_is_named() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let mut digests = Vec::new();
    let world = world_with(|containerd| {
        let other = Layer::new().dir("opt").program("opt/tool", b"other");
        let forged = import_forged(containerd, |_| other.tar())?;
        let layer = forged.layers.get(1).context("a second layer")?;
        digests.extend([layer.blob.clone(), layer.diff_id.clone()]);
        Ok(())
    })?;
    check_unverifiable(
        &world,
        &digests.iter().map(String::as_str).collect::<Vec<_>>(),
    )
}

#[test]
fn a_path_that_climbs_out_of_a_layer_reaches_nothing() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let world = world_with(|containerd| {
        let climbing = Layer::new()
            .dir("opt")
            .program("../../../opt/climbed", PROBE)
            .program("opt/../../../etc/climbed", PROBE)
            .symlink("opt/out", "/../../../../tmp")
            .program("opt/out/through-a-link", PROBE);
        let layers = [image::base_layer()?, climbing];
        containerd.import(&Image::build(BROKEN, &layers, &image::base_config())?)
    })?;
    // Either the paths are judged as containerd unpacked them, inside the root, or the layer is
    // refused aloud. What is not there must not be taken for the image's.
    let check = |path: &str, in_image: bool| -> Result<()> {
        let run = Run::new(BROKEN, world.unique("climb"))
            .arguments([PROBE_PATH, "exec", path, "sleep-ms", "0"]);
        let alerts = world.raised_by_run(&run)?;
        let kinds: Vec<_> = alerts
            .iter()
            .filter_map(|alert| text(alert, "/kind"))
            .collect();
        let refused = !kinds.is_empty() && kinds.iter().all(|kind| *kind == "content_unverifiable");
        ensure!(
            refused || (in_image && kinds.is_empty()),
            "{path}: {kinds:?}"
        );
        Ok(())
    };
    check("/opt/climbed", true)?;
    check("/etc/climbed", true)?;
    check("/tmp/through-a-link", true)?;
    ensure!(!Path::new("/opt/climbed").exists() && !Path::new("/etc/climbed").exists());
    let added = "probe run-copy /tmp/x salt sleep-ms 0";
    let alerts = world.raised_by(BROKEN, added)?;
    let kinds: Vec<_> = alerts
        .iter()
        .filter_map(|alert| text(alert, "/kind"))
        .collect();
    ensure!(
        kinds == ["exec_added"]
            || !kinds.is_empty() && kinds.iter().all(|kind| *kind == "content_unverifiable"),
        "{kinds:?}"
    );
    world.daemon.check_alive()
}
