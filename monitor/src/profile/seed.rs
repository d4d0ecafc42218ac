//! What an image says of its containers before anything runs: its config, and the programs and
//! libraries that follow from it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{
    arguments,
    behaviour::{Behaviour, Item},
    elf::{self, Linked},
    pattern::PATH_BYTES_MAX,
    tree::{READ, Rule, WRITE},
    whole::Whole,
};
use crate::digest::Sha256;

/// Links followed on the way to one file; the kernel follows as many.
const LINKS_MAX: usize = 40;
/// Interpreters of scripts that are scripts; the kernel follows as many.
const SCRIPTS_MAX: usize = 5;
/// Libraries of an image; what comes later is not looked for.
pub(super) const LIBRARIES_MAX: usize = 512;
/// Bytes of a file that are read to come to what lies behind them.
const PREFIX_BYTES_MAX: usize = 64 << 20;
/// Bytes of a script's first line, as the kernel reads it.
const SCRIPT_BYTES_MAX: usize = 256;
/// Bytes of `/etc/ld.so.conf` and the like.
const CONF_BYTES_MAX: usize = 64 << 10;
/// Directories in which libraries are looked for.
const DIRECTORIES_MAX: usize = 64;
/// Ports and volumes that are looked at.
const NAMED_MAX: usize = 64;

/// Where programs are looked for if `PATH` says nothing (runc).
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Where libraries lie (glibc on Debian and Red Hat, musl).
const DEFAULT_DIRECTORIES: [&[u8]; 9] = [
    b"/lib/x86_64-linux-gnu",
    b"/usr/lib/x86_64-linux-gnu",
    b"/lib/aarch64-linux-gnu",
    b"/usr/lib/aarch64-linux-gnu",
    b"/lib64",
    b"/usr/lib64",
    b"/lib",
    b"/usr/local/lib",
    b"/usr/lib",
];
/// Files that name directories of libraries; those that others are included from by a pattern are
/// the ones that distributions have.
const CONFS: [&[u8]; 4] = [
    b"/etc/ld.so.conf",
    b"/etc/ld.so.conf.d/libc.conf",
    b"/etc/ld.so.conf.d/x86_64-linux-gnu.conf",
    b"/etc/ld.so.conf.d/aarch64-linux-gnu.conf",
];

/// What the config of an image says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// `Entrypoint`.
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    pub command: Vec<String>,
    /// The value of `PATH`, if `Env` has one.
    pub path: Option<String>,
    /// `WorkingDir`; empty for the root directory.
    pub working_dir: String,
    /// `ExposedPorts`, each `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// `Volumes`.
    pub volumes: Vec<String>,
    /// `User`.
    pub user: String,
    /// `Healthcheck.Test` as it is written: `CMD` or `CMD-SHELL`, and the command.
    pub healthcheck: Vec<String>,
}

/// What a path of an image is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link, and what it points to.
    Symlink(Vec<u8>),
    /// Another kind.
    Other,
}

/// Reads the files of an image. Paths are absolute; links in them are not followed.
pub trait ImageFiles {
    /// What there is at a path.
    fn kind(&mut self, path: &[u8]) -> Option<FileKind>;

    /// Up to `max` bytes from the beginning of a regular file.
    fn read(&mut self, path: &[u8], max: usize) -> Option<Vec<u8>>;

    /// Up to `length` bytes of a regular file from `offset` on.
    fn read_at(&mut self, path: &[u8], offset: u64, length: usize) -> Option<Vec<u8>> {
        let offset = usize::try_from(offset).ok()?;
        let end = offset
            .checked_add(length)
            .filter(|end| *end <= PREFIX_BYTES_MAX)?;
        let mut bytes = self.read(path, end)?;
        (offset <= bytes.len()).then(|| bytes.split_off(offset))
    }

    /// The hash of a regular file.
    fn sha256(&mut self, path: &[u8]) -> Option<Sha256>;
}

/// What an image says before anything runs.
#[derive(Clone, Debug, Default)]
pub struct Seed {
    pub(super) whole: Whole,
    pub(super) libraries: BTreeMap<Box<[u8]>, Option<Sha256>>,
    pub(super) exposed_ports: BTreeSet<String>,
    pub(super) user: String,
}

/// Reads what an image says. Programs that are not there, and what is no program, are left out.
pub fn seed(config: &ImageConfig, files: &mut dyn ImageFiles) -> Seed {
    let mut seed = Seed {
        user: line(&config.user).unwrap_or_default(),
        ..Seed::default()
    };
    let ports = config.exposed_ports.iter().take(NAMED_MAX);
    seed.exposed_ports = ports
        .filter_map(|port| line(port).filter(|it| it.len() <= 64))
        .collect();
    let mut reader = Reader {
        directories: library_directories(files),
        files,
        config,
        libraries: BTreeMap::new(),
    };
    let started: Vec<Vec<u8>> = [&config.entrypoint, &config.command]
        .into_iter()
        .flatten()
        .map(|word| word.as_bytes().to_vec())
        .collect();
    reader.started(&started, &mut seed.whole.main);
    if let Some(command) = healthcheck(&config.healthcheck) {
        let mut name = String::new();
        arguments::command(&command, &mut name);
        let part = seed.whole.command(&name);
        part.is_named = true;
        reader.started(&command, &mut part.behaviour);
    }
    for volume in config.volumes.iter().take(NAMED_MAX) {
        if let Some(path) = absolute(b"/", volume.as_bytes()).filter(|path| path != b"/") {
            for is_below in [false, true] {
                seed.whole.main.files.add(&Rule {
                    pattern: path.clone(),
                    is_below,
                    access: READ | WRITE,
                });
            }
        }
    }
    seed.libraries = reader.libraries;
    seed
}

/// The command of a health check.
fn healthcheck(test: &[String]) -> Option<Vec<Vec<u8>>> {
    let (kind, rest) = test.split_first()?;
    let words = rest.iter().map(|word| word.as_bytes().to_vec());
    match kind.as_str() {
        "CMD" if !rest.is_empty() => Some(words.collect()),
        "CMD-SHELL" => {
            let shell = [b"/bin/sh".to_vec(), b"-c".to_vec()];
            Some(shell.into_iter().chain(words.take(1)).collect())
        }
        _ => None,
    }
}

struct Reader<'a> {
    files: &'a mut dyn ImageFiles,
    config: &'a ImageConfig,
    directories: Vec<Vec<u8>>,
    libraries: BTreeMap<Box<[u8]>, Option<Sha256>>,
}

impl Reader<'_> {
    /// Adds what starting a command line brings: the program, of a script the interpreter, and what it
    /// is linked with.
    fn started(&mut self, arguments: &[Vec<u8>], behaviour: &mut Behaviour) -> Option<()> {
        let mut arguments = arguments.to_vec();
        let mut path = self.program(arguments.first()?)?;
        for _ in 0..SCRIPTS_MAX {
            let Some((interpreter, option)) = self.interpreter(&path) else {
                break;
            };
            behaviour.files.learn(&path, READ);
            let mut line = vec![interpreter.clone()];
            line.extend(option);
            line.push(path);
            line.extend(arguments.into_iter().skip(1));
            arguments = line;
            path = resolve(self.files, &interpreter)?;
        }
        let mut shape = String::new();
        arguments::shape(&path, &arguments, &mut shape);
        behaviour.learn(&Item::Exec {
            path: &path,
            sha256: self.files.sha256(&path),
            parent: None,
            shape: &shape,
        });
        self.link(&path, behaviour);
        Some(())
    }

    /// The file that a name on a command line stands for.
    fn program(&mut self, name: &[u8]) -> Option<Vec<u8>> {
        let working_dir = absolute(b"/", self.config.working_dir.as_bytes())?;
        if name.contains(&b'/') {
            return resolve(self.files, &absolute(&working_dir, name)?);
        }
        let path = self.config.path.as_deref().unwrap_or(DEFAULT_PATH);
        path.split(':').take(DIRECTORIES_MAX).find_map(|directory| {
            let directory = absolute(&working_dir, directory.as_bytes())?;
            resolve(self.files, &absolute(&directory, name)?)
        })
    }

    /// The interpreter that a script names, and its option.
    fn interpreter(&mut self, path: &[u8]) -> Option<(Vec<u8>, Option<Vec<u8>>)> {
        let start = self.files.read(path, SCRIPT_BYTES_MAX)?;
        let line = start
            .strip_prefix(b"#!")?
            .split(|byte| *byte == b'\n')
            .next()?;
        let line = line.trim_ascii();
        let end = line.iter().position(|byte| matches!(byte, b' ' | b'\t'));
        let (name, option) = line.split_at(end.unwrap_or(line.len()));
        let option = option.trim_ascii();
        let option = (!option.is_empty()).then(|| option.to_vec());
        Some((absolute(b"/", name)?, option))
    }

    /// Adds what a program is linked with, and what that is linked with.
    fn link(&mut self, program: &[u8], behaviour: &mut Behaviour) {
        let mut waiting = VecDeque::from([(program.to_vec(), Vec::new())]);
        let mut seen = BTreeSet::from([program.to_vec()]);
        while let Some((path, inherited)) = waiting.pop_front() {
            let files = &mut *self.files;
            let Some(linked) = elf::linked(&mut |at, length| files.read_at(&path, at, length))
            else {
                continue;
            };
            let (own, mut directories) = search(&linked, &path, &inherited);
            directories.extend(self.directories.iter().cloned());
            let mut found: Vec<Vec<u8>> = Vec::new();
            let loader = linked.interpreter.as_deref();
            found.extend(loader.and_then(|it| resolve(self.files, &absolute(b"/", it)?)));
            for name in &linked.needed {
                found.extend(self.library(name, &path, &directories, linked.is_64));
            }
            for library in found {
                if seen.len() >= LIBRARIES_MAX {
                    return;
                }
                if seen.insert(library.clone()) {
                    behaviour.files.learn(&library, READ);
                    if self.libraries.len() < LIBRARIES_MAX {
                        let sha256 = self.files.sha256(&library);
                        self.libraries.insert(library.as_slice().into(), sha256);
                    }
                    waiting.push_back((library, own.clone()));
                }
            }
        }
    }

    /// The file that a library's name stands for.
    fn library(
        &mut self,
        name: &[u8],
        of: &[u8],
        directories: &[Vec<u8>],
        is_64: bool,
    ) -> Option<Vec<u8>> {
        if name.contains(&b'/') {
            return resolve(self.files, &absolute(parent(of), name)?);
        }
        directories.iter().find_map(|directory| {
            let path = resolve(self.files, &absolute(directory, name)?)?;
            // The loader passes over libraries of the other width.
            let class = self.files.read(&path, 5)?.get(4).copied();
            (class == Some(if is_64 { 2 } else { 1 })).then_some(path)
        })
    }
}

/// Where the libraries of a file are looked for first: what its own libraries inherit of that, and all.
fn search(linked: &Linked, path: &[u8], inherited: &[Vec<u8>]) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let directories = |list: &Option<Vec<u8>>| -> Vec<Vec<u8>> {
        let list = list.as_deref().unwrap_or_default();
        let list = list.split(|byte| *byte == b':').filter(|it| !it.is_empty());
        list.take(DIRECTORIES_MAX)
            .filter_map(|directory| absolute(b"/", &with_origin(directory, parent(path))))
            .collect()
    };
    if linked.runpath.is_some() {
        return (inherited.to_vec(), directories(&linked.runpath));
    }
    let mut own = directories(&linked.rpath);
    own.extend(inherited.iter().cloned());
    own.truncate(DIRECTORIES_MAX);
    (own.clone(), own)
}

/// With the directory of the file put in for `$ORIGIN`.
fn with_origin(directory: &[u8], origin: &[u8]) -> Vec<u8> {
    for word in [&b"$ORIGIN"[..], b"${ORIGIN}"] {
        if let Some(rest) = directory.strip_prefix(word) {
            return [origin, rest].concat();
        }
    }
    directory.to_vec()
}

fn library_directories(files: &mut dyn ImageFiles) -> Vec<Vec<u8>> {
    let mut directories: Vec<Vec<u8>> = Vec::new();
    for conf in CONFS {
        let text = resolve(files, conf).and_then(|path| files.read(&path, CONF_BYTES_MAX));
        let text = text.unwrap_or_default();
        let lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        let named = lines.filter(|line| line.starts_with(b"/"));
        directories.extend(
            named
                .take(DIRECTORIES_MAX)
                .filter_map(|it| absolute(b"/", it)),
        );
    }
    directories.truncate(DIRECTORIES_MAX);
    directories.extend(DEFAULT_DIRECTORIES.iter().map(|it| it.to_vec()));
    directories
}

/// A path from the root on, without `.` and empty names; `..` stays, for what it follows may be a link.
fn absolute(directory: &[u8], path: &[u8]) -> Option<Vec<u8>> {
    let start: &[u8] = if path.starts_with(b"/") {
        b"/"
    } else {
        directory
    };
    let mut whole = Vec::new();
    let names = [start, path]
        .into_iter()
        .flat_map(|it| it.split(|byte| *byte == b'/'));
    for name in names.filter(|name| !name.is_empty() && *name != b".") {
        whole.push(b'/');
        whole.extend_from_slice(name);
    }
    if whole.is_empty() {
        whole.push(b'/');
    }
    (whole.len() <= PATH_BYTES_MAX && !whole.contains(&0)).then_some(whole)
}

/// The regular file that a path leads to.
fn resolve(files: &mut dyn ImageFiles, path: &[u8]) -> Option<Vec<u8>> {
    let mut waiting: VecDeque<Vec<u8>> = names(path).collect();
    let mut at: Vec<u8> = Vec::new();
    let mut links = 0;
    let mut is_regular = false;
    while let Some(name) = waiting.pop_front() {
        if name == b".." {
            at.truncate(parent(&at).len());
            continue;
        }
        let length = at.len();
        at.push(b'/');
        at.extend_from_slice(&name);
        if at.len() > PATH_BYTES_MAX {
            return None;
        }
        is_regular = false;
        match files.kind(&at)? {
            FileKind::Symlink(target) => {
                links += 1;
                if links > LINKS_MAX || target.len() > PATH_BYTES_MAX {
                    return None;
                }
                at.truncate(if target.starts_with(b"/") { 0 } else { length });
                for name in names(&target).rev().collect::<Vec<_>>() {
                    waiting.push_front(name);
                }
            }
            FileKind::Directory => {}
            FileKind::Regular if waiting.is_empty() => is_regular = true,
            FileKind::Regular | FileKind::Other => return None,
        }
    }
    is_regular.then_some(at)
}

fn names(path: &[u8]) -> impl DoubleEndedIterator<Item = Vec<u8>> + '_ {
    let names = path.split(|byte| *byte == b'/');
    names
        .filter(|name| !name.is_empty() && *name != b".")
        .map(<[u8]>::to_vec)
}

/// The directory that a path lies in; empty for the root.
fn parent(path: &[u8]) -> &[u8] {
    let end = path
        .iter()
        .rposition(|byte| *byte == b'/')
        .unwrap_or_default();
    path.get(..end).unwrap_or_default()
}

/// A text that is one line.
fn line(text: &str) -> Option<String> {
    let is_line = text.len() <= PATH_BYTES_MAX && !text.chars().any(char::is_control);
    is_line.then(|| text.to_owned())
}

#[cfg(test)]
mod tests;
