//! Where signatures lie, and what is taken of it.

use std::{fs, path::Path};

use super::{
    shelf::{SIMPLE, Shelf, layer},
    *,
};
use crate::{
    provenance::{
        folder,
        gather::{self, Gathered},
        signature::Attestation,
    },
    registry::{Repository, fake::Fake},
};

const OWN: Target = Target::Manifest;

async fn gathered(fake: &Fake) -> Result<Gathered, String> {
    let reference = format!("{}/shop/web", fake.authority);
    let registry = fake.registry(None);
    let documents = registry.documents(Repository::of(&reference).unwrap());
    gather::gather(&documents, &[(OWN, manifest())]).await
}

fn judged(gathered: &Gathered, key: &Key) -> Signature {
    let candidates = [Candidate {
        target: OWN,
        digest: manifest(),
        bytes: None,
    }];
    let asked = Asked {
        repository: REPOSITORY,
        candidates: &candidates,
        now: now(),
    };
    asked.judge(gathered.signed.iter(), &Keys::from(vec![key.clone()]))
}

fn attestation(digest: Digest, kind: &str) -> Attestation {
    Attestation {
        digest,
        kind: kind.to_owned(),
        target: OWN,
    }
}

#[tokio::test]
async fn signatures_are_found_by_their_tag_and_among_referrers() {
    let a = Signer::new();
    let key = a.key("a", |_| {});
    let shelf = Shelf::default();
    let fake = shelf.serve().await;
    let check = async |expect: &str, part: &str| {
        let gathered = gathered(&fake).await.unwrap();
        let verdict = judged(&gathered, &key);
        let said = verdict.to_string();
        assert_eq!(verdict.name(), expect, "{said}");
        assert!(said.contains(part), "{said} instead of {part}");
        shelf.clear();
        gathered
    };
    check("missing", "").await;
    shelf.simple(&a, &manifest());
    check("valid", "").await;
    shelf.simple(&Signer::new(), &manifest());
    check("wrong_key", "").await;
    for by_api in [true, false] {
        let listed = shelf.artifact(&manifest(), &a.statement(&statement(&manifest())));
        shelf.referrers(&manifest(), by_api, &[listed]);
        check("valid", "").await;
    }
    // A registry that tells no type, and one that answers with a page.
    let listed = shelf.artifact(&manifest(), &a.statement(&statement(&manifest())));
    let untold = with(listed.clone(), "/artifactType", "");
    shelf.referrers(&manifest(), true, &[untold]);
    check("valid", "").await;
    let listed = shelf.artifact(&manifest(), &a.statement(&statement(&manifest())));
    shelf.referrers(&manifest(), false, &[listed]);
    shelf.put(format!("referrers/{}", manifest()), "<html>");
    check("valid", "").await;

    // The blob is another one.
    shelf.simple(&a, &manifest());
    let own = payload(&manifest(), REPOSITORY);
    shelf.put(format!("blobs/{}", digest_of(&own)), "{}");
    check("tampered", &digest_of(&own).to_string()).await;
    // So is the artifact's manifest.
    let listed = shelf.artifact(&manifest(), &a.statement(&statement(&manifest())));
    let digest = listed["digest"].as_str().unwrap().to_owned();
    shelf.referrers(&manifest(), true, &[listed]);
    shelf.put(format!("manifests/{digest}"), "{\"layers\": []}");
    check("tampered", &digest).await;

    let tagged = |layer: Value| shelf.tagged(&manifest(), ".sig", &[layer]);
    let annotations = json!({"dev.cosignproject.cosign/signature": "AAAA"});
    tagged(layer(SIMPLE, "gone", annotations.clone()));
    check("unusable", "is not there").await;
    tagged(layer(SIMPLE, &"x".repeat(131_073), annotations));
    check("unusable", "at most 131072 are read").await;
    shelf.blob("{}");
    tagged(layer(SIMPLE, "{}", json!({})));
    check("unusable", "no signature").await;
    shelf.put(format!("manifests/sha256-{}.sig", manifest().0), "<html>");
    check("unusable", "manifest is not of its form").await;
    assert!(fake.asked().iter().all(|head| head.starts_with("GET ")));
}

#[tokio::test]
async fn what_else_is_stated_is_listed_with_its_type() {
    let a = Signer::new();
    let shelf = Shelf::default();
    let fake = shelf.serve().await;
    let tag = layer(
        "application/vnd.dsse.envelope.v1+json",
        "a",
        json!({"predicateType": SLSA}),
    );
    shelf.tagged(&manifest(), ".att", &[tag]);
    shelf.tagged(
        &manifest(),
        ".sbom",
        &[layer("text/spdx+json", "b", json!({}))],
    );
    let attested = with(statement(&manifest()), "/predicateType", SLSA);
    let attested = a.statement(&attested);
    let listed = shelf.artifact(&manifest(), &attested);
    let other = digest_of(b"c").to_string();
    let sbom = json!({"digest": other, "artifactType": "application/spdx+json"});
    let told = json!({
        "digest": other,
        "artifactType": BUNDLE,
        "annotations": {"dev.sigstore.bundle.predicateType": "https://spdx.dev/Document"},
    });
    shelf.referrers(&manifest(), true, &[listed, sbom, told]);
    let found = gathered(&fake).await.unwrap();
    assert_eq!(found.signed, []);
    let expect = [
        attestation(digest_of(b"a"), SLSA),
        attestation(digest_of(b"b"), "text/spdx+json"),
        attestation(digest_of(attested.to_string().as_bytes()), SLSA),
        attestation(digest_of(b"c"), "application/spdx+json"),
        attestation(digest_of(b"c"), "https://spdx.dev/Document"),
    ];
    assert_eq!(found.attestations, expect);
}

#[tokio::test]
async fn no_more_is_taken_than_is_allowed() {
    let shelf = Shelf::default();
    let fake = shelf.serve().await;
    shelf.blob("{}");
    let annotations = json!({"dev.cosignproject.cosign/signature": "AAAA"});
    let signatures = vec![layer(SIMPLE, "{}", annotations); 40];
    let others = vec![layer("text/plain", "a", json!({})); 80];
    shelf.tagged(&manifest(), ".sig", &[signatures, others].concat());
    let found = gathered(&fake).await.unwrap();
    assert_eq!((found.signed.len(), found.attestations.len()), (32, 64));
    let layers = vec![layer("text/plain", "a", json!({})); 513];
    shelf.tagged(&manifest(), ".sig", &layers);
    let found = gathered(&fake).await.unwrap();
    assert_eq!(found.attestations.len(), 0);
    let refused = Signature::unusable("the manifest has 513 layers; at most 512 are read");
    assert_eq!(found.signed, [Signed::Refused(refused)]);
    // More than a manifest may have.
    let long = " ".repeat((4 << 20) + 1);
    shelf.put(format!("manifests/sha256-{}.sig", manifest().0), long);
    let error = gathered(&fake).await.unwrap_err();
    assert!(error.contains("more than 4194304 bytes"), "{error}");
}

#[tokio::test]
async fn a_folder_has_what_cosign_writes_to_files() {
    let a = Signer::new();
    let key = a.key("a", |_| {});
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join(format!("sha256-{}", manifest().0));
    let gather =
        async |folder: &Path| folder::gather(folder.to_owned(), &[(OWN, manifest())]).await;
    let error = gather(Path::new("/nowhere")).await.unwrap_err();
    assert!(error.contains("/nowhere"), "{error}");
    assert_eq!(gather(folder.path()).await, Ok(Gathered::default()));

    let check = async |files: &[(&str, &[u8])], expect: &str, part: &str| {
        fs::create_dir_all(image.join("blobs/sha256")).unwrap();
        for (name, bytes) in files {
            fs::write(image.join(name), bytes).unwrap();
        }
        let verdict = judged(&gather(folder.path()).await.unwrap(), &key);
        let said = verdict.to_string();
        assert_eq!(verdict.name(), expect, "{said}");
        assert!(said.contains(part), "{said} instead of {part}");
        fs::remove_dir_all(&image).unwrap();
    };
    let own = payload(&manifest(), REPOSITORY);
    let signature = a.sign(&own).into_bytes();
    let bundle = a.statement(&statement(&manifest())).to_string();
    check(&[], "missing", "").await;
    check(&[("README", b"x")], "missing", "").await;
    check(&[("a.payload", &own), ("a.sig", &signature)], "valid", "").await;
    check(&[("a.sigstore.json", bundle.as_bytes())], "valid", "").await;
    check(&[("a.payload", &own)], "unusable", "no .sig").await;
    check(&[("a.sig", &signature)], "unusable", "no .payload").await;
    check(
        &[("a.payload", &own), ("b.sig", &signature)],
        "unusable",
        "",
    )
    .await;
    check(
        &[("a.payload", &own), ("a.sig", b"\xff")],
        "unusable",
        "not base64",
    )
    .await;
    check(&[("a.json", &[b' '; 131_073])], "unusable", "131072 bytes").await;
    check(
        &[
            ("a.json", b"{}"),
            ("b.payload", &own),
            ("b.sig", &signature),
        ],
        "valid",
        "",
    )
    .await;

    // What `cosign save` writes.
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", digest_of(bytes).0);
    let annotations = json!({"dev.cosignproject.cosign/signature": a.sign(&own)});
    let signed = layer(SIMPLE, std::str::from_utf8(&own).unwrap(), annotations);
    let artifact = json!({"layers": [signed]}).to_string().into_bytes();
    let list = |kind: &str| {
        let described = |kind: &str, bytes: &[u8]| {
            let kind = format!("dev.cosignproject.cosign/{kind}");
            json!({"digest": digest_of(bytes).to_string(), "annotations": {"kind": kind}})
        };
        let manifests = [described("image", MANIFEST), described(kind, &artifact)];
        json!({"manifests": manifests}).to_string().into_bytes()
    };
    let saved = async |list: &[u8], payload: &[u8], expect: &str, part: &str| {
        let files: [(&str, &[u8]); 4] = [
            ("oci-layout", b"{}"),
            ("index.json", list),
            (&blob(&artifact), &artifact),
            (&blob(&own), payload),
        ];
        check(&files, expect, part).await;
    };
    saved(&list("sigs"), &own, "valid", "").await;
    saved(&list("sigs"), b"{}", "tampered", "").await;
    saved(&list("image"), &own, "missing", "").await;
    saved(b"{", &own, "missing", "").await;
    fs::write(&image, "").unwrap();
    assert!(gather(folder.path()).await.is_err());
}
