//! The images that references of this node stand for, by what is asked of them.

use std::collections::{HashMap, HashSet};

use crate::{
    containers::{Container, ImageId, catalog::Reference},
    detect::approval::DeniedBase,
    digest::Digest,
    image::manifest::chain_ids,
};

/// References of this node by the manifest that they stand for, and by their name.
pub(super) struct Known<'a> {
    by_manifest: HashMap<Digest, Vec<&'a Reference>>,
    by_name: HashMap<(&'a str, &'a str), &'a Reference>,
}

impl<'a> Known<'a> {
    pub(super) fn new(references: &'a [Reference]) -> Self {
        let mut by_manifest: HashMap<Digest, Vec<&Reference>> = HashMap::new();
        let mut by_name = HashMap::new();
        for reference in references {
            by_name.insert((&*reference.namespace, &*reference.name), reference);
            if let Some(image) = &reference.image {
                let same = by_manifest.entry(image.id.manifest).or_default();
                same.push(reference);
            }
        }
        Self {
            by_manifest,
            by_name,
        }
    }

    fn of(&self, manifest: &Digest) -> &[&'a Reference] {
        self.by_manifest.get(manifest).map_or(&[], Vec::as_slice)
    }

    /// Names of references that stand for a manifest.
    pub(super) fn names(&self, manifest: &Digest) -> impl Iterator<Item = &'a str> {
        let of = self.of(manifest).iter();
        // CRI names images by their config as well.
        let is_name = |name: &&str| name.parse::<Digest>().is_err();
        of.map(|it| it.name.as_str()).filter(is_name)
    }

    /// The digests by which an image is known: its manifest's, and those of indexes that hold it.
    pub(super) fn digests(&self, manifest: Digest, claimed: Option<Digest>) -> Vec<Digest> {
        let targets = self.of(&manifest).iter().map(|it| it.target);
        let mut digests: Vec<Digest> = targets.chain(claimed).chain([manifest]).collect();
        digests.sort_unstable();
        digests.dedup();
        digests
    }

    /// The same of each image that a container may be of.
    pub(super) fn candidates(&self, container: &Container) -> Vec<Vec<Digest>> {
        let of = |image: &ImageId| self.digests(image.manifest, image.index);
        let images = container.identity.images().iter();
        images.map(|image| of(image)).collect()
    }

    /// What a container's reference stands for now, if that is another image; `None` of an index that
    /// was not read.
    pub(super) fn moved_to(&self, container: &Container) -> Option<Digest> {
        let reference = container.image_reference.as_deref()?;
        let images = container.identity.images();
        if images.is_empty() || reference.contains('@') {
            return None;
        }
        let name = (&*container.runtime_namespace, reference);
        let now = self.by_name.get(&name)?;
        let manifest = now.image.as_ref()?.id.manifest;
        let is_own = images.iter().any(|image| image.manifest == manifest);
        (!is_own).then_some(now.target)
    }

    /// The image that a container's is built on, if it is one of those that are denied.
    pub(super) fn denied_base<'b>(
        &self,
        container: &Container,
        denied: &'b [DeniedBase],
    ) -> Option<&'b DeniedBase> {
        if denied.is_empty() {
            return None;
        }
        let images = container.identity.images().iter();
        let known = images.filter_map(|image| self.of(&image.manifest).first()?.image.as_ref());
        let chains: HashSet<Digest> = known
            .flat_map(|image| chain_ids(&image.config.diff_ids))
            .collect();
        denied.iter().find(|base| chains.contains(&base.chain_id))
    }
}
