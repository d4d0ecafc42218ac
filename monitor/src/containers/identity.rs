//! Which image a container was created from, and how surely that is known. Pure.
//!
//! # What proves what
//!
//! *The root filesystem* is proven by the snapshot: containerd names a committed snapshot by the
//! chain ID of the layers unpacked into it, and the container's own snapshot is a child of that
//! one. Only the nearest ancestor counts, because whatever lies above a known chain ID adds files
//! to it. The one exception are remapped users: a snapshot in between has the same files with
//! shifted owners, and its name is derived from its parent's (measured on 1.6.20:
//! `CHAINID-UID-GID`; in the source of 2.x: the digest of a JSON of parent and mappings, which is
//! computed here from the spec's own mappings).
//!
//! *Config and manifest* are not proven by the snapshot when several images of the namespace have
//! the same layers. CRI's record of the config digest narrows them, and so does what the
//! container's reference pointed to when its creation was seen. What it points to later proves
//! nothing: it can have been moved.
//!
//! *The spec* (arguments, environment, user, directory) never proves, in either direction: each of
//! these can be overridden when the container is created, up to an exact likeness of another
//! image. So it only puts the candidates in order.
//!
//! One candidate alone is called proven: no other image that the namespace holds accounts for the
//! container. An image with the same layers that was deleted before this program started cannot be
//! counted. Root on the node can give a snapshot any name.

use std::sync::Arc;

use serde::Serialize;

use super::{
    Identity, ImageId, SnapshotLayers,
    catalog::{Catalog, Image},
    facts::{Claims, IdMap, ProcessFacts},
};
use crate::{
    digest::Digest,
    image::manifest::{Config, digest_of},
};

/// How many ancestors of a container's snapshot are asked for: a remapped one and the one below.
pub const ANCESTORS_MAX: usize = 2;

/// What is above a container's own snapshot, nearest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ancestry {
    /// Names, at most [`ANCESTORS_MAX`].
    pub names: Vec<String>,
    /// Nothing is below the last name, or enough names are there.
    pub complete: bool,
}

impl Ancestry {
    /// For a container whose snapshots cannot be asked for.
    pub const UNKNOWN: Self = Self {
        names: Vec::new(),
        complete: false,
    };
}

/// What speaks for a container's image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// The image reference it was created with.
    pub reference: Option<String>,
    /// What is above its snapshot.
    pub ancestry: Ancestry,
    /// What the reference pointed to when the container's creation was seen; `None` if it was
    /// there before, or if the reference was changed after the snapshot had been made.
    pub resolved_at_creation: Option<Digest>,
    /// What its record says.
    pub claims: Claims,
}

/// The image's files are those below the container, or not, or nobody can say.
enum Chain {
    Known(Digest),
    Other,
    Unknown,
}

/// Grades the evidence by the images of the container's namespace.
pub fn grade(evidence: &Evidence, namespace: &str, catalog: &Catalog) -> Identity {
    match chain(&evidence.ancestry, &evidence.claims.id_map, |chain_id| {
        !catalog.with_chain_id(namespace, chain_id).is_empty()
    }) {
        Chain::Known(chain_id) => {
            let candidates = catalog.with_chain_id(namespace, &chain_id);
            by_candidates(evidence, namespace, catalog, candidates)
        }
        // A name that leads to other files than those below the container is not even a claim.
        Chain::Other => Identity::None,
        Chain::Unknown => evidence
            .resolved_at_creation
            .or(evidence.claims.target)
            .or_else(|| catalog.target(namespace, evidence.reference.as_deref()?))
            .and_then(|target| {
                let image = catalog.image(&target)?;
                Some(Identity::Claimed(identified(image, Some(target))))
            })
            .unwrap_or(Identity::None),
    }
}

/// The layers that the names of a container's snapshots tell of, whether an image of them is known or
/// not.
pub fn named_layers(ancestry: &Ancestry, id_map: &IdMap) -> Option<SnapshotLayers> {
    let nearest = ancestry.names.first()?;
    let below = ancestry.names.get(1);
    let below = below.filter(|below| is_remap_of(nearest, below, id_map));
    Some(SnapshotLayers {
        chain_id: below.unwrap_or(nearest).parse().ok()?,
        is_remapped: below.is_some(),
    })
}

fn chain(ancestry: &Ancestry, id_map: &IdMap, known: impl Fn(&Digest) -> bool) -> Chain {
    let Some(nearest) = ancestry.names.first() else {
        return if ancestry.complete {
            Chain::Other
        } else {
            Chain::Unknown
        };
    };
    let named = nearest.parse().ok().filter(|chain_id| known(chain_id));
    let remapped = || {
        let below = ancestry.names.get(1)?;
        if is_remap_of(nearest, below, id_map) {
            below.parse().ok().filter(|chain_id| known(chain_id))
        } else {
            None
        }
    };
    match named.or_else(remapped) {
        Some(chain_id) => Chain::Known(chain_id),
        None => Chain::Other,
    }
}

/// Whether the snapshot `name` is containerd's copy of `parent` with shifted owners.
fn is_remap_of(name: &str, parent: &str, id_map: &IdMap) -> bool {
    #[derive(Serialize)]
    struct Remapped<'a> {
        #[serde(rename = "Parent")]
        parent: &'a str,
        #[serde(rename = "IDMap")]
        id_map: &'a IdMap,
    }
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let by_numbers = name
        .strip_prefix(parent)
        .and_then(|rest| rest.strip_prefix('-'))
        .and_then(|rest| rest.split_once('-'))
        .is_some_and(|(uid, gid)| is_number(uid) && is_number(gid));
    by_numbers
        || serde_json::to_vec(&Remapped { parent, id_map })
            .is_ok_and(|json| digest_of(&json).to_string() == name)
}

fn by_candidates(
    evidence: &Evidence,
    namespace: &str,
    catalog: &Catalog,
    mut candidates: Vec<Arc<Image>>,
) -> Identity {
    let reference_now =
        || catalog.target(namespace, evidence.reference.as_deref().unwrap_or_default());
    let mut contradicted = false;
    let mut narrowed = false;
    if let Some(config) = evidence.claims.config {
        let matching = |image: &Arc<Image>| image.id.config == config;
        if candidates.iter().any(matching) {
            candidates.retain(matching);
            narrowed = true;
        } else {
            // It was created from an image with these layers that is not known here.
            contradicted = true;
        }
    }
    let recorded = [evidence.claims.target, evidence.resolved_at_creation];
    for target in recorded.into_iter().flatten() {
        let manifest = catalog.image(&target).map(|image| image.id.manifest);
        let matching = |image: &Arc<Image>| Some(image.id.manifest) == manifest;
        if candidates.iter().any(matching) {
            candidates.retain(matching);
            narrowed = true;
        }
    }
    let target = |image: &Arc<Image>| {
        recorded
            .into_iter()
            .chain([reference_now()])
            .flatten()
            .find(|target| {
                catalog
                    .image(target)
                    .is_some_and(|found| found.id.manifest == image.id.manifest)
            })
    };
    let alone = candidates.len() == 1;
    let surely = !contradicted && (narrowed || catalog.is_complete(namespace));
    match candidates.first() {
        Some(image) if alone && surely => Identity::Proven(identified(image, target(image))),
        _ => {
            candidates.sort_by_key(|image| {
                let accounts = accounts_for(&image.config, &evidence.claims.process);
                (!accounts, image.id.clone())
            });
            Identity::Ambiguous(
                candidates
                    .iter()
                    .map(|image| identified(image, target(image)))
                    .collect(),
            )
        }
    }
}

/// The image, with the index if that is what led to it.
fn identified(image: &Arc<Image>, target: Option<Digest>) -> Arc<ImageId> {
    Arc::new(ImageId {
        index: target.filter(|target| *target != image.id.manifest),
        ..image.id.clone()
    })
}

/// Whether the process is what the config alone makes of it, nothing overridden.
fn accounts_for(config: &Config, process: &ProcessFacts) -> bool {
    let directory = match config.working_dir.as_str() {
        "" => "/",
        directory => directory,
    };
    // Names of users are looked up in the image's files, which are not read here.
    let user = config.user.split(':').next().unwrap_or_default();
    let uid = match user {
        "" | "root" => Some(0),
        user => user.parse().ok(),
    };
    config
        .entrypoint
        .iter()
        .chain(&config.cmd)
        .eq(&process.arguments)
        && config
            .env
            .iter()
            .all(|entry| process.environment.contains(entry))
        && directory == process.directory
        && uid.is_none_or(|uid| uid == process.uid)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            catalog::tests::{digest, image},
            facts::Mapping,
        },
        *,
    };

    /// `a` and `b` have the same layers, `c` is built on top of them, `d` stands alone.
    fn catalog() -> Catalog {
        let mut catalog = Catalog::default();
        for (name, chain) in [("a", "ab"), ("b", "ab"), ("c", "abc"), ("d", "d")] {
            catalog.learn(image(name, chain), Some(digest(&format!("index {name}"))));
            let target = digest(&format!("manifest {name}"));
            catalog.point("default", &format!("{name}:1"), target);
        }
        catalog.point("default", "d:2", digest("index d"));
        catalog.point("default", "d:3", digest("manifest d"));
        catalog
    }

    fn ancestry(names: &[String]) -> Ancestry {
        Ancestry {
            names: names.to_vec(),
            complete: true,
        }
    }

    fn chain_name(chain: &str) -> String {
        digest(chain).to_string()
    }

    fn plain(chain: &str) -> Evidence {
        Evidence {
            reference: None,
            ancestry: ancestry(&[chain_name(chain)]),
            resolved_at_creation: None,
            claims: Claims::default(),
        }
    }

    fn process(name: &str) -> ProcessFacts {
        ProcessFacts {
            arguments: vec![format!("/bin/{name}")],
            environment: vec!["PATH=/bin".to_owned(), "X=y".to_owned()],
            directory: "/".to_owned(),
            uid: 0,
        }
    }

    #[track_caller]
    fn check(evidence: &Evidence, expect: &str) {
        let catalog = catalog();
        let identity = grade(evidence, "default", &catalog);
        let name = |id: &Arc<ImageId>| {
            let entrypoint = catalog
                .image(&id.manifest)
                .map(|image| image.config.entrypoint.concat());
            let name = entrypoint.unwrap_or_default().replace("/bin/", "");
            if id.index.is_some() {
                format!("{name} by index")
            } else {
                name
            }
        };
        let images: Vec<String> = match &identity {
            Identity::Proven(id) | Identity::Claimed(id) => vec![name(id)],
            Identity::Ambiguous(ids) => ids.iter().map(name).collect(),
            Identity::None | Identity::Pending => Vec::new(),
        };
        let seen = format!("{} {}", identity.grade(), images.join(", "));
        assert_eq!(seen.trim(), expect);
    }

    fn both_in_order() -> String {
        if digest("manifest a") < digest("manifest b") {
            "ambiguous a, b".to_owned()
        } else {
            "ambiguous b, a".to_owned()
        }
    }

    #[test]
    fn one_image_with_the_chain_id_is_proven() {
        check(&plain("d"), "proven d");
        check(&plain("abc"), "proven c");
        // Its own reference says by which index it was found, whether it was seen being created
        // or only says so now.
        let with = |reference: &str| Evidence {
            reference: Some(reference.to_owned()),
            ..plain("d")
        };
        check(&with("d:1"), "proven d");
        check(&with("d:2"), "proven d by index");
        let created = Evidence {
            resolved_at_creation: Some(digest("index d")),
            ..with("d:1")
        };
        check(&created, "proven d by index");
    }

    #[test]
    fn a_moved_tag_changes_nothing() {
        // `d:1` would be `a` by now.
        let mut catalog = catalog();
        catalog.point("default", "d:1", digest("manifest a"));
        let evidence = Evidence {
            reference: Some("d:1".to_owned()),
            ..plain("d")
        };
        let expect = Identity::Proven(Arc::new(image("d", "d").id));
        assert_eq!(grade(&evidence, "default", &catalog), expect);
        // Nor if no reference leads to its image any more.
        catalog.pin("default", "web", vec![digest("manifest d")]);
        catalog.replace("default", &[("d:1".to_owned(), digest("manifest a"))]);
        assert_eq!(grade(&evidence, "default", &catalog), expect);
        // An image that was gone before this program came is unknown, not the tag's new one.
        catalog.unpin("default", "web");
        assert_eq!(grade(&evidence, "default", &catalog), Identity::None);
    }

    #[test]
    fn images_with_the_same_layers_are_told_apart_by_what_was_recorded() {
        check(&plain("ab"), &both_in_order());
        let created_from = |target: &str| Evidence {
            resolved_at_creation: Some(digest(target)),
            ..plain("ab")
        };
        check(&created_from("manifest a"), "proven a");
        check(&created_from("index b"), "proven b by index");
        // Pointed elsewhere: a race with somebody who moved it.
        check(&created_from("manifest d"), &both_in_order());
        check(&created_from("unknown"), &both_in_order());
        let by_cri = |config: &str| {
            let mut evidence = plain("ab");
            evidence.claims.config = Some(digest(config));
            evidence
        };
        check(&by_cri("config b"), "proven b");
        check(&by_cri("config of a deleted image"), &both_in_order());
        let mut evidence = plain("d");
        evidence.claims.config = Some(digest("config of a deleted image"));
        check(&evidence, "ambiguous d");
        let mut evidence = plain("ab");
        evidence.claims.target = Some(digest("manifest a"));
        check(&evidence, "proven a");
        // A reference that says so now says nothing of then.
        let evidence = Evidence {
            reference: Some("a:1".to_owned()),
            ..plain("ab")
        };
        check(&evidence, &both_in_order());
    }

    #[test]
    fn the_spec_puts_candidates_in_order_and_proves_nothing() {
        let with = |process: ProcessFacts| {
            let mut evidence = plain("ab");
            evidence.claims.process = process;
            evidence
        };
        check(&with(process("a")), "ambiguous a, b");
        check(&with(process("b")), "ambiguous b, a");
        check(&with(process("sh")), &both_in_order());
        let elsewhere = ProcessFacts {
            directory: "/tmp".to_owned(),
            ..process("a")
        };
        check(&with(elsewhere), &both_in_order());
    }

    #[test]
    fn only_a_remapped_snapshot_may_lie_between() {
        let below = chain_name("d");
        let between = |name: String| Evidence {
            ancestry: ancestry(&[name, below.clone()]),
            ..plain("d")
        };
        check(&between(format!("{below}-1000-1000")), "proven d");
        check(&between(format!("{below}-1000")), "none");
        check(&between(format!("{below}-x-y")), "none");
        check(&between(format!("{}-0-0", chain_name("ab"))), "none");
        check(&between("something".to_owned()), "none");
        // Layers that are not known on top of a known image.
        check(&between(chain_name("unknown")), "none");
        // containerd 2.x.
        let mapping = Mapping {
            container_id: 0,
            host_id: 1000,
            size: 65_536,
        };
        let id_map = IdMap {
            uids: vec![mapping],
            gids: vec![mapping],
        };
        let one = r#"[{"containerID":0,"hostID":1000,"size":65536}]"#;
        let json = format!(r#"{{"Parent":"{below}","IDMap":{{"UidMap":{one},"GidMap":{one}}}}}"#);
        let mut evidence = between(digest(&json).to_string());
        check(&evidence, "none");
        evidence.claims.id_map = id_map;
        check(&evidence, "proven d");
    }

    #[test]
    fn without_a_snapshot_there_is_at_most_a_claim() {
        let with = |reference: Option<&str>, ancestry: Ancestry| Evidence {
            reference: reference.map(str::to_owned),
            ancestry,
            ..plain("d")
        };
        // `ctr run --rootfs`: no snapshot, no reference.
        check(&with(None, Ancestry::UNKNOWN), "none");
        check(&with(Some("d:2"), Ancestry::UNKNOWN), "claimed d by index");
        check(&with(Some("no such"), Ancestry::UNKNOWN), "none");
        // A snapshot made from nothing is of no image.
        check(&with(Some("d:2"), ancestry(&[])), "none");
        // Another namespace's images do not count.
        let identity = grade(&plain("d"), "other", &catalog());
        assert_eq!(identity, Identity::None);
    }
}
