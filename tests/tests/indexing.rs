//! What becomes of an image's index when something ends in the middle of it: the daemon, containerd,
//! the room on the disk; and when the image is removed.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::{
    alerts::text,
    containerd::{Containerd, Run},
    daemon::Daemon,
    image::{self, Image, PROBE},
    layer::{Layer, sha256},
    poll::{PATIENCE, until},
    require,
    small::Small,
    world::{Alone, BASE, World},
};

const SLOW: &str = "example.invalid/slow:1";
const LARGE_BYTES: usize = 128 << 20;
const STAYS: &str = "stays";

fn large() -> Vec<u8> {
    vec![7; LARGE_BYTES]
}

/// An image whose first layer is read at once and whose second takes a while, and its container.
struct Node {
    containerd: Containerd,
    directory: PathBuf,
    image: Image,
    _alone: Alone,
}

impl Node {
    fn start() -> Result<Self> {
        let alone = Alone::wait()?;
        let containerd = Containerd::start()?;
        let layers = [
            image::base_layer()?,
            Layer::new().program("large", &large()),
            Layer::new().program("bin/last", PROBE),
        ];
        let image = Image::build(SLOW, &layers, &image::base_config())?;
        containerd.import(&image)?;
        Ok(Self {
            directory: containerd.directory().join("monitord"),
            containerd,
            image,
            _alone: alone,
        })
    }

    fn daemon(&self) -> Result<Daemon> {
        Daemon::start(&self.containerd.address(), &self.directory)
    }

    fn layers(&self) -> PathBuf {
        self.directory.join("state/layers")
    }

    /// Where the daemon keeps one of the image's layers.
    fn file(&self, layer: usize) -> Result<PathBuf> {
        let layer = self.image.layers.get(layer).context("no such layer")?;
        let digits = layer.diff_id.trim_start_matches("sha256:");
        Ok(self.layers().join(format!("{digits}.layer")))
    }

    /// Waits until these layers are kept.
    fn wait_kept(&self, layers: &[usize]) -> Result<()> {
        until("the layers to be kept", PATIENCE, || {
            for layer in layers {
                ensure!(self.file(*layer)?.is_file(), "layer {layer} is not kept");
            }
            Ok(())
        })
    }

    /// Starts the container and returns while the image's second layer is being read.
    fn begin(&self) -> Result<()> {
        let run = Run::new(SLOW, STAYS).shell("while :; do sleep 1; done");
        self.containerd.start_container(&run)?;
        self.wait_kept(&[0])?;
        ensure!(!self.file(1)?.exists(), "the large layer was read too fast");
        Ok(())
    }

    /// Waits until the image is known, and gives the evidence.
    fn evidence(&self, daemon: &Daemon) -> Result<String> {
        until("the image to be known", PATIENCE, || {
            let shown = daemon.monitorctl(["container", "show", STAYS])?;
            let shown = shown.first().context("no container")?;
            let known = text(shown, "/image/evidence").map(str::to_owned);
            known.with_context(|| format!("no evidence: {shown:#}"))
        })
    }

    /// Runs the image's last program, and the same with other bytes, which alone is to be told.
    fn judge(&self, daemon: &Daemon, evidence: &str) -> Result<()> {
        let line = "/bin/last sleep-ms 0; echo salt >> /bin/last; /bin/last sleep-ms 0";
        self.containerd
            .exec(STAYS, "judged", ["/bin/sh", "-c", line])?;
        let alert = until("the alert", PATIENCE, || {
            let mut alerts = daemon.monitorctl(["alerts", "--since", "0"])?;
            alerts.retain(|alert: &Value| {
                text(alert, "/kind").is_some_and(|kind| kind.starts_with("exec_"))
                    && text(alert, "/container/id") == Some(STAYS)
            });
            let last = alerts.pop().context("no alert")?;
            ensure!(text(&last, "/file/hash_state") == Some("done"), "{last:#}");
            ensure!(alerts.is_empty(), "more than one: {alerts:#?}");
            Ok(last)
        })?;
        ensure!(
            text(&alert, "/kind") == Some("exec_modified")
                && text(&alert, "/file/path") == Some("/bin/last")
                && text(&alert, "/file/expected_sha256") == Some(sha256(PROBE).as_str())
                && text(&alert, "/image/evidence") == Some(evidence),
            "{alert:#}"
        );
        Ok(())
    }
}

#[test]
fn a_daemon_that_was_killed_in_the_middle_begins_again_where_it_was() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let node = Node::start()?;
    let daemon = node.daemon()?;
    node.begin()?;
    let kept = fs::metadata(node.file(0)?)?;
    daemon.kill()?;
    ensure!(!node.file(1)?.exists(), "what was not read whole is kept");

    let daemon = node.daemon()?;
    ensure!(node.evidence(&daemon)? == "verified", "{}", daemon.log());
    node.wait_kept(&[0, 1, 2])?;
    ensure!(
        fs::metadata(node.file(0)?)?.len() == kept.len()
            && !daemon.full_log().contains("kept layer is unusable"),
        "{}",
        daemon.log()
    );
    for file in fs::read_dir(node.layers())? {
        let name = file?.file_name();
        ensure!(!name.as_encoded_bytes().starts_with(b"."), "{name:?}");
    }
    let entries = daemon.monitorctl(["image", "contents", SLOW, "/large"])?;
    let seen = entries.first().and_then(|entry| text(entry, "/sha256"));
    ensure!(seen == Some(sha256(&large()).as_str()), "{entries:#?}");
    node.judge(&daemon, "verified")
}

#[test]
fn an_image_is_read_again_after_containerd_went_in_the_middle() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let node = Node::start()?;
    let daemon = node.daemon()?;
    node.begin()?;
    node.containerd.kill()?;
    node.containerd.restart()?;
    ensure!(node.evidence(&daemon)? == "verified", "{}", daemon.log());
    node.judge(&daemon, "verified")
}

#[test]
fn a_full_disk_keeps_what_is_there_and_stops_no_verdict() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let node = Node::start()?;
    let small = Small::mount(&node.layers(), 256 << 10)?;
    node.containerd.import(&image::base(BASE)?)?;
    let daemon = node.daemon()?;
    until("the index of the base", PATIENCE, || {
        daemon.monitorctl(["image", "contents", BASE, "/bin/probe"])
    })?;
    let before = fs::read(node.file(0)?)?;
    let filler = small.fill()?;

    node.begin()?;
    ensure!(node.evidence(&daemon)? == "verified", "{}", daemon.log());
    node.judge(&daemon, "verified")?;
    ensure!(
        !node.file(1)?.exists() && !node.file(2)?.exists() && fs::read(node.file(0)?)? == before,
        "{:?}",
        fs::read_dir(node.layers())?.collect::<Vec<_>>()
    );
    let log = daemon.full_log();
    ensure!(
        log.contains("layer cannot be kept on disk") && log.contains("No space left on device"),
        "{log}"
    );

    fs::remove_file(filler)?;
    node.wait_kept(&[1, 2])
}

#[test]
fn an_image_removed_in_the_middle_is_judged_by_what_was_unpacked() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let node = Node::start()?;
    let daemon = node.daemon()?;
    node.begin()?;
    node.containerd.ctr(["images", "rm", "--sync", SLOW])?;
    ensure!(!node.file(1)?.exists(), "the large layer was read too fast");
    ensure!(node.evidence(&daemon)? == "unpacked", "{}", daemon.log());
    node.judge(&daemon, "unpacked")?;
    no_doubt(&daemon)
}

#[test]
fn an_image_removed_later_stays_verified() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let node = Node::start()?;
    let daemon = node.daemon()?;
    node.begin()?;
    ensure!(node.evidence(&daemon)? == "verified", "{}", daemon.log());
    node.containerd.ctr(["images", "rm", "--sync", SLOW])?;
    node.judge(&daemon, "verified")?;
    no_doubt(&daemon)
}

#[test]
fn kept_layers_that_are_damaged_cut_or_of_another_version_are_made_anew() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let node = Node::start()?;
    let daemon = node.daemon()?;
    node.begin()?;
    node.evidence(&daemon)?;
    node.wait_kept(&[0, 1, 2])?;
    daemon.stop()?;
    let whole: Vec<Vec<u8>> = (0..3)
        .map(|layer| Ok(fs::read(node.file(layer)?)?))
        .collect::<Result<_>>()?;
    let damages: [fn(&mut Vec<u8>); 3] = [
        |bytes| *bytes.last_mut().unwrap_or(&mut 0) ^= 1,
        |bytes| bytes.truncate(bytes.len() / 2),
        // Behind eight bytes of magic.
        |bytes| {
            bytes
                .iter_mut()
                .skip(8)
                .take(4)
                .for_each(|byte| *byte = 0xff)
        },
    ];
    for (layer, damage) in damages.into_iter().enumerate() {
        let path = node.file(layer)?;
        let mut bytes = fs::read(&path)?;
        damage(&mut bytes);
        fs::write(&path, bytes)?;
    }

    let daemon = node.daemon()?;
    ensure!(node.evidence(&daemon)? == "verified", "{}", daemon.log());
    node.judge(&daemon, "verified")?;
    let log = daemon.full_log();
    let said = log.matches("kept layer is unusable").count();
    ensure!(said == 3, "said {said} times: {log}");
    for (layer, whole) in whole.iter().enumerate() {
        ensure!(fs::read(node.file(layer)?)? == *whole, "layer {layer}");
    }
    Ok(())
}

#[test]
fn blobs_are_asked_of_containerd_where_its_files_are_hidden() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let node = Node::start()?;
    // As in a container of the daemon's own that does not mount them.
    let line = r#"mount -t tmpfs none "$0" && exec "$@""#;
    let monitord = Daemon::command(&node.containerd.address(), &node.directory)?;
    let content = node
        .containerd
        .directory()
        .join("root/io.containerd.content.v1.content");
    ensure!(
        content.join("blobs/sha256").is_dir(),
        "{}",
        content.display()
    );
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "slave", "sh", "-c", line])
        .arg(content)
        .arg(monitord.get_program())
        .args(monitord.get_args());
    let daemon = Daemon::spawn(&mut command, &node.directory)?;
    daemon.wait_ready()?;
    let blobs = daemon.monitorctl(["image", "verify", SLOW])?;
    ensure!(
        blobs.len() == 5
            && blobs
                .iter()
                .all(|blob| text(blob, "/state") == Some("verified")),
        "{blobs:#?}"
    );
    daemon.stop().map(drop)
}

/// Nothing was told as unverifiable.
fn no_doubt(daemon: &Daemon) -> Result<()> {
    let mut alerts = daemon.monitorctl(["alerts", "--since", "0"])?;
    alerts.retain(|alert| text(alert, "/kind") == Some("content_unverifiable"));
    ensure!(alerts.is_empty(), "{alerts:#?}");
    Ok(())
}

#[test]
fn the_index_goes_with_the_image() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let world = World::start()?;
    let own = Layer::new().program("own", b"of this image alone");
    let layers = [image::base_layer()?, own];
    let reference = "example.invalid/goes:1";
    let image = Image::build(reference, &layers, &image::base_config())?;
    world.containerd.import(&image)?;
    until("the index", PATIENCE, || {
        world
            .daemon
            .monitorctl(["image", "contents", reference, "/own"])
    })?;
    let directory = world.containerd.directory().join("monitord/state/layers");
    let file = |layer: usize| -> Result<PathBuf> {
        let layer = image.layers.get(layer).context("no such layer")?;
        let digits = layer.diff_id.trim_start_matches("sha256:");
        Ok(directory.join(format!("{digits}.layer")))
    };
    ensure!(file(0)?.is_file() && file(1)?.is_file(), "nothing is kept");
    world.containerd.ctr(["images", "rm", reference])?;
    until("the layer to be forgotten", PATIENCE, || {
        ensure!(!file(1)?.exists(), "it is still kept");
        Ok(())
    })?;
    // The base image has it too.
    ensure!(file(0)?.is_file(), "{}", world.daemon.log());
    Ok(())
}
