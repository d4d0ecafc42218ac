//! Signatures, and the verdict on each.

use super::*;

/// An image that was found by an index, all documents at hand.
struct Image {
    repository: &'static str,
    candidates: Vec<Candidate>,
}

impl Image {
    fn new() -> Self {
        Self {
            repository: REPOSITORY,
            candidates: vec![Candidate {
                target: Target::Manifest,
                digest: manifest(),
                bytes: Some(MANIFEST.to_vec()),
            }],
        }
    }

    fn of(repository: &'static str, digest: &str) -> Self {
        let mut image = Self::new();
        image.repository = repository;
        image.candidates[0].digest = digest.parse().unwrap();
        image
    }

    fn with_index(mut self, digest: Digest) -> Self {
        self.candidates.push(Candidate {
            target: Target::Index,
            digest,
            bytes: None,
        });
        self
    }

    fn judge(&self, signed: &[Signed], keys: &[Key]) -> Signature {
        let asked = Asked {
            repository: self.repository,
            candidates: &self.candidates,
            now: now(),
        };
        asked.judge(signed.iter(), &Keys::from(keys.to_vec()))
    }

    /// The word for the verdict, and what it says.
    fn check(&self, signed: &[Signed], keys: &[Key], expect: (&str, &str)) {
        let found = self.judge(signed, keys);
        let said = found.to_string();
        assert_eq!(found.name(), expect.0, "{said}");
        assert!(said.contains(expect.1), "{said} instead of {}", expect.1);
    }
}

const VALID: (&str, &str) = ("valid", "manifest is signed by the key \"a\"");

#[test]
fn a_payload_counts_if_a_key_signed_it_for_this_image() {
    let image = Image::new();
    let (a, b) = (Signer::new(), Signer::new());
    let own = payload(&manifest(), REPOSITORY);
    let keys = [a.key("a", |_| {})];
    let check = |signed: Signed, expect: (&str, &str)| image.check(&[signed], &keys, expect);

    check(a.simple(&own), VALID);
    image.check(&[], &keys, ("missing", "no signature"));
    image.check(&[a.simple(&own)], &[], ("wrong_key", "no configured key"));
    check(b.simple(&own), ("wrong_key", "no configured key"));
    let other = digest_of(b"other");
    check(
        a.simple(&payload(&other, REPOSITORY)),
        ("wrong_digest", &other.to_string()),
    );
    // Changed after it was signed.
    let signature = a.sign(&payload(&other, REPOSITORY));
    let tampered = |payload: &[u8], signature: &str| Signed::Simple {
        payload: payload.to_vec(),
        signature: signature.to_owned(),
    };
    check(
        tampered(&own, &signature),
        ("wrong_key", "or what was signed has been changed"),
    );
    let signature = a.sign(&own);
    let spaced = [own.as_slice(), b" "].concat();
    check(tampered(&spaced, &signature), ("wrong_key", "changed"));
    check(
        Signed::Refused(Signature::Tampered { digest: other }),
        ("tampered", &other.to_string()),
    );
    check(tampered(&own, &format!("{signature}\n")), VALID);
    check(
        tampered(&own, &signature[..signature.len() - 5]),
        ("unusable", "not base64"),
    );
    check(tampered(&own, "not/base64!"), ("unusable", "not base64"));
    check(tampered(&own, ""), ("wrong_key", ""));
    check(
        tampered(&own, &"A".repeat(4096)),
        ("unusable", "more than 2048 bytes"),
    );
    // A signature of the right length that is none.
    check(tampered(&own, &STANDARD.encode([0; 71])), ("wrong_key", ""));
}

#[test]
fn a_payload_that_is_none_is_told_as_such() {
    let image = Image::new();
    let a = Signer::new();
    let keys = [a.key("a", |_| {})];
    let check = |payload: &[u8], part: &str| {
        image.check(&[a.simple(payload)], &keys, ("unusable", part));
    };
    check(b"", "payload is not of its form");
    check(b"{", "payload is not of its form");
    check(b"\xff\xfe", "payload is not of its form");
    check(
        b"{\"critical\": {\"type\": 1}}",
        "payload is not of its form",
    );
    check(b"[[[[[[[[[[[[[[[[[[[[[[[[", "payload is not of its form");
    let own: Value = serde_json::from_slice(&payload(&manifest(), REPOSITORY)).unwrap();
    let changed = |pointer, value: &str| with(own.clone(), pointer, value).to_string();
    check(
        changed("/critical/type", "atomic").as_bytes(),
        "of type \"atomic\"",
    );
    let digest = "/critical/image/docker-manifest-digest";
    check(changed(digest, "").as_bytes(), "names no image");
    let sha512 = format!("sha512:{}", "0".repeat(128));
    check(changed(digest, &sha512).as_bytes(), "names no image");
    let long = changed("/optional", &"x".repeat(200_000));
    check(long.as_bytes(), "at most 131072 are read");
}

#[test]
fn keys_of_other_kinds_are_taken() {
    let image = Image::new();
    let own = payload(&manifest(), REPOSITORY);
    for scheme in [
        SigningScheme::ECDSA_P256_SHA256_ASN1,
        SigningScheme::ECDSA_P384_SHA384_ASN1,
        SigningScheme::ECDSA_P521_SHA512_ASN1,
        SigningScheme::ED25519,
        SigningScheme::RSA_PKCS1_SHA256(2048),
    ] {
        let a = Signer::by(scheme);
        let keys = [a.key("a", |_| {})];
        image.check(&[a.simple(&own)], &keys, VALID);
        image.check(
            &[bundle(&a.statement(&statement(&manifest())))],
            &keys,
            VALID,
        );
        let other = Signer::by(scheme);
        image.check(&[other.simple(&own)], &keys, ("wrong_key", ""));
    }
}

#[test]
fn a_key_counts_within_its_time_for_its_repositories_until_it_is_revoked() {
    let image = Image::new();
    let (a, b) = (Signer::new(), Signer::new());
    let signed = [a.simple(&payload(&manifest(), REPOSITORY))];
    let until = |text: &'static str| {
        move |key: &mut KeyOptions| key.not_after = Some(text.parse().unwrap())
    };
    let only = |pattern: &'static str| {
        move |key: &mut KeyOptions| key.repositories = vec![pattern.to_owned()]
    };
    let revoked = |key: &mut KeyOptions| key.revoked = true;
    let check = |keys: &[Key], expect: (&str, &str)| image.check(&signed, keys, expect);

    check(&[a.key("a", until("2026-11-27T00:00:01Z"))], VALID);
    check(
        &[a.key("a", until("2026-11-26T00:00:00Z"))],
        ("expired", "counted until 2026-11-26T00:00:00Z"),
    );
    check(&[a.key("a", only("registry.example/shop/*"))], VALID);
    check(&[a.key("a", only(REPOSITORY))], VALID);
    check(
        &[a.key("a", only("registry.example/bank/*"))],
        ("other_repository", "does not count for this repository"),
    );
    check(&[a.key("a", revoked)], ("revoked", "which is revoked"));
    // Two keys, and one key twice.
    check(&[b.key("b", |_| {}), a.key("a", |_| {})], VALID);
    check(
        &[
            a.key("b", only("registry.example/bank/*")),
            a.key("a", only("registry.example/shop/*")),
        ],
        VALID,
    );
    check(
        &[b.key("b", |_| {}), a.key("a", revoked)],
        ("revoked", "\"a\""),
    );
    // Of what is revoked no other fault matters, and who is not known revokes nothing.
    check(
        &[a.key("a", |key| {
            key.revoked = true;
            key.repositories = vec!["x".to_owned()];
        })],
        ("revoked", "\"a\""),
    );
    check(&[b.key("b", revoked)], ("wrong_key", ""));
}

#[test]
fn of_several_signatures_one_is_enough_and_else_the_worst_known_is_told() {
    let image = Image::new();
    let [a, b, c] = [Signer::new(), Signer::new(), Signer::new()];
    let own = payload(&manifest(), REPOSITORY);
    let other = payload(&digest_of(b"other"), REPOSITORY);
    let keys = [a.key("a", |_| {}), b.key("b", |key| key.revoked = true)];
    let broken = Signed::Refused(Signature::unusable("x"));
    let check = |signed: &[Signed], expect: (&str, &str)| image.check(signed, &keys, expect);
    check(
        &[
            c.simple(&own),
            broken.clone(),
            b.simple(&own),
            a.simple(&own),
        ],
        VALID,
    );
    check(
        &[
            broken.clone(),
            c.simple(&own),
            a.simple(&other),
            b.simple(&own),
        ],
        ("revoked", "\"b\""),
    );
    check(
        &[broken.clone(), c.simple(&own), a.simple(&other)],
        ("wrong_digest", "\"a\""),
    );
    check(&[broken.clone(), c.simple(&own)], ("wrong_key", ""));
    check(&[broken], ("unusable", "x"));
}

#[test]
fn a_reference_is_compared_where_that_is_demanded() {
    let a = Signer::new();
    let keys = [a.key("a", |key| key.check_reference = true)];
    let check = |repository, reference: &str, expect: (&str, &str)| {
        let image = Image {
            repository,
            ..Image::new()
        };
        let signed = a.simple(&payload(&manifest(), reference));
        image.check(&[signed], &keys, expect);
    };
    check(REPOSITORY, REPOSITORY, VALID);
    check(REPOSITORY, "registry.example/shop/web:1.0", VALID);
    check(REPOSITORY, "registry.example/shop/web@sha256:00", VALID);
    check(
        "docker.io/library/nginx",
        "index.docker.io/library/nginx",
        VALID,
    );
    check("docker.io/library/nginx", "nginx:1", VALID);
    check(
        REPOSITORY,
        "registry.example/shop/web2",
        (
            "wrong_reference",
            "as an image of \"registry.example/shop/web2\"",
        ),
    );
    check(REPOSITORY, "", ("wrong_reference", "without naming"));
    let signed = bundle(&a.statement(&statement(&manifest())));
    Image::new().check(&[signed], &keys, ("wrong_reference", "without naming"));
    let named = with(
        statement(&manifest()),
        "/subject/0",
        json!({"name": REPOSITORY, "digest": {"sha256": manifest().0.to_string()}}),
    );
    Image::new().check(&[bundle(&a.statement(&named))], &keys, VALID);
}

#[test]
fn an_index_can_be_signed_in_place_of_its_manifests() {
    let a = Signer::new();
    let keys = [a.key("a", |_| {})];
    let index = digest_of(b"index");
    let signed = [a.simple(&payload(&index, REPOSITORY))];
    let image = Image::new().with_index(index);
    image.check(&signed, &keys, ("valid", "its index is signed"));
    let signed_too = [bundle(&a.statement(&statement(&index)))];
    image.check(&signed_too, &keys, ("valid", "its index is signed"));
    // One that does not list the manifest is no candidate.
    Image::new().check(&signed, &keys, ("wrong_digest", &index.to_string()));
}

#[test]
fn a_bundle_counts_if_its_statement_signs_this_image() {
    let image = Image::new();
    let (a, b) = (Signer::new(), Signer::new());
    let keys = [a.key("a", |_| {})];
    let own = statement(&manifest());
    let check =
        |document: &Value, expect: (&str, &str)| image.check(&[bundle(document)], &keys, expect);

    let signed = a.statement(&own);
    check(&signed, VALID);
    for version in ["0.1", "0.2", "0.3"] {
        let old = format!("application/vnd.dev.sigstore.bundle+json;version={version}");
        check(&with(signed.clone(), "/mediaType", old), VALID);
    }
    check(
        &with(signed.clone(), "/mediaType", "application/x"),
        ("unusable", "\"application/x\" is no known bundle's"),
    );
    check(&b.statement(&own), ("wrong_key", ""));
    let old = with(own.clone(), "/_type", "https://in-toto.io/Statement/v0.1");
    check(&a.statement(&old), VALID);
    let unknown = with(own.clone(), "/_type", "x");
    check(&a.statement(&unknown), ("unusable", "unknown type \"x\""));

    let other = digest_of(b"other");
    check(
        &a.statement(&statement(&other)),
        ("wrong_digest", &other.to_string()),
    );
    // Put into the envelope of another.
    let payload = "/dsseEnvelope/payload";
    let tampered = with(
        a.statement(&statement(&other)),
        payload,
        STANDARD.encode(own.to_string()),
    );
    check(&tampered, ("wrong_key", "changed"));
    check(
        &with(signed.clone(), payload, "e30"),
        ("unusable", "payload is not base64"),
    );
    check(
        &with(signed.clone(), payload, STANDARD.encode("{}")),
        ("unusable", "statement is not of its form"),
    );
    check(
        &with(signed.clone(), "/dsseEnvelope/payloadType", "text/plain"),
        ("unusable", "payload is \"text/plain\""),
    );
    let signatures = "/dsseEnvelope/signatures";
    check(
        &with(signed.clone(), signatures, json!([])),
        ("unusable", "0 signatures"),
    );
    let twice = signed.pointer(signatures).unwrap()[0].clone();
    check(
        &with(signed.clone(), signatures, json!([twice.clone(), twice])),
        ("unusable", "2 signatures"),
    );

    // Several subjects.
    let subject = |digest: &Digest| json!({"digest": {"sha256": digest.0.to_string()}});
    let several = json!([subject(&other), {"name": "x"}, subject(&manifest())]);
    check(&a.statement(&with(own.clone(), "/subject", several)), VALID);
    let none = json!([{"name": "x", "digest": {"sha512": "00"}}]);
    check(
        &a.statement(&with(own.clone(), "/subject", none)),
        ("unusable", "nothing with a SHA-256"),
    );
    let many = vec![subject(&manifest()); 65];
    check(
        &a.statement(&with(own.clone(), "/subject", many)),
        ("unusable", "at most 64 are read"),
    );

    // A statement about the image that does not sign it.
    let attested = with(own, "/predicateType", SLSA);
    check(&a.statement(&attested), ("missing", ""));
}

#[test]
fn a_bundle_counts_if_its_message_is_this_image() {
    let mut image = Image::new();
    let a = Signer::new();
    let keys = [a.key("a", |_| {})];
    let own = a.message(MANIFEST);
    image.check(&[bundle(&own)], &keys, VALID);
    let check =
        |document: &Value, expect: (&str, &str)| image.check(&[bundle(document)], &keys, expect);
    check(
        &a.message(b"other"),
        ("unusable", "of other bytes than the image's"),
    );
    // It says that it is of these bytes.
    let digest = "/messageSignature/messageDigest/digest";
    let said = own.pointer(digest).unwrap().clone();
    check(
        &with(a.message(b"other"), digest, said),
        ("wrong_key", "changed"),
    );
    check(
        &with(own.clone(), digest, STANDARD.encode([0; 20])),
        ("unusable", "does not have 32 bytes"),
    );
    check(
        &with(
            own.clone(),
            "/messageSignature/messageDigest/algorithm",
            "SHA1",
        ),
        ("unusable", "by \"SHA1\""),
    );
    let mut both = own.clone();
    both["dsseEnvelope"] = a.statement(&statement(&manifest()))["dsseEnvelope"].clone();
    check(&both, ("unusable", "both a message and an envelope"));
    check(&json!({"mediaType": BUNDLE}), ("unusable", "neither"));
    image.candidates[0].bytes = None;
    image.check(&[bundle(&own)], &keys, ("unusable", "which no source has"));
}

/// See `fixtures/README.md`.
macro_rules! fixture {
    ($name:literal) => {
        include_str!(concat!("fixtures/", $name))
    };
}

#[test]
fn what_cosign_signed_is_verified() {
    let simple = |payload: &str, signature: &str| Signed::Simple {
        payload: payload.as_bytes().to_vec(),
        signature: signature.to_owned(),
    };
    let busybox = Image::of(
        "registry-testing.svc.lan/busybox",
        "sha256:f3cfc9d0dbf931d3db4685ec659b7ac68e2a578219da4aae65427886e649b06b",
    );
    let signed = [simple(fixture!("busybox.payload"), fixture!("busybox.sig"))];
    let strict = |key: &mut KeyOptions| key.check_reference = true;
    let keys = [key("a", fixture!("busybox.pub"), strict)];
    busybox.check(&signed, &keys, VALID);
    Image::new().check(&signed, &keys, ("wrong_digest", ""));

    let toolbox = Image::of(
        "registry.suse.com/suse/sle-micro/5.0/toolbox",
        "sha256:356631f7603526a0af827741f5fe005acf19b7ef7705a34241a91c2d47a6db5e",
    );
    let keys = [
        key("b", fixture!("busybox.pub"), strict),
        key("a", fixture!("toolbox.pub"), strict),
    ];
    let signed = [simple(fixture!("toolbox.payload"), fixture!("toolbox.sig"))];
    toolbox.check(&signed, &keys, VALID);
    toolbox.check(&signed, &keys[..1], ("wrong_key", ""));

    let kubewarden = Image::of(
        "ghcr.io/kubewarden/kubewarden-controller",
        "sha256:c811d58de79c92f03214e63aa339484e488d694ae8a6283b5f3f17a9faf50172",
    );
    let signed = [Signed::Bundle(
        fixture!("kubewarden.sigstore.json").as_bytes().to_vec(),
    )];
    let keys = [key("a", fixture!("kubewarden.pub"), |_| {})];
    kubewarden.check(&signed, &keys, VALID);
    Image::new().check(&signed, &keys, ("wrong_digest", ""));
}

#[test]
fn a_file_holds_a_public_key_or_is_refused_without_being_shown() {
    let a = Signer::new();
    let private =
        a.0.to_sigstore_keypair()
            .unwrap()
            .private_key_to_pem()
            .unwrap();
    let options = KeyOptions {
        name: "a".to_owned(),
        file: "/some/a.pub".into(),
        repositories: vec!["*".to_owned()],
        not_after: None,
        revoked: false,
        check_reference: false,
    };
    let check = |pem: &[u8]| {
        let error = Key::new(&options, pem).unwrap_err().to_string();
        assert!(error.contains("/some/a.pub"), "{error}");
        let shown = pem.windows(20).find(|part| {
            let part = String::from_utf8_lossy(part);
            !part.contains("BEGIN") && error.contains(part.as_ref())
        });
        assert_eq!(shown, None, "{error}");
    };
    check(private.as_bytes());
    check(b"");
    check(b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n");
    check(b"-----BEGIN PUBLIC KEY-----\n");
    check(private.replace("PRIVATE", "PUBLIC").as_bytes());
}
