//! One path of an image a line, what lies there now, and what is said of it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use crate::{
    detect::file::tests::{container, sha256},
    image::{
        contents::Contents,
        tests::{Tar, contents::contents, layer},
    },
};

fn image() -> Arc<Contents> {
    let tar = Tar::default()
        .file("bin/tool", "tool")
        .with_mode(0o755)
        .file("bin/data", "data")
        .symlink("bin/link", "tool")
        .file("etc/conf", "conf")
        .symlink("etc/link", "conf")
        .file("lib/x.so.6", "library")
        .file("lib/m.py", "module")
        .file("lib/__pycache__/m.pyc", "cache");
    Arc::new(contents(vec![layer(tar).unwrap()]))
}

fn judged(path: &str, seen: Seen) -> Judgement {
    judge(&Changed {
        container: container(),
        contents: image(),
        time_boot_ns: 7,
        path: path.as_bytes().to_vec(),
        inode: None,
        seen,
    })
}

fn file(bytes: &str, is_copy: bool) -> Seen {
    Seen::File {
        bytes: Bytes::Hashed(sha256(bytes)),
        head: bytes.as_bytes().to_vec(),
        is_copy,
    }
}

/// Severity, what is said after the path, and what stands for seen and expected bytes.
fn check(path: &str, seen: Seen, expect: Option<(Severity, &str, bool, bool)>) {
    let said = match judged(path, seen.clone()) {
        Judgement::Same => None,
        Judgement::Unverifiable => Some((Severity::Info, "unverifiable".to_owned(), false, false)),
        Judgement::Finding(finding) => {
            let file = finding.file.unwrap();
            assert_eq!(file.path, path.as_bytes());
            assert_eq!(finding.kind, Kind::ImageFileModified);
            let said = finding.message.strip_prefix(path).unwrap().to_owned();
            let (seen, expected) = (file.seen.is_some(), file.expected.is_some());
            Some((finding.severity, said, seen, expected))
        }
    };
    let expect = expect.map(|(severity, said, seen, expected)| {
        let said = if said == "unverifiable" {
            said.to_owned()
        } else {
            format!(" {said}")
        };
        (severity, said, seen, expected)
    });
    assert_eq!(said, expect, "{path} {seen:?}");
}

const HIGH: Severity = Severity::High;
const INFO: Severity = Severity::Info;
const OVERWRITTEN: &str = "was overwritten: its bytes are no longer the image's";
const REPLACED: &str = "was replaced by another file: its bytes are no longer the image's";

#[test]
fn files_are_compared_by_their_bytes() {
    check("/etc/conf", file("conf", true), None);
    check("/etc/conf", file("conf", false), None);
    check(
        "/etc/conf",
        file("", true),
        Some((INFO, OVERWRITTEN, true, true)),
    );
    check(
        "/etc/conf",
        file("x", false),
        Some((INFO, REPLACED, true, true)),
    );
    check(
        "/bin/tool",
        file("x", true),
        Some((HIGH, OVERWRITTEN, true, true)),
    );
    check("/etc/none", file("x", true), None);
    let unread = |bytes| Seen::File {
        bytes,
        head: Vec::new(),
        is_copy: true,
    };
    let gone = Bytes::Gone("too long".to_owned());
    check(
        "/etc/conf",
        unread(gone),
        Some((INFO, "unverifiable", false, false)),
    );
}

#[test]
fn code_is_told_by_mode_name_and_first_bytes() {
    let overwritten = |severity| Some((severity, OVERWRITTEN, true, true));
    check("/bin/data", file("x", true), overwritten(INFO));
    check("/bin/data", file("\x7fELF", true), overwritten(HIGH));
    check("/bin/data", file("#!/bin/sh", true), overwritten(HIGH));
    check("/lib/x.so.6", file("x", true), overwritten(HIGH));
    check("/lib/m.py", file("x", true), overwritten(HIGH));
    check("/lib/__pycache__/m.pyc", file("x", true), overwritten(INFO));
}

#[test]
fn what_is_gone_or_something_else_has_no_bytes() {
    let gone = |severity, said| Some((severity, said, false, true));
    check("/etc/conf", Seen::Removed, gone(INFO, "was removed"));
    check("/bin/tool", Seen::Removed, gone(HIGH, "was removed"));
    check(
        "/bin/tool",
        Seen::Symlink(b"/tmp/x".to_vec()),
        gone(HIGH, "was replaced by a symbolic link to /tmp/x"),
    );
    check(
        "/etc/conf",
        Seen::Special,
        gone(INFO, "was replaced by a device, a pipe or a socket"),
    );
    check(
        "/etc/conf",
        Seen::Directory(Vec::new(), 0),
        gone(INFO, "was replaced by a directory"),
    );
}

#[test]
fn symbolic_links_are_compared_by_where_they_lead() {
    let link = |severity, said| Some((severity, said, false, false));
    check("/bin/link", Seen::Symlink(b"tool".to_vec()), None);
    check(
        "/bin/link",
        Seen::Symlink(b"/tmp/x".to_vec()),
        link(HIGH, "was replaced by a symbolic link to /tmp/x"),
    );
    check("/bin/link", Seen::Removed, link(HIGH, "was removed"));
    check("/etc/link", Seen::Removed, link(INFO, "was removed"));
    check(
        "/etc/link",
        file("conf", false),
        Some((INFO, "was replaced by a file", true, false)),
    );
}

#[test]
fn a_directory_stands_for_what_was_in_it() {
    let gone = |severity, said| Some((severity, said, false, false));
    check(
        "/lib/__pycache__",
        Seen::Removed,
        gone(INFO, "was removed with 1 files of the image"),
    );
    check(
        "/etc",
        Seen::Removed,
        gone(INFO, "was removed with 1 files of the image"),
    );
    check(
        "/lib",
        Seen::Removed,
        gone(HIGH, "was removed with 3 files of the image"),
    );
    check(
        "/etc",
        file("x", false),
        gone(
            INFO,
            "was replaced by something else: 1 files of the image in it are gone",
        ),
    );
    check("/bin", Seen::Directory(Vec::new(), 0), None);
    check(
        "/bin",
        Seen::Directory(vec![b"/bin/data".to_vec(), b"/bin/tool".to_vec()], 2),
        gone(HIGH, "was made anew: 2 files of the image in it are gone"),
    );
}

#[test]
fn a_file_of_data_that_is_written_again_is_told_once() {
    let told = |path: &str, seen: Seen| match judged(path, seen) {
        Judgement::Finding(finding) => Some(Told::by(&finding)),
        _ => None,
    };
    assert_eq!(
        told("/etc/conf", file("a", true)),
        told("/etc/conf", file("b", true))
    );
    assert_ne!(
        told("/etc/conf", file("a", true)),
        told("/etc/conf", Seen::Removed)
    );
    assert_ne!(
        told("/bin/tool", file("a", true)),
        told("/bin/tool", file("b", true))
    );
    assert_eq!(
        told("/bin/tool", file("a", true)),
        told("/bin/tool", file("a", false))
    );
}
