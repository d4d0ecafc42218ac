//! The daemon's configuration: a TOML file, overridden by options.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::api::Address;

/// Bytes of a configuration file; a longer one is refused.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// What `monitord run` needs to know. Every key may be left out.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Path of containerd's socket.
    pub containerd: PathBuf,
    /// Addresses to listen on, `unix:///PATH`.
    pub listen: Vec<String>,
    /// Directory of the daemon's state.
    pub state: PathBuf,
    /// Name of this node in alerts; the host's name if left out.
    pub node: Option<String>,
    /// Name of the cluster in alerts.
    pub cluster: Option<String>,
    /// Name of the environment in alerts (`production`).
    pub environment: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            containerd: PathBuf::from("/run/containerd/containerd.sock"),
            listen: vec!["unix:///run/monitord/monitord.sock".to_owned()],
            state: PathBuf::from("/var/lib/monitord"),
            node: None,
            cluster: None,
            environment: None,
        }
    }
}

/// The configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not a file, or too long to be a configuration.
    #[error("the configuration {path} is no regular file of at most {CONFIG_BYTES_MAX} bytes")]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// Its content is refused; the text names line, column and what is allowed.
    #[error("the configuration {path} is refused: {text}")]
    Content {
        /// The file.
        path: PathBuf,
        /// Line, column, and what is allowed.
        text: String,
    },
}

/// A value makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum ValueError {
    /// Not an address that the API can be served on.
    #[error("listen: {0}")]
    Listen(String),
    /// Nothing where something is needed.
    #[error("{0} is empty; leave it out, or give a value")]
    Empty(&'static str),
    /// Not a path that means the same from everywhere.
    #[error("{key} = {path:?} is not an absolute path")]
    Relative {
        /// The key or option.
        key: &'static str,
        /// Its value.
        path: PathBuf,
    },
}

impl Config {
    /// Reads a configuration file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let failed = |source| ConfigError::Read {
            path: path.to_owned(),
            source,
        };
        let metadata = fs::metadata(path).map_err(failed)?;
        if !metadata.is_file() || metadata.len() > CONFIG_BYTES_MAX {
            return Err(ConfigError::NotAFile {
                path: path.to_owned(),
            });
        }
        Self::parse(&fs::read_to_string(path).map_err(failed)?).map_err(|text| {
            ConfigError::Content {
                path: path.to_owned(),
                text,
            }
        })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let config: Self =
            toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
        config.check().map_err(|error| error.to_string())?;
        Ok(config)
    }

    /// Whether the values make sense, wherever they came from.
    pub fn check(&self) -> Result<(), ValueError> {
        if self.listen.is_empty() {
            return Err(ValueError::Empty("listen"));
        }
        if self.node.as_deref() == Some("") {
            return Err(ValueError::Empty("node"));
        }
        for address in &self.listen {
            if let Err(error) = address.parse::<Address>() {
                return Err(ValueError::Listen(error.to_string()));
            }
        }
        for (key, path) in [("containerd", &self.containerd), ("state", &self.state)] {
            if !path.is_absolute() {
                return Err(ValueError::Relative {
                    key,
                    path: path.clone(),
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[expect(clippy::panic, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_taken_whole_or_refused_with_its_place() {
        let check = |text: &str, expect: Result<&str, &str>| match (Config::parse(text), expect) {
            (Ok(config), Ok(node)) => {
                assert_eq!(config.node.as_deref().unwrap_or(""), node, "{text}")
            }
            (Err(error), Err(part)) => assert!(error.contains(part), "{text}: {error}"),
            (found, _) => panic!("{text}: {found:?}"),
        };
        check("", Ok(""));
        check("node = 'a'\nlisten = ['unix:///tmp/x']", Ok("a"));
        check("\nnodes = 'a'", Err("line 2"));
        check("nodes = 'a'", Err("expected one of `containerd`, `listen`"));
        check("node = 7", Err("expected a string"));
        check("listen = ['tcp://0.0.0.0:1']", Err("unix://"));
        check("listen = []", Err("listen is empty"));
        check("node = ''", Err("node is empty"));
        check("state = 'relative'", Err("not an absolute path"));
    }
}
