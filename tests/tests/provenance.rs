//! Signatures of images in a real containerd and in Debian's registry.

use std::{fs, path::Path, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use monitor::{
    containerd::Client,
    provenance::{KeyOptions, Options, Provenance, Subject, Verdict},
    registry,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use sigstore::crypto::{SigStoreSigner, SigningScheme};
use tar::{EntryType, Header};
use tests::{
    alerts::text,
    containerd::{Containerd, Run},
    image::{self, Image},
    layer::{Attributes, Layer},
    process::finish,
    registry::{PASSWORD, Registry, USER, credentials},
    require,
    world::{BASE, World},
};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const SIMPLE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn descriptor(kind: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()})
}

/// An artifact about an image, as cosign pushes it.
struct Artifact {
    config: Vec<u8>,
    layer: Vec<u8>,
    manifest: Vec<u8>,
}

/// A key pair.
struct Signer(SigStoreSigner);

impl Signer {
    fn new() -> Result<Self> {
        Ok(Self(SigningScheme::ECDSA_P256_SHA256_ASN1.create_signer()?))
    }

    fn sign(&self, message: &[u8]) -> Result<String> {
        Ok(STANDARD.encode(self.0.sign(message)?))
    }

    fn public(&self) -> Result<String> {
        Ok(self.0.to_sigstore_keypair()?.public_key_to_pem()?)
    }

    /// A payload of simple signing, for a tag.
    fn simple(&self, image: &str) -> Result<Artifact> {
        let layer = json!({"critical": {
            "identity": {"docker-reference": ""},
            "image": {"docker-manifest-digest": image},
            "type": "cosign container image signature",
        }});
        let layer = layer.to_string().into_bytes();
        let mut described = descriptor(SIMPLE, &layer);
        let annotations = json!({"dev.cosignproject.cosign/signature": self.sign(&layer)?});
        described
            .as_object_mut()
            .context("no object")?
            .insert("annotations".to_owned(), annotations);
        let config = b"{}".to_vec();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "layers": [described],
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        });
        Ok(Artifact {
            config,
            layer,
            manifest: manifest.to_string().into_bytes(),
        })
    }

    /// A bundle, which refers to the image.
    fn bundle(&self, image: &str, predicate_type: &str) -> Result<Artifact> {
        let kind = "application/vnd.in-toto+json";
        let hex = image.trim_start_matches("sha256:");
        let statement = json!({
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"digest": {"sha256": hex}}],
            "predicateType": predicate_type,
            "predicate": {},
        });
        let statement = statement.to_string();
        let signed = format!(
            "DSSEv1 {} {kind} {} {statement}",
            kind.len(),
            statement.len()
        );
        let layer = json!({
            "mediaType": BUNDLE,
            "dsseEnvelope": {
                "payload": STANDARD.encode(&statement),
                "payloadType": kind,
                "signatures": [{"sig": self.sign(signed.as_bytes())?}],
            },
        });
        let layer = layer.to_string().into_bytes();
        let config = b"{}".to_vec();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": BUNDLE,
            "config": descriptor("application/vnd.oci.empty.v1+json", &config),
            "layers": [descriptor(BUNDLE, &layer)],
            "subject": {"mediaType": MANIFEST, "digest": image, "size": 1},
        });
        Ok(Artifact {
            config,
            layer,
            manifest: manifest.to_string().into_bytes(),
        })
    }
}

impl Artifact {
    /// Brings it into the content store under a name.
    fn import(&self, containerd: &Containerd, name: &str, directory: &Path) -> Result<()> {
        let mut top = descriptor(MANIFEST, &self.manifest);
        top.as_object_mut().context("no object")?.insert(
            "annotations".to_owned(),
            json!({"io.containerd.image.name": name}),
        );
        let index = json!({"schemaVersion": 2, "manifests": [top]}).to_string();
        let mut tar = tar::Builder::new(Vec::new());
        let mut add = |path: &str, bytes: &[u8]| -> Result<()> {
            let mut header = Header::new_gnu();
            header.set_entry_type(EntryType::Regular);
            header.set_mode(0o644);
            header.set_size(u64::try_from(bytes.len())?);
            Ok(tar.append_data(&mut header, path, bytes)?)
        };
        add("oci-layout", br#"{"imageLayoutVersion": "1.0.0"}"#)?;
        for bytes in [&self.config, &self.layer, &self.manifest] {
            add(
                &format!("blobs/{}", digest(bytes).replacen(':', "/", 1)),
                bytes,
            )?;
        }
        add("index.json", index.as_bytes())?;
        let file = directory.join("artifact.tar");
        fs::write(&file, tar.into_inner()?)?;
        let file = file.to_string_lossy().into_owned();
        containerd.ctr(["images", "import", "--no-unpack", &file])?;
        Ok(())
    }

    /// Stores it in a repository by a tag.
    fn push(&self, registry: &Registry, repository: &str, tag: &str) -> Result<()> {
        for bytes in [&self.config, &self.layer] {
            registry.put_blob(repository, &digest(bytes), bytes)?;
        }
        registry.put_manifest(repository, tag, MANIFEST, &self.manifest)
    }
}

fn options(directory: &Path, signer: &Signer) -> Result<Options> {
    let file = directory.join("key.pub");
    fs::write(&file, signer.public()?)?;
    let key = KeyOptions {
        name: "release".to_owned(),
        file,
        repositories: vec!["*/shop/*".to_owned()],
        not_after: None,
        revoked: false,
        check_reference: false,
    };
    Ok(Options {
        keys: vec![key],
        folder: None,
    })
}

fn subject(containerd: &Containerd, image: &Image) -> Result<Subject> {
    Ok(Subject {
        runtime_namespace: containerd.namespace().to_owned(),
        repository: monitor::containers::repository(&image.reference).to_owned(),
        manifest: image.manifest_digest.parse()?,
        index: Some(image.index_digest.parse()?),
    })
}

/// The verdict that sources lead to now, which says this.
async fn said(provenance: &Provenance, subject: &Subject, expect: &str) -> Result<Arc<Verdict>> {
    let verdict = provenance.verify_now(subject).await;
    let said = verdict.signature.to_string();
    ensure!(said == expect, "{said} instead of {expect}: {verdict:?}");
    Ok(verdict)
}

#[tokio::test(flavor = "multi_thread")]
async fn signatures_are_found_in_containerd() -> Result<()> {
    require!(Root, Containerd, Busybox);
    let containerd = Containerd::start()?;
    let directory = tempfile::tempdir()?;
    let signer = Signer::new()?;
    let client = Client::connect(&containerd.address()).await?;
    let provenance = Provenance::new(&options(directory.path(), &signer)?, Some(client), None)?;
    let image = image::base("registry.example/shop/web:1")?;
    containerd.import(&image)?;
    let subject = subject(&containerd, &image)?;
    let check = async |expect: &str| said(&provenance, &subject, expect).await;
    check("it has no signature").await?;

    // By cosign's tag.
    let hex = image.manifest_digest.trim_start_matches("sha256:");
    let name = format!("registry.example/shop/web:sha256-{hex}.sig");
    let signature = signer.simple(&image.manifest_digest)?;
    signature.import(&containerd, &name, directory.path())?;
    check("its manifest is signed by the key \"release\"").await?;
    // Whoever can write there can change the payload, and is found out.
    let blob = containerd.blob(&digest(&signature.layer));
    fs::write(&blob, b"{}")?;
    let verdict = provenance.verify_now(&subject).await;
    ensure!(verdict.signature.name() == "tampered", "{verdict:?}");
    containerd.ctr(["images", "rm", &name])?;
    check("it has no signature").await?;

    // Among what refers to the image, and to its index.
    let provenance_type = "https://slsa.dev/provenance/v1";
    let attestation = signer.bundle(&image.manifest_digest, provenance_type)?;
    attestation.import(
        &containerd,
        "registry.example/shop/web:slsa",
        directory.path(),
    )?;
    let verdict = check("it has no signature").await?;
    let kinds: Vec<_> = verdict
        .attestations
        .iter()
        .map(|it| it.kind.as_str())
        .collect();
    ensure!(kinds == [provenance_type], "{kinds:?}");
    let sign = "https://sigstore.dev/cosign/sign/v1";
    let bundle = signer.bundle(&image.index_digest, sign)?;
    bundle.import(
        &containerd,
        "registry.example/shop/web:signature",
        directory.path(),
    )?;
    check("its index is signed by the key \"release\"").await?;
    containerd.remove()
}

#[tokio::test(flavor = "multi_thread")]
async fn signatures_are_found_in_a_registry() -> Result<()> {
    require!(Root, Containerd, Busybox, DockerRegistry);
    let containerd = Containerd::start()?;
    let registry = Registry::start()?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("credentials.json");
    fs::write(&file, credentials(registry.address(), USER, PASSWORD))?;
    let asked = registry::Registry::new(&registry::Options {
        enabled: true,
        credentials: Some(file),
        plain_http: vec![registry.address().to_string()],
        ..registry::Options::default()
    })?;
    let signer = Signer::new()?;
    let client = Client::connect(&containerd.address()).await?;
    let options = options(directory.path(), &signer)?;
    let provenance = Provenance::new(&options, Some(client), Some(asked))?;
    let image = image::base(&format!("{}/shop/web:1", registry.address()))?;
    containerd.import(&image)?;
    registry.push(&image)?;
    let subject = subject(&containerd, &image)?;
    let check = async |expect: &str| said(&provenance, &subject, expect).await;
    check("it has no signature").await?;
    let hex = image.manifest_digest.trim_start_matches("sha256:");
    let signature = signer.simple(&image.manifest_digest)?;
    signature.push(&registry, "shop/web", &format!("sha256-{hex}.sig"))?;
    let valid = "its manifest is signed by the key \"release\"";
    check(valid).await?;

    // Of one that is down what it said stands.
    registry.kill()?;
    let verdict = check(valid).await?;
    let [down] = verdict.down.as_slice() else {
        anyhow::bail!("{verdict:?}")
    };
    ensure!(
        down.source.name() == "registry" && down.answered.is_some(),
        "{down}"
    );
    // The key does not.
    fs::remove_file(directory.path().join("key.pub"))?;
    tokio::time::sleep(std::time::Duration::from_secs(11)).await;
    ensure!(provenance.refresh().await == 2);
    check("it is signed by the key \"release\", which is revoked").await?;
    containerd.remove()
}

#[test]
fn what_runs_without_a_valid_signature_is_told() -> Result<()> {
    require!(Root, Containerd, Busybox, Btf);
    let directory = tempfile::tempdir()?;
    let signer = Signer::new()?;
    let key = directory.path().join("release.pub");
    fs::write(&key, signer.public()?)?;
    let config = format!(
        "[[provenance.keys]]\nname = 'release'\nfile = {:?}\nrepositories = ['example.invalid/*']\n",
        key.display().to_string()
    );
    let signed = Image::build(
        "example.invalid/signed:1",
        &[
            image::base_layer()?,
            Layer::new().file("signed", b"", Attributes::default()),
        ],
        &image::base_config(),
    )?;
    let world = World::start_configured(&config, |containerd| {
        containerd.import(&signed)?;
        let hex = signed.manifest_digest.trim_start_matches("sha256:");
        let name = format!("example.invalid/signed:sha256-{hex}.sig");
        let artifact = signer.simple(&signed.manifest_digest)?;
        artifact.import(containerd, &name, directory.path())
    })?;
    let start = |image: &str, id: &str| {
        let run = Run::new(image, id).arguments(["/bin/sleep", "600"]);
        world.containerd.start_container(&run)
    };
    let told = |id: &str, words: &str| {
        world.alerts.wait_for(words, |alert| {
            text(alert, "/container/id") == Some(id)
                && text(alert, "/kind") == Some("image_unsigned")
                && text(alert, "/details/reason").is_some_and(|it| it.contains(words))
        })
    };
    start(&signed.reference, "signed")?;
    start(BASE, "unsigned")?;
    let alert = told("unsigned", "it has no signature")?;
    ensure!(text(&alert, "/severity") == Some("high"), "{alert:#}");
    let verify = |image: &str| -> Result<(Option<i32>, Value)> {
        let mut command = world.daemon.monitorctl_command()?;
        let said = command.args(["approval", "verify", image, "-o", "json"]);
        let said = finish(said)?;
        Ok((said.status.code(), serde_json::from_slice(&said.stdout)?))
    };
    for (image, status, state) in [(&*signed.reference, 0, "valid"), (BASE, 4, "missing")] {
        let (exit, said) = verify(image)?;
        ensure!(exit == Some(status), "{exit:?}: {said:#}");
        let own = text(&said, "/verdicts/0/signature/state");
        ensure!(own == Some(state), "{said:#}");
    }
    ensure!(world.alerts.of("signed").is_empty(), "the signed one");
    // A key whose file is gone is revoked.
    fs::remove_file(&key)?;
    told("signed", "which is revoked")?;
    Ok(())
}
