//! What to do about a test that hangs: tell where it and all that it started are, and end it, so that
//! the tests behind it run.

use std::{fs, path::PathBuf};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Bytes of a command line that are shown.
const LINE_MAX: usize = 200;

/// Kills what a process has started and gives a line for each process below it and one for each of
/// their threads: what it is and where in the kernel it waits.
pub(crate) fn end_children(parent: u32) -> String {
    let children = children(parent);
    let told = children.iter().map(|child| describe(*child)).collect();
    for child in children
        .into_iter()
        .filter_map(|pid| i32::try_from(pid).ok())
    {
        // It may have ended just now.
        let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
    }
    told
}

fn describe(pid: u32) -> String {
    let place = PathBuf::from(format!("/proc/{pid}"));
    let line = fs::read(place.join("cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line).replace('\0', " ");
    let mut told = format!(
        "  {pid} {}\n",
        line.chars().take(LINE_MAX).collect::<String>()
    );
    for thread in fs::read_dir(place.join("task"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let read = |name| fs::read_to_string(thread.path().join(name)).unwrap_or_default();
        told += &format!("    {} waits in {}\n", read("comm").trim(), read("wchan"));
    }
    told.extend(children(pid).into_iter().map(describe));
    told
}

/// By what each thread of it has started.
fn children(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task"));
    let threads = threads.into_iter().flatten().flatten();
    let lists =
        threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| {
            let pids = list.split_ascii_whitespace().map(str::parse);
            pids.filter_map(Result::ok).collect::<Vec<u32>>()
        })
        .collect()
}
