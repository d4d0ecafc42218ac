//! Which repository of which registry an image reference names.

use crate::containers::repository;

/// Bytes of a reference; a longer one is refused.
const REFERENCE_BYTES_MAX: usize = 1024;

const DOCKER_HUB: &str = "docker.io";
/// The same, as tools written with go-containerregistry name it.
const DOCKER_HUB_INDEX: &str = "index.docker.io";

/// A reference names nothing that could be asked.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("reference {reference:?} names no repository of a registry")]
pub struct RepositoryError {
    reference: String,
}

/// A repository of a registry, both made of what may stand in a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    registry: String,
    name: String,
}

impl Repository {
    /// Of `[HOST[:PORT]/]NAME[:TAG][@DIGEST]`, where names without a host are Docker Hub's, as
    /// Kubernetes and containerd take them.
    ///
    /// # Errors
    ///
    /// It is of another form, or the mere digest of a config.
    pub fn of(reference: &str) -> Result<Self, RepositoryError> {
        let refused = || RepositoryError {
            reference: reference.chars().take(200).collect(),
        };
        let text = reference.split('@').next().unwrap_or_default();
        let (registry, rest) = split(text);
        // The registry's port stands before.
        let name = completed(registry, rest.split(':').next().unwrap_or_default());
        if reference.len() > REFERENCE_BYTES_MAX
            || reference.starts_with("sha256:")
            || !is_authority(registry)
            || !name.split('/').all(is_component)
        {
            return Err(refused());
        }
        Ok(Self {
            registry: registry.to_owned(),
            name,
        })
    }

    /// The registry as references name it, `HOST` or `HOST:PORT`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The same, as it is reached.
    pub(super) fn authority(&self) -> &str {
        match self.registry.as_str() {
            // The one whose name is not its address.
            DOCKER_HUB => "registry-1.docker.io",
            other => other,
        }
    }

    /// Its name within the registry.
    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

/// A reference without tag and digest, in full as container runtimes complete short names: `nginx` is
/// `docker.io/library/nginx`. Empty if it names no repository; of which form the name is, is not
/// checked.
pub fn full_name(reference: &str) -> String {
    match split(repository(reference)) {
        (_, "") => String::new(),
        (registry, name) => format!("{registry}/{}", completed(registry, name)),
    }
}

/// The registry of a reference, and what is below it.
fn split(reference: &str) -> (&str, &str) {
    let registry = host(reference);
    let below = reference.strip_prefix(registry);
    let below = below.and_then(|below| below.strip_prefix('/'));
    let registry = match registry {
        DOCKER_HUB_INDEX => DOCKER_HUB,
        other => other,
    };
    (registry, below.unwrap_or(reference))
}

fn completed(registry: &str, name: &str) -> String {
    if registry == DOCKER_HUB && !name.contains('/') {
        format!("library/{name}")
    } else {
        name.to_owned()
    }
}

/// The registry that a reference names, or does without naming it.
pub fn host(reference: &str) -> &str {
    let is_host = |text: &str| text.contains(['.', ':']) || text == "localhost";
    match reference.split_once('/') {
        Some((first, _)) if is_host(first) => first,
        _ => DOCKER_HUB,
    }
}

fn is_authority(text: &str) -> bool {
    let is_known = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte);
    // A port that is none is not seen by the parser.
    let is_port = |port: &str| port.ends_with(']') || port.parse::<u16>().is_ok();
    text.bytes().all(is_known)
        && text.rsplit_once(':').is_none_or(|(_, port)| is_port(port))
        && text.parse::<hyper::http::uri::Authority>().is_ok()
}

fn is_component(text: &str) -> bool {
    let is_known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.bytes().next().is_some_and(is_known)
        && text
            .bytes()
            .all(|byte| is_known(byte) || b"._-".contains(&byte))
}
