//! The controller's configuration: a TOML file.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use crate::{
    api::{Roles, TlsFiles},
    config::{self, ConfigError, Journal, ValueError, check_absolute, check_journal, check_listen},
    outputs, provenance, registry,
    respond::{Automatic, Limits},
};

/// What `monitord controller` needs to know. Every key may be left out.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Addresses to listen on, `https://IP:PORT` or `unix:///PATH`.
    pub listen: Vec<String>,
    /// `IP:PORT` at which the other controllers reach this one; the first https address of `listen` if
    /// left out, with the variable `POD_IP` for an address that means all.
    pub advertise: Option<SocketAddr>,
    /// Directory of the controller's state.
    pub state: PathBuf,
    /// A kubeconfig; the pod's own account if left out.
    pub kubeconfig: Option<PathBuf>,
    /// Namespace of the controller, where its Lease is.
    pub namespace: String,
    /// Name of the controller in alerts and in its Lease; the variable `POD_NAME` or the host's name if
    /// left out.
    pub name: Option<String>,
    /// Name of the cluster in alerts.
    pub cluster: Option<String>,
    /// Name of the environment in alerts.
    pub environment: Option<String>,
    /// How long alerts are kept on disk.
    pub journal: Journal,
    /// Certificates of the addresses with https.
    pub tls: Option<TlsFiles>,
    /// What the names in clients' certificates may do.
    pub roles: Roles,
    /// Where alerts are written to beside the API.
    pub output: Vec<outputs::Settings>,
    /// Whether and how registries are asked for what an approved digest stands for.
    pub registry: registry::Options,
    /// With which keys images' signatures are checked.
    pub provenance: provenance::Options,
    /// How rollbacks are carried out.
    pub rollback: Settings,
}

/// How rollbacks of workloads are carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Seconds for a rollout; 10 to 86400.
    pub rollout_seconds: u32,
    /// Seconds after a rollout for the nodes to prove what runs; 5 to 3600.
    pub verify_seconds: u32,
    /// Orders that may begin within an hour; 1 to 64.
    pub per_hour: u32,
    /// Seconds after the end of an order in which its workload has no other; at most 86400.
    pub cool_down_seconds: u32,
    /// What incidents may lead to that nodes report by their policies.
    pub automatic: Automatic,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            rollout_seconds: 600,
            verify_seconds: 60,
            per_hour: 10,
            cool_down_seconds: 60,
            automatic: Automatic::Off,
        }
    }
}

impl Settings {
    /// How often orders may begin.
    pub fn limits(&self) -> Limits {
        Limits {
            section: "rollback",
            per_hour: self.per_hour,
            cool_down_seconds: self.cool_down_seconds,
        }
    }

    /// See [`Self::cool_down_seconds`].
    pub fn cool_down(&self) -> Duration {
        Duration::from_secs(self.cool_down_seconds.into())
    }

    fn check(&self) -> Result<(), ValueError> {
        let ranges = [
            (
                "rollback.rollout_seconds",
                self.rollout_seconds,
                10..=86_400,
            ),
            ("rollback.verify_seconds", self.verify_seconds, 5..=3600),
            ("rollback.per_hour", self.per_hour, 1..=64),
            (
                "rollback.cool_down_seconds",
                self.cool_down_seconds,
                0..=86_400,
            ),
        ];
        for (key, value, range) in ranges {
            if !range.contains(&value) {
                return Err(ValueError::Range {
                    key,
                    value: value.into(),
                    allowed: format!("{} to {}", range.start(), range.end()),
                });
            }
        }
        Ok(())
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec!["unix:///run/monitord/controller.sock".to_owned()],
            advertise: None,
            state: PathBuf::from("/var/lib/monitord"),
            kubeconfig: None,
            namespace: "monitord".to_owned(),
            name: None,
            cluster: None,
            environment: None,
            journal: Journal::default(),
            tls: None,
            roles: Roles::default(),
            output: Vec::new(),
            registry: registry::Options::default(),
            provenance: provenance::Options::default(),
            rollback: Settings::default(),
        }
    }
}

impl Config {
    /// Reads a configuration file.
    ///
    /// # Errors
    ///
    /// See [`ConfigError`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        config::read(path, Self::check)
    }

    fn check(&self) -> Result<(), ValueError> {
        check_listen(&self.listen, self.tls.is_some(), &self.roles)?;
        check_journal(&self.journal)?;
        outputs::check(&self.output)?;
        self.provenance.check()?;
        self.rollback.check()?;
        if self.namespace.is_empty() {
            return Err(ValueError::Empty("namespace"));
        }
        let credentials = self.registry.credentials.iter();
        let keys = self.provenance.keys.iter().map(|key| &key.file);
        let paths = [("state", &self.state), ("registry.ca", &self.registry.ca)].into_iter();
        let paths = paths
            .chain(self.kubeconfig.iter().map(|path| ("kubeconfig", path)))
            .chain(credentials.map(|path| ("registry.credentials", path)))
            .chain(keys.map(|path| ("provenance.keys.file", path)))
            .chain(
                self.provenance
                    .folder
                    .iter()
                    .map(|path| ("provenance.folder", path)),
            );
        check_absolute(paths)
    }
}

#[cfg(test)]
#[expect(clippy::panic, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_taken_whole_or_refused_with_its_place() {
        let check = |text: &str, expect: Result<(), &str>| match (
            config::parse(text, Config::check),
            expect,
        ) {
            (Ok(_), Ok(())) => {}
            (Err(error), Err(part)) => assert!(error.contains(part), "{text}: {error}"),
            (found, _) => panic!("{text}: {found:?}"),
        };
        check("", Ok(()));
        check("containerd = '/a'", Err("`kubeconfig`"));
        check("namespace = ''", Err("namespace is empty"));
        check("kubeconfig = 'a'", Err("not an absolute path"));
        check("listen = ['https://[::]:1']", Err("below [tls]"));
        check("advertise = '10.0.0.1:9443'", Ok(()));
        check("rollback.automatic = 'propose'", Ok(()));
        check("rollback.automatic = 'yes'", Err("`propose`"));
        check("rollback.rollout_seconds = 1", Err("10 to 86400"));
        check("rollback.verify_seconds = 1", Err("5 to 3600"));
        check("roles.node = ['worker-*']", Ok(()));
    }
}
