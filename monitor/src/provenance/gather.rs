//! Finds what may be signatures of an image where artifacts lie in the form of OCI: by the tags of cosign
//! (`sha256-HEX.sig`), and among what refers to the image.

use std::future::Future;

use super::{
    artifact::{self, Layer, Referrer},
    document::{self, Bundle, SIGN_PREDICATE, SIGNED_BYTES_MAX, is_bundle},
    judge::Signed,
    signature::{Attestation, Signature, Target},
};
use crate::digest::Digest;

/// Signatures of one image that are taken from a source; further ones are not, which is logged once.
const SIGNATURES_MAX: usize = 32;
/// Attestations of one image that are listed from a source; likewise.
const ATTESTATIONS_MAX: usize = 64;

const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// The type of artifacts with signatures, as cosign writes them among referrers.
const COSIGN_ARTIFACT: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
/// Tags that cosign gives to signatures, attestations and SBOMs of an image end so.
const TAGS: [&str; 3] = ["sig", "att", "sbom"];

/// A document is not given.
#[derive(Debug)]
pub(super) enum GetError {
    /// The source has other bytes than its digest names.
    Tampered(Digest),
    /// The source does not answer, and why.
    Down(String),
}

/// Where artifacts lie in the form of OCI. What is asked for by its digest is checked by that; `None` is
/// what is not there.
pub(super) trait Store: Sync {
    /// A manifest or an index.
    fn manifest(
        &self,
        digest: &Digest,
    ) -> impl Future<Output = Result<Option<Vec<u8>>, GetError>> + Send;

    /// A blob of at most [`SIGNED_BYTES_MAX`] bytes.
    fn blob(
        &self,
        digest: &Digest,
    ) -> impl Future<Output = Result<Option<Vec<u8>>, GetError>> + Send;

    /// What a tag of the image's repository points to.
    fn tagged(&self, tag: &str) -> impl Future<Output = Result<Option<Vec<u8>>, GetError>> + Send;

    /// What refers to an image; a list that cannot be read is empty.
    fn referrers(
        &self,
        digest: &Digest,
    ) -> impl Future<Output = Result<Vec<Referrer>, GetError>> + Send;
}

/// What a source has of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Gathered {
    pub(super) signed: Vec<Signed>,
    pub(super) attestations: Vec<Attestation>,
    /// There are more than were taken.
    pub(super) is_cut: bool,
}

impl Gathered {
    /// Bytes of its documents.
    pub(super) fn bytes(&self) -> usize {
        self.signed.iter().map(Signed::len).sum()
    }

    /// Takes in what else there is.
    pub(super) fn append(&mut self, other: Self) {
        for signed in other.signed {
            self.sign(signed);
        }
        for attestation in other.attestations {
            self.attest(attestation);
        }
        self.is_cut |= other.is_cut;
    }

    pub(super) fn sign(&mut self, signed: Signed) {
        if self.has_room() {
            self.signed.push(signed);
        }
    }

    fn refuse(&mut self, why: Signature) {
        self.sign(Signed::Refused(why));
    }

    fn attest(&mut self, attestation: Attestation) {
        if self.attestations.len() < ATTESTATIONS_MAX {
            self.attestations.push(attestation);
        } else {
            self.is_cut = true;
        }
    }

    /// Whether one more signature is taken.
    fn has_room(&mut self) -> bool {
        let has_room = self.signed.len() < SIGNATURES_MAX;
        self.is_cut |= !has_room;
        has_room
    }

    /// Takes in a bundle that is named by `digest`.
    pub(super) fn bundle(&mut self, digest: Digest, target: Target, bytes: Vec<u8>) {
        match document::bundle(&bytes) {
            Ok(Bundle::Attestation { predicate_type }) => self.attest(Attestation {
                digest,
                kind: predicate_type,
                target,
            }),
            // Why it cannot be read is said by who judges it.
            _ => self.sign(Signed::Bundle(bytes)),
        }
    }
}

/// What `store` has of an image by these digests.
///
/// # Errors
///
/// It does not answer, and why.
pub(super) async fn gather(
    store: &impl Store,
    images: &[(Target, Digest)],
) -> Result<Gathered, String> {
    let mut gathered = Gathered::default();
    for (target, digest) in images {
        let mut walk = Walk {
            store,
            target: *target,
            gathered: &mut gathered,
        };
        for ending in TAGS {
            let tag = format!("sha256-{}.{ending}", digest.0);
            let tagged = store.tagged(&tag).await;
            walk.manifest(tagged).await?;
        }
        let referrers = match store.referrers(digest).await {
            Ok(referrers) => referrers,
            Err(error) => {
                walk.failed(error)?;
                Vec::new()
            }
        };
        for referrer in referrers {
            walk.referrer(referrer).await?;
        }
    }
    Ok(gathered)
}

struct Walk<'a, S> {
    store: &'a S,
    target: Target,
    gathered: &'a mut Gathered,
}

impl<S: Store> Walk<'_, S> {
    async fn referrer(&mut self, referrer: Referrer) -> Result<(), String> {
        let predicate_type = referrer.predicate_type.as_deref();
        let is_signature = is_bundle(&referrer.kind) || referrer.kind == COSIGN_ARTIFACT;
        // Of what kind some registries do not tell.
        let may_sign = is_signature || referrer.kind.is_empty();
        if may_sign && predicate_type.is_none_or(|it| it == SIGN_PREDICATE) {
            let manifest = self.store.manifest(&referrer.digest).await;
            return self.manifest(manifest).await;
        }
        self.gathered.attest(Attestation {
            digest: referrer.digest,
            kind: referrer.predicate_type.unwrap_or(referrer.kind),
            target: self.target,
        });
        Ok(())
    }

    async fn manifest(
        &mut self,
        manifest: Result<Option<Vec<u8>>, GetError>,
    ) -> Result<(), String> {
        let bytes = match manifest {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(()),
            Err(error) => return self.failed(error),
        };
        match artifact::artifact(&bytes) {
            Ok(artifact) => {
                for layer in artifact.layers {
                    self.layer(layer).await?;
                }
            }
            Err(what) => self.gathered.refuse(Signature::unusable(what)),
        }
        Ok(())
    }

    async fn layer(&mut self, layer: Layer) -> Result<(), String> {
        let is_simple = layer.media_type == SIMPLE_SIGNING;
        let predicate_type = layer.predicate_type.as_deref();
        let may_sign = is_simple
            || is_bundle(&layer.media_type) && predicate_type.is_none_or(|it| it == SIGN_PREDICATE);
        if !may_sign {
            self.gathered.attest(Attestation {
                digest: layer.digest,
                kind: layer.predicate_type.unwrap_or(layer.media_type),
                target: self.target,
            });
            return Ok(());
        }
        // What would not be taken is not fetched.
        if !self.gathered.has_room() {
            return Ok(());
        }
        if layer.size > SIGNED_BYTES_MAX as u64 {
            let what = format!(
                "it has {} bytes; at most {SIGNED_BYTES_MAX} are read",
                layer.size
            );
            self.gathered.refuse(Signature::unusable(what));
            return Ok(());
        }
        let bytes = match self.store.blob(&layer.digest).await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => {
                let what = format!("its document {} is not there", layer.digest);
                self.gathered.refuse(Signature::unusable(what));
                return Ok(());
            }
            Err(error) => return self.failed(error),
        };
        if !is_simple {
            self.gathered.bundle(layer.digest, self.target, bytes);
            return Ok(());
        }
        match layer.signature {
            Some(signature) => self.gathered.sign(Signed::Simple {
                payload: bytes,
                signature,
            }),
            None => self
                .gathered
                .refuse(Signature::unusable("it has a payload and no signature")),
        }
        Ok(())
    }

    fn failed(&mut self, error: GetError) -> Result<(), String> {
        match error {
            GetError::Tampered(digest) => {
                self.gathered.refuse(Signature::Tampered { digest });
                Ok(())
            }
            GetError::Down(reason) => Err(reason),
        }
    }
}
