//! Peers that hand out credentials or rule over containers. No packet leaves: the containers have
//! no way out, and what they try is seen before the kernel looks for one.

use super::{Technique, shell, staged};

pub(super) const ROWS: &[Technique] = &[
    shell(
        "metadata by TCP",
        "Connects to the address where clouds serve a node's credentials.",
        "probe connect 169.254.169.254 80",
    )
    .raises(&["connect_sensitive tcp 169.254.169.254:80"]),
    shell(
        "metadata by IPv6",
        "Connects to the same service by IPv6.",
        "probe connect fd00:ec2::254 80",
    )
    .raises(&["connect_sensitive tcp fd00:ec2::254:80"]),
    shell(
        "IPv4 mapped to IPv6",
        "Connects a socket of IPv6 to an address of IPv4.",
        "probe connect ::ffff:169.254.169.254 80",
    )
    .raises(&["connect_sensitive tcp 169.254.169.254:80"]),
    shell(
        "TCP fast open",
        "Sends with the first packet of a TCP connection, without connecting.",
        "probe connect-fast 169.254.169.254 80",
    )
    .raises(&["connect_sensitive tcp 169.254.169.254:80"]),
    shell(
        "connect through io_uring",
        "Connects by an entry of an io_uring, without the system call.",
        "probe connect-ring plain 169.254.169.254 80",
    )
    .raises(&["connect_sensitive tcp 169.254.169.254:80"]),
    shell(
        "connect through io_uring, polled",
        "Has a thread of the kernel take the entry, which is to write no completion.",
        "probe connect-ring poll,skip 169.254.169.254 80",
    )
    .raises(&["connect_sensitive tcp 169.254.169.254:80"]),
    shell(
        "raw socket through io_uring",
        "Sends by a socket whose protocol the process makes itself by an entry of an io_uring.",
        "probe send-raw-ring plain 169.254.169.254",
    )
    .raises(&["connect_sensitive raw 169.254.169.254"]),
    shell(
        "packet socket through io_uring",
        "Makes a socket that sends and receives frames of a link by an entry of an io_uring.",
        "probe packet-socket-ring slot,skip",
    )
    .raises(&["connect_sensitive packet"]),
    staged(
        "the runtime's socket through io_uring",
        "Connects to containerd's socket, which has another name, by an entry of an io_uring.",
        |stage| {
            let mount = format!(
                "type=bind,src={},dst=/run/cache,options=rbind:rw",
                stage.world().containerd.address().display()
            );
            let run = stage.shell("probe connect-unix-ring poll,skip /run/cache");
            stage.run(&run.flags(["--mount", &mount]))
        },
    )
    .raises(&["connect_sensitive unix */containerd.sock"]),
    shell(
        "UDP sendto",
        "Sends by UDP without connecting.",
        "probe send 169.254.169.254 80",
    )
    .raises(&["connect_sensitive udp 169.254.169.254:80"]),
    shell(
        "sendmmsg",
        "Sends two messages by UDP in one call.",
        "probe send-many 169.254.169.254 80",
    )
    .raises(&["connect_sensitive udp 169.254.169.254:80"]),
    shell(
        "address without a family",
        "Sends by UDP to an address that names no family, which the kernel takes for IPv4.",
        "probe send-bare 169.254.169.254 80",
    )
    .raises(&["connect_sensitive udp 169.254.169.254:80"]),
    shell(
        "UDP of IPv4 mapped to IPv6",
        "Sends by a socket of IPv6 to an address of IPv4.",
        "probe send ::ffff:169.254.169.254 80",
    )
    .raises(&["connect_sensitive udp 169.254.169.254:80"]),
    shell(
        "raw socket",
        "Sends by a socket whose protocol the process makes itself.",
        "probe send-raw 169.254.169.254",
    )
    .raises(&["connect_sensitive raw 169.254.169.254"]),
    shell(
        "packet socket",
        "Makes a socket that sends and receives frames of a link.",
        "probe packet-socket",
    )
    .raises(&["connect_sensitive packet"]),
    staged(
        "the runtime's socket by another name",
        "Connects to containerd's socket, which is mounted where nothing tells what it is.",
        |stage| {
            let mount = format!(
                "type=bind,src={},dst=/run/cache,options=rbind:rw",
                stage.world().containerd.address().display()
            );
            let run = stage.shell("probe connect-unix /run/cache");
            stage.run(&run.flags(["--mount", &mount]))
        },
    )
    .raises(&["connect_sensitive unix */containerd.sock"]),
    shell(
        "abstract socket of a shim",
        "Connects to a name that is no path, of those that containerd's shims listen at.",
        "probe connect-abstract /containerd-shim/x",
    )
    .raises(&["connect_sensitive unix @/containerd-shim/x"]),
    staged(
        "connect from another container's cgroup",
        "Moves a process into another container's cgroup before it connects.",
        |stage| {
            stage.other()?.paused(":", ":", |bystander| {
                stage.paused(":", "probe connect 169.254.169.254 80", |paused| {
                    paused.move_to(&bystander.cgroup()?)
                })
            })
        },
    )
    .raises(&[
        "connect_sensitive tcp 169.254.169.254:80",
        // The program is no part of the image of the cgroup's container.
        "exec_volume /bin/probe",
    ]),
    staged(
        "connect from a cgroup of the host",
        "Moves a process out of the container's cgroup before it connects.",
        |stage| {
            stage.paused(":", "probe connect 169.254.169.254 80", |paused| {
                paused.move_to(&super::stage::cgroup_root()?)
            })
        },
    )
    .raises(&["connect_sensitive tcp 169.254.169.254:80"]),
    shell(
        "other peers",
        "Connects and sends where nothing is said against it, and asks the cloud's name server.",
        "probe connect 192.0.2.1 80; probe send 192.0.2.1 80; probe send 169.254.169.254 53; \
         probe send-raw 192.0.2.1; probe connect-abstract own",
    ),
];
