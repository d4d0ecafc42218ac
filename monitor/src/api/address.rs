//! Where a daemon is reached.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

/// Most bytes of a socket's path: `sun_path` without its NUL.
const PATH_BYTES_MAX: usize = 107;

/// An address that a daemon listens at and a client connects to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// TCP with TLS, as `HOST:PORT`; to listen at, HOST is an IP address.
    Https(String),
}

/// A text is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Another scheme; TCP without TLS is not served.
    #[error(
        "address {0:?} is not served: give unix:///PATH, or https://HOST:PORT for TCP with TLS"
    )]
    Scheme(String),
    /// A relative path would depend on where the program was started.
    #[error("socket path of address {0:?} is not absolute: give unix:///PATH")]
    NotAbsolute(String),
    /// The kernel's bound.
    #[error("socket path of address {0:?} is longer than {PATH_BYTES_MAX} bytes or holds a NUL")]
    Unusable(String),
    /// No host, no port, or more than these.
    #[error("address {0:?} is not https://HOST:PORT")]
    NotHostPort(String),
}

impl Address {
    /// The path of a unix socket.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Unix(path) => Some(path),
            Self::Https(_) => None,
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let shown = || text.chars().take(200).collect();
        if let Some(rest) = text.strip_prefix("https://") {
            let host_port = rest.strip_suffix('/').unwrap_or(rest);
            return match host_port.rsplit_once(':') {
                Some((host, port))
                    if !host.is_empty()
                        && !host.contains(['/', '@'])
                        && port.parse::<u16>().is_ok() =>
                {
                    Ok(Self::Https(host_port.to_owned()))
                }
                _ => Err(AddressError::NotHostPort(shown())),
            };
        }
        let path = text
            .strip_prefix("unix://")
            .ok_or_else(|| AddressError::Scheme(shown()))?;
        if !path.starts_with('/') {
            return Err(AddressError::NotAbsolute(shown()));
        }
        if path.len() > PATH_BYTES_MAX || path.contains('\0') {
            return Err(AddressError::Unusable(shown()));
        }
        Ok(Self::Unix(path.into()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Https(host_port) => write!(f, "https://{host_port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_absolute_socket_path_or_a_host_and_port_is_an_address() {
        let check = |text: &str, expect: Result<&str, fn(String) -> AddressError>| {
            let address = text.parse::<Address>().map(|address| address.to_string());
            let expect = expect.map(str::to_owned);
            assert_eq!(address, expect.map_err(|error| error(text.to_owned())));
        };
        let unusable = format!("unix:///{}", "x".repeat(107));
        check("unix:///run/x.sock", Ok("unix:///run/x.sock"));
        check("unix://x.sock", Err(AddressError::NotAbsolute));
        check("https://h:1", Ok("https://h:1"));
        check("https://h:1/", Ok("https://h:1"));
        check("https://[::]:7443", Ok("https://[::]:7443"));
        for text in [
            "https://h",
            "https://:1",
            "https://h:x",
            "https://h:65536",
            "https://a/b:1",
            "https://a@b:1",
            "https://",
        ] {
            check(text, Err(AddressError::NotHostPort));
        }
        for text in ["tcp://[::]:1", "http://h:1", "/run/x.sock", ""] {
            check(text, Err(AddressError::Scheme));
        }
        check(&unusable, Err(AddressError::Unusable));
    }
}
