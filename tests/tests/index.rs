//! What the daemon says that images of Debian packages hold, against a walk of the snapshot that
//! containerd unpacked and mounts.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileTypeExt as _, MetadataExt as _},
    },
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use tests::{
    alerts::text,
    image::{self, Config, Image},
    layer::{Layer, sha256},
    poll::{PATIENCE, until},
    require,
    world::{World, shared},
};

/// What is at each path: type, mode, owner, and the hash of a file or the target of a symlink.
type Tree = BTreeMap<String, String>;

/// What a walk of the mounted snapshot finds.
#[derive(Default)]
struct Walked {
    tree: Tree,
    bytes: u64,
    /// Paths of files that have others.
    links: usize,
}

fn said(world: &World, reference: &str) -> Result<Tree> {
    // A client waits 10 s, and the daemon reads on.
    let entries = until("the image to be read", PATIENCE, || {
        world.daemon.monitorctl(["image", "contents", reference])
    })?;
    entries
        .iter()
        .map(|entry| {
            let field = |name| text(entry, name).unwrap_or_default();
            let number = |name| entry.pointer(name).map(ToString::to_string);
            let (uid, gid) = (number("/uid"), number("/gid"));
            let (uid, gid) = (uid.unwrap_or_default(), gid.unwrap_or_default());
            let kind = field("/type");
            // Linux keeps no mode of a symlink.
            let mode = if kind == "symlink" {
                ""
            } else {
                field("/mode")
            };
            let is = [field("/sha256"), field("/link_target")].concat();
            let is = format!("{kind} {mode} {uid}:{gid} {is}");
            Ok((field("/path").to_owned(), is))
        })
        .collect()
}

fn walked(root: &Path) -> Result<Walked> {
    let mut walked = Walked::default();
    let mut left = vec![root.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            let metadata = fs::symlink_metadata(&path)?;
            let kind = metadata.file_type();
            let mode = format!("{:04o}", metadata.mode() & 0o7777);
            let (kind, mode, is) = if kind.is_dir() {
                left.push(path.clone());
                ("directory", mode, String::new())
            } else if kind.is_symlink() {
                let target = fs::read_link(&path)?;
                (
                    "symlink",
                    String::new(),
                    escaped(target.as_os_str().as_bytes()),
                )
            } else if kind.is_file() {
                walked.bytes += metadata.len();
                walked.links += usize::from(metadata.nlink() > 1);
                ("file", mode, sha256(&fs::read(&path)?))
            } else if kind.is_char_device() {
                ("character_device", mode, String::new())
            } else if kind.is_block_device() {
                ("block_device", mode, String::new())
            } else {
                ("fifo", mode, String::new())
            };
            let name = path.strip_prefix(root)?.as_os_str().as_bytes();
            let is = format!("{kind} {mode} {}:{} {is}", metadata.uid(), metadata.gid());
            walked.tree.insert(format!("/{}", escaped(name)), is);
        }
    }
    Ok(walked)
}

/// As JSON has paths; what is not UTF-8 is in no Debian package.
fn escaped(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace('\\', "\\\\")
}

fn check(name: &str) -> Result<()> {
    let world = shared()?;
    // Over the packages, what layers do to each other.
    let top = Layer::new()
        .whiteout("usr/share/doc")
        .dir("etc/apt")
        .opaque("etc/apt")
        .dir("opt")
        .program("usr/bin/awk", b"a file in the place of a symlink")
        .symlink("usr/bin/tail", "head")
        .hard_link("opt/own", "usr/bin/awk");
    let layers = [
        image::debian_layer("base")?,
        image::debian_layer(name)?,
        top,
    ];
    let reference = format!("example.invalid/index-{name}:1");
    let containerd = &world.containerd;
    containerd.import(&Image::build(&reference, &layers, &Config::default())?)?;

    let mount = containerd.directory().join(format!("mount-{name}"));
    let mount_text = mount.to_str().context("a path in UTF-8")?;
    fs::create_dir(&mount)?;
    containerd.ctr(["images", "mount", &reference, mount_text])?;
    let walked = walked(&mount);
    containerd.ctr(["images", "unmount", "--rm", mount_text])?;
    let (walked, said) = (walked?, said(&world, &reference)?);
    let Walked { tree, bytes, links } = walked;

    let differences: Vec<_> = tree
        .keys()
        .chain(said.keys().filter(|path| !tree.contains_key(*path)))
        .filter(|path| tree.get(*path) != said.get(*path))
        .map(|path| (path, tree.get(path), said.get(path)))
        .collect();
    ensure!(bytes > 80_000_000, "{bytes} bytes only");
    ensure!(links >= 4, "{links} hard links only");
    ensure!(
        differences.is_empty(),
        "{} of {} paths differ, as path, mounted, said: {:#?}",
        differences.len(),
        tree.len(),
        differences.iter().take(20).collect::<Vec<_>>()
    );
    println!(
        "{name}: {} paths, {bytes} bytes, {links} of them hard links, no difference",
        tree.len()
    );
    Ok(())
}

/// One test per image, so that a failure names it.
macro_rules! images {
    ($($test:ident: $name:expr;)+) => {$(
        #[test]
        fn $test() -> Result<()> {
            require!(Root, Containerd, Busybox, Btf, DebianLayers);
            check($name)
        }
    )+};
}

images! {
    index_of_nginx_is_what_is_mounted: "nginx";
    index_of_redis_is_what_is_mounted: "redis";
    index_of_python_is_what_is_mounted: "python";
    index_of_postgres_is_what_is_mounted: "postgres";
}
