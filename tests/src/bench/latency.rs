//! How long an alert takes from the exec in the container to a client on the unix socket.

use anyhow::{Result, ensure};

use super::figures::quantile;
use crate::{
    alerts::{Arrival, text},
    containerd::Run,
    image::{self, Image, PROBE},
    layer::Layer,
    world::World,
};

const REFERENCE: &str = "example.invalid/bench:1";
/// Programs executed, of which each is new.
const EXECS: usize = 500;
/// Of them a second: no burst, since each is to be seen alone.
const EXECS_PER_SECOND: usize = 20;

/// What is measured.
struct Case {
    name: &'static str,
    /// In the image; a copy with other bytes behind is executed.
    program: &'static str,
    /// Opens a second of files that are not remembered, beside the execs.
    events: usize,
}

const CASES: [Case; 3] = [
    Case {
        name: "1 KB, beside nothing",
        program: "/opt/small",
        events: 0,
    },
    Case {
        name: "1 KB, beside 20,000 events/s",
        program: "/opt/small",
        events: 20_000,
    },
    Case {
        name: "1.6 MB, beside nothing",
        program: "/opt/large",
        events: 0,
    },
];

pub(super) fn run() -> Result<()> {
    let layer = Layer::new()
        .dir("opt")
        .program("opt/small", &small())
        .program("opt/large", PROBE);
    let image = Image::build(
        REFERENCE,
        &[image::base_layer()?, layer],
        &image::base_config(),
    )?;
    let world = World::start_after(|containerd| containerd.import(&image))?;
    println!("milliseconds from the exec of a new program to its alert, {EXECS} execs");
    println!("                                   p50     p90     p99     max");
    for case in &CASES {
        let mut delays = measure(&world, case)?;
        let [p50, p90, p99, max] = [0.5, 0.9, 0.99, 1.0].map(|part| quantile(&mut delays, part));
        println!("  {:29} {p50:7.2} {p90:7.2} {p99:7.2} {max:7.2}", case.name);
    }
    Ok(())
}

/// An ELF program that ends at once: header, one program header, and `exit(0)`.
fn small() -> Vec<u8> {
    const ADDRESS: u64 = 0x40_0000;
    const CODE: [u8; 9] = [0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05];
    let headers = 64 + 56u64;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([2u16, 62].map(u16::to_le_bytes).concat());
    file.extend(1u32.to_le_bytes());
    file.extend([ADDRESS + headers, 64, 0].map(u64::to_le_bytes).concat());
    file.extend(0u32.to_le_bytes());
    file.extend([64u16, 56, 1, 0, 0, 0].map(u16::to_le_bytes).concat());
    // PT_LOAD, readable and executable.
    file.extend([1u32, 5].map(u32::to_le_bytes).concat());
    file.extend(
        [0, ADDRESS, ADDRESS, 1024, 1024, 0x1000]
            .map(u64::to_le_bytes)
            .concat(),
    );
    file.extend(CODE);
    file.resize(1024, 0);
    file
}

fn measure(world: &World, case: &Case) -> Result<Vec<f64>> {
    let Case {
        program, events, ..
    } = case;
    world.settle()?;
    let id = world.unique("latency");
    let pause = 1000 / EXECS_PER_SECOND;
    let seconds = EXECS / EXECS_PER_SECOND + 1;
    let line = format!(
        "[ {events} = 0 ] || probe open-at-rate {events} {seconds} /dev/shm &
        i=0; while [ $i -lt {EXECS} ]; do
            cp {program} /tmp/x$i; echo $i >> /tmp/x$i; /tmp/x$i true; rm /tmp/x$i
            probe sleep-ms {pause}; i=$((i+1))
        done; wait"
    );
    world
        .containerd
        .run_ok(&Run::new(REFERENCE, &id).shell(&line))?;
    world.settle()?;
    let mut arrivals = world.alerts.arrivals();
    arrivals.retain(|arrival| text(&arrival.alert, "/container/id") == Some(&id));
    ensure!(
        arrivals.len() == EXECS,
        "{} alerts of {EXECS} execs",
        arrivals.len()
    );
    arrivals.iter().map(Arrival::delay_ms).collect()
}
