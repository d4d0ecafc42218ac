//! What the sensor must say of peers.
use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use monitor::sensor::event::{Address, Connect, Event, Protocol};

use crate::{container::Container, observer::Observer};

/// An address that has no route in the container's network.
const PEER: &str = "192.0.2.1";
const CONNECT: &str = "/bin/busybox nc -w 1 192.0.2.1 80 || :";

fn connects(events: &[Event]) -> Result<Vec<&Connect>> {
    let address: IpAddr = PEER.parse()?;
    let all = events.iter().filter_map(|event| match event {
        Event::Connect(connect) => Some(&**connect),
        _ => None,
    });
    Ok(all
        .filter(|connect| connect.address == Address::Ip(address))
        .collect())
}

pub fn a_peer_is_told_until_it_is_remembered(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    let first = container.shell(CONNECT)?;
    let told = connects(&first)?;
    let connect = told.first().context("the connect was not seen")?;
    equal!(told.len(), 1);
    equal!(connect.protocol, Protocol::Tcp);
    equal!(connect.port, Some(80));
    equal!(connect.used.cgroup.id, container.cgroup_id());
    ensure!(connect.used.file.path.is_empty(), "a file is told");

    observer.sensor().remember_peer(&connect.peer)?;
    equal!(connects(&container.shell(CONNECT)?)?.len(), 0);
    let other = Container::new(observer)?;
    equal!(connects(&other.shell(CONNECT)?)?.len(), 1);

    observer.sensor().forget_peers()?;
    equal!(connects(&container.shell(CONNECT)?)?.len(), 1);
    Ok(())
}
