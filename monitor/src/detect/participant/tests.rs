use super::*;
use crate::detect::file::tests::{exec, image, judged_with, sha256, shown};

#[test]
fn a_participant_is_judged_by_its_bytes() {
    let image = image();
    let check = |path: &str, bytes: Bytes, change: fn(&mut Participant), expect: &str| {
        let mut participant = Participant {
            role: Role::Script,
            path: path.as_bytes().to_vec(),
            unlinked: false,
            size: 4,
            is_layer: false,
            bytes,
        };
        change(&mut participant);
        let program = exec("/bin/sh", |_| {});
        let judgement = judged_with(&program, Expected::Known(&image), |facts| {
            judge(facts, &participant)
        });
        assert_eq!(shown(&judgement), expect, "{participant:?}");
    };
    let hashed = |bytes: &str| Bytes::Hashed(sha256(bytes));
    let gone = || Bytes::Gone("too long".to_owned());
    let as_is: fn(&mut Participant) = |_| {};
    let layer: fn(&mut Participant) = |participant| participant.is_layer = true;

    check("/bin/tool", hashed("tool"), as_is, "good Image");
    check(
        "/bin/tool",
        hashed("evil"),
        as_is,
        "script_modified Critical Modified",
    );
    check("/tmp/x", hashed("evil"), as_is, "script_added High Added");
    check("/tmp/x", hashed("tool"), as_is, "script_added High Added");
    // A file of a layer, seen through a bind mount, or unlinked while it ran.
    check("/mnt/tool", hashed("tool"), layer, "good Image");
    check(
        "/bin/gone",
        hashed("tool"),
        |participant| participant.unlinked = true,
        "good Image",
    );
    check(
        "/bin/gone",
        hashed("evil"),
        |participant| participant.unlinked = true,
        "script_added High Added",
    );
    // What could not be hashed is not taken for the image's.
    check("/tmp/x", gone(), as_is, "script_added High Added");
    check(
        "/bin/tool",
        gone(),
        |participant| participant.size = 5,
        "script_modified Critical Modified",
    );
    check(
        "/bin/tool",
        gone(),
        as_is,
        "content_unverifiable Medium Unverifiable",
    );
    check("/bin/tool", gone(), layer, "unverifiable");
    let interpreter: fn(&mut Participant) = |participant| participant.role = Role::ElfInterpreter;
    check(
        "/bin/tool",
        hashed("evil"),
        interpreter,
        "code_modified Critical Modified",
    );
    check(
        "/lib/ld.so",
        hashed("evil"),
        interpreter,
        "code_added High Added",
    );
}

#[test]
fn a_script_that_was_not_held_is_not_passed_over() {
    let image = image();
    let check = |script: &str, expect: &str| {
        let program = exec("/bin/sh", |exec| {
            exec.script = Some(script.as_bytes().to_vec())
        });
        let judgement = judged_with(&program, Expected::Known(&image), judge_unheld_script);
        assert_eq!(shown(&judgement), expect, "{script}");
    };
    check("/bin/tool", "unverifiable");
    check("/bin/sh", "unverifiable");
    check("/volume/x", "content_unverifiable Medium Unverifiable");
    check("./x", "content_unverifiable Medium Unverifiable");
    check("/dev/fd/3", "content_unverifiable Medium Unverifiable");
}
