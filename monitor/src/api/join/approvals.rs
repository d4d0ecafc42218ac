//! What a controller tells of approvals: statements, in parts.

use jiff::Timestamp;
use monitor_api::v1::{self, join_response};
use prost::Message as _;

use crate::approval::{
    State, Statement,
    cluster::{CLUSTER_BYTES_MAX, ClusterApprovals, ClusterError},
};

/// Why a set was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ToldError {
    /// As a whole.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// One of its statements.
    #[error("statement about {repository:?}: {problem}")]
    Statement { repository: String, problem: String },
}

/// The parts that have come of a set that is not whole yet.
#[derive(Debug, Default)]
pub(super) struct Parts {
    statements: Vec<(String, Statement)>,
    bytes: usize,
    /// Further parts are left aside.
    refused: Option<ToldError>,
}

impl Parts {
    /// Takes a part in; with the last one the set is whole, or refused.
    pub(super) fn take(
        &mut self,
        part: join_response::Approvals,
    ) -> Option<Result<ClusterApprovals, ToldError>> {
        let is_last = !part.more;
        if self.refused.is_none()
            && let Err(error) = self.add(part)
        {
            // What came before it is of no use either.
            *self = Self {
                refused: Some(error),
                ..Self::default()
            };
        }
        if !is_last {
            return None;
        }
        let whole = std::mem::take(self);
        Some(match whole.refused {
            Some(error) => Err(error),
            None => ClusterApprovals::new(whole.statements).map_err(ToldError::from),
        })
    }

    fn add(&mut self, part: join_response::Approvals) -> Result<(), ToldError> {
        self.bytes = self.bytes.saturating_add(part.encoded_len());
        if self.bytes > CLUSTER_BYTES_MAX {
            return Err(ClusterError::TooLong.into());
        }
        for approval in part.approvals {
            self.statements.push(statement(approval)?);
        }
        Ok(())
    }
}

fn statement(told: v1::Approval) -> Result<(String, Statement), ToldError> {
    let refused = |problem: String| ToldError::Statement {
        repository: told.repository.chars().take(80).collect(),
        problem,
    };
    let time = |name: &str, at: prost_types::Timestamp| {
        let at = Timestamp::new(at.seconds, at.nanos);
        at.map_err(|_| refused(format!("{name} is no time")))
    };
    let digest = told.digest.parse();
    let digest = digest.map_err(|error| refused(format!("digest: {error}")))?;
    let state = match told.state.as_str() {
        "approved" => State::Approved,
        "revoked" => State::Revoked,
        _ => {
            return Err(refused(
                "its state is neither approved nor revoked".to_owned(),
            ));
        }
    };
    let at = told.at.ok_or_else(|| refused("it has no time".to_owned()));
    let statement = Statement {
        digest,
        state,
        at: time("at", at?)?,
        until: told.until.map(|it| time("until", it)).transpose()?,
        by: told.by,
        reason: told.reason,
    };
    Ok((told.repository, statement))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn approval(repository: &str) -> v1::Approval {
        v1::Approval {
            repository: repository.to_owned(),
            digest: format!("sha256:{}", "a".repeat(64)),
            state: "approved".to_owned(),
            by: "alice".to_owned(),
            at: Some(prost_types::Timestamp::default()),
            reason: "why".to_owned(),
            ..v1::Approval::default()
        }
    }

    fn part(approvals: Vec<v1::Approval>, more: bool) -> join_response::Approvals {
        join_response::Approvals { approvals, more }
    }

    #[test]
    fn parts_become_a_set() {
        let mut parts = Parts::default();
        assert_eq!(parts.take(part(vec![approval("a")], true)), None);
        assert_eq!(parts.take(part(Vec::new(), true)), None);
        let set = parts.take(part(vec![approval("b")], false));
        assert_eq!(set.unwrap().unwrap().documents().len(), 2);
        // The next one begins anew.
        let set = parts.take(part(Vec::new(), false));
        assert_eq!(set, Some(Ok(ClusterApprovals::default())));
    }

    #[test]
    fn a_set_with_a_statement_that_makes_no_sense_is_refused_as_a_whole() {
        let check = |change: fn(&mut v1::Approval), expect: &str| {
            let mut wrong = approval("a");
            change(&mut wrong);
            let mut parts = Parts::default();
            let kept = parts.take(part(vec![approval("b"), wrong], true));
            assert_eq!(kept, None);
            let set = parts.take(part(vec![approval("c")], false));
            let error = set.unwrap().unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
            let set = parts.take(part(vec![approval("c")], false));
            assert_eq!(set.unwrap().unwrap().documents().len(), 1);
        };
        check(|it| it.digest.clear(), "digest");
        check(|it| it.digest = "\u{1b}[31m".repeat(1 << 10), "digest");
        check(|it| it.state = "later".to_owned(), "neither");
        check(|it| it.at = None, "no time");
        check(|it| it.at.as_mut().unwrap().seconds = i64::MAX, "at is no");
        check(|it| it.at.as_mut().unwrap().nanos = i32::MAX, "at is no");
        check(
            |it| {
                let until = prost_types::Timestamp {
                    seconds: i64::MIN,
                    nanos: 0,
                };
                it.until = Some(until);
            },
            "until is no",
        );
    }

    #[test]
    fn what_never_ends_is_refused_and_not_kept() {
        let mut long = approval("a");
        long.reason = "x".repeat(1 << 20);
        let mut parts = Parts::default();
        for _ in 0..100 {
            assert_eq!(parts.take(part(vec![long.clone()], true)), None);
            assert!(parts.bytes <= CLUSTER_BYTES_MAX && parts.statements.len() <= 32);
        }
        let refused = parts.take(part(Vec::new(), false));
        assert_eq!(refused, Some(Err(ClusterError::TooLong.into())));
    }
}
