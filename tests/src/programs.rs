//! Programs that people run, from Debian's packages, in images of their own.
//!
//! Each lies in a folder of `tests/programs`, which is the topmost layer of its image, above the
//! layer of packages of the same name. Three programs of that layer make a test: the entrypoint,
//! a health check, and an exercise that does what the program is for and what it does that looks
//! like an attack.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::{
    containerd::{Containerd, Run},
    image::{self, Config, Image},
    layer::Layer,
    poll::{PATIENCE, until},
};

const ENTRYPOINT: &str = "/usr/local/bin/docker-entrypoint";
/// Succeeds once the program does its work.
pub const HEALTH_CHECK: &str = "/usr/local/bin/healthcheck";
/// Has the program do what it is for.
pub const EXERCISE: &str = "/usr/local/bin/exercise";
/// What is in the file that a program may find its password in.
pub const SECRET: &str = "secret";
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a program is started with, beside its image.
#[derive(Clone, Copy, Debug, Default)]
pub struct Program {
    /// The folder of `tests/programs`.
    pub name: &'static str,
    /// The image's command.
    pub command: &'static [&'static str],
    /// The image's environment.
    pub env: &'static [&'static str],
    /// Gets a filesystem of its own there.
    pub volume: Option<&'static str>,
}

/// A web server.
pub const NGINX: Program = Program {
    name: "nginx",
    command: &[],
    env: &[],
    volume: None,
};
/// A database.
pub const POSTGRES: Program = Program {
    name: "postgres",
    command: &[],
    env: &["POSTGRES_PASSWORD_FILE=/run/secrets/password"],
    volume: Some("/var/lib/postgresql/data"),
};
/// A store of keys and values.
pub const REDIS: Program = Program {
    name: "redis",
    command: &[],
    env: &["REDIS_PASSWORD_FILE=/run/secrets/password"],
    volume: Some("/data"),
};
/// A web application.
pub const PYTHON: Program = Program {
    name: "python",
    command: &[],
    env: &[],
    volume: None,
};

impl Program {
    /// Makes its image known to a containerd; gives the reference.
    pub fn import(&self, containerd: &Containerd) -> Result<String> {
        let name = self.name;
        let own = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("programs")
            .join(name);
        let layers = [
            image::debian_layer("base")?,
            image::debian_layer(name)?,
            Layer::copy(&own).with_context(|| format!("cannot read {}", own.display()))?,
        ];
        let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        let mut env: Vec<String> = owned(self.env);
        env.push(PATH.to_owned());
        let config = Config {
            entrypoint: vec![ENTRYPOINT.to_owned()],
            cmd: owned(self.command),
            env,
            ..Config::default()
        };
        let reference = format!("example.invalid/{name}:1");
        containerd.import(&Image::build(&reference, &layers, &config)?)?;
        Ok(reference)
    }

    /// Starts a container of its image, with all that it is started with.
    pub fn start(&self, containerd: &Containerd, reference: &str, id: &str) -> Result<()> {
        let secret = containerd.directory().join(format!("{id}-secret"));
        fs::write(&secret, format!("{SECRET}\n"))?;
        let mut mounts = vec![format!(
            "type=bind,src={},dst=/run/secrets/password,options=rbind:ro",
            secret.display()
        )];
        if let Some(volume) = self.volume {
            mounts.push(format!("type=tmpfs,src=tmpfs,dst={volume},options=rw"));
        }
        let flags = mounts.iter().flat_map(|mount| ["--mount", mount.as_str()]);
        containerd.start_container(&Run::new(reference, id).flags(flags))
    }
}

/// Waits until the program in a container does its work, by its health check.
pub fn wait_healthy(containerd: &Containerd, id: &str, exec_id: impl Fn() -> String) -> Result<()> {
    let healthy = until("the program to be healthy", PATIENCE, || {
        let outcome = containerd.exec(id, &exec_id(), [HEALTH_CHECK]);
        // No use to wait longer.
        Ok(match has_ended(containerd, id)? {
            true => Err(anyhow!("it has ended")),
            false => Ok(outcome.map(drop)?),
        })
    });
    healthy
        .and_then(|outcome| outcome)
        .with_context(|| format!("{id} said: {}", containerd.said(id)))
}

/// Ends a container as its runtime would, and waits until its program has.
pub fn stop(containerd: &Containerd, id: &str) -> Result<()> {
    containerd.ctr(["tasks", "kill", "--signal", "SIGTERM", id])?;
    until("the program to end", PATIENCE, || {
        ensure!(has_ended(containerd, id)?, "it runs");
        Ok(())
    })
}

fn has_ended(containerd: &Containerd, id: &str) -> Result<bool> {
    let tasks = containerd.ctr(["tasks", "list"])?;
    let task = tasks
        .lines()
        .find(|line| line.split_whitespace().next() == Some(id));
    Ok(task.is_none_or(|line| line.ends_with("STOPPED")))
}
