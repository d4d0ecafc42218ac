//! What the sensor must say, on every kernel.

#![expect(missing_docs, reason = "the name of a test says what it asks for")]

use std::{
    ffi::OsStr,
    fs::{self, Metadata},
    os::unix::fs::MetadataExt as _,
};

use anyhow::{Context as _, Result, ensure};
use monitor::sensor::event::{Code, Event, Exec, File as UsedFile, FileFacts, Open};
use nix::sys::stat::{major, minor};

use crate::{container::Container, inside::Entry, observer::Observer};

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

mod account;
mod code;
mod connect;
mod exec;
mod open;
mod path;
mod process;

pub use self::{account::*, code::*, connect::*, exec::*, open::*, path::*, process::*};

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
            a_mapped_file_is_code
            a_mapping_made_executable_is_code
            a_mapping_that_was_written_is_told_as_such
            memory_mapped_executable_is_code
            a_mapped_file_is_held_after_its_removal
            what_is_remembered_is_not_sent_again
            a_script_given_to_an_interpreter_is_opened
            an_open_for_writing_is_told_as_such
            standard_input_of_an_interpreter_is_told
            what_other_programs_open_is_no_code
            a_peer_is_told_until_it_is_remembered
            a_fork_is_told_with_both_processes
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

/// The exec whose last argument is this.
fn exec_of<'a>(events: &'a [Event], last_argument: &str) -> Result<&'a Exec> {
    let found = execs(events).find(|exec| {
        exec.arguments
            .last()
            .is_some_and(|last| last == last_argument.as_bytes())
    });
    found.with_context(|| {
        let seen: Vec<_> = execs(events)
            .map(|exec| show(&exec.used.file.path))
            .collect();
        format!("no exec with the argument {last_argument}, only of {seen:?}")
    })
}

fn execs(events: &[Event]) -> impl Iterator<Item = &Exec> {
    events.iter().filter_map(|event| match event {
        Event::Exec(exec) => Some(&**exec),
        _ => None,
    })
}

/// The mappings of a file.
fn code_of<'a>(events: &'a [Event], path: &str) -> Vec<&'a Code> {
    let codes = events.iter().filter_map(|event| match event {
        Event::Code(code) => Some(&**code),
        _ => None,
    });
    codes
        .filter(|code| show(&code.used.file.path) == path)
        .collect()
}

/// The opens of a file.
fn opens_of<'a>(events: &'a [Event], path: &str) -> Vec<&'a Open> {
    let opens = events.iter().filter_map(|event| match event {
        Event::Open(open) => Some(&**open),
        _ => None,
    });
    opens
        .filter(|open| show(&open.used.file.path) == path)
        .collect()
}

fn run_in(container: &Container<'_>, entry: Entry, step: &[&str]) -> Result<Vec<Event>> {
    let step: Vec<&OsStr> = step.iter().map(OsStr::new).collect();
    container.run(entry, &step)
}

fn show(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

fn check_paths(file: &UsedFile, path: &str, path_in_filesystem: &str) -> Result<()> {
    equal!(show(&file.path), path);
    equal!(show(&file.path_in_filesystem), path_in_filesystem);
    ensure!(!file.path_truncated, "the path is said to be cut");
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
