//! The images that containerd's namespaces hold: which reference points to which image. Pure; what
//! it is told was read and checked by [`super::watch`].

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::ImageId;
use crate::{digest::Digest, image::manifest::Config};

/// References that are held, of all namespaces together; more are refused and counted, and their
/// namespace is no longer called complete.
pub const REFERENCES_MAX: usize = 16_384;
/// Images that are held; likewise, once those are gone that nothing uses.
pub const IMAGES_MAX: usize = 8_192;

/// An image whose index, manifest and config were read and have the digests by which they are
/// known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Its digests; no index, which depends on the reference.
    pub id: ImageId,
    /// Its config.
    pub config: Config,
}

/// The images of all namespaces.
#[derive(Debug, Default)]
pub struct Catalog {
    namespaces: HashMap<String, Namespace>,
    // By the digest of the manifest, and by that of each index that led to it.
    images: HashMap<Digest, Arc<Image>>,
    references: usize,
    refused: u64,
}

#[derive(Debug, Default)]
struct Namespace {
    // To the digest of an index or a manifest.
    references: HashMap<String, Digest>,
    // By container, the manifests that account for it.
    pins: HashMap<String, Vec<Digest>>,
    incomplete: bool,
}

/// A reference and what it stands for.
#[derive(Clone, Debug)]
pub struct Reference {
    /// containerd's namespace.
    pub namespace: String,
    /// The reference.
    pub name: String,
    /// Digest of the index or manifest it points to.
    pub target: Digest,
    /// The image, if it is one that runs here and could be read.
    pub image: Option<Arc<Image>>,
}

impl Catalog {
    /// Every reference there is, in no order.
    pub fn references(&self) -> Vec<Reference> {
        self.namespaces
            .iter()
            .flat_map(|(namespace, held)| {
                held.references.iter().map(|(name, target)| Reference {
                    namespace: namespace.clone(),
                    name: name.clone(),
                    target: *target,
                    image: self.images.get(target).cloned(),
                })
            })
            .collect()
    }

    /// The image that an index or a manifest stands for on this platform, if it was read.
    pub fn image(&self, target: &Digest) -> Option<&Arc<Image>> {
        self.images.get(target)
    }

    /// Holds an image that was read, and the index that led to it. At [`IMAGES_MAX`] those that
    /// nothing uses are forgotten; if all are used the image is refused (`false`) and counted.
    pub fn learn(&mut self, image: Image, index: Option<Digest>) -> bool {
        if self.images.len() + 2 > IMAGES_MAX {
            let used: HashSet<Digest> = self.used();
            self.images
                .retain(|target, image| used.contains(target) || used.contains(&image.id.manifest));
        }
        if self.images.len() + 2 > IMAGES_MAX {
            self.refused += 1;
            return false;
        }
        let image = Arc::new(image);
        if let Some(index) = index {
            self.images.insert(index, image.clone());
        }
        self.images.insert(image.id.manifest, image);
        true
    }

    fn used(&self) -> HashSet<Digest> {
        self.namespaces
            .values()
            .flat_map(|namespace| {
                let pinned = namespace.pins.values().flatten();
                namespace.references.values().chain(pinned)
            })
            // An index is used, and so is the manifest it stands for.
            .flat_map(|target| {
                let manifest = self.images.get(target).map(|image| image.id.manifest);
                [Some(*target), manifest]
            })
            .flatten()
            .collect()
    }

    /// A reference points to `target` now. At [`REFERENCES_MAX`] a new one is refused and counted.
    pub fn point(&mut self, namespace: &str, name: &str, target: Digest) {
        let held = self.namespaces.entry(namespace.to_owned()).or_default();
        if let Some(known) = held.references.get_mut(name) {
            *known = target;
        } else if self.references < REFERENCES_MAX {
            held.references.insert(name.to_owned(), target);
            self.references += 1;
        } else {
            held.incomplete = true;
            self.refused += 1;
        }
    }

    /// A reference is gone.
    pub fn remove(&mut self, namespace: &str, name: &str) {
        if let Some(held) = self.namespaces.get_mut(namespace)
            && held.references.remove(name).is_some()
        {
            self.references -= 1;
        }
    }

    /// The namespace has these references and no other.
    pub fn replace(&mut self, namespace: &str, references: &[(String, Digest)]) {
        let held = self.namespaces.entry(namespace.to_owned()).or_default();
        self.references -= held.references.len();
        held.references.clear();
        held.incomplete = false;
        for (name, target) in references {
            self.point(namespace, name, *target);
        }
    }

    /// There are these namespaces and no other.
    pub fn retain_namespaces(&mut self, names: &[String]) {
        self.namespaces
            .retain(|name, held| names.contains(name) || !held.pins.is_empty());
        for (name, held) in &mut self.namespaces {
            if !names.contains(name) {
                held.references.clear();
            }
        }
        self.references = self
            .namespaces
            .values()
            .map(|held| held.references.len())
            .sum();
    }

    /// Where a reference points to now.
    pub fn target(&self, namespace: &str, name: &str) -> Option<Digest> {
        self.namespaces
            .get(namespace)?
            .references
            .get(name)
            .copied()
    }

    /// References whose image was not read, with their targets.
    pub fn unread(&self, namespace: &str) -> Vec<Digest> {
        let Some(held) = self.namespaces.get(namespace) else {
            return Vec::new();
        };
        let mut targets: Vec<Digest> = held
            .references
            .values()
            .filter(|target| !self.images.contains_key(target))
            .copied()
            .collect();
        targets.sort_unstable();
        targets.dedup();
        targets
    }

    /// Whether every reference of the namespace is held. An image that cannot be read does not
    /// count against it: containerd could not create a container from it either.
    pub fn is_complete(&self, namespace: &str) -> bool {
        self.namespaces
            .get(namespace)
            .is_none_or(|held| !held.incomplete)
    }

    /// The images of a namespace that have this chain ID, those that only a container still uses
    /// included; by manifest digest, each once.
    pub fn with_chain_id(&self, namespace: &str, chain_id: &Digest) -> Vec<Arc<Image>> {
        let Some(held) = self.namespaces.get(namespace) else {
            return Vec::new();
        };
        let mut images: Vec<Arc<Image>> = held
            .references
            .values()
            .chain(held.pins.values().flatten())
            .filter_map(|target| self.images.get(target))
            .filter(|image| image.id.chain_id == *chain_id)
            .cloned()
            .collect();
        images.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        images.dedup_by(|a, b| a.id.manifest == b.id.manifest);
        images
    }

    /// A container uses these images: they stay known when their references go.
    pub fn pin(&mut self, namespace: &str, container: &str, manifests: Vec<Digest>) {
        if manifests.is_empty() {
            return;
        }
        let held = self.namespaces.entry(namespace.to_owned()).or_default();
        held.pins.insert(container.to_owned(), manifests);
    }

    /// The container is gone.
    pub fn unpin(&mut self, namespace: &str, container: &str) {
        if let Some(held) = self.namespaces.get_mut(namespace) {
            held.pins.remove(container);
        }
    }

    /// References and images refused at a bound since the start.
    pub fn refused(&self) -> u64 {
        self.refused
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::image::manifest::digest_of;

    pub(in super::super) fn digest(name: &str) -> Digest {
        digest_of(name.as_bytes())
    }

    pub(in super::super) fn image(name: &str, chain: &str) -> Image {
        Image {
            id: ImageId {
                manifest: digest(&format!("manifest {name}")),
                config: digest(&format!("config {name}")),
                chain_id: digest(chain),
                index: None,
            },
            config: Config {
                architecture: "amd64".to_owned(),
                os: "linux".to_owned(),
                entrypoint: vec![format!("/bin/{name}")],
                env: vec!["PATH=/bin".to_owned()],
                ..Config::default()
            },
        }
    }

    fn names(images: &[Arc<Image>]) -> Vec<String> {
        let mut names: Vec<String> = images
            .iter()
            .flat_map(|image| image.config.entrypoint.clone())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn one_manifest_under_several_references_is_one_image() {
        let mut catalog = Catalog::default();
        assert!(catalog.learn(image("a", "chain"), Some(digest("index a"))));
        assert!(catalog.learn(image("b", "chain"), None));
        catalog.point("default", "a:1", digest("index a"));
        catalog.point("default", "a:2", digest("manifest a"));
        catalog.point("default", "b:1", digest("manifest b"));
        catalog.point("other", "a:1", digest("manifest a"));
        let chain = digest("chain");
        assert_eq!(
            names(&catalog.with_chain_id("default", &chain)),
            ["/bin/a", "/bin/b"]
        );
        assert_eq!(names(&catalog.with_chain_id("other", &chain)), ["/bin/a"]);
        assert_eq!(names(&catalog.with_chain_id("third", &chain)), [""; 0]);
        catalog.remove("default", "b:1");
        assert_eq!(names(&catalog.with_chain_id("default", &chain)), ["/bin/a"]);
    }

    #[test]
    fn an_image_stays_known_while_a_container_uses_it() {
        let mut catalog = Catalog::default();
        let chain = digest("chain");
        assert!(catalog.learn(image("a", "chain"), None));
        catalog.point("default", "a:1", digest("manifest a"));
        catalog.pin("default", "web", vec![digest("manifest a")]);
        catalog.replace("default", &[]);
        catalog.retain_namespaces(&[]);
        assert_eq!(names(&catalog.with_chain_id("default", &chain)), ["/bin/a"]);
        catalog.unpin("default", "web");
        assert_eq!(names(&catalog.with_chain_id("default", &chain)), [""; 0]);
    }

    #[test]
    fn an_image_that_was_not_read_is_asked_for_again() {
        let mut catalog = Catalog::default();
        catalog.point("default", "a:1", digest("manifest a"));
        catalog.point("default", "a:2", digest("manifest a"));
        assert_eq!(catalog.unread("default"), [digest("manifest a")]);
        assert!(catalog.learn(image("a", "chain"), None));
        assert_eq!(catalog.unread("default"), []);
    }

    #[test]
    fn at_the_bounds_what_is_new_is_refused_and_counted() {
        let mut catalog = Catalog::default();
        for number in 0..REFERENCES_MAX {
            catalog.point("default", &number.to_string(), digest("manifest a"));
        }
        assert!(catalog.is_complete("default"));
        catalog.point("default", "one more", digest("manifest a"));
        assert!(!catalog.is_complete("default"));
        assert_eq!(catalog.refused(), 1);
        catalog.replace("default", &[]);
        assert!(catalog.is_complete("default"));

        for number in 0..IMAGES_MAX + 10 {
            let name = number.to_string();
            assert!(
                catalog.learn(image(&name, "chain"), None),
                "{number} is not in use"
            );
        }
        for number in 0..IMAGES_MAX {
            let name = number.to_string();
            let target = digest(&format!("manifest {name}"));
            catalog.point("default", &name, target);
            catalog.learn(image(&name, "chain"), None);
        }
        assert!(catalog.refused() > 1);
        assert!(catalog.images.len() <= IMAGES_MAX);
    }
}
