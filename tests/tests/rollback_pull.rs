//! Rollback to images that the node does not have any more: pulled from their registry, unpacked, and
//! refused or failed with nothing changed where that cannot be.

use std::{fs, time::Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;
use tests::{
    alerts::text,
    authority::Authority,
    containerd::{Containerd, Run},
    daemon::Daemon,
    image::{self, Config, Image},
    layer::{Attributes, Layer},
    orders::Orders,
    poll::{PATIENCE, until},
    registry::{PASSWORD, Registry, USER, credentials},
    require,
    world::World,
};

const SERVES: &str = "trap 'exit 0' TERM; while :; do sleep 0.05; done";

/// A registry with the images, and a container `web` of the one that is not approved.
struct Stage {
    world: World,
    registry: Registry,
    repository: String,
    bad: Image,
    _secrets: TempDir,
}

/// An image that shares no layer with another; the blob of its top layer has some megabytes.
fn build(repository: &str, word: &str) -> Result<Image> {
    let base = image::base_layer()?.dir(word);
    let mut noise = Vec::new();
    let mut state = 88_172_645_463_325_252_u64;
    while noise.len() < 4 << 20 {
        // Xorshift: what does not repeat is not compressed away.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.extend_from_slice(&state.to_le_bytes());
    }
    noise.extend_from_slice(word.as_bytes());
    let own = Layer::new().file("noise", &noise, Attributes::default());
    let config = Config {
        cmd: ["/bin/sh", "-c", SERVES].map(str::to_owned).into(),
        env: vec!["PATH=/bin".to_owned(), format!("V={word}")],
        ..Config::default()
    };
    Image::build(&format!("{repository}:{word}"), &[base, own], &config)
}

impl Stage {
    fn start(is_registry_used: bool) -> Result<Self> {
        let registry = Registry::start()?;
        let address = registry.address();
        let repository = format!("{address}/shop/web");
        let bad = build(&repository, "bad")?;
        let secrets = tempfile::tempdir()?;
        let file = secrets.path().join("config.json");
        fs::write(&file, credentials(address, USER, PASSWORD))?;
        Authority::new()?.write(secrets.path())?;
        let mut config = "[respond]\ngrace_seconds = 2\nwatch_seconds = 1\nper_hour = 1000\n\
            cool_down_seconds = 0\n"
            .to_owned();
        if is_registry_used {
            config += &format!(
                "[registry]\nenabled = true\ncredentials = '{}'\nca = '{}'\nplain_http = ['{address}']\n",
                file.display(),
                secrets.path().join("ca.crt").display()
            );
        }
        let world = World::start_configured(&config, |containerd| containerd.import(&bad))?;
        let stage = Self {
            world,
            registry,
            repository,
            bad,
            _secrets: secrets,
        };
        let run = Run::new(&stage.bad.reference, "web");
        stage.containerd().start_container(&run)?;
        stage.orders().wait_known("web", &stage.bad)?;
        Ok(stage)
    }

    fn containerd(&self) -> &Containerd {
        &self.world.containerd
    }

    /// An image that is approved, and in the registry by its manifest and its index.
    fn image(&self, word: &str) -> Result<Image> {
        let image = build(&self.repository, word)?;
        self.registry.push_with_index(&image, "shop/web")?;
        for digest in [&image.manifest_digest, &image.index_digest] {
            let pinned = format!("{}@{digest}", self.repository);
            let words = ["approval", "approve", &pinned, "--reason", "release"];
            self.world.daemon.monitorctl(words)?;
        }
        Ok(image)
    }

    /// Brings an image to containerd without its layers unpacked.
    fn store(&self, image: &Image) -> Result<()> {
        self.containerd().import(image)?;
        let mut below = Vec::new();
        let mut next = image.chain_id.clone();
        while !next.is_empty() {
            let info = self.containerd().ctr(["snapshots", "info", &next])?;
            let info: Value = serde_json::from_str(&info)?;
            below.push(next);
            next = text(&info, "/Parent").unwrap_or_default().to_owned();
        }
        ensure!(below.len() == image.layers.len(), "{below:?}");
        // containerd clears away by itself what lies below the one that went first.
        until("the snapshots to be gone", PATIENCE, || {
            let listed = self.containerd().ctr(["snapshots", "ls"])?;
            let left = below.iter().filter(|key| listed.contains(*key));
            for key in left.clone() {
                let _ = self.containerd().ctr(["snapshots", "rm", key]);
            }
            ensure!(left.count() == 0, "{listed}");
            Ok(())
        })
    }

    fn has(&self, digest: &str) -> Result<bool> {
        let listed = self.containerd().ctr(["content", "ls", "-q"])?;
        Ok(listed.lines().any(|line| line == digest))
    }

    fn orders(&self) -> Orders<'_> {
        Orders {
            daemon: &self.world.daemon,
            containerd: self.containerd(),
        }
    }

    /// Fails unless `web` is of this image and runs.
    fn expect(&self, image: &Image) -> Result<()> {
        self.orders().expect("web", image, true)
    }

    /// Rolls back, and expects that it is done by these steps first.
    fn roll(&self, to: &str, image: &Image, first: &[&str]) -> Result<Value> {
        let (status, order, said) = self
            .orders()
            .rollback(&["web", "--to", to, "--reason", "test"])?;
        ensure!(status == 0, "{said} {order:#}");
        let steps = order.pointer("/steps").and_then(Value::as_array);
        let steps = steps.context("no steps")?.iter();
        let names: Vec<_> = steps.filter_map(|step| text(step, "/name")).collect();
        ensure!(names.starts_with(first), "{names:?}");
        self.expect(image)?;
        self.orders().wait_known("web", image)?;
        Ok(order)
    }

    /// Kills the daemon once an order has begun a step, and has the next one end it.
    fn kill_at(&mut self, image: &Image, step: &str) -> Result<()> {
        let to = &image.manifest_digest;
        let id = self.orders().plan(&["web", "--to", to, "--reason", "x"])?;
        let mut client = self.orders().begin(&["apply", &id])?;
        self.orders().kill_at(&id, step)?;
        client.wait()?;
        let directory = self.containerd().directory().join("monitord");
        let config = self.containerd().directory().join("monitord.toml");
        let mut command = Daemon::command(&self.containerd().address(), &directory)?;
        let daemon = Daemon::spawn(command.arg("--config").arg(config), &directory)?;
        daemon.wait_ready()?;
        self.world.daemon = daemon;
        self.orders().wait_resumed(&id, "done")?;
        self.expect(image)?;
        self.orders().wait_known("web", image)
    }
}

fn number(order: &Value, name: &str) -> u64 {
    order.get(name).and_then(Value::as_u64).unwrap_or(0)
}

#[test]
fn an_image_that_is_gone_is_pulled_and_unpacked() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf, DockerRegistry);
    let stage = Stage::start(true)?;
    let containerd = stage.containerd();

    // There, and not unpacked.
    let stored = stage.image("stored")?;
    stage.store(&stored)?;
    let order = stage.roll(&stored.manifest_digest, &stored, &["unpack", "prepare"])?;
    ensure!(number(&order, "pull_bytes") == 0, "{order:#}");

    // Here once, and cleared away since.
    let gone = stage.image("gone")?;
    containerd.import(&gone)?;
    containerd.ctr(["images", "rm", "--sync", &gone.reference])?;
    ensure!(!stage.has(&gone.manifest_digest)?, "it is still there");
    let to = &gone.manifest_digest;
    let (status, plan, said) = stage.orders().rollback(&["web", "--to", to, "--dry-run"])?;
    ensure!(status == 0, "{said}");
    ensure!(number(&plan, "pull_bytes") > 4 << 20, "{plan:#}");
    ensure!(!stage.has(to)?, "a plan has brought it");
    let begun = Instant::now();
    let order = stage.roll(to, &gone, &["pull", "unpack", "prepare"])?;
    println!(
        "pulled {} bytes, unpacked and rolled back in {:.2?}",
        number(&order, "pulled_bytes"),
        begun.elapsed()
    );
    ensure!(
        number(&order, "pulled_bytes") == number(&order, "pull_bytes"),
        "{order:#}"
    );

    // Never here, and known by its index. What was brought stays when containerd clears away.
    let indexed = stage.image("indexed")?;
    let to = &indexed.index_digest;
    stage.roll(to, &indexed, &["pull", "unpack", "prepare"])?;
    containerd.ctr(["images", "rm", "--sync", &stored.reference])?;
    let blobs = indexed.layers.iter().map(|layer| &layer.blob);
    for digest in blobs.chain([&indexed.config_digest, &indexed.manifest_digest, to]) {
        ensure!(stage.has(digest)?, "{digest} was cleared away");
    }
    let listed = containerd.ctr(["content", "ls"])?;
    let of_config = |line: &&str| line.starts_with(&indexed.config_digest);
    let label = format!("gc.ref.snapshot.overlayfs={}", indexed.chain_id);
    ensure!(
        listed
            .lines()
            .find(of_config)
            .is_some_and(|line| line.contains(&label)),
        "{listed}"
    );
    let name = format!("{}@{to}", stage.repository);
    let run = Run::new(&name, "second").arguments(["/bin/true"]);
    containerd.run_ok(&run)?;

    // A layer that is missing of an image that is there.
    let holed = stage.image("holed")?;
    stage.store(&holed)?;
    let layer = holed.layers.first().context("no layer")?;
    containerd.ctr(["content", "rm", layer.blob.as_str()])?;
    stage.roll(&holed.manifest_digest, &holed, &["pull", "unpack"])?;
    ensure!(stage.world.daemon.stop()?.success());
    Ok(())
}

#[test]
fn an_order_that_pulls_is_finished_by_the_next_daemon() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf, DockerRegistry);
    let mut stage = Stage::start(true)?;
    for step in ["pull", "unpack"] {
        let image = stage.image(step)?;
        stage.kill_at(&image, step)?;
    }
    ensure!(stage.world.daemon.stop()?.success());
    Ok(())
}

#[test]
fn what_cannot_be_pulled_changes_nothing() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf, DockerRegistry);
    let stage = Stage::start(true)?;

    // Other bytes than the manifest names.
    let cracked = stage.image("cracked")?;
    let layer = &cracked.layers.last().context("no layer")?.blob;
    let blob = stage.registry.blob(layer);
    let mut bytes = fs::read(&blob)?;
    *bytes.last_mut().context("an empty blob")? ^= 1;
    fs::write(&blob, bytes)?;
    let to = &cracked.manifest_digest;
    let (status, order, said) = stage
        .orders()
        .rollback(&["web", "--to", to, "--reason", "test"])?;
    ensure!(
        status == 1 && text(&order, "/state") == Some("failed"),
        "{order:#}"
    );
    ensure!(text(&order, "/step") == Some("discard"), "{order:#}");
    ensure!(said.contains("digest"), "{said}");
    println!("{said}");
    stage.expect(&stage.bad)?;

    // One that is not approved is not asked for.
    let other = format!("sha256:{}", "1".repeat(64));
    let (status, _, said) = stage.orders().rollback(&["plan", "web", "--to", &other])?;
    ensure!(status == 4 && said.contains("is unapproved"), "{said}");

    // Not in the registry.
    let pinned = format!("{}@{other}", stage.repository);
    let words = ["approval", "approve", &pinned, "--reason", "early"];
    stage.world.daemon.monitorctl(words)?;
    let (status, _, said) = stage.orders().rollback(&["plan", "web", "--to", &other])?;
    ensure!(status == 4 && said.contains("404 Not Found"), "{said}");

    // Nobody there.
    let lost = stage.image("lost")?;
    stage.registry.kill()?;
    let to = &lost.manifest_digest;
    let (status, _, said) = stage
        .orders()
        .rollback(&["web", "--to", to, "--reason", "test"])?;
    ensure!(status == 4 && said.contains("no connection"), "{said}");
    ensure!(said.contains("images pull"), "{said}");
    println!("{said}");
    stage.expect(&stage.bad)?;
    ensure!(stage.world.daemon.stop()?.success());
    Ok(())
}

#[test]
fn without_a_registry_only_what_is_there_is_unpacked() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf, DockerRegistry);
    let stage = Stage::start(false)?;
    let gone = stage.image("gone")?;
    let to = &gone.manifest_digest;
    let (status, _, said) = stage.orders().rollback(&["plan", "web", "--to", to])?;
    ensure!(status == 4 && said.contains("images pull"), "{said}");
    let stored = stage.image("stored")?;
    stage.store(&stored)?;
    stage.roll(&stored.manifest_digest, &stored, &["unpack", "prepare"])?;
    ensure!(stage.world.daemon.stop()?.success());
    Ok(())
}
