//! What is signed, as cosign writes it: payloads of simple signing, Sigstore bundles and the in-toto
//! statements in them. Every field that is not needed is ignored, as the formats allow; nothing that is
//! read here is believed before its signature is.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;

use crate::digest::{Digest, Sha256};

/// Bytes of a payload or a bundle; of a longer one nothing is read. Those of cosign have some 10 KiB.
pub const SIGNED_BYTES_MAX: usize = 128 << 10;
/// Bytes of a signature; one by an RSA key of 8192 bits has 1024.
const SIGNATURE_BYTES_MAX: usize = 2048;
/// Subjects of a statement; one with more is refused.
const SUBJECTS_MAX: usize = 64;

/// What a payload of simple signing says that it is: as cosign wrote it before and since its version 3.
const CRITICAL_TYPES: [&str; 2] = ["cosign container image signature", SIGN_PREDICATE];
/// The type of statements with which cosign signs images. A statement of another type, say that an image
/// is full of holes, is no signature of the image, whoever made it.
pub(super) const SIGN_PREDICATE: &str = "https://sigstore.dev/cosign/sign/v1";
const STATEMENT_TYPES: [&str; 2] = [
    "https://in-toto.io/Statement/v1",
    "https://in-toto.io/Statement/v0.1",
];
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
/// Media types of bundles, by the versions of their format.
const BUNDLES: [&str; 4] = [
    "application/vnd.dev.sigstore.bundle.v0.3+json",
    "application/vnd.dev.sigstore.bundle+json;version=0.3",
    "application/vnd.dev.sigstore.bundle+json;version=0.2",
    "application/vnd.dev.sigstore.bundle+json;version=0.1",
];

/// Whether a media type or artifact type is a bundle's of a known version.
pub(super) fn is_bundle(media_type: &str) -> bool {
    BUNDLES.contains(&media_type)
}

/// What a signature is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    /// The digests that were signed, never none.
    pub(super) digests: Vec<Digest>,
    /// The image's name as it was signed.
    pub(super) reference: Option<String>,
}

/// A bundle, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Bundle {
    /// A statement in an envelope.
    Statement {
        /// The bytes that were signed.
        signed: Vec<u8>,
        signature: Vec<u8>,
        claim: Claim,
    },
    /// A statement that is about the image and does not sign it.
    Attestation { predicate_type: String },
    /// The signature of some bytes, which it does not hold.
    Message { digest: Digest, signature: Vec<u8> },
}

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    #[serde(default)]
    identity: Identity,
    image: Image,
    r#type: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Identity {
    docker_reference: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Image {
    docker_manifest_digest: String,
}

/// Reads a payload of simple signing.
pub(super) fn payload(bytes: &[u8]) -> Result<Claim, String> {
    let Payload { critical } = json(bytes, "payload")?;
    if !CRITICAL_TYPES.contains(&critical.r#type.as_str()) {
        return Err(format!(
            "the payload is of type {:?}, not {:?}",
            shortened(&critical.r#type),
            CRITICAL_TYPES[0]
        ));
    }
    let digest = &critical.image.docker_manifest_digest;
    let digest = digest
        .parse()
        .map_err(|error| format!("the payload names no image: {error}"))?;
    let reference = critical.identity.docker_reference;
    Ok(Claim {
        digests: vec![digest],
        reference: reference.filter(|text| !text.is_empty()),
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawBundle {
    media_type: String,
    message_signature: Option<RawMessage>,
    dsse_envelope: Option<Envelope>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawMessage {
    message_digest: MessageDigest,
    signature: String,
}

#[derive(Deserialize)]
struct MessageDigest {
    algorithm: String,
    digest: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<EnvelopeSignature>,
}

#[derive(Deserialize)]
struct EnvelopeSignature {
    sig: String,
}

/// Reads a bundle. What it says of its key or certificate is not looked at: every configured key is
/// tried.
pub(super) fn bundle(bytes: &[u8]) -> Result<Bundle, String> {
    let raw: RawBundle = json(bytes, "bundle")?;
    if !is_bundle(&raw.media_type) {
        let found = shortened(&raw.media_type);
        return Err(format!("the media type {found:?} is no known bundle's"));
    }
    match (raw.message_signature, raw.dsse_envelope) {
        (Some(message), None) => of_message(&message),
        (None, Some(envelope)) => of_envelope(&envelope),
        (Some(_), Some(_)) => Err("the bundle has both a message and an envelope".to_owned()),
        (None, None) => Err("the bundle has neither a message nor an envelope".to_owned()),
    }
}

fn of_message(message: &RawMessage) -> Result<Bundle, String> {
    let MessageDigest { algorithm, digest } = &message.message_digest;
    if algorithm != "SHA2_256" {
        let found = shortened(algorithm);
        return Err(format!(
            "the bundle's digest is by {found:?}, not by SHA2_256"
        ));
    }
    let digest = decoded(digest, "digest", 32)?;
    let digest = digest
        .try_into()
        .map_err(|_| "the bundle's digest does not have 32 bytes".to_owned())?;
    Ok(Bundle::Message {
        digest: Digest(Sha256(digest)),
        signature: signature(&message.signature)?,
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    #[serde(rename = "_type")]
    r#type: String,
    predicate_type: String,
    subject: Vec<Subject>,
}

#[derive(Deserialize)]
struct Subject {
    name: Option<String>,
    #[serde(default)]
    digest: BTreeMap<String, String>,
}

fn of_envelope(envelope: &Envelope) -> Result<Bundle, String> {
    if envelope.payload_type != PAYLOAD_TYPE {
        let found = shortened(&envelope.payload_type);
        return Err(format!(
            "the envelope's payload is {found:?}, not {PAYLOAD_TYPE}"
        ));
    }
    let payload = decoded(&envelope.payload, "payload", SIGNED_BYTES_MAX)?;
    let statement: Statement = json(&payload, "statement")?;
    if !STATEMENT_TYPES.contains(&statement.r#type.as_str()) {
        let found = shortened(&statement.r#type);
        return Err(format!("the statement is of the unknown type {found:?}"));
    }
    if statement.predicate_type != SIGN_PREDICATE {
        return Ok(Bundle::Attestation {
            predicate_type: shortened(&statement.predicate_type),
        });
    }
    // The format has a list, and allows one.
    let [by] = envelope.signatures.as_slice() else {
        let count = envelope.signatures.len();
        return Err(format!(
            "the envelope has {count} signatures instead of one"
        ));
    };
    let seen = statement.subject.len();
    if seen > SUBJECTS_MAX {
        return Err(format!(
            "the statement is about {seen} subjects; at most {SUBJECTS_MAX} are read"
        ));
    }
    let subjects = statement.subject.iter();
    let digests = subjects.filter_map(|subject| subject.digest.get("sha256"));
    let digests = digests.filter_map(|hex| format!("sha256:{hex}").parse().ok());
    let digests: Vec<_> = digests.collect();
    if digests.is_empty() {
        return Err("the statement is about nothing with a SHA-256".to_owned());
    }
    // Several names are none.
    let reference = match statement.subject.as_slice() {
        [subject] => subject.name.clone().filter(|name| !name.is_empty()),
        _ => None,
    };
    Ok(Bundle::Statement {
        signed: pre_authentication_encoding(&payload),
        signature: signature(&by.sig)?,
        claim: Claim { digests, reference },
    })
}

/// What is signed of an envelope (DSSE specification, "PAE").
pub(super) fn pre_authentication_encoding(payload: &[u8]) -> Vec<u8> {
    let head = format!(
        "DSSEv1 {} {PAYLOAD_TYPE} {} ",
        PAYLOAD_TYPE.len(),
        payload.len()
    );
    [head.as_bytes(), payload].concat()
}

/// The bytes of a signature in base64.
pub(super) fn signature(text: &str) -> Result<Vec<u8>, String> {
    // Files end in a line feed.
    decoded(text.trim_ascii(), "signature", SIGNATURE_BYTES_MAX)
}

fn decoded(text: &str, what: &str, bytes_max: usize) -> Result<Vec<u8>, String> {
    // Four digits are three bytes.
    if text.len() / 4 * 3 > bytes_max + 3 {
        return Err(format!("the {what} has more than {bytes_max} bytes"));
    }
    let bytes = STANDARD.decode(text);
    bytes.map_err(|error| format!("the {what} is not base64: {error}"))
}

fn json<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: &str) -> Result<T, String> {
    if bytes.len() > SIGNED_BYTES_MAX {
        let seen = bytes.len();
        return Err(format!(
            "the {what} has {seen} bytes; at most {SIGNED_BYTES_MAX} are read"
        ));
    }
    serde_json::from_slice(bytes).map_err(|error| {
        // The message may quote the document.
        format!(
            "the {what} is not of its form: {}",
            shortened(&error.to_string())
        )
    })
}

/// What a stranger wrote, as much of it as is shown.
pub(super) fn shortened(text: &str) -> String {
    text.chars().take(200).collect()
}
