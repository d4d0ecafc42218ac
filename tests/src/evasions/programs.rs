//! Programs.

use super::{Technique, VOLUME, shell, stage::NotHere, staged};

/// How the probe tells what overlayfs answers before Linux 6.3.
const NOT_SUPPORTED: &str = "(os error 95)";

/// Writes a program of the image over itself: its bytes stay, in a file that can be changed.
const COPY_UP: &str = "cp /opt/tool /tmp/same; cat /tmp/same > /opt/tool";

pub(super) const ROWS: &[Technique] = &[
    shell(
        "dropped program",
        "Writes a program that the image does not have and executes it.",
        "program /tmp/x; /tmp/x true",
    )
    .raises(&["exec_added /tmp/x"]),
    shell(
        "memfd and fexecve",
        "Copies a program into memory that has no path and executes the descriptor.",
        "probe memfd-exec /bin/probe true",
    )
    .raises(&["exec_memory /memfd:probe"]),
    staged(
        "O_TMPFILE and execveat",
        "Writes a program into a file that never had a name and executes the descriptor.",
        |stage| {
            let ran = stage.run(&stage.shell("probe tmpfile-exec /tmp true"));
            ran.map_err(|error| match format!("{error:#}") {
                said if said.contains(NOT_SUPPORTED) => {
                    NotHere("overlayfs answers that O_TMPFILE is not supported".to_owned()).into()
                }
                _ => error,
            })
        },
    )
    .raises(&["exec_memory /tmp/#*"]),
    shell(
        "O_TMPFILE in a volume",
        "Does the same in another mount.",
        "probe tmpfile-exec /volume true",
    )
    .flags(VOLUME)
    .raises(&["exec_memory /volume/#*"]),
    shell(
        "deleted file",
        "Opens a program, removes it and executes what is still open.",
        "probe deleted-exec /tmp/x true",
    )
    .raises(&["exec_memory /tmp/x"]),
    shell(
        "/proc/self/fd",
        "Executes an open program by the name of its descriptor.",
        "program /tmp/x; exec 9< /tmp/x; /proc/self/fd/9 true",
    )
    .raises(&["exec_added /tmp/x"]),
    shell(
        "execveat below a directory",
        "Executes a name relative to an open directory.",
        "program /tmp/x; probe exec-at /tmp x true",
    )
    .raises(&["exec_added /tmp/x"]),
    shell(
        "exec from another thread",
        "Executes from a thread that is not the first of its process.",
        "program /tmp/x; probe thread-exec /tmp/x true",
    )
    .raises(&["exec_added /tmp/x"]),
    shell(
        "two programs in one process",
        "Executes one program from another in the same process, which ends at once.",
        "program /tmp/a; program /tmp/b; exec /tmp/a exec /tmp/b true",
    )
    .raises(&["exec_added /tmp/a", "exec_added /tmp/b"]),
    shell(
        "overwritten program",
        "Writes over a program of the image in place.",
        "echo salt >> /opt/tool; /opt/tool true",
    )
    .raises(&["exec_modified /opt/tool", "image_file_modified /opt/tool"]),
    shell(
        "removed and made again",
        "Removes a program of the image and puts another in its place.",
        "rm /opt/tool; program /opt/tool; /opt/tool true",
    )
    .raises(&["exec_modified /opt/tool", "image_file_modified /opt/tool"]),
    staged(
        "modified between verification and exec",
        "Changes a program of the image that has been verified and executes it again.",
        |stage| {
            stage.verified(
                &format!("{COPY_UP}; /opt/tool true; /opt/tool true"),
                "echo salt >> /opt/tool; /opt/tool true",
            )
        },
    )
    .raises(&["exec_modified /opt/tool", "image_file_modified /opt/tool"]),
    staged(
        "old size and times",
        "Changes one byte of a verified program and gives it its old time of modification.",
        |stage| {
            stage.verified(
                &format!("{COPY_UP}; /opt/tool true; touch -r /opt/tool /tmp/times"),
                "probe flip /opt/tool; touch -r /tmp/times /opt/tool; /opt/tool true",
            )
        },
    )
    .raises(&["exec_modified /opt/tool", "image_file_modified /opt/tool"]),
    staged(
        "write through a shared mapping",
        "Changes a verified program through a mapping, which leaves its times as they were where the \
         page was dirty before.",
        |stage| {
            stage.verified(
                &format!("{COPY_UP}; probe flip /opt/tool; probe flip /opt/tool; /opt/tool true"),
                "probe flip /opt/tool; /opt/tool true",
            )
        },
    )
    .raises(&["exec_modified /opt/tool", "image_file_modified /opt/tool"]),
    staged(
        "one of two hard links replaced",
        "Executes one of two hard links of the image, changes the other, which is then a file of its \
         own, and executes both.",
        |stage| {
            stage.verified(
                "/opt/tool true; /opt/second true",
                "echo salt >> /opt/second; /opt/tool true; /opt/second true; /opt/tool true",
            )
        },
    )
    .raises(&["exec_modified /opt/second", "image_file_modified /opt/second"]),
    shell(
        "same bytes under another name",
        "Copies a program of the image, since the name decides what busybox does.",
        "cp /bin/busybox /tmp/true; /tmp/true",
    )
    .raises(&["exec_added /tmp/true"]),
    shell(
        "moved program",
        "Renames a program of the image.",
        "mv /opt/tool /opt/moved; /opt/moved true",
    )
    .raises(&["exec_added /opt/moved", "image_file_modified /opt/tool"]),
    shell(
        "same bytes written again",
        "Writes a program of the image over itself.",
        "cp /opt/tool /tmp/same; cat /tmp/same > /opt/tool; /opt/tool sleep-ms 1000",
    ),
    shell(
        "chmod only",
        "Changes mode and owner of a program of the image.",
        "chmod 700 /opt/tool; chown 1:1 /opt/second; /opt/tool true; /opt/second true",
    ),
    shell(
        "touch only",
        "Changes the times of a program of the image.",
        "touch /opt/tool; /opt/tool true",
    ),
    shell(
        "100,000 bytes of arguments",
        "Executes with an argument longer than any event.",
        "program /tmp/x; probe exec-long 100000 /tmp/x true",
    )
    .raises(&["exec_added /tmp/x, arguments cut"]),
];
