//! The main job, once, on real containers: five of them run, monitord tells which did what their
//! image does not account for. `cargo xtask demo` runs this.

use std::{
    io::{IsTerminal as _, stdout},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::{
    alerts::{Alerts, Arrival, text},
    containerd::{Containerd, Run},
    daemon::Daemon,
    image::{self, Image, PROBE},
    layer::Layer,
    process::output,
};

const REFERENCE: &str = "example.invalid/shop:1.4";

/// What one container does, and what must be said of it.
struct Scene {
    container: &'static str,
    does: &'static str,
    line: &'static str,
    /// In the order in which they come.
    kinds: &'static [&'static str],
}

// The two that must raise nothing come first: an alert of a later one proves that they have been
// judged by then.
const SCENES: [Scene; 5] = [
    Scene {
        container: "clean",
        does: "runs what its image holds",
        line: "ls / > /dev/null; /srv/shop sleep-ms 10",
        kinds: &[],
    },
    Scene {
        container: "chmod",
        does: "changes the mode of a file of its image, not its bytes, and runs it",
        line: "chmod 700 /srv/shop; /srv/shop sleep-ms 10",
        kinds: &[],
    },
    Scene {
        container: "dropper",
        does: "writes a new file and runs it",
        line: "cp /srv/shop /tmp/miner; echo payload >> /tmp/miner; /tmp/miner sleep-ms 10",
        kinds: &["exec_added"],
    },
    Scene {
        container: "patched",
        does: "overwrites a file of its image and runs it",
        line: "echo backdoor >> /srv/shop; /srv/shop sleep-ms 10",
        kinds: &["exec_modified", "image_file_modified"],
    },
    Scene {
        container: "fileless",
        does: "copies a program into memory and runs it from there",
        line: "probe memfd-exec /srv/shop sleep-ms 10",
        kinds: &["exec_memory"],
    },
];

fn main() -> ExitCode {
    let paint = Paint {
        colours: stdout().is_terminal(),
    };
    match run(&paint) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Plays all scenes; whether all went as they must.
fn run(paint: &Paint) -> Result<bool> {
    let started = Instant::now();
    let containerd = Containerd::start()?;
    let image = shop()?;
    containerd.import(&image)?;
    let directory = containerd.directory().join("monitord");
    let daemon = Daemon::start(&containerd.address(), &directory)?;
    let alerts = daemon.follow()?;

    println!(
        "{}",
        paint.bold("A containerd of its own, monitord beside it, five containers.")
    );
    println!("  image     {REFERENCE}");
    println!("  manifest  {}", image.manifest_digest);
    for (number, layer) in image.layers.iter().enumerate() {
        println!("  layer {number}   {}", layer.diff_id);
    }

    for (number, scene) in SCENES.iter().enumerate() {
        println!();
        println!(
            "{}",
            paint.bold(&format!(
                "{}. {} {}",
                number + 1,
                scene.container,
                scene.does
            ))
        );
        println!("   {}", paint.faint(&format!("$ {}", scene.line)));
        containerd.run_ok(&Run::new(REFERENCE, scene.container).shell(scene.line))?;
        if !scene.kinds.is_empty() {
            for kind in scene.kinds {
                wait_for_hash(&alerts, scene.container, kind).with_context(|| daemon.log())?;
            }
            for arrival in of(&alerts, scene.container) {
                show(&arrival, paint)?;
            }
        } else {
            println!("   must raise nothing");
        }
    }
    daemon.wait_nothing_waiting()?;

    println!();
    let mut as_expected = true;
    for scene in &SCENES {
        as_expected &= judge(scene, &of(&alerts, scene.container), &image, paint);
    }

    println!();
    println!(
        "{}",
        paint.bold("All alerts, as `monitorctl alerts` shows them")
    );
    print!(
        "{}",
        output(
            daemon
                .monitorctl_command()?
                .args(["alerts", "--since", "0"])
        )?
    );
    if let Some(arrival) = of(&alerts, "patched").first() {
        println!();
        println!(
            "{}",
            paint.bold("One of them in full, as `monitorctl alerts -o json` gives it")
        );
        println!("{:#}", arrival.alert);
    }

    drop(alerts);
    let status = daemon.stop()?;
    ensure!(
        status.success(),
        "monitord ended with {status}: {}",
        daemon.log()
    );
    containerd.remove()?;
    println!();
    println!(
        "{} in {:.1} s; containers, processes, mounts and cgroups are removed",
        if as_expected {
            paint.good("All as it must be")
        } else {
            paint.bad("Not as it must be")
        },
        started.elapsed().as_secs_f32()
    );
    Ok(as_expected)
}

fn shop() -> Result<Image> {
    let layer = Layer::new().dir("srv").program("srv/shop", PROBE);
    Image::build(
        REFERENCE,
        &[image::base_layer()?, layer],
        &image::base_config(),
    )
}

fn of(alerts: &Alerts, container: &str) -> Vec<Arrival> {
    let mut arrivals = alerts.arrivals();
    arrivals.retain(|arrival| text(&arrival.alert, "/container/id") == Some(container));
    arrivals
}

fn wait_for_hash(alerts: &Alerts, container: &str, kind: &str) -> Result<()> {
    let what = format!("{kind} of the container {container}");
    alerts
        .wait_for(&what, |alert| {
            text(alert, "/container/id") == Some(container)
                && text(alert, "/kind") == Some(kind)
                && text(alert, "/file/hash_state") != Some("pending")
        })
        .map(drop)
}

/// Prints what an alert says, and how long it took to get here.
fn show(arrival: &Arrival, paint: &Paint) -> Result<()> {
    let alert = &arrival.alert;
    let field = |pointer| text(alert, pointer).unwrap_or("-");
    println!(
        "   {} {}  {}",
        paint.bad(field("/kind")),
        field("/severity"),
        field("/message")
    );
    for (label, pointer) in [
        ("file", "/file/path"),
        ("expected", "/file/expected_sha256"),
        ("seen", "/file/seen_sha256"),
        ("layer", "/file/layer"),
        ("manifest", "/image/manifest_digest"),
    ] {
        if let Some(value) = text(alert, pointer) {
            println!("     {label:9} {value}");
        }
    }
    println!(
        "     {:9} {:.1} ms from what was done to this client",
        "took",
        arrival.delay_ms()?
    );
    Ok(())
}

/// Says whether a container raised what it must; false if not.
fn judge(scene: &Scene, arrivals: &[Arrival], image: &Image, paint: &Paint) -> bool {
    let kinds: Vec<_> = arrivals
        .iter()
        .filter_map(|arrival| text(&arrival.alert, "/kind"))
        .collect();
    let wrong = if kinds != scene.kinds {
        Some(format!("must be {:?}", scene.kinds))
    } else if !arrivals.iter().all(|arrival| {
        text(&arrival.alert, "/image/manifest_digest") == Some(image.manifest_digest.as_str())
    }) {
        Some("does not name the image's manifest".to_owned())
    } else if scene.kinds.contains(&"exec_modified")
        && !arrivals
            .iter()
            .all(|arrival| names_both_hashes(&arrival.alert, image))
    {
        Some("does not name both hashes and the layer".to_owned())
    } else {
        None
    };
    let said = if kinds.is_empty() {
        "no alert".to_owned()
    } else {
        kinds.join(", ")
    };
    let verdict = match &wrong {
        None => paint.good("as it must be"),
        Some(wrong) => paint.bad(wrong),
    };
    println!("  {:10}{said:16}{verdict}", scene.container);
    wrong.is_none()
}

fn names_both_hashes(alert: &Value, image: &Image) -> bool {
    let expected = text(alert, "/file/expected_sha256");
    let seen = text(alert, "/file/seen_sha256");
    let layer = image.layers.last().map(|layer| layer.diff_id.as_str());
    expected.is_some() && seen.is_some() && expected != seen && text(alert, "/file/layer") == layer
}

/// Colours, where a terminal shows them.
struct Paint {
    colours: bool,
}

impl Paint {
    fn with(&self, code: &str, text: &str) -> String {
        if self.colours {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    fn bold(&self, text: &str) -> String {
        self.with("1", text)
    }

    fn faint(&self, text: &str) -> String {
        self.with("2", text)
    }

    fn good(&self, text: &str) -> String {
        self.with("32", text)
    }

    fn bad(&self, text: &str) -> String {
        self.with("31", text)
    }
}
