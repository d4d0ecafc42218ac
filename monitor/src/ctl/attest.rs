//! `monitorctl container attest`: what a container is, what it differs in from its image, and what
//! ran in it, as an in-toto statement in a signed DSSE envelope.

use std::{fs, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use monitor_api::json;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject as _};
use serde_json::{Value, json};

use super::{
    Client, Failure, Output, status_of,
    verify::{self, Compared},
};
use crate::digest::Sha256;

/// Differences that a statement names; of more it tells how many are left out.
const DIFFERENCES_MAX: usize = 10_000;
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
const PREDICATE_TYPE: &str = "urn:monitord:container-attestation:1";

/// Compares a container with its image and prints what came of it, signed.
pub(super) async fn run(
    client: &mut Client,
    container: String,
    key: &Path,
    output: &mut Output<'_>,
) -> Result<(), Failure> {
    // Before everything that takes long.
    let key = Key::read(key)?;
    let node = status_of(client).await?.node;
    let mut differences = Vec::new();
    let mut left_out: u64 = 0;
    let compared = verify::compare(client, container, |difference| {
        if differences.len() < DIFFERENCES_MAX {
            differences.push(json::difference(difference));
        } else {
            left_out += 1;
        }
        Ok(())
    })
    .await?;
    let outcome = Outcome {
        node,
        time: Timestamp::now(),
        compared,
        differences,
        left_out,
    };
    let statement = outcome.statement()?;
    Ok(output.json(&key.envelope(json::line(&statement).as_bytes()))?)
}

/// What is attested.
struct Outcome {
    node: String,
    time: Timestamp,
    compared: Compared,
    differences: Vec<Value>,
    left_out: u64,
}

impl Outcome {
    fn statement(self) -> Result<Value, Failure> {
        let Compared {
            begun,
            executed,
            verified,
        } = self.compared;
        let image = begun.image.clone().unwrap_or_default();
        let digest = image.manifest_digest.strip_prefix("sha256:");
        let digest = digest.ok_or_else(|| {
            Failure::Refused(format!(
                "no one image accounts for the container (its identity is {}), so that nothing can be attested of it; `monitorctl container verify` compares it all the same",
                image.identity
            ))
        })?;
        let name = if image.reference.is_empty() {
            &image.manifest_digest
        } else {
            &image.reference
        };
        Ok(json!({
            "_type": STATEMENT_TYPE,
            "subject": [{"name": name, "digest": {"sha256": digest}}],
            "predicateType": PREDICATE_TYPE,
            "predicate": {
                "node": self.node,
                "time": self.time.to_string(),
                "comparison": json::verified(&begun, &verified).get("verified"),
                "differences": self.differences,
                "differences_left_out": self.left_out,
                "executed": json::executed(&executed),
            },
        }))
    }
}

/// An Ed25519 key that signs.
struct Key(Ed25519KeyPair);

impl Key {
    fn read(path: &Path) -> Result<Self, Failure> {
        let unusable = |reason: &dyn std::fmt::Display| {
            Failure::Usage(format!(
                "signing key {}: {reason}; make one by `openssl genpkey -algorithm ed25519`",
                path.display()
            ))
        };
        let text = fs::read(path).map_err(|error| unusable(&error))?;
        let der = PrivatePkcs8KeyDer::from_pem_slice(&text).map_err(|error| unusable(&error))?;
        // OpenSSL writes the first version of PKCS #8, which holds no public key to compare with.
        Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der())
            .map(Self)
            .map_err(|error| unusable(&format!("is no Ed25519 key in PKCS #8 ({error})")))
    }

    /// The id is the SHA-256 of the public key's 32 bytes.
    fn envelope(&self, payload: &[u8]) -> Value {
        let signature = self.0.sign(&signed(payload));
        json!({
            "payloadType": PAYLOAD_TYPE,
            "payload": STANDARD.encode(payload),
            "signatures": [{
                "keyid": Sha256::of(self.0.public_key().as_ref()).to_string(),
                "sig": STANDARD.encode(signature),
            }],
        })
    }
}

/// What a signature of DSSE is over: type and payload with their lengths.
fn signed(payload: &[u8]) -> Vec<u8> {
    let head = format!(
        "DSSEv1 {} {PAYLOAD_TYPE} {} ",
        PAYLOAD_TYPE.len(),
        payload.len()
    );
    [head.as_bytes(), payload].concat()
}

#[cfg(test)]
mod tests;
