//! What containers do, in the words of profiles.

use crate::{
    activity::{Act, Activity},
    containers::processes::{Origin, Program},
    detect::FileVerdict,
    profile::What,
    sensor::event::Address,
};

/// What a process was put in for, `Some(None)` of the container's own. `None` of one that is put in and
/// has not executed anything yet: that is the runtime. Of one that comes from nowhere, since its parent
/// had ended already, what it would be put in for.
pub(super) fn command(origin: Origin, command: Option<&Program>) -> Option<Option<&[Vec<u8>]>> {
    let command = command.map(|it| it.arguments.as_slice());
    match origin {
        Origin::Init => Some(None),
        Origin::Unknown => Some(command),
        Origin::Exec => command.map(Some),
    }
}

/// Whether it is the runtime's own step in the container's cgroup: nothing was executed inside yet, and
/// the process has not gone to the container's root.
pub(super) fn is_of_runtime(activity: &Activity<'_>) -> bool {
    let root = (activity.container.task.as_ref()).and_then(|task| task.root_device);
    let is_outside = root.is_some_and(|device| device != activity.process.root_device);
    activity.command.is_none() && is_outside
}

/// `name` is given room for that of an abstract socket.
pub(super) fn what<'a>(
    activity: &Activity<'a>,
    is_excepted: bool,
    parent: Option<&'a [u8]>,
    name: &'a mut Vec<u8>,
) -> Option<What<'a>> {
    Some(match &activity.act {
        // The runtime's own steps are nobody's behaviour.
        Act::Exec { verdict: None, .. } => return None,
        Act::Exec {
            exec,
            path,
            verdict: Some(verdict),
            sha256,
        } => What::Exec {
            path,
            sha256: *sha256,
            parent,
            arguments: &exec.arguments,
            is_learnable: is_excepted
                || matches!(verdict, FileVerdict::Image | FileVerdict::MetadataChanged),
        },
        Act::Open { open, path, .. } => What::Open {
            path,
            access: open.access,
        },
        Act::Connect(connect) => match &connect.address {
            Address::Ip(address) => What::Peer {
                address: *address,
                port: connect.port,
                protocol: connect.protocol,
            },
            Address::File => What::Socket {
                path: &connect.used.file.path,
            },
            Address::Named(path) => What::Socket { path },
            Address::Abstract(own) => {
                name.push(b'@');
                name.extend_from_slice(own);
                What::Socket { path: name }
            }
            // Of a packet socket every one is told.
            Address::None => return None,
        },
    })
}
