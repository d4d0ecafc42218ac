use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::sys::stat::{Mode, SFlag, mknod};

use super::{
    store::{image, open},
    *,
};
use crate::{
    containers::SnapshotLayers,
    image::{
        contents::{Contents, Evidence},
        unpacked::{Layers, Snapshot},
    },
};

fn snapshot(key: &str) -> Snapshot {
    Snapshot {
        namespace: "default".to_owned(),
        snapshotter: "overlayfs".to_owned(),
        key: key.to_owned(),
        created_unix_ns: 1,
    }
}

/// Two layers as containerd unpacks them: the upper one hides `gone` of the lower and changes `sh`.
fn unpack(directory: &Path) -> Vec<PathBuf> {
    let layers = ["1", "2"].map(|name| directory.join(name));
    for layer in &layers {
        fs::create_dir_all(layer.join("bin")).unwrap();
    }
    let [lower, upper] = &layers;
    fs::write(lower.join("bin/sh"), "a").unwrap();
    fs::write(lower.join("bin/ls"), "b").unwrap();
    fs::write(lower.join("bin/ls.old"), "c").unwrap();
    fs::write(lower.join("bin/gone"), "d").unwrap();
    fs::write(upper.join("bin/sh"), "e").unwrap();
    std::os::unix::fs::symlink("bin/ls", upper.join("link")).unwrap();
    let whiteout = upper.join("bin/gone");
    mknod(&whiteout, SFlag::S_IFCHR, Mode::empty(), 0).unwrap();
    layers.to_vec()
}

fn shown_at(contents: &Contents, path: &str) -> String {
    match contents.lookup(path.as_bytes()).map(|found| found.kind) {
        None => "nothing".to_owned(),
        Some(EntryKind::File { size, sha256: None }) => format!("file {size} unread"),
        Some(kind) => shown_kind(kind),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unpacked_layers_are_read_when_they_are_used() {
    let directory = tempfile::tempdir().unwrap();
    let blobs = Arc::new(MemoryBlobs::default());
    let tar = |name: &str| Tar::default().file(name, "x").end();
    let image = image(&blobs, "a", &[tar("one"), tar("two")]);
    for layer in &image.layers {
        blobs.put(*layer, Err(BlobError::NotFound(*layer)));
    }
    let store = open(&directory.path().join("state"), &blobs);
    let missing = store.contents("default", &image.id).await.unwrap_err();
    assert_eq!(missing.missing_blob(), image.layers.first().copied());

    let directories = unpack(directory.path());
    let given = directories.clone();
    let contents = store
        .unpacked(&Layers::Image(image.id.clone()), &snapshot("a"), async {
            Ok(given)
        })
        .await
        .unwrap();
    assert_eq!(contents.evidence(), Evidence::Unpacked);
    let paths: Vec<String> = contents
        .entries()
        .map(|(path, _)| String::from_utf8(path).unwrap())
        .collect();
    let expect = ["/bin", "/bin/ls", "/bin/ls.old", "/bin/sh", "/link"];
    assert_eq!(paths, expect);

    assert_eq!(shown_at(&contents, "/bin/sh"), "file 1 unread");
    contents.read(b"/bin/sh");
    contents.read(b"/bin/gone");
    contents.read(b"/none");
    assert_eq!(shown_at(&contents, "/bin/sh"), "file 1 e");
    assert_eq!(shown_at(&contents, "/bin/ls"), "file 1 unread");
    assert_eq!(shown_at(&contents, "/link"), "-> bin/ls");
    assert_eq!(contents.find_bytes(&digest_of(b"b").0), None);
    contents.read_of_size(1);
    let found = contents.find_bytes(&digest_of(b"b").0);
    assert_eq!(found, Some(b"/bin/ls".to_vec()));
    assert_eq!(contents.find_bytes(&digest_of(b"a").0), None, "hidden");

    // What was found at first stands, for every container of the same layers.
    let edited = directory.path().join("1/bin/ls");
    fs::write(&edited, "z").unwrap();
    let given = directories.clone();
    let other = store
        .unpacked(&Layers::Image(image.id.clone()), &snapshot("b"), async {
            Ok(given)
        })
        .await
        .unwrap();
    other.read(b"/bin/ls");
    assert_eq!(shown_at(&other, "/bin/ls"), "file 1 b");
    assert_eq!(store.stats().unpacked, 2);

    // Another length than the directory was listed with is an edit before the first use.
    let (layer, path) = (directory.path().join("3"), b"/bin/ls");
    fs::create_dir_all(layer.join("bin")).unwrap();
    fs::write(layer.join("bin/ls"), "b").unwrap();
    let given = vec![layer.clone(), directories[1].clone()];
    let third = store
        .unpacked(&Layers::Image(image.id.clone()), &snapshot("c"), async {
            Ok(given)
        })
        .await
        .unwrap();
    fs::write(layer.join("bin/ls"), "edited").unwrap();
    third.read(path);
    assert_eq!(shown_at(&third, "/bin/ls"), "file 1 unread");

    // One directory more is that of remapped users; any other number is not the image's.
    let given = [directories.clone(), vec![layer]].concat();
    let remapped = store
        .unpacked(&Layers::Image(image.id.clone()), &snapshot("d"), async {
            Ok(given)
        })
        .await
        .unwrap();
    assert_eq!(shown_at(&remapped, "/bin/sh"), "file 1 e");
    assert!(remapped.image().is_some());
    let unread = Layers::Unread(SnapshotLayers {
        chain_id: image.id.chain_id,
        is_remapped: false,
    });
    let given = directories.clone();
    let unread = store
        .unpacked(&unread, &snapshot("a"), async { Ok(given) })
        .await
        .unwrap();
    unread.read(b"/bin/sh");
    assert_eq!(shown_at(&unread, "/bin/sh"), "file 1 e");
    let found = unread.lookup(b"/bin/sh").unwrap();
    assert_eq!((unread.layer_of(&found), unread.image()), (None, None));
    let refused = store
        .unpacked(&Layers::Image(image.id.clone()), &snapshot("e"), async {
            Ok(Vec::new())
        })
        .await
        .unwrap_err();
    let said = missing.and(refused).to_string();
    assert!(
        said.contains("is not in the content store") && said.contains("0 lower directories"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_removed_while_it_is_read_goes_on_as_unpacked() {
    let directory = tempfile::tempdir().unwrap();
    let blobs = Arc::new(MemoryBlobs::default());
    let tar = |name: &str| Tar::default().file(name, "x").end();
    let image = image(&blobs, "a", &[tar("one"), tar("two")]);
    let remove = |digest: Digest| blobs.put(digest, Err(BlobError::NotFound(digest)));
    remove(*image.layers.last().unwrap());
    let store = open(&directory.path().join("state"), &blobs);
    store.contents("default", &image.id).await.unwrap_err();
    // The rest goes while the container runs.
    let documents = [image.id.manifest, image.id.config];
    documents
        .into_iter()
        .chain(image.layers.clone())
        .for_each(remove);

    let given = unpack(directory.path());
    let layers = Layers::Image(image.id.clone());
    let contents = store
        .unpacked(&layers, &snapshot("a"), async { Ok(given) })
        .await
        .unwrap();
    assert_eq!(contents.evidence(), Evidence::Unpacked);
    let found = contents.lookup(b"/bin/sh").unwrap();
    let layer = contents.layer_of(&found);
    assert_eq!(layer, Some(digest_of(&tar("two"))));
}
