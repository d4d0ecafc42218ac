//! Lets go of the index of layers that no image has any more.

use std::{
    collections::{HashMap, HashSet},
    future, mem,
    sync::Arc,
    time::Duration,
};

use tokio::{task, time};

use super::node::NodeView;
use crate::{
    containers::catalog::{Image, Reference},
    digest::Digest,
};

/// How long an image that a container still uses waits for the next look.
const AGAIN: Duration = Duration::from_secs(30);

/// By manifest digest.
type Images = HashMap<Digest, Arc<Image>>;

/// Images that were there, and those of them that are gone and whose index is not. Only what was seen
/// to go is let go of, so that an image that is not known yet loses nothing.
#[derive(Default)]
struct Removal {
    known: Images,
    gone: Images,
}

impl Removal {
    /// There are these references and no other.
    fn see(&mut self, references: &[Reference]) {
        let images = references.iter().filter_map(|one| one.image.as_ref());
        let now: Images = images
            .map(|image| (image.id.manifest, Arc::clone(image)))
            .collect();
        self.gone.extend(mem::replace(&mut self.known, now));
        self.gone
            .retain(|manifest, _| !self.known.contains_key(manifest));
    }

    /// Takes the images that no container uses, by their manifests, and the layers that no other
    /// image has.
    fn take(&mut self, used: &HashSet<Digest>) -> (Vec<Digest>, Vec<Digest>) {
        let (kept, unused) = mem::take(&mut self.gone)
            .into_iter()
            .partition(|(manifest, _)| used.contains(manifest));
        self.gone = kept;
        let unused: Images = unused;
        let needed = self.known.values().chain(self.gone.values());
        let needed: HashSet<&Digest> = needed.flat_map(|image| &image.config.diff_ids).collect();
        let layers = unused.values().flat_map(|image| &image.config.diff_ids);
        let layers: HashSet<Digest> = layers.filter(|id| !needed.contains(id)).copied().collect();
        (unused.into_keys().collect(), layers.into_iter().collect())
    }
}

impl NodeView {
    /// Follows what becomes of images, until there are no more references to come.
    pub(super) async fn forget_removed(self: Arc<Self>) {
        let mut references = self.references.clone();
        let mut removal = Removal::default();
        loop {
            removal.see(&references.borrow_and_update());
            if !removal.gone.is_empty() && self.forget(&mut removal).await.is_none() {
                return;
            }
            let again = async {
                if removal.gone.is_empty() {
                    future::pending().await
                } else {
                    time::sleep(AGAIN).await;
                }
            };
            tokio::select! {
                changed = references.changed() => if changed.is_err() { return },
                () = again => {}
            }
        }
    }

    async fn forget(&self, removal: &mut Removal) -> Option<()> {
        let containers = self.snapshot().await?.containers;
        let used = containers
            .iter()
            .flat_map(|(container, _, _)| container.identity.images());
        let (images, layers) = removal.take(&used.map(|image| image.manifest).collect());
        if images.is_empty() {
            return Some(());
        }
        let store = self.contents.images().clone();
        task::spawn_blocking(move || store.forget(&images, &layers))
            .await
            .ok()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::{
        containers::ImageId,
        image::manifest::{Config, digest_of},
    };

    fn digest(name: &str) -> Digest {
        digest_of(name.as_bytes())
    }

    /// A reference to an image of that name, with a layer per letter.
    fn reference(name: &str, layers: &str) -> Reference {
        let image = Image {
            id: ImageId {
                manifest: digest(name),
                config: digest(name),
                chain_id: digest(layers),
                index: None,
            },
            config: Config {
                diff_ids: layers
                    .chars()
                    .map(|name| digest(&name.to_string()))
                    .collect(),
                ..Config::default()
            },
        };
        Reference {
            namespace: "default".to_owned(),
            name: name.to_owned(),
            target: digest(name),
            image: Some(Arc::new(image)),
        }
    }

    #[test]
    fn a_layer_goes_with_the_last_image_that_has_it() {
        let all = [
            reference("web", "abc"),
            reference("db", "abd"),
            reference("job", "ae"),
        ];
        let mut removal = Removal::default();
        #[track_caller]
        fn check(removal: &mut Removal, left: &[Reference], used: &[&str], expect: &str) {
            removal.see(left);
            let used = used.iter().map(|name| digest(name)).collect();
            let (_, layers) = removal.take(&used);
            let mut names: Vec<char> = ('a'..='e')
                .filter(|name| layers.contains(&digest(&name.to_string())))
                .collect();
            names.sort_unstable();
            assert_eq!(names.into_iter().collect::<String>(), expect);
            assert_eq!(layers.len(), expect.len());
        }
        let [web, db, job] = &all;
        check(&mut removal, &all, &[], "");
        check(&mut removal, &[web.clone(), db.clone()], &[], "e");
        // A container still uses it.
        check(&mut removal, std::slice::from_ref(web), &["db"], "");
        check(&mut removal, std::slice::from_ref(web), &[], "d");
        // Back before anybody looked.
        removal.see(&[]);
        check(&mut removal, std::slice::from_ref(web), &[], "");
        check(&mut removal, &[], &["web"], "");
        check(&mut removal, std::slice::from_ref(job), &["web"], "");
        check(&mut removal, &[], &["web"], "e");
        check(&mut removal, &[], &[], "abc");
        assert!(removal.gone.is_empty() && removal.known.is_empty());
        assert!(all.first().unwrap().image.is_some());
    }
}
