use std::sync::Arc;

use super::*;
use crate::detect::file::tests::container;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap_or_default()
}

fn program(path: &str) -> Executable {
    Executable {
        path: path.as_bytes().to_vec(),
        sha256: None,
        verdict: "image",
    }
}

fn of_name(id: &str) -> Arc<Container> {
    Arc::new(Container {
        id: id.to_owned(),
        ..Container::clone(&container())
    })
}

/// `PATH COUNT` of each, and what is left out.
fn shown(executed: &v1::Executed) -> (Vec<String>, u64) {
    let executables = executed.executables.iter();
    let lines = executables.map(|one| format!("{} {}", one.path.escape_ascii(), one.count));
    (lines.collect(), executed.left_out)
}

#[test]
fn what_ran_is_told_once_by_path_bytes_and_verdict() {
    let mut executions = Executions::new(at(10));
    let container = container();
    let changed = Executable {
        sha256: Some(Sha256([1; 32])),
        verdict: "modified",
        ..program("/bin/sh")
    };
    for executable in [
        program("/bin/sh"),
        program("/bin/ls"),
        changed,
        program("/bin/sh"),
    ] {
        executions.add(&container, executable, at(20));
    }
    executions.add(&of_name("other"), program("/bin/other"), at(20));
    let executed = executions.of(&container);
    let expect = ["/bin/ls 1", "/bin/sh 2", "/bin/sh 1"].map(str::to_owned);
    assert_eq!(shown(&executed), (expect.to_vec(), 0));
    assert_eq!(executed.since, Some(build::timestamp(at(10))));
    executions.removed(&container);
    assert_eq!(shown(&executions.of(&container)), (Vec::new(), 0));
}

#[test]
fn at_the_bounds_more_is_counted() {
    let mut executions = Executions::new(at(0));
    let container = container();
    for number in 0..EXECUTABLES_MAX + 10 {
        executions.add(&container, program(&number.to_string()), at(1));
    }
    executions.add(&container, program("0"), at(1));
    let (lines, left_out) = shown(&executions.of(&container));
    assert_eq!((lines.len(), left_out), (EXECUTABLES_MAX, 10));

    let long = of_name("long");
    for letter in 'a'..='z' {
        let path = letter.to_string().repeat(4000);
        executions.add(&long, program(&path), at(1));
    }
    let (lines, left_out) = shown(&executions.of(&long));
    assert_eq!((lines.len(), left_out), (16, 10));
}

#[test]
fn of_a_container_that_was_forgotten_it_is_told_since_when_what_ran_is_known() {
    let mut executions = Executions::new(at(0));
    let first = of_name("first");
    executions.add(&first, program("/bin/first"), at(1));
    for number in 0..CONTAINERS_MAX.get() {
        executions.add(&of_name(&number.to_string()), program("/bin/x"), at(2));
    }
    let executed = executions.of(&first);
    assert_eq!(shown(&executed), (Vec::new(), 0));
    assert_eq!(executed.since, Some(build::timestamp(at(2))));
}
