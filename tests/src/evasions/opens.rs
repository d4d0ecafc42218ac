//! Ways to open a file, and to change one of the image.

use std::{
    fs::{self, File},
    io::IoSlice,
    os::{
        fd::AsRawFd as _,
        unix::net::{UnixListener, UnixStream},
    },
    process, thread,
};

use anyhow::Result;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use super::{Technique, shell, staged};

/// All that root may do.
const PRIVILEGED: &[&str] = &["--privileged"];
/// What opening by a handle needs, and a filesystem that has handles.
const HANDLES: &[&str] = &[
    "--privileged",
    "--mount",
    "type=tmpfs,src=tmpfs,dst=/volume,options=rw",
];

/// All that root may do, to processes of the host.
const HOST_PROCESSES: &[&str] = &["--privileged", "--with-ns", "pid:/proc/self/ns/pid"];

/// Opens a file for each way to use an io_uring, which nobody opened by that name before.
macro_rules! through_rings {
    ($($how:literal)+) => {
        concat!(
            "for how in", $(" ", $how,)+ "; do mkdir -p /tmp/$how/.ssh; echo key > /tmp/$how/x; ",
            "busybox mv /tmp/$how/x /tmp/$how/.ssh/id_rsa; ",
            "probe open-ring $how /tmp/$how/.ssh/id_rsa; done",
        )
    };
}

pub(super) const ROWS: &[Technique] = &[
    shell(
        "open of a sensitive file",
        "Reads the hashes of passwords.",
        "probe open-repeat 1 /etc/shadow",
    )
    .raises(&["open_sensitive /etc/shadow"]),
    shell(
        "open for writing",
        "Adds a user without a password.",
        "echo 'x::::::::' >> /etc/shadow",
    )
    .raises(&["open_sensitive /etc/shadow", "image_file_modified /etc/shadow"]),
    shell(
        "openat2",
        "Opens by the newest of the system calls for it.",
        "probe openat2 /etc/shadow",
    )
    .raises(&["open_sensitive /etc/shadow"]),
    shell(
        "creat",
        "Opens by the oldest of the system calls for it.",
        "probe creat /etc/shadow",
    )
    .raises(&["open_sensitive /etc/shadow", "image_file_modified /etc/shadow"]),
    shell(
        "32-bit open",
        "Opens by `int 0x80`.",
        "probe int80-open /etc/shadow",
    )
    .raises(&["open_sensitive /etc/shadow"]),
    shell(
        "open by handle",
        "Opens without a path.",
        "mkdir /volume/.aws; echo key > /volume/.aws/credentials; probe handle-open /volume/.aws/credentials",
    )
    .flags(HANDLES)
    .raises(&["open_sensitive /volume/.aws/credentials"]),
    shell(
        "open through io_uring",
        "Opens by entries of an io_uring, without the system call, also by a worker of the kernel.",
        through_rings!("plain" "openat2" "async"),
    )
    .raises(&[
        "open_sensitive /tmp/plain/.ssh/id_rsa",
        "open_sensitive /tmp/openat2/.ssh/id_rsa",
        "open_sensitive /tmp/async/.ssh/id_rsa",
    ]),
    shell(
        "open through io_uring, polled",
        "Has a thread of the kernel take the entries, so that no system call is made at all.",
        through_rings!("poll" "poll,skip"),
    )
    .raises(&[
        "open_sensitive /tmp/poll/.ssh/id_rsa",
        "open_sensitive /tmp/poll,skip/.ssh/id_rsa",
    ]),
    shell(
        "open through io_uring into a slot",
        "Opens a file of the ring's own, of which the process has no descriptor.",
        through_rings!("slot" "slot,skip" "slot,async"),
    )
    .raises(&[
        "open_sensitive /tmp/slot/.ssh/id_rsa",
        "open_sensitive /tmp/slot,skip/.ssh/id_rsa",
        "open_sensitive /tmp/slot,async/.ssh/id_rsa",
    ]),
    shell(
        "open through io_uring, read and closed in one chain",
        "Has the kernel open, read and close a file of the ring's own, and tell of the end alone.",
        through_rings!("slot,skip,used" "slot,skip,async,used" "slot,skip,poll,used"),
    )
    .raises(&[
        "open_sensitive /tmp/slot,skip,used/.ssh/id_rsa",
        "open_sensitive /tmp/slot,skip,async,used/.ssh/id_rsa",
        "open_sensitive /tmp/slot,skip,poll,used/.ssh/id_rsa",
    ]),
    shell(
        "open through io_uring without a completion",
        "Has the kernel write nothing when the file is open.",
        through_rings!("skip" "async,skip"),
    )
    .raises(&[
        "open_sensitive /tmp/skip/.ssh/id_rsa",
        "open_sensitive /tmp/async,skip/.ssh/id_rsa",
    ]),
    shell(
        "open by a symlink",
        "Opens a link that leads to the file.",
        "ln -s /etc/shadow /tmp/link; probe open-repeat 1 /tmp/link",
    )
    .raises(&["open_sensitive /etc/shadow"]),
    shell(
        "open by a bind mount",
        "Opens the file where the process sees it under another path.",
        "mkdir /tmp/other; busybox mount --bind /etc /tmp/other; probe open-repeat 1 /tmp/other/shadow",
    )
    .flags(PRIVILEGED)
    .raises(&["open_sensitive /tmp/other/shadow"]),
    shell(
        "hard link to a sensitive file",
        "Gives the file a second name, and opens it by that.",
        "ln /etc/shadow /tmp/x; probe open-repeat 1 /tmp/x",
    )
    .raises(&["open_sensitive /tmp/x"]),
    shell(
        "sensitive file renamed",
        "Gives the file another name, and opens it by that.",
        "busybox mv /etc/shadow /tmp/x; probe open-repeat 1 /tmp/x",
    )
    .raises(&["image_file_modified /etc/shadow", "open_sensitive /tmp/x"]),
    staged(
        "open file received over AF_UNIX",
        "Has a process of the host open a file and hand it over.",
        |stage| {
            let directory = stage.directory().join(".ssh");
            fs::create_dir_all(&directory)?;
            let (key, socket) = (directory.join("id_rsa"), directory.join("socket"));
            fs::write(&key, "key\n")?;
            let listener = UnixListener::bind(&socket)?;
            let mount = format!("type=bind,src={},dst=/peer,options=rbind:rw", socket.display());
            let run = stage.shell("probe receive /peer").flags(["--mount", &mount]);
            thread::scope(|scope| {
                scope.spawn(move || -> Result<()> {
                    let (stream, _) = listener.accept()?;
                    let file = File::open(&key)?;
                    let files = [file.as_raw_fd()];
                    let rights = [ControlMessage::ScmRights(&files)];
                    let byte = [IoSlice::new(b"x")];
                    sendmsg::<()>(stream.as_raw_fd(), &byte, &rights, MsgFlags::empty(), None)?;
                    Ok(())
                });
                let ran = stage.run(&run);
                // Where the container did not come, nobody must wait for it.
                let _ = UnixStream::connect(&socket);
                ran
            })
        },
    )
    .raises(&["open_sensitive */.ssh/id_rsa"]),
    staged(
        "open file taken from a process of the host",
        "Takes a descriptor from another process, which it sees since it has the host's processes.",
        |stage| {
            let directory = stage.directory().join(".ssh");
            fs::create_dir_all(&directory)?;
            let key = directory.join("id_rsa");
            fs::write(&key, "key\n")?;
            let file = File::open(&key)?;
            let line = format!("probe take {} {}", process::id(), file.as_raw_fd());
            stage.run(&stage.shell(&line))
        },
    )
    .flags(HOST_PROCESSES)
    .raises(&["open_sensitive */.ssh/id_rsa"]),
    // Files of the image that are changed; none of them is used as code.
    shell(
        "written in place",
        "Adds bytes to a program of the image.",
        "echo salt >> /opt/tool",
    )
    .raises(&["image_file_modified /opt/tool"]),
    shell(
        "truncated by name",
        "Cuts a library of the image to nothing without opening it.",
        "busybox truncate -c -s 0 /opt/library.so",
    )
    .raises(&["image_file_modified /opt/library.so"]),
    shell(
        "renamed over",
        "Moves another file over a program of the image.",
        "program /tmp/x; mv /tmp/x /opt/tool",
    )
    .raises(&["image_file_modified /opt/tool"]),
    shell("unlinked", "Removes a program of the image.", "rm /opt/tool")
        .raises(&["image_file_modified /opt/tool"]),
    shell(
        "unlinked and recreated",
        "Removes a program of the image and writes another in its place.",
        "rm /opt/tool; program /opt/tool",
    )
    .raises(&["image_file_modified /opt/tool"]),
    shell(
        "unlinked and recreated with the same bytes",
        "Removes a program of the image and puts it back.",
        "cp /opt/tool /tmp/same; rm /opt/tool; cp /tmp/same /opt/tool",
    ),
    shell(
        "hard link, then write",
        "Gives a program of the image another name and writes to that.",
        "ln /opt/tool /tmp/other; echo salt >> /tmp/other",
    )
    .raises(&["image_file_modified /opt/tool"]),
    shell(
        "bind mount, then write",
        "Writes to a program of the image where another mount shows it.",
        "mkdir /tmp/other; busybox mount --bind /opt /tmp/other; echo salt >> /tmp/other/tool",
    )
    .flags(PRIVILEGED)
    .raises(&["image_file_modified /opt/tool"]),
    shell(
        "write through a shared mapping, without an exec",
        "Changes the last byte of a program of the image by a mapping.",
        "probe flip /opt/tool",
    )
    .raises(&["image_file_modified /opt/tool"]),
    shell(
        "directory removed",
        "Removes a directory of the image and all that is in it.",
        "rm -r /opt",
    )
    .raises(&["image_file_modified /opt"]),
    shell(
        "mode and owner alone",
        "Changes what is no part of a file's bytes.",
        "chmod 4755 /opt/tool; chown 1:1 /opt/library.so; touch /opt/script",
    ),
    shell(
        "the same bytes",
        "Writes a library of the image over itself.",
        "cp /opt/library.so /tmp/same; cat /tmp/same > /opt/library.so",
    ),
];
