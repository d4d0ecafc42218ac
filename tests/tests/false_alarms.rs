//! Programs that people run, from Debian's packages: what their image accounts for raises nothing.

use anyhow::{Result, ensure};
use serde_json::Value;
use tests::{
    alerts::text,
    programs::{self, EXERCISE, NGINX, POSTGRES, PYTHON, Program, REDIS},
    require,
    world::{World, shared},
};

/// Added to the container and executed there at the end, to show that it is watched at all.
const DRIFT: &str = "cp /bin/true /run/drift; echo salt >> /run/drift; /run/drift";
const DRIFT_PATH: &str = "/run/drift";

/// Starts the program's container, exercises it and stops it; it must have raised nothing but
/// [`DRIFT`].
fn check(program: &Program) -> Result<()> {
    let world = shared()?;
    let name = program.name;
    let containerd = &world.containerd;
    let reference = program.import(containerd)?;
    let id = world.unique(name);
    program.start(containerd, &reference, &id)?;
    let mut outcome = exercise(&world, &id);
    if outcome.is_ok() {
        outcome = programs::stop(containerd, &id);
    }
    containerd.delete(&id)?;
    outcome?;
    world.settle()?;
    let raised = world.alerts.of(&id);
    let (drift, alarms): (Vec<&Value>, Vec<&Value>) = raised
        .iter()
        .filter(|alert| is_about_code(alert) || is_about_code_of_the_image(alert))
        .partition(|alert| text(alert, "/file/path") == Some(DRIFT_PATH));
    let shown: Vec<String> = alarms.iter().map(|alert| shown(alert)).collect();
    let data = raised
        .iter()
        .filter(|alert| text(alert, "/kind") == Some("image_file_modified"));
    for alert in data {
        println!("{name}: {}", text(alert, "/message").unwrap_or_default());
    }
    ensure!(
        shown.is_empty(),
        "{name}: {} false alarms:\n{}",
        shown.len(),
        shown.join("\n")
    );
    ensure!(!drift.is_empty(), "{name}: {DRIFT:?} raised nothing");
    Ok(())
}

fn exercise(world: &World, id: &str) -> Result<()> {
    let containerd = &world.containerd;
    programs::wait_healthy(containerd, id, || world.unique("exec"))?;
    for command in [&[EXERCISE] as &[_], &[EXERCISE], &["/bin/sh", "-c", DRIFT]] {
        containerd.exec(id, &world.unique("exec"), command)?;
    }
    Ok(())
}

fn is_about_code(alert: &Value) -> bool {
    let kind = text(alert, "/kind").unwrap_or_default();
    ["exec_", "code_", "script_"]
        .iter()
        .any(|prefix| kind.starts_with(prefix))
}

/// Data of its image is what a program may change.
fn is_about_code_of_the_image(alert: &Value) -> bool {
    let is_data = text(alert, "/severity") == Some("info");
    text(alert, "/kind") == Some("image_file_modified") && !is_data
}

/// A line with what is needed to find out why.
fn shown(alert: &Value) -> String {
    let field = |pointer| text(alert, pointer).unwrap_or("-");
    let part = |pointer| alert.pointer(pointer).unwrap_or(&Value::Null);
    format!(
        "  {} {} ({}, hook {}) by {} {} below {}: {}",
        field("/kind"),
        field("/file/path"),
        field("/file/verdict"),
        field("/hook"),
        field("/process/executable"),
        part("/process/arguments"),
        part("/process/ancestors"),
        field("/message"),
    )
}

/// One test per program, so that a failure names it.
macro_rules! programs {
    ($($name:ident: $program:expr;)+) => {$(
        #[test]
        fn $name() -> Result<()> {
            require!(Root, Containerd, Busybox, Btf, DebianLayers);
            check(&Program { name: stringify!($name), ..$program })
        }
    )+};
}

programs! {
    java: Program::default();
    nginx: NGINX;
    node: Program {
        command: &["/srv/app/server.js"],
        ..Program::default()
    };
    postgres: POSTGRES;
    python: PYTHON;
    redis: REDIS;
    tools: Program::default();
}
