//! Why a command did not do what it should, with its exit status.

use std::{error::Error as _, io};

use tonic::Code;

use super::output::safe;
use crate::api::Address;

/// Why a command ended otherwise than done.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Exit status 1.
    #[error("{0}")]
    Failed(String),
    /// Exit status 2.
    #[error("{0}")]
    Usage(String),
    /// Exit status 3.
    #[error("{0}")]
    Unreachable(String),
    /// Exit status 4.
    #[error("{0}")]
    Refused(String),
    /// Whoever read the output has had enough; that is no failure. Exit status 0, no word.
    #[error("nobody reads the output any more")]
    Unread,
}

impl Failure {
    /// The contract's exit status.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Unread => 0,
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::Unreachable(_) => 3,
            Self::Refused(_) => 4,
        }
    }

    /// A connection could not be made.
    pub(super) fn connect(address: &Address, error: &tonic::transport::Error) -> Self {
        let mut cause = error.source();
        while let Some(next) = cause {
            if let Some(error) = next.downcast_ref::<io::Error>() {
                return Self::connect_io(address, error);
            }
            cause = next.source();
        }
        Self::Unreachable(format!("cannot reach the daemon at {address}: {error}"))
    }

    fn connect_io(address: &Address, error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::PermissionDenied {
            return Self::Refused(format!(
                "no permission to connect to {address}: run this as the daemon's user"
            ));
        }
        Self::Unreachable(format!(
            "cannot reach the daemon at {address}: {error}; start monitord or give its --address"
        ))
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        let message = safe(status.message());
        // A status that the client made of a broken connection has a cause; one that the daemon
        // sent has none.
        if status.source().is_some() || status.code() == Code::Unavailable {
            return Self::Unreachable(format!(
                "the daemon is gone: {message}; look at its log, then run this again"
            ));
        }
        match status.code() {
            Code::FailedPrecondition
            | Code::OutOfRange
            | Code::PermissionDenied
            | Code::Unauthenticated => Self::Refused(message),
            Code::Unimplemented => Self::Failed(format!(
                "the daemon does not know this command ({message}); it may be older than monitorctl"
            )),
            _ => Self::Failed(message),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::Unread;
        }
        Self::Failed(format!("cannot write the output: {error}"))
    }
}
