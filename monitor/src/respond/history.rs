//! Which images ran and stayed up, by container id: what a rollback may go back to without being told.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use super::record::read;
use crate::{digest::Digest, files};

/// Container ids of which it is remembered; of more the one that ran longest ago goes.
pub const WORKLOADS_MAX: usize = 4096;
/// Images remembered of each; of more the one seen longest ago goes.
pub const IMAGES_MAX: usize = 16;
/// Looks at which a task must be there before its image counts; there are [`super::LOOK_INTERVAL`]
/// between two.
const LOOKS_MIN: u32 = 2;

/// A container that runs, of an image that is proven.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Seen {
    /// containerd's namespace and the container's id.
    pub workload: String,
    /// Its process.
    pub pid: u32,
    /// Its manifest.
    pub manifest: Digest,
}

/// What ran.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct History {
    workloads: BTreeMap<String, Workload>,
    // Counts what was seen.
    last: u64,
    #[serde(skip)]
    looks: HashMap<Seen, u32>,
}

/// What ran under a container id.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Workload {
    // The last one last.
    images: Vec<Digest>,
    // When something of it was seen last, by `History::last`.
    seen: u64,
}

impl History {
    /// Takes in what runs now; whether something is new.
    pub fn look(&mut self, seen: Vec<Seen>) -> bool {
        let mut looks = HashMap::new();
        let mut is_new = false;
        for seen in seen {
            let count = self.looks.get(&seen).map_or(1, |count| count + 1);
            if count >= LOOKS_MIN {
                is_new |= self.ran(&seen.workload, seen.manifest);
            }
            looks.insert(seen, count.min(LOOKS_MIN));
        }
        self.looks = looks;
        is_new
    }

    /// An image ran here and stayed up; whether that is new.
    pub fn ran(&mut self, workload: &str, manifest: Digest) -> bool {
        self.last += 1;
        if !self.workloads.contains_key(workload) && self.workloads.len() >= WORKLOADS_MAX {
            self.forget_oldest();
        }
        let own = self.workloads.entry(workload.to_owned()).or_default();
        own.seen = self.last;
        if own.images.last() == Some(&manifest) {
            return false;
        }
        own.images.retain(|it| *it != manifest);
        own.images.push(manifest);
        if own.images.len() > IMAGES_MAX {
            own.images.remove(0);
        }
        true
    }

    fn forget_oldest(&mut self) {
        let oldest = self.workloads.iter().min_by_key(|(_, it)| it.seen);
        if let Some(name) = oldest.map(|(name, _)| name.clone()) {
            self.workloads.remove(&name);
        }
    }

    /// The images that ran here, the last one last.
    pub fn of(&self, workload: &str) -> Vec<Digest> {
        let own = self.workloads.get(workload);
        own.map(|it| it.images.clone()).unwrap_or_default()
    }
}

/// The file that it is kept in.
#[derive(Clone, Debug)]
pub struct Kept(PathBuf);

impl Kept {
    /// Reads it; one that cannot be read is told, and begun anew. Blocks.
    pub fn open(path: PathBuf) -> (Self, History) {
        let history = if path.exists() {
            read(&path).unwrap_or_else(|reason| {
                tracing::error!(path = %path.display(), reason, "it is not known any more which images ran here; give --to to roll back");
                History::default()
            })
        } else {
            History::default()
        };
        (Self(path), history)
    }

    /// Writes it. Blocks.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn save(&self, history: &[u8]) -> io::Result<()> {
        files::replace(&self.0, history)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::manifest::digest_of;

    #[test]
    fn an_image_counts_once_its_task_stayed() {
        let seen = |pid, image: &str| Seen {
            workload: "default/web".to_owned(),
            pid,
            manifest: digest_of(image.as_bytes()),
        };
        let mut history = History::default();
        assert!(!history.look(vec![seen(1, "a")]));
        assert!(!history.look(vec![seen(2, "b")]));
        assert!(history.look(vec![seen(2, "b")]));
        assert!(!history.look(vec![seen(2, "b")]));
        assert!(!history.look(Vec::new()));
        assert!(!history.look(vec![seen(2, "b")]));
        assert!(history.ran("default/web", digest_of(b"c")));
        assert_eq!(
            history.of("default/web"),
            [digest_of(b"b"), digest_of(b"c")]
        );
        assert_eq!(history.of("default/db"), []);
    }

    #[test]
    fn at_the_bounds_the_oldest_goes() {
        let mut history = History::default();
        for number in 0..IMAGES_MAX + 3 {
            history.ran("a", digest_of(number.to_string().as_bytes()));
        }
        assert_eq!(history.of("a").len(), IMAGES_MAX);
        for number in 0..WORKLOADS_MAX + 3 {
            history.ran(&format!("w{number}"), digest_of(b"x"));
            // It still runs.
            history.ran("w1", digest_of(b"x"));
        }
        assert_eq!(history.workloads.len(), WORKLOADS_MAX);
        let is_known = |workload: &str| !history.of(workload).is_empty();
        let known = ["a", "w0", "w1", "w2", "w3", "w4"].map(is_known);
        assert_eq!(known, [false, false, true, false, false, true]);
    }
}
