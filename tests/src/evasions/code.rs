//! Libraries and other files that are mapped executable.

use super::{Technique, VOLUME, shell};

pub(super) const ROWS: &[Technique] = &[
    shell(
        "program given to the loader",
        "Has the image's loader run a program, which is then mapped and not executed.",
        "cp /opt/dynamic /tmp/evil; echo salt >> /tmp/evil; /lib64/ld-linux-x86-64.so.2 /tmp/evil",
    )
    .raises(&["code_added /tmp/evil"]),
    shell(
        "loader of a program replaced",
        "Changes the loader of the image's programs.",
        "cp /lib64/ld-linux-x86-64.so.2 /tmp/ld; echo salt >> /tmp/ld
         mv /tmp/ld /lib64/ld-linux-x86-64.so.2; /opt/dynamic",
    )
    .raises(&[
        "code_modified /lib64/ld-linux-x86-64.so.2",
        "image_file_modified /lib64/ld-linux-x86-64.so.2",
    ]),
    shell(
        "LD_PRELOAD",
        "Has a program of the image load a library that the image does not have.",
        "library /tmp/evil.so; LD_PRELOAD=/tmp/evil.so /opt/dynamic",
    )
    .raises(&["code_added /tmp/evil.so"]),
    shell(
        "/etc/ld.so.preload",
        "Has every program load a library that the image does not have.",
        "library /tmp/evil.so; echo /tmp/evil.so > /etc/ld.so.preload; /opt/dynamic",
    )
    .raises(&["code_added /tmp/evil.so"]),
    shell(
        "LD_LIBRARY_PATH",
        "Puts a library before the image's of the same name.",
        "cp /lib/x86_64-linux-gnu/libc.so.6 /tmp; echo salt >> /tmp/libc.so.6
         LD_LIBRARY_PATH=/tmp /opt/dynamic",
    )
    .raises(&["code_added /tmp/libc.so.6"]),
    shell(
        "dlopen",
        "Has a running program load a library that the image does not have.",
        "library /tmp/evil.so; /opt/dynamic /tmp/evil.so",
    )
    .raises(&["code_added /tmp/evil.so"]),
    shell(
        "dlopen from a volume",
        "Has a running program load a library from another mount.",
        "library /volume/evil.so; /opt/dynamic /volume/evil.so",
    )
    .flags(VOLUME)
    .raises(&["code_volume /volume/evil.so"]),
    shell(
        "library replaced",
        "Changes a library of the image that programs load.",
        "/opt/dynamic /opt/library.so; echo salt >> /opt/library.so; /opt/dynamic /opt/library.so",
    )
    .raises(&[
        "code_modified /opt/library.so",
        "image_file_modified /opt/library.so",
    ]),
    shell(
        "file mapped executable",
        "Maps a file executable without any loader.",
        "program /tmp/x; probe map-file /tmp/x",
    )
    .raises(&["code_added /tmp/x"]),
    shell(
        "memfd mapped executable",
        "Maps memory that has a descriptor and no path executable.",
        "probe map-memfd /opt/tool",
    )
    .raises(&["code_memory /memfd:probe"]),
    shell(
        "written memory made executable",
        "Writes code into memory without a file, makes it executable and calls it.",
        "probe map-anonymous",
    )
    .raises(&["code_memory *"]),
    shell(
        "library of the image",
        "Loads what the image holds, as every program does.",
        "/opt/dynamic /opt/library.so; /lib64/ld-linux-x86-64.so.2 /opt/dynamic",
    ),
];
