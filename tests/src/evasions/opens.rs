//! Ways to open a file, and to change one of the image.

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
