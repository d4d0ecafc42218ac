//! `monitord doctor`: what this node lets the daemon see and do, each line with its reason.

mod report;

use std::path::Path;

use monitor_common::Hook;
use nix::sys::utsname::uname;

pub use self::report::{Line, Report, State};
use crate::{
    changes::{BLIND_SPOTS, Changes},
    config::Config,
    containerd,
    containers::hierarchy::Hierarchy,
    sensor::{
        Sensor, SensorError,
        hold::Holder,
        hooks::{self, Choice},
    },
};

/// Looks at everything the daemon needs. Attaches the hooks for a moment.
///
/// # Errors
///
/// The async runtime cannot be started.
pub fn examine(config: &Config) -> anyhow::Result<Report> {
    let mut lines = vec![kernel()];
    match Sensor::try_hooks() {
        Ok(choices) => lines.extend(choices.iter().map(hook)),
        Err(error) => lines.push(sensor(&error)),
    }
    lines.push(fanotify());
    lines.push(image_files());
    lines.push(cgroups());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    lines.push(runtime.block_on(containerd(&config.containerd)));
    lines.push(state(&config.state));
    Ok(Report { lines })
}

fn kernel() -> Line {
    match uname() {
        Ok(system) => Line::good("kernel", system.release().to_string_lossy()),
        Err(error) => Line::failed("kernel", format!("cannot ask its version: {error}")),
    }
}

fn sensor(error: &SensorError) -> Line {
    Line::failed("hooks", error.to_string())
}

/// What sees a kind of event, why nothing better does, and what stays unseen.
fn hook(choice: &Choice) -> Line {
    let name = format!("hook.{}", hooks::kind_name(choice.kind));
    let blind_spots = choice.blind_spots();
    let refused = choice.refused.iter().map(|refusal| {
        format!(
            "{} refused: {}",
            hooks::set_name(refusal.set),
            refusal.without_log()
        )
    });
    let state = match choice.set {
        None if choice.kind == Hook::Exec => State::Failed,
        Some(_) if blind_spots.is_empty() => State::Good,
        _ => State::Limited,
    };
    Line {
        name,
        state,
        finding: choice.set.map_or("none", hooks::set_name).to_owned(),
        reasons: refused.collect(),
        not_seen: blind_spots,
    }
}

fn fanotify() -> Line {
    match Holder::new() {
        Ok(_) => Line::good("fanotify", "executed files are held until they are judged"),
        Err(error) => Line::failed("fanotify", error.to_string()),
    }
}

fn image_files() -> Line {
    match Changes::may_start() {
        Ok(()) => Line {
            name: "image-files".to_owned(),
            state: State::Limited,
            finding: "files of images that containers write, replace or remove are compared"
                .to_owned(),
            reasons: Vec::new(),
            not_seen: BLIND_SPOTS.map(str::to_owned).to_vec(),
        },
        // The rest can be watched without it.
        Err(error) => Line {
            name: "image-files".to_owned(),
            state: State::Limited,
            finding: "none".to_owned(),
            reasons: vec![error.to_string()],
            not_seen: vec![
                "files of images that containers change, until they are used as code".to_owned(),
            ],
        },
    }
}

fn cgroups() -> Line {
    match Hierarchy::find() {
        Ok(found) => {
            let beside = if found.is_hybrid { ", beside v1" } else { "" };
            let place = found.place.display();
            Line::good("cgroups", format!("v2 hierarchy at {place}{beside}"))
        }
        Err(error) => Line::failed("cgroups", error.to_string()),
    }
}

async fn containerd(address: &Path) -> Line {
    let asked = async {
        let client = containerd::Client::connect(address).await?;
        client.namespaces().await
    };
    match asked.await {
        Ok(namespaces) => Line::good(
            "containerd",
            format!(
                "{} answers, namespaces: {}",
                address.display(),
                if namespaces.is_empty() {
                    "none yet".to_owned()
                } else {
                    namespaces.join(", ")
                }
            ),
        ),
        Err(error) => Line::failed("containerd", error.to_string()),
    }
}

/// The directory may be made later, below one that is there.
fn state(directory: &Path) -> Line {
    let existing = directory
        .ancestors()
        .find(|directory| directory.is_dir())
        .unwrap_or(Path::new("/"));
    let writable = nix::unistd::access(existing, nix::unistd::AccessFlags::W_OK);
    match writable {
        Ok(()) => Line::good("state", directory.display().to_string()),
        Err(error) => Line::failed(
            "state",
            format!(
                "cannot write to {}: {error}; give another directory with --state",
                existing.display()
            ),
        ),
    }
}
