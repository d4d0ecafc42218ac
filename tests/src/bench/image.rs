//! What it takes to know what images hold: reading layers beside programs that only hash them,
//! memory, and bytes on disk.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::figures::median;
use crate::{
    alerts::text,
    containerd::Containerd,
    daemon::Daemon,
    image::{self, Config, Image},
    layer::{Attributes, Layer},
    poll::until,
};
use anyhow::{Context as _, Result, anyhow, ensure};

/// Turns of all that is compared; the middle one of each is shown.
const TURNS: usize = 3;
/// Layers of Debian packages, which every image here is made of.
pub(super) const PACKAGES: [&str; 7] = [
    "postgres", "nginx", "node", "java", "python", "redis", "tools",
];
/// How many of them are there where time is measured.
const TIMED_PACKAGES: usize = 1;
/// What the large image holds beside them.
const LARGE_FILES: usize = 18;
const LARGE_FILE_BYTES: usize = 64 << 20;
/// How long reading the large image may take.
const READING_TIME_MAX: Duration = Duration::from_secs(600);
const MEMORY_INTERVAL: Duration = Duration::from_millis(5);

pub(super) fn run() -> Result<()> {
    let containerd = Containerd::start()?;
    let daemon = Daemon::start(&containerd.address(), &containerd.directory().join("speed"))?;
    speed(&containerd, &daemon)?;
    daemon.stop()?;
    let directory = containerd.directory().join("memory");
    let daemon = Daemon::start(&containerd.address(), &directory)?;
    memory(&containerd, &daemon)?;
    daemon.stop()?;
    containerd.remove()
}

/// The base and the first of [`PACKAGES`].
fn packages(count: usize) -> Result<Vec<Layer>> {
    let names = ["base"].into_iter().chain(PACKAGES.into_iter().take(count));
    names.map(image::debian_layer).collect()
}

/// Reading all layers of an image and checking their digests, beside programs that only hash them.
fn speed(containerd: &Containerd, daemon: &Daemon) -> Result<()> {
    let gzip = packages(TIMED_PACKAGES)?;
    let plain: Vec<Layer> = gzip.iter().cloned().map(Layer::plain).collect();
    let build = |name: &str, layers: &[Layer]| -> Result<Image> {
        let image = Image::build(
            &format!("example.invalid/bench-{name}:1"),
            layers,
            &Config::default(),
        )?;
        containerd.import(&image)?;
        Ok(image)
    };
    let (plain, gzip) = (build("plain", &plain)?, build("gzip", &gzip)?);
    let blobs = |image: &Image| -> Vec<PathBuf> {
        let layers = image.layers.iter();
        layers.map(|layer| containerd.blob(&layer.blob)).collect()
    };
    let openssl = || {
        timed(
            Command::new("openssl")
                .args(["dgst", "-sha256"])
                .args(blobs(&plain)),
        )
    };
    let zcat = || {
        let line = r#"zcat "$@" | sha256sum"#;
        timed(
            Command::new("sh")
                .args(["-c", line, "sh"])
                .args(blobs(&gzip)),
        )
    };
    let pids = [daemon.pid()?, containerd.pid()?];
    let verify = |image: &Image| -> Result<[f64; 2]> {
        let processors =
            || -> Result<f64> { pids.iter().map(|pid| cpu_seconds(*pid, Whose::Own)).sum() };
        let before = processors()?;
        let took = verify(daemon, image)?;
        let after = processors()?;
        Ok([took, after - before])
    };
    let mut samples: [[Vec<f64>; 2]; 4] = Default::default();
    for turn in 0..TURNS {
        eprintln!("turn {} of {TURNS}", turn + 1);
        let turn = [openssl()?, verify(&plain)?, zcat()?, verify(&gzip)?];
        for (samples, turn) in samples.iter_mut().zip(turn) {
            for (samples, seconds) in samples.iter_mut().zip(turn) {
                samples.push(seconds);
            }
        }
    }
    let bytes: u64 = blobs(&plain)
        .iter()
        .map(|blob| Ok(fs::metadata(blob)?.len()))
        .sum::<Result<u64>>()?;
    let [openssl, plain, zcat, gzip] =
        samples.map(|samples| samples.map(|mut samples| median(&mut samples)));
    println!(
        "layers of Debian packages, {} MB uncompressed, median of {TURNS}",
        bytes / 1_000_000
    );
    println!("                               s    MB/s   speed  processor s   ratio");
    for (name, [seconds, processor], [other, other_processor]) in [
        ("openssl dgst -sha256", openssl, openssl),
        ("reading plain layers", plain, openssl),
        ("zcat | sha256sum", zcat, zcat),
        ("reading gzip layers", gzip, zcat),
    ] {
        println!(
            "  {name:22} {seconds:9.2} {:7.0} {:7.2} {processor:12.2} {:7.2}",
            number(bytes) / 1e6 / seconds,
            other / seconds,
            processor / other_processor
        );
    }
    println!(
        "  (plain layers are hashed twice, as the layer and as its files, by two threads: twice the processor time is as fast; gzip layers three times; containerd's time is in it)"
    );
    Ok(())
}

/// Whose processor time is asked for.
#[derive(Clone, Copy)]
enum Whose {
    Own,
    /// Of children that have ended and were waited for.
    Children,
}

/// What a process has used of processors so far, by the kernel's ticks of 10 ms.
fn cpu_seconds(pid: u32, whose: Whose) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name before may hold anything.
    let (_, fields) = stat.rsplit_once(')').context("no name in stat")?;
    let first = match whose {
        Whose::Own => 11,
        Whose::Children => 13,
    };
    let times = fields.split_whitespace().skip(first).take(2);
    let ticks: u64 = times.map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(number(ticks) / 100.0)
}

/// Seconds that a command takes, and of processors.
fn timed(command: &mut Command) -> Result<[f64; 2]> {
    let before = cpu_seconds(process::id(), Whose::Children)?;
    let began = Instant::now();
    let status = command.stdout(Stdio::null()).status();
    let took = began.elapsed().as_secs_f64();
    let status = status.with_context(|| format!("cannot run {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    let after = cpu_seconds(process::id(), Whose::Children)?;
    Ok([took, after - before])
}

/// Seconds for reading the layers anew.
fn verify(daemon: &Daemon, image: &Image) -> Result<f64> {
    let began = Instant::now();
    let said = daemon.monitorctl(["image", "verify", &image.reference])?;
    let took = began.elapsed().as_secs_f64();
    ensure!(said.len() == image.layers.len() + 2, "{said:#?}");
    Ok(took)
}

/// The memory without files behind it that a daemon takes above idle while it reads an image for
/// the first time, and what the index takes on disk.
fn memory(containerd: &Containerd, daemon: &Daemon) -> Result<()> {
    let mut layers: Vec<Layer> = packages(PACKAGES.len())?
        .into_iter()
        .map(Layer::plain)
        .collect();
    // Easily compressed, since what counts is what comes out.
    for file in 0..LARGE_FILES {
        let bytes = format!("{file:03}\n").repeat(LARGE_FILE_BYTES / 4);
        let path = format!("large-{file}");
        layers.push(Layer::new().file(&path, bytes.as_bytes(), Attributes::default()));
    }
    let image = Image::build("example.invalid/bench-large:1", &layers, &Config::default())?;
    drop(layers);
    containerd.import(&image)?;
    let pid = daemon.pid()?;
    let idle = anonymous_bytes(pid)?;
    let done = Arc::new(AtomicBool::new(false));
    let most = thread::spawn({
        let done = Arc::clone(&done);
        move || -> Result<u64> {
            let mut most = 0;
            while !done.load(Ordering::Relaxed) {
                most = most.max(anonymous_bytes(pid)?);
                thread::sleep(MEMORY_INTERVAL);
            }
            Ok(most)
        }
    });
    // A client waits 10 s, and the daemon reads on.
    let read = until("the image to be read", READING_TIME_MAX, || {
        daemon.monitorctl(["image", "contents", &image.reference, "/etc/passwd"])
    });
    done.store(true, Ordering::Relaxed);
    let most = most
        .join()
        .map_err(|_| anyhow!("the watch of memory panicked"))??;
    read?;
    let after = anonymous_bytes(pid)?;
    let entries = daemon.monitorctl(["image", "contents", &image.reference])?;
    let files = entries
        .iter()
        .filter(|entry| text(entry, "/type") == Some("file"));
    let sizes: Vec<u64> = files
        .filter_map(|file| file.get("size")?.as_u64())
        .collect();
    let (files, bytes) = (sizes.len() as u64, sizes.iter().sum::<u64>());
    let index = index_bytes(&layers_of(containerd, "memory"))?;
    println!(
        "an image of {} layers, {files} files of {} MB",
        image.layers.len(),
        bytes / 1_000_000
    );
    let above = |now: u64| number(now.saturating_sub(idle)) / 1e6;
    println!(
        "  RssAnon above idle, MB: {:.1} at most while it is read, {:.1} after it ({:.1} idle)",
        above(most),
        above(after),
        number(idle) / 1e6
    );
    println!(
        "  index on disk: {:.0} bytes per file, {:.0} per entry of any type",
        number(index) / number(files),
        number(index) / number(entries.len() as u64)
    );
    Ok(())
}

/// Where a daemon keeps its index.
fn layers_of(containerd: &Containerd, daemon: &str) -> PathBuf {
    containerd.directory().join(daemon).join("state/layers")
}

fn index_bytes(directory: &Path) -> Result<u64> {
    let files = fs::read_dir(directory)?;
    files.map(|file| Ok(file?.metadata()?.len())).sum()
}

/// Resident, and not of a file.
fn anonymous_bytes(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kib: u64 = kib.context("no RssAnon")?.parse()?;
    Ok(kib << 10)
}

#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
fn number(count: u64) -> f64 {
    count as f64
}
