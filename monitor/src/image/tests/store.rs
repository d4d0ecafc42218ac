use std::{fs, path::Path, sync::Arc, time::Duration};

use super::*;
use crate::{
    containers::ImageId,
    image::{
        manifest::chain_id,
        store::{ImageStore, Stats},
    },
};

pub(super) struct Image {
    pub(super) id: ImageId,
    pub(super) layers: Vec<Digest>,
}

/// Puts an image of gzip layers into `blobs`.
pub(super) fn image(blobs: &MemoryBlobs, entrypoint: &str, tars: &[Vec<u8>]) -> Image {
    let diff_ids: Vec<Digest> = tars.iter().map(|tar| digest_of(tar)).collect();
    let layers: Vec<Digest> = tars.iter().map(|tar| blobs.add(&gzip(tar))).collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {"Entrypoint": [entrypoint]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids.iter().map(Digest::to_string).collect::<Vec<_>>()},
    });
    let config = blobs.add(config.to_string().as_bytes());
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "config": {"digest": config.to_string(), "size": 1},
        "layers": layers.iter().map(|layer| serde_json::json!({"digest": layer.to_string(), "size": 1})).collect::<Vec<_>>(),
    });
    let manifest = blobs.add(manifest.to_string().as_bytes());
    Image {
        id: ImageId {
            manifest,
            config,
            chain_id: chain_id(&diff_ids).unwrap(),
            index: None,
        },
        layers,
    }
}

fn tar_of(name: &str) -> Vec<u8> {
    Tar::default().file(name, "x").end()
}

pub(super) fn open(directory: &Path, blobs: &Arc<MemoryBlobs>) -> ImageStore {
    let blobs: Arc<dyn Blobs> = Arc::<MemoryBlobs>::clone(blobs);
    ImageStore::open(directory, blobs).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn images_share_layers_that_are_read_once() {
    let directory = tempfile::tempdir().unwrap();
    let blobs = Arc::new(MemoryBlobs::default());
    let first = image(&blobs, "a", &[tar_of("base"), tar_of("one")]);
    let second = image(&blobs, "b", &[tar_of("base"), tar_of("two")]);
    let store = open(directory.path(), &blobs);
    let tasks: Vec<_> = (0..16)
        .map(|index| {
            let (store, id) = (
                store.clone(),
                if index % 2 == 0 { &first } else { &second }.id.clone(),
            );
            tokio::spawn(async move { store.contents("default", &id).await.unwrap() })
        })
        .collect();
    for task in tasks {
        let contents = task.await.unwrap();
        assert!(contents.lookup(b"/base").is_some());
        assert_eq!(
            contents.lookup(b"/one").is_some(),
            contents.image() == Some(&first.id)
        );
    }
    let a = store.contents("default", &first.id).await.unwrap();
    let b = store.contents("default", &second.id).await.unwrap();
    assert!(Arc::ptr_eq(&a.layers()[0], &b.layers()[0]));
    for layer in first.layers.iter().chain(&second.layers) {
        assert_eq!(blobs.opened(layer), 1);
    }
    let stats = store.stats();
    assert_eq!((stats.built, stats.loaded, stats.failed), (3, 0, 0));
    assert_eq!(
        (
            stats.layers_in_memory,
            stats.layers_on_disk,
            stats.images_in_memory
        ),
        (3, 3, 2)
    );

    // After a restart they come from disk.
    let store = open(directory.path(), &blobs);
    assert_eq!(
        *store.contents("default", &first.id).await.unwrap().layers()[0],
        *a.layers()[0]
    );
    assert_eq!(blobs.opened(&first.layers[0]), 1);
    assert_eq!(store.stats().loaded, 2);
}

#[tokio::test]
async fn a_file_that_is_not_the_layer_is_rebuilt() {
    let directory = tempfile::tempdir().unwrap();
    let blobs = Arc::new(MemoryBlobs::default());
    let image = image(&blobs, "a", &[tar_of("base")]);
    open(directory.path(), &blobs)
        .contents("default", &image.id)
        .await
        .unwrap();
    let file = fs::read_dir(directory.path())
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let good = fs::read(&file).unwrap();
    let version = [&good[..8], &[9], &good[9..]].concat();
    let checksum = [&good[..good.len() - 1], b"?"].concat();
    for (count, bad) in [version, checksum, good[..10].to_vec(), Vec::new()]
        .into_iter()
        .enumerate()
    {
        fs::write(&file, bad).unwrap();
        let store = open(directory.path(), &blobs);
        assert!(
            store
                .contents("default", &image.id)
                .await
                .unwrap()
                .lookup(b"/base")
                .is_some()
        );
        assert_eq!(fs::read(&file).unwrap(), good);
        assert_eq!(blobs.opened(&image.layers[0]), count + 2);
        let Stats {
            built,
            rebuilt,
            loaded,
            ..
        } = store.stats();
        assert_eq!((built, rebuilt, loaded), (1, 1, 0));
    }
}

#[tokio::test]
async fn what_is_wrong_with_an_image_is_named_and_remembered() {
    let directory = tempfile::tempdir().unwrap();
    let blobs = Arc::new(MemoryBlobs::default());
    let store = open(directory.path(), &blobs);
    let good = image(&blobs, "good", &[tar_of("good")]);
    let other = image(&blobs, "other", &[tar_of("other")]);
    let check = async |id: &ImageId, blob: Digest, permanent: bool, expect: &str| {
        let before = blobs.opened(&blob);
        for _ in 0..3 {
            let error = store.contents("default", id).await.unwrap_err();
            let text = error.to_string();
            assert!(
                text.starts_with(&format!("contents of image {}: {expect}", id.manifest)),
                "{text}"
            );
            assert_eq!(error.is_permanent(), permanent, "{text}");
        }
        assert_eq!(blobs.opened(&blob), before + 1);
    };

    let id = ImageId {
        chain_id: digest_of(b"other"),
        ..good.id.clone()
    };
    check(
        &id,
        id.config,
        true,
        "layers of config have chain ID sha256:",
    )
    .await;
    let id = ImageId {
        config: other.id.config,
        ..good.id.clone()
    };
    check(&id, id.manifest, true, "manifest names config sha256:").await;
    let index = blobs.add(br#"{"manifests":[]}"#);
    let id = ImageId {
        manifest: index,
        ..good.id.clone()
    };
    check(
        &id,
        index,
        true,
        "is an index, not the manifest of one platform",
    )
    .await;
    let nonsense = blobs.add(b"{}");
    let id = ImageId {
        manifest: nonsense,
        ..good.id.clone()
    };
    check(
        &id,
        nonsense,
        true,
        &format!("manifest {nonsense}: document has neither"),
    )
    .await;

    let wrong = image(&blobs, "wrong", &[tar_of("wrong")]);
    blobs.put(wrong.id.manifest, Ok(b"{}".to_vec()));
    check(
        &wrong.id,
        wrong.id.manifest,
        true,
        &format!("manifest {0}: bytes have digest", wrong.id.manifest),
    )
    .await;
    let corrupt = image(&blobs, "corrupt", &[tar_of("base"), tar_of("corrupt")]);
    let blob = corrupt.layers[1];
    blobs.put(blob, Ok(b"nothing of the kind".to_vec()));
    check(
        &corrupt.id,
        blob,
        true,
        &format!(
            "layer {blob} (diff ID {}): layer blob is not the one",
            digest_of(&tar_of("corrupt"))
        ),
    )
    .await;
    let escaping = Tar::default().file("../../etc/cron.d/x", "").end();
    let escaping = image(&blobs, "escaping", &[escaping]);
    check(
        &escaping.id,
        escaping.layers[0],
        true,
        &format!("layer {} (diff ID", escaping.layers[0]),
    )
    .await;

    let long = vec![b' '; 5 << 20];
    let id = ImageId {
        manifest: blobs.add(&long),
        ..good.id.clone()
    };
    check(
        &id,
        id.manifest,
        true,
        &format!("manifest {}: longer than 4194304 bytes", id.manifest),
    )
    .await;

    // Not the image's fault.
    let away = image(&blobs, "away", &[tar_of("away")]);
    blobs.put(
        away.layers[0],
        Err(BlobError::Unavailable("connection refused".to_owned())),
    );
    check(
        &away.id,
        away.layers[0],
        false,
        &format!("layer {} (diff ID", away.layers[0]),
    )
    .await;
    let missing = image(&blobs, "missing", &[tar_of("missing")]);
    blobs.put(
        missing.layers[0],
        Err(BlobError::NotFound(missing.layers[0])),
    );
    check(
        &missing.id,
        missing.layers[0],
        false,
        &format!("layer {} (diff ID", missing.layers[0]),
    )
    .await;
    let error = store.contents("default", &missing.id).await.unwrap_err();
    assert_eq!(error.missing_blob(), Some(missing.layers[0]));

    // Another namespace has blobs of its own, and a good image is not touched by bad ones.
    blobs.put(missing.layers[0], Ok(gzip(&tar_of("missing"))));
    assert!(store.contents("k8s.io", &missing.id).await.is_ok());
    assert!(store.contents("default", &good.id).await.is_ok());
    let stats = store.stats();
    assert_eq!((stats.failed, stats.failures_repeated), (10, 21));
}

#[tokio::test]
async fn a_layer_that_cannot_be_written_is_served_and_written_later() {
    let directory = tempfile::tempdir().unwrap();
    let blobs = Arc::new(MemoryBlobs::default());
    let image = image(&blobs, "a", &[tar_of("base"), tar_of("one")]);
    let path = directory.path().join("layers");
    let store = open(&path, &blobs);
    fs::remove_dir(&path).unwrap();
    let contents = store.contents("default", &image.id).await.unwrap();
    assert!(contents.lookup(b"/one").is_some());
    let stats = store.stats();
    assert_eq!((stats.not_saved, stats.unsaved), (2, 2));

    fs::create_dir(&path).unwrap();
    let all_saved = async {
        while store.stats().unsaved > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all_saved)
        .await
        .unwrap();
    assert_eq!(store.stats().layers_on_disk, 2);
    let after = open(&path, &blobs);
    after.contents("default", &image.id).await.unwrap();
    assert_eq!(after.stats().loaded, 2);
}

#[tokio::test]
async fn what_is_forgotten_is_on_disk_no_more_and_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let blobs = Arc::new(MemoryBlobs::default());
    let first = image(&blobs, "a", &[tar_of("base"), tar_of("one")]);
    let second = image(&blobs, "b", &[tar_of("base"), tar_of("two")]);
    let store = open(directory.path(), &blobs);
    let kept = store.contents("default", &second.id).await.unwrap();
    store.contents("default", &first.id).await.unwrap();
    // Also when something is known to be gone already.
    let own = [digest_of(&tar_of("one")), digest_of(b"never kept")];
    store.forget(&[first.id.manifest], &own);
    let stats = store.stats();
    assert_eq!((stats.removed, stats.layers_on_disk), (1, 2));
    assert_eq!((stats.images_in_memory, stats.layers_in_memory), (1, 2));
    assert!(store.peek("default", &first.id).is_none());
    let again = store.contents("default", &first.id).await.unwrap();
    assert!(again.lookup(b"/one").is_some());
    assert!(Arc::ptr_eq(&again.layers()[0], &kept.layers()[0]));
    assert_eq!(
        [
            blobs.opened(&first.layers[0]),
            blobs.opened(&first.layers[1])
        ],
        [1, 2]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_read_is_told_from_disk_after_the_image_is_removed() {
    let directory = tempfile::tempdir().unwrap();
    let blobs = Arc::new(MemoryBlobs::default());
    let build = image;
    let image = build(&blobs, "a", &[tar_of("base"), tar_of("one")]);
    let store = open(directory.path(), &blobs);
    store.contents("default", &image.id).await.unwrap();
    let documents = [image.id.manifest, image.id.config];
    for digest in documents.iter().chain(&image.layers) {
        blobs.put(*digest, Err(BlobError::NotFound(*digest)));
    }
    // As many others as are kept in memory.
    for number in 0..64 {
        let other = build(&blobs, &number.to_string(), &[tar_of("base")]);
        store.contents("default", &other.id).await.unwrap();
    }
    assert!(store.peek("default", &image.id).is_none());
    let contents = store.contents("default", &image.id).await.unwrap();
    assert!(contents.lookup(b"/one").is_some());
    assert_eq!(store.stats().built, 2);

    // Until no container needs it.
    store.forget(&[image.id.manifest], &[]);
    store.contents("default", &image.id).await.unwrap_err();
}
