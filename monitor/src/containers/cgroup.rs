//! Where a container's cgroup is, and which container a cgroup is below: paths only.

use std::collections::HashMap;

/// Bytes of a `cgroupsPath` that are read; the kernel's `PATH_MAX`.
const CGROUPS_PATH_BYTES_MAX: usize = 4096;

/// The path of a container's cgroup in the v2 hierarchy, from the root the runtime saw, by its
/// spec's `linux.cgroupsPath`: `/default/ID` as it is, systemd's `SLICE:PREFIX:NAME` with its
/// slices nested as systemd nests them. `None` for what runc would refuse, and for an empty path:
/// there the runtime chooses below its own cgroup, and only the task can tell.
pub fn path_of_spec(cgroups_path: &str) -> Option<Vec<u8>> {
    if cgroups_path.is_empty() || cgroups_path.len() > CGROUPS_PATH_BYTES_MAX {
        return None;
    }
    let mut parts = cgroups_path.split(':');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(slice), Some(prefix), Some(name), None) if !slice.contains('/') => {
            let unit = if name.ends_with(".slice") {
                name.to_owned()
            } else if prefix.is_empty() {
                format!("{name}.scope")
            } else {
                format!("{prefix}-{name}.scope")
            };
            let parent = nested_slices(if slice.is_empty() {
                "system.slice"
            } else {
                slice
            })?;
            normal(format!("{parent}/{unit}").as_bytes())
        }
        _ => normal(cgroups_path.as_bytes()),
    }
}

/// `/a.slice/a-b.slice` for `a-b.slice`, empty for the root slice `-.slice`.
fn nested_slices(slice: &str) -> Option<String> {
    let stem = slice.strip_suffix(".slice")?;
    if stem == "-" {
        return Some(String::new());
    }
    let mut path = String::new();
    let mut name = String::new();
    for part in stem.split('-') {
        if part.is_empty() {
            return None;
        }
        if !name.is_empty() {
            name.push('-');
        }
        name.push_str(part);
        path.push('/');
        path.push_str(&name);
        path.push_str(".slice");
    }
    Some(path)
}

/// One slash before each component and nothing else; `None` for the root and for `.` and `..`,
/// which no cgroup is called.
fn normal(path: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(path.len() + 1);
    for component in components(path) {
        if matches!(component, b"." | b"..") {
            return None;
        }
        out.push(b'/');
        out.extend_from_slice(component);
    }
    (!out.is_empty()).then_some(out)
}

fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/')
        .filter(|component| !component.is_empty())
}

/// The container's cgroup from the root this program sees, given where its init process is (`seen`,
/// of `/proc/PID/cgroup`): init may have moved below, and the runtime may have seen another root.
/// The occurrence nearest to the root counts, because only what is below it is in the container's
/// hands. Without a `cgroupsPath` the cgroup must be named after the container (`id`), so that no
/// cgroup shared with the host is ever taken for a container's.
pub fn path_of_task(spec: Option<&[u8]>, id: &str, seen: &[u8]) -> Option<Vec<u8>> {
    let seen = normal(seen)?;
    match spec {
        Some(spec) => prefixes(&seen)
            .find(|prefix| ends_with_path(prefix, spec))
            .map(<[u8]>::to_vec),
        None => prefixes(&seen)
            .find(|prefix| components(prefix).last() == Some(id.as_bytes()))
            .map(<[u8]>::to_vec),
    }
}

/// The paths of `path`'s ancestors and itself, the shortest first; the root is left out.
fn prefixes(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    (1..=path.len()).filter_map(move |end| {
        let ends = end == path.len() || path.get(end) == Some(&b'/');
        ends.then(|| path.get(..end)).flatten()
    })
}

/// `suffix` begins with a slash, so a match is one of whole components.
fn ends_with_path(path: &[u8], suffix: &[u8]) -> bool {
    suffix.first() == Some(&b'/') && path.ends_with(suffix)
}

/// Whether the cgroup `path` is at or below `container`, or could be where the runtime saw another
/// root.
pub fn may_be_below(path: &[u8], container: &[u8]) -> bool {
    prefixes(path).any(|prefix| prefix == container)
        || (suffix_serves(container)
            && prefixes(path).any(|prefix| ends_with_path(prefix, container)))
}

/// One component (`/nginx`) could be the name of anything somewhere in the hierarchy.
fn suffix_serves(container: &[u8]) -> bool {
    components(container).nth(1).is_some()
}

/// What a cgroup's path says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// It is at or below this container's cgroup.
    Container(u64),
    /// It is below the cgroup of one of several, or its path was cut.
    Unclear,
    /// No container's path is in it.
    Nothing,
}

/// The paths of containers' cgroups, each with the serial number of its container.
#[derive(Debug, Default)]
pub struct Paths {
    // By last component, which almost always holds the container's id.
    by_name: HashMap<Vec<u8>, Vec<(Vec<u8>, u64)>>,
}

impl Paths {
    /// Adds a path as made by [`path_of_spec`] or [`path_of_task`]; the newer of two containers
    /// with one path has it.
    pub fn insert(&mut self, path: &[u8], serial: u64) {
        let Some(name) = components(path).last() else {
            return;
        };
        let entries = self.by_name.entry(name.to_vec()).or_default();
        match entries.iter_mut().find(|(known, _)| known == path) {
            Some(entry) => entry.1 = entry.1.max(serial),
            None => entries.push((path.to_vec(), serial)),
        }
    }

    /// Takes a path away, if it is still this container's.
    pub fn remove(&mut self, path: &[u8], serial: u64) {
        let Some(name) = components(path).last() else {
            return;
        };
        if let Some(entries) = self.by_name.get_mut(name) {
            entries.retain(|entry| entry.0 != path || entry.1 != serial);
            if entries.is_empty() {
                self.by_name.remove(name);
            }
        }
    }

    /// Which container the cgroup `path` is of. Of containers whose whole path is above it the
    /// nearest, as where a container's runtime runs containers below it. Otherwise a container
    /// whose path is the end of a part of it, as where the runtime saw another root: the one
    /// nearest to the root, because components below a container are in its own hands and could
    /// spell another's path.
    pub fn find(&self, path: &[u8]) -> Found {
        if path.first() != Some(&b'/') {
            // Cut: what is missing above could be another container.
            return Found::Unclear;
        }
        let entries = |prefix: &[u8]| {
            components(prefix)
                .last()
                .and_then(|name| self.by_name.get(name))
                .map(Vec::as_slice)
                .unwrap_or_default()
        };
        for prefix in prefixes(path).rev() {
            if let Some((_, serial)) = entries(prefix).iter().find(|(known, _)| known == prefix) {
                return Found::Container(*serial);
            }
        }
        for prefix in prefixes(path) {
            let mut matches = entries(prefix)
                .iter()
                .filter(|(known, _)| suffix_serves(known) && ends_with_path(prefix, known));
            match (matches.next(), matches.next()) {
                (Some((_, serial)), None) => return Found::Container(*serial),
                (Some(_), Some(_)) => return Found::Unclear,
                (None, _) => {}
            }
        }
        Found::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(path: Option<Vec<u8>>) -> Option<String> {
        path.map(|path| String::from_utf8_lossy(&path).into_owned())
    }

    #[test]
    fn a_cgroups_path_becomes_the_path_runc_makes_of_it() {
        #[track_caller]
        fn check(cgroups_path: &str, expect: &str) {
            let seen = text(path_of_spec(cgroups_path));
            assert_eq!(seen.as_deref().unwrap_or("none"), expect, "{cgroups_path}");
        }
        check("/default/web", "/default/web");
        check("default//web/", "/default/web");
        check("/kubepods/burstable/podU/ID", "/kubepods/burstable/podU/ID");
        check(
            "kubepods-burstable-podX.slice:cri-containerd:ID",
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podX.slice/cri-containerd-ID.scope",
        );
        check("system.slice:docker:ID", "/system.slice/docker-ID.scope");
        check(":nerdctl:ID", "/system.slice/nerdctl-ID.scope");
        check("-.slice:p:ID", "/p-ID.scope");
        check("user.slice::ID", "/user.slice/ID.scope");
        check("a.slice:ignored:b.slice", "/a.slice/b.slice");
        check("a--b.slice:p:ID", "none");
        check("nothing:p:ID", "none");
        check("/a:b/c:d", "/a:b/c:d");
        check("a:b", "/a:b");
        check("", "none");
        check("/", "none");
        check("/a/../b", "none");
        check(&"a/".repeat(4096), "none");
    }

    #[test]
    fn a_task_says_where_its_container_is() {
        #[track_caller]
        fn check(spec: Option<&str>, seen: &str, expect: &str) {
            let found = text(path_of_task(
                spec.map(str::as_bytes),
                "web",
                seen.as_bytes(),
            ));
            assert_eq!(found.as_deref().unwrap_or("none"), expect, "{seen}");
        }
        check(Some("/default/web"), "/default/web", "/default/web");
        check(
            Some("/default/web"),
            "/default/web/init.scope",
            "/default/web",
        );
        check(
            Some("/default/web"),
            "/docker/n/default/web/x",
            "/docker/n/default/web",
        );
        check(
            Some("/default/web"),
            "/default/web/default/web",
            "/default/web",
        );
        check(Some("/default/web"), "/mydefault/web", "none");
        check(Some("/default/web"), "/", "none");
        check(Some("/default/web"), "/../default/web", "none");
        check(None, "/system.slice/web/x", "/system.slice/web");
        check(None, "/system.slice", "none");
    }

    #[test]
    fn a_cgroup_is_of_the_container_above_it() {
        let mut paths = Paths::default();
        for (path, serial) in [
            ("/default/a", 1),
            ("/default/b", 2),
            ("/default/a/inner/c", 3),
            ("/k/pod/d", 4),
            ("/x/k/pod/d", 5),
            ("/e", 6),
        ] {
            paths.insert(path.as_bytes(), serial);
        }
        #[track_caller]
        fn check(paths: &Paths, path: &str, expect: Found) {
            assert_eq!(paths.find(path.as_bytes()), expect, "{path}");
        }
        check(&paths, "/default/a", Found::Container(1));
        check(&paths, "/default/a/deep/er", Found::Container(1));
        check(&paths, "/default/a/inner/c/x", Found::Container(3));
        check(&paths, "/default/ab", Found::Nothing);
        check(&paths, "/default", Found::Nothing);
        check(&paths, "/", Found::Nothing);
        // Another root.
        check(&paths, "/docker/n/default/b/x", Found::Container(2));
        check(&paths, "/docker/n/mydefault/b", Found::Nothing);
        check(&paths, "/y/x/k/pod/d", Found::Unclear);
        check(&paths, "/y/e", Found::Nothing);
        // A container cannot pass for another by what it makes below itself.
        check(&paths, "/default/a/default/b", Found::Container(1));
        check(&paths, "/n/default/a/default/b", Found::Container(1));
        // Cut.
        check(&paths, "…/default/a", Found::Unclear);

        paths.insert(b"/default/b", 7);
        check(&paths, "/default/b", Found::Container(7));
        paths.remove(b"/default/b", 2);
        check(&paths, "/default/b", Found::Container(7));
        paths.remove(b"/default/b", 7);
        check(&paths, "/default/b", Found::Nothing);
    }
}
