//! Servers that nodes call by mutual TLS, as a SOC or a cluster has them.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::Path,
    thread::{self, JoinHandle},
};

use anyhow::{Result, anyhow};
use tokio::sync::oneshot;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig, server::Router};

use crate::authority::Authority;

/// The name in the certificate of a node.
pub const NODE_NAME: &str = "node.example";

/// A server that goes when this is dropped, without a word to those who call it.
#[derive(Debug)]
pub struct Served {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Served {
    /// Serves what `add` adds at `address` with `127.0.0.1.crt`, and checks callers by `ca.crt`, both
    /// in `certificates`.
    pub fn start(
        address: SocketAddr,
        certificates: &Path,
        add: impl FnOnce(&mut Server) -> Router,
    ) -> Result<Self> {
        let read = |name: &str| fs::read(certificates.join(name));
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(
                read("127.0.0.1.crt")?,
                read("127.0.0.1.key")?,
            ))
            .client_ca_root(Certificate::from_pem(read("ca.crt")?));
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let server = add(&mut Server::builder().tls_config(tls)?);
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let incoming = TcpListenerStream::new(tokio::net::TcpListener::from_std(listener)?);
                tokio::select! {
                    served = server.serve_with_incoming(incoming) => Ok(served?),
                    _ = stopped => Ok(()),
                }
            })
        });
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Ends it.
    pub fn stop(mut self) -> Result<()> {
        drop(self.stop.take());
        let ended = self.thread.take().map(JoinHandle::join);
        ended
            .transpose()
            .map_err(|_| anyhow!("the server panicked"))?
            .unwrap_or(Ok(()))
    }
}

/// Makes a directory with an authority, a server's certificate and one of a node.
pub fn certificates(directory: &Path) -> Result<()> {
    fs::create_dir(directory)?;
    let authority = Authority::new()?;
    authority.write(directory)?;
    authority.issue("127.0.0.1", directory)?;
    authority.issue(NODE_NAME, directory)
}

/// The section of a node's configuration that has it call a server with these certificates.
pub fn section(name: &str, address: SocketAddr, certificates: &Path) -> String {
    let shown = certificates.display();
    format!(
        "[{name}]\naddress = 'https://{address}'\nca = '{shown}/ca.crt'\n\
         certificate = '{shown}/{NODE_NAME}.crt'\nkey = '{shown}/{NODE_NAME}.key'\n"
    )
}
