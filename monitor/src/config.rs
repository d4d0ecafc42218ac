//! The daemon's configuration: a TOML file, overridden by options.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    alerts::{Retention, journal::JOURNAL_BYTES_MIN},
    api::{Address, Roles, TlsFiles, upstream},
    detect::approval::DeniedBase,
    files::{self, ReadError},
    outputs,
    profile::Ending,
    provenance, registry, respond,
};

/// Bytes of a configuration file; a longer one is refused.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Most days that alerts are kept.
const DAYS_MAX: u32 = 3650;

/// What `monitord run` needs to know. Every key may be left out.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Path of containerd's socket.
    pub containerd: PathBuf,
    /// Addresses to listen on, `unix:///PATH` or `https://IP:PORT`.
    pub listen: Vec<String>,
    /// Directory of the daemon's state.
    pub state: PathBuf,
    /// Whether hooks and what they see outlive the daemon, until it is started again.
    pub pin: bool,
    /// Directory on a bpffs where they are kept.
    pub pin_directory: PathBuf,
    /// Name of this node in alerts; the host's name if left out.
    pub node: Option<String>,
    /// Name of the cluster in alerts.
    pub cluster: Option<String>,
    /// Name of the environment in alerts (`production`).
    pub environment: Option<String>,
    /// How long alerts are kept on disk.
    pub journal: Journal,
    /// Certificates of the addresses with https.
    pub tls: Option<TlsFiles>,
    /// What the names in clients' certificates may do.
    pub roles: Roles,
    /// Who is called to be given alerts.
    pub collector: Option<upstream::Settings>,
    /// The cluster's controller, which is told what runs here and says which images are approved.
    pub controller: Option<upstream::Settings>,
    /// Where alerts are written to beside the API.
    pub output: Vec<outputs::Settings>,
    /// Whether and how registries are asked for blobs that containerd does not have.
    pub registry: registry::Options,
    /// With which keys images' signatures are checked.
    pub provenance: provenance::Options,
    /// Which policies are in force.
    pub policy: Policies,
    /// How behaviour profiles are learned, and where more of them lie.
    pub profile: Profiles,
    /// Which images may run.
    pub approval: Approval,
    /// How rollbacks are carried out.
    pub respond: respond::Settings,
    /// Address of this machine alone to serve metrics and probes on; nowhere if left out.
    pub metrics: Option<SocketAddr>,
}

/// How long alerts are kept on disk: until either bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Journal {
    /// Most bytes; the oldest alerts go first. At least 1 MiB.
    pub bytes_max: u64,
    /// Days; 1 to 3650.
    pub days_max: u32,
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            bytes_max: 1 << 30,
            days_max: 30,
        }
    }
}

impl Journal {
    /// As the log takes it.
    pub fn retention(&self) -> Retention {
        Retention {
            bytes_max: self.bytes_max,
            age_max: DAY.saturating_mul(self.days_max),
        }
    }
}

/// Which policies are in force.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policies {
    /// A folder of policies in YAML.
    pub directory: Option<PathBuf>,
    /// The daemon's own are in force as well.
    pub default: bool,
}

impl Default for Policies {
    fn default() -> Self {
        Self {
            directory: None,
            default: true,
        }
    }
}

/// Which images may run, beside what the API is told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Approval {
    /// What holds of repositories of which nothing was said.
    pub default: Unmanaged,
    /// A folder of approvals in YAML.
    pub directory: Option<PathBuf>,
    /// Registries that images may come from, as references name them (`docker.io`, `HOST:PORT`); any
    /// if there are none.
    pub registries: Vec<String>,
    /// Images that others must not be built on.
    pub denied_bases: Vec<DeniedBase>,
}

/// What holds of repositories of which nothing was said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unmanaged {
    /// Their images may run.
    #[default]
    Allow,
    /// Their images may not run.
    Deny,
}

/// How behaviour profiles are learned.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Profiles {
    /// Seconds without anything new after which a profile is frozen, at most a year; 0 leaves that to
    /// `monitorctl profile freeze`.
    pub quiet_seconds: u64,
    /// Containers of an image that must have started before its profile is frozen.
    pub starts_min: usize,
    /// A folder of profiles that are kept elsewhere; they come before what is learned here.
    pub directory: Option<PathBuf>,
}

impl Default for Profiles {
    fn default() -> Self {
        Self {
            quiet_seconds: DAY.as_secs(),
            starts_min: 1,
            directory: None,
        }
    }
}

impl Profiles {
    /// When a profile is frozen without being told to.
    pub fn ending(&self) -> Option<Ending> {
        (self.quiet_seconds > 0).then_some(Ending {
            quiet: Duration::from_secs(self.quiet_seconds),
            starts_min: self.starts_min,
        })
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            containerd: PathBuf::from("/run/containerd/containerd.sock"),
            listen: vec!["unix:///run/monitord/monitord.sock".to_owned()],
            state: PathBuf::from("/var/lib/monitord"),
            pin: true,
            pin_directory: PathBuf::from("/sys/fs/bpf/monitord"),
            node: None,
            cluster: None,
            environment: None,
            journal: Journal::default(),
            tls: None,
            roles: Roles::default(),
            collector: None,
            controller: None,
            output: Vec::new(),
            registry: registry::Options::default(),
            provenance: provenance::Options::default(),
            policy: Policies::default(),
            profile: Profiles::default(),
            approval: Approval::default(),
            respond: respond::Settings::default(),
            metrics: None,
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
    /// TCP is only served with TLS.
    #[error("listen: {0} needs certificate, key and client_ca below [tls]")]
    NoTls(String),
    /// Nobody could do anything there.
    #[error(
        "listen: {0} needs names of clients below [roles]: observer, operator, responder or, of a controller, node = [\"NAME\"]"
    )]
    NoRoles(String),
    /// Whoever reaches it may read.
    #[error(
        "metrics: {0} can be reached from elsewhere, and whoever reaches it may read; give 127.0.0.1:PORT or [::1]:PORT, and put a proxy before it if needed"
    )]
    NotLocal(SocketAddr),
    /// A collector that cannot be called.
    #[error("collector: {0}")]
    Collector(upstream::SettingsError),
    /// A controller that cannot be called.
    #[error("controller: {0}")]
    Controller(upstream::SettingsError),
    /// Outputs that make no sense.
    #[error("output: {0}")]
    Output(#[from] outputs::SettingsError),
    /// Keys that make no sense.
    #[error("provenance.keys: {0}")]
    Keys(#[from] provenance::OptionsError),
    /// Nothing where something is needed.
    #[error("{0} is empty; leave it out, or give a value")]
    Empty(&'static str),
    /// Outside of what is allowed.
    #[error("{key} = {value} is not allowed; give {allowed}")]
    Range {
        /// The key.
        key: &'static str,
        /// Its value.
        value: u64,
        /// What is allowed.
        allowed: String,
    },
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
        read(path, Self::check)
    }

    /// Whether the values make sense, wherever they came from.
    pub fn check(&self) -> Result<(), ValueError> {
        check_listen(&self.listen, self.tls.is_some(), &self.roles)?;
        if self.node.as_deref() == Some("") {
            return Err(ValueError::Empty("node"));
        }
        if let Some(address) = self.metrics.filter(|address| !address.ip().is_loopback()) {
            return Err(ValueError::NotLocal(address));
        }
        outputs::check(&self.output)?;
        self.provenance.check()?;
        if let Some(collector) = &self.collector {
            collector.check().map_err(ValueError::Collector)?;
        }
        if let Some(controller) = &self.controller {
            controller.check().map_err(ValueError::Controller)?;
        }
        check_journal(&self.journal)?;
        let quiet_max = 365 * DAY.as_secs();
        if self.profile.quiet_seconds > quiet_max {
            return Err(ValueError::Range {
                key: "profile.quiet_seconds",
                value: self.profile.quiet_seconds,
                allowed: format!("at most {quiet_max}"),
            });
        }
        if let Some((key, value, allowed)) = self.respond.out_of_range() {
            return Err(ValueError::Range {
                key,
                value: value.into(),
                allowed: allowed.to_owned(),
            });
        }
        let credentials = self.registry.credentials.iter();
        let profiles = self.profile.directory.iter();
        let policies = self.policy.directory.iter();
        let approvals = self.approval.directory.iter();
        let keys = self.provenance.keys.iter().map(|key| &key.file);
        let signatures = self.provenance.folder.iter();
        let paths = [
            ("containerd", &self.containerd),
            ("state", &self.state),
            ("pin_directory", &self.pin_directory),
            ("registry.ca", &self.registry.ca),
        ];
        let paths = (paths.into_iter())
            .chain(credentials.map(|path| ("registry.credentials", path)))
            .chain(policies.map(|path| ("policy.directory", path)))
            .chain(profiles.map(|path| ("profile.directory", path)))
            .chain(approvals.map(|path| ("approval.directory", path)))
            .chain(keys.map(|path| ("provenance.keys.file", path)))
            .chain(signatures.map(|path| ("provenance.folder", path)));
        check_absolute(paths)
    }
}

/// Reads a configuration file.
///
/// # Errors
///
/// It cannot be read, or is refused.
pub fn read<T: DeserializeOwned>(
    path: &Path,
    check: fn(&T) -> Result<(), ValueError>,
) -> Result<T, ConfigError> {
    parse(&read_text(path)?, check).map_err(|text| ConfigError::Content {
        path: path.to_owned(),
        text,
    })
}

/// The same of its text.
///
/// # Errors
///
/// Why it is refused, with the place.
pub fn parse<T: DeserializeOwned>(
    text: &str,
    check: fn(&T) -> Result<(), ValueError>,
) -> Result<T, String> {
    let config = toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
    check(&config).map_err(|error| error.to_string())?;
    Ok(config)
}

/// Whether paths mean the same from everywhere, each with its key.
///
/// # Errors
///
/// One does not.
pub fn check_absolute<'a>(
    paths: impl IntoIterator<Item = (&'static str, &'a PathBuf)>,
) -> Result<(), ValueError> {
    let relative = paths.into_iter().find(|(_, path)| !path.is_absolute());
    match relative {
        Some((key, path)) => Err(ValueError::Relative {
            key,
            path: path.clone(),
        }),
        None => Ok(()),
    }
}

fn read_text(path: &Path) -> Result<String, ConfigError> {
    let path = || path.to_owned();
    let failed = |source| ConfigError::Read {
        path: path(),
        source,
    };
    let bytes = files::read(&path(), CONFIG_BYTES_MAX).map_err(|error| match error {
        ReadError::Io(source) => failed(source),
        ReadError::NotAFile(_) => ConfigError::NotAFile { path: path() },
    })?;
    String::from_utf8(bytes)
        .map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error)))
}

/// Whether the API can be served on these addresses.
///
/// # Errors
///
/// One is none, or lacks what it needs.
pub fn check_listen(listen: &[String], has_tls: bool, roles: &Roles) -> Result<(), ValueError> {
    if listen.is_empty() {
        return Err(ValueError::Empty("listen"));
    }
    for address in listen {
        match address.parse() {
            Ok(Address::Unix(_)) => {}
            Ok(Address::Https(_)) if !has_tls => {
                return Err(ValueError::NoTls(address.clone()));
            }
            Ok(Address::Https(_)) if roles.is_empty() => {
                return Err(ValueError::NoRoles(address.clone()));
            }
            Ok(Address::Https(_)) => {}
            Err(error) => return Err(ValueError::Listen(error.to_string())),
        }
    }
    Ok(())
}

/// Whether alerts can be kept so long.
///
/// # Errors
///
/// They cannot.
pub fn check_journal(journal: &Journal) -> Result<(), ValueError> {
    let Journal {
        bytes_max,
        days_max,
    } = *journal;
    if bytes_max < JOURNAL_BYTES_MIN {
        return Err(ValueError::Range {
            key: "journal.bytes_max",
            value: bytes_max,
            allowed: format!("at least {JOURNAL_BYTES_MIN}"),
        });
    }
    if !(1..=DAYS_MAX).contains(&days_max) {
        return Err(ValueError::Range {
            key: "journal.days_max",
            value: days_max.into(),
            allowed: format!("1 to {DAYS_MAX}"),
        });
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::panic, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_taken_whole_or_refused_with_its_place() {
        let check =
            |text: &str, expect: Result<&str, &str>| match (parse(text, Config::check), expect) {
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
        check("pin = false\npin_directory = '/sys/fs/bpf/a'", Ok(""));
        check("pin_directory = 'a'", Err("not an absolute path"));
        check("node = 7", Err("expected a string"));
        check("listen = ['tcp://0.0.0.0:1']", Err("unix://"));
        check("listen = ['https://[::]:1']", Err("below [tls]"));
        let tls =
            "listen = ['https://[::]:1']\n[tls]\ncertificate = '/a'\nkey = '/b'\nclient_ca = '/c'";
        check(tls, Err("below [roles]"));
        check(&format!("{tls}\n[roles]\nobserver = ['soc']"), Ok(""));
        check("tls.key = '/a'", Err("missing field `certificate`"));
        check("roles.admin = []", Err("`observer`"));
        check("metrics = '127.0.0.1:9117'", Ok(""));
        check("metrics = '[::1]:0'", Ok(""));
        check("metrics = '0.0.0.0:9117'", Err("from elsewhere"));
        check(
            "[registry]\nenabled = true\nplain_http = ['127.0.0.1:1']",
            Ok(""),
        );
        check("registry.credentials = 'a'", Err("registry.credentials"));
        check("registry.insecure = true", Err("`plain_http`"));
        let key = "[[provenance.keys]]\nname = 'a'\nfile = '/a'\nrepositories = ['a/*']\n";
        check(key, Ok(""));
        check(
            &format!(
                "{key}not_after = '2027-01-01T00:00:00Z'\nrevoked = true\ncheck_reference = true"
            ),
            Ok(""),
        );
        check(&format!("{key}not_after = 'x'"), Err("line 5"));
        check(&format!("{key}until = 'x'"), Err("`not_after`"));
        check(&key.replace("'/a'", "'a'"), Err("not an absolute path"));
        check(&key.replace("'a/*'", ""), Err("no repository"));
        check(&key.repeat(2), Err("another key's"));
        check(&key.repeat(65), Err("at most 64"));
        check(&key.replace("file", "path"), Err("`repositories`"));
        check("provenance.folder = 'a'", Err("provenance.folder"));
        check("metrics = 'localhost'", Err("metrics = 'localhost'"));
        check("listen = []", Err("listen is empty"));
        check("node = ''", Err("node is empty"));
        check("state = 'relative'", Err("not an absolute path"));
        let controller =
            "[controller]\naddress = 'https://c:1'\nca = '/a'\ncertificate = '/b'\nkey = '/c'";
        check(controller, Ok(""));
        check(&controller.replace("https", "unix"), Err("controller:"));
        check(&controller.replace("key", "keys"), Err("`certificate`"));
        check("[journal]\nbytes_max = 1048576\ndays_max = 1", Ok(""));
        check("journal.bytes_max = 1", Err("at least 1048576"));
        check("journal.days_max = 0", Err("1 to 3650"));
        let output = |lines: &str| format!("[[output]]\nname = 'soc'\n{lines}");
        let jsonl = output("kind = 'jsonl'\npath = '/var/log/a'\n");
        check(&jsonl, Ok(""));
        check(&output("kind = 'ocsf'\npath = '-'"), Ok(""));
        check(
            &output("kind = 'ocsf'"),
            Err("soc needs either path or nats"),
        );
        let nats = output("kind = 'ocsf'\n[output.nats]\nstream = 'S'\n");
        check(&format!("{nats}url = 'tls://h:1'"), Ok(""));
        check(&format!("{nats}url = 'nats://h:1'"), Err("tls://HOST:PORT"));
        check(&output("kind = 'syslog'"), Err("line 3"));
        check(&output("kind = 'syslog'"), Err("`jsonl` or `ocsf`"));
        check(&output("to = '-'"), Err("`name`, `kind`, `path`, `nats`"));
        check(&output("kind = 'ocsf'\npath = 'a'"), Err("nor `-`"));
        check(&jsonl.replace("soc", "a/b"), Err("letters, digits"));
        check(&jsonl.repeat(2), Err("two have the name or place"));
        check(&jsonl.repeat(9), Err("at most 8"));
        check("policy.default = false", Ok(""));
        check("policy.directory = 'a'", Err("policy.directory"));
        check("profile.quiet_seconds = 0", Ok(""));
        check("profile.quiet_seconds = 31536001", Err("at most 31536000"));
        check("profile.directory = 'a'", Err("not an absolute path"));
        check("profile.learn = true", Err("`quiet_seconds`"));
        check("approval.default = 'deny'", Ok(""));
        check("respond.cool_down_seconds = 0", Ok(""));
        check("respond.automatic = 'auto'", Ok(""));
        check("respond.automatic = 'ask'", Err("`off`, `propose`"));
        check("respond.watch_seconds = 0", Err("1 to 300"));
        check("respond.grace = 1", Err("`grace_seconds`"));
        check("approval.default = 'ask'", Err("`allow` or `deny`"));
        check("approval.directory = 'a'", Err("approval.directory"));
        check(
            "[[approval.denied_bases]]\nchain_id = 'a'\nreason = ''",
            Err("sha256:"),
        );
        check("journal.days = 1", Err("`bytes_max` or `days_max`"));
    }
}
