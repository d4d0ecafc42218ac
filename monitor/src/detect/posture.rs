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
        found.is_some_and(|(_, found)| matches!(found.kind, EntryKind::File { .. }))
    };
    let present = |paths: &[&'static str]| -> Vec<&'static str> {
        paths.iter().copied().filter(|path| has(path)).collect()
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

/// The same for people: what is there of it, in words.
pub fn words(facts: &Value) -> String {
    let is = |name: &str, value: bool| facts.get(name) == Some(&json!(value));
    let flags = [
        (is("privileged", true), "privileged"),
        (is("root", true), "as root"),
        (
            is("writableRoot", true),
            "with a root filesystem that can be written to",
        ),
        (is("seccomp", false), "without seccomp"),
        (is("noNewPrivileges", false), "without no_new_privileges"),
        (is("digestPinned", false), "by a reference without a digest"),
    ];
    let lists = [
        ("hostNamespaces", "in the host's namespaces"),
        ("addedCapabilities", "with"),
        ("runtimeSockets", "with a runtime's socket in"),
        ("secrets", "with secrets in the variables"),
        ("shells", "with the shells"),
        ("packageManagers", "with the package managers"),
        ("credentialFiles", "with credentials in"),
    ];
    let flags = flags.into_iter().filter(|(is, _)| *is);
    let lists = lists.into_iter().filter_map(|(name, what)| {
        let names: Vec<&str> = (facts.get(name)?.as_array()?.iter())
            .filter_map(Value::as_str)
            .collect();
        (!names.is_empty()).then(|| format!("{what} {}", names.join(", ")))
    });
    let words: Vec<String> = flags.map(|(_, it)| it.to_owned()).chain(lists).collect();
    format!("started {}", words.join("; "))
}
