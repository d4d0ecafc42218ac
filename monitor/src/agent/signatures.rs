//! The owner's part for signatures: asks for those of running images whose repositories need one, and
//! keeps the verdicts that approvals are judged by.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{owner::Owner, state::Done};
use crate::{
    containers::{Container, Identity, repository},
    detect::approval::Unsigned,
    provenance::{Provenance, Subject, Verdict},
};

/// How often signatures of what runs are asked for again: they may have been removed.
const SIGNED_AGAIN: Duration = Duration::from_secs(600);
/// The same of what has none that is valid: it may have been signed since.
const UNSIGNED_AGAIN: Duration = Duration::from_secs(30);
/// Images that are asked for at once; further ones in one of the next seconds.
const IN_FLIGHT_MAX: usize = 64;

/// Verdicts on the signatures of images that run.
pub(super) struct Signatures {
    provenance: Provenance,
    known: HashMap<Subject, Known>,
    in_flight: HashSet<Subject>,
    generation: u64,
}

struct Known {
    verdict: Arc<Verdict>,
    since: Instant,
}

impl Signatures {
    pub(super) fn new(provenance: Provenance) -> Self {
        Self {
            generation: provenance.generation(),
            provenance,
            known: HashMap::new(),
            in_flight: HashSet::new(),
        }
    }

    /// Why a container's image counts as unsigned, if its repository needs a signature: of an image
    /// that it may be, the first that has none. `None` until that is known.
    pub(super) fn unsigned(&self, container: &Container) -> Option<Unsigned> {
        let subjects = self.subjects(container);
        let verdicts = subjects
            .iter()
            .filter_map(|it| Some((it, &self.known.get(it)?.verdict)));
        let mut unsigned = verdicts.filter(|(_, verdict)| !verdict.signature.is_valid());
        let (subject, verdict) = unsigned.next()?;
        Some(Unsigned {
            manifest: subject.manifest,
            signature: verdict.signature.clone(),
        })
    }

    /// The images that a container may be of, if its repository needs a signature.
    fn subjects(&self, container: &Container) -> Vec<Subject> {
        let reference = container.image_reference.as_deref().unwrap_or_default();
        let repository = repository(reference);
        if !self.provenance.is_required(repository) {
            return Vec::new();
        }
        let images = container.identity.images().iter();
        let subject = images.map(|image| Subject {
            runtime_namespace: container.runtime_namespace.clone(),
            repository: repository.to_owned(),
            manifest: image.manifest,
            index: image.index,
        });
        subject.collect()
    }
}

impl Owner {
    /// Asks for the signatures of what runs, where they are not known, are of other keys, or are old.
    pub(super) fn signature_tick(&mut self) {
        let signatures = &mut self.state.signatures;
        if !signatures.provenance.has_keys() {
            return;
        }
        let provenance = signatures.provenance.clone();
        let refreshed = provenance.clone();
        self.state.in_flight.spawn(async move {
            let generation = refreshed.refresh().await;
            Done::Keys(generation)
        });
        let mut running = HashSet::new();
        for (container, is_running) in self.inventory.containers() {
            if is_running && container.identity != Identity::Pending {
                running.extend(signatures.subjects(container));
            }
        }
        signatures
            .known
            .retain(|subject, _| running.contains(subject));
        for subject in running {
            let generation = signatures.generation;
            let known = signatures.known.get(&subject);
            let is_known = known.is_some();
            let is_current = known.is_some_and(|known| {
                let is_valid = known.verdict.signature.is_valid();
                let interval = if is_valid {
                    SIGNED_AGAIN
                } else {
                    UNSIGNED_AGAIN
                };
                known.verdict.generation == generation && known.since.elapsed() < interval
            });
            let has_room = signatures.in_flight.len() < IN_FLIGHT_MAX;
            if is_current || !has_room || !signatures.in_flight.insert(subject.clone()) {
                continue;
            }
            let provenance = provenance.clone();
            self.state.in_flight.spawn(async move {
                let verdict = if is_known {
                    provenance.verify_now(&subject).await
                } else {
                    provenance.verify(&subject).await
                };
                Done::Signature(Box::new(subject), verdict)
            });
        }
    }

    /// Keys were read anew.
    pub(super) fn signature_keys(&mut self, generation: u64) {
        self.state.signatures.generation = generation;
    }

    /// Takes in a verdict.
    pub(super) fn signature_known(&mut self, subject: Subject, verdict: Arc<Verdict>) {
        let signatures = &mut self.state.signatures;
        signatures.in_flight.remove(&subject);
        let known = Known {
            verdict,
            since: Instant::now(),
        };
        signatures.known.insert(subject, known);
        // Judged with the next tick: several come at once.
        self.state.approvals.make_due();
    }
}
