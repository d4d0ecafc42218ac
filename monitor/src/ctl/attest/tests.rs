#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::io::Write as _;

use monitor_api::v1::{
    alert,
    verify_container_response::{Begun, Executable, Executed, Verified},
};
use ring::signature::{ED25519, UnparsedPublicKey};

use super::*;

/// The example of RFC 8410, as OpenSSL writes keys, and the bytes of its public key.
const PRIVATE: &str = "\
-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC
-----END PRIVATE KEY-----
";
const PUBLIC: &str = "Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=";

fn key_of(text: &str) -> Result<Key, Failure> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    Key::read(file.path())
}

fn outcome(manifest: &str) -> Outcome {
    Outcome {
        node: "node-7".to_owned(),
        time: "2026-11-22T03:20:14Z".parse().unwrap(),
        compared: Compared {
            begun: Box::new(Begun {
                image: Some(alert::Image {
                    reference: "docker.io/library/web:1".to_owned(),
                    identity: "proven".to_owned(),
                    evidence: "verified".to_owned(),
                    manifest_digest: manifest.to_owned(),
                    ..alert::Image::default()
                }),
                ..Begun::default()
            }),
            executed: Executed {
                executables: vec![Executable {
                    path: b"/bin/web".to_vec(),
                    sha256: "ab".repeat(32),
                    verdict: "image".to_owned(),
                    count: 2,
                }],
                left_out: 1,
                since: None,
            },
            verified: Verified {
                paths: 3,
                ..Verified::default()
            },
        },
        differences: vec![json!({"path": "/tmp/x", "verdict": "added"})],
        left_out: 0,
    }
}

#[test]
fn an_envelope_is_what_its_key_signed() {
    let statement = outcome("sha256:aa").statement().unwrap();
    let payload = json::line(&statement);
    let envelope = key_of(PRIVATE).unwrap().envelope(payload.as_bytes());
    let decoded = |pointer: &str| {
        let text = envelope.pointer(pointer).and_then(Value::as_str).unwrap();
        STANDARD.decode(text).unwrap()
    };
    let payload = decoded("/payload");
    let signature = decoded("/signatures/0/sig");
    let public = UnparsedPublicKey::new(&ED25519, STANDARD.decode(PUBLIC).unwrap());
    let expect = [
        b"DSSEv1 28 application/vnd.in-toto+json ",
        payload.len().to_string().as_bytes(),
        b" ",
        &payload,
    ]
    .concat();
    assert!(public.verify(&expect, &signature).is_ok());
    assert!(public.verify(&payload, &signature).is_err());

    let statement: Value = serde_json::from_slice(&payload).unwrap();
    assert_eq!(statement["_type"], "https://in-toto.io/Statement/v1");
    assert_eq!(statement["subject"][0]["digest"]["sha256"], "aa");
    let predicate = &statement["predicate"];
    assert_eq!(predicate["node"], "node-7");
    assert_eq!(predicate["time"], "2026-11-22T03:20:14Z");
    assert_eq!(predicate["comparison"]["image"]["identity"], "proven");
    assert_eq!(predicate["comparison"]["image"]["evidence"], "verified");
    assert_eq!(predicate["comparison"]["paths"], 3);
    assert_eq!(predicate["differences"][0]["path"], "/tmp/x");
    let executed = &predicate["executed"];
    assert_eq!(executed["executables"][0]["path"], "/bin/web");
    assert_eq!(executed["executables"][0]["verdict"], "image");
    assert_eq!(executed["left_out"], 1);
}

#[test]
fn what_cannot_be_attested_is_refused() {
    let refused = outcome("").statement().unwrap_err();
    assert_eq!(refused.exit_status(), 4);
    for text in ["", "no key", &PRIVATE.replace("PRIVATE KEY", "CERTIFICATE")] {
        let Err(error) = key_of(text) else {
            unreachable!("{text:?} is a key")
        };
        assert_eq!(error.exit_status(), 2);
        assert!(error.to_string().contains("openssl genpkey"), "{error}");
    }
}
