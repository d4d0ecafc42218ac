//! Programs that people run, from Debian's packages: what their image accounts for raises nothing.
//!
//! Each lies in a folder of `tests/programs`, which is the topmost layer of its image, above the
//! layer of packages of the same name. Three programs of that layer make the test: the entrypoint,
//! a health check, and an exercise that does what the program is for and what it does that looks
//! like an attack.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::Value;
use tests::{
    alerts::text,
    containerd::Run,
    image::{self, Config, Image},
    layer::Layer,
    poll::{PATIENCE, until},
    require,
    world::{World, shared},
};

const ENTRYPOINT: &str = "/usr/local/bin/docker-entrypoint";
const HEALTH_CHECK: &str = "/usr/local/bin/healthcheck";
const EXERCISE: &str = "/usr/local/bin/exercise";

/// Added to the container and executed there at the end, to show that it is watched at all.
const DRIFT: &str = "cp /bin/true /run/drift; echo salt >> /run/drift; /run/drift";
const DRIFT_PATH: &str = "/run/drift";

/// What a program is started with, beside its image.
#[derive(Default)]
struct Program {
    command: &'static [&'static str],
    env: &'static [&'static str],
    /// Gets a filesystem of its own there.
    volume: Option<&'static str>,
}

fn build(world: &World, name: &str, program: &Program) -> Result<String> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("programs")
        .join(name);
    let layers = [
        image::debian_layer("base")?,
        image::debian_layer(name)?,
        Layer::copy(&own).with_context(|| format!("cannot read {}", own.display()))?,
    ];
    let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
    let mut env: Vec<String> = owned(program.env);
    env.push("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
    let config = Config {
        entrypoint: vec![ENTRYPOINT.to_owned()],
        cmd: owned(program.command),
        env,
        ..Config::default()
    };
    let reference = format!("example.invalid/{name}:1");
    world
        .containerd
        .import(&Image::build(&reference, &layers, &config)?)?;
    Ok(reference)
}

/// Starts the program's container, exercises it and stops it; it must have raised nothing but
/// [`DRIFT`].
fn check(name: &str, program: &Program) -> Result<()> {
    let world = shared()?;
    let reference = build(&world, name, program)?;
    let id = world.unique(name);
    let secret = world.containerd.directory().join(format!("{id}-secret"));
    fs::write(&secret, "secret\n")?;
    let mut mounts = vec![format!(
        "type=bind,src={},dst=/run/secrets/password,options=rbind:ro",
        secret.display()
    )];
    if let Some(volume) = program.volume {
        mounts.push(format!("type=tmpfs,src=tmpfs,dst={volume},options=rw"));
    }
    let flags = mounts.iter().flat_map(|mount| ["--mount", mount.as_str()]);
    let containerd = &world.containerd;
    containerd.start_container(&Run::new(&reference, &id).flags(flags))?;
    let outcome = exercise(&world, &id);
    if outcome.is_ok() {
        containerd.ctr(["tasks", "kill", "--signal", "SIGTERM", &id])?;
        until("the program to end", PATIENCE, || {
            ensure!(has_ended(&world, &id)?, "it runs");
            Ok(())
        })?;
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
    let exec = |command: &[&str]| containerd.exec(id, &world.unique("exec"), command);
    let healthy = until("the program to be healthy", PATIENCE, || {
        let outcome = exec(&[HEALTH_CHECK]);
        // No use to wait longer.
        Ok(match has_ended(world, id)? {
            true => Err(anyhow!("it has ended")),
            false => Ok(outcome.map(drop)?),
        })
    });
    healthy
        .and_then(|outcome| outcome)
        .with_context(|| format!("{id} said: {}", containerd.said(id)))?;
    for command in [&[EXERCISE] as &[_], &[EXERCISE], &["/bin/sh", "-c", DRIFT]] {
        exec(command)?;
    }
    Ok(())
}

fn has_ended(world: &World, id: &str) -> Result<bool> {
    let tasks = world.containerd.ctr(["tasks", "list"])?;
    let task = tasks
        .lines()
        .find(|line| line.split_whitespace().next() == Some(id));
    Ok(task.is_none_or(|line| line.ends_with("STOPPED")))
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
            check(stringify!($name), &$program)
        }
    )+};
}

programs! {
    java: Program::default();
    nginx: Program::default();
    node: Program {
        command: &["/srv/app/server.js"],
        ..Program::default()
    };
    postgres: Program {
        env: &["POSTGRES_PASSWORD_FILE=/run/secrets/password"],
        volume: Some("/var/lib/postgresql/data"),
        ..Program::default()
    };
    python: Program::default();
    redis: Program {
        env: &["REDIS_PASSWORD_FILE=/run/secrets/password"],
        volume: Some("/data"),
        ..Program::default()
    };
    tools: Program::default();
}
