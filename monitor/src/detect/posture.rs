//! What a container is started with that a policy may not allow: facts for its rules.

use serde_json::{Value, json};

use crate::{
    containers::posture::Posture,
    image::{contents::Contents, layer::EntryKind},
};

/// Shells, where images have them.
const SHELLS: [&str; 8] = [
    "/bin/sh",
    "/bin/ash",
    "/bin/bash",
    "/bin/busybox",
    "/bin/dash",
    "/bin/ksh",
    "/bin/zsh",
    "/busybox/sh",
];

/// Package managers, likewise.
const PACKAGE_MANAGERS: [&str; 12] = [
    "/sbin/apk",
    "/usr/bin/apt",
    "/usr/bin/apt-get",
    "/usr/bin/dnf",
    "/usr/bin/dpkg",
    "/usr/bin/microdnf",
    "/usr/bin/npm",
    "/usr/bin/pip",
    "/usr/bin/pip3",
    "/usr/bin/rpm",
    "/usr/bin/yum",
    "/usr/bin/zypper",
];

/// Files with credentials that belong to people, not into images.
const CREDENTIALS: [&str; 12] = [
    "/.dockerconfigjson",
    "/.env",
    "/app/.env",
    "/root/.aws/credentials",
    "/root/.docker/config.json",
    "/root/.git-credentials",
    "/root/.kube/config",
    "/root/.netrc",
    "/root/.pgpass",
    "/root/.ssh/id_ecdsa",
    "/root/.ssh/id_ed25519",
    "/root/.ssh/id_rsa",
];

/// What conditions see as `posture`; what an image holds is empty where that is not known.
pub fn facts(posture: &Posture, is_pinned: bool, contents: Option<&Contents>) -> Value {
    let has = |path: &&str| {
        let found = contents.and_then(|contents| contents.resolve(path.as_bytes()));
        found.is_some_and(|(_, found)| matches!(found.entry.kind, EntryKind::File(_)))
    };
    let present = |paths: &[&'static str]| -> Vec<&'static str> {
        paths.iter().copied().filter(|path| has(&path)).collect()
    };
    let mut facts = json!(posture);
    if let Some(facts) = facts.as_object_mut() {
        facts.insert("digestPinned".to_owned(), json!(is_pinned));
        facts.insert("shells".to_owned(), json!(present(&SHELLS)));
        let managers = present(&PACKAGE_MANAGERS);
        facts.insert("packageManagers".to_owned(), json!(managers));
        let credentials = present(&CREDENTIALS);
        facts.insert("credentialFiles".to_owned(), json!(credentials));
    }
    facts
}
