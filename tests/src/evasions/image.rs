//! The images in which techniques run.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    image::{self, BUSYBOX, DYNAMIC, Image, PROBE},
    layer::{Attributes, Layer},
    process::output,
    skip::on_path,
};

/// The image of most techniques.
pub(super) const TOOLS: &str = "example.invalid/tools:1";
/// The same with an interpreter for Python.
pub(super) const PYTHON: &str = "example.invalid/python:1";
/// The same with a container runtime.
pub(super) const RUNTIME: &str = "example.invalid/runtime:1";

/// The OCI runtime that runs the containers in guests: written in C, it costs a third of the time
/// that runc's several starts of a Go program cost in emulation.
pub const GUEST_RUNTIME: &str = "crun";
/// A library of every machine that the programs here do not need.
const LIBRARY: &str = "/lib/x86_64-linux-gnu/libm.so.6";
/// The loader of this machine's programs.
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";
/// Python as Debian's package python3-minimal installs it.
pub const PYTHON_PROGRAM: &str = "/usr/bin/python3";
/// What Python reads before it runs anything.
const PYTHON_MODULES: [&str; 4] = [
    "os.py",
    "encodings/__init__.py",
    "encodings/aliases.py",
    "encodings/utf_8.py",
];

/// Builds them all.
pub(super) fn all() -> Result<Vec<Image>> {
    let tools = [image::base_layer()?.plain(), tools()?];
    let with = |reference: &str, layer: Layer| {
        let layers = [&tools[..], &[layer.plain()]].concat();
        Image::build(reference, &layers, &image::base_config())
    };
    Ok(vec![
        Image::build(TOOLS, &tools, &image::base_config())?,
        with(PYTHON, python()?)?,
        with(RUNTIME, runtime()?)?,
    ])
}

/// The files of this machine that the images and the harness are made of; what programs are linked
/// to is not among them.
///
/// # Errors
///
/// One of them is not here.
pub fn files() -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = [BUSYBOX, PYTHON_PROGRAM, LIBRARY, LOADER]
        .map(PathBuf::from)
        .to_vec();
    for program in [
        "containerd",
        "containerd-shim-runc-v2",
        "ctr",
        "runc",
        GUEST_RUNTIME,
    ] {
        files.push(on_path(program).with_context(|| format!("{program} is not on the path"))?);
    }
    let (_, modules) = python_files()?;
    files.extend(modules);
    Ok(files)
}

/// An image whose uppermost layer no other image has, so that it can be spoilt.
pub(super) fn of_its_own(reference: &str) -> Result<Image> {
    let own = Layer::new()
        .dir("opt")
        .program("opt/own", &[PROBE, reference.as_bytes()].concat());
    Image::build(
        reference,
        &[image::base_layer()?.plain(), tools()?, own],
        &image::base_config(),
    )
}

/// Programs, scripts and libraries that techniques misuse.
fn tools() -> Result<Layer> {
    let busybox = fs::read(BUSYBOX).context("cannot read busybox")?;
    let library = Path::new(LIBRARY);
    let dynamic = tempfile::NamedTempFile::new()?;
    fs::write(dynamic.path(), DYNAMIC)?;
    let mut files = Files::default();
    files.add_libraries_of(dynamic.path())?;
    files.add(library)?;
    let layer = Layer::new()
        .dir("opt")
        .dir("etc")
        .file("etc/shadow", b"root:*:::::::\n", Attributes::default())
        .program("opt/tool", PROBE)
        .hard_link("opt/second", "opt/tool")
        .program("opt/busybox", &busybox)
        .program("opt/script", b"#!/opt/busybox sh\n:\n")
        .program("opt/dynamic", DYNAMIC)
        .program("opt/library.so", &read(library)?);
    files.put(layer)
}

fn python() -> Result<Layer> {
    let (program, modules) = python_files()?;
    let mut files = Files::default();
    files.add(&program)?;
    files.add_libraries_of(&program)?;
    for module in modules {
        files.add(&module)?;
    }
    let layer = files.put(Layer::new())?;
    Ok(layer.symlink("bin/python3", &program.display().to_string()))
}

/// The interpreter by its own name, and its modules.
fn python_files() -> Result<(PathBuf, Vec<PathBuf>)> {
    let program = fs::canonicalize(PYTHON_PROGRAM).with_context(|| {
        format!("cannot find {PYTHON_PROGRAM}; install the package python3-minimal")
    })?;
    let name = program.file_name().context("python3 has no name")?;
    let modules = Path::new("/usr/lib").join(name);
    let modules = PYTHON_MODULES.map(|module| modules.join(module));
    Ok((program, modules.to_vec()))
}

fn runtime() -> Result<Layer> {
    let program = on_path("runc").context("runc is not on the path")?;
    let mut files = Files::default();
    files.add_libraries_of(&program)?;
    let bytes = read(&program)?;
    let layer = files.put(Layer::new())?;
    Ok(layer
        .program("bin/runc", &bytes)
        .dir("bundle")
        .dir("bundle/rootfs")
        .dir("bundle/rootfs/proc")
        .file(
            "bundle/config.json",
            include_bytes!("bundle.json"),
            Attributes::default(),
        ))
}

/// Files of this machine that go into an image under the names that they have here.
#[derive(Default)]
struct Files(BTreeSet<PathBuf>);

impl Files {
    fn add(&mut self, path: &Path) -> Result<()> {
        ensure!(path.is_file(), "{} is not a file", path.display());
        self.0.insert(path.to_owned());
        Ok(())
    }

    /// The libraries that a program is linked to and the loader.
    fn add_libraries_of(&mut self, program: &Path) -> Result<()> {
        for file in libraries(program)? {
            self.add(&file)?;
        }
        Ok(())
    }

    fn put(&self, mut layer: Layer) -> Result<Layer> {
        let mut directories = BTreeSet::new();
        for file in &self.0 {
            directories.extend(file.ancestors().skip(1).filter_map(relative));
        }
        for directory in directories {
            layer = layer.dir(&directory);
        }
        for file in &self.0 {
            let name = relative(file).context("a path without a name")?;
            layer = layer.program(&name, &read(file)?);
        }
        Ok(layer)
    }
}

/// As tars of images have it; `None` for the root.
fn relative(path: &Path) -> Option<String> {
    let name = path.strip_prefix("/").ok()?.to_str()?;
    (!name.is_empty()).then(|| name.to_owned())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The libraries of a program and its loader, as the loader finds them.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let listed = output(Command::new(LOADER).arg("--list").arg(program))?;
    Ok(listed
        .lines()
        .flat_map(str::split_whitespace)
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect())
}
