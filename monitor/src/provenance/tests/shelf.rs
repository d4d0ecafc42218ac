//! What a registry has of one repository, by path below it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use super::*;
use crate::registry::fake::{Answer, Fake, headed, text};

pub(super) const SIMPLE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";

#[derive(Clone, Default)]
pub(super) struct Shelf {
    paths: Arc<Mutex<BTreeMap<String, String>>>,
    is_down: Arc<Mutex<bool>>,
}

/// A layer of an artifact.
pub(super) fn layer(media_type: &str, bytes: &str, annotations: Value) -> Value {
    json!({
        "mediaType": media_type,
        "digest": digest_of(bytes.as_bytes()).to_string(),
        "size": bytes.len(),
        "annotations": annotations,
    })
}

impl Shelf {
    pub(super) async fn serve(&self) -> Fake {
        let shelf = self.clone();
        Fake::start(move |head, _| shelf.answer(head)).await
    }

    fn answer(&self, head: &str) -> Answer {
        if *self.is_down.lock().unwrap() {
            return headed("503 Busy", "X: y");
        }
        let path = head.split(' ').nth(1).unwrap();
        let path = path.strip_prefix("/v2/shop/web/").unwrap();
        match self.paths.lock().unwrap().get(path) {
            Some(body) => text(format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )),
            None => headed("404 Not Found", "X: y"),
        }
    }

    pub(super) fn down(&self, is_down: bool) {
        *self.is_down.lock().unwrap() = is_down;
    }

    pub(super) fn put(&self, path: impl Into<String>, body: impl Into<String>) {
        self.paths.lock().unwrap().insert(path.into(), body.into());
    }

    pub(super) fn blob(&self, bytes: &str) {
        let digest = digest_of(bytes.as_bytes());
        self.put(format!("blobs/{digest}"), bytes);
    }

    pub(super) fn clear(&self) {
        self.paths.lock().unwrap().clear();
    }

    /// Signatures, as cosign tags them for `digest`.
    pub(super) fn tagged(&self, digest: &Digest, ending: &str, layers: &[Value]) {
        let manifest = json!({
            "schemaVersion": 2,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest_of(b"{}").to_string(), "size": 2},
            "layers": layers,
        });
        let tag = format!("manifests/sha256-{}{ending}", digest.0);
        self.put(tag, manifest.to_string());
    }

    /// A signature by a tag.
    pub(super) fn simple(&self, by: &Signer, digest: &Digest) {
        let payload = String::from_utf8(payload(digest, REPOSITORY)).unwrap();
        let signature = by.sign(payload.as_bytes());
        self.blob(&payload);
        let annotations = json!({"dev.cosignproject.cosign/signature": signature});
        let layer = layer(SIMPLE, &payload, annotations);
        self.tagged(digest, ".sig", &[layer]);
    }

    /// An artifact of a bundle, and how an index of referrers lists it.
    pub(super) fn artifact(&self, digest: &Digest, bundle: &Value) -> Value {
        let bundle = bundle.to_string();
        self.blob(&bundle);
        let manifest = json!({
            "schemaVersion": 2,
            "artifactType": BUNDLE,
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest_of(b"{}").to_string(), "size": 2},
            "layers": [layer(BUNDLE, &bundle, json!({}))],
            "subject": {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest.to_string(), "size": 1},
        });
        let manifest = manifest.to_string();
        let own = digest_of(manifest.as_bytes());
        self.put(format!("manifests/{own}"), manifest);
        json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": own.to_string(), "size": 1, "artifactType": BUNDLE})
    }

    /// What refers to `digest`, by the API or by the tag that stands for it.
    pub(super) fn referrers(&self, digest: &Digest, by_api: bool, manifests: &[Value]) {
        let index = json!({"schemaVersion": 2, "manifests": manifests}).to_string();
        if by_api {
            self.put(format!("referrers/{digest}"), index);
        } else {
            self.put(format!("manifests/sha256-{}", digest.0), index);
        }
    }
}
