//! What is held of what sources said.

use std::{fs, path::PathBuf, time::Duration};

use tempfile::TempDir;

use super::{shelf::Shelf, *};
use crate::{
    provenance::{Options, Provenance, Source, Subject},
    registry::fake::Fake,
};

/// A registry, keys in files, and who verifies by them.
struct World {
    shelf: Shelf,
    fake: Fake,
    directory: TempDir,
    provenance: Provenance,
}

impl World {
    async fn new(signer: &Signer, edit: impl FnOnce(&mut Options)) -> Self {
        let shelf = Shelf::default();
        let fake = shelf.serve().await;
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a.pub");
        fs::write(&file, signer.pem()).unwrap();
        let key = KeyOptions {
            name: "a".to_owned(),
            file,
            repositories: vec![format!("{}/shop/*", fake.authority)],
            not_after: None,
            revoked: false,
            check_reference: false,
        };
        let mut options = Options {
            keys: vec![key],
            folder: None,
        };
        edit(&mut options);
        let provenance = Provenance::new(&options, None, Some(fake.registry(None))).unwrap();
        Self {
            shelf,
            fake,
            directory,
            provenance,
        }
    }

    fn key(&self) -> PathBuf {
        self.directory.path().join("a.pub")
    }

    fn subject(&self) -> Subject {
        Subject {
            runtime_namespace: "default".to_owned(),
            repository: format!("{}/shop/web", self.fake.authority),
            manifest: manifest(),
            index: None,
        }
    }

    async fn verdict(&self) -> &'static str {
        let verdict = self.provenance.verify(&self.subject()).await;
        verdict.signature.name()
    }

    async fn verdict_now(&self) -> &'static str {
        let verdict = self.provenance.verify_now(&self.subject()).await;
        verdict.signature.name()
    }

    async fn refresh(&self) -> u64 {
        self.provenance.refresh_after(Duration::ZERO).await
    }
}

#[tokio::test]
async fn sources_are_asked_once_in_a_while_or_when_they_are_to_be() {
    let a = Signer::new();
    let world = World::new(&a, |_| {}).await;
    assert_eq!(world.verdict().await, "missing");
    let asked = world.fake.asked().len();
    world.shelf.simple(&a, &manifest());
    assert_eq!(world.verdict().await, "missing");
    assert_eq!(world.fake.asked().len(), asked);
    assert_eq!(world.verdict_now().await, "valid");
    let asked = world.fake.asked().len();
    assert_eq!(world.verdict().await, "valid");
    assert_eq!(world.fake.asked().len(), asked);
    // Two who ask at once have it asked for once.
    let world = World::new(&a, |_| {}).await;
    world.shelf.simple(&a, &manifest());
    assert_eq!(
        tokio::join!(world.verdict(), world.verdict()),
        ("valid", "valid")
    );
    let heads = world.fake.asked();
    let tags = heads.iter().filter(|head| head.contains(".sig "));
    assert_eq!(tags.count(), 1, "{heads:?}");
}

#[tokio::test]
async fn of_a_source_that_is_down_what_it_said_stands_and_keys_do_not() {
    let (a, b) = (Signer::new(), Signer::new());
    let world = World::new(&a, |_| {}).await;
    world.shelf.simple(&a, &manifest());
    assert_eq!(world.verdict().await, "valid");
    world.shelf.down(true);
    let verdict = world.provenance.verify_now(&world.subject()).await;
    assert!(verdict.signature.is_valid());
    let [down] = verdict.down.as_slice() else {
        unreachable!("{verdict:?}")
    };
    assert_eq!(down.source, Source::Registry);
    assert!(down.answered.is_some_and(|at| at <= down.since), "{down:?}");
    assert!(down.reason.contains("503"), "{down}");
    // Since when stays.
    let again = world.provenance.verify_now(&world.subject()).await;
    assert_eq!(again.down[0].since, down.since);

    let generation = world.provenance.generation();
    fs::remove_file(world.key()).unwrap();
    assert_eq!(world.refresh().await, generation + 1);
    assert_eq!(world.verdict().await, "revoked");
    fs::write(world.key(), b.pem()).unwrap();
    assert_eq!(world.refresh().await, generation + 2);
    assert_eq!(world.verdict().await, "wrong_key");
    // What is no key changes nothing.
    fs::write(world.key(), "x").unwrap();
    assert_eq!(world.refresh().await, generation + 2);
    fs::write(world.key(), a.pem()).unwrap();
    assert_eq!(world.refresh().await, generation + 3);
    assert_eq!(world.refresh().await, generation + 3);
    assert_eq!(world.verdict().await, "valid");

    world.shelf.down(false);
    world.shelf.clear();
    let verdict = world.provenance.verify_now(&world.subject()).await;
    assert_eq!(verdict.signature, Signature::Missing);
    assert_eq!(verdict.down, []);
}

#[tokio::test]
async fn what_was_never_answered_is_not_known() {
    let a = Signer::new();
    let world = World::new(&a, |_| {}).await;
    world.shelf.down(true);
    let verdict = world.provenance.verify(&world.subject()).await;
    assert_eq!(verdict.signature.name(), "unreachable");
    let said = verdict.signature.to_string();
    assert!(said.contains("the registry does not answer"), "{said}");
    assert!(said.contains("503"), "{said}");

    // The folder has one, and so it is known.
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join(format!("sha256-{}", manifest().0));
    fs::create_dir(&image).unwrap();
    let bundle = a.statement(&statement(&manifest())).to_string();
    fs::write(image.join("a.json"), bundle).unwrap();
    let world = World::new(&a, |options| {
        options.folder = Some(folder.path().to_owned());
    })
    .await;
    world.shelf.down(true);
    let verdict = world.provenance.verify(&world.subject()).await;
    assert!(verdict.signature.is_valid(), "{verdict:?}");
    assert_eq!(verdict.down.len(), 1);
}

#[tokio::test]
async fn an_index_counts_if_it_lists_the_manifest() {
    let a = Signer::new();
    let world = World::new(&a, |_| {}).await;
    let index = |listed: &Digest| {
        let listed = json!({"digest": listed.to_string(), "size": 1});
        json!({"mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [listed]})
            .to_string()
    };
    let check = async |index: &str, is_there: bool, expect: &str| {
        let digest = digest_of(index.as_bytes());
        world.shelf.clear();
        world.shelf.simple(&a, &digest);
        if is_there {
            world.shelf.put(format!("manifests/{digest}"), index);
        }
        let subject = Subject {
            index: Some(digest),
            ..world.subject()
        };
        let verdict = world.provenance.verify_now(&subject).await;
        assert_eq!(verdict.signature.to_string(), expect);
    };
    let own = index(&manifest());
    check(&own, false, "it has no signature").await;
    check(&own, true, "its index is signed by the key \"a\"").await;
    let other = index(&digest_of(b"other"));
    check(&other, true, "it has no signature").await;
}

#[tokio::test]
async fn the_bytes_that_a_message_signs_are_fetched() {
    let a = Signer::new();
    let world = World::new(&a, |_| {}).await;
    let listed = world.shelf.artifact(&manifest(), &a.message(MANIFEST));
    world.shelf.referrers(&manifest(), true, &[listed]);
    assert_eq!(world.verdict().await, "unusable");
    let text = String::from_utf8(MANIFEST.to_vec()).unwrap();
    world.shelf.put(format!("manifests/{}", manifest()), text);
    assert_eq!(world.verdict_now().await, "valid");
    // And held.
    world.shelf.down(true);
    assert_eq!(world.verdict_now().await, "valid");
}

#[tokio::test]
async fn a_key_expires_by_itself() {
    let a = Signer::new();
    let soon = Timestamp::now() + Duration::from_secs(1);
    let world = World::new(&a, |options| options.keys[0].not_after = Some(soon)).await;
    world.shelf.simple(&a, &manifest());
    assert_eq!(world.verdict().await, "valid");
    let generation = world.provenance.generation();
    assert_eq!(world.refresh().await, generation);
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(world.refresh().await, generation + 1);
    assert_eq!(world.verdict().await, "expired");
}

#[test]
fn a_key_that_cannot_be_read_is_refused_at_the_start() {
    let options = |file: &str| Options {
        keys: vec![KeyOptions {
            name: "a".to_owned(),
            file: file.into(),
            repositories: vec!["*".to_owned()],
            not_after: None,
            revoked: false,
            check_reference: false,
        }],
        folder: None,
    };
    let error = Provenance::new(&options("/nowhere"), None, None).err();
    let error = error.unwrap().to_string();
    assert!(
        error.contains("\"a\" in /nowhere: there is no such file"),
        "{error}"
    );
}
