//! Stacks of layers against a model that unpacks them, path by path, into one map.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    containers::ImageId,
    image::{contents::Contents, layer::compare},
};

pub(crate) fn contents(layers: Vec<Layer>) -> Contents {
    let digest = digest_of(b"");
    let image = ImageId {
        manifest: digest,
        config: digest,
        chain_id: digest,
        index: None,
    };
    Contents::new(image, layers.into_iter().map(Arc::new).collect())
}

fn stack(tars: impl IntoIterator<Item = Tar>) -> Contents {
    contents(tars.into_iter().map(|tar| layer(tar).unwrap()).collect())
}

#[test]
fn a_path_is_what_the_topmost_layer_says() {
    let tar = Tar::default;
    let image = stack([
        tar()
            .file("bin/sh", "a")
            .file("bin/ls", "b")
            .file("gone/x", "c")
            .file("cut/x", "d")
            .symlink("lib", "usr/lib"),
        tar()
            .file("bin/sh", "e")
            .file(".wh.gone", "")
            .file("cut/.wh..wh..opq", "")
            .file("lib/x", "f"),
        tar()
            .hardlink("link", "bin/ls")
            .file("gone/y", "g")
            .file("bin/.wh.ls", ""),
    ]);
    let ids: Vec<Digest> = image.layers().iter().map(|layer| layer.diff_id()).collect();
    #[track_caller]
    fn check(image: &Contents, ids: &[Digest], path: &str, expect: Option<(&str, usize)>) {
        let seen = image.lookup(path.as_bytes());
        let seen = seen.map(|found| (shown_kind(found.kind), found.layer));
        assert_eq!(
            seen,
            expect.map(|(kind, layer)| (kind.to_owned(), ids[layer])),
            "{path}"
        );
    }
    check(&image, &ids, "/bin/sh", Some(("file 1 e", 1)));
    check(&image, &ids, "/bin/ls", None);
    check(&image, &ids, "/link", Some(("file 1 b", 0)));
    check(&image, &ids, "/gone", Some(("directory", 2)));
    check(&image, &ids, "/gone/x", None);
    check(&image, &ids, "/gone/y", Some(("file 1 g", 2)));
    check(&image, &ids, "/cut", Some(("directory", 1)));
    check(&image, &ids, "/cut/x", None);
    // A directory takes the place of the symlink below it.
    check(&image, &ids, "/lib", Some(("directory", 1)));
    check(&image, &ids, "/lib/x", Some(("file 1 f", 1)));
    check(&image, &ids, "/", Some(("directory", 2)));
    check(&image, &ids, "", Some(("directory", 2)));
    check(&image, &ids, "/bin/sh/x", None);
    check(&image, &ids, "/bin/../bin/sh", None);
    check(&image, &ids, "/b", None);
    assert_eq!(
        image.find_bytes(&digest_of(b"e").0),
        Some(b"/bin/sh".to_vec())
    );
    assert_eq!(image.find_bytes(&digest_of(b"a").0), None);
    assert_eq!(stack([]).lookup(b"/"), None);
    assert_eq!(stack([]).entries().count(), 0);
}

#[test]
fn symlinks_lead_nowhere_but_into_the_root() {
    let image = stack([
        Tar::default()
            .file("etc/passwd", "a")
            .symlink("up", "../../../etc")
            .symlink("d/abs", "/etc/./passwd"),
        Tar::default()
            .symlink("l0", "l1")
            .symlink("l1", "l0")
            .symlink("chain", "up")
            .symlink("none", "missing"),
    ]);
    #[track_caller]
    fn check(image: &Contents, path: &str, expect: Option<&str>) {
        let seen = image
            .resolve(path.as_bytes())
            .map(|(path, _)| String::from_utf8(path).unwrap());
        assert_eq!(seen.as_deref(), expect, "{path}");
    }
    check(&image, "/up/passwd", Some("/etc/passwd"));
    check(&image, "chain/passwd", Some("/etc/passwd"));
    check(&image, "/d/abs", Some("/etc/passwd"));
    check(&image, "/d/../../etc//passwd", Some("/etc/passwd"));
    check(&image, "/up", Some("/etc"));
    check(&image, "/", Some("/"));
    check(&image, "/l0", None);
    check(&image, "/none", None);
    check(&image, "/etc/passwd/..", None);
    check(&image, "/etc/passwd/", None);

    let mut chain = Tar::default().file("l40", "x");
    for link in 0..40 {
        chain = chain.symlink(&format!("l{link}"), &format!("l{}", link + 1));
    }
    let image = stack([chain.clone(), Tar::default().symlink("start", "l0")]);
    check(&image, "/l0", Some("/l40"));
    check(&image, "/start", None);
}

#[derive(Clone, Debug)]
enum Step {
    File(String, u8),
    Directory(String),
    Symlink(String, String),
    Hardlink(String, String),
    Whiteout(String),
    Opaque(String),
}

impl Step {
    fn write(&self, tar: Tar) -> Tar {
        match self {
            Self::File(path, body) => tar.entry(b'0', path, "", &[*body]),
            Self::Directory(path) => tar.directory(path),
            Self::Symlink(path, target) => tar.symlink(path, target),
            Self::Hardlink(path, target) => tar.hardlink(path, target),
            Self::Whiteout(path) => {
                let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
                tar.file(&format!("{directory}/.wh.{name}"), "")
            }
            Self::Opaque(path) => tar.file(&format!("{path}/.wh..wh..opq"), ""),
        }
    }
}

fn path() -> impl Strategy<Value = String> {
    vec(prop_oneof!["a", "b", "a-"], 1..4).prop_map(|names| names.join("/"))
}

fn step() -> impl Strategy<Value = Step> {
    let target = prop_oneof![
        path(),
        path().prop_map(|path| format!("../{path}")),
        path().prop_map(|path| format!("/{path}"))
    ];
    prop_oneof![
        6 => (path(), b'a'..=b'd').prop_map(|(path, body)| Step::File(path, body)),
        3 => path().prop_map(Step::Directory),
        2 => (path(), target).prop_map(|(path, target)| Step::Symlink(path, target)),
        2 => (path(), path()).prop_map(|(path, target)| Step::Hardlink(path, target)),
        2 => path().prop_map(Step::Whiteout),
        1 => path().prop_map(Step::Opaque),
    ]
}

pub(super) fn tar_of() -> impl Strategy<Value = Tar> {
    vec(step(), 0..8).prop_map(|steps| tar(&steps))
}

fn tar(steps: &[Step]) -> Tar {
    steps
        .iter()
        .fold(Tar::default(), |tar, step| step.write(tar))
}

#[derive(Clone, Debug, PartialEq)]
enum Thing {
    File(u8),
    Directory,
    Symlink(String),
    /// To another layer.
    Link(String),
}

/// A file system as a map from path to what is there, with its mode and the layer it is from.
type Tree = BTreeMap<String, (Thing, Option<u16>, usize)>;

fn remove_within(tree: &mut Tree, path: &str) {
    let prefix = format!("{path}/");
    tree.retain(|other, _| !other.starts_with(&prefix));
}

/// The path without its symlinks. `None` if a step of it is neither directory nor, where `make`
/// makes it one, nothing.
fn walk(tree: &mut Tree, path: &str, make: bool, follow_last: bool) -> Option<String> {
    let mut left: VecDeque<String> = path.split('/').map(str::to_owned).collect();
    let mut here: Vec<String> = Vec::new();
    let mut links = 0;
    while let Some(name) = left.pop_front() {
        match name.as_str() {
            "" | "." => continue,
            ".." => {
                here.pop();
                continue;
            }
            _ => here.push(name),
        }
        let last = left.is_empty();
        match tree.get(&here.join("/")).map(|(thing, ..)| thing.clone()) {
            Some(Thing::Directory) => {}
            Some(Thing::Symlink(target)) if !last || follow_last => {
                links += 1;
                if links > 40 {
                    return None;
                }
                here.pop();
                if target.starts_with('/') {
                    here.clear();
                }
                for name in target.rsplit('/') {
                    left.push_front(name.to_owned());
                }
            }
            None if make => {
                tree.insert(here.join("/"), (Thing::Directory, None, 0));
            }
            Some(_) if last && !make => {}
            _ => return None,
        }
    }
    Some(here.join("/"))
}

/// What unpacking leaves: the layer's own directory first, then over what is below it.
fn unpack(lower: &Tree, steps: &[Step], layer: usize) -> Option<Tree> {
    let mut upper = Tree::new();
    let mut whiteouts = BTreeSet::new();
    let mut opaques = BTreeSet::new();
    for step in steps {
        let (Step::File(path, _)
        | Step::Directory(path)
        | Step::Symlink(path, _)
        | Step::Hardlink(path, _)
        | Step::Whiteout(path)
        | Step::Opaque(path)) = step;
        if let Step::Opaque(path) = step {
            opaques.insert(walk(&mut upper, path, true, true)?);
            continue;
        }
        let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
        let directory = walk(&mut upper, directory, true, true)?;
        let path = if directory.is_empty() {
            name.to_owned()
        } else {
            format!("{directory}/{name}")
        };
        let is_directory = matches!(upper.get(&path), Some((Thing::Directory, ..)));
        if let Step::Whiteout(_) = step {
            whiteouts.insert(path);
            continue;
        }
        if let Step::Directory(_) = step {
            upper.insert(path, (Thing::Directory, Some(0o755), layer));
            continue;
        }
        if is_directory {
            remove_within(&mut upper, &path);
            let prefix = format!("{path}/");
            whiteouts.retain(|other: &String| !other.starts_with(&prefix));
            opaques.retain(|other| *other != path && !other.starts_with(&prefix));
        }
        upper.remove(&path);
        let thing = match step {
            Step::File(_, body) => Thing::File(*body),
            Step::Symlink(_, target) => Thing::Symlink(target.clone()),
            Step::Hardlink(_, target) => {
                let (directory, name) = target.rsplit_once('/').unwrap_or(("", target));
                // More than 40 links end the layer; a cycle is the only way to have them here.
                let found = match walk_checked(&mut upper, directory) {
                    Walk::Loop => return None,
                    Walk::Nowhere => None,
                    Walk::To(directory) => {
                        let path = [directory.as_str(), name].join("/");
                        upper
                            .get(path.trim_start_matches('/'))
                            .map(|(thing, ..)| thing.clone())
                    }
                };
                match found {
                    Some(Thing::Directory) => return None,
                    Some(other) => other,
                    None => Thing::Link(target.clone()),
                }
            }
            _ => continue,
        };
        upper.insert(path, (thing, Some(0o644), layer));
    }

    let mut merged = lower.clone();
    for path in &whiteouts {
        remove_within(&mut merged, path);
        merged.remove(path);
    }
    for path in &opaques {
        if path.is_empty() {
            merged.clear();
        } else {
            remove_within(&mut merged, path);
        }
    }
    for (path, (thing, mode, _)) in upper {
        if thing != Thing::Directory {
            remove_within(&mut merged, &path);
        }
        let node = match thing {
            Thing::Directory => {
                if !matches!(merged.get(&path), Some((Thing::Directory, ..))) {
                    remove_within(&mut merged, &path);
                }
                let kept = lower
                    .get(&path)
                    .filter(|(thing, ..)| *thing == Thing::Directory);
                Some((
                    Thing::Directory,
                    mode.or(kept.and_then(|(_, mode, _)| *mode)),
                    layer,
                ))
            }
            Thing::Link(target) => walk(&mut lower.clone(), &target, false, false)
                .and_then(|target| lower.get(&target).cloned())
                .filter(|(thing, ..)| *thing != Thing::Directory),
            other => Some((other, mode, layer)),
        };
        match node {
            Some(node) => merged.insert(path, node),
            None => merged.remove(&path),
        };
    }
    Some(merged)
}

enum Walk {
    Loop,
    Nowhere,
    To(String),
}

/// [`walk`] to a directory that must be there.
fn walk_checked(tree: &mut Tree, path: &str) -> Walk {
    match walk(tree, path, false, true) {
        Some(found)
            if found.is_empty() || matches!(tree.get(&found), Some((Thing::Directory, ..))) =>
        {
            Walk::To(found)
        }
        Some(_) => Walk::Nowhere,
        // Made on a copy, a walk fails only at a file or in a loop; a loop has no file in it.
        None => {
            let mut copy = tree.clone();
            copy.retain(|_, (thing, ..)| matches!(thing, Thing::Directory | Thing::Symlink(_)));
            if walk(&mut copy, path, true, true).is_none() {
                Walk::Loop
            } else {
                Walk::Nowhere
            }
        }
    }
}

type Line = (String, String, u16, Digest);

fn seen(path: &[u8], found: crate::image::contents::Found<'_>) -> Line {
    let path = String::from_utf8(path.to_vec()).unwrap();
    (path, shown_kind(found.kind), found.mode, found.layer)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_stack_holds_what_unpacking_it_would_leave(stacks in vec(vec(step(), 0..8), 1..5)) {
        let mut model = Tree::new();
        let mut layers = Vec::new();
        for (index, steps) in stacks.iter().enumerate() {
            let read = layer(tar(steps));
            let unpacked = unpack(&model, steps, index);
            match (read, unpacked) {
                (Ok(read), Some(unpacked)) => {
                    layers.push(read);
                    model = unpacked;
                }
                (Err(_), None) => return Ok(()),
                (read, unpacked) => prop_assert!(false, "{read:?} is not {unpacked:?}"),
            }
        }
        let ids: Vec<Digest> = layers.iter().map(Layer::diff_id).collect();
        let image = contents(layers);

        let mut expect: Vec<Line> = model
            .iter()
            .map(|(path, (thing, mode, layer))| {
                let shown = match thing {
                    Thing::File(body) => format!("file 1 {}", char::from(*body)),
                    Thing::Directory => "directory".to_owned(),
                    Thing::Symlink(target) | Thing::Link(target) => format!("-> {target}"),
                };
                (format!("/{path}"), shown, mode.unwrap_or(0o755), ids[*layer])
            })
            .collect();
        expect.sort_by(|a, b| compare(a.0.as_bytes(), b.0.as_bytes()));
        let entries: Vec<Line> = image.entries().map(|(path, found)| seen(&path, found)).collect();
        prop_assert_eq!(&entries, &expect);
        let all: Vec<Line> = image.below(b"").map(|(path, found)| seen(&path, found)).collect();
        prop_assert_eq!(&all, &entries);
        let mut walked = image.below(b"");
        let mut top = Vec::new();
        while let Some((path, found)) = walked.next() {
            walked.skip_within(&path);
            top.push(seen(&path, found));
        }
        let is_top = |line: &&Line| !line.0[1..].contains('/');
        prop_assert_eq!(top, entries.iter().filter(is_top).cloned().collect::<Vec<_>>());

        let names = ["a", "b", "a-"];
        let mut paths: Vec<String> = names.map(|name| format!("/{name}")).to_vec();
        for depth in 0..39 {
            paths.extend(names.map(|name| format!("{}/{name}", paths[depth])));
        }
        for path in &paths {
            let expect = expect.iter().find(|line| line.0 == *path);
            let within: Vec<Line> = image.below(path.as_bytes()).map(|(path, found)| seen(&path, found)).collect();
            let inside = format!("{path}/");
            prop_assert_eq!(within, entries.iter().filter(|line| line.0.starts_with(&inside)).cloned().collect::<Vec<_>>(), "below {}", path);
            let found = image.lookup(path.as_bytes()).map(|found| seen(path.as_bytes(), found));
            prop_assert_eq!(found.as_ref(), expect, "{}", path);

            let resolved = walk(&mut model.clone(), path, false, true).filter(|path| path.is_empty() || model.contains_key(path));
            let found = image.resolve(path.as_bytes()).map(|(path, _)| String::from_utf8(path).unwrap());
            prop_assert_eq!(found, resolved.map(|path| format!("/{path}")), "{}", path);
        }
        for body in b'a'..=b'd' {
            let expect = format!("file 1 {}", char::from(body));
            match image.find_bytes(&digest_of(&[body]).0) {
                Some(path) => {
                    let path = String::from_utf8(path).unwrap();
                    prop_assert!(entries.iter().any(|line| line.0 == path && line.1 == expect));
                }
                // Only a link from another layer can hold them.
                None => for line in entries.iter().filter(|line| line.1 == expect) {
                    let own = image.layers().iter().find(|layer| layer.diff_id() == line.3);
                    let own = own.and_then(|layer| layer.get(&line.0.as_bytes()[1..])).map(shown);
                    prop_assert_ne!(own, Some(expect.clone()));
                },
            }
        }
    }
}
