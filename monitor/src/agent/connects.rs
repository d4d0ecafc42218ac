//! The owner's part for peers that containers reach for.

use std::sync::Arc;

use super::{
    activity,
    owner::Owner,
    runtime,
    state::{Pending, What},
};
use crate::{
    containers::Container,
    detect::{
        Finding,
        connect::{self, ConnectFacts},
    },
    sensor::{
        event::{Answer, Connect, FileUse, Outcome, Protocol},
        hooks,
    },
};

/// What is known of a connect of TCP beside the other: its alert, or what came of it.
pub(super) enum Answered {
    /// Raised, and without an answer yet.
    NotYet(Vec<Finding>),
    /// Answered, and not judged yet.
    As(Outcome),
}

/// What tells a connect from every other of this boot.
fn place(used: &FileUse) -> (u32, u64) {
    (used.process.pid, used.time_boot_ns)
}

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
        // In a container itself the daemon asks the runtime all the time.
        if finding.is_some() && used.process.pid == std::process::id() {
            self.state.counts.peers += 1;
            return;
        }
        let weighed = self.weigh(&activity::connected(pending, connect, container), finding);
        if weighed.findings.is_empty() {
            self.state.counts.peers += 1;
            if !weighed.must_be_told {
                self.remember_peer(connect);
            }
            self.state.answers.pop(&place(used));
        } else {
            self.raise_connect(connect, weighed.findings);
        }
    }

    fn raise_connect(&mut self, connect: &Connect, mut found: Vec<Finding>) {
        let used = &connect.used;
        found.retain(|finding| self.is_first(used.process.id(), finding));
        if found.is_empty() {
            return;
        }
        let outcome = match self.state.answers.pop(&place(used)) {
            Some(Answered::As(outcome)) => Some(outcome),
            _ => None,
        };
        for finding in &mut found {
            if let Some(peer) = &mut finding.connection {
                peer.outcome = outcome;
            }
            self.raise_of(used, finding);
        }
        if connect.protocol == Protocol::Tcp && outcome.is_none() {
            self.state.answers.put(place(used), Answered::NotYet(found));
        }
    }

    /// Adds what came of a connect to its alert, or keeps it until that is raised.
    pub(super) fn answered(&mut self, answer: Answer) {
        let place = (answer.pid, answer.connect_boot_ns);
        match self.state.answers.pop(&place) {
            Some(Answered::NotYet(found)) => {
                for mut finding in found {
                    if let Some(connection) = &mut finding.connection {
                        connection.outcome = Some(answer.outcome);
                    }
                    self.amend(&finding);
                }
            }
            _ => {
                let answered = Answered::As(answer.outcome);
                self.state.answers.put(place, answered);
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
