//! Debian's registry on loopback, with images pushed to it as any client does.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use tempfile::TempDir;

use crate::{
    image::Image,
    poll::{PATIENCE, until},
    process::Process,
    skip::server,
};

/// Whom it lets in, and by what.
pub const USER: &str = "reader";
/// See [`USER`].
pub const PASSWORD: &str = "sesame-4711";
// Of that password, with few rounds since each request pays for them.
const HASH: &str = "$2y$04$abcdefghijklmnopqrstuu6sY3P5qG63S2M1n3TdY98AgJRZ8znRq";

/// Without a byte for so long, something hangs.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// A registry that asks for user and password.
#[derive(Debug)]
pub struct Registry {
    process: Process,
    address: SocketAddr,
    directory: TempDir,
}

impl Registry {
    /// Starts it empty, at a free port of 127.0.0.1.
    pub fn start() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = directory.path();
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        fs::write(path.join("htpasswd"), format!("{USER}:{HASH}\n"))?;
        let shown = path.display();
        let config = format!(
            "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {shown}\n\
             http:\n  addr: {address}\nauth:\n  htpasswd:\n    realm: tests\n    path: {shown}/htpasswd\n"
        );
        fs::write(path.join("config.yml"), config)?;
        let log = File::create(path.join("log"))?;
        let program = server("docker-registry").context("there is no docker-registry")?;
        let mut command = Command::new(program);
        command
            .arg("serve")
            .arg(path.join("config.yml"))
            // Else it asks a collector for traces on another port.
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = command.spawn().context("cannot start docker-registry")?;
        let registry = Self {
            process: Process::default(),
            address,
            directory,
        };
        registry.process.set(child);
        until("the registry to answer", PATIENCE, || {
            registry.ask("GET", "/v2/", "", &[]).map(drop)
        })?;
        Ok(registry)
    }

    /// `HOST:PORT`, as image references name it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stores an image in the repository that its reference names.
    pub fn push(&self, image: &Image) -> Result<()> {
        let name = image
            .reference
            .strip_prefix(&format!("{}/", self.address))
            .and_then(|rest| rest.split(':').next())
            .with_context(|| format!("{} is of another registry", image.reference))?;
        for (kind, digest, bytes) in image.blobs() {
            if kind.contains("index") {
                continue;
            }
            if kind.contains("manifest") {
                self.put_manifest(name, digest, kind, bytes)?;
                continue;
            }
            self.put_blob(name, digest, bytes)?;
        }
        Ok(())
    }

    /// Stores an image and the index that leads to it.
    pub fn push_with_index(&self, image: &Image, name: &str) -> Result<()> {
        self.push(image)?;
        let mut indexes = image.blobs().filter(|(kind, ..)| kind.contains("index"));
        indexes.try_for_each(|(kind, digest, bytes)| self.put_manifest(name, digest, kind, bytes))
    }

    /// Stores a manifest of a repository, by its digest or a tag.
    pub fn put_manifest(
        &self,
        name: &str,
        reference: &str,
        kind: &str,
        bytes: &[u8],
    ) -> Result<()> {
        let path = format!("/v2/{name}/manifests/{reference}");
        self.ask("PUT", &path, kind, bytes).map(drop)
    }

    /// Stores a blob of a repository.
    pub fn put_blob(&self, name: &str, digest: &str, bytes: &[u8]) -> Result<()> {
        let head = self.ask("POST", &format!("/v2/{name}/blobs/uploads/"), "", &[])?;
        let place = head
            .lines()
            .find_map(|line| line.strip_prefix("Location: "))
            .with_context(|| format!("no place for a blob: {head}"))?;
        let path = place
            .split_once(&self.address.to_string())
            .map_or(place, |(_, path)| path);
        let path = format!("{path}&digest={digest}");
        self.ask("PUT", &path, "application/octet-stream", bytes)
            .map(drop)
    }

    /// Where it keeps a blob.
    pub fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        let blobs = Path::new("docker/registry/v2/blobs/sha256");
        let first = hex.get(..2).unwrap_or_default();
        let blob = self.directory.path().join(blobs).join(first).join(hex);
        blob.join("data")
    }

    /// Ends it.
    pub fn kill(&self) -> Result<()> {
        self.process.kill()
    }

    /// The head of what it answers, which has to be a success.
    fn ask(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> Result<String> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(SILENCE_MAX))?;
        let credentials = STANDARD.encode(format!("{USER}:{PASSWORD}"));
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: {kind}\r\n\
             Authorization: Basic {credentials}\r\nContent-Length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(
            answer.starts_with("HTTP/1.1 2"),
            "{method} {path}: {answer}"
        );
        Ok(answer)
    }
}

/// A file of credentials as `docker login` writes it.
pub fn credentials(registry: SocketAddr, user: &str, password: &str) -> String {
    let encoded = STANDARD.encode(format!("{user}:{password}"));
    format!(r#"{{"auths": {{"{registry}": {{"auth": "{encoded}"}}}}}}"#)
}
