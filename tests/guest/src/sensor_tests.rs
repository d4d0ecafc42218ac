//! What the sensor must say of an exec, on every kernel.

#![expect(missing_docs, reason = "the name of a test says what it asks for")]

use std::{
    ffi::OsStr,
    fs::{self, File, Metadata},
    io::Read as _,
    os::{
        fd::OwnedFd,
        unix::{
            ffi::OsStrExt as _,
            fs::{FileExt as _, MetadataExt as _},
        },
    },
    process,
};

use anyhow::{Context as _, Result, ensure};
use monitor::sensor::event::{Exec, FileFacts};
use monitor_common::{
    CgroupState,
    exec::{ARGUMENTS_BYTES_MAX, FILE_OVERLAY as OVERLAY, FILE_UPPER as UPPER},
    path::{COMPONENT_BYTES_MAX, COMPONENTS_MAX, PATH_BYTES_MAX},
};
use nix::{
    sys::stat::{major, minor},
    time::{ClockId, clock_gettime},
};

use crate::{container::Container, inside::Entry, observer::Observer, prototypes};

const BUSYBOX: &str = "/bin/busybox";

/// A test: what it asks for, or an error that says what was otherwise.
pub type SensorTest = fn(&Observer) -> Result<()>;

/// Calls a macro with the names of all tests, so that there is one list of them.
#[macro_export]
macro_rules! for_each_sensor_test {
    ($make:ident) => {
        $make! {
            hooks_have_the_prototypes_they_name
            a_program_of_a_lower_layer
            a_program_of_the_upper_layer
            a_program_of_a_volume
            a_deleted_program
            a_program_in_memory
            a_script_and_its_interpreter
            arguments_are_kept_up_to_their_bound
            a_path_of_many_components_is_cut
            a_path_of_many_bytes_is_cut
            a_name_may_hold_any_bytes
            the_path_is_of_the_namespace_in_a_chroot
            a_bind_mount_changes_only_the_path_people_see
            a_process_of_a_container_has_its_parent_there
            a_process_put_in_from_outside_has_its_parent_outside
            an_overlay_of_a_user_namespace
            the_bytes_are_held_after_exit_and_removal
            a_host_cgroup_is_watched_in_another_namespace_only
            every_run_of_the_hook_is_accounted_for
            the_verifier_is_far_from_its_limit
        }
    };
}

macro_rules! table {
    ($($name:ident)+) => {
        /// All tests by name.
        pub const SENSOR_TESTS: &[(&str, SensorTest)] = &[$((stringify!($name), $name)),+];
    };
}
for_each_sensor_test!(table);

/// Fails unless the two are equal, and says what was compared.
macro_rules! equal {
    ($found:expr, $expect:expr) => {{
        let (found, expect) = (&$found, &$expect);
        ensure!(
            found == expect,
            "{} is {found:?}, not {expect:?}",
            stringify!($found)
        );
    }};
}

/// The exec whose last argument is this.
fn exec_of<'a>(events: &'a [Exec], last_argument: &str) -> Result<&'a Exec> {
    let found = events.iter().find(|exec| {
        exec.arguments
            .last()
            .is_some_and(|last| last == last_argument.as_bytes())
    });
    found.with_context(|| {
        let seen: Vec<_> = events.iter().map(|exec| show(&exec.file.path)).collect();
        format!("no exec with the argument {last_argument}, only of {seen:?}")
    })
}

fn run_in(container: &Container<'_>, entry: Entry, step: &[&str]) -> Result<Vec<Exec>> {
    let step: Vec<&OsStr> = step.iter().map(OsStr::new).collect();
    container.run(entry, &step)
}

fn show(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

fn check_paths(exec: &Exec, path: &str, path_in_filesystem: &str) -> Result<()> {
    equal!(show(&exec.file.path), path);
    equal!(show(&exec.file.path_in_filesystem), path_in_filesystem);
    ensure!(!exec.file.path_truncated, "the path is said to be cut");
    Ok(())
}

/// The kernel's device number of what `stat` says.
fn kernel_device(file: &Metadata) -> u64 {
    (major(file.dev()) << 20) | minor(file.dev())
}

/// Compares what the kernel said of the real inode with what `stat` says.
fn check_real_inode(facts: &FileFacts, real: &Metadata) -> Result<()> {
    equal!(facts.real_inode, real.ino());
    equal!(u64::from(facts.real_device), kernel_device(real));
    equal!(facts.size, real.size());
    equal!(facts.modified_s, real.mtime());
    equal!(i64::from(facts.modified_ns), real.mtime_nsec());
    equal!(facts.changed_s, real.ctime());
    equal!(i64::from(facts.changed_ns), real.ctime_nsec());
    equal!(u64::from(facts.link_count), real.nlink());
    equal!(facts.mode, real.mode());
    Ok(())
}

fn namespace(path: &str) -> Result<u64> {
    Ok(fs::metadata(path)
        .with_context(|| format!("looking at {path}"))?
        .ino())
}

pub fn hooks_have_the_prototypes_they_name(_observer: &Observer) -> Result<()> {
    prototypes::check_all()
}

pub fn a_program_of_a_lower_layer(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    let before = boot_time_ns()?;
    let step = ["run", BUSYBOX, "true", "", "two words", "lower"];
    let events = run_in(&container, Entry::Isolated, &step)?;
    let exec = exec_of(&events, "lower")?;

    equal!(exec.cgroup.id, container.cgroup_id());
    equal!(show(&exec.cgroup.path), show(&container.cgroup_path()));
    check_paths(exec, BUSYBOX, BUSYBOX)?;
    equal!(exec.script, None);
    let arguments: Vec<String> = exec.arguments.iter().map(|word| show(word)).collect();
    equal!(arguments, step.get(1..).unwrap_or_default());
    ensure!(
        !exec.arguments_truncated,
        "the arguments are said to be cut"
    );
    ensure!(!exec.file.unlinked, "the file is said to be removed");

    let facts = &exec.file.facts;
    equal!(facts.flags, OVERLAY);
    let overlay = fs::metadata(container.root().join("bin/busybox"))?;
    equal!(facts.inode, overlay.ino());
    equal!(facts.real_inode, facts.inode);
    equal!(facts.size, overlay.size());
    equal!(u64::from(facts.link_count), overlay.nlink());
    equal!(facts.mode, overlay.mode());
    equal!(facts.mount_namespace, exec.process.mount_namespace);

    let process = &exec.process;
    equal!(process.uid, 0);
    equal!(process.root_device, facts.device);
    let (start, exec_time) = (process.start_boot_ns, exec.time_boot_ns);
    ensure!(
        before <= start && start <= exec_time && exec_time <= boot_time_ns()?,
        "started at {start}, executed at {exec_time}, asked for at {before}"
    );
    Ok(())
}

fn boot_time_ns() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).context("reading the time since boot")?;
    let nanoseconds = now.tv_sec() * 1_000_000_000 + now.tv_nsec();
    u64::try_from(nanoseconds).context("a time before boot")
}

pub fn a_program_of_the_upper_layer(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    let events = container.shell(
        "cp /bin/busybox /tmp/busybox-copy; ln /tmp/busybox-copy /tmp/busybox-second; /tmp/busybox-copy true upper
         chmod 0700 /bin/busybox; /bin/busybox true changed",
    )?;

    let exec = exec_of(&events, "upper")?;
    check_paths(exec, "/tmp/busybox-copy", "/tmp/busybox-copy")?;
    equal!(exec.file.facts.flags, OVERLAY | UPPER);
    let real = fs::metadata(container.upper().join("tmp/busybox-copy"))?;
    check_real_inode(&exec.file.facts, &real)?;
    equal!(exec.file.facts.link_count, 2);

    let exec = exec_of(&events, "changed")?;
    check_paths(exec, BUSYBOX, BUSYBOX)?;
    equal!(exec.file.facts.flags, OVERLAY | UPPER);
    let real = fs::metadata(container.upper().join("bin/busybox"))?;
    check_real_inode(&exec.file.facts, &real)
}

pub fn a_program_of_a_volume(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    let events = container.shell(
        "mkdir /volume/sub; cp /bin/busybox /volume/sub/busybox-copy; /volume/sub/busybox-copy true volume",
    )?;
    let exec = exec_of(&events, "volume")?;
    check_paths(exec, "/volume/sub/busybox-copy", "/sub/busybox-copy")?;
    equal!(exec.file.facts.flags, 0);
    ensure!(
        exec.file.facts.device != exec.process.root_device,
        "the volume's device is the root's"
    );
    Ok(())
}

pub fn a_deleted_program(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    let step = ["deleted", BUSYBOX, "true", "deleted"];
    let events = run_in(&container, Entry::Isolated, &step)?;
    let exec = exec_of(&events, "deleted")?;
    check_paths(exec, "/tmp/deleted", "/tmp/deleted")?;
    ensure!(exec.file.unlinked, "the file is not said to be removed");
    equal!(exec.file.facts.flags, OVERLAY | UPPER);
    equal!(exec.file.facts.link_count, 0);
    Ok(())
}

pub fn a_program_in_memory(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    let step = ["memfd", BUSYBOX, "true", "memory"];
    let events = run_in(&container, Entry::Isolated, &step)?;
    let exec = exec_of(&events, "memory")?;
    check_paths(exec, "/memfd:program", "/memfd:program")?;
    let facts = &exec.file.facts;
    equal!(facts.flags, 0);
    equal!(facts.link_count, 0);
    equal!(facts.mount_namespace, 0);
    equal!(facts.size, fs::metadata(BUSYBOX)?.size());
    Ok(())
}

pub fn a_script_and_its_interpreter(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    let events = container.shell(
        "printf '#!/bin/sh -e\\ntrue\\n' > /tmp/script; chmod +x /tmp/script; cd /tmp; ./script script",
    )?;
    let exec = exec_of(&events, "script")?;
    check_paths(exec, BUSYBOX, BUSYBOX)?;
    equal!(
        exec.script.as_deref().map(show),
        Some("./script".to_owned())
    );
    let arguments: Vec<String> = exec.arguments.iter().map(|word| show(word)).collect();
    equal!(arguments, ["/bin/sh", "-e", "./script", "script"]);
    Ok(())
}

pub fn arguments_are_kept_up_to_their_bound(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    let long = "x".repeat(100_000);
    let step = ["run", BUSYBOX, "true", "first", &long];
    let events = run_in(&container, Entry::Isolated, &step)?;
    let exec = events
        .iter()
        .find(|exec| exec.arguments.iter().any(|word| word == b"first"))
        .context("the exec was not seen")?;
    ensure!(
        exec.arguments_truncated,
        "the arguments are not said to be cut"
    );
    equal!(exec.arguments.len(), 4);
    let bytes: usize = exec.arguments.iter().map(Vec::len).sum();
    // Three NULs end the arguments before the one that is cut.
    equal!(bytes, usize::try_from(ARGUMENTS_BYTES_MAX)? - 3);
    ensure!(
        exec.arguments
            .last()
            .is_some_and(|last| long.as_bytes().starts_with(last)),
        "the long argument does not begin as it should"
    );
    Ok(())
}

pub fn a_path_of_many_components_is_cut(observer: &Observer) -> Result<()> {
    check_deep_path(observer, 300, 1)
}

pub fn a_path_of_many_bytes_is_cut(observer: &Observer) -> Result<()> {
    check_deep_path(observer, 40, 200)
}

fn check_deep_path(observer: &Observer, count: usize, length: usize) -> Result<()> {
    let container = Container::new(observer)?;
    let (depth, width) = (count.to_string(), length.to_string());
    let step = ["deep", &depth, &width, BUSYBOX, "true", "deep"];
    let events = run_in(&container, Entry::Isolated, &step)?;
    let exec = exec_of(&events, "deep")?;
    ensure!(exec.file.path_truncated, "the path is not said to be cut");
    let path = show(&exec.file.path);
    let whole = format!(
        "/tmp{}/program",
        format!("/{}", "d".repeat(length)).repeat(count)
    );
    ensure!(whole.ends_with(&path), "the path is {path}");
    let components = path.matches('/').count();
    let [components_max, bytes_max, component_max] =
        [COMPONENTS_MAX, PATH_BYTES_MAX, COMPONENT_BYTES_MAX].map(|bound| bound as usize);
    ensure!(
        components == components_max
            || (bytes_max..=bytes_max + component_max).contains(&path.len()),
        "the path has {components} components and {} bytes",
        path.len()
    );
    Ok(())
}

pub fn a_name_may_hold_any_bytes(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    let name = b"/tmp/busybox\nb \xff\xfe\x01";
    let line = [
        b"cp /bin/busybox '",
        &name[..],
        b"'; '",
        name,
        b"' true odd",
    ]
    .concat();
    let step = ["run", BUSYBOX, "sh", "-e", "-c"]
        .map(OsStr::new)
        .into_iter()
        .chain([OsStr::from_bytes(&line)]);
    let events = container.run(Entry::Isolated, &step.collect::<Vec<_>>())?;
    let exec = exec_of(&events, "odd")?;
    check_paths(exec, &show(name), &show(name))
}

pub fn the_path_is_of_the_namespace_in_a_chroot(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    let events = container
        .shell("cp /bin/busybox /jail/busybox-copy; chroot /jail /busybox-copy true chrooted")?;
    let exec = exec_of(&events, "chrooted")?;
    equal!(
        show(exec.arguments.first().map_or(&[], Vec::as_slice)),
        "/busybox-copy"
    );
    check_paths(exec, "/jail/busybox-copy", "/jail/busybox-copy")
}

pub fn a_bind_mount_changes_only_the_path_people_see(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    let events = container.shell(
        "mkdir /tmp/sub; cp /bin/busybox /tmp/sub/busybox-copy
         mount --bind /tmp /mount; /mount/sub/busybox-copy true directory
         mount --bind /tmp/sub/busybox-copy /bin/busybox; /bin/busybox true file",
    )?;
    let directory = exec_of(&events, "directory")?;
    check_paths(
        directory,
        "/mount/sub/busybox-copy",
        "/tmp/sub/busybox-copy",
    )?;
    let file = exec_of(&events, "file")?;
    check_paths(file, BUSYBOX, "/tmp/sub/busybox-copy")?;
    equal!(directory.file.facts, file.file.facts);
    Ok(())
}

pub fn a_process_of_a_container_has_its_parent_there(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    let events = container.shell("/bin/busybox true child; true")?;
    let shell = events.first().context("no exec was seen")?;
    let child = exec_of(&events, "child")?;
    let host = namespace("/proc/self/ns/mnt")?;
    let own = child.process.mount_namespace;
    ensure!(
        u64::from(own) != host,
        "the child is in the host's namespace"
    );
    equal!(child.process.parent_mount_namespace, own);
    equal!(child.process.parent_pid, shell.process.pid);
    equal!(shell.process.mount_namespace, own);
    equal!(child.process.pid_namespace, shell.process.pid_namespace);
    ensure!(
        u64::from(child.process.pid_namespace) != namespace("/proc/self/ns/pid")?,
        "the child is in the host's pid namespace"
    );
    Ok(())
}

pub fn a_process_put_in_from_outside_has_its_parent_outside(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    let step = ["run", BUSYBOX, "true", "outside"];
    let events = run_in(&container, Entry::Direct, &step)?;
    let exec = exec_of(&events, "outside")?;
    equal!(exec.process.parent_pid, process::id());
    let host = namespace("/proc/self/ns/mnt")?;
    equal!(u64::from(exec.process.parent_mount_namespace), host);
    ensure!(
        u64::from(exec.process.mount_namespace) != host,
        "the process is in the host's namespace"
    );
    equal!(
        u64::from(exec.process.pid_namespace),
        namespace("/proc/self/ns/pid")?
    );
    Ok(())
}

pub fn an_overlay_of_a_user_namespace(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    let lower = ["user-overlay", "/mount/busybox", "true", "lower"];
    let events = run_in(&container, Entry::Isolated, &lower)?;
    let exec = exec_of(&events, "lower")?;
    check_paths(exec, "/mount/busybox", "/busybox")?;
    equal!(exec.file.facts.flags, OVERLAY);

    let upper = ["user-overlay", "/mount/busybox-copy", "true", "upper"];
    let events = run_in(&container, Entry::Isolated, &upper)?;
    let exec = exec_of(&events, "upper")?;
    check_paths(exec, "/mount/busybox-copy", "/busybox-copy")?;
    equal!(exec.file.facts.flags, OVERLAY | UPPER);
    ensure!(
        exec.file.facts.device != exec.process.root_device,
        "the inner overlay's device is the root's"
    );
    ensure!(
        exec.file.facts.real_device != exec.file.facts.device,
        "the real inode is on the inner overlay itself"
    );
    Ok(())
}

pub fn the_bytes_are_held_after_exit_and_removal(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    let events = container.shell(
        "cp /bin/busybox /tmp/busybox-x; echo salt >> /tmp/busybox-x; printf '#!/tmp/busybox-x sh\\n:\\n' > /tmp/script
         chmod +x /tmp/script; /tmp/busybox-x true program; /tmp/script script
         rm /tmp/busybox-x /tmp/script",
    )?;
    ensure!(
        !container.root().join("tmp/busybox-x").exists(),
        "the program is still there"
    );
    let mut program = fs::read(BUSYBOX)?;
    program.extend_from_slice(b"salt\n");

    let exec = exec_of(&events, "program")?;
    equal!(exec.held.len(), 1);
    ensure!(
        contents(&exec.held, 0)? == program,
        "the held program is another"
    );
    let exec = exec_of(&events, "script")?;
    equal!(exec.held.len(), 2);
    equal!(
        show(&contents(&exec.held, 0)?),
        "#!/tmp/busybox-x sh\\n:\\n"
    );
    ensure!(
        contents(&exec.held, 1)? == program,
        "the held interpreter is another"
    );
    Ok(())
}

fn contents(held: &[OwnedFd], index: usize) -> Result<Vec<u8>> {
    let file = File::from(held.get(index).context("too few files")?.try_clone()?);
    let mut bytes = Vec::new();
    (&file)
        .read_to_end(&mut bytes)
        .context("reading a held file")?;
    // The descriptor is readable again from the start, as the daemon reads it.
    let mut first = [0];
    file.read_exact_at(&mut first, 0)?;
    equal!(bytes.first().copied(), Some(first[0]));
    Ok(bytes)
}

pub fn a_host_cgroup_is_watched_in_another_namespace_only(observer: &Observer) -> Result<()> {
    let container = Container::new(observer)?;
    let run = |entry, mark| run_in(&container, entry, &["run", BUSYBOX, "true", mark]);
    let unwatched = || observer.sensor().account().exec.counters.unwatched;

    // Tests that themselves run in a container are in another namespace than the host's.
    let own = namespace("/proc/self/ns/mnt")?;
    let is_host = own == u64::from(observer.sensor().host_mount_namespace());
    let host = container.cgroup_id();
    observer.sensor().set_cgroup(host, CgroupState::Host)?;
    let before = unwatched();
    equal!(exec_of(&run(Entry::Host, "one")?, "one").is_err(), is_host);
    ensure!(unwatched() > before || !is_host, "the exec is not counted");
    exec_of(&run(Entry::Direct, "two")?, "two")?;

    observer.sensor().forget_cgroup(host)?;
    exec_of(&run(Entry::Host, "three")?, "three")?;
    Ok(())
}

pub fn every_run_of_the_hook_is_accounted_for(observer: &Observer) -> Result<()> {
    const RUNS: u64 = 50;
    let container = Container::new(observer)?;
    let before = observer.sensor().account();
    let line = format!("i=0; while [ $i -lt {RUNS} ]; do i=$((i+1)); /bin/busybox true run; done");
    let events = container.shell(&line)?;
    let seen = events
        .iter()
        .filter(|exec| exec.arguments.last().is_some_and(|last| last == b"run"))
        .count();
    equal!(u64::try_from(seen)?, RUNS);

    let account = observer.account_when(|account| {
        let hook = &account.exec.counters;
        hook.seen == hook.unwatched + hook.submitted + hook.ring_full + hook.unreadable
            && hook.submitted == account.received
    })?;
    let grown = account.exec.counters.submitted - before.exec.counters.submitted;
    ensure!(grown >= RUNS, "only {grown} more execs are accounted for");
    equal!(account.exec.counters.ring_full, 0);
    equal!(account.exec.counters.unreadable, 0);
    equal!(account.exec.recursion_misses, 0);
    equal!(account.undecodable, 0);
    Ok(())
}

pub fn the_verifier_is_far_from_its_limit(observer: &Observer) -> Result<()> {
    // Of a million that the kernel allows: a compiler that does worse is seen before it is refused.
    const INSTRUCTIONS_MAX: u32 = 250_000;
    let programs = observer.sensor().verified_instructions();
    ensure!(!programs.is_empty(), "no program is loaded");
    for (name, instructions) in programs {
        ensure!(
            instructions > 0 && instructions <= INSTRUCTIONS_MAX,
            "the verifier looked at {instructions} instructions of {name}"
        );
    }
    Ok(())
}
