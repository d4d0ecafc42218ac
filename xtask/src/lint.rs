//! What a machine can check of the code without running it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{build, run, setup, workspace};

/// A workspace of its own, since it is built for another target.
const EBPF: &str = "monitor-ebpf";

/// Formats everything.
///
/// # Errors
///
/// A file cannot be parsed.
pub(crate) fn format() -> Result<()> {
    for mut command in formatters() {
        run::quiet("formatting", &mut command)?;
    }
    Ok(())
}

/// Checks format, clippy's and the compiler's warnings, and layering, each of them even when one
/// before it found something.
///
/// # Errors
///
/// One of the checks finds something, or setup fails.
pub(crate) fn check() -> Result<()> {
    // Clippy runs the build scripts, and those run protoc.
    setup::run()?;
    let mut outcomes = vec![layering()];
    for mut command in formatters() {
        outcomes.push(run::shown("checking the format", command.arg("--check")));
    }
    // In release, whose build scripts and macros the tests need as well.
    let all = ["--workspace", "--all-targets", "--release"];
    outcomes.push(run::shown("clippy", &mut clippy(workspace::root(), &all)));
    // For the host, where clippy is at hand: the one for eBPF's compiler would have to be
    // downloaded, and the lints are the same.
    let target = workspace::target().join("bpf-lint");
    let mut ebpf = clippy(
        &workspace::root().join(EBPF),
        &["--target-dir", &target.to_string_lossy()],
    );
    // The eBPF programs use what only their own compiler's build lets them.
    ebpf.env("RUSTC_BOOTSTRAP", "1");
    outcomes.push(run::shown("clippy of the eBPF programs", &mut ebpf));
    let failures: Vec<String> = outcomes
        .into_iter()
        .filter_map(Result::err)
        .map(|error| format!("{error:#}"))
        .collect();
    if !failures.is_empty() {
        bail!("{} checks failed:\n{}", failures.len(), failures.join("\n"));
    }
    Ok(())
}

fn formatters() -> [Command; 2] {
    let formatter = |folder: PathBuf, arguments: &[&str]| {
        let mut command = run::cargo();
        command.arg("fmt").args(arguments).current_dir(folder);
        command
    };
    [
        formatter(workspace::root().to_owned(), &["--all"]),
        // `--all` would go on to the packages it depends on, which are the root's.
        formatter(workspace::root().join(EBPF), &[]),
    ]
}

fn clippy(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = run::cargo();
    command
        .arg("clippy")
        .args(arguments)
        .args(build::locked())
        .args(["--", "--deny", "warnings"])
        .current_dir(folder);
    command
}

/// A crate that only some rooms may name.
struct Layer {
    name: &'static str,
    /// Folders and files below `monitor/src`.
    rooms: &'static [&'static str],
}

const LAYERS: [Layer; 6] = [
    Layer {
        name: "aya",
        rooms: &["sensor"],
    },
    Layer {
        name: "containerd_client",
        rooms: &["containerd", "containerd.rs"],
    },
    Layer {
        name: "tonic",
        // containerd-client hands out tonic's types.
        rooms: &["api", "ctl", "bin", "containerd", "containerd.rs"],
    },
    Layer {
        name: "hyper",
        // The body of an alert stream is our own.
        rooms: &["metrics", "registry", "api/frames.rs"],
    },
    Layer {
        name: "kube",
        rooms: &["controller/cluster.rs"],
    },
    Layer {
        name: "sigstore",
        rooms: &["provenance"],
    },
];

/// Checks that a room names only the crates that are its own.
fn layering() -> Result<()> {
    let sources = workspace::root().join("monitor/src");
    let mut broken = Vec::new();
    for file in rust_files(&sources)? {
        let text =
            fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        let room = file.strip_prefix(&sources).unwrap_or(&file);
        broken.extend(
            violations(room, &text)
                .into_iter()
                .map(|(line, name)| format!("  {}:{line}: {name}", file.display())),
        );
    }
    if !broken.is_empty() {
        bail!(
            "layering: these lines name a crate that is another room's (see LAYERS in \
             xtask/src/lint.rs):\n{}",
            broken.join("\n")
        );
    }
    Ok(())
}

/// Line numbers, from 1, that name a crate which is not this room's.
fn violations(room: &Path, text: &str) -> Vec<(usize, &'static str)> {
    let forbidden: Vec<&Layer> = LAYERS
        .iter()
        .filter(|layer| !layer.rooms.iter().any(|own| room.starts_with(own)))
        .collect();
    let mut found = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let code = line.split("//").next().unwrap_or_default();
        for layer in &forbidden {
            if names(code, layer.name) {
                found.push((number, layer.name));
            }
        }
    }
    found
}

/// Whether a line of code has a path that begins with a crate's name.
fn names(code: &str, name: &str) -> bool {
    let is_word = |letter: char| letter.is_alphanumeric() || letter == '_';
    code.match_indices(name).any(|(at, _)| {
        let (before, rest) = code.split_at(at);
        let after = rest.strip_prefix(name).unwrap_or_default();
        let starts = !before.ends_with(is_word);
        // `use aya;` and `use aya as x` name it too; a variable of that name does not.
        let used = before.trim_end().ends_with("use") && !after.starts_with(is_word);
        starts && (after.starts_with("::") || used)
    })
}

fn rust_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    for entry in entries {
        let path = entry
            .with_context(|| format!("reading {}", folder.display()))?
            .path();
        if path.is_dir() {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crate_is_named_by_its_own_rooms_only() {
        let check = |room: &str, text: &str, expect: &[(usize, &str)]| {
            assert_eq!(violations(Path::new(room), text), expect, "{room}: {text}");
        };
        check("sensor/mod.rs", "use aya::Ebpf;", &[]);
        check(
            "detect/mod.rs",
            "use std::fs;\nuse aya::Ebpf;",
            &[(2, "aya")],
        );
        check(
            "detect/mod.rs",
            "let map: aya::maps::Map = x;",
            &[(1, "aya")],
        );
        check("detect/mod.rs", "pub use aya as kernel;", &[(1, "aya")]);
        check("detect/mod.rs", "// aya::Ebpf is the sensor's", &[]);
        check("detect/mod.rs", "use himalaya::Peak; let aya = 1;", &[]);
        check("api/server.rs", "use tonic::Status;", &[]);
        check("bin/monitorctl.rs", "use tonic::Status;", &[]);
        check(
            "alerts/mod.rs",
            "use {std::fs, tonic::Status};",
            &[(1, "tonic")],
        );
        check("alerts/mod.rs", "use tonic_health::server;", &[]);
        check("containerd.rs", "use containerd_client::Client;", &[]);
        check(
            "containerd/mod.rs",
            "use containerd_client::{tonic::Request};",
            &[],
        );
        check(
            "containers/mod.rs",
            "use containerd_client::Client;",
            &[(1, "containerd_client")],
        );
        check("sensor_x.rs", "use aya::Ebpf;", &[(1, "aya")]);
    }

    #[test]
    fn every_source_file_is_looked_at() -> Result<()> {
        let files = rust_files(&workspace::root().join("xtask/src"))?;
        for expect in ["lint.rs", "toolchain/tests.rs"] {
            assert!(
                files.iter().any(|file| file.ends_with(expect)),
                "no {expect}"
            );
        }
        Ok(())
    }
}
