//! A NATS server and stream, as they are configured, and the subjects there.

use std::{net::IpAddr, path::PathBuf};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

/// Most bytes of a stream's name and of a subject's beginning.
const NAME_BYTES_MAX: usize = 128;

/// What does not stay as it is in a part of a subject: dots part them, `*` and `>` stand for others.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_');

/// A stream of a NATS server, as it is configured. The files are read anew for each connection.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// `tls://HOST:PORT`; on this machine alone also `nats://IP:PORT`, without TLS.
    pub url: String,
    /// The stream, which has to be there.
    pub stream: String,
    /// How subjects begin; cluster, node and severity follow.
    #[serde(default = "subject")]
    pub subject: String,
    /// What NATS knows this node by: a `.creds` file, or a line `USER:PASSWORD`.
    pub credentials: Option<PathBuf>,
    /// Certificates of the authorities that the server's is checked by, PEM.
    #[serde(default = "ca")]
    pub ca: PathBuf,
    /// The node's certificate, PEM, if the server asks for one.
    pub certificate: Option<PathBuf>,
    /// The certificate's private key, PEM.
    pub key: Option<PathBuf>,
}

fn subject() -> String {
    "monitord.alerts".to_owned()
}

fn ca() -> PathBuf {
    // Debian's package ca-certificates.
    PathBuf::from("/etc/ssl/certs/ca-certificates.crt")
}

/// Where a server is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) is_tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
}

/// Settings that make no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// No address of a server. It is not shown whole: a password may be in it.
    #[error(
        "nats.url is neither tls://HOST:PORT nor nats://IP:PORT; user and password stand in the file that `credentials` names"
    )]
    Url,
    /// Alerts leave the machine by TLS alone.
    #[error("nats.url nats://{0} leads off this machine without TLS; give tls://HOST:PORT")]
    NotLocal(String),
    /// Not a name of a stream.
    #[error("nats.stream {0:?} must have 1 to {NAME_BYTES_MAX} letters, digits, `_` and `-`")]
    Stream(String),
    /// Not the beginning of a subject.
    #[error(
        "nats.subject {0:?} must have 1 to {NAME_BYTES_MAX} letters, digits, `_` and `-`, in parts between dots"
    )]
    Subject(String),
    /// One without the other.
    #[error("nats.certificate and nats.key are of use together alone")]
    Identity,
}

impl Settings {
    /// Whether they make sense.
    ///
    /// # Errors
    ///
    /// What does not.
    pub fn check(&self) -> Result<(), SettingsError> {
        self.server()?;
        if !is_name(&self.stream) {
            return Err(SettingsError::Stream(self.stream.clone()));
        }
        if self.subject.len() > NAME_BYTES_MAX || !self.subject.split('.').all(is_name) {
            return Err(SettingsError::Subject(self.subject.clone()));
        }
        if self.certificate.is_some() != self.key.is_some() {
            return Err(SettingsError::Identity);
        }
        Ok(())
    }

    pub(super) fn server(&self) -> Result<Server, SettingsError> {
        let (scheme, rest) = self.url.split_once("://").ok_or(SettingsError::Url)?;
        let (host, port) = rest.rsplit_once(':').ok_or(SettingsError::Url)?;
        let is_bracketed = host.starts_with('[') && host.ends_with(']');
        let bare = host.trim_matches(['[', ']']);
        let is_host = match bare.parse() {
            Ok(IpAddr::V6(_)) => is_bracketed,
            _ => {
                !host.is_empty()
                    && host
                        .bytes()
                        .all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
            }
        };
        let server = Server {
            is_tls: scheme == "tls",
            host: bare.to_owned(),
            port: port.parse().map_err(|_| SettingsError::Url)?,
        };
        match scheme {
            "tls" | "nats" if !is_host => Err(SettingsError::Url),
            "tls" => Ok(server),
            "nats" if bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()) => Ok(server),
            "nats" => Err(SettingsError::NotLocal(rest.to_owned())),
            _ => Err(SettingsError::Url),
        }
    }

    /// How the subjects of a node begin, without the dot before the severity.
    pub(super) fn node_subject(&self, cluster: &str, node: &str) -> String {
        format!("{}.{}.{}", self.subject, part(cluster), part(node))
    }
}

fn is_name(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_allowed)
}

/// A name as one part of a subject, and no two names as the same; `-` is none at all.
fn part(name: &str) -> String {
    match name {
        "" => "-".to_owned(),
        "-" => "%2D".to_owned(),
        name => utf8_percent_encode(name, ESCAPED).to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn settings(url: &str) -> Settings {
        let text = format!("url = {url:?}\nstream = 'S'");
        toml::from_str(&text).unwrap()
    }

    #[test]
    fn names_stay_in_their_part_of_a_subject() {
        let check = |cluster, node, expect: &str| {
            let found = settings("tls://h:1").node_subject(cluster, node);
            assert_eq!(found, format!("monitord.alerts.{expect}"));
        };
        check("prod-eu", "node_7", "prod-eu.node_7");
        check("", "node.example", "-.node%2Eexample");
        check("-", "%", "%2D.%25");
        check("a.*", ">", "a%2E%2A.%3E");
        check("a b\r\nPUB x", "\0é", "a%20b%0D%0APUB%20x.%00%C3%A9");
    }

    #[test]
    fn plain_text_stays_on_this_machine() {
        let check = |url: &str, expect: Result<(bool, &str, u16), SettingsError>| {
            let expect = expect.map(|(is_tls, host, port)| Server {
                is_tls,
                host: host.to_owned(),
                port,
            });
            assert_eq!(settings(url).server(), expect, "{url}");
        };
        check("tls://nats.example:4222", Ok((true, "nats.example", 4222)));
        check("tls://[2001:db8::1]:1", Ok((true, "2001:db8::1", 1)));
        check("nats://127.0.0.1:4222", Ok((false, "127.0.0.1", 4222)));
        check("nats://[::1]:4222", Ok((false, "::1", 4222)));
        for far in ["10.0.0.1:1", "nats.example:1", "localhost:1", "[::]:1"] {
            let expect = SettingsError::NotLocal(far.to_owned());
            check(&format!("nats://{far}"), Err(expect));
        }
        for wrong in [
            "nats.example:4222",
            "http://h:1",
            "tls://h",
            "tls://:1",
            "tls://h:70000",
            "tls://u:secret@h:1",
            "nats://u:secret@127.0.0.1:1",
            "tls://::1:1",
            "tls://a b:1",
            "tls://h:1/x",
        ] {
            check(wrong, Err(SettingsError::Url));
        }
    }

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        let check = |change: fn(&mut Settings), expect| {
            let mut settings = settings("tls://h:1");
            change(&mut settings);
            assert_eq!(settings.check(), expect);
        };
        check(|_| {}, Ok(()));
        check(
            |settings| "a.*".clone_into(&mut settings.stream),
            Err(SettingsError::Stream("a.*".to_owned())),
        );
        for wrong in ["", "a..b", "a.>", ".a", "a b"] {
            let mut settings = settings("tls://h:1");
            wrong.clone_into(&mut settings.subject);
            let expect = SettingsError::Subject(wrong.to_owned());
            assert_eq!(settings.check(), Err(expect));
        }
        check(
            |settings| settings.key = Some("/key".into()),
            Err(SettingsError::Identity),
        );
    }
}
