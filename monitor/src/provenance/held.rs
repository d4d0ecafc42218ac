//! What sources said of images, so that a source that is down changes nothing.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use jiff::Timestamp;
use lru::LruCache;
use tokio::{sync::Mutex, task::spawn_blocking, time::Instant};

use super::{
    gather::Gathered,
    judge::{Asked, Candidate, Signed},
    keys::Keys,
    signature::{Attestation, Signature},
    verdict::{Down, Source, Subject, Verdict},
};
use crate::digest::Digest;

/// How long what sources said is taken at most while one of them does not answer.
const FRESH_WHILE_DOWN: Duration = Duration::from_secs(60);
/// Images of which it is held what sources said; the longest not asked for are asked for anew.
const HELD_MAX: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
/// Bytes of all documents that are held; likewise.
const HELD_BYTES_MAX: usize = 16 << 20;

/// What sources said, by image.
pub(super) struct Held {
    images: LruCache<Subject, (usize, Arc<Mutex<Known>>)>,
    bytes: usize,
}

/// What sources said of one image.
#[derive(Default)]
pub(super) struct Known {
    asked: Option<(Instant, Timestamp)>,
    answers: Vec<Answer>,
    /// What its signatures may be for.
    pub(super) candidates: Arc<Vec<Candidate>>,
    verdict: Option<Arc<Verdict>>,
}

/// What one of them said.
struct Answer {
    source: Source,
    said: Option<(Timestamp, Arc<Gathered>)>,
    down: Option<(Timestamp, String)>,
}

impl Known {
    /// Whether sources need not be asked again.
    pub(super) fn is_fresh(&self, fresh: Duration) -> bool {
        let is_down = self.answers.iter().any(|it| it.down.is_some());
        let fresh = if is_down {
            fresh.min(FRESH_WHILE_DOWN)
        } else {
            fresh
        };
        self.asked.is_some_and(|(asked, _)| asked.elapsed() < fresh)
    }

    /// Bytes that are held of it.
    pub(super) fn bytes(&self) -> usize {
        let candidates = self.candidates.iter().filter_map(|it| it.bytes.as_ref());
        self.said().map(|gathered| gathered.bytes()).sum::<usize>()
            + candidates.map(Vec::len).sum::<usize>()
    }

    /// Takes note that all sources were asked; whoever goes away before leaves it to the next.
    pub(super) fn asked(&mut self) {
        self.asked = Some((Instant::now(), Timestamp::now()));
        self.verdict = None;
    }

    /// Takes in what a source said; of one that is down what it said before stays.
    pub(super) fn take(&mut self, source: Source, said: Result<Gathered, String>) {
        let now = Timestamp::now();
        let place = self.answers.iter().position(|it| it.source == source);
        let before = place.map(|place| self.answers.swap_remove(place));
        let (was_said, was_down) = before.map_or((None, None), |it| (it.said, it.down));
        self.answers.push(match said {
            Ok(gathered) => Answer {
                source,
                said: Some((now, Arc::new(gathered))),
                down: None,
            },
            Err(reason) => Answer {
                source,
                said: was_said,
                down: Some((was_down.map_or(now, |(since, _)| since), reason)),
            },
        });
    }

    /// What was said of it.
    fn said(&self) -> impl Iterator<Item = &Arc<Gathered>> {
        let said = self.answers.iter().filter_map(|it| it.said.as_ref());
        said.map(|(_, gathered)| gathered)
    }

    /// Digests of the bytes without which its signatures cannot be checked.
    pub(super) fn messages(&self) -> Vec<Digest> {
        let signed = self.said().flat_map(|it| it.signed.iter());
        signed.filter_map(Signed::message).collect()
    }

    /// The verdict by the keys of this generation.
    pub(super) async fn judge(
        &mut self,
        repository: &str,
        keys: Arc<Keys>,
        generation: u64,
    ) -> Arc<Verdict> {
        if let Some(verdict) = &self.verdict
            && verdict.generation == generation
        {
            return Arc::clone(verdict);
        }
        let said: Vec<_> = self.said().map(Arc::clone).collect();
        let candidates = Arc::clone(&self.candidates);
        let repository = repository.to_owned();
        let judged = spawn_blocking(move || {
            let asked = Asked {
                repository: &repository,
                candidates: &candidates,
                now: Timestamp::now(),
            };
            asked.judge(said.iter().flat_map(|it| it.signed.iter()), &keys)
        });
        // It fails only while the daemon stops.
        let judged = judged.await;
        let signature = judged.unwrap_or_else(|_| Signature::unusable("monitord is ending"));
        let verdict = Arc::new(self.verdict(signature, generation));
        self.verdict = Some(Arc::clone(&verdict));
        verdict
    }

    fn verdict(&self, signature: Signature, generation: u64) -> Verdict {
        let down = self.answers.iter().filter_map(|answer| {
            let (since, reason) = answer.down.clone()?;
            Some(Down {
                source: answer.source,
                since,
                reason,
                answered: answer.said.as_ref().map(|(at, _)| *at),
            })
        });
        let down: Vec<_> = down.collect();
        let silent = down.iter().find(|it| it.answered.is_none());
        let signature = match (signature, silent) {
            (Signature::Missing, Some(silent)) => Signature::Unreachable {
                what: silent.to_string(),
            },
            (signature, _) => signature,
        };
        let mut attestations: Vec<Attestation> = Vec::new();
        for attestation in self.said().flat_map(|it| &it.attestations) {
            if !attestations.contains(attestation) {
                attestations.push(attestation.clone());
            }
        }
        Verdict {
            signature,
            attestations,
            down,
            asked: self.asked.map_or_else(Timestamp::now, |(_, asked)| asked),
            generation,
        }
    }
}

impl Held {
    pub(super) fn new() -> Self {
        Self {
            images: LruCache::new(HELD_MAX),
            bytes: 0,
        }
    }

    /// What is held of an image, to be asked for by one at a time.
    pub(super) fn get(&mut self, subject: &Subject) -> Arc<Mutex<Known>> {
        if let Some((_, known)) = self.images.get(subject) {
            return Arc::clone(known);
        }
        let known = Arc::<Mutex<Known>>::default();
        let entry = (0, Arc::clone(&known));
        if let Some((_, (bytes, _))) = self.images.push(subject.clone(), entry) {
            self.bytes = self.bytes.saturating_sub(bytes);
        }
        known
    }

    /// Takes note of what is held of an image, and lets go of others for it.
    pub(super) fn weigh(&mut self, subject: &Subject, bytes: usize) {
        // It may have been let go of meanwhile.
        let Some((held, _)) = self.images.get_mut(subject) else {
            return;
        };
        self.bytes = self.bytes.saturating_sub(*held).saturating_add(bytes);
        *held = bytes;
        while self.bytes > HELD_BYTES_MAX {
            let Some((_, (bytes, _))) = self.images.pop_lru() else {
                return;
            };
            self.bytes = self.bytes.saturating_sub(bytes);
        }
    }
}
