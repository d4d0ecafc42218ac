//! What an approved digest stands for, by the documents that its registry has.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;

use super::{plan::Known, record::Expected};
use crate::{
    digest::Digest,
    image::{
        blobs::{Origin, Part, read_document},
        manifest::{self, Document},
    },
    registry::{Registry, Repository},
};

/// How long the documents of an image are waited for.
const DOCUMENTS_TIME_MAX: Duration = Duration::from_secs(8);
/// Platforms of an index; a larger one is refused.
pub const PLATFORMS_MAX: usize = 64;

/// What `digest` of `repository` stands for.
pub async fn known(registry: Option<&Registry>, repository: &str, digest: &Digest) -> Known {
    let Some(registry) = registry else {
        return Known::Unasked;
    };
    let origin = match Repository::of(&format!("{repository}@{digest}")) {
        Ok(repository) => registry.origin(repository),
        Err(error) => return Known::Unusable(error.to_string()),
    };
    match timeout(DOCUMENTS_TIME_MAX, read(&origin, digest)).await {
        Ok(Ok(expected)) => Known::Read(expected),
        Ok(Err(reason)) => Known::Unusable(reason),
        Err(_) => Known::Unusable(format!(
            "its documents did not come within {} s",
            DOCUMENTS_TIME_MAX.as_secs()
        )),
    }
}

async fn read(origin: &Arc<dyn Origin>, digest: &Digest) -> Result<Expected, String> {
    let mut expected = Expected {
        manifests: [*digest].into(),
        ..Expected::default()
    };
    match document(origin, digest).await? {
        Document::Manifest(manifest) => {
            let chain_id = chain_id(origin, &manifest.config.digest).await?;
            expected.chain_ids.insert(chain_id);
        }
        Document::Index(manifests) => {
            if manifests.len() > PLATFORMS_MAX {
                return Err(format!("its index has more than {PLATFORMS_MAX} entries"));
            }
            for below in manifests.iter().filter(|it| it.platform.is_some()) {
                let Document::Manifest(manifest) = document(origin, &below.digest).await? else {
                    return Err(format!("index {digest} leads to another index"));
                };
                // What has no layers to unpack, such as an attestation, never runs.
                if let Ok(chain_id) = chain_id(origin, &manifest.config.digest).await {
                    expected.manifests.insert(below.digest);
                    expected.chain_ids.insert(chain_id);
                }
            }
        }
    }
    if expected.chain_ids.is_empty() {
        return Err("nothing of it can run".to_owned());
    }
    Ok(expected)
}

async fn document(origin: &Arc<dyn Origin>, digest: &Digest) -> Result<Document, String> {
    let bytes = read_document(origin.open(Part::Manifest, digest), digest).await;
    let bytes = bytes.map_err(|error| format!("{digest}: {error}"))?;
    manifest::parse(&bytes).map_err(|error| format!("{digest}: {error}"))
}

async fn chain_id(origin: &Arc<dyn Origin>, digest: &Digest) -> Result<Digest, String> {
    let bytes = read_document(origin.open(Part::Config, digest), digest).await;
    let bytes = bytes.map_err(|error| format!("{digest}: {error}"))?;
    let config = manifest::parse_config(&bytes).map_err(|error| format!("{digest}: {error}"))?;
    manifest::chain_id(&config.diff_ids).ok_or_else(|| format!("{digest} has no layers"))
}
