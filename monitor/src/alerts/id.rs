//! Ids of alerts: by what an alert is raised of, so that a record that is read again after a crash is
//! known by the alert that it had.

use jiff::Timestamp;
use monitor_api::v1;
use ulid::Ulid;

use super::build::rules;
use crate::{detect::Finding, digest::Hasher};

/// Bytes of an id beside its time.
const BYTES: usize = 10;

/// What a finding was raised of: the use of a file or a peer by a process, and the kind of rule. Not the
/// verdict, which may be another when the file is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Subject([u8; BYTES]);

impl Subject {
    /// Of `finding` in the boot whose id the kernel says is `boot`.
    pub fn new(finding: &Finding, boot: &[u8; 16]) -> Self {
        let mut hasher = Hasher::new();
        hasher.update(boot);
        hasher.update(&finding.time_boot_ns.to_le_bytes());
        let pid = finding.process.as_ref().map(|process| process.process.pid);
        hasher.update(&pid.unwrap_or(0).to_le_bytes());
        hasher.update(rules(finding.kind).as_bytes());
        hasher.update(finding.rule.as_deref().unwrap_or_default().as_bytes());
        let file = finding.file.as_ref().map(|file| &file.path);
        let peer = finding.connection.as_ref().map(|peer| &peer.address);
        hasher.update(&[0]);
        hasher.update(file.or(peer).map_or(&[][..], |name| name));
        let mut bytes = [0; BYTES];
        bytes
            .iter_mut()
            .zip(hasher.finish().0)
            .for_each(|(own, hashed)| *own = hashed);
        Self(bytes)
    }

    /// Of which `alert` was raised; `None` if its id is none.
    pub fn of(alert: &v1::Alert) -> Option<Self> {
        let id = Ulid::from_string(&alert.id).ok()?.to_bytes();
        Some(Self(*id.last_chunk()?))
    }

    /// The id of its alert when it is first raised at `time`.
    pub fn id(self, time: Timestamp) -> Ulid {
        let mut random = [0; 16];
        random
            .iter_mut()
            .rev()
            .zip(self.0.iter().rev())
            .for_each(|(random, own)| *random = *own);
        let milliseconds = u64::try_from(time.as_millisecond()).unwrap_or(0);
        Ulid::from_parts(milliseconds, u128::from_be_bytes(random))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::{alerts::build::tests::finding, detect::Kind};

    #[test]
    fn a_record_that_is_read_again_is_known_by_its_alert() {
        let finding = finding();
        let first = Subject::new(&finding, &[1; 16]);
        let time = Timestamp::from_second(1_764_000_000).unwrap();
        let alert = v1::Alert {
            id: first.id(time).to_string(),
            ..v1::Alert::default()
        };
        assert_eq!(Subject::of(&alert), Some(first));
        assert_eq!(Subject::of(&v1::Alert::default()), None);
        let check = |change: &dyn Fn(&mut Finding), boot, is_same| {
            let mut changed = finding.clone();
            change(&mut changed);
            let again = Subject::new(&changed, &[boot; 16]);
            assert_eq!(again == first, is_same, "{changed:?}");
        };
        check(&|_| {}, 1, true);
        check(&|finding| finding.kind = Kind::ContentUnverifiable, 1, true);
        check(&|finding| finding.kind = Kind::OpenSensitive, 1, false);
        check(&|finding| finding.time_boot_ns += 1, 1, false);
        check(
            &|finding| finding.file.as_mut().unwrap().path.push(b'x'),
            1,
            false,
        );
        check(
            &|finding| finding.process.as_mut().unwrap().process.pid += 1,
            1,
            false,
        );
        check(&|_| {}, 2, false);
    }
}
