//! Names and places.

use super::{Technique, VOLUME, shell};

/// Mounts are for those who may mount.
const PRIVILEGED: &[&str] = &["--privileged"];

pub(super) const ROWS: &[Technique] = &[
    shell(
        "hard link",
        "Gives an added program a second name.",
        "program /tmp/x; ln /tmp/x /opt/y; /opt/y true",
    )
    .raises(&["exec_added /opt/y"]),
    shell(
        "hard link over an image path",
        "Links an added program to the name of a program of the image.",
        "program /tmp/x; ln -f /tmp/x /opt/tool; /opt/tool true",
    )
    .raises(&["exec_modified /opt/tool", "image_file_modified /opt/tool"]),
    shell(
        "rename over an image path",
        "Renames an added program to the name of a program of the image.",
        "program /tmp/x; mv /tmp/x /opt/tool; /opt/tool true",
    )
    .raises(&["exec_modified /opt/tool", "image_file_modified /opt/tool"]),
    shell(
        "symlink over an image path",
        "Has the name of a program of the image lead to an added one.",
        "program /tmp/x; ln -sf /tmp/x /opt/tool; /opt/tool true",
    )
    .raises(&["exec_added /tmp/x", "image_file_modified /opt/tool"]),
    shell(
        "bind mount over an image path",
        "Mounts an added program over a program of the image.",
        "program /tmp/x; mount -o bind /tmp/x /opt/tool; /opt/tool true",
    )
    .flags(PRIVILEGED)
    .raises(&["exec_added /opt/tool"]),
    shell(
        "bind mount of a directory over an image path",
        "Mounts a directory with an added program over a directory of the image.",
        "mkdir /tmp/o; program /tmp/o/tool; mount -o bind /tmp/o /opt; /opt/tool true",
    )
    .flags(PRIVILEGED)
    .raises(&["exec_added /opt/tool"]),
    shell(
        "tmpfs over an image path",
        "Mounts another filesystem over a directory of the image.",
        "mount -t tmpfs none /opt; program /opt/tool; /opt/tool true",
    )
    .flags(PRIVILEGED)
    .raises(&["exec_volume /opt/tool"]),
    shell(
        "overlay in a user namespace",
        "Becomes root of a user namespace and mounts an overlay of the image's own directory there.",
        "probe user-overlay /opt/tool true",
    )
    .raises(&["exec_volume /tmp/overlay/merged/copy"]),
    shell(
        "mount namespace of its own",
        "Executes in a mount namespace that the runtime did not make.",
        "program /tmp/x; busybox unshare -m /tmp/x true",
    )
    .flags(PRIVILEGED)
    .raises(&["exec_added /tmp/x"]),
    shell(
        "chroot",
        "Executes in another root, where the path is one of the image's.",
        "mkdir -p /tmp/jail/opt; program /tmp/jail/opt/tool; chroot /tmp/jail /opt/tool true",
    )
    .raises(&["exec_added /tmp/jail/opt/tool"]),
    shell(
        "pivot_root",
        "Makes a directory the root of a mount namespace, where the path is one of the image's.",
        "mkdir -p /tmp/new/opt /tmp/new/old; program /tmp/new/opt/tool
         busybox unshare -m sh -e -c 'mount -o bind /tmp/new /tmp/new; cd /tmp/new
         busybox pivot_root . old; exec /opt/tool true'",
    )
    .flags(PRIVILEGED)
    .raises(&["exec_added /opt/tool"]),
    shell(
        "/dev/shm",
        "Executes from shared memory, which the runtime mounts without execution.",
        "mount -o remount,exec /dev/shm; program /dev/shm/x; /dev/shm/x true",
    )
    .flags(PRIVILEGED)
    .raises(&["exec_volume /dev/shm/x"]),
    shell(
        "volume",
        "Executes from a volume.",
        "program /volume/x; /volume/x true",
    )
    .flags(VOLUME)
    .raises(&["exec_volume /volume/x"]),
    shell(
        "name with newlines and bytes that are no text",
        "Executes a program by a name that breaks lines and is not UTF-8.",
        "x=$(printf '/tmp/a\\nb\\377c'); program \"$x\"; \"$x\" true",
    )
    .raises(&["exec_added /tmp/a\nb\\xffc"]),
    shell(
        "4096-byte path",
        "Executes a program whose path is longer than any call takes.",
        "cd /tmp; probe deep-exec 40 120 true",
    )
    .raises(&["exec_added */program, path cut"]),
];
