//! Passes connections on to the controller that leads, unread: TLS is between its two ends.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::nodes::NODES_MAX;
use crate::api::CONNECTIONS_MAX;

/// How long the controller that leads is waited for.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
/// Pause after the system refused a connection.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Passes connections to these addresses on to `leader`, until this is dropped; then they end.
pub(super) async fn forward(
    addresses: Vec<SocketAddr>,
    leader: watch::Receiver<Option<SocketAddr>>,
) -> std::io::Result<()> {
    let free = Arc::new(Semaphore::new(CONNECTIONS_MAX + NODES_MAX));
    let mut listening = JoinSet::new();
    for address in addresses {
        let listener = TcpListener::bind(address).await?;
        listening.spawn(accept(listener, leader.clone(), Arc::clone(&free)));
    }
    while listening.join_next().await.is_some() {}
    std::future::pending().await
}

async fn accept(
    listener: TcpListener,
    leader: watch::Receiver<Option<SocketAddr>>,
    free: Arc<Semaphore>,
) {
    // They end with this.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection; trying again");
                sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let (Ok(permit), Some(to)) = (Arc::clone(&free).try_acquire_owned(), *leader.borrow())
        else {
            tracing::warn!(%peer, "a connection was closed: nobody leads, or too many are open");
            continue;
        };
        connections.spawn(async move {
            let _permit = permit;
            if let Err(error) = pass_on(stream, to).await {
                tracing::debug!(%error, %peer, %to, "a connection that was passed on has ended");
            }
        });
    }
}

async fn pass_on(mut from: TcpStream, to: SocketAddr) -> std::io::Result<()> {
    let mut to = timeout(CONNECT_TIME_MAX, TcpStream::connect(to)).await??;
    copy_bidirectional(&mut from, &mut to).await?;
    Ok(())
}
