#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot set itself up has failed"
)]

use std::{
    fs::{self, File},
    ops::ControlFlow,
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    },
    path::Path,
};

use super::*;
use crate::{
    image::contents::Contents,
    image::tests::{Tar, contents::contents, layer},
};

/// An image that holds what [`unpack`] writes.
fn image() -> Contents {
    let tar = Tar::default()
        .file("bin/tool", "tool")
        .file("bin/tool.old", "old")
        .file("bin/cleared", "x")
        .file("etc/conf", "conf")
        .symlink("bin/sh", "tool");
    contents(vec![layer(tar).unwrap()])
}

fn write(path: &Path, bytes: &str) {
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
}

fn unpack(root: &Path) {
    for directory in ["bin", "etc"] {
        fs::create_dir(root.join(directory)).unwrap();
        fs::set_permissions(root.join(directory), fs::Permissions::from_mode(0o755)).unwrap();
    }
    write(&root.join("bin/tool"), "tool");
    write(&root.join("bin/tool.old"), "old");
    write(&root.join("bin/cleared"), "x");
    write(&root.join("etc/conf"), "conf");
    symlink("tool", root.join("bin/sh")).unwrap();
}

/// `VERDICT PATH` of every difference, and what was compared.
fn differences(change: impl FnOnce(&Path), mounts: &str) -> (Vec<String>, Summary) {
    let root = tempfile::tempdir().unwrap();
    unpack(root.path());
    change(root.path());
    // Files of the test are its user's, those of the image 7:8 and its directories root's.
    let own = fs::metadata(root.path()).unwrap();
    let map = |inside: u32, outside: u32| format!("{inside} {outside} 1\n");
    let owners = Owners::parse(&map(7, own.uid()), &map(8, own.gid()));
    let walk = Walk::new(OwnedFd::from(File::open(root.path()).unwrap()), owners).unwrap();
    let mut found = Vec::new();
    let summary = compare(
        walk,
        &image(),
        &MountPoints::parse(mounts.as_bytes()),
        |step| {
            if let Step::Difference(difference) = step {
                let path = String::from_utf8_lossy(&difference.path).into_owned();
                // Directories are implied by the tar, so that they are root's.
                if difference.verdict != Verdict::MetadataChanged
                    || difference.seen_type != Some("directory")
                {
                    found.push(format!("{} {path}", difference.verdict.name()));
                }
            }
            ControlFlow::Continue(())
        },
    );
    (found, summary.unwrap())
}

#[track_caller]
fn check(change: impl FnOnce(&Path), expect: &[&str]) {
    assert_eq!(differences(change, "").0, expect);
}

#[test]
fn what_is_as_the_image_holds_it_is_no_difference() {
    let (found, summary) = differences(|_| {}, "");
    assert!(found.is_empty(), "{found:?}");
    assert_eq!((summary.paths, summary.bytes), (7, 12));
}

#[test]
fn every_difference_is_told_in_the_order_of_paths() {
    check(
        |root| {
            write(&root.join("bin/tool"), "evil");
            write(&root.join("bin/new"), "new");
            fs::create_dir(root.join("bin/tool.d")).unwrap();
            write(&root.join("bin/tool.d/x"), "x");
            fs::remove_dir_all(root.join("etc")).unwrap();
            write(&root.join("a"), "a");
        },
        &[
            "added /a",
            "added /bin/new",
            "modified /bin/tool",
            "added /bin/tool.d",
            "added /bin/tool.d/x",
            "removed /etc",
            "removed /etc/conf",
        ],
    );
}

#[test]
fn a_type_a_link_a_length_and_a_mode_are_compared() {
    check(
        |root| {
            fs::remove_file(root.join("bin/sh")).unwrap();
            symlink("tool.old", root.join("bin/sh")).unwrap();
            write(&root.join("bin/cleared"), "");
            fs::remove_file(root.join("bin/tool")).unwrap();
            symlink("/etc/passwd", root.join("bin/tool")).unwrap();
            let set_id = fs::Permissions::from_mode(0o4755);
            fs::set_permissions(root.join("bin/tool.old"), set_id).unwrap();
        },
        &[
            "modified /bin/cleared",
            "modified /bin/sh",
            "modified /bin/tool",
            "metadata_changed /bin/tool.old",
        ],
    );
}

#[test]
fn what_is_only_there_to_be_mounted_on_is_none() {
    let mounts = "1 2 0:1 / / rw - overlay overlay rw\n\
        1 2 0:2 / /proc rw - proc proc rw\n\
        1 2 0:2 / /run/a\\040b/token rw - tmpfs tmpfs rw\n";
    let change = |root: &Path| {
        fs::create_dir(root.join("proc")).unwrap();
        fs::create_dir_all(root.join("run/a b")).unwrap();
        write(&root.join("run/a b/token"), "");
        write(&root.join("run/a b/tool"), "");
    };
    let (found, summary) = differences(change, mounts);
    assert_eq!(found, ["added /run/a b/tool"]);
    assert_eq!(summary.mount_points, 4);
    let change = |root: &Path| write(&root.join("proc"), "bytes");
    assert_eq!(differences(change, mounts).0, ["added /proc"]);
}

#[test]
fn owners_are_those_that_the_container_sees() {
    let owners = Owners::parse("0 100000 65536\n", "0 200000 10\n5 7\n");
    assert_eq!(owners.user(100_007), 7);
    assert_eq!(owners.group(200_008), 8);
    assert_eq!(owners.group(200_010), 200_010);
    assert_eq!(owners.user(99_999), 99_999);
}
