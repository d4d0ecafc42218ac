//! With how much privilege a container is started, by its spec. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde::{Deserialize, Serialize};

use crate::alerts::redact;

/// Names of a kind that are kept; further ones are left out.
const NAMES_MAX: usize = 64;
/// Bytes of a name that is kept; a longer one is cut.
const NAME_BYTES_MAX: usize = 256;

/// What a runtime gives a container that asks for nothing: docker's and containerd's default
/// (`oci/spec.go`, `defaultUnixCaps`).
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Namespaces that a container shares with the host unless its spec gives it others.
const NAMESPACES: [&str; 6] = ["cgroup", "ipc", "mount", "network", "pid", "uts"];

/// Directories of runtimes' sockets, and the sockets themselves.
const RUNTIME_SOCKETS: [&str; 6] = [
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/docker.sock",
    "/run/k3s/containerd/containerd.sock",
    "/run/podman/podman.sock",
    "/run/cri-dockerd.sock",
];

/// With how much privilege a container is started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Posture {
    /// It may administer the host and use every device.
    pub privileged: bool,
    /// Kinds of namespaces that it shares with the host.
    pub host_namespaces: BTreeSet<String>,
    /// Capabilities beyond those that runtimes give by default.
    pub added_capabilities: BTreeSet<String>,
    /// It is started as user 0 of the host.
    pub root: bool,
    /// Its root filesystem can be written to.
    pub writable_root: bool,
    /// System calls are filtered.
    pub seccomp: bool,
    /// Programs cannot gain privilege by set-user-id bits and file capabilities.
    pub no_new_privileges: bool,
    /// Paths of the host that hold a container runtime's socket and are mounted into it.
    pub runtime_sockets: BTreeSet<String>,
    /// Names of variables of its environment that hold what looks like a secret. The values are kept
    /// nowhere.
    pub secrets: BTreeSet<String>,
}

/// What of a spec bears on it (OCI runtime specification, `config.md` and `config-linux.md`).
#[derive(Default, Deserialize)]
struct Spec {
    process: Option<Process>,
    root: Option<Root>,
    mounts: Option<Vec<Mount>>,
    linux: Option<Linux>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Process {
    user: Option<User>,
    env: Option<Vec<String>>,
    capabilities: Option<Capabilities>,
    no_new_privileges: Option<bool>,
}

#[derive(Default, Deserialize)]
struct User {
    uid: Option<u32>,
}

#[derive(Default, Deserialize)]
struct Capabilities {
    bounding: Option<BTreeSet<String>>,
}

#[derive(Default, Deserialize)]
struct Root {
    readonly: Option<bool>,
}

#[derive(Deserialize)]
struct Mount {
    #[serde(default)]
    source: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Linux {
    namespaces: Option<Vec<Namespace>>,
    uid_mappings: Option<Vec<serde::de::IgnoredAny>>,
    seccomp: Option<serde::de::IgnoredAny>,
    resources: Option<Resources>,
}

#[derive(Deserialize)]
struct Namespace {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    path: String,
}

#[derive(Default, Deserialize)]
struct Resources {
    devices: Option<Vec<Device>>,
}

#[derive(Deserialize)]
struct Device {
    #[serde(default)]
    allow: bool,
    #[serde(rename = "type", default)]
    kind: String,
    major: Option<i64>,
    minor: Option<i64>,
}

impl Posture {
    /// Reads a spec; `None` if it is none.
    pub fn of(spec: &[u8]) -> Option<Self> {
        let spec: Spec = serde_json::from_slice(spec).ok()?;
        let linux = spec.linux.unwrap_or_default();
        let process = spec.process.unwrap_or_default();
        let capabilities = process.capabilities.and_then(|it| it.bounding);
        let capabilities = capabilities.unwrap_or_default();
        let devices = linux.resources.and_then(|it| it.devices);
        let uses_every_device = devices.iter().flatten().any(Device::is_any);
        let is_remapped = linux.uid_mappings.is_some_and(|it| !it.is_empty());
        let uid = process.user.and_then(|user| user.uid).unwrap_or(0);
        let own = own_namespaces(linux.namespaces.unwrap_or_default());
        let mounts = spec.mounts.unwrap_or_default();
        let sockets = mounts.iter().map(|mount| mount.source.as_str());
        let environment = process.env.unwrap_or_default();
        Some(Self {
            privileged: uses_every_device && capabilities.contains("CAP_SYS_ADMIN"),
            host_namespaces: (NAMESPACES.into_iter())
                .filter(|kind| !own.contains(*kind))
                .map(str::to_owned)
                .collect(),
            added_capabilities: kept(
                (capabilities.iter().map(String::as_str))
                    .filter(|name| !DEFAULT_CAPABILITIES.contains(name)),
            ),
            root: uid == 0 && !is_remapped,
            writable_root: !spec.root.and_then(|root| root.readonly).unwrap_or(false),
            seccomp: linux.seccomp.is_some(),
            no_new_privileges: process.no_new_privileges.unwrap_or(false),
            runtime_sockets: kept(sockets.filter(|path| holds_runtime_socket(path))),
            secrets: kept(environment.iter().filter_map(|variable| {
                let (name, _) = variable.split_once('=')?;
                is_secret(variable).then_some(name)
            })),
        })
    }
}

impl Device {
    /// A rule that allows every device.
    fn is_any(&self) -> bool {
        // Left out and -1 stand for any number, left out and `a` for any kind.
        let is_wild = |number: Option<i64>| number.is_none_or(|number| number < 0);
        self.allow
            && (self.kind.is_empty() || self.kind == "a")
            && is_wild(self.major)
            && is_wild(self.minor)
    }
}

/// Kinds of namespaces that are not the host's.
fn own_namespaces(namespaces: Vec<Namespace>) -> BTreeSet<String> {
    let is_own = |it: &Namespace| !it.path.starts_with("/proc/1/");
    let own = namespaces.into_iter().filter(is_own);
    own.map(|it| it.kind).collect()
}

/// Whether a path of the host is a runtime's socket, or a directory that it lies in.
fn holds_runtime_socket(source: &str) -> bool {
    let source = Path::new(source);
    // /var/run leads to /run.
    let in_run = source.strip_prefix("/var/run");
    let source = in_run.map_or_else(|_| source.to_owned(), |rest| Path::new("/run").join(rest));
    source.is_absolute()
        && (RUNTIME_SOCKETS.iter()).any(|socket| Path::new(socket).starts_with(&source))
}

fn kept<'a>(names: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
    let cut = |name: &str| name.chars().take(NAME_BYTES_MAX / 4).collect();
    names.take(NAMES_MAX).map(cut).collect()
}

/// Shortest value that is taken for a secret by its looks alone.
const RANDOM_BYTES_MIN: usize = 20;
/// Bits per character from which on a value looks random: words have some 2.5 to 3.5, random letters
/// and digits of such a length 4 and more.
const RANDOM_BITS_MIN: f64 = 4.0;

/// Whether a variable holds a secret: by its name, by a form that secrets have, or since it looks
/// random.
fn is_secret(variable: &str) -> bool {
    if redact::holds_secret(variable.as_bytes()) {
        return true;
    }
    let value = variable.split_once('=').map_or("", |(_, value)| value);
    let is_token = value
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"+/=_-".contains(&byte));
    let has = |test: fn(&u8) -> bool| value.as_bytes().iter().any(test);
    value.len() >= RANDOM_BYTES_MIN
        && is_token
        // Paths, versions and names are words; digests and ids that are public are hexadecimal.
        && !value.starts_with('/')
        && !value.bytes().all(|byte| byte.is_ascii_hexdigit())
        && has(u8::is_ascii_digit)
        && has(u8::is_ascii_uppercase)
        && has(u8::is_ascii_lowercase)
        && bits_per_character(value) >= RANDOM_BITS_MIN
}

/// Shannon entropy.
fn bits_per_character(text: &str) -> f64 {
    let mut counts: BTreeMap<u8, u32> = BTreeMap::new();
    for byte in text.bytes() {
        *counts.entry(byte).or_default() += 1;
    }
    let total = f64::from(u32::try_from(text.len()).unwrap_or(u32::MAX));
    let bits = counts.values().map(|&count| {
        let share = f64::from(count) / total;
        -share * share.log2()
    });
    bits.sum()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// What containerd writes for a container that asks for nothing.
    fn plain() -> Value {
        json!({
            "process": {
                "user": {"uid": 1000, "gid": 1000},
                "env": ["PATH=/usr/bin"],
                "capabilities": {"bounding": DEFAULT_CAPABILITIES},
                "noNewPrivileges": true,
            },
            "root": {"path": "rootfs", "readonly": true},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {
                "namespaces": NAMESPACES.map(|kind| json!({"type": kind})),
                "seccomp": {"defaultAction": "SCMP_ACT_ERRNO"},
                "resources": {"devices": [{"allow": false, "access": "rwm"},
                    {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"}]},
            },
        })
    }

    #[test]
    fn what_is_asked_for_is_told() {
        let check = |pointer: &str, value: Value, expect: &str| {
            let mut spec = plain();
            *spec.pointer_mut(pointer).unwrap() = value;
            let posture = Posture::of(spec.to_string().as_bytes()).unwrap();
            let plain = Posture::of(plain().to_string().as_bytes()).unwrap();
            let told = json!(posture);
            let before = json!(plain);
            let told: Vec<String> = told
                .as_object()
                .unwrap()
                .iter()
                .filter(|(name, value)| before.get(name.as_str()) != Some(*value))
                .map(|(name, value)| format!("{name}: {value}"))
                .collect();
            assert_eq!(told.join(", "), expect, "{pointer}");
        };
        check("/root/readonly", json!(false), "writableRoot: true");
        check(
            "/process/noNewPrivileges",
            json!(null),
            "noNewPrivileges: false",
        );
        check("/process/user/uid", json!(0), "root: true");
        check("/linux/seccomp", json!(null), "seccomp: false");
        check(
            "/process/capabilities/bounding",
            json!(["CAP_CHOWN", "CAP_SYS_PTRACE"]),
            r#"addedCapabilities: ["CAP_SYS_PTRACE"]"#,
        );
        check(
            "/linux/namespaces",
            json!([{"type": "mount"}, {"type": "pid"}, {"type": "ipc"}, {"type": "uts"},
                {"type": "cgroup"}, {"type": "network", "path": "/proc/1/ns/net"}]),
            r#"hostNamespaces: ["network"]"#,
        );
        check(
            "/linux/namespaces/3",
            json!({"type": "network", "path": "/var/run/netns/cni-1"}),
            "",
        );
        for (source, expect) in [
            ("/var/run/docker.sock", true),
            ("/run/containerd", true),
            ("/", true),
            ("/run/containerd/containerd.sock.other", false),
            ("/data", false),
            ("run", false),
        ] {
            let expect = if expect {
                format!("runtimeSockets: [\"{source}\"]")
            } else {
                String::new()
            };
            check("/mounts/0/source", json!(source), &expect);
        }
    }

    #[test]
    fn privileged_is_who_may_do_all() {
        let mut spec = plain();
        let all = json!([{"allow": true, "access": "rwm"}]);
        *spec.pointer_mut("/linux/resources/devices").unwrap() = all;
        let of = |spec: &Value| Posture::of(spec.to_string().as_bytes()).unwrap();
        assert!(!of(&spec).privileged);
        let capabilities = json!(["CAP_SYS_ADMIN"]);
        *spec.pointer_mut("/process/capabilities/bounding").unwrap() = capabilities;
        assert!(of(&spec).privileged);
    }

    #[test]
    fn user_0_of_a_user_namespace_is_not_root() {
        let mut spec = plain();
        *spec.pointer_mut("/process/user/uid").unwrap() = json!(0);
        let mapping = json!([{"containerID": 0, "hostID": 100000, "size": 65536}]);
        let linux = spec.pointer_mut("/linux").unwrap().as_object_mut().unwrap();
        linux.insert("uidMappings".to_owned(), mapping);
        assert!(!Posture::of(spec.to_string().as_bytes()).unwrap().root);
    }

    #[test]
    fn secrets_are_known_by_name_form_or_looks() {
        let check = |variable: &str, expect: bool| {
            assert_eq!(is_secret(variable), expect, "{variable}");
        };
        check("DB_PASSWORD=hunter2", true);
        check("API_TOKEN=x", true);
        check("AWS_KEY=AKIAIOSFODNN7EXAMPLE", true);
        check("URL=postgres://user:pass@host/db", true);
        check("SEED=q7Rf2LmX9aTz0BvKc4Wd", true);
        check("PATH=/usr/local/sbin:/usr/local/bin", false);
        check("VERSION=1.27.3-1~bookworm", false);
        check("GPG_KEYS=573BFD6B3D8FBC641079A6ABABF5BD827BD9BF62", false);
        check("MODULE_NAME=ngx_http_xslt_filter_module", false);
        check("EMPTY=", false);
        check("novalue", false);
    }

    #[test]
    fn what_is_no_spec_has_no_posture() {
        for text in ["", "[]", "{\"process\": 1}", "\u{0}"] {
            assert_eq!(Posture::of(text.as_bytes()), None, "{text}");
        }
        assert!(Posture::of(b"{}").is_some());
    }
}
