//! Where the API listens: unix sockets, and TCP with TLS.

use std::{
    io,
    net::{SocketAddr, TcpListener as StdTcpListener},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::either::Either;

use super::{
    Address,
    caller::{Caller, Roles},
    tls::Tls,
    unix::UnixSocket,
};

/// Longest time for a TLS handshake; then the connection is closed.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);

/// A bound socket. Dropping it removes a unix socket's file.
#[derive(Debug)]
pub struct Listener(Kind);

#[derive(Debug)]
enum Kind {
    Unix(UnixSocket),
    Tcp(TcpListener, Arc<Security>),
}

/// What TCP needs.
#[derive(Debug)]
pub struct Security {
    /// Certificates and key.
    pub tls: Tls,
    /// What the names in clients' certificates may do.
    pub roles: Roles,
}

/// The bytes of a connection.
pub(super) type Bytes = Either<UnixStream, TlsStream<TcpStream>>;

/// A connection of which it is not known yet who calls.
#[derive(Debug)]
pub(super) enum Accepted {
    Unix(UnixStream),
    Tcp(TcpStream, Arc<Security>),
}

/// Why an address cannot be listened at.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Its directory cannot be made.
    #[error("cannot create directory {path} for the API socket: {source}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something else has that name; it was left alone.
    #[error(
        "cannot listen at {path}: a file that is not a socket is there; remove it or give another address to listen on"
    )]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Something answers there; it was left alone.
    #[error(
        "cannot listen at {path}: another process listens there; stop it or give another address to listen on"
    )]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// The system's refusal.
    #[error("cannot listen at {path}: {what}: {source}")]
    System {
        /// The path.
        path: PathBuf,
        /// What was attempted.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// TCP is only served with TLS.
    #[error(
        "cannot listen at {address}: give certificate, key and client_ca below [tls] in the configuration"
    )]
    NoTls {
        /// The address.
        address: Address,
    },
    /// The system's refusal of TCP.
    #[error(
        "cannot listen at {address}: {source}; give https://IP:PORT of this node, and a free port"
    )]
    Tcp {
        /// The address.
        address: Address,
        /// Why.
        source: io::Error,
    },
}

impl Listener {
    /// Listens at `address`: at a unix socket with mode 0600, whose directory is made if it is
    /// missing, or at a TCP port if there is `security`. A unix socket that nobody listens at any
    /// more is replaced.
    ///
    /// # Errors
    ///
    /// See [`BindError`]. What was at the path is still there then, but for a dead socket.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn bind(address: &Address, security: Option<&Arc<Security>>) -> Result<Self, BindError> {
        let host_port = match address {
            Address::Unix(path) => return Ok(Self(Kind::Unix(UnixSocket::bind(path)?))),
            Address::Https(host_port) => host_port,
        };
        let security = security.ok_or_else(|| BindError::NoTls {
            address: address.clone(),
        })?;
        let failed = |source| BindError::Tcp {
            address: address.clone(),
            source,
        };
        let place: SocketAddr = host_port
            .parse()
            .map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
        let socket = StdTcpListener::bind(place).map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        let socket = TcpListener::from_std(socket).map_err(failed)?;
        Ok(Self(Kind::Tcp(socket, Arc::clone(security))))
    }

    /// Where it listens; of TCP with the port that was free if 0 was asked for.
    pub fn address(&self) -> Address {
        match &self.0 {
            Kind::Unix(socket) => Address::Unix(socket.path().to_owned()),
            Kind::Tcp(socket, _) => Address::Https(
                socket
                    .local_addr()
                    .map_or_else(|error| error.to_string(), |place| place.to_string()),
            ),
        }
    }

    /// The next connection.
    ///
    /// # Errors
    ///
    /// The system's: out of descriptors or memory, mostly.
    pub(super) async fn accept(&self) -> io::Result<Accepted> {
        match &self.0 {
            Kind::Unix(socket) => socket.accept().await.map(Accepted::Unix),
            Kind::Tcp(socket, security) => {
                let (stream, _) = socket.accept().await?;
                // Heartbeats and alerts are small, and each is waited for.
                stream.set_nodelay(true)?;
                Ok(Accepted::Tcp(stream, Arc::clone(security)))
            }
        }
    }
}

impl Accepted {
    /// Finds out who calls.
    ///
    /// # Errors
    ///
    /// No TLS, no certificate of an authority that is trusted, a user who may do nothing, or no
    /// end of the handshake within [`HANDSHAKE_TIME_MAX`].
    pub(super) async fn identify(self) -> io::Result<(Bytes, Caller)> {
        let refused = |what: &str| io::Error::new(io::ErrorKind::PermissionDenied, what);
        match self {
            Self::Unix(stream) => {
                let peer = stream.peer_cred()?;
                let uid = peer.uid();
                let caller = Caller::of_user(uid, peer.pid()).ok_or_else(|| {
                    refused(&format!("user {uid} is neither root nor the daemon's"))
                })?;
                Ok((Either::Left(stream), caller))
            }
            Self::Tcp(stream, security) => {
                let peer = stream.peer_addr()?.to_string();
                let acceptor = TlsAcceptor::from(security.tls.config());
                let stream = timeout(HANDSHAKE_TIME_MAX, acceptor.accept(stream)).await??;
                let certificates = stream.get_ref().1.peer_certificates();
                let certificate = certificates
                    .and_then(|all| all.first())
                    .ok_or_else(|| refused("no certificate"))?;
                let caller = Caller::of_certificate(certificate, &security.roles, peer);
                Ok((Either::Right(stream), caller))
            }
        }
    }
}
