//! Documents of strangers: whatever they hold, a verdict comes of them, and never a good one.

use proptest::prelude::*;

use super::*;
use crate::provenance::{artifact, document};

/// Replaces, removes and puts in bytes.
fn changed(mut bytes: Vec<u8>, changes: &[(usize, u8, u8)]) -> Vec<u8> {
    for (place, kind, byte) in changes {
        let place = place % (bytes.len() + 1);
        match kind % 3 {
            0 if place < bytes.len() => bytes[place] = *byte,
            1 if place < bytes.len() => drop(bytes.remove(place)),
            _ => bytes.insert(place, *byte),
        }
    }
    bytes
}

fn judged(signed: Signed, key: &Key) -> Signature {
    let candidates = [Candidate {
        target: Target::Manifest,
        digest: manifest(),
        bytes: Some(MANIFEST.to_vec()),
    }];
    let asked = Asked {
        repository: REPOSITORY,
        candidates: &candidates,
        now: now(),
    };
    asked.judge([signed].iter(), &Keys::from(vec![key.clone()]))
}

#[test]
fn no_change_of_a_document_is_a_panic_and_none_of_what_is_signed_is_valid() {
    let a = Signer::new();
    let key = a.key("a", |_| {});
    let own = payload(&manifest(), REPOSITORY);
    let signature = a.sign(&own);
    let statement = a.statement(&statement(&manifest())).to_string();
    let message = a.message(MANIFEST).to_string();
    let index = json!({"manifests": [
        {"digest": manifest().to_string(), "artifactType": BUNDLE, "annotations": {"a": "b"}, "size": 3},
    ]});
    let artifact = json!({
        "artifactType": BUNDLE,
        "config": {"mediaType": "a", "digest": manifest().to_string()},
        "subject": {"digest": manifest().to_string()},
        "layers": [{"mediaType": BUNDLE, "digest": manifest().to_string(), "size": 1}],
    });
    let changes = prop::collection::vec((any::<usize>(), any::<u8>(), any::<u8>()), 1..8);
    proptest!(|(changes in changes)| {
        let payload = changed(own.clone(), &changes);
        let is_same = payload == own;
        let signed = Signed::Simple { payload, signature: signature.clone() };
        prop_assert_eq!(judged(signed, &key).is_valid(), is_same);
        // The material beside what is signed may be changed.
        for document in [&statement, &message] {
            let bytes = changed(document.clone().into_bytes(), &changes);
            judged(Signed::Bundle(bytes), &key);
        }
        let bytes = changed(signature.clone().into_bytes(), &changes);
        if let Ok(signature) = String::from_utf8(bytes) {
            judged(Signed::Simple { payload: own.clone(), signature }, &key);
        }
        let _ = artifact::referrers(&changed(index.to_string().into_bytes(), &changes));
        let _ = artifact::artifact(&changed(artifact.to_string().into_bytes(), &changes));
    });
    proptest!(|(bytes in prop::collection::vec(any::<u8>(), 0..512))| {
        let _ = document::payload(&bytes);
        let _ = document::bundle(&bytes);
        let _ = artifact::referrers(&bytes);
        let _ = artifact::artifact(&bytes);
        let _ = artifact::lists(&bytes, &manifest());
        let _ = Key::new(
            &KeyOptions {
                name: "a".to_owned(),
                file: "/a".into(),
                repositories: Vec::new(),
                not_after: None,
                revoked: false,
                check_reference: false,
            },
            &[b"-----BEGIN PUBLIC KEY-----\n".as_slice(), &bytes].concat(),
        );
    });
}
