//! What clients of the API ask of profiles.

use jiff::Timestamp;
use monitor_api::v1;
use tokio::sync::oneshot;

use super::{Entry, PROFILES_MAX, Profiles, Source};
use crate::{
    agent::{node::NodeView, owner::Owner, query::Query},
    alerts::build::timestamp,
    api::{ProfileCall, ProfileError},
    digest::Digest,
    profile::{Document, Profile},
};

/// Digits of a digest that must be given at least; the tables show as many.
const DIGEST_DIGITS_MIN: usize = 12;

impl NodeView {
    /// See [`Node::profiles`](crate::api::Node::profiles).
    pub(in crate::agent) async fn ask_profiles(
        &self,
        call: ProfileCall,
    ) -> Result<Vec<v1::Profile>, ProfileError> {
        let (answer_in, answer) = oneshot::channel();
        let query = Query::Profiles(call, answer_in);
        // Both fail only while the daemon stops.
        (self.queries.send(query).await).map_err(|_| ProfileError::Stopping)?;
        answer.await.map_err(|_| ProfileError::Stopping)?
    }
}

impl Owner {
    /// Answers a call about profiles.
    pub(in crate::agent) fn profile_call(
        &mut self,
        call: ProfileCall,
    ) -> Result<Vec<v1::Profile>, ProfileError> {
        let now = Timestamp::now();
        let profiles = &mut self.state.profiles;
        let is_frozen_before = |profiles: &Profiles, manifest| {
            let entry = profiles.entries.get(manifest);
            entry.is_some_and(|it| it.profile.state() == crate::profile::State::Frozen)
        };
        let manifest = match call {
            ProfileCall::List => {
                let all = profiles.entries.iter();
                return Ok(all.map(|(_, entry)| said(entry, false)).collect());
            }
            ProfileCall::Get { image } => {
                let manifest = profiles.meant(&image)?;
                return Ok(profiles.said(&manifest));
            }
            ProfileCall::Import { document } => {
                let document = Document::parse(&document)
                    .map_err(|error| ProfileError::Refused(error.to_string()))?;
                profiles.import(&document, now)?
            }
            ProfileCall::Learn { image } => {
                let manifest = profiles.meant(&image)?;
                profiles.changeable(&manifest)?.profile.learn(now);
                manifest
            }
            ProfileCall::Freeze { image, by } => {
                let manifest = profiles.meant(&image)?;
                if !is_frozen_before(profiles, &manifest) {
                    profiles.changeable(&manifest)?.profile.freeze(&by, now);
                }
                manifest
            }
        };
        let said = profiles.said(&manifest);
        profiles.save_soon();
        self.weigh_again();
        Ok(said)
    }
}

impl Profiles {
    /// The profile that a reference or a digest, or its first digits, means.
    fn meant(&self, image: &str) -> Result<Digest, ProfileError> {
        let digits = image.strip_prefix("sha256:").unwrap_or(image);
        let is_prefix = digits.len() >= DIGEST_DIGITS_MIN
            && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let meant = self.entries.iter().filter(|(manifest, entry)| {
            let subject = entry.profile.subject();
            let digests = [**manifest, subject.config];
            let mut digests = digests.iter().map(|digest| digest.0.to_string());
            subject.reference == image || (is_prefix && digests.any(|it| it.starts_with(digits)))
        });
        let meant: Vec<Digest> = meant.map(|(manifest, _)| *manifest).collect();
        match meant.as_slice() {
            [] => Err(ProfileError::NoProfile(image.to_owned())),
            [one] => Ok(*one),
            several => Err(ProfileError::Ambiguous {
                image: image.to_owned(),
                digests: several
                    .iter()
                    .map(Digest::to_string)
                    .collect::<Vec<_>>()
                    .join(", "),
            }),
        }
    }

    /// A profile that may be changed here: the folder's may not.
    fn changeable(&mut self, manifest: &Digest) -> Result<&mut Entry, ProfileError> {
        let none = || ProfileError::NoProfile(manifest.to_string());
        let entry = self.entries.get_mut(manifest).ok_or_else(none)?;
        if entry.source == Source::Folder {
            return Err(ProfileError::InFolder(manifest.to_string()));
        }
        entry.is_dirty = true;
        Ok(entry)
    }

    fn import(&mut self, document: &Document, now: Timestamp) -> Result<Digest, ProfileError> {
        let refused =
            |error: crate::profile::DocumentError| ProfileError::Refused(error.to_string());
        let profile = Profile::of(document).map_err(refused)?;
        let manifest = profile.subject().manifest;
        if self.entries.contains_key(&manifest) {
            self.changeable(&manifest)?;
        } else if !self.make_room() {
            return Err(ProfileError::Full(PROFILES_MAX));
        }
        match self.entries.get_mut(&manifest) {
            Some(entry) => {
                self.members.begin_anew(&manifest, entry, profile, now);
                entry.source = Source::Imported;
                entry.is_dirty = true;
            }
            None => {
                let entry = Entry::new(profile, Source::Imported, now);
                self.entries.insert(manifest, entry);
            }
        }
        Ok(manifest)
    }

    /// The account of them.
    pub(in crate::agent) fn status(&self) -> v1::status::Behaviour {
        let mut status = v1::status::Behaviour {
            expected: self.counts.expected,
            learned: self.counts.learned,
            ignored: self.counts.ignored,
            deviations: self.counts.deviations,
            unprofiled: self.counts.unprofiled,
            failed: self.counts.failed,
            ..v1::status::Behaviour::default()
        };
        for entry in self.entries.values() {
            let state = entry.profile.state().name().to_owned();
            *status.profiles.entry(state).or_default() += 1;
            status.bytes += u64::try_from(entry.profile.bytes()).unwrap_or(u64::MAX);
        }
        status
    }

    fn said(&self, manifest: &Digest) -> Vec<v1::Profile> {
        let entry = self.entries.get(manifest);
        entry.map(|entry| said(entry, true)).into_iter().collect()
    }
}

fn said(entry: &Entry, is_whole: bool) -> v1::Profile {
    let document = entry.profile.document();
    let subject = entry.profile.subject();
    let frozen = document.frozen.as_ref();
    let count = |length: usize| u64::try_from(length).unwrap_or(u64::MAX);
    v1::Profile {
        manifest_digest: subject.manifest.to_string(),
        reference: subject.reference.clone(),
        state: entry.profile.state().name().to_owned(),
        source: entry.source.name().to_owned(),
        complete: document.reasons.is_empty(),
        reasons: document.reasons.clone(),
        executables: count(document.main.executables.len()),
        files: count(document.main.files.len()),
        peers: count(document.main.peers.len()),
        sockets: count(document.main.sockets.len()),
        running: entry.running,
        deviations: entry.deviations,
        frozen_at: frozen.map(|frozen| timestamp(frozen.at)),
        frozen_by: frozen.map(|frozen| frozen.by.clone()).unwrap_or_default(),
        document: if is_whole {
            document.to_yaml()
        } else {
            String::new()
        },
    }
}
