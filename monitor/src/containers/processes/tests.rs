use super::*;
use crate::detect::file::tests as sample;

const HOST: u32 = 1;
const OWN: u32 = 2;

/// A program of the image, by the words of its command line.
pub(crate) fn program(executable: &str, line: &str) -> Program {
    Program {
        executable: executable.as_bytes().to_vec(),
        arguments: line
            .split(' ')
            .map(|word| word.as_bytes().to_vec())
            .collect(),
        arguments_truncated: false,
        script: None,
        mount_namespace: OWN,
        is_of_image: AtomicBool::new(true),
        is_unexpected: AtomicBool::new(false),
    }
}

fn container(pid: u32) -> Arc<Container> {
    let mut container = sample::container();
    if let Some(task) = &mut Arc::make_mut(&mut container).task {
        task.pid = pid;
    }
    container
}

fn exec(pid: u32, start: u64, parent: u32, parent_namespace: u32, path: &str) -> Exec {
    sample::exec(path, |exec| {
        exec.used.process.pid = pid;
        exec.used.process.start_boot_ns = start;
        exec.used.process.parent_pid = parent;
        exec.used.process.parent_mount_namespace = parent_namespace;
    })
}

fn id(pid: u32, start_boot_ns: u64) -> ProcessId {
    ProcessId { pid, start_boot_ns }
}

fn texts(paths: &[&str]) -> Vec<Vec<u8>> {
    paths.iter().map(|path| path.as_bytes().to_vec()).collect()
}

#[test]
fn origin_and_ancestors_follow_the_tree() {
    let mut processes = Processes::default();
    let container = container(10);
    let mut check = |exec: Exec, origin: Origin, ancestors: &[&str]| {
        let known = processes.executed(&exec, HOST);
        assert_eq!(
            (
                known.origin(&exec.used.process, &container),
                known.ancestors
            ),
            (origin, texts(ancestors)),
            "{exec:?}"
        );
    };
    check(exec(10, 101, 5, HOST, "/init"), Origin::Init, &[]);
    check(exec(11, 111, 10, OWN, "/sh"), Origin::Init, &["/init"]);
    check(
        exec(12, 121, 11, OWN, "/ls"),
        Origin::Init,
        &["/sh", "/init"],
    );
    // Executes again: still itself.
    check(
        exec(12, 121, 11, OWN, "/cat"),
        Origin::Init,
        &["/sh", "/init"],
    );
    check(exec(20, 131, 6, HOST, "/bin/sh"), Origin::Exec, &[]);
    check(exec(21, 141, 20, OWN, "/x"), Origin::Exec, &["/bin/sh"]);
    // Of a parent that was never seen.
    check(exec(30, 151, 29, OWN, "/y"), Origin::Unknown, &[]);
    // A pid that is younger than its supposed child is another process.
    check(exec(12, 501, 10, OWN, "/new"), Origin::Init, &["/init"]);
    check(exec(40, 401, 12, OWN, "/z"), Origin::Unknown, &[]);
}

#[test]
fn who_is_init_is_unknown_until_the_task_is() {
    let mut processes = Processes::default();
    let mut container = container(10);
    let exec = exec(10, 101, 5, HOST, "/init");
    let known = processes.executed(&exec, HOST);
    assert_eq!(known.origin(&exec.used.process, &container), Origin::Init);
    Arc::make_mut(&mut container).task = None;
    assert_eq!(
        known.origin(&exec.used.process, &container),
        Origin::Unknown
    );
}

#[test]
fn the_runtime_is_of_no_line_of_the_containers() {
    let container = container(10);
    let fork = |parent, child| Fork { parent, child };
    // What the runtime executes was seen before its cgroup was known to be the host's, or was not.
    for is_seen in [true, false] {
        let mut processes = Processes::default();
        for (own, runtime) in [(10, 5), (20, 6)] {
            let mut create = exec(runtime, u64::from(runtime), 4, HOST, "/usr/bin/runc");
            create.used.process.mount_namespace = HOST;
            if is_seen {
                processes.executed(&create, HOST);
            }
            let start = u64::from(own);
            processes.forked(fork(id(runtime, u64::from(runtime)), id(own, start)));
        }
        let mut check = |exec: Exec, origin: Origin, ancestors: &[&str], command: Option<&str>| {
            let known = processes.executed(&exec, HOST);
            let process = &exec.used.process;
            let command = command.map(str::as_bytes);
            let seen = known.command.as_ref().map(|it| it.executable.as_slice());
            assert_eq!(
                (known.origin(process, &container), seen),
                (origin, command),
                "{exec:?}"
            );
            assert_eq!(known.ancestors, texts(ancestors), "{exec:?}");
        };
        let (init, put_in) = (Some("/init"), Some("/bin/sh"));
        check(exec(10, 10, 5, HOST, "/init"), Origin::Init, &[], init);
        check(exec(11, 111, 10, OWN, "/x"), Origin::Init, &["/init"], init);
        check(exec(20, 20, 6, HOST, "/bin/sh"), Origin::Exec, &[], put_in);
        let child = exec(21, 121, 20, OWN, "/x");
        check(child, Origin::Exec, &["/bin/sh"], put_in);
        // An escaped one's are told whole.
        let mut escaped = exec(22, 122, 20, OWN, "/y");
        escaped.used.process.mount_namespace = HOST;
        check(escaped, Origin::Exec, &["/bin/sh"], put_in);
        let next = exec(23, 123, 22, HOST, "/z");
        check(next, Origin::Exec, &["/y", "/bin/sh"], put_in);
    }
}

#[test]
fn forks_link_what_executes_nothing_and_ends_leave_ancestors() {
    let mut processes = Processes::default();
    let container = container(10);
    processes.executed(&exec(10, 101, 5, HOST, "/init"), HOST);
    processes.executed(&exec(11, 111, 10, OWN, "/bin/sh"), HOST);
    processes.placed(&exec(11, 111, 10, OWN, "/").used.process, &container);
    let fork = |parent, child| Fork { parent, child };
    // A subshell, and its child; both parents end, so that init becomes the parent.
    processes.forked(fork(id(11, 111), id(12, 121)));
    processes.forked(fork(id(12, 121), id(13, 131)));
    processes.exited(Exit {
        process: id(12, 121),
    });
    processes.exited(Exit {
        process: id(11, 111),
    });
    let orphan = exec(13, 131, 10, OWN, "/x");
    let known = processes.acted(&orphan.used.process, HOST);
    let program = known.program.as_ref().map(|program| program.name());
    assert_eq!(program, Some(&b"sh"[..]));
    assert!(known.container.is_some());
    let known = processes.executed(&orphan, HOST);
    assert_eq!(known.ancestors, texts(&["/bin/sh", "/bin/sh", "/init"]));
    assert_eq!(known.origin(&orphan.used.process, &container), Origin::Init);

    // The pid of an ended process is given again.
    let fresh = exec(11, 901, 10, OWN, "/fresh");
    assert_eq!(
        processes.acted(&fresh.used.process, HOST).ancestors,
        texts(&["/init"])
    );
    // An end that comes late does not end who has the pid now.
    processes.executed(&fresh, HOST);
    processes.exited(Exit {
        process: id(11, 111),
    });
    let known = processes.acted(&fresh.used.process, HOST);
    let program = known.program.as_ref().map(|program| program.name());
    assert_eq!(program, Some(&b"fresh"[..]));
}

#[test]
fn whose_a_process_was_is_known_after_its_end() {
    let host = exec(12, 121, 11, OWN, "/x").used.process;
    let check = |placed_before: bool| {
        let mut processes = Processes::default();
        let container = container(10);
        let own = exec(11, 111, 10, OWN, "/bin/sh");
        processes.executed(&own, HOST);
        let place = |processes: &mut Processes, now: bool| {
            if now {
                processes.placed(&own.used.process, &container);
            }
        };
        place(&mut processes, placed_before);
        processes.forked(Fork {
            parent: id(11, 111),
            child: id(12, 121),
        });
        let known = processes.executed(&exec(12, 121, 11, OWN, "/x"), HOST);
        // Its parent is found to be the container's only now.
        place(&mut processes, !placed_before);
        for ended in [id(12, 121), id(11, 111)] {
            processes.exited(Exit { process: ended });
        }
        assert!(processes.container_of(&host, &known).is_some());
    };
    check(true);
    check(false);
}

#[test]
fn times_of_proc_are_compared_by_their_tick() {
    let check = |one: u64, other: u64, same: bool, precedes: bool| {
        assert_eq!(is_same(id(1, one), id(1, other)), same, "{one} {other}");
        assert_eq!(can_precede(id(1, one), id(2, other)), precedes);
    };
    check(30_000_000, 34_000_000, true, true);
    check(34_000_000, 30_000_000, true, true);
    check(34_000_000, 35_000_000, false, true);
    check(35_000_000, 34_000_000, false, false);
    check(30_000_000, 41_000_000, false, true);
    check(41_000_000, 30_000_000, false, false);
    assert!(!is_same(id(1, 5), id(2, 5)));
}

#[test]
fn no_more_than_the_bounds_are_kept() {
    let mut processes = Processes::default();
    processes.executed(&exec(1, 1, 0, HOST, "/init"), HOST);
    let count = u32::try_from(PROCESSES_MAX.get() + ENDED_MAX.get()).unwrap_or(u32::MAX);
    for pid in 2..count + 100 {
        processes.forked(Fork {
            parent: id(1, 1),
            child: id(pid, u64::from(pid)),
        });
        if pid % 2 == 0 {
            processes.exited(Exit {
                process: id(pid, u64::from(pid)),
            });
        }
    }
    assert!(processes.running.len() <= PROCESSES_MAX.get());
    assert_eq!(processes.ended.len(), ENDED_MAX.get());
}
