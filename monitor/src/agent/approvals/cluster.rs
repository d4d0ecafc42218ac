//! What the cluster's controller told of images: in force beside what this node was told, and kept on
//! disk while the controller is away.

use std::{
    io,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use monitor_api::v1;
use tokio::sync::oneshot;

use crate::{
    agent::{node::NodeView, owner::Owner, query::Query},
    api::{self, ApprovalCallError, Member, Node},
    approval::{
        Document,
        cluster::{CLUSTER_BYTES_MAX, ClusterApprovals},
    },
    files::{self, ReadError},
};

/// What the controller told.
pub(super) struct Cluster {
    /// The controller's, where approvals are to be made.
    pub(super) address: String,
    pub(super) told: ClusterApprovals,
    /// Why what an earlier daemon kept is not in force.
    pub(super) error: Option<String>,
}

impl Cluster {
    /// With what an earlier daemon kept. What cannot be read is told and left out: the controller will
    /// tell it again. Blocks.
    pub(super) fn open(state: &Path, address: &str) -> Self {
        let mut cluster = Self {
            address: address.to_owned(),
            told: ClusterApprovals::default(),
            error: None,
        };
        let file = file(state);
        match read(&file) {
            Ok(told) => cluster.told = told,
            Err(error) => cluster.refuse(&format!("{}: {error}", file.display())),
        }
        cluster
    }

    /// Leaves what was kept out.
    pub(super) fn refuse(&mut self, error: &str) {
        tracing::error!(
            error,
            "the cluster's approvals are not in force until the controller tells them"
        );
        self.told = ClusterApprovals::default();
        self.error = Some(format!("the cluster's approvals are refused: {error}"));
    }

    pub(super) fn documents(&self) -> &[Document] {
        self.told.documents()
    }
}

/// Where it is kept.
pub(in crate::agent) fn file(state: &Path) -> PathBuf {
    state.join("approvals-cluster.json")
}

fn read(file: &Path) -> Result<ClusterApprovals, String> {
    let bytes_max = u64::try_from(CLUSTER_BYTES_MAX).unwrap_or(u64::MAX);
    match files::read(file, bytes_max) {
        Ok(bytes) => ClusterApprovals::from_json(&bytes).map_err(|error| error.to_string()),
        // Nothing was told yet.
        Err(ReadError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
            Ok(ClusterApprovals::default())
        }
        Err(error) => Err(error.to_string()),
    }
}

impl Owner {
    /// Puts what the controller told in force, in place of what it told before.
    pub(in crate::agent) fn approval_cluster(
        &mut self,
        told: ClusterApprovals,
    ) -> Result<(), ApprovalCallError> {
        let approvals = &mut self.state.approvals;
        let Some(cluster) = &mut approvals.cluster else {
            let reason = "no controller is configured".to_owned();
            return Err(ApprovalCallError::Failed(reason));
        };
        let before = std::mem::replace(&mut cluster.told, told);
        match approvals.combined() {
            Ok(in_force) => approvals.in_force = in_force,
            Err(error) => {
                if let Some(cluster) = &mut approvals.cluster {
                    cluster.told = before;
                }
                return Err(error.into());
            }
        }
        if let Some(cluster) = &mut approvals.cluster {
            cluster.error = None;
        }
        self.approval_judge(Timestamp::now());
        Ok(())
    }
}

#[api::async_trait]
impl Member for NodeView {
    async fn containers(&self) -> Vec<v1::Container> {
        Node::containers(self).await
    }

    async fn approve(&self, told: ClusterApprovals) -> Result<(), ApprovalCallError> {
        let failed = ApprovalCallError::Failed;
        // What could not be read back is not put in force either.
        let bytes = told.to_json().map_err(|error| failed(error.to_string()))?;
        let (answer_in, answer) = oneshot::channel();
        let query = Query::ClusterApprovals(told, answer_in);
        // Both fail only while the daemon stops.
        (self.queries.send(query).await).map_err(|_| ApprovalCallError::Stopping)?;
        answer.await.map_err(|_| ApprovalCallError::Stopping)??;
        let file = self.cluster_approvals_file.clone();
        let written = tokio::task::spawn_blocking(move || {
            let written = files::replace(&file, &bytes);
            written.map_err(|error| format!("cannot write {}: {error}", file.display()))
        });
        if let Ok(Err(error)) = written.await {
            tracing::warn!(
                error,
                "the cluster's approvals are in force, and not kept over a restart"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_was_kept_is_read_or_left_out_aloud() {
        let directory = tempfile::tempdir().unwrap();
        let path = file(directory.path());
        let check = |content: Option<&[u8]>, documents: usize, error: &str| {
            if let Some(content) = content {
                fs::write(&path, content).unwrap();
            }
            let cluster = Cluster::open(directory.path(), "https://c:1");
            assert_eq!(cluster.documents().len(), documents);
            let found = cluster.error.unwrap_or_default();
            assert!(
                found.contains(error) && found.is_empty() == error.is_empty(),
                "{found}"
            );
        };
        let document = r#"{"apiVersion":"monitor.v1","kind":"ImageApproval","repository":"a","statements":[]}"#;
        check(None, 0, "");
        check(Some(b"[]"), 0, "");
        check(Some(format!("[{document}]").as_bytes()), 1, "");
        // Cut off, as a filesystem that lost its end would have it.
        check(Some(format!("[{document}").as_bytes()), 0, "no JSON");
        check(Some(b"\xff\x00"), 0, "no JSON");
        check(Some(&vec![b' '; CLUSTER_BYTES_MAX + 1]), 0, "at most");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        check(None, 0, "no regular file");
    }
}
