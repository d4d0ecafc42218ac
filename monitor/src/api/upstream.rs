//! Servers that this node calls: how they are configured, connected to, and how that stands.

use std::{
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use serde::Deserialize;
use tonic::{
    Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use tracing::{info, warn};

use super::{Address, KEEPALIVE_INTERVAL, address::AddressError, tls::read_file};

/// How long is waited for a connection, TLS included.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
/// Pause after a call that ended or a first attempt that failed; it doubles with each that fails.
const RETRY_INTERVAL_MIN: Duration = Duration::from_secs(1);
/// Letters of an error that are kept.
const ERROR_LETTERS_MAX: usize = 500;

/// A server that is called, as it is configured.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// `https://HOST:PORT`.
    pub address: String,
    /// Certificates of the authorities that the server's is checked by, PEM. This and the other
    /// files are read anew for each connection.
    pub ca: PathBuf,
    /// The node's certificate, PEM.
    pub certificate: PathBuf,
    /// The certificate's private key, PEM.
    pub key: PathBuf,
}

/// A server's address makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// No address at all.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// A node calls by TLS alone.
    #[error("address {0} is no https://HOST:PORT")]
    Scheme(Address),
}

impl Settings {
    /// Whether it makes sense.
    ///
    /// # Errors
    ///
    /// What does not.
    pub fn check(&self) -> Result<(), SettingsError> {
        match self.address.parse()? {
            Address::Https(_) => Ok(()),
            other => Err(SettingsError::Scheme(other)),
        }
    }
}

/// What the log says when it is reached, and when it is not any more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Words {
    pub(super) reached: &'static str,
    pub(super) failed: &'static str,
}

/// A server that is called, and what came of that.
#[derive(Debug)]
pub(super) struct Upstream {
    settings: Settings,
    words: Words,
    standing: Mutex<Standing>,
}

/// How it stands with a server.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    pub(super) connected: bool,
    /// Since when that is so or not.
    pub(super) since: Timestamp,
    /// Calls that failed or ended.
    pub(super) failures: u64,
    /// Why the last did, while none is open.
    pub(super) error: String,
}

impl Upstream {
    pub(super) fn new(settings: &Settings, words: Words) -> Self {
        Self {
            settings: settings.clone(),
            words,
            standing: Mutex::new(Standing {
                connected: false,
                since: Timestamp::now(),
                failures: 0,
                error: String::new(),
            }),
        }
    }

    pub(super) fn address(&self) -> &str {
        &self.settings.address
    }

    fn lock(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn standing(&self) -> Standing {
        self.lock().clone()
    }

    /// Takes note that it answered a call.
    pub(super) fn reached(&self) {
        info!(address = self.settings.address, "{}", self.words.reached);
        let mut standing = self.lock();
        (standing.connected, standing.since) = (true, Timestamp::now());
        standing.error.clear();
    }

    /// Takes note that a call failed or ended.
    pub(super) fn failed(&self, error: String) {
        let mut standing = self.lock();
        if standing.connected || standing.failures == 0 {
            let address = &self.settings.address;
            warn!(address, error, "{}; trying again", self.words.failed);
            standing.since = Timestamp::now();
        }
        standing.connected = false;
        standing.failures += 1;
        standing.error = error;
    }

    /// Connects by mutual TLS. A server that is silent for twice [`KEEPALIVE_INTERVAL`] is given up
    /// later on.
    ///
    /// # Errors
    ///
    /// Why not, in words.
    pub(super) async fn connect(&self) -> Result<Channel, String> {
        let Settings {
            address,
            ca,
            certificate,
            key,
        } = &self.settings;
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read_file(ca).map_err(described)?))
            .identity(Identity::from_pem(
                read_file(certificate).map_err(described)?,
                read_file(key).map_err(described)?,
            ));
        let endpoint = Endpoint::from_shared(address.clone())
            .map_err(described)?
            .tls_config(tls)
            .map_err(described)?
            .connect_timeout(CONNECT_TIME_MAX)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_INTERVAL)
            .keep_alive_while_idle(true);
        endpoint.connect().await.map_err(described)
    }
}

/// Pauses between calls.
#[derive(Debug)]
pub(super) struct Pauses {
    next: Duration,
    max: Duration,
}

impl Pauses {
    pub(super) fn up_to(max: Duration) -> Self {
        Self {
            next: RETRY_INTERVAL_MIN,
            max,
        }
    }

    /// After a call that was answered.
    pub(super) fn begin_again(&mut self) {
        self.next = RETRY_INTERVAL_MIN;
    }

    /// The pause before the next call; the one after it is twice as long.
    pub(super) fn next(&mut self) -> Duration {
        let pause = self.next;
        self.next = pause.saturating_mul(2).min(self.max);
        pause
    }
}

/// With what lies below it, which tonic's own text leaves out.
pub(super) fn described(error: impl std::error::Error + Send + Sync + 'static) -> String {
    let text = format!("{:#}", anyhow::Error::new(error));
    text.chars().take(ERROR_LETTERS_MAX).collect()
}

/// A status in words.
pub(super) fn shown(status: &Status) -> String {
    let text = format!("{:?}: {}", status.code(), status.message());
    text.chars().take(ERROR_LETTERS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_the_longest_and_begin_again() {
        let mut pauses = Pauses::up_to(Duration::from_secs(5));
        let mut seconds = |count: usize| -> Vec<u64> {
            let next = std::iter::repeat_with(|| pauses.next().as_secs());
            next.take(count).collect()
        };
        assert_eq!(seconds(5), [1, 2, 4, 5, 5]);
        pauses.begin_again();
        assert_eq!(pauses.next(), RETRY_INTERVAL_MIN);
    }

    #[test]
    fn a_server_is_called_by_tls_alone() {
        let check = |address: &str, expect: bool| {
            let settings = Settings {
                address: address.to_owned(),
                ca: PathBuf::from("/ca"),
                certificate: PathBuf::from("/crt"),
                key: PathBuf::from("/key"),
            };
            assert_eq!(settings.check().is_ok(), expect, "{address}");
        };
        check("https://controller.example:9443", true);
        check("https://10.0.0.1:9443", true);
        check("http://controller.example:9443", false);
        check("unix:///run/monitord.sock", false);
        check("", false);
    }

    #[test]
    fn the_standing_tells_since_when_and_why() {
        let settings = Settings {
            address: "https://c:1".to_owned(),
            ca: PathBuf::new(),
            certificate: PathBuf::new(),
            key: PathBuf::new(),
        };
        let words = Words {
            reached: "reached",
            failed: "failed",
        };
        let upstream = Upstream::new(&settings, words);
        let check = |connected: bool, failures: u64, error: &str| {
            let standing = upstream.standing();
            let found = (standing.connected, standing.failures, &*standing.error);
            assert_eq!(found, (connected, failures, error));
            standing.since
        };
        check(false, 0, "");
        upstream.failed("refused".to_owned());
        let since = check(false, 1, "refused");
        upstream.failed("refused again".to_owned());
        assert_eq!(check(false, 2, "refused again"), since);
        upstream.reached();
        check(true, 2, "");
        upstream.failed("it ended".to_owned());
        check(false, 3, "it ended");
    }
}
