mod cases;
mod service;
mod shelf;
mod sources;
mod strangers;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::{Value, json};
use sigstore::crypto::{SigStoreSigner, SigningScheme};

use super::{
    document::{SIGN_PREDICATE, pre_authentication_encoding},
    judge::{Asked, Candidate, Signed},
    keys::{Key, KeyOptions, Keys},
    signature::{Signature, Target},
};
use crate::{digest::Digest, image::manifest::digest_of};

const REPOSITORY: &str = "registry.example/shop/web";
const MANIFEST: &[u8] = br#"{"layers": []}"#;
const NOW: &str = "2026-11-27T00:00:00Z";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const SLSA: &str = "https://slsa.dev/provenance/v1";

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

fn manifest() -> Digest {
    digest_of(MANIFEST)
}

/// Who signs.
struct Signer(SigStoreSigner);

impl Signer {
    fn new() -> Self {
        Self::by(SigningScheme::ECDSA_P256_SHA256_ASN1)
    }

    fn by(scheme: SigningScheme) -> Self {
        Self(scheme.create_signer().unwrap())
    }

    fn pem(&self) -> String {
        let keys = self.0.to_sigstore_keypair().unwrap();
        keys.public_key_to_pem().unwrap()
    }

    fn sign(&self, message: &[u8]) -> String {
        STANDARD.encode(self.0.sign(message).unwrap())
    }

    /// The public key, which counts for all repositories if it is not made to be another.
    fn key(&self, name: &str, edit: impl FnOnce(&mut KeyOptions)) -> Key {
        key(name, &self.pem(), edit)
    }

    fn simple(&self, payload: &[u8]) -> Signed {
        Signed::Simple {
            payload: payload.to_vec(),
            signature: self.sign(payload),
        }
    }

    /// A bundle with a statement.
    fn statement(&self, statement: &Value) -> Value {
        let payload = statement.to_string();
        let signed = pre_authentication_encoding(payload.as_bytes());
        json!({
            "mediaType": BUNDLE,
            "verificationMaterial": {"publicKey": {"hint": "x"}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": STANDARD.encode(payload),
                "payloadType": "application/vnd.in-toto+json",
                "signatures": [{"sig": self.sign(&signed), "keyid": ""}],
            },
        })
    }

    /// A bundle with the signature of some bytes.
    fn message(&self, message: &[u8]) -> Value {
        let digest = digest_of(message);
        json!({
            "mediaType": BUNDLE,
            "verificationMaterial": {"publicKey": {"hint": "x"}},
            "messageSignature": {
                "messageDigest": {"algorithm": "SHA2_256", "digest": STANDARD.encode(digest.0.0)},
                "signature": self.sign(message),
            },
        })
    }
}

fn key(name: &str, pem: &str, edit: impl FnOnce(&mut KeyOptions)) -> Key {
    let mut options = KeyOptions {
        name: name.to_owned(),
        file: "/nowhere".into(),
        repositories: vec!["*".to_owned()],
        not_after: None,
        revoked: false,
        check_reference: false,
    };
    edit(&mut options);
    Key::new(&options, pem.as_bytes()).unwrap()
}

fn payload(digest: &Digest, reference: &str) -> Vec<u8> {
    let payload = json!({
        "critical": {
            "identity": {"docker-reference": reference},
            "image": {"docker-manifest-digest": digest.to_string()},
            "type": "cosign container image signature",
        },
        "optional": null,
    });
    payload.to_string().into_bytes()
}

/// What cosign signs of an image since its version 3.
fn statement(digest: &Digest) -> Value {
    json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"digest": {"sha256": digest.0.to_string()}, "annotations": {}}],
        "predicateType": SIGN_PREDICATE,
        "predicate": {},
    })
}

fn bundle(bundle: &Value) -> Signed {
    Signed::Bundle(bundle.to_string().into_bytes())
}

/// Changes one value in a document.
fn with(mut document: Value, pointer: &str, value: impl Into<Value>) -> Value {
    *document.pointer_mut(pointer).unwrap() = value.into();
    document
}
