//! Profiles on disk: what this node learned or was given, and the folder of those that people keep
//! elsewhere.

use std::{
    collections::{BTreeMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use super::{PROFILES_MAX, Source, members::Members};
use crate::{
    digest::Digest,
    files::{self, Folder},
    profile::{DOCUMENT_BYTES_MAX, Document, Profile},
};

/// Names of containers that are not to be learned from, one a line.
const DISTRUSTED: &str = "distrusted";
/// Bytes of that file; of a longer one nothing is read.
const DISTRUSTED_BYTES_MAX: u64 = 4 << 20;
/// A profile as it is written.
pub(super) struct Stored {
    pub(super) manifest: Digest,
    pub(super) source: Source,
    pub(super) document: Document,
}

/// What was read.
#[derive(Default)]
pub(super) struct Read {
    pub(super) profiles: Vec<(Source, Profile)>,
    pub(super) failed: u64,
}

/// The daemon's own directory of profiles.
#[derive(Clone, Debug)]
pub(super) struct Store {
    directory: PathBuf,
    // Of two writes the later one stays.
    turn: Arc<Mutex<()>>,
}

impl Store {
    /// Opens a directory, which is made if needed, and reads what is there. Blocks.
    pub(super) fn open(directory: PathBuf) -> (Self, Read) {
        let mut read = Read::default();
        if let Err(error) = files::open_directory(&directory) {
            tracing::error!(%error, directory = %directory.display(), "cannot make the directory of profiles; what is learned is lost when monitord is started again");
            read.failed += 1;
        }
        for path in files::listed(&directory).unwrap_or_default() {
            let name = path.file_name().and_then(|name| name.to_str());
            let source = match name {
                Some(name) if name.ends_with(".learned.yaml") => Source::Learned,
                Some(name) if name.ends_with(".imported.yaml") => Source::Imported,
                _ => continue,
            };
            match profile(&path) {
                _ if read.profiles.len() >= PROFILES_MAX => {}
                Ok(profile) => read.profiles.push((source, profile)),
                Err(reason) => {
                    tracing::error!(path = %path.display(), reason, "a profile was not read; it is learned anew");
                    read.failed += 1;
                }
            }
        }
        let turn = Arc::default();
        (Self { directory, turn }, read)
    }

    /// Names of containers that an earlier daemon did not learn from. Blocks.
    pub(super) fn distrusted(&self) -> HashSet<String> {
        let path = self.directory.join(DISTRUSTED);
        let bytes = files::read(&path, DISTRUSTED_BYTES_MAX).unwrap_or_default();
        String::from_utf8_lossy(&bytes)
            .lines()
            .map(str::to_owned)
            .collect()
    }

    /// Writes what it is given, with the containers that are not to be learned from.
    pub(super) fn writer(&self, members: &Members) -> Writer {
        Writer {
            store: self.clone(),
            distrusted: members.distrusted(),
        }
    }

    /// Removes a profile.
    pub(super) fn remove(&self, manifest: &Digest) {
        for source in [Source::Learned, Source::Imported] {
            // It may never have been written.
            let _ = fs::remove_file(self.path(manifest, source));
        }
    }

    fn path(&self, manifest: &Digest, source: Source) -> PathBuf {
        let name = format!("{}.{}.yaml", manifest.0, source.name());
        self.directory.join(name)
    }
}

/// Writes profiles, away from the owner.
pub(super) struct Writer {
    store: Store,
    distrusted: Vec<String>,
}

impl Writer {
    /// Gives how many could not be written. Blocks.
    pub(super) fn write(&self, profiles: &[Stored]) -> u64 {
        let _turn = self
            .store
            .turn
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut failed = 0;
        let mut note = |path: &Path, result: io::Result<()>| {
            if let Err(error) = result {
                tracing::error!(%error, path = %path.display(), "cannot write what was learned; it is tried again when more is learned");
                failed += 1;
            }
        };
        let distrusted = self.store.directory.join(DISTRUSTED);
        let lines = self.distrusted.join("\n");
        note(&distrusted, files::replace(&distrusted, lines.as_bytes()));
        for profile in profiles {
            let path = self.store.path(&profile.manifest, profile.source);
            let text = profile.document.to_yaml();
            note(&path, files::replace(&path, text.as_bytes()));
            // One that was learned before it was given by the API.
            if profile.source == Source::Imported {
                let learned = self.store.path(&profile.manifest, Source::Learned);
                let _ = fs::remove_file(learned);
            }
        }
        failed
    }
}

/// The profiles of a folder.
pub(in super::super) struct Found {
    /// By manifest digest.
    pub(super) profiles: BTreeMap<Digest, Profile>,
    /// Files that are refused.
    pub(super) failed: u64,
}

impl Found {
    /// What is in a folder, if it is not what was there before. Blocks.
    pub(super) fn read(folder: &mut Folder) -> Option<Self> {
        let mut found = Self {
            profiles: BTreeMap::new(),
            failed: 0,
        };
        for path in folder.changed()? {
            match profile(&path) {
                Ok(profile) => {
                    found.profiles.insert(profile.subject().manifest, profile);
                }
                Err(reason) => {
                    tracing::error!(path = %path.display(), reason, "a profile of the folder is refused; those in force stay as they are");
                    found.failed += 1;
                }
            }
        }
        Some(found)
    }
}

fn profile(path: &Path) -> Result<Profile, String> {
    let text = files::read_text(path, DOCUMENT_BYTES_MAX)?;
    let document = Document::parse(&text).map_err(|error| error.to_string())?;
    Profile::of(&document).map_err(|error| error.to_string())
}
