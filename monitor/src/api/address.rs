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
pub struct Address {
    path: PathBuf,
}

/// A text is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// TCP needs TLS.
    #[error(
        "address {0:?} is not served: give unix:///PATH (TCP needs TLS, which is not there yet)"
    )]
    NotUnix(String),
    /// A relative path would depend on where the program was started.
    #[error("socket path of address {0:?} is not absolute: give unix:///PATH")]
    NotAbsolute(String),
    /// The kernel's bound.
    #[error("socket path of address {0:?} is longer than {PATH_BYTES_MAX} bytes or holds a NUL")]
    Unusable(String),
}

impl Address {
    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let shown = || text.chars().take(200).collect();
        let path = text
            .strip_prefix("unix://")
            .ok_or_else(|| AddressError::NotUnix(shown()))?;
        if !path.starts_with('/') {
            return Err(AddressError::NotAbsolute(shown()));
        }
        if path.len() > PATH_BYTES_MAX || path.contains('\0') {
            return Err(AddressError::Unusable(shown()));
        }
        Ok(Self { path: path.into() })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix://{}", self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_absolute_socket_path_is_an_address() {
        let check = |text: &str, expect: Result<&str, AddressError>| {
            let address = text.parse::<Address>().map(|address| address.to_string());
            assert_eq!(address, expect.map(str::to_owned));
        };
        let unusable = format!("unix:///{}", "x".repeat(107));
        check("unix:///run/x.sock", Ok("unix:///run/x.sock"));
        check(
            "unix://x.sock",
            Err(AddressError::NotAbsolute("unix://x.sock".to_owned())),
        );
        check(
            "tcp://[::]:1",
            Err(AddressError::NotUnix("tcp://[::]:1".to_owned())),
        );
        check(
            "https://h:1",
            Err(AddressError::NotUnix("https://h:1".to_owned())),
        );
        check(
            "/run/x.sock",
            Err(AddressError::NotUnix("/run/x.sock".to_owned())),
        );
        check("", Err(AddressError::NotUnix(String::new())));
        check(&unusable, Err(AddressError::Unusable(unusable.clone())));
    }
}
