//! One case a line: where the file lies, what it holds, and what is said of it.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use super::*;
use crate::detect::Kind;
use crate::{
    containers::{ContainerKind, Identity, Task, processes::tests::program},
    image::tests::{Tar, contents::contents, layer},
    sensor::{
        event::{Cgroup, Exec, File, Process},
        hooks::HookSet,
    },
};

const HOST_NAMESPACE: u32 = 1;
const OWN_NAMESPACE: u32 = 2;
const ROOT_DEVICE: u32 = 50;
const OTHER_DEVICE: u32 = 60;
const RUNC_DEVICE: u32 = 8;
const RUNC_INODE: u64 = 999;

pub(in crate::detect) fn sha256(bytes: &str) -> Sha256 {
    Sha256::of(bytes.as_bytes())
}

/// An exec as each case changes it: of `/bin/tool`, copied up.
pub(crate) fn exec(path: &str, change: impl FnOnce(&mut Exec)) -> Exec {
    let used = FileUse {
        time_boot_ns: 7,
        hook: HookSet::Tracepoint,
        already_running: false,
        receipt: crate::sensor::event::Receipt::default(),
        cgroup: Cgroup {
            id: 1,
            path: b"/default/c".to_vec(),
        },
        process: Process {
            pid: 10,
            start_boot_ns: 5,
            parent_pid: 9,
            parent_mount_namespace: OWN_NAMESPACE,
            uid: 0,
            mount_namespace: OWN_NAMESPACE,
            pid_namespace: 3,
            root_device: ROOT_DEVICE,
        },
        file: File {
            facts: FileFacts {
                inode: 100,
                size: 4,
                device: ROOT_DEVICE,
                link_count: 1,
                mount_namespace: OWN_NAMESPACE,
                flags: FILE_OVERLAY | FILE_UPPER,
                ..FileFacts::default()
            },
            path: path.as_bytes().to_vec(),
            path_in_filesystem: path.as_bytes().to_vec(),
            path_truncated: false,
            unlinked: false,
        },
    };
    let mut exec = Exec {
        used,
        script: None,
        arguments: Vec::new(),
        arguments_truncated: false,
        held: Vec::new(),
        program: None,
    };
    change(&mut exec);
    exec
}

pub(crate) fn container() -> Arc<Container> {
    Arc::new(Container {
        runtime_namespace: "default".to_owned(),
        id: "c".to_owned(),
        name: String::new(),
        kind: ContainerKind::Container,
        pod: None,
        runtime: String::new(),
        image_reference: None,
        snapshotter: String::new(),
        snapshot_key: String::new(),
        identity: Identity::None,
        image_problem: None,
        posture: None,
        created_unix_ns: 0,
        task: Some(Task {
            pid: 10,
            mount_namespace: Some(OWN_NAMESPACE),
            root_device: Some(ROOT_DEVICE),
            root_path: Vec::new(),
            rootfs: None,
            named: std::collections::BTreeMap::new(),
        }),
    })
}

fn judged(exec: &Exec, bytes: &Bytes, expected: Expected<'_>) -> Judgement {
    judged_as(Role::Program, exec, bytes, expected, judge)
}

/// The same as a participant of the exec, or its script, is judged.
pub(in crate::detect) fn judged_with(
    exec: &Exec,
    expected: Expected<'_>,
    judge: impl FnOnce(&UseFacts<'_>) -> Judgement,
) -> Judgement {
    let bytes = Bytes::Hashed(sha256("program"));
    judged_as(Role::Program, exec, &bytes, expected, judge)
}

fn judged_as(
    role: Role,
    exec: &Exec,
    bytes: &Bytes,
    expected: Expected<'_>,
    judge: impl FnOnce(&UseFacts<'_>) -> Judgement,
) -> Judgement {
    let mut program = program("/bin/sh", "sh");
    program.script = exec.script.clone();
    judge(&UseFacts {
        used: &exec.used,
        role,
        container: &container(),
        host_mount_namespace: HOST_NAMESPACE,
        runtime: &RuntimeFiles {
            versions: [(RUNC_DEVICE, RUNC_INODE, 4, 0, 0)].into(),
            hashes: [sha256("runc")].into(),
        },
        expected,
        bytes,
        head: b"head",
        capability: None,
        libraries: &[],
        origin: Origin::Init,
        program: Some(&program),
        ancestors: Vec::new(),
        hook: "tracepoint",
    })
}

/// `kind severity verdict`, or what it is instead.
pub(in crate::detect) fn shown(judgement: &Judgement) -> String {
    match judgement {
        Judgement::Confirmed => "confirmed".to_owned(),
        Judgement::Good(verdict) => format!("good {verdict:?}"),
        Judgement::Runtime => "runtime".to_owned(),
        Judgement::Jit => "jit".to_owned(),
        Judgement::Cache => "cache".to_owned(),
        Judgement::Unverifiable => "unverifiable".to_owned(),
        Judgement::Finding(finding) => {
            let verdict = finding.file.as_ref().map(|file| file.verdict).unwrap();
            format!("{} {:?} {verdict:?}", finding.kind.name(), finding.severity)
        }
    }
}

pub(in crate::detect) fn image() -> Contents {
    let tar = Tar::default()
        .file("bin/tool", "tool")
        .file("bin/other", "else")
        .file("lib/m.py", "source")
        .symlink("bin/sh", "tool");
    contents(vec![layer(tar).unwrap()])
}

#[test]
fn a_file_is_judged_by_where_it_lies_and_what_it_holds() {
    let image = image();
    let check = |exec: Exec, bytes: &str, expect: &str| {
        let bytes = Bytes::Hashed(sha256(bytes));
        let judgement = judged(&exec, &bytes, Expected::Known(&image));
        assert_eq!(shown(&judgement), expect, "{exec:?}");
    };
    let upper = |path: &str| exec(path, |_| {});
    let lower = |path: &str| exec(path, |exec| exec.used.file.facts.flags = FILE_OVERLAY);

    check(upper("/bin/tool"), "tool", "good MetadataChanged");
    check(
        upper("/bin/tool"),
        "evil",
        "exec_modified Critical Modified",
    );
    check(upper("/bin/sh"), "evil", "exec_modified Critical Modified");
    check(upper("/tmp/x"), "evil", "exec_added Critical Added");
    check(upper("/tmp/x"), "tool", "exec_added Medium Added");

    check(lower("/bin/tool"), "tool", "confirmed");
    // Somebody edited the unpacked layer on the host.
    check(
        lower("/bin/tool"),
        "evil",
        "exec_modified Critical Modified",
    );
    check(lower("/bin/new"), "evil", "exec_added Critical Added");
    check(
        exec("/bin/gone", |exec| {
            exec.used.file.facts.flags = FILE_OVERLAY;
            exec.used.file.unlinked = true;
        }),
        "tool",
        "good Image",
    );

    let changed = |change: fn(&mut Exec)| exec("/bin/tool", change);
    check(
        changed(|exec| exec.used.file.facts.link_count = 0),
        "tool",
        "exec_memory Critical Memory",
    );
    check(
        changed(|exec| exec.used.file.unlinked = true),
        "tool",
        "exec_memory Critical Memory",
    );
    check(
        changed(|exec| exec.used.file.facts.mount_namespace = 0),
        "tool",
        "exec_memory Critical Memory",
    );
    // A volume mounted over a path of the image, even with the image's own bytes.
    check(
        changed(|exec| exec.used.file.facts.device = OTHER_DEVICE),
        "tool",
        "exec_volume Low Volume",
    );
    // A root without layers says nothing about where the bytes come from, their hash does.
    check(
        changed(|exec| exec.used.file.facts.flags = 0),
        "tool",
        "good Image",
    );
    check(
        changed(|exec| exec.used.file.facts.flags = 0),
        "evil",
        "exec_modified Critical Modified",
    );
}

#[test]
fn the_path_in_the_filesystem_decides_and_the_path_seen_is_told() {
    let image = image();
    let exec = exec("/mnt/tool", |exec| {
        exec.used.file.path_in_filesystem = b"/bin/tool".to_vec()
    });
    let bytes = Bytes::Hashed(sha256("evil"));
    let Judgement::Finding(finding) = judged(&exec, &bytes, Expected::Known(&image)) else {
        panic!("no finding");
    };
    let file = finding.file.unwrap();
    assert_eq!(finding.kind, Kind::ExecModified);
    assert_eq!(file.path, b"/mnt/tool");
    assert_eq!(file.expected, Some(sha256("tool")));
    assert_eq!(file.seen, Some(sha256("evil")));
    assert_eq!(file.layer, Some(image.layers().first().unwrap().diff_id()));
}

#[test]
fn in_the_hosts_namespace_only_the_runtime_itself_may_run() {
    let image = image();
    let check = |change: fn(&mut Exec), bytes: &str, expect: &str| {
        let exec = exec("/usr/sbin/runc", |exec| {
            exec.used.process.mount_namespace = HOST_NAMESPACE;
            exec.used.file.facts.flags = 0;
            change(exec);
        });
        let bytes = Bytes::Hashed(sha256(bytes));
        assert_eq!(
            shown(&judged(&exec, &bytes, Expected::Known(&image))),
            expect
        );
    };
    let is_runc: fn(&mut Exec) = |exec| {
        exec.used.file.facts.device = RUNC_DEVICE;
        exec.used.file.facts.inode = RUNC_INODE;
    };
    check(is_runc, "runc", "runtime");
    // A sealed copy in memory.
    check(
        |exec| exec.used.file.facts.link_count = 0,
        "runc",
        "runtime",
    );
    // Overwritten in place.
    check(
        |exec| {
            exec.used.file.facts.device = RUNC_DEVICE;
            exec.used.file.facts.inode = RUNC_INODE;
            exec.used.file.facts.changed_s = 1;
        },
        "evil",
        "exec_added Critical Added",
    );
    // Its name alone counts for nothing.
    check(|_| {}, "evil", "exec_added Critical Added");
    check(
        |exec| exec.used.file.facts.inode = RUNC_INODE,
        "evil",
        "exec_added Critical Added",
    );
}

#[test]
fn what_is_not_known_is_said_and_nothing_is_made_up() {
    let image = image();
    let gone = Bytes::Gone("no descriptor".to_owned());
    let check = |exec: Exec, expected: Expected<'_>, expect: &str| {
        assert_eq!(shown(&judged(&exec, &gone, expected)), expect, "{exec:?}");
    };
    let upper = |path: &str, size: u64| exec(path, |exec| exec.used.file.facts.size = size);
    let verified = Expected::Known(&image);
    check(upper("/tmp/x", 4), verified, "exec_added Critical Added");
    // Another length is another file; the same length proves nothing.
    check(
        upper("/bin/tool", 5),
        verified,
        "exec_modified Critical Modified",
    );
    check(
        upper("/bin/tool", 4),
        verified,
        "content_unverifiable Medium Unverifiable",
    );
    check(
        exec("/bin/tool", |exec| {
            exec.used.file.facts.flags = FILE_OVERLAY
        }),
        verified,
        "good Image",
    );

    let unavailable = Expected::Unavailable("layer sha256:… is corrupt");
    check(
        upper("/tmp/x", 4),
        unavailable,
        "content_unverifiable Medium Unverifiable",
    );
    check(
        exec("/bin/tool", |exec| exec.used.file.facts.link_count = 0),
        unavailable,
        "exec_memory Critical Memory",
    );
    check(upper("/tmp/x", 4), Expected::NoImage, "unverifiable");
    check(
        exec("/x", |exec| exec.used.file.facts.link_count = 0),
        Expected::NoImage,
        "exec_memory Critical Memory",
    );
}

/// Path, bytes, what else changes, and what comes of it.
type Case = (&'static str, &'static str, fn(&mut FileUse), &'static str);

/// A use of a file as anything but a program, as each case changes it.
fn check_uses(role: Role, cases: &[Case]) {
    let image = image();
    for (path, bytes, change, expect) in cases {
        let exec = exec(path, |exec| change(&mut exec.used));
        let bytes = match *bytes {
            "" => Bytes::Gone("too long".to_owned()),
            "remembered" => Bytes::Remembered,
            bytes => Bytes::Hashed(sha256(bytes)),
        };
        let judgement = judged_as(role, &exec, &bytes, Expected::Known(&image), judge);
        assert_eq!(shown(&judgement), *expect, "{role:?} {path} {exec:?}");
    }
}

/// Where python keeps the bytecode of a source of the image.
const CACHE: &str = "/lib/__pycache__/m.cpython-311.pyc";
const UPPER: fn(&mut FileUse) = |_| {};
const LOWER: fn(&mut FileUse) = |used| used.file.facts.flags = FILE_OVERLAY;
const VOLUME: fn(&mut FileUse) = |used| used.file.facts.device = OTHER_DEVICE;
const DELETED: fn(&mut FileUse) = |used| used.file.facts.link_count = 0;
const MEMFD: fn(&mut FileUse) = |used| used.file.facts.mount_namespace = 0;
const OF_HOST: fn(&mut FileUse) = |used| used.process.mount_namespace = HOST_NAMESPACE;

#[test]
fn mapped_code_is_judged_by_where_it_lies_and_what_it_holds() {
    check_uses(
        Role::Code { written: false },
        &[
            ("/bin/tool", "tool", LOWER, "confirmed"),
            ("/bin/tool", "", LOWER, "good Image"),
            ("/bin/tool", "remembered", LOWER, "good Image"),
            (
                "/bin/tool",
                "evil",
                LOWER,
                "code_modified Critical Modified",
            ),
            ("/bin/tool", "tool", UPPER, "good MetadataChanged"),
            (
                "/bin/tool",
                "evil",
                UPPER,
                "code_modified Critical Modified",
            ),
            ("/bin/sh", "evil", UPPER, "code_modified Critical Modified"),
            ("/tmp/x.so", "evil", UPPER, "code_added High Added"),
            ("/tmp/x.so", "tool", UPPER, "code_added High Added"),
            ("/tmp/x.so", "", UPPER, "code_added High Added"),
            (
                "/bin/tool",
                "",
                UPPER,
                "content_unverifiable Medium Unverifiable",
            ),
            ("/bin/tool", "tool", VOLUME, "code_volume Low Volume"),
            ("/tmp/x.so", "evil", DELETED, "code_memory High Memory"),
            ("/memfd:x", "evil", MEMFD, "code_memory High Memory"),
            ("/memfd:x", "", MEMFD, "code_memory High Memory"),
            // Anonymous memory in a file's clothes.
            ("/dev/zero", "", DELETED, "jit"),
            ("/tmp/x.so", "evil", OF_HOST, "code_added High Added"),
        ],
    );
    check_uses(
        Role::Code { written: true },
        &[
            ("/bin/tool", "tool", LOWER, "code_memory High Memory"),
            ("/tmp/x.so", "evil", UPPER, "code_memory High Memory"),
            ("/tmp/x.so", "evil", VOLUME, "code_memory High Memory"),
        ],
    );
}

#[test]
fn scripts_are_judged_by_where_they_lie_and_what_they_hold() {
    check_uses(
        Role::Script,
        &[
            ("/bin/tool", "tool", LOWER, "confirmed"),
            (
                "/bin/tool",
                "evil",
                LOWER,
                "script_modified Critical Modified",
            ),
            ("/bin/tool", "tool", UPPER, "good MetadataChanged"),
            (
                "/bin/tool",
                "evil",
                UPPER,
                "script_modified Critical Modified",
            ),
            ("/tmp/x", "evil", UPPER, "script_added High Added"),
            ("/tmp/x", "", UPPER, "script_added High Added"),
            (CACHE, "evil", UPPER, "script_added High Added"),
            (CACHE, "", UPPER, "content_unverifiable Medium Unverifiable"),
            ("/tmp/x", "evil", VOLUME, "script_volume Info Volume"),
            ("/tmp/x", "evil", DELETED, "script_added High Memory"),
            ("/memfd:x", "evil", MEMFD, "script_added High Memory"),
        ],
    );
    check_uses(
        Role::Sourced,
        &[
            ("/bin/tool", "tool", LOWER, "confirmed"),
            ("/bin/tool", "tool", UPPER, "good MetadataChanged"),
            ("/bin/tool", "evil", UPPER, "script_modified High Modified"),
            ("/tmp/x", "evil", UPPER, "script_added Medium Added"),
            ("/tmp/x", "evil", VOLUME, "script_volume Info Volume"),
            ("/tmp/x", "evil", DELETED, "script_added Medium Memory"),
            (
                "/bin/tool",
                "",
                UPPER,
                "content_unverifiable Low Unverifiable",
            ),
        ],
    );
}

#[test]
fn the_images_bytes_with_more_privilege_are_modified() {
    let sets = Tar::default().file("bin/tool", "tool").with_mode(0o4755);
    let (plain, sets) = (image(), contents(vec![layer(sets).unwrap()]));
    let raw = FileCapability {
        permitted: 1 << 13,
        ..FileCapability::default()
    };
    let check = |image: &Contents, role, mode: u32, flags, capability, expect: &str| {
        let exec = exec("/bin/tool", |exec| {
            exec.used.file.facts.mode = 0o100_000 | mode;
            exec.used.file.facts.flags = flags;
        });
        let bytes = Bytes::Hashed(sha256("tool"));
        let judgement = judged_as(role, &exec, &bytes, Expected::Known(image), |facts| {
            judge(&UseFacts {
                capability,
                ..facts.clone()
            })
        });
        assert_eq!(shown(&judgement), expect, "{mode:o} {capability:?}");
    };
    let (program, upper) = (Role::Program, FILE_OVERLAY | FILE_UPPER);
    let modified = "exec_modified Critical Modified";
    check(&plain, program, 0o755, upper, None, "good MetadataChanged");
    check(&plain, program, 0o4755, upper, None, modified);
    check(&plain, program, 0o2755, upper, None, modified);
    check(&plain, program, 0o755, upper, Some(raw), modified);
    check(&sets, program, 0o4755, upper, None, "good MetadataChanged");
    check(&sets, program, 0o6755, upper, None, modified);
    // As chown leaves it.
    check(&sets, program, 0o755, upper, None, "good MetadataChanged");
    // Edited on the host.
    check(&plain, program, 0o4755, FILE_OVERLAY, None, modified);
    check(&plain, program, 0o755, FILE_OVERLAY, None, "confirmed");
    // Nobody gains by mapping it.
    let code = Role::Code { written: false };
    check(&plain, code, 0o4755, upper, None, "good MetadataChanged");

    // Deleted, as its container ended, before it was read: its mode is that of the exec.
    let setuid = exec("/bin/tool", |exec| exec.used.file.facts.mode = 0o104_755);
    let touched = Bytes::Touched(sha256("tool"));
    let judgement = judged(&setuid, &touched, Expected::Known(&plain));
    assert_eq!(shown(&judgement), modified);
}
