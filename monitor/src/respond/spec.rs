//! The OCI runtime spec of a container for another image: what came of the old image's config becomes
//! that of the new one's, what was given beside it stays. Pure.

use serde_json::{Map, Value, json};

use crate::image::manifest::Config;

/// What containerd puts into an environment that has no `PATH`.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a spec cannot be made for another image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Not JSON, or without a process.
    #[error("its OCI spec has no readable process")]
    Unreadable,
    /// Neither the image nor who created the container says what to run.
    #[error("the image has no command, and the container was created without one of its own")]
    NoCommand,
    /// The number of a user's name stands in the image's own files.
    #[error(
        "the images run as different users ({old:?} and {new:?}), and a name has a number only in the image; create the container anew with `ctr run --user`"
    )]
    User {
        /// Of the image that runs.
        old: String,
        /// Of the other.
        new: String,
    },
}

/// The spec of a container for another image, and what of it people should know. `old` is the config
/// of its image; `None` if that is not known for certain: then all stays as it is.
///
/// # Errors
///
/// See [`SpecError`].
pub fn adapted(
    spec: &[u8],
    old: Option<&Config>,
    new: &Config,
) -> Result<(Vec<u8>, Vec<String>), SpecError> {
    let mut spec: Value = serde_json::from_slice(spec).map_err(|_| SpecError::Unreadable)?;
    let process = spec
        .get_mut("process")
        .and_then(Value::as_object_mut)
        .ok_or(SpecError::Unreadable)?;
    let mut notes = Vec::new();
    match old {
        Some(old) => {
            let arguments = arguments(&texts(process, "args"), old, new)?;
            process.insert("args".to_owned(), json!(arguments));
            let environment = environment(&texts(process, "env"), old, new);
            process.insert("env".to_owned(), json!(environment));
            let directory = process.get("cwd").and_then(Value::as_str).unwrap_or("/");
            if directory == directory_of(old) {
                process.insert("cwd".to_owned(), json!(directory_of(new)));
            }
            user(process, old, new)?;
        }
        None => notes.push(
            "it is not known for certain which image runs: arguments, environment, directory and user stay as they are"
                .to_owned(),
        ),
    }
    // Whose terminal it was is not there any more.
    if process.get("terminal") == Some(&Value::Bool(true)) {
        process.insert("terminal".to_owned(), json!(false));
        process.remove("consoleSize");
        notes.push("it had a terminal, the new one has none".to_owned());
    }
    let bytes = serde_json::to_vec(&spec).map_err(|_| SpecError::Unreadable)?;
    Ok((bytes, notes))
}

/// The spec of a container under another id: its cgroup is another one, if it was named by the id.
/// Going there and back gives the same.
///
/// # Errors
///
/// [`SpecError::Unreadable`].
pub fn renamed(spec: &[u8], from: &str, to: &str) -> Result<Vec<u8>, SpecError> {
    let mut spec: Value = serde_json::from_slice(spec).map_err(|_| SpecError::Unreadable)?;
    let path = spec.pointer("/linux/cgroupsPath").and_then(Value::as_str);
    // The last part of a path, or of `SLICE:PREFIX:NAME` where systemd makes it.
    let above = path
        .and_then(|path| path.strip_suffix(from))
        .filter(|above| above.ends_with(['/', ':']));
    if let Some(above) = above.map(|above| format!("{above}{to}"))
        && let Some(path) = spec.pointer_mut("/linux/cgroupsPath")
    {
        *path = Value::String(above);
    }
    serde_json::to_vec(&spec).map_err(|_| SpecError::Unreadable)
}

/// Whether a spec shifts its users' ids.
pub fn is_remapped(spec: &[u8]) -> bool {
    let spec: Value = serde_json::from_slice(spec).unwrap_or_default();
    let mappings = spec.pointer("/linux/uidMappings").and_then(Value::as_array);
    mappings.is_some_and(|mappings| !mappings.is_empty())
}

/// The number of a signal as image configs name it: `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`.
pub fn signal(name: &str) -> Option<u32> {
    /// What glibc calls SIGRTMIN, which is what images mean.
    const REAL_TIME_MIN: u32 = 34;
    const SIGNAL_MAX: u32 = 64;
    let name = name.to_ascii_uppercase();
    let number = if let Ok(number) = name.parse() {
        number
    } else {
        let short = name.strip_prefix("SIG").unwrap_or(&name);
        match short.strip_prefix("RTMIN") {
            Some("") => REAL_TIME_MIN,
            Some(more) => REAL_TIME_MIN.checked_add(more.strip_prefix('+')?.parse().ok()?)?,
            None => {
                let known: nix::sys::signal::Signal = format!("SIG{short}").parse().ok()?;
                u32::try_from(known as i32).ok()?
            }
        }
    };
    (1..=SIGNAL_MAX).contains(&number).then_some(number)
}

fn texts(process: &Map<String, Value>, key: &str) -> Vec<String> {
    let list = process.get(key).and_then(Value::as_array);
    let texts = list.into_iter().flatten().filter_map(Value::as_str);
    texts.map(str::to_owned).collect()
}

/// As the image says, if it did; after the entrypoint stays what was given in place of the command.
fn arguments(own: &[String], old: &Config, new: &Config) -> Result<Vec<String>, SpecError> {
    let whole = |config: &Config| [config.entrypoint.clone(), config.cmd.clone()].concat();
    let found = if own == whole(old) {
        whole(new)
    } else {
        match own.strip_prefix(old.entrypoint.as_slice()) {
            Some(given) => [new.entrypoint.as_slice(), given].concat(),
            None => own.to_vec(),
        }
    };
    if found.is_empty() {
        return Err(SpecError::NoCommand);
    }
    Ok(found)
}

/// What the new image sets, then what was given, which comes before it.
fn environment(own: &[String], old: &Config, new: &Config) -> Vec<String> {
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let is_given = |entry: &&String| !old.env.contains(entry) && entry.as_str() != DEFAULT_PATH;
    let given: Vec<&String> = own.iter().filter(is_given).collect();
    let is_set = |entry: &&String| given.iter().any(|it| name(it) == name(entry));
    let set = new.env.iter().filter(|entry| !is_set(entry));
    let mut all: Vec<String> = set.chain(given.iter().copied()).cloned().collect();
    if !all.iter().any(|entry| name(entry) == "PATH") {
        all.insert(0, DEFAULT_PATH.to_owned());
    }
    all
}

fn directory_of(config: &Config) -> &str {
    match config.working_dir.as_str() {
        "" => "/",
        directory => directory,
    }
}

/// The user of the new image, if the old one's was not overruled and both are numbers.
fn user(process: &mut Map<String, Value>, old: &Config, new: &Config) -> Result<(), SpecError> {
    if old.user == new.user {
        return Ok(());
    }
    let (Some(was), Some(becomes)) = (numbers(&old.user), numbers(&new.user)) else {
        return Err(SpecError::User {
            old: old.user.clone(),
            new: new.user.clone(),
        });
    };
    let user = process.entry("user").or_insert_with(|| json!({}));
    let id = |key: &str| user.get(key).and_then(Value::as_u64).unwrap_or(0);
    if (id("uid"), id("gid")) == was
        && let Some(user) = user.as_object_mut()
    {
        user.insert("uid".to_owned(), json!(becomes.0));
        user.insert("gid".to_owned(), json!(becomes.1));
        // Those of the other user.
        user.remove("additionalGids");
    }
    Ok(())
}

/// User and group of `UID`, `UID:GID` or nothing.
fn numbers(user: &str) -> Option<(u64, u64)> {
    if user.is_empty() {
        return Some((0, 0));
    }
    match user.split_once(':') {
        Some((user, group)) => Some((user.parse().ok()?, group.parse().ok()?)),
        // Which group a user is in says the image's `/etc/passwd`.
        None if user == "0" || user == "root" => Some((0, 0)),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&text| text.to_owned()).collect()
    }

    fn config(entrypoint: &[&str], cmd: &[&str]) -> Config {
        Config {
            entrypoint: list(entrypoint),
            cmd: list(cmd),
            ..Config::default()
        }
    }

    #[test]
    fn arguments_are_the_images_unless_they_were_given() {
        let check = |own: &[&str], expect: Result<&[&str], SpecError>| {
            let old = config(&["/old", "-o"], &["serve"]);
            let new = config(&["/new"], &["run", "fast"]);
            let found = arguments(&list(own), &old, &new);
            assert_eq!(found, expect.map(list), "{own:?}");
        };
        check(&["/old", "-o", "serve"], Ok(&["/new", "run", "fast"]));
        check(&["/old", "-o", "given"], Ok(&["/new", "given"]));
        check(&["/old", "-o"], Ok(&["/new"]));
        check(&["/other", "a"], Ok(&["/other", "a"]));
        let nothing = config(&[], &[]);
        let refused = arguments(&list(&["a"]), &config(&["a"], &[]), &nothing);
        assert_eq!(refused, Err(SpecError::NoCommand));
        let kept = arguments(&list(&["b"]), &config(&[], &["a"]), &nothing);
        assert_eq!(kept, Ok(list(&["b"])));
    }

    #[test]
    fn the_environment_is_the_new_images_and_what_was_given() {
        let check = |own: &[&str], old: &[&str], new: &[&str], expect: &[&str]| {
            let set = |env| Config {
                env: list(env),
                ..Config::default()
            };
            let found = environment(&list(own), &set(old), &set(new));
            assert_eq!(found, list(expect), "{own:?}");
        };
        check(
            &["PATH=/bin", "V=1", "A=given"],
            &["PATH=/bin", "V=1"],
            &["PATH=/bin", "V=2", "A=image"],
            &["PATH=/bin", "V=2", "A=given"],
        );
        check(
            &["PATH=/bin", "V=own"],
            &["PATH=/bin", "V=1"],
            &["PATH=/sbin", "V=2"],
            &["PATH=/sbin", "V=own"],
        );
        check(
            &[DEFAULT_PATH, "A=1"],
            &[],
            &["PATH=/x"],
            &["PATH=/x", "A=1"],
        );
        check(&["PATH=/bin"], &["PATH=/bin"], &[], &[DEFAULT_PATH]);
    }

    #[test]
    fn a_whole_spec_is_adapted() {
        let old = Config {
            working_dir: "/old".to_owned(),
            user: "1:2".to_owned(),
            ..config(&["/old"], &[])
        };
        let new = config(&["/new"], &[]);
        let spec = json!({
            "process": {"args": ["/old"], "cwd": "/old", "user": {"uid": 1, "gid": 2,
                "additionalGids": [2]}, "terminal": true, "capabilities": {"bounding": []}},
            "mounts": [{"destination": "/data"}],
            "linux": {"namespaces": [{"type": "mount"}]},
        });
        let (adapted, notes) = adapted(spec.to_string().as_bytes(), Some(&old), &new)
            .unwrap_or_else(|error| (error.to_string().into_bytes(), Vec::new()));
        let expect = json!({
            "process": {"args": ["/new"], "env": [DEFAULT_PATH], "cwd": "/", "user": {"uid": 0,
                "gid": 0}, "terminal": false, "capabilities": {"bounding": []}},
            "mounts": [{"destination": "/data"}],
            "linux": {"namespaces": [{"type": "mount"}]},
        });
        assert_eq!(serde_json::from_slice::<Value>(&adapted).ok(), Some(expect));
        assert_eq!(notes.len(), 1);
        let named = Config {
            user: "web".to_owned(),
            ..new.clone()
        };
        let refused = super::adapted(spec.to_string().as_bytes(), Some(&old), &named);
        assert!(matches!(refused, Err(SpecError::User { .. })));
        let check = |spec: &[u8]| {
            let refused = super::adapted(spec, Some(&old), &new);
            assert_eq!(refused, Err(SpecError::Unreadable));
        };
        check(b"");
        check(b"[]");
        check(br#"{"process": 7}"#);
    }

    #[test]
    fn another_id_has_another_cgroup_and_the_way_back_is_the_same() {
        let check = |path: &str, expect: &str| {
            let spec = json!({"linux": {"cgroupsPath": path}}).to_string();
            let there = renamed(spec.as_bytes(), "web", "web-before").unwrap_or_default();
            let found: Value = serde_json::from_slice(&there).unwrap_or_default();
            assert_eq!(found.pointer("/linux/cgroupsPath"), Some(&json!(expect)));
            let back = renamed(&there, "web-before", "web").unwrap_or_default();
            assert_eq!(String::from_utf8_lossy(&back), spec);
        };
        check("/default/web", "/default/web-before");
        check("system.slice:x:web", "system.slice:x:web-before");
        check("/default/myweb", "/default/myweb");
        check("/own", "/own");
        assert_eq!(renamed(b"{}", "a", "b"), Ok(b"{}".to_vec()));
    }

    #[test]
    fn signals_are_known_by_name_and_number() {
        let check = |name: &str, expect: Option<u32>| assert_eq!(signal(name), expect, "{name}");
        check("SIGTERM", Some(15));
        check("quit", Some(3));
        check("9", Some(9));
        check("SIGRTMIN+3", Some(37));
        check("SIGRTMIN", Some(34));
        check("SIGRTMIN+4000000000", None);
        check("SIGRTMIN+99", None);
        check("0", None);
        check("", None);
        check("SIGWHAT", None);
    }
}
