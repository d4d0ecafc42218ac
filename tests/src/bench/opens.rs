//! What watching costs a container that opens files as fast as it can, and how much of it is lost.

use anyhow::{Context as _, Result};

use super::{
    figures::median,
    tracer::{Tracer, Watching},
};
use crate::{
    containerd::{Containerd, Run},
    image,
    world::BASE,
};

/// Turns of all tracers; the middle one of each is shown.
const TURNS: usize = 5;

/// Opens that are measured.
struct Burst {
    name: &'static str,
    line: &'static [&'static str],
    /// Occurs in the path of each open and of no other.
    part: &'static str,
    opens: u64,
}

const BURSTS: [Burst; 2] = [
    Burst {
        name: "one file of the image",
        line: &["open-repeat", "300000", "/bin/busybox"],
        part: "/bin/busybox",
        opens: 300_000,
    },
    Burst {
        name: "100,000 other files",
        line: &["open-many", "100000", "2", "/dev/shm"],
        part: "/dev/shm/",
        opens: 300_000,
    },
];

/// Of one tracer and burst, a sample per turn.
#[derive(Default)]
struct Samples {
    nanoseconds: Vec<f64>,
    /// In per cent of the opens.
    lost: Vec<f64>,
}

pub(super) fn run() -> Result<()> {
    let containerd = Containerd::start()?;
    containerd.import(&image::base(BASE)?)?;
    let mut samples: [[Samples; BURSTS.len()]; Tracer::ALL.len()] = Default::default();
    for turn in 0..TURNS {
        eprintln!("turn {} of {TURNS}", turn + 1);
        for (tracer, samples) in Tracer::ALL.into_iter().zip(&mut samples) {
            for ((number, burst), samples) in BURSTS.iter().enumerate().zip(samples) {
                let id = format!("{}-{turn}-{number}", tracer.name());
                measure(&containerd, tracer, burst, &id, samples)
                    .with_context(|| format!("{} and {}", tracer.name(), burst.name))?;
            }
        }
    }
    containerd.remove()?;
    for (number, burst) in BURSTS.iter().enumerate() {
        println!("{} opens of {}, median of {TURNS}", burst.opens, burst.name);
        println!("  watched by   ns/open   ratio   lost %");
        let mut alone = f64::NAN;
        for (tracer, samples) in Tracer::ALL.into_iter().zip(&mut samples) {
            let Some(samples) = samples.get_mut(number) else {
                continue;
            };
            let nanoseconds = median(&mut samples.nanoseconds);
            if tracer == Tracer::Nobody {
                alone = nanoseconds;
            }
            println!(
                "  {:10} {nanoseconds:9.0} {:7.2} {:8.2}",
                tracer.name(),
                nanoseconds / alone,
                median(&mut samples.lost)
            );
        }
    }
    Ok(())
}

#[expect(
    clippy::cast_precision_loss,
    reason = "numbers far below 2 to the power of 52"
)]
fn measure(
    containerd: &Containerd,
    tracer: Tracer,
    burst: &Burst,
    id: &str,
    samples: &mut Samples,
) -> Result<()> {
    let watching: Watching = tracer.start(containerd)?;
    let line = ["/bin/probe", "time"]
        .into_iter()
        .chain(burst.line.iter().copied());
    let took = containerd.run_ok(&Run::new(BASE, id).arguments(line))?;
    let took: f64 = took.trim().parse().context("the probe's time")?;
    let lost = watching.lost(burst.opens, burst.part)?;
    samples.nanoseconds.push(took / burst.opens as f64);
    samples.lost.push(100.0 * lost as f64 / burst.opens as f64);
    Ok(())
}
