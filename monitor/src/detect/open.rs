//! Files that nobody should open without a reason: credentials, and the state of whoever runs the
//! containers.

use std::sync::Arc;

use super::{FileFinding, FileVerdict, Finding, HashState, Kind, ProcessFinding, Severity};
use monitor_api::bytes::escape;

use crate::{
    containers::{Container, Task},
    sensor::event::{FileUse, Open},
};

/// What makes a file sensitive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sensitive {
    /// What it is, for people.
    what: &'static str,
    severity: Severity,
}

/// How a path tells a sensitive file.
enum Pattern {
    /// The whole path.
    Path(&'static [u8]),
    /// The end of the path, from a `/` on: in whatever home directory.
    End(&'static [u8]),
    /// A name in a directory or anywhere below it.
    Below(&'static [u8], &'static [u8]),
}

const PATTERNS: &[(Pattern, &str, Severity)] = {
    use Pattern::{Below, End, Path};
    use Severity::{High, Low, Medium};
    const PASSWORDS: &str = "hashes of passwords";
    const CLOUD: &str = "credentials of a cloud account";
    const KEY: &str = "a private key";
    const ACCOUNT: &str = "the token of a service account";
    &[
        (Path(b"/etc/shadow"), PASSWORDS, Medium),
        (Path(b"/etc/shadow-"), PASSWORDS, Medium),
        (Path(b"/etc/gshadow"), PASSWORDS, Medium),
        (Path(b"/etc/gshadow-"), PASSWORDS, Medium),
        // Whoever talks to the cluster does so, and whoever is about to take it over.
        (Below(b"/run/secrets/", b"/token"), ACCOUNT, Low),
        (Below(b"/var/run/secrets/", b"/token"), ACCOUNT, Low),
        (End(b"/.aws/credentials"), CLOUD, High),
        (
            End(b"/.config/gcloud/application_default_credentials.json"),
            CLOUD,
            High,
        ),
        (End(b"/.config/gcloud/credentials.db"), CLOUD, High),
        (End(b"/.azure/msal_token_cache.json"), CLOUD, High),
        (End(b"/.azure/accessTokens.json"), CLOUD, High),
        (
            End(b"/.docker/config.json"),
            "credentials of a registry",
            High,
        ),
        (End(b"/.kube/config"), "credentials of a cluster", High),
        (End(b"/.ssh/id_rsa"), KEY, High),
        (End(b"/.ssh/id_ecdsa"), KEY, High),
        (End(b"/.ssh/id_ed25519"), KEY, High),
    ]
};

/// The home directory in which images have such files.
const HOME: &[u8] = b"/root";

/// Where the node keeps the state of its containers and of the cluster's agent.
const NODE_STATE: &[&[u8]] = &[
    b"/run/containerd",
    b"/var/lib/containerd",
    b"/run/docker",
    b"/var/lib/docker",
    b"/run/crio",
    b"/var/lib/containers",
    b"/var/lib/kubelet",
    b"/etc/kubernetes",
    b"/var/lib/rancher",
    b"/var/lib/etcd",
];

/// Names of sensitive files that a container's root may hold when it starts.
pub fn names() -> impl Iterator<Item = Vec<u8>> {
    PATTERNS.iter().filter_map(|(pattern, ..)| match pattern {
        Pattern::Path(whole) => Some(whole.to_vec()),
        Pattern::End(end) => Some([HOME, *end].concat()),
        Pattern::Below(..) => None,
    })
}

/// Whether the file is sensitive, by its names now or by the one that it had when the container
/// started.
pub fn sensitive(used: &FileUse, task: Option<&Task>) -> Option<Sensitive> {
    let file = &used.file;
    let before = name_before(used, task).unwrap_or_default();
    let names = [file.path.as_slice(), &file.path_in_filesystem, before];
    let by_name = PATTERNS.iter().find(|(pattern, ..)| {
        names.iter().any(|path| match pattern {
            Pattern::Path(whole) => *path == *whole,
            Pattern::End(end) => path.ends_with(end),
            Pattern::Below(directory, name) => path.starts_with(directory) && path.ends_with(name),
        })
    });
    if let Some((_, what, severity)) = by_name {
        return Some(Sensitive {
            what,
            severity: *severity,
        });
    }
    let is_of_node = !is_in_root(used, task)
        && NODE_STATE
            .iter()
            .any(|state| is_within(&file.path_in_filesystem, state))
        && shows_all(&file.path, &file.path_in_filesystem);
    is_of_node.then_some(Sensitive {
        what: "the state of the node's containers",
        severity: Severity::High,
    })
}

/// What the file was called when the container started, if that was noted.
fn name_before<'a>(used: &FileUse, task: Option<&'a Task>) -> Option<&'a [u8]> {
    let (task, facts) = (task?, &used.file.facts);
    let name = task.named.get(&facts.inode)?;
    (task.root_device == Some(facts.device)).then_some(name)
}

fn is_in_root(used: &FileUse, task: Option<&Task>) -> bool {
    let (device, path) = (used.file.facts.device, &used.file.path_in_filesystem);
    task.is_some_and(|task| task.path_in_root(device, path).is_some())
}

fn is_within(path: &[u8], directory: &[u8]) -> bool {
    path.strip_prefix(directory)
        .is_some_and(|rest| rest.first() == Some(&b'/'))
}

/// Whether the mount by which a file was reached shows a directory of the node's state as a whole.
/// Volumes lie in such directories too, but their mounts begin below.
fn shows_all(seen: &[u8], in_filesystem: &[u8]) -> bool {
    let components = |path: &[u8]| -> Vec<Vec<u8>> {
        path.rsplit(|byte| *byte == b'/')
            .map(<[u8]>::to_vec)
            .collect()
    };
    let (seen, inside) = (components(seen), components(in_filesystem));
    let common = seen
        .iter()
        .zip(&inside)
        .take_while(|(seen, inside)| seen == inside)
        .count();
    let mut root: Vec<u8> = Vec::new();
    for component in inside.iter().skip(common).rev().filter(|c| !c.is_empty()) {
        root.push(b'/');
        root.extend_from_slice(component);
    }
    NODE_STATE
        .iter()
        .any(|state| state.starts_with(&root) && is_within(in_filesystem, state))
}

/// `open_sensitive`, unless the container's runtime opened it while it was making the container.
pub fn judge(
    opened: &Open,
    container: &Arc<Container>,
    process: ProcessFinding,
    host_mount_namespace: u32,
    hook: &'static str,
) -> Option<Finding> {
    let used = &opened.used;
    if used.process.mount_namespace == host_mount_namespace {
        return None;
    }
    let task = container.task.as_ref();
    let sensitive = sensitive(used, task)?;
    let path = &used.file.path;
    let before = match name_before(used, task) {
        Some(name) if name != *path => format!("; it was {} at the start", escape(name)),
        _ => String::new(),
    };
    let done = match (opened.is_received, opened.access.write) {
        (false, true) => "was opened for writing",
        (false, false) => "was opened for reading",
        (true, true) => "was handed over open for writing",
        (true, false) => "was handed over open for reading",
    };
    Some(Finding {
        kind: Kind::OpenSensitive,
        severity: sensitive.severity,
        time_boot_ns: used.time_boot_ns,
        container: Arc::clone(container),
        evidence: None,
        message: format!(
            "{} {done}, which holds {}{before}",
            escape(path),
            sensitive.what
        ),
        process: Some(process),
        file: Some(file_of(used, is_in_root(used, task))),
        connection: None,
        details: None,
        hook: Some(hook),
        rule: None,
    })
}

/// What is said of a file that was opened, whose bytes nobody compared.
pub(super) fn file_of(used: &FileUse, is_in_root: bool) -> FileFinding {
    FileFinding {
        path: used.file.path.clone(),
        path_truncated: used.file.path_truncated,
        verdict: if !is_in_root {
            FileVerdict::Volume
        } else if used.file.facts.lower_version().is_some() {
            FileVerdict::Image
        } else {
            FileVerdict::Unverifiable
        },
        layer: None,
        expected: None,
        seen: None,
        hash_state: HashState::NotRead,
        same_bytes_as: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::file::tests as sample;

    const ROOT_DEVICE: u32 = 50;
    const OTHER_DEVICE: u32 = 60;

    const SHADOW: u64 = 4711;

    fn task() -> Task {
        Task {
            pid: 1,
            mount_namespace: None,
            root_device: Some(ROOT_DEVICE),
            root_path: Vec::new(),
            rootfs: None,
            named: [(SHADOW, b"/etc/shadow".to_vec())].into(),
        }
    }

    #[test]
    fn a_file_stays_sensitive_under_another_name() {
        let check = |inode: u64, device: u32, expect: bool| {
            let mut used = sample::exec("/tmp/x", |_| {}).used;
            used.file.facts.inode = inode;
            used.file.facts.device = device;
            let found = sensitive(&used, Some(&task()));
            assert_eq!(found.is_some(), expect, "{inode} {device}");
        };
        check(SHADOW, ROOT_DEVICE, true);
        check(SHADOW, OTHER_DEVICE, false);
        check(SHADOW + 1, ROOT_DEVICE, false);
    }

    #[test]
    fn sensitive_files_are_told_by_their_paths() {
        let check = |seen: &str, inside: &str, device: u32, expect: Option<Severity>| {
            let mut used = sample::exec(seen, |_| {}).used;
            used.file.path_in_filesystem = inside.as_bytes().to_vec();
            used.file.facts.device = device;
            let found = sensitive(&used, Some(&task())).map(|sensitive| sensitive.severity);
            assert_eq!(found, expect, "{seen} {inside}");
        };
        let (medium, high) = (Some(Severity::Medium), Some(Severity::High));
        let own = |path: &str, expect| check(path, path, ROOT_DEVICE, expect);
        own("/etc/shadow", medium);
        own("/etc/passwd", None);
        own("/etc/shadow/x", None);
        own("/root/.aws/credentials", high);
        own("/home/a b/.ssh/id_ed25519", high);
        own("/root/aws/credentials", None);
        own("/var/lib/docker/x", None);
        // Reached by a bind mount under another name.
        check("/mnt/s", "/etc/shadow", ROOT_DEVICE, medium);
        check("/host/etc/shadow", "/etc/shadow", OTHER_DEVICE, medium);
        check(
            "/run/secrets/kubernetes.io/serviceaccount/..2026/token",
            "/..2026/token",
            OTHER_DEVICE,
            Some(Severity::Low),
        );
        check("/run/secrets/password", "/password", OTHER_DEVICE, None);
        // The state itself, and volumes that lie in it.
        check(
            "/host/var/lib/kubelet/x",
            "/var/lib/kubelet/x",
            OTHER_DEVICE,
            high,
        );
        check(
            "/k/pods/1/x",
            "/var/lib/kubelet/pods/1/x",
            OTHER_DEVICE,
            high,
        );
        check(
            "/data/x",
            "/var/lib/kubelet/pods/1/volumes/d/x",
            OTHER_DEVICE,
            None,
        );
        check(
            "/etc/hosts",
            "/var/lib/kubelet/pods/1/etc-hosts",
            OTHER_DEVICE,
            None,
        );
    }
}
