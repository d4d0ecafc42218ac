#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot set itself up has failed"
)]

use super::*;

fn hex(digit: char) -> String {
    format!("sha256:{}", digit.to_string().repeat(64))
}

fn described(digit: char) -> String {
    format!(r#"{{"mediaType":"m","digest":"{}","size":7}}"#, hex(digit))
}

fn named(os: &str, architecture: &str, variant: &str) -> Descriptor {
    Descriptor {
        media_type: OCI_MANIFEST.to_owned(),
        digest: digest_of(format!("{os}/{architecture}/{variant}").as_bytes()),
        size: 1,
        platform: Some(Platform {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
        }),
    }
}

#[test]
fn documents_are_told_apart_by_media_type_and_then_by_shape() {
    #[track_caller]
    fn check(text: &str, expect: &str) {
        let seen = match parse(text.as_bytes()) {
            Ok(Document::Index(manifests)) => format!("index {}", manifests.len()),
            Ok(Document::Manifest(manifest)) => format!("manifest {}", manifest.layers.len()),
            Err(error) => error.to_string(),
        };
        assert!(
            seen.starts_with(expect),
            "{text}\nseen {seen}\nexpect {expect}"
        );
    }
    let (a, b) = (described('a'), described('b'));
    let layers = format!(r#""config":{a},"layers":[{b},{b}]"#);
    check(&format!("{{{layers}}}"), "manifest 2");
    check(&format!(r#"{{"mediaType":"",{layers}}}"#), "manifest 2");
    for media_type in [OCI_MANIFEST, DOCKER_MANIFEST] {
        check(
            &format!(r#"{{"mediaType":"{media_type}",{layers}}}"#),
            "manifest 2",
        );
        check(
            &format!(r#"{{"mediaType":"{media_type}"}}"#),
            "document has no config",
        );
    }
    check(&format!(r#"{{"config":{a},"layers":[]}}"#), "manifest 0");
    for media_type in [OCI_INDEX, DOCKER_INDEX] {
        check(
            &format!(r#"{{"mediaType":"{media_type}","manifests":[{a}]}}"#),
            "index 1",
        );
        check(
            &format!(r#"{{"mediaType":"{media_type}",{layers}}}"#),
            "document has no manifests",
        );
    }
    check(&format!(r#"{{"manifests":[{a}]}}"#), "index 1");
    check(
        &format!(r#"{{"manifests":[{a}],{layers}}}"#),
        "document is both",
    );
    check(
        &format!(r#"{{"mediaType":"{OCI_MANIFEST}","manifests":[],{layers}}}"#),
        "document is both",
    );
    check(&format!(r#"{{"layers":[{a}]}}"#), "document has no config");
    check("{}", "document has neither");
    check("[]", "not a readable document");
    check("", "not a readable document");
    check(&"[".repeat(100_000), "not a readable document");
    check(
        &format!(r#"{{{layers},"layers":[]}}"#),
        "not a readable document: duplicate field",
    );
    check(
        r#"{"mediaType":"text/plain"}"#,
        r#"media type "text/plain""#,
    );
    check(r#"{"fsLayers":[]}"#, r#"media type "docker schema 1""#);
    check(&layers_of(LAYERS_MAX), &format!("manifest {LAYERS_MAX}"));
    check(
        &layers_of(LAYERS_MAX + 1),
        "513 layers; at most 512 are read",
    );
    check(
        &" ".repeat(DOCUMENT_BYTES_MAX + 1),
        "document of 4194305 bytes",
    );
    check(
        r#"{"config":{"digest":"md5:00","size":1},"layers":[]}"#,
        r#"config: digest "md5:00""#,
    );
    check(
        &format!(
            r#"{{"config":{{"digest":"{}","size":-1}},"layers":[]}}"#,
            hex('a')
        ),
        "not a readable document",
    );
}

fn layers_of(count: usize) -> String {
    let layers = vec![described('b'); count].join(",");
    format!(r#"{{"config":{},"layers":[{layers}]}}"#, described('a'))
}

#[test]
fn a_config_of_go_with_nulls_is_read() {
    let config = parse_config(
        format!(
            r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{}"]}},
            "config":{{"Entrypoint":null,"Cmd":["sh","-c"],"Env":["A=b"],"User":"1000","WorkingDir":"/w"}}}}"#,
            hex('c')
        )
        .as_bytes(),
    )
    .unwrap();
    assert_eq!(config.diff_ids, [hex('c').parse().unwrap()]);
    assert_eq!(config.entrypoint, [""; 0]);
    assert_eq!(config.cmd, ["sh", "-c"]);
    assert_eq!(
        (config.user.as_str(), config.working_dir.as_str()),
        ("1000", "/w")
    );
    assert_eq!(parse_config(b"{}"), Err(ManifestError::Missing("rootfs")));
    let empty = br#"{"rootfs":{"diff_ids":null},"config":null}"#;
    assert_eq!(parse_config(empty).unwrap().diff_ids, []);
    let other = br#"{"rootfs":{"type":"erofs"}}"#;
    assert_eq!(
        parse_config(other),
        Err(ManifestError::RootfsType("erofs".to_owned()))
    );
}

#[test]
fn a_chain_id_names_its_layers_and_their_order() {
    let ids: Vec<Digest> = ['a', 'b', 'c']
        .iter()
        .map(|digit| hex(*digit).parse().unwrap())
        .collect();
    assert_eq!(chain_id(&[]), None);
    assert_eq!(chain_id(ids.get(..1).unwrap()), ids.first().copied());
    let two = digest_of(format!("{} {}", hex('a'), hex('b')).as_bytes());
    assert_eq!(chain_id(ids.get(..2).unwrap()), Some(two));
    let three = digest_of(format!("{two} {}", hex('c')).as_bytes());
    assert_eq!(chain_id(&ids), Some(three));
}

#[test]
fn the_manifest_of_this_node_is_chosen_as_containerd_does() {
    #[track_caller]
    fn check(node: &str, platforms: &[(&str, &str, &str)], expect: Option<usize>) {
        let manifests: Vec<Descriptor> = platforms
            .iter()
            .map(|platform| match *platform {
                ("", "", "") => Descriptor {
                    platform: None,
                    ..named("", "", "")
                },
                (os, architecture, variant) => named(os, architecture, variant),
            })
            .collect();
        assert_eq!(
            choose(&manifests, node),
            expect.and_then(|index| manifests.get(index))
        );
    }
    let attestation = ("unknown", "unknown", "");
    check("amd64", &[], None);
    check("amd64", &[attestation], None);
    check(
        "amd64",
        &[
            attestation,
            ("linux", "arm64", "v8"),
            ("linux", "amd64", ""),
        ],
        Some(2),
    );
    check(
        "amd64",
        &[("linux", "386", ""), ("linux", "amd64", "")],
        Some(1),
    );
    check("amd64", &[("linux", "386", "")], Some(0));
    check(
        "amd64",
        &[("linux", "amd64", "v3"), ("linux", "x86_64", "v1")],
        Some(1),
    );
    check("amd64", &[("windows", "amd64", "")], None);
    check("amd64", &[("", "", ""), ("linux", "amd64", "")], Some(1));
    check("amd64", &[attestation, ("", "", "")], Some(1));
    check(
        "amd64",
        &[("linux", "amd64", ""), ("linux", "amd64", "")],
        Some(0),
    );
    check(
        "arm64",
        &[
            ("linux", "arm", "v6"),
            ("linux", "arm", "v7"),
            ("linux", "arm64", "v8"),
        ],
        Some(2),
    );
    check(
        "arm64",
        &[("linux", "arm", "v6"), ("linux", "arm", "")],
        Some(1),
    );
    check(
        "riscv64",
        &[("linux", "amd64", ""), ("linux", "riscv64", "")],
        Some(1),
    );
}

#[test]
fn bytes_are_those_of_their_digest_or_refused() {
    let digest = digest_of(b"a");
    assert_eq!(
        digest.to_string(),
        "sha256:ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    );
    assert_eq!(verify(b"a", &digest), Ok(()));
    assert_eq!(
        verify(b"b", &digest),
        Err(DigestMismatch {
            expected: digest,
            seen: digest_of(b"b")
        })
    );
}
