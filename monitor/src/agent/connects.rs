//! The owner's part for peers that containers reach for.

use std::sync::Arc;

use super::{
    owner::Owner,
    runtime,
    state::{Pending, What},
};
use crate::{
    containers::Container,
    detect::connect::{self, ConnectFacts},
    sensor::{event::Connect, hooks},
};

impl Owner {
    /// Judges a connect of `container`'s; one that nothing is said of is not told again.
    pub(super) fn judge_connect(&mut self, pending: &Pending, container: &Arc<Container>) {
        let What::Connect(connect) = &pending.what else {
            return;
        };
        let known = &pending.known;
        let used = &connect.used;
        let finding = connect::judge(&ConnectFacts {
            connect,
            container,
            host_mount_namespace: self.host_mount_namespace,
            sockets: &self.sockets,
            origin: known.origin(&used.process, container),
            program: known.program.as_deref(),
            ancestors: known.ancestors.clone(),
            hook: hooks::set_name(used.hook),
        });
        self.state.counts.judged += 1;
        match finding {
            // In a container itself the daemon asks the runtime all the time.
            Some(_) if used.process.pid == std::process::id() => self.state.counts.peers += 1,
            Some(finding) => {
                let address = finding.connection.as_ref();
                let address = address.map(|peer| peer.address.clone()).unwrap_or_default();
                if self.is_first(used.process.id(), finding.kind, address) {
                    self.raise_of(used, &finding);
                }
            }
            None => {
                self.state.counts.peers += 1;
                self.remember_peer(connect);
            }
        }
    }

    fn remember_peer(&mut self, connect: &Connect) {
        if let Some(sensor) = &mut self.sensor
            && let Err(error) = sensor.remember_peer(&connect.peer)
        {
            tracing::warn!(%error, "cannot have the kernel side remember a peer; it goes on being told");
        }
    }

    /// Looks whether the runtime has made its sockets anew. What was judged by the old ones is then
    /// judged again.
    pub(super) fn renew_sockets(&mut self) {
        let sockets = runtime::sockets(&self.containerd);
        if sockets == self.sockets {
            return;
        }
        self.sockets = sockets;
        if let Some(sensor) = &mut self.sensor
            && let Err(error) = sensor.forget_peers()
        {
            tracing::error!(%error, "cannot make the kernel side forget which peers are good; connects to a runtime that was started again may not be told");
        }
    }
}
