//! Ways to open a file.

use super::{Technique, shell};

/// All that root may do.
const PRIVILEGED: &[&str] = &["--privileged"];
/// What opening by a handle needs, and a filesystem that has handles.
const HANDLES: &[&str] = &[
    "--privileged",
    "--mount",
    "type=tmpfs,src=tmpfs,dst=/volume,options=rw",
];

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
    .raises(&["open_sensitive /etc/shadow"]),
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
    .raises(&["open_sensitive /etc/shadow"]),
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
];
